//! THE COMPILER: what is asked for and what the image says -> OCI runtime spec -> `launch::ContainerPlan`. Pure: no
//! files, no clock, no network. Golden files in `golden/`.
//!
//! ```text
//! ContainerConfig, ImageConfiguration, Options ── spec ──> Spec ── compile ──> ContainerPlan
//! a bundle's config.json ── bundle ────────────────────────────────────────> ContainerPlan
//! PodSandboxConfig ─────────────────────────────────── sandbox_plan ────────> SandboxPlan
//! Failure (of a step) ── explain ──> Error
//! ```

mod bundle;
mod capabilities;
mod cdi;
mod compile;
mod devices;
mod document;
mod exec;
mod explain;
#[cfg(test)]
mod golden;
mod health;
mod kept;
mod labels;
mod mounts;
mod outside;
mod sandbox;
mod seccomp;
mod spec;
mod syscalls;
mod user;
mod users;

pub use self::{
    bundle::{
        Asker, Bundle, Keyring, SECCOMP_FLAGS, cpus as bundle_cpus, late_hooks, listener,
        parse as parse_bundle, parse_process, plan as bundle_plan, process as bundle_process, rootfs_path,
        state_text,
    },
    capabilities::names as capability_names,
    cdi::{Edits, Node as CdiNode, Text as CdiText, asked as cdi_devices, resolve as resolve_cdi},
    compile::compile,
    document::Document,
    exec::exec_process,
    explain::explain,
    health::{health, health_plan},
    labels::{Apparmor, DEFAULT_PROFILE, apparmor},
    outside::{by_runtime, exec_by_runtime},
    sandbox::modes,
    sandbox::sandbox_plan,
    seccomp::default_profile,
    spec::spec,
    syscalls::told as system_call,
    user::parse_signal,
    users::{Users, of_pod as users_of_pod},
};

use std::{collections::BTreeMap, path::PathBuf};

use berth_cri::v1 as cri;
use berth_launch::v1 as launch;
use oci_spec::image::ImageConfiguration;

/// All that a container's spec is made from.
#[derive(Debug)]
pub struct Request<'a> {
    pub config: &'a cri::ContainerConfig,
    pub sandbox: &'a cri::PodSandboxConfig,
    pub image: &'a ImageConfiguration,
    pub host: &'a Host,
    pub place: &'a Place,
    pub options: &'a Options,
}

/// What of the host matters to a spec, gathered once by the caller.
#[derive(Debug, Clone, Default)]
pub struct Host {
    pub cgroup_v2: bool,
    /// Whether a controller counts huge pages, and so can limit them.
    pub counts_huge_pages: bool,
    /// Capabilities this kernel knows: 0..=last.
    pub last_capability: u32,
    /// SELinux is on.
    pub selinux: bool,
    /// The lowest oom_score_adj that this daemon may give; none: any.
    pub lowest_oom_score: Option<i32>,
    /// The capabilities that this daemon has, and so can give, as a mask; none: any.
    pub held_capabilities: Option<u64>,
    /// Host devices, for privileged containers: path, type letter (c, b), major, minor, mode.
    pub devices: Vec<(PathBuf, char, u32, u32, u32)>,
}

/// Where this container's things are.
#[derive(Debug, Clone, Default)]
pub struct Place {
    pub container_id: String,
    pub dir: PathBuf,
    pub record_dir: PathBuf,
    pub lowers: Vec<PathBuf>,
    pub upper: PathBuf,
    pub work: PathBuf,
    pub volatile: bool,
    /// Pinned namespaces of the pod: net, ipc, uts, pid (absent: host's or own).
    pub pod_net: Option<PathBuf>,
    pub pod_ipc: Option<PathBuf>,
    pub pod_uts: Option<PathBuf>,
    pub pod_pid: Option<PathBuf>,
    /// The pod's user namespace, where it has one: the container's too.
    pub pod_user: Option<PathBuf>,
    pub shm: Option<PathBuf>,
    pub resolv_conf: Option<PathBuf>,
    pub hosts: Option<PathBuf>,
    pub hostname_file: Option<PathBuf>,
    /// As seen from the cgroup roots.
    pub cgroup_path: String,
    pub cgroup: launch::Cgroup,
    /// Absolute path of the log, where there is one.
    pub log: Option<PathBuf>,
    /// Text of a Localhost seccomp profile, read by the caller.
    pub seccomp_profile: Option<String>,
    /// The layers of each mount that is an image, topmost first, by its position among the mounts that are asked for.
    pub image_volumes: BTreeMap<usize, Vec<PathBuf>>,
    /// The AppArmor profile that is to be set; empty: none.
    pub apparmor: String,
    /// What the container's CDI devices change in it.
    pub cdi: Edits,
}

/// What CRI cannot say.
#[derive(Debug, Clone, Default)]
pub struct Options {
    pub restart: launch::Restart,
    pub log_max_bytes: u64,
    pub log_max_files: u32,
    /// What goes into the log in a second; 0: all of it.
    pub log_rate_bytes: u64,
    /// What its own layer may take; 0: no limit.
    pub layer_max_bytes: u64,
    /// docker's --entrypoint: Some("") clears the image's.
    pub entrypoint: Option<String>,
    /// docker's user[:group] string, over CRI's security context.
    pub user: Option<String>,
    /// docker's -v makes a missing host path a directory; so does CRI.
    pub create_bind_sources: bool,
    pub stop_signal: Option<u32>,
    /// The most processes and threads; CRI leaves that to the kubelet's own cgroup.
    pub pids: Option<i64>,
    /// What a person says of health checks; none: nobody runs any, as under a kubelet, which has its own.
    pub health: Option<berth_cri::berth::HealthCheck>,
}

#[derive(Debug, Clone, Default)]
pub struct Exec {
    pub args: Vec<String>,
    /// The container's own environment as bytes, which the spec can't hold; empty: the spec's.
    pub own_env: Vec<Vec<u8>>,
    pub env: Vec<Vec<u8>>,
    /// user[:group]; empty: the container's.
    pub user: String,
    pub cwd: String,
    pub tty: bool,
    pub rows: u32,
    pub columns: u32,
    pub privileged: bool,
}
