//! The child's sequence, from a fresh clone to the program: numbered steps, each of which the next relies on. It ends
//! in execve or in one message that says which step failed.

use std::{
    ffi::CString,
    fs::File,
    io::Write,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::Path,
};

use berth_launch::v1::{ContainerPlan, Hooks, Namespace, NamespaceKind, Process, Step, Sysctl, rootfs};
use rustix::{
    fs::{Mode, OFlags, ResolveFlags, open, openat2},
    io::Errno,
    mount::{
        MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount_change, move_mount,
        open_tree, unmount,
    },
    process::{chdir, fchdir, pivot_root},
};

use super::{
    Keeper,
    attributes::{self, Labels},
    channel::Channel,
    credentials,
    failure::{At, Result, fail},
    hooks, mounts, namespaces, net_devices,
    prepare::Prepared,
    program,
    root::Root,
    terminal,
    user::{self, Resolved},
};
use crate::kernel;

/// What the child holds of its standard streams; with a tty it makes its own.
#[derive(Debug)]
pub struct Streams {
    pub stdin: OwnedFd,
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
}

/// Runs in the clone; never returns.
pub fn run(
    plan: &ContainerPlan,
    prepared: Prepared,
    streams: Option<Streams>,
    mut channel: Channel,
    keeper: Keeper,
) -> ! {
    let Err(failure) = sequence(plan, prepared, streams, &mut channel, keeper);
    channel.send_failure(failure);
    kernel::clone::exit_now(1)
}

