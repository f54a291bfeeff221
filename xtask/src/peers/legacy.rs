//! A mount namespace without the empty v2 hierarchy that hybrid hosts have beside v1: crun refuses to run beside it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::process;

const UNIFIED: &str = "/sys/fs/cgroup/unified";

/// Kept by a file, so that what is started later comes into the same one.
#[derive(Debug)]
pub struct Namespace {
    place: PathBuf,
}

impl Namespace {
    /// One for a runtime that needs it here; None for others.
    pub fn for_runtime(runtime: &str, place: &Path) -> Result<Option<Self>> {
        let needed = runtime == "crun" && Path::new(UNIFIED).join("cgroup.procs").is_file();
        needed.then(|| Self::new(place)).transpose()
    }

    fn new(place: &Path) -> Result<Self> {
        let place = place.join("legacy");
        fs::create_dir_all(&place).with_context(|| format!("make {}", place.display()))?;
        let namespace = Self { place };
        let file = namespace.file();
        fs::write(&file, "").with_context(|| format!("make {}", file.display()))?;
        let mount = |words: &[&str]| process::output(Command::new("mount").args(words).arg(&namespace.place));
        // A namespace is kept by a mount that is no part of it.
        mount(&["--bind", &namespace.place.display().to_string()])?;
        mount(&["--make-private"])?;
        let mut unshare = Command::new("unshare");
        unshare.arg(format!("--mount={}", file.display())).args(["umount", "-l", UNIFIED]);
        process::output(&mut unshare)?;
        Ok(namespace)
    }

    /// What comes before a program's name so that it runs in there.
    pub fn words(&self) -> [String; 2] {
        ["nsenter".to_owned(), format!("--mount={}", self.file().display())]
    }

    fn file(&self) -> PathBuf {
        self.place.join("mnt")
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // Not mounted where making it failed; and gone already where all below its directory was swept.
        process::succeeds(Command::new("umount").arg(self.file()));
        process::succeeds(Command::new("umount").arg(&self.place));
    }
}

/// A program, in the namespace if there is one.
pub fn command(namespace: Option<&Namespace>, program: &Path) -> Command {
    match namespace {
        None => Command::new(program),
        Some(namespace) => {
            let [enter, mount] = namespace.words();
            let mut command = Command::new(enter);
            command.arg(mount).arg(program);
            command
        }
    }
}
