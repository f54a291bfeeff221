//! Published views -> CRI messages. Pure; labels and annotations go back byte for byte: they are the kubelet's
//! database.

use std::collections::HashMap;

use berth_cri::v1 as cri;

use crate::pod::{ContainerState, ContainerView, PodState, PodView};

pub(super) fn pod(pod: &PodView) -> cri::PodSandbox {
    cri::PodSandbox {
        id: pod.id.to_string(),
        metadata: pod.config.metadata.clone(),
        state: pod_state(pod.state).into(),
        created_at: pod.created_at,
        labels: pod.config.labels.clone(),
        annotations: pod.config.annotations.clone(),
        runtime_handler: pod.handler.clone(),
    }
}

pub(super) fn pod_status(pod: &PodView) -> cri::PodSandboxStatus {
    let mut ips = pod.ips.iter().map(ToString::to_string);
    let network = cri::PodSandboxNetworkStatus {
        ip: ips.next().unwrap_or_default(),
        additional_ips: ips.map(|ip| cri::PodIp { ip }).collect(),
    };
    let linux = pod.config.linux.as_ref();
    let security = linux.and_then(|linux| linux.security_context.as_ref());
    let options = security.and_then(|security| security.namespace_options.clone()).unwrap_or_default();
    cri::PodSandboxStatus {
        id: pod.id.to_string(),
        metadata: pod.config.metadata.clone(),
        state: pod_state(pod.state).into(),
        created_at: pod.created_at,
        network: Some(network),
        linux: Some(cri::LinuxPodSandboxStatus {
            namespaces: Some(cri::Namespace { options: Some(options) }),
        }),
        labels: pod.config.labels.clone(),
        annotations: pod.config.annotations.clone(),
        runtime_handler: pod.handler.clone(),
    }
}

/// For people: `crictl inspectp`.
pub(super) fn pod_info(pod: &PodView) -> HashMap<String, String> {
    let info = serde_json::json!({
        "netns": pod.netns,
        "logDirectory": pod.config.log_directory,
        "overhead": pod.overhead.as_ref().map(resources),
        "resources": pod.resources.as_ref().map(resources),
        "containers": pod.containers.iter().map(|container| container.id.as_str()).collect::<Vec<_>>(),
    });
    HashMap::from([("info".into(), info.to_string())])
}

/// By CRI's names.
fn resources(resources: &cri::LinuxContainerResources) -> serde_json::Value {
    let huge = resources.hugepage_limits.iter();
    serde_json::json!({
        "cpu_period": resources.cpu_period,
        "cpu_quota": resources.cpu_quota,
        "cpu_shares": resources.cpu_shares,
        "memory_limit_in_bytes": resources.memory_limit_in_bytes,
        "memory_swap_limit_in_bytes": resources.memory_swap_limit_in_bytes,
        "cpuset_cpus": resources.cpuset_cpus,
        "cpuset_mems": resources.cpuset_mems,
        "hugepage_limits": huge.map(|limit| (&limit.page_size, limit.limit)).collect::<HashMap<_, _>>(),
        "unified": resources.unified,
    })
}

pub(super) fn pod_state(state: PodState) -> cri::PodSandboxState {
    match state {
        PodState::Ready => cri::PodSandboxState::SandboxReady,
        PodState::NotReady => cri::PodSandboxState::SandboxNotready,
    }
}

pub(super) fn container(container: &ContainerView) -> cri::Container {
    cri::Container {
        id: container.id.to_string(),
        pod_sandbox_id: container.pod.to_string(),
        metadata: container.config.metadata.clone(),
        image: Some(image(container)),
        image_ref: container.image_id.clone(),
        state: container_state(container.state).into(),
        created_at: container.created_at,
        labels: container.config.labels.clone(),
        annotations: container.config.annotations.clone(),
        image_id: container.image_id.clone(),
    }
}

pub(super) fn container_status(container: &ContainerView) -> cri::ContainerStatus {
    let config = &container.config;
    let user = cri::LinuxContainerUser {
        uid: container.uid.into(),
        gid: container.gid.into(),
        supplemental_groups: container.groups.iter().map(|group| i64::from(*group)).collect(),
    };
    let resources = config.linux.as_ref().and_then(|linux| linux.resources.clone());
    cri::ContainerStatus {
        id: container.id.to_string(),
        metadata: config.metadata.clone(),
        state: container_state(container.state).into(),
        created_at: container.created_at,
        started_at: container.started_at,
        finished_at: container.finished_at,
        exit_code: container.exit_code,
        image: Some(image(container)),
        image_ref: container.image_id.clone(),
        reason: container.reason.clone(),
        message: container.message.clone(),
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
        mounts: mounts(container),
        log_path: container.log.as_ref().map_or_else(String::new, |log| log.display().to_string()),
        resources: resources.map(|linux| cri::ContainerResources { linux: Some(linux), windows: None }),
        image_id: container.image_id.clone(),
        user: Some(cri::ContainerUser { linux: Some(user) }),
        stop_signal: config.stop_signal,
    }
}

