//! The checks that read the code without running it; each counts as one test.

use std::{path::PathBuf, process::Command};

use anyhow::Result;

use super::tally::Tally;
use crate::{cargo, process};

pub fn run() -> Result<Tally> {
    let mut tally = Tally::default();
    let cargo = |words: &[&str]| {
        let mut command = cargo::cargo();
        command.args(words);
        command
    };
    check(&mut tally, "fmt", &mut cargo(&["fmt", "--all", "--check"]));
    let clippy =
        ["clippy", "--workspace", "--all-targets", "--all-features", "--quiet", "--", "-D", "warnings"];
    check(&mut tally, "clippy", &mut cargo(&clippy));
    match typos() {
        Ok(program) => check(&mut tally, "typos", Command::new(program).current_dir(cargo::root())),
        Err(error) => tally.skip("lint::typos", &format!("{error:#}")),
    }
    // Advisories need a database from the network, and change without a change of ours.
    let wanted = ["check", "licenses", "bans", "sources"];
    match deny() {
        Ok(program) => {
            check(&mut tally, "deny", Command::new(program).args(wanted).current_dir(cargo::root()))
        }
        Err(error) => tally.skip("lint::deny", &format!("{error:#}")),
    }
    Ok(tally)
}

fn check(tally: &mut Tally, name: &str, command: &mut Command) {
    println!("{}", process::line(command));
    let name = format!("lint::{name}");
    match process::run(command) {
        Ok(()) => tally.passed += 1,
        Err(error) => tally.fail(&name, &format!("{error:#}")),
    }
}

/// Finds `cargo-deny`, or builds it below target/: some two minutes, once.
fn deny() -> Result<PathBuf> {
    if process::succeeds(Command::new("cargo-deny").arg("--version")) {
        return Ok("cargo-deny".into());
    }
    let room = cargo::room()?.join("deny");
    let program = room.join("bin/cargo-deny");
    if !program.is_file() {
        let mut install = cargo::cargo();
        // Not in the workspace, whose configuration makes programs static for a target of their own.
        install.current_dir(cargo::room()?).args([
            "install",
            "--quiet",
            "--locked",
            "cargo-deny@0.20.2",
            "--root",
        ]);
        process::output(install.arg(&room))?;
    }
    Ok(program)
}

/// Finds `typos`, or installs it from PyPI below target/: its wheel holds the program.
fn typos() -> Result<PathBuf> {
    if process::succeeds(Command::new("typos").arg("--version")) {
        return Ok("typos".into());
    }
    let venv = cargo::room()?.join("typos");
    let program = venv.join("bin/typos");
    if !program.is_file() {
        process::output(Command::new("python3").args(["-m", "venv"]).arg(&venv))?;
        let pip = ["install", "--quiet", "--disable-pip-version-check", "typos==1.*"];
        process::output(Command::new(venv.join("bin/pip")).args(pip))?;
    }
    Ok(program)
}
