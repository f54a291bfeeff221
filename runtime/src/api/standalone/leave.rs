//! How containers go: by hand, and with `auto_remove` after their last exit, also when that was while no daemon ran.

use tracing::{info, warn};

use super::create;
use crate::{
    Error, Kind, Result,
    api::{Door, find},
    error::Cause,
    id::ContainerId,
    pod::{Client, ContainerState, ContainerView},
};

/// Removes a container; a standalone one goes with its pod and its logs.
///
/// # Errors
/// `Precondition` while it runs, unless `force`d: then it is killed first. Goes on after an error and returns the first.
pub(super) async fn remove(door: &Door, container: &ContainerView, how: How) -> Result<()> {
    match (container.state, how) {
        (ContainerState::Running | ContainerState::Backoff, How::OnlyEnded) => {
            return Err(Error::new(Kind::Precondition, "remove container", container.id.short())
                .because(Cause("it runs".into()))
                .hint("stop it first, or force the removal with --force"));
        }
        (ContainerState::Running | ContainerState::Backoff, How::Forced) => {
            let now = Some(std::time::Duration::ZERO);
            find::absent_is_done(door.pods.stop_container(&container.id, now).await)?;
        }
        (ContainerState::Created | ContainerState::Exited | ContainerState::Unknown, _) => {}
    }
    let removed = find::absent_is_done(door.pods.remove_container(&container.id).await);
    if container.client == Client::Cri {
        return removed;
    }
    let stopped = find::absent_is_done(door.pods.stop(&container.pod).await);
    let gone = find::absent_is_done(door.pods.remove(&container.pod).await);
    let mut results = vec![removed, stopped, gone];
    // The record names the log: it goes last, and stays with a container that could not be removed.
    if results.iter().all(Result::is_ok) {
        results.push(create::remove_logs(door, &container.id).await);
    }
    results.into_iter().collect()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    OnlyEnded,
    Forced,
}

/// Removes the container once it has ended for good.
pub(super) fn at_end(door: &Door, id: ContainerId) {
    let door = door.clone();
    tokio::spawn(async move {
        let removed = async {
            door.pods.wait(&id).await?;
            // Looked at again: it may have been started anew or removed meanwhile.
            match door.pods.container(&id) {
                Some(container) => remove(&door, &container, How::OnlyEnded).await,
                None => Ok(()),
            }
        };
        match removed.await {
            Ok(()) => info!(container = %id, "container removed at its end"),
            Err(error) if error.kind == Kind::NotFound => {}
            Err(error) => warn!(container = %id, error = error.chain(), "container not removed at its end"),
        }
    });
}

/// At the daemon's start: takes on every container that is to go at its end.
pub(super) fn resume(door: &Door) {
    for pod in door.pods.list() {
        for container in &pod.containers {
            if container.standalone.as_ref().is_some_and(|spec| spec.auto_remove) {
                at_end(door, container.id.clone());
            }
        }
    }
}
