//! Who is measured: Berth by itself or with CNI's plugins, or a peer; each a daemon of this run with its own names.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::process::Pid;

use crate::{
    cargo::Programs,
    meter,
    peers::{self, Kind, Peer},
    private::{Private, Wish},
};

/// One runtime, running.
#[derive(Debug)]
pub struct Contender {
    pub name: String,
    daemon: Daemon,
}

#[derive(Debug)]
enum Daemon {
    Berth(Private),
    Peer(Peer),
}

/// Which one it is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Who {
    /// With its own bridge.
    Berth,
    BerthOnCni,
    Peer(Kind),
}

/// What all of them are started with.
#[derive(Debug)]
pub struct Bed<'a> {
    pub programs: &'a Programs,
    pub peers: &'a peers::Programs,
    /// None: neither peers nor Berth on them.
    pub plugins: Option<&'a Path>,
    /// HOST:PORT of this run's registry.
    pub registry: String,
}

impl Who {
    pub fn name(&self) -> String {
        match self {
            Self::Berth => OURS.to_owned(),
            Self::BerthOnCni => "berth+cni".to_owned(),
            Self::Peer(kind) => kind.name(),
        }
    }
}

/// The runtime that goals are about.
pub const OURS: &str = "berth";

/// Whether a runtime by this name is no peer.
pub fn is_ours(name: &str) -> bool {
    name.starts_with(OURS)
}

/// Those that differ in more than the OCI runtime under the daemon, by their names: what no OCI runtime has a part in is
/// measured with the first of each.
pub fn of_each_daemon<T>(all: &[T], name: impl Fn(&T) -> String) -> Vec<&T> {
    let mut seen: Vec<String> = Vec::new();
    let of = |one: &T| name(one).split('+').next().unwrap_or_default().to_owned();
    let first = |one: &&T| {
        let daemon = of(one);
        let new = !seen.contains(&daemon);
        seen.push(daemon);
        new
    };
    all.iter().filter(first).collect()
}

impl Contender {
    /// Starts one below a directory.
    pub fn start(who: &Who, bed: &Bed, under: &Path) -> Result<Self> {
        let plugins = || bed.plugins.context("there are no CNI plugins");
        let daemon = match who {
            Who::Berth => Daemon::Berth(Private::start(
                bed.programs,
                &Wish { purpose: "bench", plugins: None, under: Some(under) },
            )?),
            Who::BerthOnCni => {
                let wish = Wish { purpose: "bench-cni", plugins: Some(plugins()?), under: Some(under) };
                Daemon::Berth(Private::start(bed.programs, &wish)?)
            }
            Who::Peer(kind) => {
                let wish =
                    peers::Wish { programs: bed.peers, plugins: plugins()?, registry: &bed.registry, under };
                Daemon::Peer(Peer::start(kind, &wish)?)
            }
        };
        Ok(Self { name: who.name(), daemon })
    }

    pub fn address(&self) -> String {
        match &self.daemon {
            Daemon::Berth(private) => private.address(),
            Daemon::Peer(peer) => peer.address(),
        }
    }

    /// A path in its directory.
    pub fn path(&self, name: &str) -> PathBuf {
        match &self.daemon {
            Daemon::Berth(private) => private.path(name),
            Daemon::Peer(peer) => peer.path(name),
        }
    }

    /// Where its pods are to be: below what is counted as its own.
    pub fn pods(&self) -> String {
        format!("{}/pods", self.cgroup())
    }

    /// Processor time of all of it: daemon, monitors, helpers, containers. In milliseconds.
    pub fn cpu_ms(&self) -> f64 {
        meter::cpu(self.cgroup()).map_or(f64::NAN, |used| used.as_secs_f64() * 1000.0)
    }

    pub fn pid(&self) -> Option<Pid> {
        match &self.daemon {
            Daemon::Berth(private) => private.pid(),
            Daemon::Peer(peer) => peer.pid(),
        }
    }

    /// The programs that stay beside each container.
    pub fn monitors(&self) -> Vec<PathBuf> {
        match &self.daemon {
            Daemon::Berth(private) => vec![private.path("bin/berth-shim")],
            Daemon::Peer(peer) => peer.monitors(),
        }
    }

    /// SIGKILL; what runs goes on.
    pub fn kill(&mut self) {
        match &mut self.daemon {
            Daemon::Berth(private) => private.kill(),
            Daemon::Peer(peer) => peer.kill(),
        }
    }

    /// Starts the daemon and does not wait.
    pub fn launch(&mut self) -> Result<()> {
        match &mut self.daemon {
            Daemon::Berth(private) => private.launch(),
            Daemon::Peer(peer) => peer.launch(),
        }
    }

    pub fn log(&self) -> String {
        match &self.daemon {
            Daemon::Berth(private) => private.log(),
            Daemon::Peer(peer) => peer.log(),
        }
    }

    /// What all of it is counted by.
    pub fn cgroup(&self) -> &str {
        match &self.daemon {
            Daemon::Berth(private) => private.cgroup(),
            Daemon::Peer(peer) => peer.cgroup(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_of_each_daemon_is_left() {
        let all = ["berth", "berth+cni", "containerd+runc", "containerd+crun", "cri-o+crun"];
        let left = of_each_daemon(&all, |name| (*name).to_owned());
        assert_eq!(left, [&"berth", &"containerd+runc", &"cri-o+crun"]);
    }
}
