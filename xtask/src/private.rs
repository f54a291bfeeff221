//! A `berthd` of this run alone: its directory, bridge, table and cgroups are nobody else's.
//!
//! ```text
//!   <temporary>/bin       the programs, so that a process of ours is known by its path
//!              /root      images, records          /state   sockets, pins
//!              /berthd.toml   /berthd.log   /berth.sock   /ready
//! ```
//! When it is dropped the daemon is stopped and whatever is left is removed.

use std::{
    fs,
    os::unix::{net::UnixDatagram, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::{
    cargo::Programs,
    cni, interrupt,
    leftovers::{self, Names},
    subnet,
};

const STARTS_WITHIN: Duration = Duration::from_secs(30);
const STOPS_WITHIN: Duration = Duration::from_secs(15);
const PAUSE: Duration = Duration::from_millis(50);

/// The daemon, running.
#[derive(Debug)]
pub struct Private {
    names: Names,
    daemon: Option<Child>,
    // Last: goes after everything in it has been let go.
    _directory: TempDir,
}

impl Private {
    /// Starts it and waits until it is ready. `purpose` names its directory and cgroups; its pods' networks are the
    /// plugins' where there are some, else its own bridge's.
    pub fn start(programs: &Programs, purpose: &str, plugins: Option<&Path>) -> Result<Self> {
        let prefix = format!("berth-{purpose}-");
        let directory =
            tempfile::Builder::new().prefix(&prefix).tempdir().context("make a temporary directory")?;
        let pid = std::process::id();
        let names = Names {
            directory: directory.path().canonicalize().context("find the temporary directory")?,
            bridge: format!("brd{pid:x}"),
            table: format!("berth_{purpose}_{pid:x}"),
            cgroup_parent: format!("/berth-{purpose}-{pid:x}"),
        };
        // From here on Drop cleans up.
        let mut private = Self { names, daemon: None, _directory: directory };
        private.write(programs, plugins)?;
        private.spawn()?;
        Ok(private)
    }

    /// What clients connect to: `unix:///…`.
    pub fn address(&self) -> String {
        format!("unix://{}", self.path("berth.sock").display())
    }

    /// A path in the private directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.names.directory.join(name)
    }

    /// The end of the daemon's log.
    pub fn log(&self) -> String {
        let log = fs::read_to_string(self.path("berthd.log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }

    /// Stops the daemon, removes what is left, and returns, a line each, what should not have been left.
    pub fn stop(mut self) -> Vec<String> {
        self.take_down()
    }

    fn write(&self, programs: &Programs, plugins: Option<&Path>) -> Result<()> {
        let place = self.path("bin");
        fs::create_dir(&place).with_context(|| format!("make {}", place.display()))?;
        for name in ["berthd", "berth", "berth-shim"] {
            let (from, to) = (programs.path(name)?, place.join(name));
            fs::copy(from, &to).with_context(|| format!("copy {} to {}", from.display(), to.display()))?;
        }
        let file = self.path("berthd.toml");
        fs::write(&file, self.configuration(plugins)?).with_context(|| format!("write {}", file.display()))
    }

    fn configuration(&self, plugins: Option<&Path>) -> Result<String> {
        let Names { bridge, table, cgroup_parent, .. } = &self.names;
        let quoted = |path: &Path| serde_json::to_string(path).context("quote a path");
        let (root, state) = (quoted(&self.path("root"))?, quoted(&self.path("state"))?);
        // What the machine is configured for is not tried here.
        let (subnet, subnet6) = (subnet::free()?, subnet::free6()?);
        let network = match plugins {
            None => format!("conf_dir = {}", quoted(&self.path(cni::CONF_DIR))?),
            Some(plugins) => {
                cni::write(&self.names, &subnet)?;
                format!(
                    "conf_dir = {}\nbin_dirs = [{}]\ncache_dir = {}",
                    quoted(&self.path(cni::CONF_DIR))?,
                    quoted(plugins)?,
                    quoted(&self.path("cni"))?
                )
            }
        };
        Ok(format!(
            "[daemon]\nroot = {root}\nstate = {state}\nlisten = {:?}\ncgroup_parent = {cgroup_parent:?}\n\n\
             [network]\n{network}\n\n\
             [network.bridge]\nname = {bridge:?}\nsubnet = {subnet:?}\nsubnet6 = {subnet6:?}\ntable = {table:?}\n",
            self.address()
        ))
    }

    fn spawn(&mut self) -> Result<()> {
        let ready = self.path("ready");
        let socket = UnixDatagram::bind(&ready).with_context(|| format!("bind {}", ready.display()))?;
        socket.set_read_timeout(Some(PAUSE)).context("set a timeout")?;
        let log = self.path("berthd.log");
        let log = fs::File::create(&log).with_context(|| format!("make {}", log.display()))?;
        let daemon = Command::new(self.path("bin/berthd"))
            .arg("--config")
            .arg(self.path("berthd.toml"))
            .env("NOTIFY_SOCKET", &ready)
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("share the log")?)
            .stderr(log)
            // ^C is ours: the daemon is still needed to take the pods down.
            .process_group(0)
            .spawn()
            .context("start berthd")?;
        let daemon = self.daemon.insert(daemon);
        let end = Instant::now() + STARTS_WITHIN;
        let mut said = [0; 64];
        loop {
            if socket.recv(&mut said).is_ok_and(|length| said[..length].starts_with(b"READY=1")) {
                return Ok(());
            }
            interrupt::check()?;
            if let Some(status) = daemon.try_wait().context("look after berthd")? {
                bail!("berthd ended before it was ready, {status}:\n{}", self.log());
            }
            if Instant::now() > end {
                bail!("berthd was not ready within {} s:\n{}", STARTS_WITHIN.as_secs(), self.log());
            }
        }
    }

    fn take_down(&mut self) -> Vec<String> {
        let Some(mut daemon) = self.daemon.take() else { return Vec::new() };
        let mut told = end(&mut daemon);
        told.extend(leftovers::remove(&self.names));
        told
    }
}

impl Drop for Private {
    fn drop(&mut self) {
        self.take_down().iter().for_each(|line| eprintln!("xtask: cleaning up: {line}"));
    }
}

/// SIGTERM, and SIGKILL for one that does not listen.
fn end(daemon: &mut Child) -> Vec<String> {
    let ended = |daemon: &mut Child| !matches!(daemon.try_wait(), Ok(None));
    if ended(daemon) {
        return vec!["berthd had ended before it was told to".into()];
    }
    if let Some(pid) = i32::try_from(daemon.id()).ok().and_then(Pid::from_raw) {
        // Not waited for yet, so the id is still its own.
        kill_process(pid, Signal::TERM).ok();
    }
    let end = Instant::now() + STOPS_WITHIN;
    while !ended(daemon) {
        if Instant::now() > end {
            // Gone meanwhile is as well.
            daemon.kill().ok();
            daemon.wait().ok();
            return vec![format!("berthd did not stop within {} s and was killed", STOPS_WITHIN.as_secs())];
        }
        std::thread::sleep(PAUSE);
    }
    Vec::new()
}
