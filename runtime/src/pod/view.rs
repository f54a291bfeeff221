//! What callers of this room give and get: requests, and the views that are published of pods and containers.

use std::{net::IpAddr, path::PathBuf, sync::Arc};

use berth_cri::v1 as cri;
use berth_launch::v1 as launch;

use crate::{
    Error, Kind, Result,
    error::Cause,
    id::{ContainerId, PodId},
    oci,
};

/// Who asked for a pod. Standalone ones are in no CRI list, and for them a network mode of CONTAINER means a network
/// namespace with loopback only (`--network none`, which CRI cannot say).
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Client {
    Cri,
    Standalone,
}

#[derive(Debug, Clone)]
pub struct RunPod {
    pub config: cri::PodSandboxConfig,
    pub handler: String,
    pub client: Client,
}

#[derive(Debug, Clone)]
pub struct CreateContainer {
    pub config: cri::ContainerConfig,
    /// CRI repeats it; empty (default): the pod's own.
    pub sandbox: cri::PodSandboxConfig,
    pub options: oci::Options,
    /// Given for standalone containers, whose log directory is named after it; else made up.
    pub id: Option<ContainerId>,
    /// Keep the writable layer over runs (docker's meaning); false: a CRI attempt, overlay volatile.
    pub keep_layer: bool,
    /// For standalone containers: what the person asked for, kept for `inspect`.
    pub standalone: Option<berth_cri::berth::ContainerSpec>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PodState {
    Ready,
    NotReady,
}

/// What is known of a pod, published after each change.
#[derive(Debug, Clone)]
pub struct PodView {
    pub id: PodId,
    pub client: Client,
    pub config: Arc<cri::PodSandboxConfig>,
    pub handler: String,
    pub state: PodState,
    pub created_at: i64,
    pub ips: Vec<IpAddr>,
    pub netns: Option<PathBuf>,
    /// As the pod's client last said: what it costs beside its containers, and what they may use together.
    pub overhead: Option<cri::LinuxContainerResources>,
    pub resources: Option<cri::LinuxContainerResources>,
    pub containers: Vec<ContainerView>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContainerState {
    Created,
    Running,
    /// Its shim waits to start it again.
    Backoff,
    Exited,
    Unknown,
}

#[derive(Debug, Clone)]
pub struct ContainerView {
    pub id: ContainerId,
    pub pod: PodId,
    pub client: Client,
    pub config: Arc<cri::ContainerConfig>,
    pub standalone: Option<Arc<berth_cri::berth::ContainerSpec>>,
    pub document: crate::oci::Document,
    /// The whole of it, as JSON.
    pub spec: prost::bytes::Bytes,
    /// The process's environment as bytes.
    pub env: Arc<Vec<Vec<u8>>>,
    pub image_id: String,
    /// The ids of the images that are mounted, by position among the mounts; empty for the others.
    pub volume_images: Vec<String>,
    pub state: ContainerState,
    /// Unix nanoseconds; 0: not yet.
    pub created_at: i64,
    pub started_at: i64,
    pub finished_at: i64,
    pub exit_code: i32,
    /// `Completed`, `Error`, `OOMKilled`, or why it never ran.
    pub reason: String,
    pub message: String,
    pub oom_killed: bool,
    pub restarts: u32,
    pub pid: i32,
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    pub log: Option<PathBuf>,
    pub cgroup_path: String,
    pub upper: PathBuf,
    /// The OCI runtime of the host that keeps it; empty: Berth itself.
    pub runtime: String,
    /// The health check that its shim carries out, and what it has found in the present run.
    pub health_check: Option<berth_cri::berth::HealthCheck>,
    pub health: Option<launch::HealthStatus>,
}

/// How an exec ended, once it has; an error where that can't be known any more.
pub type Exit = tokio::sync::oneshot::Receiver<Result<launch::ExecExited>>;

/// What came of waiting for one.
///
/// # Errors
/// `Precondition` or `NotFound` where the container ended first, `Unavailable` where its shim died.
pub fn exit_of(
    told: std::result::Result<Result<launch::ExecExited>, tokio::sync::oneshot::error::RecvError>,
) -> Result<launch::ExecExited> {
    told.unwrap_or_else(|_| {
        Err(Error::new(Kind::Cancelled, "exec in container", "process")
            .because(Cause("the daemon ends".into())))
    })
}

/// A process started in a running container.
#[derive(Debug)]
pub struct ExecHandle {
    pub exec_id: String,
    /// The pty master, where a tty was asked for.
    pub tty: Option<std::os::fd::OwnedFd>,
    /// Always told, unless the daemon ends first.
    pub exit: Exit,
}
