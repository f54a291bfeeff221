//! What of this node is not as its records say: orphans, which can be mended here, and damage, with what a person can do.

use std::{collections::HashSet, path::Path, sync::Arc};

use super::{
    ContainerState, ContainerView, PodState, PodView, Pods, blocking,
    orphans::{self, Kind, Orphan},
    record::{self, ContainerRecord, PodRecord},
};
use crate::{
    Result,
    id::{ContainerId, PodId},
    net::Stray,
};

/// One thing that is not right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// `network`, `directory`, `cgroup`, `link`, `rules`, `layers`, `logs`, `record`, `shim`, `namespace`, `story`.
    pub kind: &'static str,
    /// Its id, name or path.
    pub object: String,
    pub why: String,
    /// What mending does, or what a person can do.
    pub remedy: String,
    pub outcome: Outcome,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Mending would do what the remedy says.
    Mendable,
    Mended,
    /// Why.
    NotMended(String),
    /// The remedy is a person's.
    Told,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mending {
    Tell,
    Mend,
}

/// The magic of the file system that namespaces are files of. `statfs(2)`.
const NSFS_MAGIC: i64 = 0x6e73_6673;

impl Pods {
    /// Compares what is there with the records, and mends what can be mended where that is asked for.
    ///
    /// # Errors
    /// What kept it from looking.
    pub async fn examine(&self, mending: Mending) -> Result<Vec<Finding>> {
        let node = &self.0;
        let mut findings = Vec::new();
        for orphan in self.orphans().await? {
            let mut finding = described(&orphan);
            if mending == Mending::Mend && finding.outcome == Outcome::Mendable {
                finding.outcome = match orphans::mend(&node.rooms, &node.places, &orphan).await {
                    Ok(()) => Outcome::Mended,
                    Err(error) => Outcome::NotMended(error.chain()),
                };
            }
            findings.push(finding);
        }
        findings.extend(node.rooms.network.troubles().into_iter().map(|trouble| Finding {
            kind: "network",
            object: "addresses".into(),
            why: trouble,
            remedy: "wait: it is tried again, ever less often".into(),
            outcome: Outcome::Told,
        }));
        let pods = self.clone();
        findings.extend(blocking("examine", move || Ok(pods.damage())).await?);
        Ok(findings)
    }

    /// Candidates are looked for first and the records afterwards, since a record is there before all else and goes last;
    /// what is gone by then was on its way out.
    async fn orphans(&self) -> Result<Vec<Orphan>> {
        let node = &self.0;
        let before = self.found().await?;
        let mut known: HashSet<String> = self.tasks().by_id.keys().map(ToString::to_string).collect();
        let places = node.places.clone();
        known.extend(blocking("read records", move || Ok(orphans::recorded(&places))).await?);
        let left = orphans::unowned(before, &known);
        if left.is_empty() {
            return Ok(left);
        }
        let still = self.found().await?;
        let left = left.into_iter().filter(|orphan| still.contains(orphan)).collect();
        orphans::looked_into(&node.rooms, left).await
    }

    async fn found(&self) -> Result<Vec<Orphan>> {
        let node = &self.0;
        let mut found = orphans::candidates(&node.rooms, &node.places).await?;
        let rules = node.rooms.network.strays().await?.into_iter().map(Orphan::Stray);
        found.extend(rules.filter(|stray| matches!(stray, Orphan::Stray(Stray::Rules { .. }))));
        let places = node.places.clone();
        found.extend(blocking("look for orphans", move || Ok(orphans::old(&places))).await?);
        Ok(found)
    }

    /// What is damaged of what has an owner. Blocks.
    fn damage(&self) -> Vec<Finding> {
        let places = &self.0.places;
        let mut found = Vec::new();
        let ids = orphans::recorded(places);
        for id in &ids {
            let (pod, container) = (places.pods().join(id), places.containers().join(id));
            let read = match pod.exists() {
                true => record::read::<PodRecord>(&pod).map(drop),
                false => record::read::<ContainerRecord>(&container).map(drop),
            };
            if let Err(error) = read {
                found.push(told("record", id.clone(), error.chain(), "nothing of it is touched until then"));
            } else if !self.is_shown(id) && pod.exists() && pod.join("record").exists() {
                let why = "it was put there while berthd ran, which does not know it".into();
                found.push(told("record", id.clone(), why, "restart berthd: it reads the records anew"));
            }
        }
        for pod in self.list() {
            found.extend(self.damage_of(&pod));
        }
        found
    }

