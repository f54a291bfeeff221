//! How much containers have written beside their volumes: walked in the background, so that no call waits for a disk.
//!
//! ```text
//! watch ── every change, every few seconds ── due? ── walk, bounded in time ── kept until the container is gone
//! ```

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use berth_cri::v1 as cri;
use tokio::sync::watch;
use tracing::debug;

use crate::{
    Error, Kind, Result,
    api::now,
    id::ContainerId,
    image::{Used, walk},
    pod::{Client, ContainerState, Pods},
};

/// A layer is walked no more often.
const EVERY: Duration = Duration::from_secs(30);
/// One that could not be walked in time is tried again after so long.
const AGAIN: Duration = Duration::from_secs(600);
const WALK_WITHIN: Duration = Duration::from_secs(2);
/// How often it is asked whose turn it is, where nothing changes.
const LOOK: Duration = Duration::from_secs(5);
/// Many changes at once are one. Short, since a container is to have a measurement soon after its start.
const PAUSE: Duration = Duration::from_millis(5);

/// What one container has written, as du counts.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Layer {
    /// Unix nanoseconds.
    pub at: i64,
    /// The file system, by the directory that ImageFsInfo names too.
    pub mountpoint: PathBuf,
    pub used: Used,
}

/// The last measurements, one per running container.
#[derive(Debug, Clone, Default)]
pub struct Layers(Arc<Mutex<HashMap<ContainerId, Entry>>>);

#[derive(Debug)]
struct Entry {
    layer: Option<Layer>,
    due: Instant,
}

pub(super) fn message(layer: Layer) -> cri::FilesystemUsage {
    let mountpoint = layer.mountpoint.display().to_string();
    cri::FilesystemUsage {
        timestamp: layer.at,
        fs_id: Some(cri::FilesystemIdentifier { mountpoint }),
        used_bytes: Some(cri::UInt64Value { value: layer.used.bytes }),
        inodes_used: Some(cri::UInt64Value { value: layer.used.inodes }),
    }
}

impl Layers {
    /// Absent before the first walk.
    pub(super) fn of(&self, container: &ContainerId) -> Option<Layer> {
        self.lock().get(container)?.layer.clone()
    }

    /// All of them together.
    pub(super) fn whole(&self, mountpoint: PathBuf) -> cri::FilesystemUsage {
        let used =
            self.lock().values().filter_map(|entry| entry.layer.as_ref()).map(|layer| layer.used).sum();
        message(Layer { at: now(), mountpoint, used })
    }

    /// Measures until the daemon ends. One walk at a time, and nine times as long a rest as it took: the disk belongs
    /// to the containers.
    pub async fn watch(self, pods: Pods, mountpoint: PathBuf, mut ending: watch::Receiver<bool>) {
        let mut changes = pods.changes();
        loop {
            changes.mark_unchanged();
            for (container, upper) in self.due(&pods) {
                let begun = Instant::now();
                let walked = tokio::task::spawn_blocking(move || walk(&upper, begun + WALK_WITHIN)).await;
                let walked = walked
                    .map_err(|error| Error::new(Kind::Internal, "measure", "layer").because(error))
                    .and_then(|walked| walked);
                self.note(container, walked, &mountpoint);
                tokio::time::sleep(begun.elapsed() * 9).await;
            }
            tokio::time::sleep(PAUSE).await;
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(LOOK) => {}
                // An error is the daemon gone: the end as well.
                _ = ending.wait_for(|ending| *ending) => return,
            }
        }
    }

    /// Whose turn it is, new ones first; forgets those that don't run any more.
    fn due(&self, pods: &Pods) -> Vec<(ContainerId, PathBuf)> {
        let listed = pods.list();
        let running: HashMap<_, _> = listed
            .iter()
            .flat_map(|pod| &pod.containers)
            .filter(|one| one.client == Client::Cri && one.state == ContainerState::Running)
            .map(|one| (&one.id, &one.upper))
            .collect();
        let mut entries = self.lock();
        entries.retain(|id, _| running.contains_key(id));
        let now = Instant::now();
        let is_due = |id: &ContainerId| entries.get(id).is_none_or(|entry| entry.due <= now);
        let due = running.into_iter().filter(|(id, _)| is_due(id));
        let mut due: Vec<_> = due.map(|(id, upper)| (id.clone(), upper.clone())).collect();
        due.sort_by_key(|(id, _)| entries.contains_key(id));
        due
    }

    fn note(&self, container: ContainerId, walked: Result<Used>, mountpoint: &Path) {
        let entry = match walked {
            Ok(used) => Entry {
                layer: Some(Layer { at: now(), mountpoint: mountpoint.to_owned(), used }),
                due: Instant::now() + EVERY,
            },
            Err(error) => {
                debug!(container = %container, error = %error.chain(), "layer not measured");
                Entry { layer: None, due: Instant::now() + AGAIN }
            }
        };
        self.lock().insert(container, entry);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ContainerId, Entry>> {
        // A panic leaves whole entries behind.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_measurement_is_told_and_a_failure_is_none() {
        let (layers, id) = (Layers::default(), ContainerId::random());
        assert_eq!(layers.of(&id), None);
        layers.note(id.clone(), Ok(Used { bytes: 5, inodes: 2 }), Path::new("/images"));
        let told = message(layers.of(&id).unwrap());
        assert_eq!((told.used_bytes.unwrap().value, told.inodes_used.unwrap().value), (5, 2));
        assert_eq!(told.fs_id.unwrap().mountpoint, "/images");
        let whole = layers.whole("/root".into());
        assert_eq!((whole.used_bytes.unwrap().value, whole.fs_id.unwrap().mountpoint), (5, "/root".into()));
        layers.note(id.clone(), Err(Error::not_found("measure", "x")), Path::new("/images"));
        assert_eq!(layers.of(&id), None);
    }
}
