//! Cargo: where the workspace is, builds, and where the built programs are.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::process;

/// Programs by name, as one build left them.
#[derive(Debug, Default)]
pub struct Programs(BTreeMap<String, PathBuf>);

impl Programs {
    pub fn path(&self, name: &str) -> Result<&Path> {
        self.0.get(name).map(PathBuf::as_path).with_context(|| format!("the build made no program {name}"))
    }

    /// Programs that somebody else made.
    #[cfg(test)]
    pub fn of(paths: &[(&str, &Path)]) -> Self {
        Self(paths.iter().map(|(name, path)| ((*name).to_owned(), path.to_path_buf())).collect())
    }

    pub fn extend(&mut self, others: Self) {
        self.0.extend(others.0);
    }
}

/// The workspace's directory.
pub fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).to_path_buf()
}

/// Where xtask keeps what it makes between runs, below the target directory that cargo runs us from.
pub fn room() -> Result<PathBuf> {
    let program = std::env::current_exe().context("find this program")?;
    let target = program.ancestors().find(|directory| directory.join("CACHEDIR.TAG").is_file());
    // Cargo tags the directory of each target triple as well; the upper one is where it is safest.
    let target =
        target.and_then(Path::parent).filter(|upper| upper.join("CACHEDIR.TAG").is_file()).or(target);
    let room = target.map_or_else(|| root().join("target"), Path::to_path_buf).join("xtask");
    std::fs::create_dir_all(&room).with_context(|| format!("make {}", room.display()))?;
    Ok(room)
}

/// Cargo in the workspace's directory.
///
/// Without what the cargo that runs us tells of this package: build scripts watch those names (ring's does), and would
/// run again, with all that depends on them, at each change between `cargo build` and `cargo xtask`.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in std::env::vars_os() {
        if tells_of_a_package(&name.to_string_lossy()) {
            command.env_remove(name);
        }
    }
    command.current_dir(root());
    command
}

fn tells_of_a_package(variable: &str) -> bool {
    ["CARGO_PKG_", "CARGO_MANIFEST_"].iter().any(|prefix| variable.starts_with(prefix))
}

/// Builds with these arguments and returns the programs. Errors of the compiler go to the terminal.
pub fn build(arguments: &[&str]) -> Result<Programs> {
    run("build", arguments, &[])
}

/// Builds tests without running them; each is a program by the name of its target.
pub fn test_program(arguments: &[&str]) -> Result<Programs> {
    run("test", &[arguments, &["--no-run"]].concat(), &[])
}

/// Runs a verb of cargo's that builds; `rest` goes to the compiler.
fn run(verb: &str, arguments: &[&str], rest: &[&str]) -> Result<Programs> {
    let mut command = cargo();
    command.arg(verb).args(arguments).arg("--message-format=json-render-diagnostics").args(rest);
    eprintln!("xtask: {}", process::line(&command));
    command.stdout(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("run {}", process::line(&command)))?;
    let mut programs = Programs::default();
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).lines() {
            let line = line.context("read what cargo says")?;
            programs.0.extend(executable(&line));
        }
    }
    let status = child.wait().context("wait for cargo")?;
    if !status.success() {
        bail!("{}: {status}", process::line(&command));
    }
    Ok(programs)
}

/// The daemon and its tool in the dev profile, what runs in containers, and the shim as it is shipped.
///
/// Not the release profile: its LTO takes minutes on a small machine, and what is waited for in a pod's
/// start is the kernel and the shim, not the daemon's code.
pub fn programs() -> Result<Programs> {
    // The workspace and not its packages one by one: each set of packages has features, and so builds, of its own.
    let mut programs = build(&["--workspace", "--bins"])?;
    programs.extend(shim()?);
    Ok(programs)
}

/// The shim as it is shipped: small, and linked to fixed addresses, since relocations would dirty 30 KiB of each one. What
/// it writes to begins with a page of its own: else its size decides how many pages the same few variables lie on.
pub fn shim() -> Result<Programs> {
    let package = ["-p", "berth-shim", "--bin", "berth-shim", "--profile", "shim"];
    let layout = ["--", "-C", "relocation-model=static", "-C", "link-arg=-Wl,-z,separate-loadable-segments"];
    run("rustc", &package, &layout)
}

/// Reads one message of cargo: a program's name and path, if it tells of one.
fn executable(line: &str) -> Option<(String, PathBuf)> {
    let message: Value = serde_json::from_str(line).ok()?;
    let path = message.get("executable")?.as_str()?;
    let name = message.get("target")?.get("name")?.as_str()?;
    Some((name.to_owned(), PathBuf::from(path)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_in_cargos_messages() {
        let line = r#"{"reason":"compiler-artifact","target":{"name":"berthd"},"executable":"/t/berthd"}"#;
        assert_eq!(executable(line), Some(("berthd".into(), "/t/berthd".into())));
        for other in [
            r#"{"reason":"compiler-artifact","target":{"name":"berth"},"executable":null}"#,
            r#"{"reason":"build-finished","success":true}"#,
            "warning: not JSON",
        ] {
            assert_eq!(executable(other), None, "{other}");
        }
    }

    #[test]
    fn a_build_is_not_told_of_this_package() {
        let command = cargo();
        let removed = |name: &str| command.get_envs().any(|(of, value)| of == name && value.is_none());
        assert!(removed("CARGO_PKG_NAME") && removed("CARGO_MANIFEST_DIR"));
        assert!(!removed("CARGO_HOME") && !removed("PATH"));
    }

    #[test]
    fn the_root_is_the_workspaces() {
        assert!(root().join("rust-toolchain.toml").is_file());
    }
}
