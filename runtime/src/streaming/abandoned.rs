//! A caller that goes away takes the process it started with it.

use crate::{id::ContainerId, pod::Pods};

/// Kills the exec when let go before `done`.
#[derive(Debug)]
pub struct KillOnDrop {
    pods: Pods,
    container: ContainerId,
    exec_id: Option<String>,
}

impl KillOnDrop {
    pub fn new(pods: &Pods, container: &ContainerId, exec_id: String) -> Self {
        Self { pods: pods.clone(), container: container.clone(), exec_id: Some(exec_id) }
    }

    pub fn done(mut self) {
        self.exec_id = None;
    }
}

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        let Some(exec_id) = self.exec_id.take() else { return };
        let (pods, container) = (self.pods.clone(), self.container.clone());
        tokio::spawn(async move {
            // Nobody is left to tell; ended already is the usual reason.
            pods.exec_kill(&container, &exec_id, libc::SIGKILL as u32).await.ok();
        });
    }
}
