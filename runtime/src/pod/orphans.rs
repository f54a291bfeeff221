//! What is there and nobody's, found by comparing what disk and kernel hold with the records. The reconcile at a start and
//! `berth doctor --fix` remove it by this same code.
//!
//! An id comes with its record's directory and goes with it: what has an id of ours and no such directory was left by a
//! crash between two steps, or its record was removed by hand.

use std::{
    collections::HashSet,
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use berth_launch::v1 as launch;
use futures_util::{StreamExt, stream};
use prost::Message;
use tracing::{info, warn};

use super::{
    Rooms, blocking,
    place::{self, Places},
    record::PodRecord,
    sandbox,
};
use crate::{
    Error, Result,
    cgroup::{self, Driver, systemd},
    id::{ContainerId, PodId},
    net::Stray,
};

/// Orphans that are mended beside each other: each takes a thread, and the calls want some too.
const AT_ONCE: usize = 16;
/// What is made a moment before its record is left alone for so long.
const YOUNG: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Orphan {
    /// Addresses, ports or plugins' work for a pod.
    Network(PodId),
    /// A directory of the state, with what is mounted in it, namespaces that are pinned there and its cgroup.
    Remains { kind: Kind, id: String, directory: PathBuf },
    /// A cgroup below the configured parent in which nothing runs.
    Group { id: String, path: String },
    /// One in which something runs: perhaps another berthd's, so it is only told.
    Populated { id: String, path: String },
    /// On the network.
    Stray(Stray),
    /// A container's hold on an image's layers.
    Hold(String),
    /// Logs of a person's container.
    Logs { id: String, directory: PathBuf },
    /// A record's directory in which none was ever written.
    Blank(PathBuf),
    /// A story that nobody tells any more.
    Story(PathBuf),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Pod,
    Container,
}

impl Orphan {
    /// Whose it would be.
    pub fn id(&self) -> Option<&str> {
        match self {
            Self::Network(pod) => Some(pod.as_str()),
            Self::Remains { id, .. }
            | Self::Group { id, .. }
            | Self::Populated { id, .. }
            | Self::Logs { id, .. } => Some(id),
            // `<container>-volume-<n>` is a container's too.
            Self::Hold(holder) => holder.split('-').next(),
            Self::Stray(_) | Self::Blank(_) | Self::Story(_) => None,
        }
    }
}

/// Looks for what the state, the cgroups, the network and the image store hold in some id's name. Whether something runs
/// in a cgroup is not asked yet: most have a record.
pub async fn candidates(rooms: &Rooms, places: &Places) -> Result<Vec<Orphan>> {
    let mut found: Vec<Orphan> = rooms.network.attached().into_iter().map(Orphan::Network).collect();
    let (here, there) = (rooms.clone(), places.clone());
    found.extend(blocking("look for orphans", move || Ok(held(&here, &there))).await?);
    Ok(found)
}

/// Of them those whose id has no record. `known` are the ids that have.
pub fn unowned(candidates: Vec<Orphan>, known: &HashSet<String>) -> Vec<Orphan> {
    let is_known = |orphan: &Orphan| match orphan {
        Orphan::Stray(Stray::Link(name)) => {
            known.iter().any(|id| name.strip_prefix("bth").is_some_and(|start| id.starts_with(start)))
        }
        other => other.id().is_some_and(|id| known.contains(id)),
    };
    let mut left: Vec<Orphan> = candidates.into_iter().filter(|orphan| !is_known(orphan)).collect();
    // Plugins undo their part in the namespace that is pinned there: it goes with the network.
    let networks: HashSet<String> = left
        .iter()
        .filter_map(|orphan| match orphan {
            Orphan::Network(pod) => Some(pod.to_string()),
            _ => None,
        })
        .collect();
    left.retain(|orphan| !matches!(orphan, Orphan::Remains { id, .. } if networks.contains(id)));
    left
}

/// The same, but cgroups in which something runs are told from the others.
pub async fn looked_into(rooms: &Rooms, orphans: Vec<Orphan>) -> Result<Vec<Orphan>> {
    if orphans.is_empty() {
        return Ok(orphans);
    }
    let cgroups = rooms.cgroups.clone();
    let look = move |orphan| match orphan {
        Orphan::Group { id, path } if !cgroups.group(&path).is_empty() => Orphan::Populated { id, path },
        other => other,
    };
    blocking("look into cgroups", move || Ok(orphans.into_iter().map(look).collect())).await
}

/// The ids that have a record's directory, readable or not. Blocks.
pub fn recorded(places: &Places) -> HashSet<String> {
    [places.pods(), places.containers()].iter().flat_map(|directory| names(directory)).collect()
}

/// Logs of people's containers. Blocks.
pub fn logs(places: &Places) -> Vec<Orphan> {
    let top = places.root.join("logs");
    let ours = |id: &String| ContainerId::parse(id).is_ok();
    names(&top).into_iter().filter(ours).map(|id| Orphan::Logs { directory: top.join(&id), id }).collect()
}

/// What is not young of logs, and of records' directories that lack the record. Blocks.
pub fn old(places: &Places) -> Vec<Orphan> {
    let is_old = |orphan: &Orphan| match orphan {
        Orphan::Logs { directory, .. } | Orphan::Blank(directory) => !is_young(directory),
        _ => true,
    };
    let mut found = logs(places);
    for top in [places.pods(), places.containers()] {
        let blank = |id: &String| PodId::parse(id).is_ok() && !top.join(id).join("record").exists();
        found.extend(names(&top).into_iter().filter(blank).map(|id| Orphan::Blank(top.join(id))));
    }
    found.retain(is_old);
    found
}

fn held(rooms: &Rooms, places: &Places) -> Vec<Orphan> {
    let ours = |id: &String| PodId::parse(id).is_ok();
    let mut found = Vec::new();
    for (kind, name) in [(Kind::Pod, "pods"), (Kind::Container, "containers")] {
        let top = places.state.join(name);
        let remains = names(&top).into_iter().filter(ours);
        found.extend(remains.map(|id| Orphan::Remains { kind, directory: top.join(&id), id }));
    }
    let groups = groups(rooms).into_iter().filter(|(id, _)| ours(id));
    found.extend(groups.map(|(id, path)| Orphan::Group { id, path }));
    let untold = names(&places.stories()).into_iter().filter(|id| ours(id) && !rooms.timelines.keeps(id));
    found.extend(untold.map(|id| Orphan::Story(places.stories().join(id))));
    found.extend(rooms.images.holders().into_iter().map(Orphan::Hold));
    found.extend(rooms.network.stray_links().into_iter().map(|link| Orphan::Stray(Stray::Link(link))));
    found
}

/// The groups in the daemon's own parent, each with the id that it is named by.
fn groups(rooms: &Rooms) -> Vec<(String, String)> {
    let (driver, parent) = (sandbox::driver(rooms), rooms.config.cgroup_parent.as_str());
    // A parent that can be no slice has no groups.
    let path_of = |id: &str| driver.path(parent, id).ok();
    let above = path_of("0").and_then(|path| systemd::above(&path).map(str::to_owned));
    let names = above.map(|above| rooms.cgroups.below(&above)).unwrap_or_default();
    let ids = names.iter().filter_map(|name| driver.id_in(name));
    ids.filter_map(|id| Some((id.to_owned(), path_of(id)?))).collect()
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

fn is_young(path: &Path) -> bool {
    let changed = fs::metadata(path).and_then(|found| found.modified());
    changed.is_ok_and(|at| is_near(at, SystemTime::now()))
}

/// On either side: what was made before the clock was set back does not stay until that time has come again.
fn is_near(at: SystemTime, now: SystemTime) -> bool {
    let apart = now.duration_since(at).unwrap_or_else(|error| error.duration());
    apart < YOUNG
}

/// Removes one, with a line that says so. Gone already: success.
///
/// # Errors
/// Of what stays.
pub async fn mend(rooms: &Rooms, places: &Places, orphan: &Orphan) -> Result<()> {
    match orphan {
        Orphan::Network(pod) => {
            info!(pod = %pod, "the network of a pod that is gone is taken back");
            sandbox::take_back(rooms, places, pod, &PodRecord::default()).await?;
            let dir = places.pod_dir(pod);
            blocking("remove pod", move || place::remove(&dir)).await
        }
        Orphan::Remains { kind, id, directory } => {
            let what = match kind {
                Kind::Pod => "pod",
                Kind::Container => "container",
            };
            info!(id, "what is left of a {what} that is gone is removed");
            let (rooms, id, directory) = (rooms.clone(), id.clone(), directory.clone());
            blocking("sweep", move || remove_remains(&rooms, &id, &directory)).await
        }
        Orphan::Group { id, path } => {
            info!(id, "a cgroup of what is gone is removed");
            let group = rooms.cgroups.group(path);
            blocking("sweep", move || group.remove().and_then(|()| systemd::end(&group))).await
        }
        Orphan::Populated { path, .. } => Err(Error::invalid("remove cgroup", path, "something runs in it")),
        Orphan::Stray(stray) => rooms.network.mend(stray).await,
        Orphan::Hold(holder) => {
            info!(holder, "layers that a container held that is gone are let go");
            let (images, holder) = (rooms.images.clone(), holder.clone());
            blocking("sweep", move || images.release(&holder)).await
        }
        Orphan::Logs { id, directory } => {
            info!(container = id, "logs of a container that is gone are removed");
            let directory = directory.clone();
            blocking("sweep", move || place::remove(&directory)).await
        }
        Orphan::Story(file) => {
            info!(file = %file.display(), "a story that nobody tells any more is removed");
            let file = file.clone();
            blocking("sweep", move || remove_story(&file)).await
        }
        Orphan::Blank(directory) => {
            info!(directory = %directory.display(), "a directory without a record is removed");
            let directory = directory.clone();
            blocking("sweep", move || place::remove(&directory)).await
        }
    }
}

/// The same for many, some beside each other; what stays is told.
pub async fn mend_all(rooms: &Rooms, places: &Places, orphans: Vec<Orphan>) {
    let mended = stream::iter(orphans).for_each_concurrent(AT_ONCE, async |orphan| {
        if let Err(error) = mend(rooms, places, &orphan).await {
            warn!(id = orphan.id(), error = error.chain(), "it stays");
        }
    });
    mended.await;
}

fn remove_remains(rooms: &Rooms, id: &str, directory: &Path) -> Result<()> {
    let usual = sandbox::driver(rooms).path(&rooms.config.cgroup_parent, id)?;
    let mut cleared = Ok(());
    for group in [Some(rooms.cgroups.group(&usual)), planned_group(directory, id)].into_iter().flatten() {
        let gone = group.kill().and_then(|()| group.remove()).and_then(|()| systemd::end(&group));
        cleared = cleared.and(gone);
    }
    cleared.and(place::unmount_below(directory)).and_then(|()| place::remove(directory))
}

fn remove_story(file: &Path) -> Result<()> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io("remove", file.display().to_string(), error))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

fn names_it(path: &Path, id: &str) -> bool {
    match path.to_str().and_then(systemd::scope) {
        Some(scope) => Driver::Systemd.id_in(scope) == Some(id),
        None => path.ends_with(id),
    }
}

/// The cgroup that the container's shim was told, which may be below a pod's of the kubelet.
fn planned_group(directory: &Path, id: &str) -> Option<cgroup::Group> {
    let plan = fs::read(directory.join(berth_launch::PLAN)).ok()?;
    let group = launch::ContainerPlan::decode(plan.as_slice()).ok()?.cgroup?;
    // Named by the id, so that nothing else can be meant.
    let is_its = |path: &PathBuf| path.is_absolute() && names_it(path, id);
    let v2 = Some(PathBuf::from(group.v2)).filter(is_its);
    Some(cgroup::Group { v2, v1: group.v1.into_iter().map(PathBuf::from).filter(is_its).collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_was_set_back_keeps_nothing_young() {
        let now = SystemTime::now();
        let (moment, year) = (YOUNG / 2, Duration::from_secs(365 * 86_400));
        assert!([now, now - moment, now + moment].iter().all(|at| is_near(*at, now)));
        assert!([now - YOUNG, now + YOUNG, now - year, now + year].iter().all(|at| !is_near(*at, now)));
    }

    #[test]
    fn what_has_a_record_is_owned_and_so_are_a_containers_volumes() {
        let id = ContainerId::random().to_string();
        let holds = || vec![Orphan::Hold(id.clone()), Orphan::Hold(format!("{id}-volume-3"))];
        assert_eq!(unowned(holds(), &HashSet::from([id.clone()])), []);
        assert_eq!(unowned(holds(), &HashSet::new()), holds());
        let stray = vec![Orphan::Blank("/x".into())];
        assert_eq!(unowned(stray.clone(), &HashSet::from([id])), stray);
    }

    #[test]
    fn a_plans_group_is_taken_only_where_it_is_named_by_the_id() {
        let dir = tempfile::tempdir().unwrap();
        let group =
            |v2: &str, v1: &str| launch::Cgroup { v2: v2.into(), v1: vec![v1.into()], ..Default::default() };
        let plan = |cgroup| launch::ContainerPlan { cgroup: Some(cgroup), ..Default::default() };
        assert_eq!(planned_group(dir.path(), "ab"), None);
        let written = plan(group("/sys/fs/cgroup/pods/ab", "/sys/fs/cgroup/cpu/other")).encode_to_vec();
        fs::write(dir.path().join(berth_launch::PLAN), written).unwrap();
        let found = planned_group(dir.path(), "ab").unwrap();
        assert_eq!(found, cgroup::Group { v2: Some("/sys/fs/cgroup/pods/ab".into()), v1: Vec::new() });
    }
}
