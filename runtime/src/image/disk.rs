//! Files that survive a power cut, and directories that go away by themselves.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::{
        fd::OwnedFd,
        unix::fs::{DirBuilderExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};

use crate::{Error, Result};

/// A table of some thousand images, and the blocks of a directory.
const RESERVE_BYTES: u64 = 1 << 20;

/// Writes a file so that after a power cut it is the old one or the new one, never half of it.
pub(super) fn write_durably(path: &Path, bytes: &[u8]) -> Result<()> {
    replace(path, bytes, File::sync_all)?;
    sync_directory(path.parent().unwrap_or(Path::new("/")))
}

/// Writes a file that whoever is killed leaves as the old one or the new one. It is the caller's to sync it.
pub(super) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    replace(path, bytes, |_| Ok(()))
}

fn replace(path: &Path, bytes: &[u8], sync: impl FnOnce(&File) -> io::Result<()>) -> Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = path.with_file_name(name);
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(bytes)?;
        sync(&file)?;
        fs::rename(&new, path)
    })();
    written.map_err(|error| {
        // The old file is untouched; what is left of the new one is overwritten next time.
        fs::remove_file(&new).ok();
        Error::io("write", path.display().to_string(), error)
    })
}

/// Keeps the file under another name before it is replaced. The new name is the old content or the new one, always whole.
pub(super) fn keep_before(path: &Path, before: &Path) -> io::Result<()> {
    let mut name = before.as_os_str().to_owned();
    name.push(".new");
    let new = PathBuf::from(name);
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    match fs::hard_link(path, &new) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(()) => fs::rename(&new, before),
    }
}

/// Takes room that `give_back` frees. There already is success.
pub(super) fn reserve(path: &Path) -> Result<()> {
    let fail = |error: io::Error| Error::io("reserve room", path.display().to_string(), error);
    let file =
        OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path).map_err(fail)?;
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, RESERVE_BYTES).map_err(|error| {
        // Half of it would be taken for all of it.
        fs::remove_file(path).ok();
        fail(error.into())
    })
}

pub(super) fn give_back(path: &Path) {
    // There is nothing to free where there is no file.
    fs::remove_file(path).ok();
}

/// What an ordinary write can still take.
pub(super) fn free_bytes(path: &Path) -> Result<u64> {
    let stat =
        rustix::fs::statvfs(path).map_err(|error| Error::io("measure", path.display().to_string(), error))?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Bytes of the files right in a directory.
pub(super) fn content_of(directory: &Path) -> Result<u64> {
    let fail = |error| Error::io("measure", directory.display().to_string(), error);
    let mut found = 0;
    for file in fs::read_dir(directory).map_err(fail)? {
        match file.map_err(fail)?.metadata() {
            Ok(metadata) => found += metadata.len(),
            // Complete, and a layer's now.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(fail(error)),
        }
    }
    Ok(found)
}

pub(super) fn sync_file(path: &Path) -> Result<()> {
    let sync = || File::open(path)?.sync_all();
    sync().map_err(|error| Error::io("sync", path.display().to_string(), error))
}

pub(super) fn sync_directory(path: &Path) -> Result<()> {
    sync_file(path)
}

/// Makes a directory for root only; there already is fine.
pub(super) fn make_directory(path: &Path) -> Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|error| Error::io("make directory", path.display().to_string(), error))
}

/// A directory under `tmp/` that is removed with its owner.
#[derive(Debug)]
pub(super) struct Scratch {
    path: PathBuf,
}

static NEXT: AtomicU64 = AtomicU64::new(0);

