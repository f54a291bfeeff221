//! A pod's task shows the pod as it is, after each change.

use std::sync::Arc;

use super::{
    ContainerView, PodState, PodView,
    actor::Pod,
    cause,
    container::Container,
    record::{ContainerRecord, Phase},
    state::{State, reason},
};

impl Pod {
    /// Shows the pod as it is now.
    pub fn publish(&self) {
        let ready = self.record.phase() == Phase::Made;
        let netns = Some(self.places.pin(&self.id, "net")).filter(|pin| ready && pin.exists());
        let mut containers: Vec<_> = self.containers.values().map(|there| self.view(there)).collect();
        containers.sort_by_key(|view| view.created_at);
        let linux = self.config.linux.as_ref();
        let (overhead, resources) =
            (linux.and_then(|linux| linux.overhead.clone()), linux.and_then(|linux| linux.resources.clone()));
        self.board.publish(PodView {
            id: self.id.clone(),
            client: self.record.by(),
            config: Arc::clone(&self.config),
            handler: self.record.handler.clone(),
            state: if ready { PodState::Ready } else { PodState::NotReady },
            created_at: self.record.created_at,
            ips: self.ips.clone(),
            netns,
            overhead: self.record.overhead.clone().or(overhead),
            resources: self.record.resources.clone().or(resources),
            containers,
        });
    }

    fn view(&self, there: &Container) -> ContainerView {
        let record: &ContainerRecord = &there.record;
        let exit = there.state.exit().cloned().unwrap_or_default();
        let (pid, started_at, restarts) = match &there.state {
            State::Created { pid } => (*pid, 0, 0),
            State::Running { pid, started_at, restarts } => (*pid, *started_at, *restarts),
            State::Backoff { last, restarts } => (0, last.started_at, *restarts),
            State::Exited { exit } => (0, exit.started_at, exit.restarts),
            State::Unknown { .. } => (0, 0, 0),
        };
        let (why, message) = match &there.state {
            State::Exited { exit } => (reason(exit), cause::told(exit)),
            State::Backoff { last, .. } => {
                let why = cause::told(last);
                let colon = if why.is_empty() { "" } else { "; " };
                (reason(last), format!("{why}{colon}it is started again after a delay"))
            }
            State::Unknown { why } => ("Unknown", why.clone()),
            State::Created { .. } | State::Running { .. } => ("", String::new()),
        };
        ContainerView {
            id: there.id.clone(),
            pod: self.id.clone(),
            client: self.record.by(),
            config: Arc::clone(&there.config),
            standalone: record.standalone.clone().map(Arc::new),
            document: there.document.clone(),
            spec: record.spec.clone(),
            env: Arc::clone(&there.env),
            image_id: record.image_id.clone(),
            volume_images: record.volume_images.clone(),
            state: there.state.published(),
            created_at: record.created_at,
            started_at,
            finished_at: exit.finished_at,
            exit_code: exit.exit_code,
            reason: why.to_owned(),
            message,
            oom_killed: exit.oom_killed,
            restarts,
            pid,
            uid: record.uid,
            gid: record.gid,
            groups: record.groups.clone(),
            log: (!record.log.is_empty()).then(|| record.log.clone().into()),
            cgroup_path: record.cgroup_path.clone(),
            upper: self.places.container_record(&there.id).join("upper"),
            runtime: record.runtime.clone(),
            health_check: record.health.clone(),
            health: there.shim.as_ref().and_then(|shim| shim.status().health),
        }
    }
}