fn sequence(
    plan: &ContainerPlan,
    mut prepared: Prepared,
    streams: Option<Streams>,
    channel: &mut Channel,
    keeper: Keeper,
) -> Result<std::convert::Infallible> {
    let process = plan.process.as_ref().ok_or_else(|| fail(Step::Plan, "process", 0, "the plan has none"))?;
    let mut warnings = Vec::new();

    // 1. A shim that dies before the start takes this half-made container with it; the gate lifts that.
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL)).ok();
    let is_ushered = prepared.users.is_some();
    if !is_ushered {
        attributes::first_affinity(process)?;
        // 2. The cgroup first: all that follows is counted. Then its namespace, whose root is where we are now.
        enter_cgroups(&mut prepared.cgroup_v1)?;
    }
    if new(plan, NamespaceKind::Cgroup) {
        kernel::clone::unshare(libc::CLONE_NEWCGROUP).at(Step::NamespaceJoin, "cgroup")?;
    }
    // 3. The pod's namespaces, before any mount whose view depends on them.
    for (file, kind) in &prepared.joins {
        if *kind != NamespaceKind::Pid {
            kernel::clone::setns(file.as_fd(), namespaces::flag(*kind))
                .at(Step::NamespaceJoin, namespaces::file(*kind))?;
        }
    }
    // 4. A session of its own, so that no terminal of the shim's is ours.
    kernel::exec::setsid();
    // 5. What the host's /proc must serve while it is still reachable.
    if let Some(score) = process.oom_score_adj.filter(|_| !is_ushered) {
        warnings.extend(credentials::oom_score_adj(score)?);
    }
    if !plan.hostname.is_empty() {
        rustix::system::sethostname(plan.hostname.as_bytes()).at(Step::Hostname, &plan.hostname)?;
    }
    if !plan.domainname.is_empty() {
        rustix::system::setdomainname(plan.domainname.as_bytes()).at(Step::Hostname, &plan.domainname)?;
    }
    let labels = Labels::open(process)?;
    let pid = if plan.hooks.is_some() || process.seccomp_listener.is_some() { outer_pid()? } else { 0 };
    if waits(plan) {
        channel.send_ready(&Resolved::default(), Vec::new(), None);
        if !channel.wait_for_gate() {
            kernel::clone::exit_now(0);
        }
        net_devices::set_up(&prepared.net_devices)?;
    }
    // 6. The root file system and everything on it.
    if !is_ushered {
        stand_at_root(plan)?;
    }
    let propagation = plan.rootfs.as_ref().map_or(0, |rootfs| rootfs.propagation);
    let root = enter_rootfs(prepared.root, plan, propagation)?;
    // What lies at a path in an image was taken by who has the host's rights.
    let staging = Path::new(&plan.dir).join("empty");
    let staging = (!is_ushered).then_some(staging.as_path());
    mounts::all(&root, &plan.mounts, &mut prepared.sources, staging)?;
    mounts::devices(&root, &plan.devices, &prepared.devices)?;
    mounts::symlinks(&root, &plan.symlinks)?;
    if let Some(hooks) = &plan.hooks {
        hooks::run(&hooks.create_container, &hooks::state(&hooks.creating, pid))?;
    }
    // 7. From here on there is no host.
    pivot(&root)?;
    share_root(propagation)?;
    sysctls(&plan.sysctls)?;
    let (streams, terminal) = match streams {
        Some(streams) => (streams, None),
        None => {
            let (streams, master) = terminal::open(&root, process)?;
            (streams, Some(master))
        }
    };
    if !plan.masked_paths.is_empty() {
        mounts::mask(&root, &plan.masked_paths, &mounts::null(&root)?)?;
    }
    mounts::read_only(&root, &plan.readonly_paths)?;
    // 8. Who it is, where it starts; the directory is made while the root is still writable.
    let who = user::resolve(&root, process.user.as_ref().unwrap_or(&Default::default()))?;
    program::make_workdir(&root, &process.cwd)?;
    if plan.rootfs.as_ref().is_some_and(|rootfs| rootfs.readonly) {
        kernel::mount::set_attributes(root.as_fd(), libc::MOUNT_ATTR_RDONLY, 0, 0, false)
            .at(Step::Rootfs, "/")?;
    }
    seal_root(propagation)?;
    if !is_ushered {
        warnings.extend(credentials::rlimits(None, &process.rlimits)?);
    }
    attributes::scheduling(process, &plan.id)?;
    become_process(process, &who, streams)?;
    // 9. CREATED. The program's own failures belong to Start; an outside keeper has them as early as they can be told, unless
    // a hook may still bring the program.
    if matches!(keeper, Keeper::Outside(_)) {
        if plan.hooks.as_ref().is_none_or(|hooks| hooks.start_container.is_empty()) {
            program::check(process, &who)?;
        }
        // Who launches leaves once it has heard of us; who starts comes to the socket.
        rustix::process::set_parent_process_death_signal(None).ok();
    }
    channel.send_ready(&who, warnings, terminal.as_ref().map(AsFd::as_fd));
    drop(terminal);
    if let Keeper::Outside(socket) = keeper {
        *channel = Channel::accept(socket)?;
    }
    if !channel.wait_for_gate() {
        kernel::clone::exit_now(0);
    }
    rustix::process::set_parent_process_death_signal(None).ok();
    let kept = plan.outside.as_ref().map_or(0, |outside| outside.preserve_fds);
    if let Some(hooks) = &plan.hooks {
        let state = hooks::state(hooks::pieces(hooks, &hooks.created), pid);
        hooks::run(&hooks.start_container, &state)?;
    }
    execute(process, &who, Last { kept, labels, listener: prepared.listener, pid })
}

/// Whether init waits in its namespaces for what comes from outside: hooks on the host, network devices.
pub fn waits(plan: &ContainerPlan) -> bool {
    let hooked = |hooks: &Hooks| !hooks.prestart.is_empty() || !hooks.create_runtime.is_empty();
    plan.hooks.as_ref().is_some_and(hooked) || !plan.net_devices.is_empty()
}

/// Our pid as the host's /proc shows it: the one that others know us by.
pub fn outer_pid() -> Result<i32> {
    let own = "/proc/self";
    let link = std::fs::read_link(own).at(Step::Plan, own)?;
    let pid = link.to_str().and_then(|text| text.parse().ok());
    pid.ok_or_else(|| fail(Step::Plan, own, 0, "it is no pid: is /proc mounted?"))
}

/// What the last step before the program takes.
#[derive(Debug)]
pub struct Last {
    /// So many descriptors beside the standard ones stay open.
    pub kept: u32,
    pub labels: Labels,
    /// Connected to whoever wants the seccomp notifications.
    pub listener: Option<OwnedFd>,
    pub pid: i32,
}

