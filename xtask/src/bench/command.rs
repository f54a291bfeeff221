//! `berth run --rm` of `true` beside `podman run --rm`, each with what OCI runtimes it works with; no network.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    rc::Rc,
    time::Instant,
};

use anyhow::{Context, Result};
use tempfile::TempDir;

use super::{
    Group,
    contender::{Contender, OURS},
    figures::Figures,
};
use crate::{
    interrupt,
    leftovers::{self, Names},
    peers::{Programs, legacy},
    process,
};

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
    let podman = Podman::new(group, programs, figures)?;
    runners.extend(podman.iter().flat_map(Podman::runners));
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

/// podman with a store of its own.
struct Podman {
    program: PathBuf,
    image: String,
    /// By name.
    runtimes: Vec<(&'static str, PathBuf)>,
    legacy: Option<Rc<legacy::Namespace>>,
    directory: TempDir,
}

impl Podman {
    /// None, and it is told, where there is none.
    fn new(group: &Group, programs: &Programs, figures: &mut Figures) -> Result<Option<Self>> {
        let Some(program) = programs.find("podman") else {
            figures.miss("no podman: `run --rm` has nobody beside it".to_owned());
            return Ok(None);
        };
        let directory =
            tempfile::Builder::new().prefix("berth-podman-").tempdir().context("make a directory")?;
        // A runc that Go built alone has no libseccomp, without which podman's containers don't start.
        let runc = programs.installed("runc").map(|program| ("runc", program));
        let crun = programs.find("crun").map(|program| ("crun", program));
        let runtimes = runc.into_iter().chain(crun).collect();
        let legacy = legacy::Namespace::for_runtime("crun", directory.path())?.map(Rc::new);
        let podman = Self { program, image: group.client.image.clone(), runtimes, legacy, directory };
        let mut pull = podman.command(None);
        pull.args(["pull", "-q", "--tls-verify=false", &podman.image]);
        if let Err(error) = process::output(&mut pull) {
            figures.fail(MEASURE, "podman", &format!("{error:#}"));
            return Ok(None);
        }
        Ok(Some(podman))
    }

    fn runners(&self) -> Vec<Runner> {
        let runner = |(name, program): &(&str, PathBuf)| {
            let (own, image, program) = (self.place(), self.image.clone(), program.clone());
            // One store, and so one view of the mounts in it.
            let (podman, legacy) = (self.program.clone(), self.legacy.clone());
            Runner {
                name: format!("podman+{name}"),
                command: Box::new(move || {
                    let mut command = flags(&podman, &own, (legacy.as_deref(), Some(&program)));
                    // Its own limits are more than this machine may let it set.
                    command.args([
                        "run",
                        "--rm",
                        "--ulimit",
                        "nofile=1024:1024",
                        "--ulimit",
                        "nproc=1024:1024",
                    ]);
                    command.args(["--network", "none", &image, "/bin/true"]);
                    command
                }),
            }
        };
        self.runtimes.iter().map(runner).collect()
    }

    fn command(&self, runtime: Option<&Path>) -> Command {
        flags(&self.program, &self.place(), (self.legacy.as_deref(), runtime))
    }

    fn place(&self) -> PathBuf {
        self.directory.path().to_path_buf()
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        process::succeeds(self.command(None).args(["rm", "--all", "--force"]));
        let none = format!("berth-podman-{}", std::process::id());
        let names = Names {
            directory: self.place(),
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

fn flags(
    podman: &Path,
    place: &Path,
    (legacy, runtime): (Option<&legacy::Namespace>, Option<&Path>),
) -> Command {
    let mut command = legacy::command(legacy, podman);
    let below = |name: &str| place.join(name);
    command
        .arg("--root")
        .arg(below("root"))
        .arg("--runroot")
        .arg(below("run"))
        .arg("--tmpdir")
        .arg(below("tmp"));
    command.args(["--cgroup-manager", "cgroupfs", "--storage-driver", "overlay", "--events-backend", "none"]);
    if let Some(runtime) = runtime {
        command.arg("--runtime").arg(runtime);
    }
    command
}
