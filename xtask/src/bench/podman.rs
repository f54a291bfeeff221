//! podman with a store of its own, which goes with it.

use std::{
    path::{Path, PathBuf},
    process::Command,
    rc::Rc,
};

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::{
    leftovers::{self, Names, STATE},
    peers::{Programs, legacy},
    process,
    tmpfs::Tmpfs,
};

/// As many as want it share the store.
#[derive(Debug, Clone)]
pub struct Podman(Rc<Store>);

#[derive(Debug)]
struct Store {
    program: PathBuf,
    /// One view of the mounts in it for all.
    legacy: Option<legacy::Namespace>,
    state: Tmpfs,
    directory: TempDir,
}

impl Podman {
    /// The words of a pull from a registry on loopback.
    pub const PULL: [&str; 3] = ["pull", "-q", "--tls-verify=false"];

    /// None where there is no podman. Its store is below a directory.
    pub fn find(programs: &Programs, under: &Path) -> Result<Option<Self>> {
        let Some(program) = programs.find("podman") else { return Ok(None) };
        // podman takes 50 characters of a runroot at most.
        let directory = tempfile::Builder::new().prefix("podman-").tempdir_in(under);
        let directory = directory.context("make a directory")?;
        // Before what has a view of the mounts of its own.
        let state = Tmpfs::mount(directory.path().join(STATE))?;
        let legacy = legacy::Namespace::for_runtime("crun", directory.path())?;
        Ok(Some(Self(Rc::new(Store { program, legacy, state, directory }))))
    }

    pub fn command(&self, runtime: Option<&Path>) -> Command {
        self.0.command(runtime)
    }
}

impl Store {
    fn command(&self, runtime: Option<&Path>) -> Command {
        let mut command = legacy::command(self.legacy.as_ref(), &self.program);
        command.arg("--root").arg(self.directory.path().join("root"));
        for (flag, name) in [("--runroot", "run"), ("--tmpdir", "tmp")] {
            command.arg(flag).arg(self.state.path().join(name));
        }
        command.args([
            "--cgroup-manager",
            "cgroupfs",
            "--storage-driver",
            "overlay",
            "--events-backend",
            "none",
        ]);
        if let Some(runtime) = runtime {
            command.arg("--runtime").arg(runtime);
        }
        command
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        process::succeeds(self.command(None).args(["rm", "--all", "--force"]));
        let none = format!("berth-podman-{}", std::process::id());
        let names = Names {
            directory: self.directory.path().to_path_buf(),
            bridge: "none".to_owned(),
            table: none.replace('-', "_"),
            cgroup_parent: format!("/{none}"),
        };
        // The mount of its own store is how it works.
        let left = leftovers::remove(&names);
        left.iter()
            .filter(|line| !line.contains("was still"))
            .for_each(|line| eprintln!("xtask: podman: {line}"));
    }
}