/// Moves this process to the v1 cgroups whose `tasks` files its parent opened.
pub fn enter_cgroups(tasks: &mut [File]) -> Result<()> {
    for file in tasks {
        file.write_all(b"0").at(Step::CgroupJoin, format!("fd {}", file.as_raw_fd()))?;
    }
    Ok(())
}

fn new(plan: &ContainerPlan, kind: NamespaceKind) -> bool {
    plan.namespaces.iter().any(|Namespace { kind: k, path }| *k == i32::from(kind) && path.is_empty())
}

/// Cuts this mount namespace off from the host's and puts the root where pivot_root can take it. Volumes that are to
/// carry mounts to the host were taken before, as members of their peer groups, and stay that.
fn enter_rootfs(mut tree: OwnedFd, plan: &ContainerPlan, propagation: u64) -> Result<Root> {
    mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)
        .at(Step::Rootfs, "/")?;
    let how = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    let plain = plan.rootfs.as_ref().filter(|rootfs| rootfs.ids.is_none());
    let from = plain.and_then(|rootfs| rootfs.from.as_ref());
    match (move_mount(&tree, "", rustix::fs::CWD, "", how), from) {
        // As with volumes, see `mounts::without_loops`.
        (Err(Errno::LOOP), Some(rootfs::From::Path(path))) => {
            let flags = OpenTreeFlags::OPEN_TREE_CLONE
                | OpenTreeFlags::OPEN_TREE_CLOEXEC
                | OpenTreeFlags::AT_RECURSIVE;
            tree = open_tree(rustix::fs::CWD, path, flags).at(Step::Rootfs, path)?;
            move_mount(&tree, "", rustix::fs::CWD, "", how).at(Step::Rootfs, "/")?;
        }
        (moved, _) => moved.at(Step::Rootfs, "/")?,
    }
    // pivot_root(2) refuses a shared root, and nothing mounted below may travel to the host. What the host mounts there
    // comes to a slave, where its root is shared.
    let cut_off = if propagation & libc::MS_SLAVE != 0 { libc::MS_SLAVE } else { libc::MS_PRIVATE };
    kernel::mount::set_attributes(tree.as_fd(), 0, 0, cut_off, true).at(Step::Rootfs, "/")?;
    Ok(Root::new(tree))
}

/// Goes to where the root will be put, by the host's rights: a working directory comes along into a new mount namespace,
/// and to mount on it takes no way there.
pub fn stand_at_root(plan: &ContainerPlan) -> Result<()> {
    let place = Path::new(&plan.dir).join("rootfs");
    std::fs::create_dir_all(&place).at(Step::Rootfs, &place)?;
    chdir(&place).at(Step::Rootfs, &place)
}

/// A root that was asked to be shared is that within the container's own namespaces.
fn share_root(propagation: u64) -> Result<()> {
    match propagation & libc::MS_SHARED != 0 {
        true => mount_change("/", MountPropagationFlags::SHARED).at(Step::Rootfs, "/"),
        false => Ok(()),
    }
}

/// A root that nobody is to bind elsewhere; we have bound what is masked in it.
fn seal_root(propagation: u64) -> Result<()> {
    match propagation & libc::MS_UNBINDABLE != 0 {
        true => mount_change("/", MountPropagationFlags::UNBINDABLE).at(Step::Rootfs, "/"),
        false => Ok(()),
    }
}

/// Makes the container's root this process's root, and lets go of the host's: `pivot_root(".", ".")` stacks the old
/// root on the new one, from where it is detached; `pivot_root(2)`, NOTES.
fn pivot(root: &Root) -> Result<()> {
    fchdir(root).at(Step::PivotRoot, "/")?;
    pivot_root(".", ".").at(Step::PivotRoot, "/")?;
    // The old root is a slave of the host's since `enter_rootfs`: our unmount stays here. Of the two at "." only
    // umount(2) means the upper one; mount(2) would mean the container's, and make its shared volumes slaves too.
    unmount(".", UnmountFlags::DETACH).at(Step::PivotRoot, "/")?;
    chdir("/").at(Step::PivotRoot, "/")
}

