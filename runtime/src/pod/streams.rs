//! Processes and streams of a container that runs: asked of its shim, past the pod's task.

use std::time::Duration;

use berth_launch::v1::{self as launch, event};
use tokio::sync::{broadcast::error::RecvError, oneshot};

use super::{Ends, ExecHandle, Pods, container::held_capabilities, told};
use crate::{
    Error, Result,
    id::{ContainerId, PodId},
    oci,
};

impl Pods {
    /// Starts a process in a running container; with a timeout it is killed with all it started.
    pub async fn exec(
        &self,
        container: &ContainerId,
        exec: oci::Exec,
        ends: Ends,
        timeout: Option<Duration>,
    ) -> Result<ExecHandle> {
        let shim = self.shim("exec in container", container)?;
        let view = self
            .container(container)
            .ok_or_else(|| Error::not_found("exec in container", container.short()))?;
        let exec = oci::Exec { own_env: view.env.to_vec(), ..exec };
        let process = oci::exec_process(&view.spec, &exec)?;
        let exec_id = PodId::random().short().to_owned();
        let (process, document) = match view.runtime.as_str() {
            "" => (process, Vec::new()),
            _ => oci::exec_by_runtime(&view.spec, process, &exec_id, held_capabilities())?,
        };
        let mut events = shim.events();
        let asked = launch::Exec {
            exec_id: exec_id.clone(),
            process: Some(process),
            document,
            timeout_ms: timeout
                .map_or(0, |timeout| u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX).max(1)),
            ..launch::Exec::default()
        };
        let (_, tty) = shim.exec(asked, ends).await.map_err(told)?;
        let (exited, exit) = oneshot::channel();
        let id = exec_id.clone();
        tokio::spawn(async move {
            // The connection is held as long as somebody waits for the exit: events come by it.
            let _held = shim;
            loop {
                match events.recv().await {
                    Ok(launch::Event { event: Some(event::Event::ExecExited(told)) })
                        if told.exec_id == id =>
                    {
                        // Whoever started it may have left.
                        exited.send(told).ok();
                        return;
                    }
                    Ok(_) | Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => return,
                }
            }
        });
        Ok(ExecHandle { exec_id, tty, exit })
    }

    pub async fn exec_kill(&self, container: &ContainerId, exec_id: &str, signal: u32) -> Result<()> {
        self.shim("kill exec in container", container)?.exec_kill(exec_id, signal).await.map_err(told)
    }

    /// Copies output to the ends from now on, and what comes from theirs to its input.
    pub async fn attach(&self, container: &ContainerId, ends: Ends) -> Result<()> {
        self.shim("attach to container", container)?.attach(ends).await.map_err(told)
    }

    /// Of the container's tty, or with an exec id of that one's.
    pub async fn resize(
        &self,
        container: &ContainerId,
        exec_id: &str,
        rows: u32,
        columns: u32,
    ) -> Result<()> {
        self.shim("resize terminal of container", container)?
            .resize(exec_id, rows, columns)
            .await
            .map_err(told)
    }

    pub async fn reopen_log(&self, container: &ContainerId) -> Result<()> {
        self.shim("reopen log of container", container)?.reopen_log().await.map_err(told)
    }
}
