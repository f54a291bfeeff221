//! What no kubelet asks: each is refused by the field's name, nothing is left of it, and the daemon stays up.

use berth_cri::v1 as cri;
use berth_tests::{Daemon, asked};
use tonic::{Code, Status};

/// Refused as invalid, and the message says which field.
fn refused<T: std::fmt::Debug>(answer: Result<T, Status>, field: &str) {
    let status = answer.expect_err(field);
    assert_eq!(status.code(), Code::InvalidArgument, "{field}: {status}");
    assert!(status.message().contains(field), "no {field} in: {status}");
}

#[test]
fn pods_that_cannot_be_are_refused_by_the_fields_name() {
    let daemon = Daemon::start();
    let run = |change: &dyn Fn(&mut cri::PodSandboxConfig)| {
        let mut config = berth_tests::pod("hostile");
        change(&mut config);
        daemon.run_pod(config)
    };
    let security = |config: &mut cri::PodSandboxConfig| {
        config.linux.clone().unwrap_or_default().security_context.unwrap_or_default()
    };
    let secured = |config: &mut cri::PodSandboxConfig, security| {
        config.linux.get_or_insert_default().security_context = Some(security);
    };
    refused(
        run(&|config| {
            let mut context = security(config);
            context.namespace_options.get_or_insert_default().network = 17;
            secured(config, context);
        }),
        "config.linux.security_context.namespace_options.network",
    );
    refused(
        run(&|config| {
            let mut context = security(config);
            let profile = cri::SecurityProfile { profile_type: -4, ..Default::default() };
            context.seccomp = Some(profile);
            secured(config, context);
        }),
        "config.linux.security_context.seccomp.profile_type",
    );
    refused(run(&|config| config.log_directory = "/tmp/../etc".into()), "config.log_directory");
    refused(
        run(&|config| config.linux.get_or_insert_default().cgroup_parent = "/../../x".into()),
        "config.linux.cgroup_parent",
    );
    refused(
        run(&|config| config.metadata.get_or_insert_default().name = "a/../../b".into()),
        "config.metadata.name",
    );
    refused(
        run(&|config| {
            config.labels = (0..10_000).map(|n| (format!("label-{n}"), "x".to_owned())).collect();
        }),
        "config.labels",
    );
    refused(
        run(&|config| {
            let port = cri::PortMapping { host_port: 70_000, container_port: 80, ..Default::default() };
            config.port_mappings.push(port);
        }),
        "config.port_mappings[0].host_port",
    );
    assert!(daemon.list_pods(Default::default()).is_empty());
    daemon.plain_pod("after");
}

#[test]
fn containers_that_cannot_be_are_refused_by_the_fields_name() {
    let daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("hostile");
    let create =
        |change: &dyn Fn(&mut cri::ContainerConfig)| daemon.create(&pod, &asked("c", &["true"]).with(change));
    refused(create(&|config| config.log_path = "../../../etc/cron.d/x".into()), "config.log_path");
    refused(create(&|config| config.stop_signal = 4711), "config.stop_signal");
    let mount = |host: &str, at: &str| cri::Mount {
        host_path: host.into(),
        container_path: at.into(),
        ..Default::default()
    };
    refused(create(&|config| config.mounts.push(mount("/tmp/../etc", "/x"))), "config.mounts[0].host_path");
    refused(create(&|config| config.mounts.push(mount("/tmp", "x/y"))), "config.mounts[0].container_path");
    refused(
        create(&|config| {
            config.mounts.push(cri::Mount { propagation: 3, ..mount("/tmp", "/x") });
        }),
        "config.mounts[0].propagation",
    );
    refused(
        create(&|config| {
            config.annotations = (0..10_000).map(|n| (n.to_string(), String::new())).collect();
        }),
        "config.annotations",
    );
    refused(
        create(&|config| {
            berth_tests::security(config).namespace_options.get_or_insert_default().pid = 99;
        }),
        "config.linux.security_context.namespace_options.pid",
    );
    refused(
        create(&|config| {
            config.linux.get_or_insert_default().resources =
                Some(cri::LinuxContainerResources { cpu_period: -5, ..Default::default() });
        }),
        "config.linux.resources.cpu_period",
    );
    assert!(daemon.list_containers(Default::default()).is_empty());
}

#[test]
fn ids_that_are_paths_times_before_now_and_states_that_are_none_are_refused() {
    let daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("hostile");
    let id = daemon.launch(&pod, &asked("c", &["sleep", "inf"])).unwrap();
    for path in ["../../etc/passwd", "/", "a/b", ""] {
        refused(daemon.stop_pod(path), "pod_sandbox_id");
        refused(daemon.remove_pod(path), "pod_sandbox_id");
        refused(daemon.pod_status(path), "pod_sandbox_id");
        refused(daemon.status(path), "container_id");
        refused(daemon.stop_container(path, 0), "container_id");
        refused(daemon.remove_container(path), "container_id");
        refused(daemon.exec(path, &["true"], 1), "container_id");
    }
    refused(daemon.stop_container(&id, -1), "timeout");
    refused(daemon.exec(&id, &["true"], -1), "timeout");
    let state = Some(cri::ContainerStateValue { state: 12 });
    let filter = Some(cri::ContainerFilter { state, ..Default::default() });
    refused(
        daemon.call(daemon.runtime().list_containers(cri::ListContainersRequest { filter })),
        "filter.state",
    );
    // None of it has done anything to what runs.
    assert_eq!(daemon.status(&id).unwrap().state(), cri::ContainerState::ContainerRunning);
}

#[test]
fn a_message_over_sixteen_mebibytes_is_refused_and_one_just_below_is_read() {
    let daemon = Daemon::start();
    let with = |bytes: usize| {
        let mut config = berth_tests::pod("large");
        config.annotations.insert("large".into(), "x".repeat(bytes));
        daemon.run_pod(config)
    };
    let status = with(16 << 20).unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    assert!(status.message().contains("16777216 bytes"), "{status}");
    // It came through and was looked at: so much text is refused as annotations.
    refused(with(15 << 20), "config.annotations");
    daemon.plain_pod("after");
}

#[test]
fn a_pods_new_resources_are_noted_told_and_kept_over_a_restart() {
    let mut daemon = Daemon::start();
    let pod = daemon.plain_pod("resize");
    let update = |daemon: &Daemon, resources| {
        daemon.call(daemon.runtime().update_pod_sandbox_resources(cri::UpdatePodSandboxResourcesRequest {
            pod_sandbox_id: pod.id.clone(),
            overhead: None,
            resources,
        }))
    };
    let limit =
        |bytes| Some(cri::LinuxContainerResources { memory_limit_in_bytes: bytes, ..Default::default() });
    update(&daemon, limit(64 << 20)).unwrap();
    // What an update leaves out stays.
    update(&daemon, None).unwrap();
    refused(update(&daemon, limit(-7)), "resources.memory_limit_in_bytes");
    daemon.restart();
    let request = cri::PodSandboxStatusRequest { pod_sandbox_id: pod.id.clone(), verbose: true };
    let told = daemon.call(daemon.runtime().pod_sandbox_status(request)).unwrap();
    let info: serde_json::Value = serde_json::from_str(&told.info["info"]).unwrap();
    assert_eq!(info["resources"]["memory_limit_in_bytes"], 64 << 20);
    // The configuration that it was made from is what a retry is told apart by: unchanged.
    assert_eq!(daemon.run_pod(pod.config.clone()).unwrap().id, pod.id);
    daemon.remove_pod(&pod.id).unwrap();
    assert_eq!(update(&daemon, limit(1 << 20)).unwrap_err().code(), Code::NotFound);
}
