//! One daemon per root and per state directory: two would sweep each other's things.

use std::{
    fs::{DirBuilder, File, OpenOptions},
    io::{Read, Seek, Write},
    os::unix::fs::DirBuilderExt,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
    process::{Pid, test_kill_process},
};

use crate::{Error, Kind, Result};

/// A program that a killed daemon was about to start holds what that daemon held until it runs, some microseconds
/// later: for so long a dead daemon's lock or socket is waited for.
pub const ORPHAN: Duration = Duration::from_secs(2);

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
    // Layers hold setuid files and records environments: not for the node's other users. The socket in the state
    // directory may be given to a group, and what else is there has modes of its own.
    Ok(Lock { _files: [one(root, 0o700)?, one(state, 0o711)?] })
}

/// Whether there is such a process; a zombie is one too.
pub fn runs(pid: Option<i32>) -> bool {
    pid.and_then(Pid::from_raw).is_some_and(|pid| test_kill_process(pid) != Err(Errno::SRCH))
}

fn one(directory: &Path, mode: u32) -> Result<File> {
    DirBuilder::new()
        .recursive(true)
        .mode(mode)
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
    let patience = Instant::now() + ORPHAN;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => break,
            Err(Errno::WOULDBLOCK) => {}
            Err(errno) => return Err(Error::io("take lock", shown(), errno)),
        }
        let mut holder = String::new();
        // An unreadable pid is nobody's, and makes the message shorter.
        file.rewind().and_then(|()| file.read_to_string(&mut holder)).ok();
        if runs(holder.trim().parse().ok()) || Instant::now() > patience {
            return Err(Error::new(Kind::Precondition, "take lock", shown())
                .because(crate::error::Cause(format!("berthd with pid {} has it", holder.trim())))
                .hint("stop that one, or give this one its own --root and --state"));
        }
        thread::sleep(Duration::from_millis(2));
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

    #[test]
    fn a_dead_daemons_lock_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let (root, state) = (dir.path().join("root"), dir.path().join("state"));
        let held = take(&root, &state).unwrap();
        // No process has it: pids end at 2^22 (proc_sys_kernel(5), pid_max).
        std::fs::write(root.join("lock"), i32::MAX.to_string()).unwrap();
        let taken = thread::scope(|scope| {
            let taken = scope.spawn(|| take(&root, &state));
            // Dropped while the other waits, or before it began: both are to end well.
            drop(held);
            taken.join().unwrap()
        });
        taken.unwrap();
    }
}
