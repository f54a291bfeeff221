//! Programs of published Go modules, built into a directory: each is there whole or not at all.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result, bail};

use crate::process;

/// Whether a program needs a C compiler and the libraries of this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Linked {
    Statically,
    WithC,
}

/// Builds packages, `path@version` each, of one module.
///
/// # Errors
/// What Go said; that there is no Go.
pub fn install(directory: &Path, packages: &[String], linked: Linked, tags: &str) -> Result<()> {
    if !process::succeeds(Command::new("go").arg("version")) {
        bail!("no Go in PATH: it builds {}", packages.join(", "));
    }
    let unfinished = directory.join(".new");
    fs::create_dir_all(&unfinished).with_context(|| format!("make {}", unfinished.display()))?;
    let mut go = Command::new("go");
    // Two at a time: linkers take a gigabyte.
    go.args(["install", "-p", "2", "-ldflags", "-s -w", "-tags", tags]).args(packages);
    go.envs([("GOFLAGS", "-buildvcs=false -trimpath")]).env("GOBIN", &unfinished);
    go.env("CGO_ENABLED", if linked == Linked::WithC { "1" } else { "0" });
    println!("xtask: {}: this takes minutes, once", process::line(&go));
    process::run(&mut go)?;
    for entry in fs::read_dir(&unfinished).with_context(|| format!("read {}", unfinished.display()))? {
        let built = entry.with_context(|| format!("read {}", unfinished.display()))?;
        let to = directory.join(built.file_name());
        fs::rename(built.path(), &to).with_context(|| format!("name {}", to.display()))?;
    }
    fs::remove_dir(&unfinished).with_context(|| format!("remove {}", unfinished.display()))
}
