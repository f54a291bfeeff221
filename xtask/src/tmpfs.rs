//! A file system in memory, as /run is on a node: where runtimes keep what a reboot may take.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

/// Mounted until it is dropped.
#[derive(Debug)]
pub struct Tmpfs(PathBuf);

impl Tmpfs {
    /// Makes the directory and mounts one there.
    pub fn mount(at: PathBuf) -> Result<Self> {
        fs::create_dir(&at).with_context(|| format!("make {}", at.display()))?;
        mount("tmpfs", &at, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, Some(c"mode=755"))
            .with_context(|| format!("mount a tmpfs at {}", at.display()))?;
        Ok(Self(at))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        if let Err(error) = unmount(&self.0, UnmountFlags::DETACH) {
            eprintln!("xtask: unmount {}: {error}", self.0.display());
        }
    }
}
