//! The shim's program, out of the reach of containers. A shim executes itself again through a read-only mount of its file
//! that has no place (CVE-2019-5736); given such a mount from the start it need not, which saves an execve(2) for each pod
//! and each container. A mount takes a capability and a namespace that are the shim's business: one makes it, and lends
//! it to us.

use std::{
    fs, io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio::sync::Mutex;
use tracing::warn;

use super::errand::{Brought, errand};
use crate::{Error, Result};

#[derive(Debug, Clone)]
pub struct Program {
    path: PathBuf,
    mount: Arc<Mutex<Mount>>,
}

/// Which file it was, as a program that is installed anew is another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct File {
    device: u64,
    inode: u64,
    changed: (i64, i64),
}

#[derive(Debug)]
enum Mount {
    NotAsked,
    /// It makes its own each time.
    Refused(File),
    Lent(File, Arc<OwnedFd>),
}

/// What to execute; holds the mount that it is in.
#[derive(Debug)]
pub struct Executable {
    pub path: PathBuf,
    _mount: Option<Arc<OwnedFd>>,
}

impl Program {
    pub fn new(path: PathBuf) -> Self {
        Self { path, mount: Arc::new(Mutex::new(Mount::NotAsked)) }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The program in its mount where there is one, else as it lies on disk.
    pub async fn executable(&self) -> Executable {
        let as_it_lies = || Executable { path: self.path.clone(), _mount: None };
        // Whoever starts it tells why it can't.
        let Ok(file) = File::at(&self.path) else { return as_it_lies() };
        let mut mount = self.mount.lock().await;
        let known = match &*mount {
            Mount::Refused(of) | Mount::Lent(of, _) => *of == file,
            Mount::NotAsked => false,
        };
        if !known {
            *mount = match self.borrow().await {
                Ok(lent) => Mount::Lent(file, Arc::new(lent)),
                Err(error) => {
                    warn!(%error, "each shim makes a mount of its program by itself, which takes a millisecond");
                    Mount::Refused(file)
                }
            };
        }
        match &*mount {
            // By the name that the new process has for it: it is closed as it executes, and not before.
            Mount::Lent(_, lent) => Executable {
                path: format!("/proc/self/fd/{}", lent.as_raw_fd()).into(),
                _mount: Some(Arc::clone(lent)),
            },
            Mount::Refused(_) | Mount::NotAsked => as_it_lies(),
        }
    }

    async fn borrow(&self) -> Result<OwnedFd> {
        const OP: &str = "mount shim read-only";
        let shown = self.path.display().to_string();
        match errand(&self.path, &["lend"], OP, &shown).await? {
            Brought::Descriptor(mount) => Ok(mount),
            Brought::Refused(error) => Err(Error::io(OP, shown, error)),
        }
    }
}

impl File {
    fn at(path: &Path) -> io::Result<Self> {
        let found = fs::metadata(path)?;
        Ok(Self { device: found.dev(), inode: found.ino(), changed: (found.ctime(), found.ctime_nsec()) })
    }
}
