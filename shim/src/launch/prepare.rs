//! The parent's half before clone3, still in the host's namespaces: the overlay and every host path become detached
//! mount fds, every cgroup and namespace an open file. Nothing has a name yet, so nothing needs undoing.

use std::{
    fs::File,
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use berth_launch::v1::{
    Bind, Cgroup, ContainerPlan, NamespaceKind, Overlay, Process, Rootfs, Step, mount, rootfs,
};
use rustix::{
    fs::{CWD, Mode, OFlags, open},
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_flag,
        fsconfig_set_string, fsmount, fsopen, open_tree,
    },
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with},
};

use super::{
    failure::{At, Result, fail},
    root,
};

/// All that a child needs and only the parent can get.
#[derive(Debug)]
pub struct Prepared {
    pub root: OwnedFd,
    /// One per mount of the plan, `None` for file systems that the child makes in its own namespaces.
    pub sources: Vec<Option<OwnedFd>>,
    pub cgroup_v2: Option<OwnedFd>,
    /// The `tasks` files of the v1 hierarchies: a 0 written there moves the writer, 50 times cheaper than a foreign pid.
    pub cgroup_v1: Vec<File>,
    pub joins: Vec<(OwnedFd, NamespaceKind)>,
    /// Connected to whoever wants seccomp's notifications.
    pub listener: Option<OwnedFd>,
}

/// Opens everything that a plan names on the host.
pub fn prepare(plan: &ContainerPlan) -> Result<Prepared> {
    let rootfs = plan.rootfs.as_ref().ok_or_else(|| fail(Step::Plan, "rootfs", 0, "the plan has none"))?;
    let mut sources = Vec::with_capacity(plan.mounts.len());
    for mount in &plan.mounts {
        sources.push(match &mount.from {
            Some(mount::From::Bind(bind)) => Some(bind_source(bind)?),
            Some(mount::From::Filesystem(_)) => None,
            Some(mount::From::Image(image)) => {
                let overlay = image.overlay.as_ref();
                let at = root::path(&mount.destination);
                let overlay = overlay.ok_or_else(|| fail(Step::Plan, at, 0, "an image without layers"))?;
                // Under the mount's own name: which of the layers it was says less.
                Some(overlay_mount(overlay).map_err(|failure| about(failure, at))?)
            }
            None => return Err(fail(Step::Plan, root::path(&mount.destination), 0, "a mount from nothing")),
        });
    }
    let cgroup = plan.cgroup.clone().unwrap_or_default();
    if !cgroup.device_program.is_empty() {
        super::attach_device_program(&cgroup.v2, &cgroup.device_program)?;
    }
    let mut groups = cgroup_v1(&cgroup)?;
    if !plan.resctrl.is_empty() {
        // Entered as a v1 group is: a 0 in `tasks` is the writer.
        let tasks = Path::new(&plan.resctrl).join("tasks");
        groups.push(File::options().write(true).open(&tasks).at(Step::Resctrl, &tasks)?);
    }
    Ok(Prepared {
        root: rootfs_mount(rootfs)?,
        sources,
        cgroup_v2: cgroup_v2(&cgroup)?,
        cgroup_v1: groups,
        listener: plan.process.as_ref().map(listener).transpose()?.flatten(),
        joins: joins(plan)?,
    })
}

/// Connects to where a process's seccomp notifications are wanted.
pub fn listener(process: &Process) -> Result<Option<OwnedFd>> {
    let Some(plan) = &process.seccomp_listener else { return Ok(None) };
    let flags = SocketFlags::CLOEXEC;
    let connected = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).and_then(|socket| {
        rustix::net::connect(&socket, &SocketAddrUnix::new(plan.path.as_str())?)?;
        Ok(socket)
    });
    connected.at(Step::Seccomp, &plan.path).map(Some)
}

