//! The parent's half before clone3, still in the host's namespaces: the overlay and every host path become detached
//! mount fds, every cgroup and namespace an open file. Nothing has a name yet, so nothing needs undoing.

use std::{
    fs::File,
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use berth_launch::v1::{
    Bind, Cgroup, ContainerPlan, Device, Mount, MountIds, NamespaceKind, Process, Rootfs, Step, device,
    mount, rootfs,
};
use rustix::{
    fs::{CWD, Mode, OFlags, open},
    mount::{OpenTreeFlags, open_tree},
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with},
};

use super::{
    failure::{At, Result, fail},
    net_devices, overlay, root, users,
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
    /// Of the network that we are in; init finds them in its own.
    pub net_devices: Vec<net_devices::Device>,
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
        net_devices: net_devices::look(&plan.net_devices)?,
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
            let sub_path = root::path(&image.sub_path);
            let part = (users.is_some() && !image.sub_path.is_empty()).then_some((sub_path, at));
            let tree = overlay::mount(overlay, mount.ids.as_ref(), users, part);
            tree.map(Some).map_err(|failure| about(failure, at))
        }
        None => Err(fail(Step::Plan, at, 0, "a mount from nothing")),
    }
}

/// Makes a mount that has no place yet an id-mapped one, where that is asked for.
pub fn map_ids(tree: &OwnedFd, ids: Option<&MountIds>, users: Option<&OwnedFd>, object: &Path) -> Result<()> {
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

/// The root as a mount without a place.
pub fn rootfs_mount(rootfs: &Rootfs, users: Option<&OwnedFd>) -> Result<OwnedFd> {
    match &rootfs.from {
        Some(rootfs::From::Overlay(overlay)) => overlay::mount(overlay, rootfs.ids.as_ref(), users, None),
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

/// A failure of a part, told of the whole.
pub fn about(failure: berth_launch::v1::Failure, path: &Path) -> berth_launch::v1::Failure {
    let detail = match failure.detail.is_empty() {
        true => failure.object,
        false => format!("{}: {}", failure.object, failure.detail),
    };
    berth_launch::v1::Failure { object: path.display().to_string(), detail, ..failure }
}
