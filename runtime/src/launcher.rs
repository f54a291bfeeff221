//! Starts shims, finds them again, talks to them. Knows plans, not pods.

use std::{
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use berth_launch::v1 as launch;
use tokio::sync::broadcast;

use crate::Result;

/// Starts shims from one program.
#[derive(Debug, Clone)]
pub struct Launcher {
    pub program: PathBuf,
}

/// A connection to one container's shim. Cheap to clone; many calls at once.
#[derive(Debug, Clone)]
pub struct Shim {}

impl Launcher {
    /// Makes a pod's namespaces. Returns when they are pinned.
    pub async fn sandbox(&self, plan: &launch::SandboxPlan) -> Result<launch::Ready> {
        todo!("{plan:?}")
    }
    /// Brings a container to CREATED. The shim's log goes to `<dir>/shim.log`.
    pub async fn container(&self, plan: &launch::ContainerPlan) -> Result<(Shim, launch::Ready)> {
        todo!("{plan:?}")
    }
    /// Finds the shim of `dir` again. `NotFound` when nobody answers there.
    pub async fn connect(&self, dir: &Path) -> Result<Shim> {
        todo!("{dir:?}")
    }
}

/// The far ends a caller gives to an exec or an attach.
#[derive(Debug, Default)]
pub struct Ends {
    pub stdin: Option<OwnedFd>,
    pub stdout: Option<OwnedFd>,
    pub stderr: Option<OwnedFd>,
}

impl Shim {
    pub fn status(&self) -> launch::Status {
        todo!()
    }
    /// Events from now on; `Err(Closed)` when the shim has gone.
    pub fn events(&self) -> broadcast::Receiver<launch::Event> {
        todo!()
    }
    pub async fn start(&self) -> Result<launch::Status> {
        todo!()
    }
    pub async fn kill(&self, signal: u32, all: bool) -> Result<()> {
        todo!("{signal} {all}")
    }
    pub async fn stop(&self, signal: u32, grace_ms: u64) -> Result<()> {
        todo!("{signal} {grace_ms}")
    }
    /// Starts a process; with a tty the master comes back.
    pub async fn exec(
        &self,
        exec: launch::Exec,
        ends: Ends,
    ) -> Result<(launch::ExecStarted, Option<OwnedFd>)> {
        todo!("{exec:?} {ends:?}")
    }
    pub async fn exec_kill(&self, exec_id: &str, signal: u32) -> Result<()> {
        todo!("{exec_id} {signal}")
    }
    pub async fn resize(&self, exec_id: &str, rows: u32, columns: u32) -> Result<()> {
        todo!("{exec_id} {rows} {columns}")
    }
    pub async fn reopen_log(&self) -> Result<()> {
        todo!()
    }
    pub async fn attach(&self, ends: Ends) -> Result<()> {
        todo!("{ends:?}")
    }
    pub async fn shutdown(&self) -> Result<()> {
        todo!()
    }
}
