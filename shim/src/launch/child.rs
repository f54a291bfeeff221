//! The child's sequence, from a fresh clone to the program: numbered steps, each of which the next relies on. It ends
//! in execve or in one message that says which step failed.

use std::{
    ffi::CString,
    fs::File,
    io::Write,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::Path,
};

use berth_launch::v1::{ContainerPlan, Namespace, NamespaceKind, Process, Step, Sysctl};
use rustix::{
    fs::{Mode, OFlags, open},
    mount::{MountPropagationFlags, MoveMountFlags, UnmountFlags, mount_change, move_mount, unmount},
    process::{chdir, fchdir, pivot_root},
};

use super::{
    channel::Channel,
    credentials,
    failure::{At, Result, fail},
    mounts, namespaces,
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
pub fn run(plan: &ContainerPlan, prepared: Prepared, streams: Option<Streams>, channel: Channel) -> ! {
    let Err(failure) = sequence(plan, prepared, streams, &channel);
    channel.send_failure(failure);
    kernel::clone::exit_now(1)
}

fn sequence(
    plan: &ContainerPlan,
    mut prepared: Prepared,
    streams: Option<Streams>,
    channel: &Channel,
) -> Result<std::convert::Infallible> {
    let process = plan.process.as_ref().ok_or_else(|| fail(Step::Plan, "process", 0, "the plan has none"))?;
    let mut warnings = Vec::new();

    // 1. A shim that dies before the start takes this half-made container with it; the gate lifts that.
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL)).ok();
    // 2. The cgroup first: all that follows is counted. Then its namespace, whose root is where we are now.
    enter_cgroups(&mut prepared.cgroup_v1)?;
    if new(plan, NamespaceKind::Cgroup) {
        kernel::clone::unshare(libc::CLONE_NEWCGROUP).at(Step::NamespaceJoin, "cgroup")?;
    }
    // 3. The pod's namespaces, before any mount whose view depends on them.
    for (file, kind) in &prepared.joins {
        if *kind != NamespaceKind::Pid {
            kernel::clone::setns(file.as_fd(), namespaces::flag(*kind))
                .at(Step::NamespaceJoin, kind.as_str_name())?;
        }
    }
    // 4. A session of its own, so that no terminal of the shim's is ours.
    kernel::exec::setsid();
    // 5. What the host's /proc must serve while it is still reachable.
    if let Some(score) = process.oom_score_adj {
        warnings.extend(credentials::oom_score_adj(score)?);
    }
    if !plan.hostname.is_empty() {
        rustix::system::sethostname(plan.hostname.as_bytes()).at(Step::Hostname, &plan.hostname)?;
    }
    // 6. The root file system and everything on it.
    let root = enter_rootfs(plan, &prepared.root)?;
    mounts::all(&root, &plan.mounts, &mut prepared.sources)?;
    mounts::devices(&root, &plan.devices)?;
    mounts::symlinks(&root, &plan.symlinks)?;
    // 7. From here on there is no host.
    pivot(&root)?;
    sysctls(&plan.sysctls)?;
    let (streams, terminal) = match streams {
        Some(streams) => (streams, None),
        None => {
            let (streams, master) = terminal::open(&root, process)?;
            (streams, Some(master))
        }
    };
    let null = File::options().read(true).write(true).open("/dev/null");
    if !plan.masked_paths.is_empty() {
        mounts::mask(&root, &plan.masked_paths, &null.at(Step::Mask, "/dev/null")?)?;
    }
    mounts::read_only(&root, &plan.readonly_paths)?;
    // 8. Who it is, where it starts; the directory is made while the root is still writable.
    let who = user::resolve(&root, process.user.as_ref().unwrap_or(&Default::default()))?;
    program::make_workdir(&root, &process.cwd)?;
    if plan.rootfs.as_ref().is_some_and(|rootfs| rootfs.readonly) {
        kernel::mount::set_attributes(root.as_fd(), libc::MOUNT_ATTR_RDONLY, 0, 0, false)
            .at(Step::Rootfs, "/")?;
    }
    warnings.extend(credentials::rlimits(&process.rlimits)?);
    become_process(process, &who, streams)?;
    // 9. CREATED. The program's own failures belong to Start.
    channel.send_ready(&who, warnings, terminal.as_ref().map(AsFd::as_fd));
    drop(terminal);
    if !channel.wait_for_gate() {
        kernel::clone::exit_now(0);
    }
    rustix::process::set_parent_process_death_signal(None).ok();
    execute(process, &who)
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

