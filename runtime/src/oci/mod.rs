//! THE COMPILER: what is asked for and what the image says -> OCI runtime spec -> `launch::ContainerPlan`. Pure: no
//! files, no clock, no network. Golden files in `golden/`.

use std::path::PathBuf;

use berth_cri::v1 as cri;
use berth_launch::v1 as launch;
use oci_spec::{image::ImageConfiguration, runtime::Spec};

use crate::Result;

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
    /// Capabilities this kernel knows: 0..=last.
    pub last_capability: u32,
    /// Host devices, for privileged containers: path, type letter (c, b), major, minor, mode.
    pub devices: Vec<(PathBuf, char, u32, u32, u32)>,
}

/// Where this container's things are.
#[derive(Debug, Clone)]
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
}

/// What CRI cannot say.
#[derive(Debug, Clone, Default)]
pub struct Options {
    pub restart: launch::Restart,
    pub log_max_bytes: u64,
    pub log_max_files: u32,
    /// docker's --entrypoint: Some("") clears the image's.
    pub entrypoint: Option<String>,
    /// docker's user[:group] string, over CRI's security context.
    pub user: Option<String>,
    /// docker's -v makes a missing host path a directory; so does CRI.
    pub create_bind_sources: bool,
    pub stop_signal: Option<u32>,
    /// The most processes and threads; CRI leaves that to the kubelet's own cgroup.
    pub pids: Option<i64>,
}

/// Merges config and image into an OCI runtime spec.
///
/// # Errors
/// `Invalid` names the field: no command, run_as_group without run_as_user, an unknown capability, a bad path.
pub fn spec(request: &Request<'_>) -> Result<Spec> {
    todo!("{request:?}")
}

/// Compiles a spec into the plan that a shim walks.
pub fn compile(spec: &Spec, request: &Request<'_>) -> Result<launch::ContainerPlan> {
    todo!("{spec:?} {request:?}")
}

/// Compiles the process of an exec in a container with that spec.
pub fn exec_process(spec: &Spec, exec: &Exec) -> Result<launch::Process> {
    todo!("{spec:?} {exec:?}")
}

#[derive(Debug, Clone, Default)]
pub struct Exec {
    pub args: Vec<String>,
    pub env: Vec<Vec<u8>>,
    /// user[:group]; empty: the container's.
    pub user: String,
    pub cwd: String,
    pub tty: bool,
    pub rows: u32,
    pub columns: u32,
    pub privileged: bool,
}

/// Compiles the pod's own plan; `link` comes from the network.
pub fn sandbox_plan(
    sandbox: &cri::PodSandboxConfig,
    id: &str,
    dir: PathBuf,
    link: Option<launch::Link>,
    cgroup: launch::Cgroup,
) -> Result<launch::SandboxPlan> {
    todo!("{sandbox:?} {id} {dir:?} {link:?} {cgroup:?}")
}
