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
    process::{Child, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::{
    cargo::Programs,
    cni, interrupt,
    leftovers::{self, Names, STATE},
    meter, subnet,
    tmpfs::Tmpfs,
};

const STARTS_WITHIN: Duration = Duration::from_secs(30);
const STOPS_WITHIN: Duration = Duration::from_secs(15);
const PAUSE: Duration = Duration::from_millis(50);

/// Told apart from others of this process by it.
static NUMBER: AtomicU32 = AtomicU32::new(0);

/// What it is for and where.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wish<'a> {
    /// Names its directory and cgroups.
    pub purpose: &'a str,
    /// Its pods' networks are these plugins' where there are some, else its own bridge's.
    pub plugins: Option<&'a Path>,
    /// Where its directory is made; else where temporary ones are.
    pub under: Option<&'a Path>,
}

/// The daemon, running.
#[derive(Debug)]
pub struct Private {
    names: Names,
    daemon: Option<Child>,
    ready: Option<UnixDatagram>,
    down: bool,
    // Last: they go after everything in them has been let go.
    _state: Tmpfs,
    _directory: TempDir,
}

impl Private {
    /// Starts it and waits until it is ready.
    pub fn start(programs: &Programs, wish: &Wish) -> Result<Self> {
        let mut directory = tempfile::Builder::new();
        let prefix = format!("berth-{}-", wish.purpose);
        directory.prefix(&prefix);
        let directory = match wish.under {
            Some(under) => directory.tempdir_in(under),
            None => directory.tempdir(),
        };
        let directory = directory.context("make a temporary directory")?;
        let pid = std::process::id();
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let names = Names {
            directory: directory.path().canonicalize().context("find the temporary directory")?,
            bridge: format!("brd{pid:x}{number:x}"),
            table: format!("berth_{}_{pid:x}_{number:x}", wish.purpose.replace('-', "_")),
            cgroup_parent: format!("/berth-{}-{pid:x}-{number:x}", wish.purpose),
        };
        let state = Tmpfs::mount(names.directory.join(STATE))?;
        // From here on Drop cleans up.
        let mut private =
            Self { names, daemon: None, ready: None, down: false, _state: state, _directory: directory };
        private.write(programs, wish.plugins)?;
        private.launch()?;
        private.wait_ready()?;
        Ok(private)
    }

    /// The cgroup that all of it is below.
    pub fn cgroup(&self) -> &str {
        &self.names.cgroup_parent
    }

    /// The daemon's process; None between `kill` and `launch`.
    pub fn pid(&self) -> Option<Pid> {
        self.daemon.as_ref().map(Pid::from_child)
    }

    /// SIGKILL; what runs goes on.
    pub fn kill(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            // Not waited for yet; gone meanwhile is as well.
            daemon.kill().ok();
            daemon.wait().ok();
        }
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
        let (root, state) = (quoted(&self.path("root"))?, quoted(&self.path(STATE))?);
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
            "[daemon]\nroot = {root}\nstate = {state}\nlisten = {:?}\ncgroup_parent = \"{cgroup_parent}/alone\"\n\n\
             [network]\n{network}\n\n\
             [network.bridge]\nname = {bridge:?}\nsubnet = {subnet:?}\nsubnet6 = {subnet6:?}\ntable = {table:?}\n",
            self.address()
        ))
    }

    /// Starts the daemon and does not wait.
    pub fn launch(&mut self) -> Result<()> {
        let ready = self.path("ready");
        // A predecessor's.
        fs::remove_file(&ready).ok();
        let socket = UnixDatagram::bind(&ready).with_context(|| format!("bind {}", ready.display()))?;
        socket.set_read_timeout(Some(PAUSE)).context("set a timeout")?;
        let log = self.path("berthd.log");
        let log = fs::File::options().create(true).append(true).open(&log);
        let log = log.with_context(|| format!("open {}", self.path("berthd.log").display()))?;
        let daemon = meter::command(&self.names.cgroup_parent, &self.path("bin/berthd"))
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
        (self.daemon, self.ready) = (Some(daemon), Some(socket));
        Ok(())
    }

    fn wait_ready(&mut self) -> Result<()> {
        let end = Instant::now() + STARTS_WITHIN;
        let mut said = [0; 64];
        loop {
            let (Some(daemon), Some(socket)) = (self.daemon.as_mut(), self.ready.as_ref()) else {
                bail!("berthd was not started");
            };
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
        if std::mem::replace(&mut self.down, true) {
            return Vec::new();
        }
        let mut told = self.daemon.take().map_or(Vec::new(), |mut daemon| end(&mut daemon));
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
