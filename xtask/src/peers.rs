//! Other runtimes to measure beside Berth: a private containerd with the runc or crun that is in a directory.
//!
//! Its pods are on the host's network, as Berth's are, or in one of CNI's plugins, as Berth's are then.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use berth_fixtures::{Compression, Layout, fixture_image};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::{
    cni, demo, interrupt,
    leftovers::{self, Names},
    process, subnet,
};

const PAUSE_IMAGE: &str = "localhost/pause:demo";
const STARTS_WITHIN: Duration = Duration::from_secs(30);
const STEP: Duration = Duration::from_millis(50);

/// A containerd of this run alone.
#[derive(Debug)]
pub struct Peer {
    name: String,
    names: Names,
    daemon: Child,
    _directory: TempDir,
}

/// Starts one containerd for each OCI runtime that is there; says what is not.
pub fn start(directory: Option<&Path>, fixture: &Path, plugins: Option<&Path>) -> Result<Vec<Peer>> {
    let Some(directory) = directory else {
        eprintln!("xtask: no peers to compare with: --peers DIR names where containerd, runc and crun are");
        return Ok(Vec::new());
    };
    let directory = directory.canonicalize().with_context(|| format!("find {}", directory.display()))?;
    for needed in ["containerd", "containerd-shim-runc-v2", "ctr"] {
        if !directory.join(needed).is_file() {
            eprintln!("xtask: no peers to compare with: no {needed} in {}", directory.display());
            return Ok(Vec::new());
        }
    }
    let mut peers = Vec::new();
    for runtime in ["runc", "crun"] {
        match directory.join(runtime).is_file() {
            true => peers.push(Peer::start(&directory, runtime, fixture, plugins)?),
            false => eprintln!("xtask: no {runtime} in {}: left out", directory.display()),
        }
    }
    Ok(peers)
}

impl Peer {
    fn start(programs: &Path, runtime: &str, fixture: &Path, plugins: Option<&Path>) -> Result<Self> {
        let directory =
            tempfile::Builder::new().prefix("berth-peer-").tempdir().context("make a temporary directory")?;
        let place = directory.path().canonicalize().context("find the temporary directory")?;
        let pid = std::process::id();
        fs::create_dir(place.join("bin")).context("make a directory")?;
        for name in ["containerd", "containerd-shim-runc-v2", "ctr", runtime] {
            let to = place.join("bin").join(name);
            fs::copy(programs.join(name), &to).with_context(|| format!("copy {name} to {}", to.display()))?;
        }
        let names = Names {
            directory: place.clone(),
            bridge: format!("brp{}{pid:x}", &runtime[..1]),
            table: format!("berth_peer_{runtime}_{pid:x}"),
            cgroup_parent: format!("/berth-peer-{runtime}-{pid:x}"),
        };
        if plugins.is_some() {
            cni::write(&names, &subnet::free()?)?;
        }
        fs::write(place.join("config.toml"), configuration(&place, runtime, plugins))
            .context("write a configuration")?;
        let log = fs::File::create(place.join("log")).context("make a log")?;
        let path = format!("{}:{}", place.join("bin").display(), std::env::var("PATH").unwrap_or_default());
        let daemon = Command::new(place.join("bin/containerd"))
            .arg("--config")
            .arg(place.join("config.toml"))
            .env("PATH", path)
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("share the log")?)
            .stderr(log)
            .spawn()
            .context("start containerd")?;
        let mut peer = Self { name: format!("containerd+{runtime}"), names, daemon, _directory: directory };
        peer.import(fixture)?;
        Ok(peer)
    }

    /// What the client is told: name, socket, shim, cgroup.
    pub fn runtime(&self) -> String {
        let place = &self.names.directory;
        let shim = place.join("bin/containerd-shim-runc-v2");
        format!("{}=unix://{}={}", self.name, place.join("sock").display(), shim.display())
    }

    fn import(&mut self, fixture: &Path) -> Result<()> {
        let pause = fixture_image(fixture)?.cmd(&["/bin/fixture", "sleep", "86400"]);
        let layout = Layout::of(demo::IMAGE, &fixture_image(fixture)?)?.image(PAUSE_IMAGE, &pause)?;
        let archive = self.names.directory.join("images.tar");
        layout.write_tar(&archive, Compression::None).context("write images")?;
        let ctr = |words: &[&str]| {
            let mut command = Command::new(self.names.directory.join("bin/ctr"));
            command
                .arg("--address")
                .arg(self.names.directory.join("sock"))
                .args(["-n", "k8s.io"])
                .args(words);
            command
        };
        let end = Instant::now() + STARTS_WITHIN;
        while !process::succeeds(&mut ctr(&["version"])) {
            interrupt::check()?;
            if Instant::now() > end {
                let log = fs::read_to_string(self.names.directory.join("log")).unwrap_or_default();
                bail!("containerd was not ready within {} s:\n{log}", STARTS_WITHIN.as_secs());
            }
            std::thread::sleep(STEP);
        }
        process::output(ctr(&["images", "import"]).arg(&archive))?;
        Ok(())
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        if let Some(pid) = i32::try_from(self.daemon.id()).ok().and_then(Pid::from_raw) {
            // Not waited for yet, so the id is still its own.
            kill_process(pid, Signal::TERM).ok();
        }
        // A peer's way of ending is not what is measured.
        self.daemon.wait().ok();
        leftovers::remove(&self.names).iter().for_each(|line| eprintln!("xtask: {}: {line}", self.name));
    }
}

/// The score of a pod's own process is kept where this machine has no CAP_SYS_RESOURCE to lower it: runc would fail.
fn configuration(place: &Path, runtime: &str, plugins: Option<&Path>) -> String {
    let path = |name: &str| PathBuf::from(place).join(name).display().to_string();
    let (root, state, socket) = (path("root"), path("state"), path("sock"));
    let binary = path(&format!("bin/{runtime}"));
    let network = plugins.map_or(String::new(), |plugins| {
        let (plugins, conf_dir) = (plugins.display().to_string(), path(cni::CONF_DIR));
        format!(
            "[plugins.\"io.containerd.grpc.v1.cri\".cni]\nbin_dir = {plugins:?}\nconf_dir = {conf_dir:?}\n"
        )
    });
    format!(
        r#"version = 2
root = {root:?}
state = {state:?}
disabled_plugins = ["io.containerd.internal.v1.opt"]
[grpc]
address = {socket:?}
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{PAUSE_IMAGE}"
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
BinaryName = {binary:?}
{network}"#
    )
}
