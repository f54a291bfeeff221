//! `soak`: the load of `tests/examples/soak` on a private berthd, for as long as is asked for; or the gigabyte of lines of
//! `tests/examples/gigabyte.rs`.

use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::{cargo, install};

#[derive(Debug, Args)]
pub struct Flags {
    /// How long: a fifth of it at least is to be measured
    #[arg(long, value_name = "MINUTES", default_value_t = 10.0)]
    minutes: f64,
    /// Measure a gigabyte of lines into a container's log instead, beside the producer alone
    #[arg(long)]
    gigabyte: bool,
}

/// Fails where something was left, a log was not whole, or more is held at the end than after the first minutes.
pub fn run(flags: &Flags) -> Result<ExitCode> {
    if !rustix::process::geteuid().is_root() {
        bail!("it starts containers, which takes root");
    }
    let mut programs = cargo::build(&["--workspace", "--bins", "--examples"])?;
    programs.extend(cargo::shim()?);
    let berthd = programs.path("berthd")?;
    let here = berthd.parent().context("find the programs' directory")?;
    install::place(programs.path("berth-shim")?, &here.join("berth-shim"))?;
    let mut load = match flags.gigabyte {
        true => Command::new(programs.path("gigabyte")?),
        false => Command::new(programs.path("soak")?),
    };
    if !flags.gigabyte {
        load.arg(flags.minutes.to_string());
    }
    load.env("BERTH_PROGRAMS", here).env("BERTH_FIXTURE", programs.path("fixture")?);
    let status = load.status().context("run the load")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