impl Scratch {
    pub(super) fn new(tmp: &Path) -> Result<Self> {
        loop {
            let path = tmp.join(NEXT.fetch_add(1, Ordering::Relaxed).to_string());
            match fs::DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => return Ok(Self { path }),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(Error::io("make directory", path.display().to_string(), error)),
            }
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Renames the directory to its lasting place.
    pub(super) fn settle(self, place: &Path) -> Result<()> {
        fs::rename(&self.path, place).map_err(|error| Error::io("rename", place.display().to_string(), error))
        // Drop finds nothing at the old path.
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What can't be removed now is swept when the store opens again.
        remove_tree(&self.path).ok();
    }
}

/// Removes a directory and all in it; absent is success. Depth costs neither stack nor descriptors: a
/// hostile layer may nest deeper than any path is long, so deep directories are first moved to the top.
pub(super) fn remove_tree(path: &Path) -> Result<()> {
    let fail = |error: rustix::io::Errno| Error::io("remove", path.display().to_string(), error);
    let top = match open_directory(rustix::fs::CWD, path) {
        Ok(top) => top,
        Err(rustix::io::Errno::NOENT) => return Ok(()),
        Err(error) => return Err(fail(error)),
    };
    let mut moved = 0u64;
    // Each round empties the directories of the top and lifts theirs: as many rounds as the tree is deep.
    while empty_top(&top, &mut moved).map_err(fail)? {}
    rustix::fs::rmdir(path).map_err(fail)
}

fn empty_top(top: &OwnedFd, moved: &mut u64) -> rustix::io::Result<bool> {
    let mut found = false;
    for entry in Dir::read_from(top)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        found = true;
        if unlink_file(top, name)? {
            continue;
        }
        let inner = open_directory(top, name)?;
        for child in Dir::read_from(&inner)? {
            let child = child?;
            let child_name = child.file_name();
            if matches!(child_name.to_bytes(), b"." | b"..") || unlink_file(&inner, child_name)? {
                continue;
            }
            lift(&inner, child_name, top, moved)?;
        }
        match rustix::fs::unlinkat(top, name, AtFlags::REMOVEDIR) {
            // Entries were skipped because the directory changed under the reading: the next round has them.
            Ok(()) | Err(rustix::io::Errno::NOTEMPTY) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

fn lift(from: &OwnedFd, name: &std::ffi::CStr, top: &OwnedFd, moved: &mut u64) -> rustix::io::Result<()> {
    loop {
        *moved += 1;
        let to = format!(".lifted-{moved}");
        match rustix::fs::renameat_with(from, name, top, &to, rustix::fs::RenameFlags::NOREPLACE) {
            Err(rustix::io::Errno::EXIST) => {}
            other => return other,
        }
    }
}

/// Unlinks what is no directory; false for a directory.
fn unlink_file(parent: &OwnedFd, name: &std::ffi::CStr) -> rustix::io::Result<bool> {
    let stat = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        return Ok(false);
    }
    rustix::fs::unlinkat(parent, name, AtFlags::empty())?;
    Ok(true)
}

fn open_directory<Fd: std::os::fd::AsFd, P: rustix::path::Arg>(
    at: Fd,
    path: P,
) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(at, path, flags, Mode::empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_durable_write_replaces_the_file_and_leaves_no_other() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("names.json");
        write_durably(&path, b"one").unwrap();
        write_durably(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_tree_deeper_than_a_path_is_long_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("deep");
        fs::create_dir(&path).unwrap();
        let mut at = open_directory(rustix::fs::CWD, &path).unwrap();
        for depth in 0..3000 {
            rustix::fs::mkdirat(&at, "d", Mode::RWXU).unwrap();
            if depth % 100 == 0 {
                rustix::fs::symlinkat("/etc", &at, "link").unwrap();
            }
            at = open_directory(&at, "d").unwrap();
        }
        drop(at);
        remove_tree(&path).unwrap();
        assert!(!path.exists());
        assert!(Path::new("/etc/passwd").exists());
        remove_tree(&path).unwrap();
    }

    #[test]
    fn scratch_goes_with_its_owner_unless_settled() {
        let directory = tempfile::tempdir().unwrap();
        let gone = Scratch::new(directory.path()).unwrap().path().to_owned();
        assert!(!gone.exists());
        let kept = Scratch::new(directory.path()).unwrap();
        fs::write(kept.path().join("x"), "x").unwrap();
        let place = directory.path().join("place");
        kept.settle(&place).unwrap();
        assert!(place.join("x").exists());
    }
}
