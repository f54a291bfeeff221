//! List and Inspect: published views -> berth.v1 messages. Pure but for the lookup.

use berth_cri::berth as api;
use berth_launch::v1 as launch;

use crate::{
    Result,
    api::{Door, find},
    pod::{Client, ContainerState, ContainerView, PodView},
};

pub(super) fn list(door: &Door, request: &api::ListRequest) -> api::ListResponse {
    let listed = door.pods.list();
    let mut containers: Vec<_> = listed
        .iter()
        .flat_map(|pod| pod.containers.iter().map(move |container| (pod, container)))
        .filter(|(_, container)| shown(container, request))
        .map(|(pod, container)| message(Some(pod), container))
        .collect();
    containers.sort_by(|a, b| b.created_at.cmp(&a.created_at).then_with(|| a.id.cmp(&b.id)));
    api::ListResponse { containers }
}

pub(super) fn inspect(door: &Door, text: &str) -> Result<api::InspectResponse> {
    let container = find::any_container(&door.pods, text)?;
    let pod = door.pods.pod(&container.pod);
    Ok(details(pod.as_deref(), &container))
}

/// What `ps` lists: what lives, or all; of clients, its own, or all.
fn shown(container: &ContainerView, request: &api::ListRequest) -> bool {
    let lives = match container.state {
        ContainerState::Running | ContainerState::Backoff => true,
        ContainerState::Created | ContainerState::Exited | ContainerState::Unknown => false,
    };
    (lives || request.all) && (container.client == Client::Standalone || request.all_clients)
}

pub(super) fn message(pod: Option<&PodView>, container: &ContainerView) -> api::Container {
    let config = &container.config;
    let (name, image) = match &container.standalone {
        Some(spec) => (spec.name.clone(), spec.image.clone()),
        None => {
            let image = config.image.clone().unwrap_or_default();
            let asked = [image.user_specified_image, image.image].into_iter().find(|name| !name.is_empty());
            let name = config.metadata.as_ref().map_or_else(String::new, |metadata| metadata.name.clone());
            (name, asked.unwrap_or_default())
        }
    };
    api::Container {
        id: container.id.to_string(),
        name,
        image,
        image_id: container.image_id.clone(),
        command: arguments(container),
        state: state(container.state).into(),
        created_at: container.created_at,
        started_at: container.started_at,
        finished_at: container.finished_at,
        exit_code: container.exit_code,
        restarts: container.restarts,
        pid: if container.state == ContainerState::Running { container.pid } else { 0 },
        ips: pod.map_or_else(Vec::new, |pod| pod.ips.iter().map(ToString::to_string).collect()),
        labels: config.labels.clone(),
        client: match container.client {
            Client::Standalone => "berth".into(),
            Client::Cri => "cri".into(),
        },
        pod_id: container.pod.to_string(),
        oom_killed: container.oom_killed,
        message: why(container),
        health: container.health.as_ref().map(health),
    }
}

fn health(status: &launch::HealthStatus) -> api::Health {
    use launch::health_status::State;
    let state = match status.state() {
        State::Starting => api::health::State::Starting,
        State::Healthy => api::health::State::Healthy,
        State::Unhealthy => api::health::State::Unhealthy,
    };
    let result = |result: &launch::HealthResult| api::HealthResult {
        started_at: result.started_at,
        ended_at: result.ended_at,
        exit_code: result.exit_code,
        output: String::from_utf8_lossy(&result.output).into_owned(),
    };
    api::Health {
        state: state.into(),
        failing_streak: status.failing_streak,
        last: status.last.iter().map(result).collect(),
    }
}

fn details(pod: Option<&PodView>, container: &ContainerView) -> api::InspectResponse {
    let process = container.document.spec.process().as_ref();
    api::InspectResponse {
        container: Some(message(pod, container)),
        spec: container.standalone.as_deref().cloned(),
        log_path: container.log.as_ref().map_or_else(String::new, |log| log.display().to_string()),
        cgroup: container.cgroup_path.clone(),
        rootfs: container.upper.display().to_string(),
        uid: container.uid,
        gid: container.gid,
        env: process.and_then(|process| process.env().clone()).unwrap_or_default(),
        workdir: process.map_or_else(String::new, |process| process.cwd().display().to_string()),
        health: container.health_check.clone(),
    }
}

fn arguments(container: &ContainerView) -> Vec<String> {
    container.document.spec.process().as_ref().and_then(|process| process.args().clone()).unwrap_or_default()
}

