//! A file system of a test's own, in a file.

use std::{
    path::PathBuf,
    process::{Command, Stdio},
};

use tempfile::TempDir;

use crate::skip::skip;

/// A mounted file system. Unmounted when dropped: declare it before what uses it.
#[derive(Debug)]
pub struct Disk {
    dir: TempDir,
}

impl Disk {
    /// Makes one of so many MiB by `make` (mkfs.ext4 and its flags) and mounts it with options of mount(8); None, and the test
    /// is skipped, where that can't be.
    pub fn mount(test: &str, mebibytes: u64, make: &[&str], options: &str) -> Option<Self> {
        let dir = tempfile::Builder::new().prefix("btd-").tempdir().expect("make a directory");
        let disk = Self { dir };
        let image = disk.dir.path().join("image");
        std::fs::create_dir(disk.root()).expect("make a directory");
        let file = std::fs::File::create(&image).and_then(|file| file.set_len(mebibytes << 20));
        file.expect("make an image");
        // Where these are modules.
        for module in ["loop", "xfs", "quota_v2"] {
            run(Command::new("modprobe").args(["-q", module])).ok();
        }
        let (program, flags) = make.split_first().expect("a program that makes a file system");
        let made = run(Command::new(program).args(flags).arg(&image));
        let options = format!("loop,{options}");
        let mounted = made
            .and_then(|()| run(Command::new("mount").args(["-o", &options]).arg(&image).arg(disk.root())));
        if let Err(cause) = mounted {
            skip(test, &format!("{} can't be mounted with {options}: {cause}", make.join(" ")));
            return None;
        }
        Some(disk)
    }

    pub fn root(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // One that was never mounted is none to unmount.
        if rustix::fs::stat(self.root()).ok().map(|at| at.st_dev)
            == rustix::fs::stat(self.dir.path()).ok().map(|above| above.st_dev)
        {
            return;
        }
        let unmounted = run(Command::new("umount").arg(self.root()));
        if !std::thread::panicking() {
            unmounted.unwrap_or_else(|cause| panic!("unmount a test's disk: {cause}"));
        }
    }
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command.stdin(Stdio::null()).output().map_err(|error| error.to_string())?;
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.success() { Ok(()) } else { Err(said.trim().to_owned()) }
}