/// Writes kernel parameters of the container's own namespaces, `sysctl(8)`'s names.
pub fn sysctls(sysctls: &[Sysctl]) -> Result<()> {
    for Sysctl { name, value } in sysctls {
        if name.contains("..") {
            return Err(fail(Step::Sysctl, name, libc::EINVAL, "not the name of a kernel parameter"));
        }
        // sysctl(8): of dots and slashes the first one met separates, and the other belongs to names.
        let path = match name.find(['.', '/']).map(|at| name.as_bytes()[at]) {
            Some(b'.') => name
                .chars()
                .map(|one| match one {
                    '.' => '/',
                    '/' => '.',
                    other => other,
                })
                .collect(),
            _ => name.clone(),
        };
        let file = proc_file(Path::new("sys").join(path)).at(Step::Sysctl, name)?;
        File::from(file).write_all(value.as_bytes()).at(Step::Sysctl, name)?;
    }
    Ok(())
}

/// Opens a file of /proc to write, and only that: what is at /proc must be the root of a procfs, and on the way there is
/// neither a link nor a mount that could lead to another file (CVE-2025-52881).
fn proc_file(path: impl AsRef<Path>) -> rustix::io::Result<OwnedFd> {
    const ROOT_INODE: u64 = 1;
    let proc = open("/proc", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let is_procfs = rustix::fs::fstatfs(&proc)?.f_type == rustix::fs::PROC_SUPER_MAGIC;
    if !is_procfs || rustix::fs::fstat(&proc)?.st_ino != ROOT_INODE {
        return Err(rustix::io::Errno::XDEV);
    }
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS;
    openat2(&proc, path.as_ref(), OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty(), resolve)
}

/// The streams, the mask and the ids, in an order in which each step still has the right to the next.
pub fn become_process(process: &Process, who: &Resolved, streams: Streams) -> Result<()> {
    for (stream, number) in [(&streams.stdin, 0), (&streams.stdout, 1), (&streams.stderr, 2)] {
        terminal::place(stream, number).at(Step::Stdio, number.to_string())?;
    }
    drop(streams);
    if process.tty {
        terminal::take().at(Step::Pty, "/dev/pts")?;
        // By its name, as /dev/console, it is to be opened by the user too; the group stays tty's.
        let owner = Some(rustix::fs::Uid::from_raw(who.uid));
        rustix::fs::fchown(rustix::stdio::stdin(), owner, None).at(Step::Pty, "/dev/pts")?;
    }
    rustix::process::umask(Mode::from(process.umask.unwrap_or(0o022)));
    credentials::ids(process, who)
}

/// Drops what is left to drop and becomes the program.
pub fn execute(process: &Process, who: &Resolved, last: Last) -> Result<std::convert::Infallible> {
    let env = program::environment(process, who)?;
    let args: Vec<CString> = program::arguments(process)?;
    program::enter_workdir(&process.cwd)?;
    let path = program::find(&args, &env)?;
    attributes::final_affinity(process)?;
    last.labels.apply(process)?;
    let listener = last.listener.as_ref().map(|socket| (socket, last.pid));
    // A filter may deny these calls, and needs not allow what its program doesn't do.
    kernel::exec::cloexec_from(last.kept.saturating_add(3)).at(Step::Stdio, "close_range")?;
    kernel::signal::reset();
    // Before we have no more rights than the container's processes, which could open our own binary by
    // /proc/PID/exe and write to it later (CVE-2019-5736): of what is not dumpable they can't. execve lifts that.
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .at(Step::Capabilities, "dumpable")?;
    // Without no_new_privs loading a filter takes CAP_SYS_ADMIN: before it is dropped. With it, last of all.
    if !process.no_new_privileges {
        credentials::seccomp(process, listener)?;
    }
    credentials::capabilities(process)?;
    if process.no_new_privileges {
        rustix::thread::set_no_new_privs(true).at(Step::NoNewPrivs, "")?;
        credentials::seccomp(process, listener)?;
    }
    let error = kernel::exec::execve(&path, &args, &env);
    Err(program::failed(&path, &error))
}

/// For exec's child, which has no root of its own to hold: the one it is in.
pub fn own_root() -> Result<Root> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(Root::new(open("/", flags, Mode::empty()).at(Step::Rootfs, "/")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sysctl_name_cannot_climb() {
        let climbing = Sysctl { name: "net/../../x".into(), value: "1".into() };
        assert_eq!(sysctls(&[climbing]).unwrap_err().step(), Step::Sysctl);
    }
}
