//! The parent's half before clone3, still in the host's namespaces: the overlay and every host path become detached
//! mount fds, every cgroup and namespace an open file. Nothing has a name yet, so nothing needs undoing.

use std::{
    fs::File,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::Path,
};

use berth_launch::v1::{
    Bind, Cgroup, ContainerPlan, Device, Mount, MountIds, NamespaceKind, Overlay, Process, Rootfs, Step,
    device, mount, rootfs,
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
    mounts, root, users,
};
use crate::kernel;

/// All that a child needs and only the parent can get.
#[derive(Debug)]
pub struct Prepared {
    pub root: OwnedFd,
    /// One per mount of the plan, `None` for file systems that the child makes in its own namespaces.
    pub sources: Vec<Option<OwnedFd>>,
    /// One per device in a user namespace, where no node can be made; else none.
    pub devices: Vec<Option<OwnedFd>>,
    /// What an usher takes init into, and all ids are mapped by.
    pub users: Option<OwnedFd>,
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
    let users = users::of(plan)?;
    let sources =
        plan.mounts.iter().map(|mount| source(mount, users.as_ref())).collect::<Result<Vec<_>>>()?;
    let devices = match users {
        Some(_) => plan.devices.iter().map(host_node).collect::<Result<Vec<_>>>()?,
        None => Vec::new(),
    };
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
        root: rootfs_mount(rootfs, users.as_ref())?,
        sources,
        devices,
        users,
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
        .filter(|namespace| !namespace.path.is_empty() && namespace.kind() != NamespaceKind::User)
        .map(|namespace| {
            let flags = OFlags::RDONLY | OFlags::CLOEXEC;
            let file =
                open(&namespace.path, flags, Mode::empty()).at(Step::NamespaceJoin, &namespace.path)?;
            Ok((file, namespace.kind()))
        })
        .collect()
}

/// What is mounted, as far as it is the host's.
fn source(mount: &Mount, users: Option<&OwnedFd>) -> Result<Option<OwnedFd>> {
    let at = root::path(&mount.destination);
    match &mount.from {
        Some(mount::From::Bind(bind)) => {
            let tree = bind_source(bind)?;
            map_ids(&tree, mount.ids.as_ref(), users, at).map(|()| Some(tree))
        }
        Some(mount::From::Filesystem(_)) => Ok(None),
        Some(mount::From::Image(image)) => {
            let overlay =
                image.overlay.as_ref().ok_or_else(|| fail(Step::Plan, at, 0, "an image without layers"))?;
            // Under the mount's own name: which of the layers it was says less.
            let tree =
                overlay_mount(overlay, mount.ids.as_ref(), users).map_err(|failure| about(failure, at))?;
            match users.is_some() && !image.sub_path.is_empty() {
                true => mounts::below(&tree, root::path(&image.sub_path), at).map(Some),
                false => Ok(Some(tree)),
            }
        }
        None => Err(fail(Step::Plan, at, 0, "a mount from nothing")),
    }
}

/// Makes a mount that has no place yet an id-mapped one, where that is asked for.
fn map_ids(tree: &OwnedFd, ids: Option<&MountIds>, users: Option<&OwnedFd>, object: &Path) -> Result<()> {
    let Some(ids) = ids else { return Ok(()) };
    let made = match ids.uids.is_empty() && ids.gids.is_empty() {
        true => None,
        false => Some(users::make(&ids.uids, &ids.gids)?),
    };
    let namespace = made.as_ref().or(users).ok_or_else(|| {
        fail(Step::IdMap, object, 0, "the container has no user namespace whose ids it could have")
    })?;
    kernel::mount::set_ids(tree.as_fd(), namespace.as_fd(), ids.recursive).map_err(|error| {
        let detail = match error.raw_os_error() {
            Some(libc::EINVAL) => "its file system can't be id-mapped, or is id-mapped already",
            Some(libc::EPERM) => {
                "its file system was mounted in a user namespace, or its root is mapped to itself"
            }
            _ => "",
        };
        fail(Step::IdMap, object, error.raw_os_error().unwrap_or(0), detail)
    })
}

/// The host's node of a device, as a mount; `None` for what is no device.
fn host_node(device: &Device) -> Result<Option<OwnedFd>> {
    if device.r#type() == device::Type::Fifo {
        return Ok(None);
    }
    let path = root::path(if device.host_path.is_empty() { &device.path } else { &device.host_path });
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = open_tree(CWD, path, flags).at(Step::Device, path)?;
    let stat = rustix::fs::fstat(&tree).at(Step::Device, path)?;
    match stat.st_rdev == rustix::fs::makedev(device.major, device.minor) {
        true => Ok(Some(tree)),
        false => Err(fail(
            Step::Device,
            path,
            0,
            "the host's node is of another device, and no other can be made in a user namespace",
        )),
    }
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

fn rootfs_mount(rootfs: &Rootfs, users: Option<&OwnedFd>) -> Result<OwnedFd> {
    match &rootfs.from {
        Some(rootfs::From::Overlay(overlay)) => overlay_mount(overlay, rootfs.ids.as_ref(), users),
        Some(rootfs::From::Path(path)) => {
            let flags = OpenTreeFlags::OPEN_TREE_CLONE
                | OpenTreeFlags::OPEN_TREE_CLOEXEC
                | OpenTreeFlags::AT_RECURSIVE;
            let tree = open_tree(CWD, path, flags).at(Step::Rootfs, path)?;
            map_ids(&tree, rootfs.ids.as_ref(), users, Path::new(path)).map(|()| tree)
        }
        None => Err(fail(Step::Plan, "rootfs", 0, "from nothing")),
    }
}

/// Makes the overlay as a detached mount: in the host's user namespace (inside another it would ignore
/// trusted.overlay.* and deleted files would reappear), unmounted by the kernel with its last holder. An overlay can't be
/// id-mapped, its layers can: the lower ones are, so that an image's 0 is root inside; in the upper one are the node's ids.
fn overlay_mount(overlay: &Overlay, ids: Option<&MountIds>, users: Option<&OwnedFd>) -> Result<OwnedFd> {
    let layers = overlay
        .lowers
        .iter()
        .filter(|_| ids.is_some())
        .map(|lower| layer(lower, ids, users))
        .collect::<Result<Vec<_>>>()?;
    // A mount without a place is found by its descriptor, from Linux 6.15 on.
    let lowers: Vec<String> = match ids {
        Some(_) => layers.iter().map(|layer| format!("/proc/self/fd/{}", layer.as_raw_fd())).collect(),
        None => overlay.lowers.clone(),
    };
    let object = overlay.lowers.first().cloned().unwrap_or_default();
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).at(Step::Overlay, "overlay")?;
    let set = |key: &str, value: &str| fsconfig_set_string(context.as_fd(), key, value);
    // `lowerdir+` takes one layer a call, of any length, from 6.5 on; before it, one string of at most a page.
    let mut appended = true;
    for (n, lower) in lowers.iter().enumerate() {
        match set("lowerdir+", lower) {
            Ok(()) => {}
            Err(rustix::io::Errno::INVAL) if n == 0 => {
                appended = false;
                break;
            }
            Err(errno) => {
                return Err(explained(
                    &context,
                    fail(Step::Overlay, &overlay.lowers[n], errno.raw_os_error(), ""),
                ));
            }
        }
    }
    if !appended {
        let joined = lowers.join(":");
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

fn layer(lower: &str, ids: Option<&MountIds>, users: Option<&OwnedFd>) -> Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = open_tree(CWD, lower, flags).at(Step::Overlay, lower)?;
    map_ids(&tree, ids, users, Path::new(lower)).map(|()| tree)
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
