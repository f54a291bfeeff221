//! `test`: stages one after the other, each within the budget or skipped by name; one tally of all.
//!
//! ```text
//!   lint -> unit -> host -> vm -> kubelet -> kubelet-vm -> cluster      each: Stage { name, minutes, run } -> Tally
//!                                   libtest's lines are read as they stream by
//! ```
//! A skip has a name and a reason. Tests tell theirs with a line `skipped: NAME: reason`, on their output or in
//! the file that `BERTH_SKIPS` names; libtest calls them passed, so they are taken off that number.

mod kubelet;
mod libtest;
mod lint;
mod suites;
mod tally;

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::{cargo, debian};
use tally::Tally;

#[derive(Debug, Args)]
pub struct Flags {
    /// Only these stages: lint, unit, host, vm, kubelet, kubelet-vm, cluster
    #[arg(long, value_name = "STAGE", value_delimiter = ',')]
    only: Vec<String>,
    /// Skip, by name, the stages that would not end within this time
    #[arg(long, value_name = "MINUTES")]
    budget: Option<u32>,
}

/// One part of all tests.
struct Stage {
    name: &'static str,
    /// On two slow cores: with nothing built, and when the stage has run here before.
    cold_minutes: u32,
    warm_minutes: u32,
    /// What is run where time is short.
    budgeted: Budgeted,
    run: fn() -> Result<Tally>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Budgeted {
    WhileItFits,
    Never,
}

const STAGES: &[Stage] = &[
    Stage { name: "lint", cold_minutes: 8, warm_minutes: 2, budgeted: Budgeted::WhileItFits, run: lint::run },
    Stage {
        name: "unit",
        cold_minutes: 10,
        warm_minutes: 4,
        budgeted: Budgeted::WhileItFits,
        run: suites::unit,
    },
    Stage {
        name: "host",
        cold_minutes: 15,
        warm_minutes: 10,
        budgeted: Budgeted::WhileItFits,
        run: suites::host,
    },
    Stage {
        name: "vm",
        cold_minutes: 25,
        warm_minutes: 15,
        budgeted: Budgeted::WhileItFits,
        run: suites::vm,
    },
    Stage {
        name: "kubelet",
        cold_minutes: 20,
        warm_minutes: 8,
        budgeted: Budgeted::WhileItFits,
        run: kubelet::alone,
    },
    Stage {
        name: "kubelet-vm",
        cold_minutes: 40,
        warm_minutes: 15,
        budgeted: Budgeted::Never,
        run: kubelet::in_vm,
    },
    Stage {
        name: "cluster",
        cold_minutes: 60,
        warm_minutes: 15,
        budgeted: Budgeted::Never,
        run: kubelet::cluster,
    },
];

pub fn run(flags: &Flags) -> Result<ExitCode> {
    let known = |name: &String| STAGES.iter().any(|stage| stage.name == name.as_str());
    if let Some(unknown) = flags.only.iter().find(|name| !known(name)) {
        let names: Vec<&str> = STAGES.iter().map(|stage| stage.name).collect();
        bail!("no stage {unknown:?}; there are {}", names.join(", "));
    }
    let begun = Instant::now();
    let mut total = Tally::default();
    if let Err(error) = debian::install(debian::RUNTIME) {
        // The tests that need them say so one by one.
        eprintln!("xtask: going on without: {error:#}");
    }
    let chosen = |stage: &&Stage| flags.only.is_empty() || flags.only.iter().any(|name| name == stage.name);
    for stage in STAGES.iter().filter(chosen) {
        let minutes = expected_minutes(stage)?;
        if let Some(why) = over_budget(flags.budget, stage.budgeted, begun.elapsed(), minutes) {
            total.skip(stage.name, &why);
            continue;
        }
        println!("\n==== {} ====", stage.name);
        let stage_begun = Instant::now();
        let tally = (stage.run)().unwrap_or_else(|error| Tally::failure(stage.name, &format!("{error:#}")));
        println!("==== {}: {tally}, {:.0} s ====", stage.name, stage_begun.elapsed().as_secs_f64());
        remember(stage)?;
        total.add(tally);
    }
    total.report();
    Ok(if total.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Says why a stage does not fit any more, if it doesn't.
fn over_budget(
    budget_minutes: Option<u32>,
    budgeted: Budgeted,
    elapsed: Duration,
    expected_minutes: u32,
) -> Option<String> {
    let budget = Duration::from_secs(60 * u64::from(budget_minutes?));
    if budgeted == Budgeted::Never {
        return Some("it is run without a budget only".to_owned());
    }
    let left = budget.saturating_sub(elapsed);
    (Duration::from_secs(60 * u64::from(expected_minutes)) > left).then(|| {
        let left = left.as_secs() / 60;
        format!("it takes some {expected_minutes} minutes, and {left} are left of the budget")
    })
}

fn expected_minutes(stage: &Stage) -> Result<u32> {
    let warm = mark(stage)?.exists();
    Ok(if warm { stage.warm_minutes } else { stage.cold_minutes })
}

/// Notes that what a stage builds has been built here.
fn remember(stage: &Stage) -> Result<()> {
    let mark = mark(stage)?;
    std::fs::write(&mark, "").with_context(|| format!("write {}", mark.display()))
}

fn mark(stage: &Stage) -> Result<std::path::PathBuf> {
    Ok(cargo::room()?.join(format!("{}.ran", stage.name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_that_do_not_fit_the_budget_are_told_so() {
        let minutes = |count: u64| Duration::from_secs(60 * count);
        let fits = Budgeted::WhileItFits;
        assert_eq!(over_budget(None, fits, minutes(1000), 1000), None);
        assert_eq!(over_budget(Some(80), fits, minutes(60), 20), None);
        let why = over_budget(Some(80), fits, minutes(61), 20).unwrap();
        assert!(why.contains("20 minutes, and 19 are left"), "{why}");
        assert!(over_budget(Some(80), fits, minutes(200), 1).is_some());
        assert_eq!(over_budget(None, Budgeted::Never, minutes(1), 1), None);
        assert!(over_budget(Some(80), Budgeted::Never, minutes(0), 1).is_some());
    }

    #[test]
    fn the_stages_fit_80_minutes_on_a_cold_machine() {
        let budgeted = STAGES.iter().filter(|stage| stage.budgeted == Budgeted::WhileItFits);
        let cold: u32 = budgeted.map(|stage| stage.cold_minutes).sum();
        assert!(cold <= 80, "{cold}");
    }
}
