//! Archives on their way through the daemon: one file each under `<root>/spool`, gone when let go.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use tokio::fs::{File, OpenOptions};
use tracing::warn;

use super::create::blocking;
use crate::{Error, Result, id::ContainerId};

/// A file that goes with its owner.
#[derive(Debug)]
pub(super) struct Spool {
    pub path: PathBuf,
}

impl Spool {
    /// Names a file of its own in the directory, which is made; the file is not.
    pub(super) async fn new(root: &Path) -> Result<Self> {
        let directory = directory(root);
        let path = directory.join(ContainerId::random().as_str());
        blocking(move || {
            // What is in images and what comes out of them is for root only.
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&directory)
                .map_err(|error| Error::io("make directory", directory.display().to_string(), error))
        })
        .await?;
        Ok(Self { path })
    }

    pub(super) async fn create(&self) -> Result<File> {
        let mut options = fs::OpenOptions::new();
        options.write(true).create_new(true).mode(0o600);
        OpenOptions::from(options).open(&self.path).await.map_err(|error| self.failed("make file", error))
    }

    pub(super) async fn open(&self) -> Result<File> {
        File::open(&self.path).await.map_err(|error| self.failed("open file", error))
    }

    pub(super) fn failed(&self, op: &'static str, error: io::Error) -> Error {
        Error::io(op, self.path.display().to_string(), error)
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                warn!(%error, path = %self.path.display(), "spooled archive left until the next start");
            }
            _ => {}
        }
    }
}

/// Removes what a daemon that died in the middle of a transfer left.
pub(super) async fn sweep(root: &Path) {
    let directory = directory(root);
    let swept = blocking(move || match fs::remove_dir_all(&directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io("sweep", directory.display().to_string(), error))
        }
        _ => Ok(()),
    });
    if let Err(error) = swept.await {
        warn!(error = error.chain(), "spooled archives left");
    }
}

fn directory(root: &Path) -> PathBuf {
    root.join("spool")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_spooled_file_goes_with_its_owner_and_a_left_one_with_the_next_start() {
        let root = tempfile::tempdir().unwrap();
        let spool = Spool::new(root.path()).await.unwrap();
        spool.create().await.unwrap();
        assert!(spool.path.exists());
        let left = spool.path.with_file_name("left");
        fs::write(&left, "half").unwrap();
        let path = spool.path.clone();
        drop(spool);
        assert!(!path.exists() && left.exists());
        sweep(root.path()).await;
        assert!(!left.exists());
        sweep(root.path()).await;
    }
}
