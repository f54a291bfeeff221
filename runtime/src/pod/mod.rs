//! THE BRAIN: decides and records. One task per pod owns it; lists and statuses come from published views and never
//! wait for a container.

use std::{net::IpAddr, path::PathBuf, sync::Arc, time::Duration};

use berth_cri::v1 as cri;
use berth_launch::v1 as launch;

use crate::{
    Result, cgroup, config,
    id::{ContainerId, PodId},
    image,
    launcher::Launcher,
    net, oci,
};
// What callers of this room give and get; they need not know the rooms behind it.
pub use crate::{
    cgroup::Stats,
    launcher::Ends,
    oci::{Exec, Options},
};

/// Who asked for a pod. Standalone ones are in no CRI list, and for them a network mode of CONTAINER means a network
/// namespace with loopback only (`--network none`, which CRI cannot say).
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Client {
    Cri,
    Standalone,
}

/// The rooms that pods are made with.
#[derive(Debug, Clone)]
pub struct Rooms {
    pub config: config::Daemon,
    pub images: image::Store,
    pub network: Arc<net::Network>,
    pub cgroups: cgroup::Hierarchy,
    pub launcher: Launcher,
}

/// All pods of this node. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Pods {}

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
    pub spec: Arc<oci_spec::runtime::Spec>,
    pub image_id: String,
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
}

/// A process started in a running container.
#[derive(Debug)]
pub struct ExecHandle {
    pub exec_id: String,
    /// The pty master, where a tty was asked for.
    pub tty: Option<std::os::fd::OwnedFd>,
    pub exit: tokio::sync::oneshot::Receiver<launch::ExecExited>,
}

impl Pods {
    /// Reads the records, finds the shims again, sweeps what nobody owns. Nothing that can't be read is dropped.
    pub async fn recover(rooms: Rooms) -> Result<Self> {
        todo!("{rooms:?}")
    }

    pub async fn run(&self, request: RunPod) -> Result<PodId> {
        todo!("{request:?}")
    }
    /// Kills all of it and lets the network go. Unknown or stopped already: success.
    pub async fn stop(&self, pod: &PodId) -> Result<()> {
        todo!("{pod}")
    }
    pub async fn remove(&self, pod: &PodId) -> Result<()> {
        todo!("{pod}")
    }
    pub async fn create(&self, pod: &PodId, request: CreateContainer) -> Result<ContainerId> {
        todo!("{pod} {request:?}")
    }
    pub async fn start(&self, container: &ContainerId) -> Result<()> {
        todo!("{container}")
    }
    /// Signal, grace, kill. Unknown or ended already: success. Returns when it has ended.
    pub async fn stop_container(&self, container: &ContainerId, grace: Option<Duration>) -> Result<()> {
        todo!("{container} {grace:?}")
    }
    pub async fn kill_container(&self, container: &ContainerId, signal: u32) -> Result<()> {
        todo!("{container} {signal}")
    }
    pub async fn remove_container(&self, container: &ContainerId) -> Result<()> {
        todo!("{container}")
    }
    pub async fn exec(
        &self,
        container: &ContainerId,
        exec: oci::Exec,
        ends: Ends,
        timeout: Option<Duration>,
    ) -> Result<ExecHandle> {
        todo!("{container} {exec:?} {ends:?} {timeout:?}")
    }
    pub async fn exec_kill(&self, container: &ContainerId, exec_id: &str, signal: u32) -> Result<()> {
        todo!("{container} {exec_id} {signal}")
    }
    pub async fn attach(&self, container: &ContainerId, ends: Ends) -> Result<()> {
        todo!("{container} {ends:?}")
    }
    /// Of the container's tty, or with an exec id of that one's.
    pub async fn resize(
        &self,
        container: &ContainerId,
        exec_id: &str,
        rows: u32,
        columns: u32,
    ) -> Result<()> {
        todo!("{container} {exec_id} {rows} {columns}")
    }
    pub async fn reopen_log(&self, container: &ContainerId) -> Result<()> {
        todo!("{container}")
    }
    /// Waits until it has ended for good.
    pub async fn wait(&self, container: &ContainerId) -> Result<ContainerView> {
        todo!("{container}")
    }
    pub async fn stats(&self, container: &ContainerId) -> Result<cgroup::Stats> {
        todo!("{container}")
    }

    /// From memory, at once.
    pub fn list(&self) -> Vec<Arc<PodView>> {
        todo!()
    }
    pub fn pod(&self, pod: &PodId) -> Option<Arc<PodView>> {
        todo!("{pod}")
    }
    pub fn container(&self, container: &ContainerId) -> Option<ContainerView> {
        todo!("{container}")
    }
    /// Changes whenever any view does; what waits and follows hangs on it.
    pub fn changes(&self) -> tokio::sync::watch::Receiver<u64> {
        todo!()
    }
}