fn state(state: ContainerState) -> api::container::State {
    match state {
        ContainerState::Created => api::container::State::Created,
        ContainerState::Running => api::container::State::Running,
        ContainerState::Backoff => api::container::State::Restarting,
        ContainerState::Exited => api::container::State::Exited,
        ContainerState::Unknown => api::container::State::Unknown,
    }
}

/// The message, else a reason that says more than the exit code does.
fn why(container: &ContainerView) -> String {
    match (container.message.as_str(), container.reason.as_str()) {
        ("", "Completed" | "Error") => String::new(),
        ("", reason) => reason.to_owned(),
        (message, _) => message.to_owned(),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::{net::IpAddr, sync::Arc};

    use berth_cri::v1 as cri;

    use super::*;
    use crate::{
        id::{ContainerId, PodId},
        pod::PodState,
    };

    pub(in crate::api::standalone) fn container() -> ContainerView {
        let spec = api::ContainerSpec { name: "web".into(), image: "busybox:1".into(), ..Default::default() };
        ContainerView {
            env: Arc::default(),
            id: ContainerId::random(),
            pod: PodId::random(),
            client: Client::Standalone,
            config: Arc::new(cri::ContainerConfig::default()),
            standalone: Some(Arc::new(spec)),
            document: Default::default(),
            spec: Default::default(),
            image_id: "sha256:0123".into(),
            volume_images: Vec::new(),
            state: ContainerState::Running,
            created_at: 1,
            started_at: 2,
            finished_at: 0,
            exit_code: 0,
            reason: String::new(),
            message: String::new(),
            oom_killed: false,
            restarts: 4,
            pid: 42,
            uid: 1000,
            gid: 100,
            groups: vec![],
            log: Some("/logs/container.log".into()),
            cgroup_path: "/berth/x".into(),
            upper: "/upper".into(),
            runtime: String::new(),
            health_check: None,
            health: None,
        }
    }

    #[test]
    fn ended_ones_and_a_kubelets_are_listed_when_asked_for() {
        let one = |state, client| ContainerView { state, client, ..container() };
        let request = |all, all_clients| api::ListRequest { all, all_clients };
        let rows = [
            (ContainerState::Running, Client::Standalone, request(false, false), true),
            (ContainerState::Backoff, Client::Standalone, request(false, false), true),
            (ContainerState::Exited, Client::Standalone, request(false, false), false),
            (ContainerState::Created, Client::Standalone, request(true, false), true),
            (ContainerState::Running, Client::Cri, request(true, false), false),
            (ContainerState::Running, Client::Cri, request(false, true), true),
            (ContainerState::Exited, Client::Cri, request(false, true), false),
        ];
        for (state, client, request, expected) in rows {
            assert_eq!(shown(&one(state, client), &request), expected, "{state:?} {client:?} {request:?}");
        }
    }

    #[test]
    fn a_message_has_the_persons_words_and_the_pods_addresses() {
        let view = container();
        let pod = PodView {
            id: view.pod.clone(),
            client: Client::Standalone,
            config: Arc::default(),
            handler: String::new(),
            state: PodState::Ready,
            created_at: 1,
            ips: vec![IpAddr::from([10, 88, 0, 2])],
            netns: None,
            overhead: None,
            resources: None,
            containers: vec![view.clone()],
        };
        let told = details(Some(&pod), &view);
        assert_eq!((told.log_path.as_str(), told.rootfs.as_str()), ("/logs/container.log", "/upper"));
        let told = told.container.unwrap();
        assert_eq!((told.name.as_str(), told.image.as_str()), ("web", "busybox:1"));
        assert_eq!((told.pid, told.restarts, told.ips), (42, 4, vec!["10.88.0.2".to_owned()]));
        let ended = ContainerView { state: ContainerState::Exited, ..view };
        assert_eq!(message(None, &ended).pid, 0);
    }

    #[test]
    fn a_state_is_explained_where_the_exit_code_does_not() {
        let rows = [
            ("", "Completed", ""),
            ("", "Error", ""),
            ("", "OOMKilled", "OOMKilled"),
            ("exec /x: no such file", "StartError", "exec /x: no such file"),
        ];
        for (said, reason, expected) in rows {
            let view = ContainerView { message: said.into(), reason: reason.into(), ..container() };
            assert_eq!(message(None, &view).message, expected);
        }
    }
}
