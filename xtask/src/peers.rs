//! Other runtimes to measure beside Berth, each with a daemon of this run alone: containerd with runc or crun, CRI-O.
//!
//! ```text
//!   programs    where their programs are: a directory that is given, what was built before, PATH
//!   containerd  \  what a daemon is started with      <temporary>/bin  copies: a process of ours is known by its path
//!   crio        /                                               /root  /state  /sock  /log
//! ```
//! Their pods get a network by CNI's plugins; images come from this run's registry.

mod containerd;
mod crio;
pub mod legacy;
mod programs;

use std::{
    ffi::OsString,
    fs,
    os::unix::{net::UnixStream, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

pub use programs::{Missing, Programs};

use crate::{
    cni, interrupt,
    leftovers::{self, Names, STATE},
    meter, process, subnet,
    tmpfs::Tmpfs,
};

/// In this run's registry: what holds a pod's namespaces where a runtime needs a process for that.
pub const PAUSE: &str = "pause:bench";

const STARTS_WITHIN: Duration = Duration::from_secs(30);
const STOPS_WITHIN: Duration = Duration::from_secs(20);
const STEP: Duration = Duration::from_millis(20);
static NUMBER: AtomicU32 = AtomicU32::new(0);

/// What a peer is: a daemon and the OCI runtime under it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    Containerd(&'static str),
    Crio(&'static str),
}

/// What all of them have in common in a run.
#[derive(Debug, Clone, Copy)]
pub struct Wish<'a> {
    pub programs: &'a Programs,
    pub plugins: &'a Path,
    /// HOST:PORT of this run's registry.
    pub registry: &'a str,
    /// Where its directory is made.
    pub under: &'a Path,
}

/// How a daemon is started.
#[derive(Debug)]
struct Start {
    program: &'static str,
    arguments: Vec<OsString>,
    environment: Vec<(&'static str, PathBuf)>,
    /// Of its directory's bin: what stays beside each container.
    monitors: Vec<&'static str>,
}

/// A daemon of this run alone.
#[derive(Debug)]
pub struct Peer {
    names: Names,
    start: Start,
    legacy: Option<legacy::Namespace>,
    daemon: Option<Child>,
    _state: Tmpfs,
    _directory: TempDir,
}

/// Every peer that could be, whether it is here or not.
pub const KINDS: [Kind; 4] =
    [Kind::Containerd("runc"), Kind::Containerd("crun"), Kind::Crio("crun"), Kind::Crio("runc")];

impl Kind {
    pub fn name(&self) -> String {
        match self {
            Self::Containerd(runtime) => format!("containerd+{runtime}"),
            Self::Crio(runtime) => format!("cri-o+{runtime}"),
        }
    }

    fn runtime(&self) -> &'static str {
        match self {
            Self::Containerd(runtime) | Self::Crio(runtime) => runtime,
        }
    }

    /// The programs that it takes, from the daemon down.
    pub fn programs(&self) -> Vec<&'static str> {
        match self {
            Self::Containerd(runtime) => vec!["containerd", "containerd-shim-runc-v2", runtime],
            Self::Crio(runtime) => vec!["crio", "pinns", "conmon", runtime],
        }
    }
}

impl Peer {
    /// Starts one and waits until it takes connections.
    ///
    /// # Errors
    /// A program is missing; what its log says.
    pub fn start(kind: &Kind, wish: &Wish) -> Result<Self> {
        // A short one: CRI-O puts sockets below it whose paths hold an id, and a path has 107 bytes.
        let directory = tempfile::Builder::new().prefix("p-").tempdir_in(wish.under);
        let directory = directory.context("make a temporary directory")?;
        let place = directory.path().canonicalize().context("find the temporary directory")?;
        fs::create_dir(place.join("bin")).context("make a directory")?;
        for name in kind.programs() {
            let from = wish.programs.find(name).with_context(|| format!("no {name}"))?;
            let to = place.join("bin").join(name);
            fs::copy(&from, &to).with_context(|| format!("copy {name} to {}", to.display()))?;
        }
        let (pid, number) = (std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let names = Names {
            directory: place.clone(),
            bridge: format!("brp{pid:x}{number:x}"),
            table: format!("berth_peer_{pid:x}_{number:x}"),
            cgroup_parent: format!("/berth-peer-{pid:x}-{number:x}"),
        };
        cni::write(&names, &subnet::free()?)?;
        // Before what has a view of the mounts of its own.
        let state = Tmpfs::mount(place.join(STATE))?;
        let start = match kind {
            Kind::Containerd(runtime) => containerd::write(&place, runtime, wish)?,
            Kind::Crio(runtime) => crio::write(&place, runtime, wish)?,
        };
        let legacy = legacy::Namespace::for_runtime(kind.runtime(), &place)?;
        // From here on Drop cleans up.
        let mut peer = Self { names, start, legacy, daemon: None, _state: state, _directory: directory };
        peer.launch()?;
        peer.wait_ready()?;
        Ok(peer)
    }

    pub fn address(&self) -> String {
        format!("unix://{}", self.path("sock").display())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.names.directory.join(name)
    }

    /// The cgroup that all of it is below.
    pub fn cgroup(&self) -> &str {
        &self.names.cgroup_parent
    }

    pub fn pid(&self) -> Option<Pid> {
        self.daemon.as_ref().map(Pid::from_child)
    }

    /// The programs that stay beside each container.
    pub fn monitors(&self) -> Vec<PathBuf> {
        self.start.monitors.iter().map(|name| self.path("bin").join(name)).collect()
    }

    /// SIGKILL; what runs goes on.
    pub fn kill(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            // Not waited for yet; gone meanwhile is as well.
            daemon.kill().ok();
            daemon.wait().ok();
        }
    }

