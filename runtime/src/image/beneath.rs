//! Names in a layer and the system calls on them that can't leave it. See `apply` for why.

use std::{
    ffi::OsStr,
    io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Timespec, Timestamps, XattrFlags},
    io::Errno,
};

use super::tarball;

/// A name in the layer without its parent.
pub(super) struct Spot<'a> {
    pub(super) parent: &'a [u8],
    pub(super) name: &'a [u8],
}

/// The path without slashes at the ends, doubled ones and dots.
///
/// # Errors
/// For `..`: a name that climbs has no place in a layer, and what it means depends on symlinks.
pub(super) fn clean(path: &[u8]) -> io::Result<Vec<u8>> {
    if path.contains(&0) {
        return Err(tarball::broken("a NUL byte in a path"));
    }
    if path.len() >= 4096 {
        return Err(tarball::broken("a path is longer than 4095 bytes"));
    }
    let mut clean = Vec::with_capacity(path.len());
    for component in path.split(|byte| *byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." => return Err(tarball::broken("the path has \"..\" and may lead out of the layer")),
            other => {
                if !clean.is_empty() {
                    clean.push(b'/');
                }
                clean.extend_from_slice(other);
            }
        }
    }
    Ok(clean)
}

/// None for the root.
pub(super) fn split(path: &[u8]) -> Option<Spot<'_>> {
    if path.is_empty() {
        return None;
    }
    Some(match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => Spot { parent: &path[..slash], name: &path[slash + 1..] },
        None => Spot { parent: b"", name: path },
    })
}

pub(super) fn id(number: u64) -> io::Result<u32> {
    // -1 means "leave it" to chown.
    u32::try_from(number)
        .ok()
        .filter(|id| *id != u32::MAX)
        .ok_or_else(|| tarball::broken(&format!("the owner {number} is out of range")))
}

pub(super) fn times_of(seconds: i64, nanos: u32) -> Timestamps {
    let time = Timespec { tv_sec: seconds, tv_nsec: i64::from(nanos) };
    Timestamps { last_access: time, last_modification: time }
}

pub(super) fn kind_at(parent: &OwnedFd, name: &OsStr) -> rustix::io::Result<Option<FileType>> {
    match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(FileType::from_raw_mode(stat.st_mode))),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

pub(super) fn is_whiteout(parent: &OwnedFd, name: &OsStr) -> rustix::io::Result<bool> {
    Ok(rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?.st_rdev == 0)
}

pub(super) fn open_in(root: &OwnedFd, path: &[u8], resolve: ResolveFlags) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    loop {
        // EAGAIN: something was renamed somewhere on the system while `..` of a symlink was walked.
        match rustix::fs::openat2(root.as_fd(), OsStr::from_bytes(path), flags, Mode::empty(), resolve) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return other,
        }
    }
}

pub(super) fn set_opaque(directory: &OwnedFd) -> io::Result<()> {
    Ok(lsetxattr(directory, OsStr::new("."), b"trusted.overlay.opaque", b"y")?)
}

/// By way of /proc: there is no setxattrat(2) before 6.13, and an O_PATH descriptor takes no attributes.
pub(super) fn lsetxattr(parent: &OwnedFd, name: &OsStr, key: &[u8], value: &[u8]) -> rustix::io::Result<()> {
    let path = Path::new("/proc/self/fd").join(parent.as_raw_fd().to_string()).join(name);
    rustix::fs::lsetxattr(path, OsStr::from_bytes(key), value, XattrFlags::empty())
}
