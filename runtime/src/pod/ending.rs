//! The end of a container that somebody asks for: by its shim, else by its cgroup, else without either. Waited for on the
//! published view, beside the pod's task.

use std::time::Duration;

use berth_launch::v1::sent::By;

use super::{ContainerState, Pods, actor::Command, blocking};
use crate::{Error, Kind, Result, error::Cause, id::ContainerId};

/// What CRI and docker give a container that nobody gives a time.
const GRACE: Duration = Duration::from_secs(10);
/// After its last signal a container is waited for so long, then for so long again once its cgroup is killed.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a shim is asked that is to end its container.
#[derive(Debug, Clone, Copy)]
enum Ask {
    Stop { grace_ms: u64 },
    Shutdown(By),
}

impl Pods {
    /// Signal, grace, kill. Ended already: success. Returns when it has ended.
    ///
    /// # Errors
    /// `NotFound` for a container that isn't there; `Deadline` where even SIGKILL does not end it.
    pub async fn stop_container(&self, container: &ContainerId, grace: Option<Duration>) -> Result<()> {
        let grace = grace.unwrap_or(GRACE);
        let pod = self.home("stop container", container)?;
        if self.container(container).is_some_and(|view| view.state == ContainerState::Exited) {
            let task = self.tasks().by_id.get(&pod).cloned();
            // A pod that has gone needs it no more.
            if let Some(task) = task {
                task.commands.send(Command::Settle(container.clone())).await.ok();
            }
            return Ok(());
        }
        let stop = Ask::Stop { grace_ms: u64::try_from(grace.as_millis()).unwrap_or(u64::MAX) };
        // A shim that does not answer is dealt with below: by its cgroup.
        let stopped = async {
            let asked = self.ask_shim(container, stop).await;
            let allowed = if asked { grace.saturating_add(PATIENCE) } else { Duration::from_secs(1) };
            self.until_ended(container, allowed).await
        };
        self.0.rooms.timelines.timed(container.as_str(), "stop", stopped).await
    }

    /// Kills what runs in it, for that reason. Returns when it has ended.
    pub(super) async fn end_container(&self, container: &ContainerId, by: By) -> Result<()> {
        let asked = self.ask_shim(container, Ask::Shutdown(by)).await;
        let allowed = if asked { PATIENCE } else { Duration::from_secs(1) };
        self.until_ended(container, allowed).await
    }

    /// Asks the container's shim, and where that was killed, the one that takes over. False: nobody answers.
    async fn ask_shim(&self, container: &ContainerId, ask: Ask) -> bool {
        if self.container(container).is_some_and(|view| view.state == ContainerState::Unknown) {
            return false;
        }
        // As many as may be killed meanwhile.
        for _ in 0..3 {
            let Some(shim) = self.0.board.shim(container) else { return true };
            let asked = match ask {
                Ask::Stop { grace_ms } => shim.stop(0, grace_ms).await,
                Ask::Shutdown(by) => shim.shutdown(by).await,
            };
            if asked.is_ok() {
                return true;
            }
            if !shim.is_gone() || !self.replaced_within(container, PATIENCE).await {
                return false;
            }
        }
        false
    }

    /// Whether a container whose shim has gone gets another, or its end, in time.
    async fn replaced_within(&self, container: &ContainerId, allowed: Duration) -> bool {
        let gone = || self.0.board.shim(container).is_some_and(|shim| shim.is_gone());
        self.seen(allowed, || (!gone()).then_some(())).await.is_some()
    }

    async fn until_ended(&self, container: &ContainerId, allowed: Duration) -> Result<()> {
        if self.ended_within(container, allowed).await {
            return Ok(());
        }
        let Some(view) = self.container(container) else { return Ok(()) };
        tracing::warn!(container = %container, "its shim does not end it; its cgroup is killed");
        self.0.rooms.timelines.note(container.as_str(), "killed by its cgroup", "its shim did not end it");
        self.mark_killed(container).await;
        let rooms = self.0.rooms.clone();
        blocking("kill cgroup", move || rooms.cgroups.group(&view.cgroup_path).kill()).await?;
        if self.ended_within(container, Duration::from_secs(1)).await {
            return Ok(());
        }
        tracing::warn!(container = %container, "nor does its shim tell that it has ended; the shim is killed");
        let pod = self.home("stop container", container)?;
        self.ask(&pod, |answer| Command::GiveUp(container.clone(), answer)).await?;
        match self.ended_within(container, PATIENCE).await {
            true => Ok(()),
            false => Err(Error::new(Kind::Deadline, "stop container", container.short())
                .because(Cause("it was killed and still has not ended".into()))
                .hint("a process in uninterruptible sleep (state D) hangs on a disk or network file system")),
        }
    }

    /// For the shim that tells the end, now or once it can: it was us.
    async fn mark_killed(&self, container: &ContainerId) {
        let mark = self.0.places.container_dir(container).join(berth_launch::KILLED);
        let marked = blocking("mark container", move || {
            std::fs::write(&mark, "").map_err(|error| Error::io("write", mark.display().to_string(), error))
        });
        // The end does not wait for a disk; without the mark it only says less.
        tokio::time::timeout(Duration::from_secs(1), marked).await.ok();
    }

    async fn ended_within(&self, container: &ContainerId, allowed: Duration) -> bool {
        let ended = || match self.container(container).map(|view| view.state) {
            None | Some(ContainerState::Exited) => Some(()),
            Some(
                ContainerState::Created
                | ContainerState::Running
                | ContainerState::Backoff
                | ContainerState::Unknown,
            ) => None,
        };
        self.seen(allowed, ended).await.is_some()
    }
}