/// Cuts this mount namespace off from the host's and puts the root where pivot_root can take it.
fn enter_rootfs(plan: &ContainerPlan, tree: &OwnedFd) -> Result<Root> {
    let asked = plan.rootfs.as_ref().map_or(0, |rootfs| rootfs.propagation);
    let asked = if asked == 0 { libc::MS_REC | libc::MS_SLAVE } else { asked };
    let flags = MountPropagationFlags::from_bits_retain(asked as _);
    mount_change("/", flags).at(Step::Rootfs, "/")?;
    let place = Path::new(&plan.dir).join("rootfs");
    std::fs::create_dir_all(&place).at(Step::Rootfs, &place)?;
    let how = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(tree, "", rustix::fs::CWD, &place, how).at(Step::Rootfs, &place)?;
    // pivot_root(2) refuses a shared root, and nothing mounted below may travel to the host.
    if asked & libc::MS_SHARED == 0 {
        kernel::mount::set_attributes(tree.as_fd(), 0, 0, libc::MS_PRIVATE, true).at(Step::Rootfs, &place)?;
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(Root::new(open(&place, flags, Mode::empty()).at(Step::Rootfs, &place)?))
}

/// Makes the container's root this process's root, and lets go of the host's: `pivot_root(".", ".")` stacks the old
/// root on the new one, from where it is detached; `pivot_root(2)`, NOTES.
fn pivot(root: &Root) -> Result<()> {
    fchdir(root).at(Step::PivotRoot, "/")?;
    pivot_root(".", ".").at(Step::PivotRoot, "/")?;
    // The old root must not carry our unmount to the host.
    mount_change(".", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)
        .at(Step::PivotRoot, "/")?;
    unmount(".", UnmountFlags::DETACH).at(Step::PivotRoot, "/")?;
    chdir("/").at(Step::PivotRoot, "/")
}

/// Writes kernel parameters of the container's own namespaces, `sysctl(8)`'s names.
pub fn sysctls(sysctls: &[Sysctl]) -> Result<()> {
    for Sysctl { name, value } in sysctls {
        if name.contains("..") {
            return Err(fail(Step::Sysctl, name, libc::EINVAL, "not the name of a kernel parameter"));
        }
        let path = format!("/proc/sys/{}", name.replace('.', "/"));
        std::fs::write(path, value).at(Step::Sysctl, name)?;
    }
    Ok(())
}

/// The streams, the mask and the ids, in an order in which each step still has the right to the next.
pub fn become_process(process: &Process, who: &Resolved, streams: Streams) -> Result<()> {
    for (stream, number) in [(&streams.stdin, 0), (&streams.stdout, 1), (&streams.stderr, 2)] {
        terminal::place(stream, number).at(Step::Stdio, number.to_string())?;
    }
    drop(streams);
    if process.tty {
        terminal::take().at(Step::Pty, "/dev/pts")?;
    }
    rustix::process::umask(Mode::from(process.umask.unwrap_or(0o022)));
    credentials::ids(process, who)
}

/// Drops what is left to drop and becomes the program.
pub fn execute(process: &Process, who: &Resolved) -> Result<std::convert::Infallible> {
    let env = program::environment(process, who)?;
    let args: Vec<CString> = program::arguments(process)?;
    program::enter_workdir(&process.cwd)?;
    let path = program::find(&args, &env)?;
    // Without no_new_privs loading a filter takes CAP_SYS_ADMIN: before it is dropped. With it, last of all.
    if !process.no_new_privileges {
        credentials::seccomp(process)?;
    }
    credentials::capabilities(process)?;
    if process.no_new_privileges {
        rustix::thread::set_no_new_privs(true).at(Step::NoNewPrivs, "")?;
        credentials::seccomp(process)?;
    }
    kernel::exec::cloexec_from(3).at(Step::Stdio, "close_range")?;
    kernel::signal::reset();
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
