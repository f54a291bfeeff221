//! The child's mounts, one after the other onto targets that are opened below the root and held as fds: what a path
//! means cannot change between the look and the mount.

use std::{
    fs::File,
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use berth_launch::v1::{Bind, Device, Failure, Filesystem, Mount, Step, Symlink, device, mount};
use rustix::{
    fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid, chownat, mknodat, symlinkat},
    io::Errno,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
        fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
        unmount,
    },
};

use super::{
    failure::{At, Result, fail},
    root::{self, Root},
    tmpfs,
};
use crate::kernel;

/// Makes all mounts of a plan; `sources` are the parent's detached trees, by position. `staging` is a directory of the
/// host's on which something can be mounted for a moment; without it the sources are what is wanted of images already.
pub fn all(
    root: &Root,
    mounts: &[Mount],
    sources: &mut [Option<OwnedFd>],
    staging: Option<&Path>,
) -> Result<()> {
    for (mount, source) in mounts.iter().zip(sources) {
        one(root, mount, source.take(), staging)?;
    }
    Ok(())
}

/// What lies at a path in a detached tree, as a tree of its own. Before Linux 6.15 only what is mounted can be taken
/// from (`open_tree(2)`), so it is that for a moment, in this mount namespace and nowhere else.
pub fn part_of(tree: &OwnedFd, sub_path: &Path, staging: &Path, destination: &Path) -> Result<OwnedFd> {
    let how = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(tree, "", rustix::fs::CWD, staging, how).at(Step::Mount, destination)?;
    let part = below(tree, sub_path, destination);
    unmount(staging, UnmountFlags::DETACH).at(Step::Mount, destination)?;
    part
}

/// The same, without mounting the tree.
pub fn below(tree: &OwnedFd, sub_path: &Path, destination: &Path) -> Result<OwnedFd> {
    Root::new(tree.try_clone().at(Step::Mount, destination)?)
        .open(sub_path, OFlags::PATH)
        .map_err(|errno| {
            let detail = format!("{} in the image: {}", sub_path.display(), std::io::Error::from(errno));
            fail(Step::Mount, destination, errno.raw_os_error(), &detail)
        })
        .and_then(|part| {
            let flags = OpenTreeFlags::OPEN_TREE_CLONE
                | OpenTreeFlags::OPEN_TREE_CLOEXEC
                | OpenTreeFlags::AT_EMPTY_PATH;
            open_tree(&part, "", flags).at(Step::Mount, destination)
        })
}

