//! Where the peers' programs are: a directory that is given, what was built of the published sources before, PATH.
//!
//! containerd and runc are built by Go where they are missing: once, below the user's cache directory, by version.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::{golang, kubernetes};

const CONTAINERD: (&str, &str) = ("github.com/containerd/containerd/v2", "v2.4.2");
const CONTAINERD_TAGS: &str = "no_btrfs,no_devmapper,no_zfs";
const RUNC: (&str, &str) = ("github.com/opencontainers/runc", "v1.5.2");
/// With the C library: a kubelet's and podman's containers have a profile each.
const RUNC_TAGS: &str = "seccomp";

/// Directories, the first that has a program wins.
#[derive(Debug, Default)]
pub struct Programs {
    directories: Vec<PathBuf>,
    path: Vec<PathBuf>,
}

/// Whether what is missing is built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    Built,
    LeftOut,
}

impl Programs {
    /// Finds them; what can't be built is told and left out.
    ///
    /// # Errors
    /// There is no such directory, or no place for what is built.
    pub fn find_all(given: Option<&Path>, missing: Missing) -> Result<Self> {
        let mut found = Self::default();
        if let Some(given) = given {
            let given = given.canonicalize().with_context(|| format!("find {}", given.display()))?;
            found.directories.push(given);
        }
        let cache = kubernetes::cache()?.join("peers");
        let containerd = cache.join(format!("containerd-{}", CONTAINERD.1));
        let runc = cache.join(format!("runc-{}-{RUNC_TAGS}", RUNC.1));
        found.directories.extend([containerd.clone(), runc.clone()]);
        let package = |(module, version): (&str, &str), below: &str| format!("{module}{below}@{version}");
        if missing == Missing::Built {
            let build = |name: &str, directory: &Path, packages: &[String], linked, tags| {
                if found.in_directories(name).is_none()
                    && let Err(error) = golang::install(directory, packages, linked, tags)
                {
                    eprintln!("xtask: going on without: {error:#}");
                }
            };
            let packages = ["/cmd/containerd", "/cmd/containerd-shim-runc-v2"];
            let packages = packages.map(|below| package(CONTAINERD, below));
            build("containerd", &containerd, &packages, golang::Linked::Statically, CONTAINERD_TAGS);
            build("runc", &runc, &[package(RUNC, "")], golang::Linked::WithC, RUNC_TAGS);
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        found.path.extend(std::env::split_paths(&path));
        Ok(found)
    }

    pub fn find(&self, name: &str) -> Option<PathBuf> {
        self.in_directories(name).or_else(|| self.installed(name))
    }

    /// As the machine's own packages have it.
    fn installed(&self, name: &str) -> Option<PathBuf> {
        first(&self.path, name)
    }

    fn in_directories(&self, name: &str) -> Option<PathBuf> {
        first(&self.directories, name)
    }
}

fn first(directories: &[PathBuf], name: &str) -> Option<PathBuf> {
    directories.iter().map(|directory| directory.join(name)).find(|program| program.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_directory_that_has_a_program_wins() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::write(one.path().join("runc"), "").unwrap();
        std::fs::write(other.path().join("runc"), "").unwrap();
        std::fs::write(other.path().join("crun"), "").unwrap();
        let programs = Programs { directories: vec![one.path().into()], path: vec![other.path().into()] };
        assert_eq!(programs.find("runc"), Some(one.path().join("runc")));
        assert_eq!(programs.installed("runc"), Some(other.path().join("runc")));
        assert_eq!(programs.find("crun"), Some(other.path().join("crun")));
        assert_eq!(programs.find("youki"), None);
    }
}