/// Opens a cgroup's directory for CLONE_INTO_CGROUP.
pub fn cgroup_v2(cgroup: &Cgroup) -> Result<Option<OwnedFd>> {
    if cgroup.v2.is_empty() {
        return Ok(None);
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    open(&cgroup.v2, flags, Mode::empty()).at(Step::CgroupJoin, &cgroup.v2).map(Some)
}

/// Opens the `tasks` file of each v1 directory.
pub fn cgroup_v1(cgroup: &Cgroup) -> Result<Vec<File>> {
    cgroup
        .v1
        .iter()
        .map(|dir| {
            let tasks = Path::new(dir).join("tasks");
            File::options().write(true).open(&tasks).at(Step::CgroupJoin, &tasks)
        })
        .collect()
}

fn joins(plan: &ContainerPlan) -> Result<Vec<(OwnedFd, NamespaceKind)>> {
    plan.namespaces
        .iter()
        .filter(|namespace| !namespace.path.is_empty())
        .map(|namespace| {
            let flags = OFlags::RDONLY | OFlags::CLOEXEC;
            let file =
                open(&namespace.path, flags, Mode::empty()).at(Step::NamespaceJoin, &namespace.path)?;
            Ok((file, namespace.kind()))
        })
        .collect()
}

fn bind_source(bind: &Bind) -> Result<OwnedFd> {
    let source = root::path(&bind.source);
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if bind.recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    match open_tree(CWD, source, flags) {
        Err(rustix::io::Errno::NOENT) if bind.create_directory => {
            std::fs::create_dir_all(source).at(Step::BindSource, source)?;
            open_tree(CWD, source, flags).at(Step::BindSource, source)
        }
        tree => tree.at(Step::BindSource, source),
    }
}

fn rootfs_mount(rootfs: &Rootfs) -> Result<OwnedFd> {
    match &rootfs.from {
        Some(rootfs::From::Overlay(overlay)) => overlay_mount(overlay),
        Some(rootfs::From::Path(path)) => {
            let flags = OpenTreeFlags::OPEN_TREE_CLONE
                | OpenTreeFlags::OPEN_TREE_CLOEXEC
                | OpenTreeFlags::AT_RECURSIVE;
            open_tree(CWD, path, flags).at(Step::Rootfs, path)
        }
        None => Err(fail(Step::Plan, "rootfs", 0, "from nothing")),
    }
}

/// Makes the overlay as a detached mount: in the host's user namespace (inside another it would ignore
/// trusted.overlay.* and deleted files would reappear), unmounted by the kernel with its last holder.
fn overlay_mount(overlay: &Overlay) -> Result<OwnedFd> {
    let object = overlay.lowers.first().cloned().unwrap_or_default();
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).at(Step::Overlay, "overlay")?;
    let set = |key: &str, value: &str| fsconfig_set_string(context.as_fd(), key, value);
    // `lowerdir+` takes one layer a call, of any length, from 6.5 on; before it, one string of at most a page.
    let mut appended = true;
    for (n, lower) in overlay.lowers.iter().enumerate() {
        match set("lowerdir+", lower) {
            Ok(()) => {}
            Err(rustix::io::Errno::INVAL) if n == 0 => {
                appended = false;
                break;
            }
            Err(errno) => {
                return Err(explained(&context, fail(Step::Overlay, lower, errno.raw_os_error(), "")));
            }
        }
    }
    if !appended {
        let joined = overlay.lowers.join(":");
        set("lowerdir", &joined).at(Step::Overlay, &object).map_err(|e| explained(&context, e))?;
    }
    if !overlay.upper.is_empty() {
        set("upperdir", &overlay.upper)
            .at(Step::Overlay, &overlay.upper)
            .map_err(|e| explained(&context, e))?;
        set("workdir", &overlay.work).at(Step::Overlay, &overlay.work).map_err(|e| explained(&context, e))?;
        if overlay.volatile {
            fsconfig_set_flag(context.as_fd(), "volatile").at(Step::Overlay, "volatile")?;
        }
    }
    if !overlay.label.is_empty() {
        set("context", &overlay.label).at(Step::Overlay, &overlay.label)?;
    }
    fsconfig_create(context.as_fd()).at(Step::Overlay, &object).map_err(|e| explained(&context, e))?;
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
        .at(Step::Overlay, &object)
}

/// A failure of a part, told of the whole.
fn about(failure: berth_launch::v1::Failure, path: &Path) -> berth_launch::v1::Failure {
    let detail = match failure.detail.is_empty() {
        true => failure.object,
        false => format!("{}: {}", failure.object, failure.detail),
    };
    berth_launch::v1::Failure { object: path.display().to_string(), detail, ..failure }
}

/// Adds what the file system said of the failure: messages are read from its context fd, `fsopen(2)`.
fn explained(context: &OwnedFd, mut failure: berth_launch::v1::Failure) -> berth_launch::v1::Failure {
    let mut message = [0u8; 512];
    while let Ok(length) = rustix::io::read(context, &mut message[..]) {
        let text = String::from_utf8_lossy(&message[..length]);
        if !failure.detail.is_empty() {
            failure.detail.push_str(", ");
        }
        failure.detail.push_str(text.trim_start_matches(['e', 'w', 'i', ' ']).trim());
    }
    failure
}