fn one(root: &Root, mount: &Mount, source: Option<OwnedFd>, staging: Option<&Path>) -> Result<()> {
    let destination = root::path(&mount.destination);
    match (&mount.from, source) {
        (Some(mount::From::Bind(from)), Some(tree)) => match bind(root, mount, destination, &tree) {
            Err(failure) if failure.errno == libc::ELOOP && from.recursive => {
                bind(root, mount, destination, &without_loops(mount, from, failure)?)
            }
            bound => bound,
        },
        (Some(mount::From::Image(image)), Some(tree)) => match staging.filter(|_| !image.sub_path.is_empty())
        {
            None => bind(root, mount, destination, &tree),
            Some(staging) => {
                let part = part_of(&tree, root::path(&image.sub_path), staging, destination)?;
                bind(root, mount, destination, &part)
            }
        },
        (Some(mount::From::Filesystem(filesystem)), _) => {
            // A directory that is only made for the mount has nothing to say of it.
            let covers = filesystem.r#type == "tmpfs" && root.open(destination, OFlags::PATH).is_ok();
            let target =
                directory(root, destination, matches!(filesystem.r#type.as_str(), "proc" | "sysfs"))?;
            if filesystem.r#type == "cgroup" {
                return cgroups(root, mount, destination, &target);
            }
            let tree = new_filesystem(filesystem, destination)?;
            if covers {
                tmpfs::begin(&tree, &target, filesystem, mount.copy_up, destination)?;
            }
            attach(&tree, &target, mount, destination)
        }
        _ => Err(fail(Step::Plan, destination, 0, "a mount from nothing")),
    }
}

/// The source of a bind anew, as it is in this mount namespace. A tree with a mount of a mount namespace's file in it, as snapd
/// makes them, can't be put into a namespace that is newer than that one (`check_for_nsfs_mounts`); the copy that is ours
/// came without. A slave's it is by now, so what is to be shared with the host can't be had that way.
fn without_loops(mount: &Mount, from: &Bind, failure: Failure) -> Result<OwnedFd> {
    let told = "a mount namespace's file is mounted in its source: findmnt -t nsfs";
    if mount.ids.is_some() || mount.propagation & libc::MS_SHARED != 0 {
        return Err(Failure { detail: told.into(), ..failure });
    }
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    open_tree(rustix::fs::CWD, root::path(&from.source), flags)
        .map_err(|_| Failure { detail: told.into(), ..failure })
}

fn bind(root: &Root, mount: &Mount, destination: &Path, tree: &OwnedFd) -> Result<()> {
    let is_directory = rustix::fs::fstat(tree)
        .map(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
        .at(Step::Mount, destination)?;
    let target = if is_directory {
        directory(root, destination, false)?
    } else {
        root.make_file(destination).at(Step::Mount, destination)?
    };
    attach(tree, &target, mount, destination)
}

/// Opens a mount point, making it where it is missing. /proc and /sys have to land on real directories: through a link
/// they would leave the paths that are masked afterwards.
fn directory(root: &Root, path: &Path, plain: bool) -> Result<OwnedFd> {
    if !plain {
        return root.make_directories(path).at(Step::Mount, path);
    }
    match root.open_plain(path, OFlags::PATH | OFlags::DIRECTORY) {
        Err(Errno::NOENT) => root.make_directories(path).at(Step::Mount, path),
        Err(Errno::LOOP) => Err(fail(
            Step::Mount,
            path,
            libc::ELOOP,
            "it must be an ordinary directory, the image has a symbolic link there",
        )),
        other => other.at(Step::Mount, path),
    }
}

fn attach(tree: &OwnedFd, target: &OwnedFd, mount: &Mount, destination: &Path) -> Result<()> {
    let propagation = if mount.propagation == 0 { libc::MS_PRIVATE } else { mount.propagation };
    let flags = propagation & (libc::MS_PRIVATE | libc::MS_SHARED | libc::MS_SLAVE | libc::MS_UNBINDABLE);
    if mount.set_attributes | mount.clear_attributes != 0 {
        kernel::mount::set_attributes(
            tree.as_fd(),
            mount.set_attributes,
            mount.clear_attributes,
            0,
            mount.recursive_attributes,
        )
        .at(Step::Mount, destination)?;
    }
    if mount.recursive_set | mount.recursive_clear != 0 {
        let (set, clear) = (mount.recursive_set, mount.recursive_clear);
        kernel::mount::set_attributes(tree.as_fd(), set, clear, 0, true).at(Step::Mount, destination)?;
    }
    let how = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(tree, "", target, "", how).at(Step::Mount, destination)?;
    kernel::mount::set_attributes(tree.as_fd(), 0, 0, flags, true).at(Step::Mount, destination)
}

fn new_filesystem(filesystem: &Filesystem, destination: &Path) -> Result<OwnedFd> {
    let context =
        fsopen(filesystem.r#type.as_str(), FsOpenFlags::FSOPEN_CLOEXEC).at(Step::Mount, destination)?;
    let set = |key: &str, value: &str| fsconfig_set_string(context.as_fd(), key, value);
    if !filesystem.source.is_empty() {
        set("source", &filesystem.source).at(Step::Mount, destination)?;
    }
    for option in &filesystem.options {
        match option.split_once('=') {
            Some((key, value)) => set(key, value),
            None => fsconfig_set_flag(context.as_fd(), option.as_str()),
        }
        .map_err(|errno| fail(Step::Mount, destination, errno.raw_os_error(), &format!("option {option}")))?;
    }
    fsconfig_create(context.as_fd()).at(Step::Mount, destination)?;
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
        .at(Step::Mount, destination)
}

/// The container's view of its cgroups: cgroup2 where the host has only that, else a tmpfs with each v1 hierarchy that
/// the shim's own /proc/self/cgroup names. The cgroup namespace makes the container's group their root.
fn cgroups(root: &Root, mount: &Mount, destination: &Path, target: &OwnedFd) -> Result<()> {
    let listing = std::fs::read_to_string("/proc/self/cgroup").at(Step::Mount, destination)?;
    let hierarchies: Vec<&str> = listing
        .lines()
        .filter_map(|line| line.split(':').nth(1))
        .filter(|controllers| !controllers.is_empty())
        .collect();
    if hierarchies.is_empty() {
        let tree = new_filesystem(&simple("cgroup2", &[]), destination)?;
        return attach(&tree, target, mount, destination);
    }
    let tmpfs = new_filesystem(&simple("tmpfs", &["mode=755".into()]), destination)?;
    attach(&tmpfs, target, &Mount { set_attributes: 0, ..mount.clone() }, destination)?;
    for controllers in hierarchies {
        let name = controllers.strip_prefix("name=").unwrap_or(controllers);
        let path = destination.join(name);
        let options: Vec<String> = match controllers.strip_prefix("name=") {
            Some(name) => vec![format!("name={name}"), "none".into()],
            None => controllers.split(',').map(str::to_owned).collect(),
        };
        let here = directory(root, &path, false)?;
        let tree = match new_filesystem(&simple("cgroup", &options), &path) {
            Ok(tree) => tree,
            // A hierarchy that the host lists and no longer mounts: the container does without, as it would there.
            Err(_) => continue,
        };
        attach(&tree, &here, mount, &path)?;
    }
    if mount.set_attributes != 0 {
        kernel::mount::set_attributes(tmpfs.as_fd(), mount.set_attributes, 0, 0, false)
            .at(Step::Mount, destination)?;
    }
    Ok(())
}

fn simple(kind: &str, options: &[String]) -> Filesystem {
    Filesystem { r#type: kind.into(), source: kind.into(), options: options.to_vec() }
}

/// Makes device nodes. Where the kernel forbids that, the host's node is bound instead: `sources` has those that the
/// parent took, by position.
pub fn devices(root: &Root, devices: &[Device], sources: &[Option<OwnedFd>]) -> Result<()> {
    for (n, device) in devices.iter().enumerate() {
        let path = root::path(&device.path);
        if let Some(Some(tree)) = sources.get(n) {
            bind_node(root, path, tree)?;
            continue;
        }
        let (parent, name) = root::split(path).at(Step::Device, path)?;
        let parent = root.make_directories(parent).at(Step::Device, path)?;
        let kind = match device.r#type() {
            device::Type::Char => FileType::CharacterDevice,
            device::Type::Block => FileType::BlockDevice,
            device::Type::Fifo => FileType::Fifo,
        };
        let number = rustix::fs::makedev(device.major, device.minor);
        match mknodat(&parent, name, kind, Mode::from(device.mode), number) {
            Ok(()) => {
                let (uid, gid) = (Uid::from_raw(device.uid), Gid::from_raw(device.gid));
                chownat(&parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
                    .at(Step::Device, path)?;
                // mknod's mode passed the umask: set it again through a descriptor that cannot be a link.
                let node = root.open_plain(path, OFlags::PATH).at(Step::Device, path)?;
                let through = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&node));
                rustix::fs::chmod(through, Mode::from(device.mode)).at(Step::Device, path)?;
            }
            Err(Errno::EXIST) => {}
            Err(Errno::PERM) => {
                let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
                let tree = open_tree(rustix::fs::CWD, path, flags).at(Step::Device, path)?;
                bind_node(root, path, &tree)?;
            }
            Err(errno) => return Err(fail(Step::Device, path, errno.raw_os_error(), "")),
        }
    }
    Ok(())
}

fn bind_node(root: &Root, path: &Path, tree: &OwnedFd) -> Result<()> {
    let target = root.make_file(path).at(Step::Device, path)?;
    let how = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(tree, "", &target, "", how).at(Step::Device, path)
}

/// Makes symbolic links; what is there already stays.
pub fn symlinks(root: &Root, links: &[Symlink]) -> Result<()> {
    for link in links {
        let path = root::path(&link.path);
        let (parent, name) = root::split(path).at(Step::Device, path)?;
        let parent = root.make_directories(parent).at(Step::Device, path)?;
        match symlinkat(root::path(&link.target), &parent, name) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(fail(Step::Device, path, errno.raw_os_error(), "")),
        }
    }
    Ok(())
}

/// The container's /dev/null, which has to be the null device: what an image has there instead would be shown, writable,
/// in place of what is masked (CVE-2025-31133).
pub fn null(root: &Root) -> Result<File> {
    let path = Path::new("/dev/null");
    let file = root.open_plain(path, OFlags::PATH).at(Step::Mask, path)?;
    let stat = rustix::fs::fstat(&file).at(Step::Mask, path)?;
    let is_device = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice;
    match is_device && stat.st_rdev == rustix::fs::makedev(1, 3) {
        true => Ok(File::from(file)),
        false => Err(fail(Step::Mask, path, 0, "it is not the null device")),
    }
}

/// Hides paths: a directory behind an empty read-only tmpfs, a file behind /dev/null. Absent ones need no hiding.
pub fn mask(root: &Root, paths: &[Vec<u8>], null: &File) -> Result<()> {
    for bytes in paths {
        let path = root::path(bytes);
        let target = match root.open(path, OFlags::PATH) {
            Err(Errno::NOENT | Errno::NOTDIR) => continue,
            other => other.at(Step::Mask, path)?,
        };
        let stat = rustix::fs::fstat(&target).at(Step::Mask, path)?;
        let tree = if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            let tree = new_filesystem(&simple("tmpfs", &["size=0".into(), "mode=555".into()]), path)?;
            kernel::mount::set_attributes(tree.as_fd(), libc::MOUNT_ATTR_RDONLY, 0, 0, false)
                .at(Step::Mask, path)?;
            tree
        } else {
            let flags = OpenTreeFlags::OPEN_TREE_CLONE
                | OpenTreeFlags::OPEN_TREE_CLOEXEC
                | OpenTreeFlags::AT_EMPTY_PATH;
            open_tree(null, "", flags).at(Step::Mask, path)?
        };
        let how = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        move_mount(&tree, "", &target, "", how).at(Step::Mask, path)?;
    }
    Ok(())
}

/// Makes paths read-only by a mount of themselves over themselves. Absent ones are left.
pub fn read_only(root: &Root, paths: &[Vec<u8>]) -> Result<()> {
    for bytes in paths {
        let path = root::path(bytes);
        let target = match root.open(path, OFlags::PATH) {
            Err(Errno::NOENT | Errno::NOTDIR) => continue,
            other => other.at(Step::Mask, path)?,
        };
        let flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_EMPTY_PATH
            | OpenTreeFlags::AT_RECURSIVE;
        let tree = open_tree(&target, "", flags).at(Step::Mask, path)?;
        kernel::mount::set_attributes(tree.as_fd(), libc::MOUNT_ATTR_RDONLY, 0, 0, true)
            .at(Step::Mask, path)?;
        let how = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        move_mount(&tree, "", &target, "", how).at(Step::Mask, path)?;
    }
    Ok(())
}
