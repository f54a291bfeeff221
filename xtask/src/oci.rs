//! `bench oci`: `berth oci` and the OCI runtimes that are found, in turns, on one bundle: create, start, the end of `true`,
//! delete. The measuring process is their supervisor: a container's init is left to it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, WaitOptions, waitpid};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    bench::{clock::Deadline, contender::OURS, figures::Figures},
    cargo::Programs,
    interrupt,
    leftovers::STATE,
    peers::{self, legacy},
    process,
    tmpfs::Tmpfs,
};

/// Not measured: files come into memory.
const WARM_UP: usize = 3;
const MEASURE: &str = "oci";

/// One runtime, with a root for its states.
#[derive(Debug)]
struct Runtime {
    name: String,
    program: PathBuf,
    legacy: Option<legacy::Namespace>,
    took: Vec<f64>,
    cpu: Duration,
}

/// Where our programs, the bundle and all states are.
#[derive(Debug)]
pub struct Place {
    state: Tmpfs,
    directory: TempDir,
}

/// Measures until its time is up.
///
/// # Errors
/// Where it can't begin; a runtime that fails is told in the figures and left out.
pub fn measure(
    place: &Place,
    peers: &peers::Programs,
    rounds: usize,
    until: Deadline,
    figures: &mut Figures,
) -> Result<()> {
    let mut runtimes = vec![Runtime::new(OURS, place.directory.path().join("bin/berth-oci"))];
    for name in ["runc", "crun", "youki"] {
        match peers.find(name) {
            Some(program) => {
                let legacy = legacy::Namespace::for_runtime(name, place.directory.path())?;
                runtimes.push(Runtime { legacy, ..Runtime::new(name, program) });
            }
            None => figures.miss(format!("no {name}: not beside `berth oci`")),
        }
    }
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).context("become a subreaper")?;
    let mut failed = vec![false; runtimes.len()];
    for round in 0..rounds + WARM_UP {
        if round > WARM_UP && until.is_over() {
            break;
        }
        for (runtime, failed) in runtimes.iter_mut().zip(&mut failed).filter(|(_, failed)| !**failed) {
            interrupt::check()?;
            let (begun, cpu) = (Instant::now(), children_cpu()?);
            if let Err(error) = place.one(runtime) {
                figures.fail(MEASURE, &runtime.name, &format!("{error:#}"));
                *failed = true;
            } else if round >= WARM_UP {
                runtime.took.push(begun.elapsed().as_secs_f64() * 1000.0);
                runtime.cpu += children_cpu()?.saturating_sub(cpu);
            }
        }
    }
    rustix::process::set_child_subreaper(None).context("be no subreaper any more")?;
    for runtime in runtimes.into_iter().filter(|runtime| !runtime.took.is_empty()) {
        // The kernel counts in ticks too long for one round: there is a mean only.
        let cpu = runtime.cpu.as_secs_f64() * 1000.0 / runtime.took.len() as f64;
        figures.add("oci CPU, mean", &runtime.name, "ms", cpu);
        figures.extend(MEASURE, &runtime.name, "ms", runtime.took);
    }
    Ok(())
}

impl Runtime {
    fn new(name: &str, program: PathBuf) -> Self {
        Self { name: name.to_owned(), program, legacy: None, took: Vec::new(), cpu: Duration::ZERO }
    }
}

impl Place {
    pub fn new(programs: &Programs, under: &Path) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("berth-bench-oci-").tempdir_in(under);
        let directory = directory.context("make a directory")?;
        let state = Tmpfs::mount(directory.path().join(STATE))?;
        for below in ["bin", "rootfs/bin", "rootfs/proc", "rootfs/dev"] {
            fs::create_dir_all(directory.path().join(below)).context("make a bundle")?;
        }
        let copies = [
            ("berth-oci", "bin/berth-oci"),
            ("berth-shim", "bin/berth-shim"),
            ("fixture", "rootfs/bin/true"),
        ];
        for (name, to) in copies {
            let from = programs.path(name)?;
            fs::copy(from, directory.path().join(to)).with_context(|| format!("copy {}", from.display()))?;
        }
        Ok(Self { state, directory })
    }

    /// Brings one container through its life.
    fn one(&self, runtime: &Runtime) -> Result<()> {
        let id = format!("berth-bench-{}-{}", std::process::id(), runtime.name);
        let text = serde_json::to_vec(&config(&id)).context("write config.json")?;
        fs::write(self.directory.path().join("config.json"), text).context("write config.json")?;
        let lived = self.life(runtime, &id);
        if lived.is_err() {
            process::succeeds(&mut self.command(runtime, &["delete", "--force", &id]));
        }
        lived
    }

    fn life(&self, runtime: &Runtime, id: &str) -> Result<()> {
        let pid_file = self.directory.path().join("pid");
        let path = pid_file.to_str().context("a path that is no text")?;
        let bundle = self.directory.path().to_str().context("a path that is no text")?;
        self.run(runtime, &["create", "--bundle", bundle, "--pid-file", path, id])?;
        let pid = fs::read_to_string(&pid_file).context("read the pid file")?;
        let pid = pid.trim().parse().ok().and_then(Pid::from_raw).context("no pid in the pid file")?;
        self.run(runtime, &["start", id])?;
        let ended = waitpid(Some(pid), WaitOptions::empty()).context("wait for init")?;
        if ended.and_then(|(_, status)| status.exit_status()) != Some(0) {
            bail!("{}: the container did not end with 0", runtime.name);
        }
        self.run(runtime, &["delete", id])
    }

    fn run(&self, runtime: &Runtime, words: &[&str]) -> Result<()> {
        process::run(&mut self.command(runtime, words))
    }

    fn command(&self, runtime: &Runtime, words: &[&str]) -> Command {
        let mut command = legacy::command(runtime.legacy.as_ref(), &runtime.program);
        command.arg("--root").arg(self.state.path().join(&runtime.name)).args(words);
        command.current_dir(self.directory.path()).stdin(Stdio::null());
        command
    }
}

/// A container as people's are: namespaces of its own, a few mounts, masked paths, limits.
fn config(id: &str) -> Value {
    let capabilities = json!(["CAP_KILL", "CAP_CHOWN", "CAP_NET_BIND_SERVICE"]);
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0}, "args": ["/bin/true"], "env": ["PATH=/bin"], "cwd": "/", "noNewPrivileges": true,
            "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
        },
        "root": {"path": "rootfs"},
        "hostname": "bench",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
                "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "noexec", "nodev"]},
        ],
        "linux": {
            "cgroupsPath": format!("/{id}"),
            "resources": {"memory": {"limit": 67_108_864}, "pids": {"limit": 32}},
            "namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "network"}],
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys"],
        },
    })
}

/// What our children that we have waited for, and theirs, have used: `proc_pid_stat(5)`, fields 16 and 17.
pub fn children_cpu() -> Result<Duration> {
    let stat = fs::read_to_string("/proc/self/stat").context("read our own times")?;
    let ticks = ticks(&stat).context("read our own times")?;
    let rate = rustix::param::clock_ticks_per_second().max(1);
    Ok(Duration::from_secs_f64(ticks as f64 / rate as f64))
}

fn ticks(stat: &str) -> Option<u64> {
    // The second field is the program's name and may hold anything.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    Some(fields.get(13)?.parse::<u64>().ok()? + fields.get(14)?.parse::<u64>().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_children_are_the_16th_and_17th_field() {
        assert_eq!(ticks("7 (a) b) S 4 5 6 7 8 9 10 11 12 13 14 15 160 1700 18 19"), Some(1860));
        assert_eq!(ticks("7 (a"), None);
    }
}
