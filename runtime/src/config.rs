//! The daemon's configuration: `/etc/berth/berthd.toml`, drop-ins, flags. Unknown keys are errors.

pub mod load;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

/// All of it. Every key has a default.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Default)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub daemon: Daemon,
    pub registry: Registry,
    pub network: Network,
    pub streaming: Streaming,
    /// Who makes containers, by the name that a RuntimeClass says; the built-in one is there without.
    pub handlers: BTreeMap<String, Handler>,
}

/// `[handlers.NAME]`.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Handler {
    pub r#type: HandlerKind,
    /// The OCI runtime's program.
    #[serde(default)]
    pub path: PathBuf,
    /// Where the CNI configurations of its pods are, and nowhere else; empty: `network.conf_dir`.
    #[serde(default)]
    pub cni_conf_dir: PathBuf,
    /// Flags that it gets before all others, in each call.
    #[serde(default)]
    pub args: Vec<String>,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum HandlerKind {
    /// Berth itself.
    Builtin,
    /// A program with runc's command line.
    Oci,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum CgroupDriver {
    /// berthd itself, as directories.
    Cgroupfs,
    Systemd,
}

impl CgroupDriver {
    /// As the file says it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Cgroupfs => "cgroupfs",
            Self::Systemd => "systemd",
        }
    }
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
    /// IP and port of the daemon's own metrics; empty: nowhere.
    pub metrics_listen: String,
    pub log_level: String,
    /// `text` or `json`.
    pub log_format: String,
    /// The most of a container's output that goes into its log in a second; 0: all of it.
    pub log_rate_bytes: u64,
    /// What a container's own layer may take, where its file system has project quotas; 0: no limit.
    pub layer_max_bytes: u64,
    /// The shim's program; empty: `berth-shim` beside berthd.
    pub shim: PathBuf,
    /// Who makes cgroups.
    pub cgroup_driver: CgroupDriver,
    /// Where standalone containers and pods without a cgroup parent go. For systemd a slice: `/berth` is `berth.slice`.
    pub cgroup_parent: String,
    /// Where CDI devices are described; a later directory wins over an earlier one.
    pub cdi_dirs: Vec<PathBuf>,
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
    /// Trees of `hosts.toml` as containerd has them; the first that knows a registry wins.
    pub config_path: Vec<PathBuf>,
    /// Docker's `config.json`; empty: what `REGISTRY_AUTH_FILE` names, if anything.
    pub auth_file: PathBuf,
    /// Seconds after which a transfer that is too slow is given up.
    pub stall_seconds: u32,
    /// What is too slow.
    pub stall_bytes_per_second: u32,
    /// Where images are kept; empty: below `daemon.root`.
    pub root: PathBuf,
    /// Tags of images that are never removed to make room; `*` at the end stands for the rest.
    pub pinned: Vec<String>,
    /// What a layer may unpack to.
    pub layer_max_bytes: u64,
    /// Whether pulled layers' blobs stay when they are unpacked.
    pub keep_blobs: bool,
    /// containers-policy.json(5), read at each pull; empty: every image may be pulled.
    pub policy: PathBuf,
    /// `<namespace>.json` in the place of `policy` for the pods of a namespace.
    pub policy_dir: PathBuf,
    /// Which digests names may stand for; empty: any.
    pub digests: PathBuf,
}

#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct Network {
    /// Where CNI configurations are; none there, or an empty path: the built-in bridge.
    pub conf_dir: PathBuf,
    /// How many of them a pod gets, first by name: eth0, eth1.
    pub networks: u16,
    /// Where plugins are; the first directory that has one wins.
    pub bin_dirs: Vec<PathBuf>,
    /// Where libcni's tools look for results.
    pub cache_dir: PathBuf,
    /// How long each plugin may take.
    pub plugin_seconds: u32,
    /// Where networks that people make without a subnet get theirs, a /24 each.
    pub pool: String,
    /// The same of IPv6, a /64 each; empty: they have none.
    pub pool6: String,
    /// Whom networks that people make ask for names that are none of their own.
    pub resolv_conf: PathBuf,
    pub bridge: Bridge,
}

#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct Bridge {
    pub name: String,
    /// CIDR.
    pub subnet: String,
    /// The same of IPv6; empty: pods have none.
    pub subnet6: String,
    /// 0: that of the link with the node's default route.
    pub mtu: u32,
    /// The nftables table of this daemon.
    pub table: String,
}

#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct Streaming {
    /// IP and port where exec, attach and port-forward of CRI are served; port 0 takes a free one.
    pub address: String,
    /// `off`, `made` (a certificate of the daemon's own) or `files` (the two below).
    pub tls: String,
    /// PEM files: the chain, the server's certificate first, and its key.
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Config {
    /// Where the store of images is.
    pub fn image_root(&self) -> &Path {
        if self.registry.root.as_os_str().is_empty() { &self.daemon.root } else { &self.registry.root }
    }
}

impl Default for Daemon {
    fn default() -> Self {
        Self {
            root: "/var/lib/berth".into(),
            state: "/run/berth".into(),
            listen: "unix:///run/berth/berth.sock".into(),
            metrics_listen: String::new(),
            log_level: "info".into(),
            log_format: "text".into(),
            log_rate_bytes: 0,
            layer_max_bytes: 0,
            shim: PathBuf::new(),
            cgroup_driver: CgroupDriver::Cgroupfs,
            cgroup_parent: "/berth".into(),
            cdi_dirs: vec!["/etc/cdi".into(), "/var/run/cdi".into()],
        }
    }
}

impl Default for Registry {
    fn default() -> Self {
        Self {
            short_name_prefix: "docker.io/library/".into(),
            plain_http: Vec::new(),
            ca_files: Vec::new(),
            config_path: vec!["/etc/berth/certs.d".into()],
            auth_file: PathBuf::new(),
            stall_seconds: 30,
            stall_bytes_per_second: 1024,
            root: PathBuf::new(),
            pinned: Vec::new(),
            layer_max_bytes: 128 << 30,
            keep_blobs: false,
            policy: PathBuf::new(),
            policy_dir: "/etc/berth/policies".into(),
            digests: PathBuf::new(),
        }
    }
}

impl Default for Network {
    fn default() -> Self {
        Self {
            conf_dir: "/etc/cni/net.d".into(),
            networks: 1,
            bin_dirs: vec!["/opt/cni/bin".into(), "/usr/lib/cni".into()],
            cache_dir: "/var/lib/cni".into(),
            plugin_seconds: 60,
            pool: "10.89.0.0/16".into(),
            pool6: "fd0b:e47:89::/48".into(),
            resolv_conf: "/etc/resolv.conf".into(),
            bridge: Bridge::default(),
        }
    }
}

impl Default for Bridge {
    fn default() -> Self {
        Self {
            name: "berth0".into(),
            subnet: "10.88.0.0/16".into(),
            subnet6: "fd0b:e47:88::/64".into(),
            mtu: 0,
            table: "berth".into(),
        }
    }
}

impl Default for Streaming {
    fn default() -> Self {
        Self {
            address: "127.0.0.1:0".into(),
            tls: "off".into(),
            certificate: PathBuf::new(),
            key: PathBuf::new(),
        }
    }
}
