//! `berth run --rm` of `true` beside `podman run --rm`, each with what OCI runtimes it works with; no network.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::Result;

use super::{
    Group,
    contender::{Contender, OURS},
    figures::Figures,
    podman::Podman,
};
use crate::{interrupt, peers::Programs, process};

const WARM_UP: usize = 3;
const MEASURE: &str = "run --rm";

/// One who runs a container for a person.
struct Runner {
    name: String,
    command: Box<dyn Fn() -> Command>,
}

pub fn measure(
    group: &Group,
    contenders: &[Contender],
    programs: &Programs,
    under: &Path,
    figures: &mut Figures,
) -> Result<()> {
    let mut runners = Vec::new();
    if let Some(ours) = contenders.iter().find(|contender| contender.name == OURS) {
        let (program, address) = (ours.path("bin/berth"), ours.address());
        let image = group.client.image.clone();
        runners.push(Runner {
            name: OURS.to_owned(),
            command: Box::new(move || {
                let mut command = Command::new(&program);
                command.args([
                    "--address",
                    &address,
                    "run",
                    "--rm",
                    "--network",
                    "none",
                    &image,
                    "/bin/true",
                ]);
                command
            }),
        });
    }
    let podman = podman(group, programs, under, figures)?;
    runners.extend(podman.iter().flat_map(|podman| beside(podman, &group.client.image, programs)));
    let mut took: Vec<Vec<f64>> = vec![Vec::new(); runners.len()];
    let mut failed = vec![false; runners.len()];
    for round in 0..group.rounds + WARM_UP {
        if round > WARM_UP && group.until.is_over() {
            break;
        }
        for (at, runner) in runners.iter().enumerate() {
            interrupt::check()?;
            if failed[at] {
                continue;
            }
            let began = Instant::now();
            match process::output((runner.command)().stdin(Stdio::null())) {
                Ok(_) if round >= WARM_UP => took[at].push(began.elapsed().as_secs_f64() * 1000.0),
                Ok(_) => {}
                Err(error) => {
                    failed[at] = true;
                    figures.fail(MEASURE, &runner.name, &format!("{error:#}"));
                }
            }
        }
    }
    for (runner, took) in runners.iter().zip(took).filter(|(_, took)| !took.is_empty()) {
        figures.extend(MEASURE, &runner.name, "ms", took);
    }
    Ok(())
}

/// podman with the image; none, and it is told, where there is none.
fn podman(group: &Group, programs: &Programs, under: &Path, figures: &mut Figures) -> Result<Option<Podman>> {
    let Some(podman) = Podman::find(programs, under)? else {
        figures.miss("no podman: `run --rm` has nobody beside it".to_owned());
        return Ok(None);
    };
    let pulled = process::output(podman.command(None).args(Podman::PULL).arg(&group.client.image));
    if let Err(error) = pulled {
        figures.fail(MEASURE, "podman", &format!("{error:#}"));
        return Ok(None);
    }
    Ok(Some(podman))
}

/// It with each OCI runtime that works with it.
fn beside(podman: &Podman, image: &str, programs: &Programs) -> Vec<Runner> {
    let runc = programs.find("runc").map(|program| ("runc", program));
    let crun = programs.find("crun").map(|program| ("crun", program));
    let runner = |(name, program): (&str, PathBuf)| {
        let (podman, image) = (podman.clone(), image.to_owned());
        Runner {
            name: format!("podman+{name}"),
            command: Box::new(move || {
                let mut command = podman.command(Some(&program));
                command.args(["run", "--rm"]);
                // Its own limits are more than this machine may let it set.
                command.args(["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"]);
                command.args(["--network", "none", &image, "/bin/true"]);
                command
            }),
        }
    };
    runc.into_iter().chain(crun).map(runner).collect()
}
