//! The daemon's configuration: `/etc/berth/berthd.toml`, drop-ins, flags. Unknown keys are errors.

pub mod load;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// All of it. Every key has a default.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Default)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub daemon: Daemon,
    pub registry: Registry,
    pub network: Network,
}

#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct Daemon {
    /// What survives a reboot: images, records, logs.
    pub root: PathBuf,
    /// What doesn't: sockets, pins.
    pub state: PathBuf,
    /// `unix:///path`.
    pub listen: String,
    pub log_level: String,
    /// `text` or `json`.
    pub log_format: String,
    /// The shim's program; empty: `berth-shim` beside berthd.
    pub shim: PathBuf,
    /// Where standalone containers and pods without a cgroup parent go.
    pub cgroup_parent: String,
}

#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct Registry {
    /// What a name without a registry gets: `docker.io/library/`.
    pub short_name_prefix: String,
    /// host[:port] that are spoken to over plain HTTP; loopback always may be.
    pub plain_http: Vec<String>,
    /// PEM files trusted beside the system's.
    pub ca_files: Vec<PathBuf>,
    /// Seconds without a byte before a transfer is given up.
    pub stall_seconds: u32,
}

#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct Network {
    pub bridge: Bridge,
}

#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct Bridge {
    pub name: String,
    /// CIDR.
    pub subnet: String,
    pub mtu: u32,
    /// The nftables table of this daemon.
    pub table: String,
}

impl Default for Daemon {
    fn default() -> Self {
        Self {
            root: "/var/lib/berth".into(),
            state: "/run/berth".into(),
            listen: "unix:///run/berth/berth.sock".into(),
            log_level: "info".into(),
            log_format: "text".into(),
            shim: PathBuf::new(),
            cgroup_parent: "/berth".into(),
        }
    }
}

impl Default for Registry {
    fn default() -> Self {
        Self {
            short_name_prefix: "docker.io/library/".into(),
            plain_http: Vec::new(),
            ca_files: Vec::new(),
            stall_seconds: 30,
        }
    }
}

impl Default for Network {
    fn default() -> Self {
        Self { bridge: Bridge::default() }
    }
}

impl Default for Bridge {
    fn default() -> Self {
        Self { name: "berth0".into(), subnet: "10.88.0.0/16".into(), mtu: 1500, table: "berth".into() }
    }
}