    fn is_shown(&self, id: &str) -> bool {
        let pod = PodId::parse(id).is_ok_and(|id| self.tasks().by_id.contains_key(&id));
        pod || ContainerId::parse(id).is_ok_and(|id| self.0.board.home(&id).is_some())
    }

    fn damage_of(&self, pod: &Arc<PodView>) -> Vec<Finding> {
        let places = &self.0.places;
        let mut found = Vec::new();
        if pod.state == PodState::Ready {
            for kind in pinned_kinds(&places.pod_dir(&pod.id)) {
                let pin = places.pin(&pod.id, &kind);
                if !is_namespace(&pin) {
                    let why =
                        format!("the {kind} namespace of pod {} is not pinned any more", pod.id.short());
                    let remedy = "remove the pod: no container can be started in it";
                    found.push(told("namespace", pin.display().to_string(), why, remedy));
                }
            }
            if !places.pod_record(&pod.id).join("record").exists() {
                let remedy = "stop and remove the pod: the next berthd would not know it";
                found.push(told("record", pod.id.to_string(), "it is gone, and the pod runs".into(), remedy));
            }
        }
        found.extend(pod.containers.iter().filter_map(|container| self.damage_in(container)));
        found
    }

    fn damage_in(&self, container: &ContainerView) -> Option<Finding> {
        let id = container.id.to_string();
        match container.state {
            ContainerState::Unknown => {
                let remedy = "stop the container: its cgroup is killed, then its shim";
                Some(told("shim", id, container.message.clone(), remedy))
            }
            ContainerState::Running | ContainerState::Created | ContainerState::Backoff => {
                let socket = self.0.places.container_dir(&container.id).join(berth_launch::SOCKET);
                (!socket.exists()).then(|| {
                    let why = format!("{} is gone, by which its shim is found again", socket.display());
                    told("shim", id, why, "restart the container before berthd")
                })
            }
            ContainerState::Exited => None,
        }
    }
}

fn told(kind: &'static str, object: String, why: String, remedy: &str) -> Finding {
    Finding { kind, object, why, remedy: remedy.into(), outcome: Outcome::Told }
}

fn described(orphan: &Orphan) -> Finding {
    let mendable = |kind, object: String, why: &str, remedy: &str| Finding {
        kind,
        object,
        why: why.into(),
        remedy: remedy.into(),
        outcome: Outcome::Mendable,
    };
    match orphan {
        Orphan::Network(pod) => mendable(
            "network",
            pod.to_string(),
            "addresses, ports or network plugins' work of a pod that has no record",
            "undo it, and let its namespaces go",
        ),
        Orphan::Remains { kind, directory, .. } => mendable(
            "directory",
            directory.display().to_string(),
            match kind {
                Kind::Pod => "the state of a pod that has no record",
                Kind::Container => "the state of a container that has no record",
            },
            "kill what runs in its cgroup, unmount what is mounted in it, remove both",
        ),
        Orphan::Group { path, .. } => mendable(
            "cgroup",
            path.clone(),
            "nothing runs in it, and no pod or container with a record has it",
            "remove it",
        ),
        Orphan::Populated { path, .. } => told(
            "cgroup",
            path.clone(),
            "processes run in it, and no pod or container with a record has it".into(),
            "see whose they are; unless another berthd has the same cgroup parent, write 1 to its cgroup.kill",
        ),
        Orphan::Stray(Stray::Link(name)) => mendable(
            "link",
            name.clone(),
            "it hangs on a bridge of ours, and no lease is of its pod",
            "delete it",
        ),
        Orphan::Stray(Stray::Rules { table, difference }) => mendable(
            "rules",
            format!("table {table}"),
            difference,
            "replace the table by what the leases say",
        ),
        Orphan::Hold(holder) => mendable(
            "layers",
            holder.clone(),
            "layers are held for a container that has no record",
            "let them go; those that no image names are removed",
        ),
        Orphan::Logs { directory, .. } => mendable(
            "logs",
            directory.display().to_string(),
            "logs of a container that has no record",
            "remove them",
        ),
        Orphan::Story(file) => mendable(
            "story",
            file.display().to_string(),
            "what `berth explain` told of something that is gone for more than an hour, or that is not known",
            "remove it",
        ),
        Orphan::Blank(directory) => mendable(
            "record",
            directory.display().to_string(),
            "no record was ever written in it",
            "remove it",
        ),
    }
}

/// What kinds of namespaces a pod had pinned: the files are there also when nothing is mounted on them.
fn pinned_kinds(pod_dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(pod_dir.join(berth_launch::PINS)).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

fn is_namespace(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|found| found.f_type == NSFS_MAGIC)
}