/// As they were asked for; of those that are images it is told which image it came to be.
fn mounts(container: &ContainerView) -> Vec<cri::Mount> {
    let mut mounts = container.config.mounts.clone();
    for (mount, id) in mounts.iter_mut().zip(&container.volume_images) {
        if let Some(image) = &mut mount.image {
            image.image_ref.clone_from(id);
        }
    }
    mounts
}

/// For people: `crictl inspect`.
pub(super) fn container_info(container: &ContainerView) -> HashMap<String, String> {
    let info = serde_json::json!({
        "sandboxID": container.pod.as_str(),
        "pid": container.pid,
        "cgroup": container.cgroup_path,
        "upperDir": container.upper,
        "restarts": container.restarts,
        "runtimeSpec": serde_json::from_slice::<serde_json::Value>(&container.spec).unwrap_or_default(),
    });
    HashMap::from([("info".into(), info.to_string())])
}

pub(super) fn container_state(state: ContainerState) -> cri::ContainerState {
    match state {
        ContainerState::Created => cri::ContainerState::ContainerCreated,
        ContainerState::Running => cri::ContainerState::ContainerRunning,
        // Nothing runs; whether it will is in the message.
        ContainerState::Backoff | ContainerState::Exited => cri::ContainerState::ContainerExited,
        ContainerState::Unknown => cri::ContainerState::ContainerUnknown,
    }
}

/// The image as the person wrote it where the kubelet says so: it asks for containers by image id.
pub(super) fn image(container: &ContainerView) -> cri::ImageSpec {
    let mut image = container.config.image.clone().unwrap_or_default();
    if !image.user_specified_image.is_empty() {
        image.image.clone_from(&image.user_specified_image);
    }
    image
}

#[cfg(test)]
pub(super) mod tests {
    use std::{net::IpAddr, sync::Arc};

    use super::*;
    use crate::{
        id::{ContainerId, PodId},
        pod::Client,
    };

    pub(in crate::api::cri) fn pod() -> PodView {
        let config = cri::PodSandboxConfig {
            metadata: Some(cri::PodSandboxMetadata {
                name: "web".into(),
                uid: "u-1".into(),
                namespace: "default".into(),
                attempt: 2,
            }),
            labels: HashMap::from([("app".into(), "web".into())]),
            annotations: HashMap::from([("note".into(), "ä\n\"".into())]),
            ..Default::default()
        };
        PodView {
            id: PodId::random(),
            client: Client::Cri,
            config: Arc::new(config),
            handler: "berth".into(),
            state: PodState::Ready,
            created_at: 7,
            ips: vec![IpAddr::from([10, 88, 0, 2]), IpAddr::from([0xfd88, 0, 0, 0, 0, 0, 0, 2])],
            netns: None,
            overhead: None,
            resources: None,
            containers: vec![container()],
        }
    }

    pub(in crate::api::cri) fn container() -> ContainerView {
        let config = cri::ContainerConfig {
            metadata: Some(cri::ContainerMetadata { name: "c".into(), attempt: 1 }),
            image: Some(cri::ImageSpec {
                image: "sha256:0123".into(),
                user_specified_image: "busybox:1".into(),
                ..Default::default()
            }),
            labels: HashMap::from([("io.kubernetes.container.name".into(), "c".into())]),
            ..Default::default()
        };
        ContainerView {
            id: ContainerId::random(),
            pod: PodId::random(),
            client: Client::Cri,
            config: Arc::new(config),
            standalone: None,
            document: Default::default(),
            spec: Default::default(),
            env: Arc::default(),
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
            restarts: 0,
            pid: 42,
            uid: 1000,
            gid: 100,
            groups: vec![100, 27],
            log: Some("/var/log/pods/c/1.log".into()),
            cgroup_path: "/berth/x".into(),
            upper: "/var/lib/berth/x".into(),
            runtime: String::new(),
            health_check: None,
            health: None,
        }
    }

    #[test]
    fn a_pods_first_address_is_its_own_and_its_labels_come_back_unchanged() {
        let pod = pod();
        let status = pod_status(&pod);
        let network = status.network.unwrap();
        assert_eq!(network.ip, "10.88.0.2");
        assert_eq!(network.additional_ips[0].ip, "fd88::2");
        assert_eq!(
            (status.labels, status.annotations),
            (pod.config.labels.clone(), pod.config.annotations.clone())
        );
        assert_eq!(status.metadata, pod.config.metadata);
    }

    #[test]
    fn a_container_has_the_images_id_thrice_and_the_name_the_person_wrote() {
        let view = container();
        let listed = super::container(&view);
        let status = container_status(&view);
        assert_eq!((listed.image_ref.as_str(), listed.image_id.as_str()), ("sha256:0123", "sha256:0123"));
        assert_eq!((status.image_ref.as_str(), status.image_id.as_str()), ("sha256:0123", "sha256:0123"));
        assert_eq!(listed.image.unwrap().image, "busybox:1");
        assert_eq!(status.image.unwrap().image, "busybox:1");
    }

    #[test]
    fn a_container_says_as_whom_it_runs() {
        let user = container_status(&container()).user.unwrap().linux.unwrap();
        assert_eq!((user.uid, user.gid, user.supplemental_groups), (1000, 100, vec![100, 27]));
    }
}
