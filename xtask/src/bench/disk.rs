//! A fresh ext4 with a journal, in a file by a loop device: every runtime's store begins on the same one.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::process;

/// Mounted until it is dropped.
#[derive(Debug)]
pub struct Disk {
    directory: TempDir,
}

impl Disk {
    /// Makes one of so many GiB; its file has holes where nothing was written yet.
    pub fn new(gib: u64) -> Result<Self> {
        let directory =
            tempfile::Builder::new().prefix("bd-").tempdir().context("make a temporary directory")?;
        let file = directory.path().join("image");
        let made = fs::File::create(&file).and_then(|file| file.set_len(gib << 30));
        made.with_context(|| format!("make {}", file.display()))?;
        // Its tables are written now and not while something is measured.
        let options = ["-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"];
        process::output(Command::new("mkfs.ext4").args(options).arg(&file))?;
        let disk = Self { directory };
        fs::create_dir(disk.path()).context("make a mount point")?;
        process::output(Command::new("mount").args(["-o", "loop"]).arg(&file).arg(disk.path()))?;
        Ok(disk)
    }

    pub fn path(&self) -> PathBuf {
        self.directory.path().join("at")
    }

    /// What is used, with all that was written on the disk.
    pub fn used_bytes(&self) -> Result<u64> {
        used_bytes(&self.path())
    }
}

fn used_bytes(path: &Path) -> Result<u64> {
    let directory = fs::File::open(path).with_context(|| format!("open {}", path.display()))?;
    rustix::fs::syncfs(&directory).with_context(|| format!("sync {}", path.display()))?;
    let told = rustix::fs::statvfs(path).with_context(|| format!("look at {}", path.display()))?;
    Ok((told.f_blocks - told.f_bfree) * told.f_frsize)
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Not mounted where making it failed.
        if let Err(error) = process::output(Command::new("umount").arg(self.path()))
            && !format!("{error:#}").contains("not mounted")
        {
            eprintln!("xtask: {error:#}");
        }
    }
}
