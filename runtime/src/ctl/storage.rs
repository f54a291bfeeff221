//! image check, image prune, system df: what the disk holds, whether it is whole, and what can go.

use berth_cri::berth::{
    CheckDone, CheckFinding, CheckRequest, DiskUsageRequest, DiskUsageResponse, PruneRequest, PruneResponse,
    check_finding::Outcome, check_progress::Event,
};
use clap::{Args, Subcommand};

use super::{
    command::Shape,
    connect::Daemon,
    failure::{Failure, Result},
    human, images, node,
    output::{self, Format},
    pull,
};

/// The exit code where damage is left.
const DAMAGED: u8 = 1;

#[derive(Debug, Subcommand)]
pub(super) enum Image {
    /// Verifies all that the store has; exits with 1 where damage is left
    Check(Check),
    /// Removes images without a tag that no container was made from, and half downloads
    Prune(Prune),
    /// Lists images
    #[command(visible_alias = "list")]
    Ls(images::List),
    /// Removes images
    Rm(images::Rmi),
    /// Fetches an image from a registry
    Pull(pull::Flags),
    /// Takes images from an archive (OCI layout or docker-archive)
    Load(images::Load),
    /// Writes images to an archive
    Save(images::Save),
}

#[derive(Debug, Subcommand)]
pub(super) enum System {
    /// Shows what images, containers and downloads take, and how much could go
    Df(Shape),
    /// Prints what the daemon is and what this host lacks
    Info(Shape),
}

#[derive(Debug, Args)]
pub(super) struct Check {
    /// Unpack or fetch again what is damaged, and only that; layers in use are left alone
    #[arg(long)]
    repair: bool,
    #[command(flatten)]
    shape: Shape,
}

#[derive(Debug, Args)]
pub(super) struct Prune {
    /// Those with tags too
    #[arg(short, long)]
    all: bool,
    #[command(flatten)]
    shape: Shape,
}

pub(super) async fn image(daemon: &Daemon, verb: Image, format: Format) -> Result<u8> {
    match verb {
        Image::Check(flags) => check(daemon, &flags, flags.shape.or(format)).await,
        Image::Prune(flags) => prune(daemon, &flags, flags.shape.or(format)).await,
        Image::Ls(flags) => images::images(daemon, flags, format).await,
        Image::Rm(flags) => images::rmi(daemon, flags, format).await,
        Image::Pull(flags) => pull::pull(daemon, flags, format).await,
        Image::Load(flags) => images::load(daemon, flags, format).await,
        Image::Save(flags) => images::save(daemon, flags).await,
    }
}

pub(super) async fn system(daemon: &Daemon, verb: System, format: Format) -> Result<u8> {
    match verb {
        System::Df(shape) => df(daemon, shape.or(format)).await,
        System::Info(shape) => node::info(daemon, shape.or(format)).await,
    }
}

/// Prints each finding when it comes, one message each where a program reads.
async fn check(daemon: &Daemon, flags: &Check, format: Format) -> Result<u8> {
    let request = CheckRequest { repair: flags.repair };
    let mut events = daemon.images().check(request).await?.into_inner();
    while let Some(progress) = events.message().await? {
        let line = match &progress.event {
            Some(Event::Finding(finding)) => told(finding),
            Some(Event::Done(done)) => summary(done, flags.repair),
            None => continue,
        };
        output::show(format, "berth.v1.CheckProgress", &progress, || line)?;
        if let Some(Event::Done(done)) = progress.event {
            return Ok(if done.problems > done.repaired { DAMAGED } else { 0 });
        }
    }
    Err(Failure::new("the daemon ended the check without a word"))
}

fn told(finding: &CheckFinding) -> String {
    let CheckFinding { object, problem, message, .. } = finding;
    match finding.outcome() {
        Outcome::Found => format!("{object}: {problem}\n"),
        Outcome::Repaired => format!("{object}: {problem}; repaired: {message}\n"),
        Outcome::Unrepaired => format!("{object}: {problem}; not repaired: {message}\n"),
    }
}

fn summary(done: &CheckDone, repair: bool) -> String {
    let size = human::decimal_bytes(done.bytes);
    let looked = format!("{} images and {} layers ({size}) checked", done.images, done.layers);
    match (done.problems, repair) {
        (0, _) => format!("{looked}: all is whole\n"),
        (problems, false) => format!("{looked}: {problems} damaged; `berth image check --repair` repairs\n"),
        (problems, true) => format!("{looked}: {problems} damaged, {} repaired\n", done.repaired),
    }
}

async fn prune(daemon: &Daemon, flags: &Prune, format: Format) -> Result<u8> {
    let pruned = daemon.images().prune(PruneRequest { all: flags.all }).await?.into_inner();
    output::show(format, "berth.v1.PruneResponse", &pruned, || removed(&pruned))?;
    Ok(0)
}

fn removed(pruned: &PruneResponse) -> String {
    let images: String = pruned.images.iter().map(|id| format!("{id}\n")).collect();
    let size = human::decimal_bytes(pruned.bytes);
    let counts = format!("{} images and {} half downloads", pruned.images.len(), pruned.downloads);
    format!("{images}{counts} removed, {size} freed\n")
}

async fn df(daemon: &Daemon, format: Format) -> Result<u8> {
    let used = daemon.daemon().disk_usage(DiskUsageRequest {}).await?.into_inner();
    output::show(format, "berth.v1.DiskUsageResponse", &used, || rows(&used))?;
    Ok(0)
}

fn rows(used: &DiskUsageResponse) -> String {
    let rows = used.rows.iter().map(|row| {
        [
            row.r#type.clone(),
            row.total.to_string(),
            row.active.to_string(),
            human::decimal_bytes(row.bytes),
            human::decimal_bytes(row.reclaimable_bytes),
        ]
    });
    output::table(["TYPE", "TOTAL", "ACTIVE", "SIZE", "RECLAIMABLE"], rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_says_what_became_of_it() {
        let finding = |outcome: Outcome, message: &str| CheckFinding {
            object: "sha256:01".into(),
            problem: "\"a\" is missing".into(),
            outcome: outcome.into(),
            message: message.into(),
        };
        let rows = [
            (finding(Outcome::Found, ""), "sha256:01: \"a\" is missing\n"),
            (finding(Outcome::Repaired, "fetched"), "sha256:01: \"a\" is missing; repaired: fetched\n"),
            (finding(Outcome::Unrepaired, "in use"), "sha256:01: \"a\" is missing; not repaired: in use\n"),
        ];
        for (finding, expected) in rows {
            assert_eq!(told(&finding), expected);
        }
    }

    #[test]
    fn a_summary_says_what_to_do() {
        let done = CheckDone { images: 1, layers: 2, bytes: 1500, problems: 0, repaired: 0 };
        assert_eq!(summary(&done, false), "1 images and 2 layers (1.50kB) checked: all is whole\n");
        let done = CheckDone { problems: 2, repaired: 1, ..done };
        assert!(summary(&done, false).ends_with("2 damaged; `berth image check --repair` repairs\n"));
        assert!(summary(&done, true).ends_with("2 damaged, 1 repaired\n"));
    }
}
