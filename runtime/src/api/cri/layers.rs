//! How much containers have written beside their volumes: walked in the background, so that no call waits for a disk.
//!
//! ```text
//! watch ── every change, every few seconds ── due? ── walk, bounded in time ── kept until the container is gone
//! ```

use std::{
    collections::{HashMap, HashSet},
    ffi::OsStr,
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use berth_cri::v1 as cri;
use rustix::{
    fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, openat2, statat},
    io::Errno,
};
use tokio::sync::watch;
use tracing::debug;

use crate::{
    Error, Kind, Result,
    api::now,
    error::Cause,
    id::ContainerId,
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
/// Longer paths begin anew at a directory of their own, below what openat2(2) takes.
const LONG: usize = 2048;

/// What one container has written, as du counts.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Layer {
    /// Unix nanoseconds.
    pub at: i64,
    /// The file system, by the directory that ImageFsInfo names too.
    pub mountpoint: PathBuf,
    pub used: Used,
}

#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(in crate::api) struct Used {
    pub(in crate::api) bytes: u64,
    pub(super) inodes: u64,
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
        let used = self.lock().values().filter_map(|entry| entry.layer.as_ref()).fold(
            Used::default(),
            |sum, layer| Used { bytes: sum.bytes + layer.used.bytes, inodes: sum.inodes + layer.used.inodes },
        );
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

/// Adds up what is below. The container changes it meanwhile and may mean harm: no link is followed, no mount entered.
pub(in crate::api) fn walk(root: &Path, until: Instant) -> Result<Used> {
    let failed = |errno: Errno| Error::io("measure layer", root.display().to_string(), errno);
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let top = rustix::fs::open(root, flags, Mode::empty()).map_err(failed)?;
    let mut used = Used::default();
    let mut linked = HashSet::new();
    let mut open: Vec<(Arc<OwnedFd>, PathBuf)> = vec![(Arc::new(top), PathBuf::from("."))];
    while let Some((base, below)) = open.pop() {
        let safe = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        let here = match openat2(&*base, &below, flags, Mode::empty(), safe) {
            Ok(here) => Arc::new(here),
            Err(errno) if vanished(errno) => continue,
            Err(errno) => return Err(failed(errno)),
        };
        let long = below.as_os_str().len() > LONG;
        let (base, below) = if long { (here.clone(), PathBuf::from(".")) } else { (base, below) };
        for entry in Dir::read_from(&*here).map_err(failed)? {
            if Instant::now() > until {
                return Err(Error::new(Kind::Deadline, "measure layer", root.display().to_string())
                    .because(Cause("it has too many files to be walked in time".into())));
            }
            let entry = entry.map_err(failed)?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let stat = match statat(&*here, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                Err(errno) if vanished(errno) => continue,
                Err(errno) => return Err(failed(errno)),
            };
            let directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
            if !directory && stat.st_nlink > 1 && !linked.insert(stat.st_ino) {
                continue;
            }
            used.inodes += 1;
            used.bytes += u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
            if directory {
                open.push((base.clone(), below.join(OsStr::from_bytes(name.to_bytes()))));
            }
        }
    }
    Ok(used)
}

/// Gone, or replaced by something else, since it was listed.
fn vanished(errno: Errno) -> bool {
    matches!(errno, Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    #[test]
    fn a_layer_is_counted_once_per_inode_and_no_link_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("upper");
        fs::create_dir_all(root.join("a/b")).unwrap();
        assert_eq!(walk(&root, soon()).unwrap().inodes, 2);
        fs::write(root.join("a/b/file"), vec![1u8; 100_000]).unwrap();
        fs::hard_link(root.join("a/b/file"), root.join("again")).unwrap();
        fs::write(dir.path().join("outside"), vec![1u8; 1 << 20]).unwrap();
        symlink(dir.path(), root.join("out")).unwrap();
        let used = walk(&root, soon()).unwrap();
        assert_eq!(used.inodes, 4);
        assert!((100_000..400_000).contains(&used.bytes), "{used:?}");
    }

    #[test]
    fn a_layer_deeper_than_a_path_may_be_is_counted_all_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let name = "d".repeat(200);
        let mut at = rustix::fs::open(dir.path(), OFlags::DIRECTORY, Mode::empty()).unwrap();
        for _ in 0..40 {
            rustix::fs::mkdirat(&at, &name, Mode::RWXU).unwrap();
            at = rustix::fs::openat(&at, &name, OFlags::DIRECTORY, Mode::empty()).unwrap();
        }
        assert_eq!(walk(dir.path(), soon()).unwrap().inodes, 40);
    }

    #[test]
    fn what_takes_too_long_or_is_not_there_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), "x").unwrap();
        let late = walk(dir.path(), Instant::now() - Duration::from_secs(1)).unwrap_err();
        assert_eq!(late.kind, Kind::Deadline);
        assert!(walk(&dir.path().join("absent"), soon()).unwrap_err().chain().contains("No such file"));
    }

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