    /// Starts the daemon and does not wait.
    pub fn launch(&mut self) -> Result<()> {
        let log =
            fs::File::options().create(true).append(true).open(self.path("log")).context("make a log")?;
        let bin = self.path("bin");
        let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap_or_default());
        let program = bin.join(self.start.program);
        let mut words: Vec<OsString> =
            self.legacy.iter().flat_map(|legacy| legacy.words()).map(OsString::from).collect();
        words.push(program.into());
        let daemon = meter::command(&self.names.cgroup_parent, Path::new(&words[0]))
            .args(&words[1..])
            .args(&self.start.arguments)
            .env("PATH", path)
            .envs(self.start.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("share the log")?)
            .stderr(log)
            // ^C is ours: the daemon is still needed to take the pods down.
            .process_group(0)
            .spawn()
            .with_context(|| format!("start {}", self.start.program))?;
        self.daemon = Some(daemon);
        Ok(())
    }

    /// The end of the daemon's log.
    pub fn log(&self) -> String {
        let log = fs::read_to_string(self.path("log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(12)..].join("\n")
    }

    fn wait_ready(&mut self) -> Result<()> {
        let end = Instant::now() + STARTS_WITHIN;
        while UnixStream::connect(self.path("sock")).is_err() {
            interrupt::check()?;
            let ended = match self.daemon.as_mut() {
                Some(daemon) => daemon.try_wait().context("look after the daemon")?,
                None => bail!("{} was not started", self.start.program),
            };
            if let Some(status) = ended {
                bail!("{} ended before it was ready, {status}:\n{}", self.start.program, self.log());
            }
            if Instant::now() > end {
                bail!(
                    "{} was not ready within {} s:\n{}",
                    self.start.program,
                    STARTS_WITHIN.as_secs(),
                    self.log()
                );
            }
            std::thread::sleep(STEP);
        }
        Ok(())
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            // Not waited for yet, so the id is still its own.
            kill_process(Pid::from_child(&daemon), Signal::TERM).ok();
            let end = Instant::now() + STOPS_WITHIN;
            while matches!(daemon.try_wait(), Ok(None)) && Instant::now() < end {
                std::thread::sleep(STEP);
            }
            daemon.kill().ok();
            daemon.wait().ok();
        }
        // A peer's way of ending is not what is measured, and what it leaves is told only where it stays.
        let left = leftovers::remove(&self.names);
        let stays = |line: &&String| !line.contains("was still");
        left.iter().filter(stays).for_each(|line| eprintln!("xtask: {}: {line}", self.start.program));
        for name in namespaces_of(&self.names.directory) {
            if let Err(error) = process::output(Command::new("ip").args(["netns", "delete", &name])) {
                eprintln!("xtask: {}: {error:#}", self.start.program);
            }
        }
    }
}

/// Network namespaces that CNI's cache of a peer names and that are still there: those of pods it could not remove.
fn namespaces_of(directory: &Path) -> Vec<String> {
    let results = fs::read_dir(directory.join("cni/results")).into_iter().flatten().flatten();
    let named = results.filter_map(|entry| {
        let text = fs::read_to_string(entry.path()).ok()?;
        let cached: serde_json::Value = serde_json::from_str(&text).ok()?;
        let path = PathBuf::from(cached["netns"].as_str()?);
        path.is_file().then(|| path.file_name()?.to_str().map(str::to_owned)).flatten()
    });
    named.collect()
}
