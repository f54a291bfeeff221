//! A disk that does not answer: ext4 on a loop device, frozen. What is there can be read; whoever changes something waits in
//! the kernel, and no signal ends that.

use std::{
    cell::Cell,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{required, skip};

/// A file system of its own that can be frozen. Thawed and taken away when it is dropped.
#[derive(Debug)]
pub struct Freezer {
    target: PathBuf,
    frozen: Cell<bool>,
}

impl Freezer {
    /// Mounts one there; its image is in the daemon's directory. None, and the test is skipped, where a file can't be mounted.
    ///
    /// # Panics
    /// Where one can't be made.
    pub fn mount(test: &str, directory: &Path, target: &Path) -> Option<Self> {
        if !required(test, &["mkfs.ext4", "mount", "umount", "fsfreeze"]) {
            return None;
        }
        let image = directory.join("disk");
        fs::File::create(&image).expect("make an image").set_len(64 << 20).expect("give it its size");
        let run = |command: &mut Command| {
            let output = command.output().expect("run it");
            output.status.success().then_some(()).ok_or(String::from_utf8_lossy(&output.stderr).into_owned())
        };
        run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&image)).expect("make a file system");
        fs::create_dir_all(target).expect("make where it is mounted");
        if let Err(error) = run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(target)) {
            skip(test, &format!("no loop device: {error}"));
            return None;
        }
        Some(Self { target: target.to_owned(), frozen: Cell::new(false) })
    }

    pub fn path(&self) -> &Path {
        &self.target
    }

    /// From now on it does not answer.
    pub fn freeze(&self) {
        self.turn("--freeze");
        self.frozen.set(true);
    }

    pub fn thaw(&self) {
        self.turn("--unfreeze");
        self.frozen.set(false);
    }

    fn turn(&self, how: &str) {
        let turned = Command::new("fsfreeze").arg(how).arg(&self.target).status();
        assert!(turned.expect("run fsfreeze").success(), "{how}");
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        if self.frozen.get() {
            self.thaw();
        }
        // Whoever has a file open there keeps it for a moment; the mount is out of sight at once.
        Command::new("umount").arg("-l").arg(&self.target).status().ok();
    }
}
