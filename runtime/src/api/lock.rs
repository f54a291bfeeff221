//! One daemon per root and per state directory: two would sweep each other's things.

use std::{
    fs::{DirBuilder, File, OpenOptions},
    io::{Read, Seek, Write},
    os::unix::fs::DirBuilderExt,
    path::Path,
};

use rustix::fs::{FlockOperation, flock};

use crate::{Error, Kind, Result};

/// Held as long as the daemon lives; the kernel lets go of it, however the daemon ends.
#[derive(Debug)]
pub struct Lock {
    _files: [File; 2],
}

/// Makes both directories where missing and takes their `lock` files.
///
/// # Errors
/// `Precondition` names the daemon that has one already.
pub fn take(root: &Path, state: &Path) -> Result<Lock> {
    Ok(Lock { _files: [one(root)?, one(state)?] })
}

fn one(directory: &Path) -> Result<File> {
    // 0711: what is inside has modes of its own, and the socket in it may be given to a group.
    DirBuilder::new()
        .recursive(true)
        .mode(0o711)
        .create(directory)
        .map_err(|error| Error::io("make directory", directory.display().to_string(), error))?;
    let path = directory.join("lock");
    let shown = || path.display().to_string();
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(|error| Error::io("open lock", shown(), error))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut holder = String::new();
            // For the message only: an unreadable pid makes it shorter.
            file.read_to_string(&mut holder).ok();
            return Err(Error::new(Kind::Precondition, "take lock", shown())
                .because(crate::error::Cause(format!("berthd with pid {} has it", holder.trim())))
                .hint("stop that one, or give this one its own --root and --state"));
        }
        Err(errno) => return Err(Error::io("take lock", shown(), errno)),
    }
    file.set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| writeln!(file, "{}", std::process::id()))
        .map_err(|error| Error::io("write lock", shown(), error))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_daemon_is_told_who_has_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        let (root, state) = (dir.path().join("root"), dir.path().join("state"));
        let held = take(&root, &state).unwrap();
        let error = take(&root, &dir.path().join("other")).unwrap_err();
        assert_eq!(error.kind, Kind::Precondition);
        assert!(error.chain().contains(&format!("pid {} has it", std::process::id())), "{}", error.chain());
        drop(held);
        take(&root, &state).unwrap();
    }
}
