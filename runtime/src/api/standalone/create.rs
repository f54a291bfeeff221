//! Create: the name, the image, the hidden pod, the container in it. What fails leaves nothing.

use std::{fs, io, os::unix::fs::DirBuilderExt, path::PathBuf};

use berth_cri::berth::{ContainerSpec, CreateRequest, CreateResponse};
use tracing::{Instrument, warn};

use super::{leave, translate};
use crate::{
    Error, Kind, Result,
    api::Door,
    id::{ContainerId, PodId},
};

const OP: &str = "create container";

pub(super) async fn create(door: &Door, request: CreateRequest) -> Result<CreateResponse> {
    let spec = request.spec.ok_or_else(|| Error::invalid(OP, "spec", "the field is missing"))?;
    let id = ContainerId::random();
    // On a task of its own: a caller that goes away leaves no half of a container.
    let (door, start) = (door.clone(), request.start);
    let network = spec.network.clone();
    let made = async move {
        made(&door, &id, spec).await?;
        let warnings = warnings(&door, &network);
        if start && let Err(error) = door.pods.start(&id).await {
            if let Some(container) = door.pods.container(&id)
                && let Err(left) = leave::remove(&door, &container, leave::How::Forced).await
            {
                warn!(container = %id, error = left.chain(), "a container that did not start is left");
            }
            return Err(error);
        }
        Ok(CreateResponse { id: id.to_string(), warnings })
    };
    let made = tokio::spawn(made.in_current_span());
    made.await.map_err(|error| Error::new(Kind::Internal, OP, "task").because(error))?
}

/// It runs all the same where its network does not answer for names.
fn warnings(door: &Door, network: &str) -> Vec<String> {
    let trouble = door.rooms.network.network(network).ok().and_then(|network| network.trouble);
    trouble.map(|trouble| format!("network {network}: {trouble}")).into_iter().collect()
}

async fn made(door: &Door, id: &ContainerId, mut spec: ContainerSpec) -> Result<()> {
    let held = door.names.take(&door.pods, &spec.name, id)?;
    spec.name.clone_from(&held.name);
    if spec.image.is_empty() {
        return Err(Error::invalid(OP, "image", "the field is missing"));
    }
    let image = door.images.find(&spec.image).ok_or_else(|| {
        Error::not_found("find image", &spec.image).hint(format!("`berth pull {}` fetches it", spec.image))
    })?;
    let logs = logs(door, id);
    // Both are translated first: a mistake in the request costs no pod.
    let pod = translate::pod(&spec, id, &logs)?;
    let container = translate::container(&spec, id, &image.id)?;
    make_directory(logs).await?;
    let pod = match door.pods.run(pod).await {
        Ok(pod) => pod,
        Err(error) => {
            undo(door, id, None).await;
            return Err(error);
        }
    };
    if let Err(error) = door.pods.create(&pod, container).await {
        undo(door, id, Some(&pod)).await;
        return Err(error);
    }
    if spec.auto_remove {
        leave::at_end(door, id.clone());
    }
    Ok(())
}

/// The container's own log directory.
pub(super) fn logs(door: &Door, id: &ContainerId) -> PathBuf {
    door.config.daemon.root.join("logs").join(id.as_str())
}

/// Takes the log directory away with all that is in it; absent is success.
pub(super) async fn remove_logs(door: &Door, id: &ContainerId) -> Result<()> {
    let path = logs(door, id);
    blocking(move || match fs::remove_dir_all(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io("remove logs", path.display().to_string(), error))
        }
        _ => Ok(()),
    })
    .await
}

async fn make_directory(path: PathBuf) -> Result<()> {
    blocking(move || {
        // What applications print is for root only, like their layers.
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&path)
            .map_err(|error| Error::io("make directory", path.display().to_string(), error))
    })
    .await
}

async fn undo(door: &Door, id: &ContainerId, pod: Option<&PodId>) {
    if let Some(pod) = pod {
        // The first error is the one that the caller gets; what can't be taken back is for the log.
        for undone in [door.pods.stop(pod).await, door.pods.remove(pod).await] {
            if let Err(error) = undone {
                warn!(%pod, error = error.chain(), "a pod without its container is left");
            }
        }
    }
    if let Err(error) = remove_logs(door, id).await {
        warn!(container = %id, error = error.chain(), "a log directory without its container is left");
    }
}

/// Runs file work where it may block.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Error::new(Kind::Internal, "run", "file work").because(error))?
}
