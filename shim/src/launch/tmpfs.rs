//! How a new tmpfs begins: with the mode of the directory that it covers, and by `tmpcopyup` with what lies there. The
//! covered tree is image content: nothing is followed, nothing is opened but what was looked at, and all that is written
//! is charged to the container's memory.

use std::{
    ffi::CStr,
    fs::File,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use berth_launch::v1::{Filesystem, Step};
use rustix::{
    fs::{
        AtFlags, Dir, FileType, Mode, OFlags, Stat, chownat, fchmod, fchown, fstat, mkdirat, mknodat, openat,
        readlinkat, statat, symlinkat,
    },
    io::Errno,
};

use super::failure::{Result, fail};

/// Directories in directories: more is an attack, and each takes two descriptors.
const DEPTH: usize = 200;

/// Prepares a tmpfs that has no place yet for going onto `target`.
pub fn begin(
    tree: &OwnedFd,
    target: &OwnedFd,
    filesystem: &Filesystem,
    copies: bool,
    destination: &Path,
) -> Result<()> {
    let failed = |errno: Errno| {
        let detail = match errno {
            Errno::NOSPC | Errno::NOMEM => "what lies there does not fit into the tmpfs",
            Errno::NAMETOOLONG => "what lies there is nested too deeply",
            _ => "",
        };
        fail(Step::Mount, destination, errno.raw_os_error(), detail)
    };
    let says_mode = filesystem.options.iter().any(|option| option.starts_with("mode="));
    let covered = fstat(target).map_err(failed)?;
    let top = directory(tree, c".").map_err(failed)?;
    if copies {
        contents(directory(target, c".").map_err(failed)?, top.as_fd(), DEPTH).map_err(failed)?;
        fchown(&top, Some(owner(&covered).0), Some(owner(&covered).1)).map_err(failed)?;
    }
    match says_mode {
        true => Ok(()),
        false => fchmod(&top, Mode::from_raw_mode(covered.st_mode & 0o7777)).map_err(failed),
    }
}

fn directory(parent: &impl AsFd, name: &CStr) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(parent, name, flags, Mode::empty())
}

fn owner(stat: &Stat) -> (rustix::fs::Uid, rustix::fs::Gid) {
    (rustix::fs::Uid::from_raw(stat.st_uid), rustix::fs::Gid::from_raw(stat.st_gid))
}

fn contents(from: OwnedFd, to: BorrowedFd<'_>, depth: usize) -> rustix::io::Result<()> {
    if depth == 0 {
        return Err(Errno::NAMETOOLONG);
    }
    for entry in Dir::read_from(&from)? {
        let entry = entry?;
        let name = entry.file_name();
        if !matches!(name.to_bytes(), b"." | b"..") {
            one(from.as_fd(), to, name, depth)?;
        }
    }
    Ok(())
}

/// Copies an entry with its owner and mode; a socket has nobody behind it, and stays.
fn one(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &CStr, depth: usize) -> rustix::io::Result<()> {
    let stat = statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let private = Mode::from_raw_mode(0o700);
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => {
            mkdirat(to, name, private)?;
            let made = directory(&to, name)?;
            contents(directory(&from, name)?, made.as_fd(), depth - 1)?;
        }
        FileType::RegularFile => {
            let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let source = openat(from, name, OFlags::RDONLY | flags, Mode::empty())?;
            let made = openat(to, name, OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | flags, private)?;
            std::io::copy(&mut File::from(source), &mut File::from(made))
                .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
        }
        FileType::Symlink => symlinkat(readlinkat(from, name, Vec::new())?.as_c_str(), to, name)?,
        kind @ (FileType::Fifo | FileType::CharacterDevice | FileType::BlockDevice) => {
            mknodat(to, name, kind, private, stat.st_rdev)?;
        }
        _ => return Ok(()),
    }
    let (uid, gid) = owner(&stat);
    chownat(to, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Symlink => Ok(()),
        // Ours alone until it is mounted, so the name means what we made.
        _ => rustix::fs::chmodat(to, name, Mode::from_raw_mode(stat.st_mode & 0o7777), AtFlags::empty()),
    }
}
