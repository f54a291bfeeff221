//! What is told of what runs: stats of pods, metrics, events, streamed lists.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use berth_cri::v1::{self as cri, ContainerEventType as Kind};
use berth_tests::{Daemon, Options, asked, eventually, host_network, skip, web};
use prost::Message;
use tonic::{Code, Streaming};

fn all<T>(daemon: &Daemon, mut stream: Streaming<T>) -> Vec<T> {
    daemon.wait(async {
        let mut told = Vec::new();
        while let Some(piece) = stream.message().await.unwrap() {
            told.push(piece);
        }
        told
    })
}

fn pod_stats(daemon: &Daemon, id: &str) -> Result<cri::PodSandboxStats, tonic::Status> {
    let request = cri::PodSandboxStatsRequest { pod_sandbox_id: id.into() };
    daemon.call(daemon.runtime().pod_sandbox_stats(request)).map(|answer| answer.stats.unwrap())
}

#[test]
fn a_pods_stats_are_its_containers_its_network_and_its_processes() {
    let daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("measured");
    let id = daemon.launch(&pod, &asked("c", &["sleep", "inf"])).unwrap();
    let stats = pod_stats(&daemon, &pod.id).unwrap();
    let linux = stats.linux.unwrap();
    assert_eq!(stats.attributes.unwrap().id, pod.id);
    assert_eq!(linux.network.unwrap().default_interface.unwrap().name, "eth0");
    assert!(linux.process.unwrap().process_count.unwrap().value >= 1);
    assert!(linux.memory.unwrap().working_set_bytes.unwrap().value > 0);
    let cpu = linux.cpu.unwrap();
    assert!(cpu.usage_core_nano_seconds.unwrap().value > 0);
    assert_eq!(cpu.usage_nano_cores, None, "there is one sample only");
    assert_eq!(linux.containers[0].attributes.as_ref().unwrap().id, id);
    eventually("a rate", || {
        pod_stats(&daemon, &pod.id).unwrap().linux.unwrap().cpu.unwrap().usage_nano_cores
    });
    eventually("the writable layer", || {
        pod_stats(&daemon, &pod.id).unwrap().linux.unwrap().containers[0].writable_layer.clone()
    });

    let host = daemon.run_pod(host_network("hosts")).unwrap();
    assert_eq!(pod_stats(&daemon, &host.id).unwrap().linux.unwrap().network, None);
    assert_eq!(pod_stats(&daemon, &"f".repeat(64)).unwrap_err().code(), Code::NotFound);
    let filter = Some(cri::PodSandboxStatsFilter { id: pod.id[..8].into(), ..Default::default() });
    let request = cri::ListPodSandboxStatsRequest { filter };
    let listed = daemon.call(daemon.runtime().list_pod_sandbox_stats(request)).unwrap().stats;
    assert_eq!(listed.len(), 1);
}

/// Pressure is counted on cgroup v2, by kernels that have it on: there all three are told, of pod and container.
#[test]
fn pressure_is_told_where_the_kernel_counts_it() {
    let daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("pressed");
    let asked = asked("c", &["burn", "1000"]).limited(|limits| {
        limits.cpu_period = 10_000;
        limits.cpu_quota = 1_000;
    });
    let id = daemon.launch(&pod, &asked).unwrap();
    let path = daemon.details(&id)["cgroup"].as_str().unwrap().to_owned();
    let of_container = || {
        let request = cri::ContainerStatsRequest { container_id: id.clone() };
        daemon.call(daemon.runtime().container_stats(request)).unwrap().stats.unwrap()
    };
    let file = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
        .map(|root| std::path::Path::new(root).join(path.trim_start_matches('/')).join("cpu.pressure"));
    if file.iter().all(|file| std::fs::read_to_string(file).is_err()) {
        let stats = of_container();
        assert_eq!((stats.cpu.unwrap().psi, stats.memory.unwrap().psi, stats.io), (None, None, None));
        return skip("pressure_is_told_where_the_kernel_counts_it", "its cgroup has no cpu.pressure here");
    }
    // It may run a tenth of the time and always wants to.
    let stalled = |psi: Option<cri::PsiStats>| psi.unwrap().some.unwrap().total;
    eventually("the container to wait for the processor", || {
        let stats = of_container();
        assert!(stats.memory.unwrap().psi.is_some() && stats.io.unwrap().psi.is_some());
        (stalled(stats.cpu.unwrap().psi) > 1_000_000).then_some(())
    });
    let linux = pod_stats(&daemon, &pod.id).unwrap().linux.unwrap();
    assert!(linux.containers[0].cpu.as_ref().unwrap().psi.is_some());
}

#[test]
fn metrics_have_the_labels_of_their_descriptors() {
    let daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("metrics");
    let id = daemon.launch(&pod, &asked("c", &["sleep", "inf"])).unwrap();
    let descriptors =
        daemon.call(daemon.runtime().list_metric_descriptors(cri::ListMetricDescriptorsRequest {}));
    let descriptors = descriptors.unwrap().descriptors;
    let keys: BTreeMap<_, _> = descriptors.iter().map(|one| (one.name.as_str(), &one.label_keys)).collect();
    let told = daemon.call(daemon.runtime().list_pod_sandbox_metrics(cri::ListPodSandboxMetricsRequest {}));
    let told = told.unwrap().pod_metrics.remove(0);
    assert_eq!((&told.pod_sandbox_id, &told.container_metrics[0].container_id), (&pod.id, &id));
    let samples = || told.metrics.iter().chain(&told.container_metrics[0].metrics);
    for sample in samples() {
        assert_eq!(keys[sample.name.as_str()].len(), sample.label_values.len(), "{}", sample.name);
    }
    let names: BTreeSet<_> = samples().map(|sample| sample.name.as_str()).collect();
    for name in [
        "container_cpu_usage_seconds_total",
        "container_memory_working_set_bytes",
        "container_network_receive_bytes_total",
        "container_start_time_seconds",
        "container_processes",
        "container_file_descriptors",
        "container_fs_limit_bytes",
    ] {
        assert!(names.contains(name), "{name} is not among {names:?}");
    }
}

#[test]
fn events_tell_what_is_there_then_what_changes_and_end_with_the_daemon() {
    let mut daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("events");
    let mut stream = daemon.call(daemon.runtime().get_container_events(cri::GetEventsRequest {})).unwrap();
    let id = daemon.launch(&pod, &asked("c", &["exit", "3"])).unwrap();
    daemon.exited(&id);
    daemon.remove_container(&id).unwrap();
    daemon.remove_pod(&pod.id).unwrap();
    let mut told_at = 0;
    let expected = [
        (&pod.id, Kind::ContainerStartedEvent),
        (&id, Kind::ContainerCreatedEvent),
        (&id, Kind::ContainerStartedEvent),
        (&id, Kind::ContainerStoppedEvent),
        (&id, Kind::ContainerDeletedEvent),
        (&pod.id, Kind::ContainerStoppedEvent),
        (&pod.id, Kind::ContainerDeletedEvent),
    ];
    for (subject, kind) in expected {
        let event = daemon.wait(stream.message()).unwrap().unwrap();
        assert_eq!((&event.container_id, event.container_event_type()), (subject, kind));
        assert_eq!(event.pod_sandbox_status.unwrap().id, pod.id);
        if kind == Kind::ContainerStoppedEvent && *subject == id {
            assert_eq!(event.containers_statuses[0].exit_code, 3);
        }
        assert!(event.created_at > told_at, "its time is its place in the order");
        told_at = event.created_at;
    }
    let begun = std::time::Instant::now();
    assert!(daemon.stop().success());
    assert!(begun.elapsed().as_secs() < 4, "a listener held the daemon up");
    assert_eq!(daemon.wait(stream.message()).unwrap(), None);
}

/// A kubelet 1.37 that follows events and gets a time with a pod's status looks for its containers there, and then finds
/// none of them active: init containers that are done would run again. Without a time it asks for each.
#[test]
fn a_pods_status_leaves_its_containers_to_their_own() {
    let daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("status");
    let id = daemon.launch(&pod, &asked("c", &["exit", "3"])).unwrap();
    daemon.exited(&id);
    let request = cri::PodSandboxStatusRequest { pod_sandbox_id: pod.id.clone(), verbose: false };
    let told = daemon.call(daemon.runtime().pod_sandbox_status(request)).unwrap();
    assert_eq!((told.timestamp, told.containers_statuses), (0, Vec::new()));
}

#[test]
fn streamed_lists_say_what_the_lists_say() {
    let daemon = Daemon::with_fixture();
    let pods: Vec<_> = (0..3).map(|number| daemon.plain_pod(&format!("many-{number}"))).collect();
    for pod in &pods {
        daemon.launch(pod, &asked("c", &["sleep", "inf"])).unwrap();
    }
    let runtime = || daemon.runtime();
    let request = cri::StreamPodSandboxesRequest::default();
    let told = all(&daemon, daemon.call(runtime().stream_pod_sandboxes(request)).unwrap());
    let told: Vec<_> = told.into_iter().flat_map(|piece| piece.pod_sandboxes).collect();
    assert_eq!(told, daemon.list_pods(cri::PodSandboxFilter::default()));
    let request = cri::StreamContainersRequest::default();
    let told = all(&daemon, daemon.call(runtime().stream_containers(request)).unwrap());
    let told: Vec<_> = told.into_iter().flat_map(|piece| piece.containers).collect();
    assert_eq!(told, daemon.list_containers(cri::ContainerFilter::default()));
    let request = cri::StreamImagesRequest::default();
    let told = all(&daemon, daemon.call(daemon.images().stream_images(request)).unwrap());
    let told: Vec<_> = told.into_iter().flat_map(|piece| piece.images).collect();
    let listed = daemon.call(daemon.images().list_images(cri::ListImagesRequest::default())).unwrap().images;
    assert_eq!(told, listed);

    let request = cri::StreamContainerStatsRequest::default();
    let told = all(&daemon, daemon.call(runtime().stream_container_stats(request)).unwrap());
    assert_eq!(told.iter().map(|piece| piece.container_stats.len()).sum::<usize>(), 3);
    let request = cri::StreamPodSandboxStatsRequest::default();
    let told = all(&daemon, daemon.call(runtime().stream_pod_sandbox_stats(request)).unwrap());
    assert_eq!(told.iter().map(|piece| piece.pod_sandbox_stats.len()).sum::<usize>(), 3);
    let request = cri::StreamPodSandboxMetricsRequest {};
    let told = all(&daemon, daemon.call(runtime().stream_pod_sandbox_metrics(request)).unwrap());
    assert_eq!(told.iter().map(|piece| piece.pod_sandbox_metrics.len()).sum::<usize>(), 3);
}

/// Nothing of a list is left out for its size: it comes in pieces that a client with gRPC's usual limit takes.
#[test]
fn a_list_larger_than_one_message_comes_in_pieces_below_four_mebibytes() {
    let daemon = Daemon::with_fixture();
    let large = |annotations: &mut HashMap<String, String>| {
        annotations.insert("large".into(), "x".repeat(900 << 10));
    };
    for number in 0..3 {
        let mut config = host_network(&format!("large-{number}"));
        large(&mut config.annotations);
        let pod = daemon.run_pod(config).unwrap();
        let runs = asked("runs", &["sleep", "inf"]).with(|config| large(&mut config.annotations));
        daemon.launch(&pod, &runs).unwrap();
        let waits = asked("waits", &["sleep", "inf"]).with(|config| large(&mut config.annotations));
        daemon.create(&pod, &waits).unwrap();
    }
    let containers: Vec<_> =
        daemon.list_containers(cri::ContainerFilter::default()).into_iter().map(|one| one.id).collect();
    let pods: Vec<_> =
        daemon.list_pods(cri::PodSandboxFilter::default()).into_iter().map(|one| one.id).collect();
    assert_eq!((containers.len(), pods.len()), (6, 3));

    let runtime = || daemon.runtime();
    let request = cri::StreamContainersRequest::default();
    let told = daemon.call(runtime().stream_containers(request)).unwrap();
    let told = in_pieces(&daemon, told, |piece| piece.containers);
    assert_eq!(told.into_iter().map(|one| one.id).collect::<Vec<_>>(), containers);
    let request = cri::StreamPodSandboxesRequest::default();
    let told = daemon.call(runtime().stream_pod_sandboxes(request)).unwrap();
    let told = in_pieces(&daemon, told, |piece| piece.pod_sandboxes);
    assert_eq!(told.into_iter().map(|one| one.id).collect::<Vec<_>>(), pods);
    let request = cri::StreamContainerStatsRequest::default();
    let told = daemon.call(runtime().stream_container_stats(request)).unwrap();
    let told = in_pieces(&daemon, told, |piece| piece.container_stats);
    assert_eq!(told.len(), 3, "of those that run");
    let request = cri::StreamPodSandboxStatsRequest::default();
    let told = daemon.call(runtime().stream_pod_sandbox_stats(request)).unwrap();
    let told = in_pieces(&daemon, told, |piece| piece.pod_sandbox_stats);
    let of = |stats: cri::PodSandboxStats| stats.attributes.unwrap().id;
    assert_eq!(told.into_iter().map(of).collect::<Vec<_>>(), pods);
}

/// What a list that does not fit one message says.
fn in_pieces<P: Message + Default + 'static, T>(
    daemon: &Daemon,
    stream: Streaming<P>,
    items: impl Fn(P) -> Vec<T>,
) -> Vec<T> {
    let pieces = all(daemon, stream);
    assert!(pieces.len() > 1, "one piece of {} bytes", pieces[0].encoded_len());
    assert!(pieces.iter().all(|piece| piece.encoded_len() < 4 << 20));
    pieces.into_iter().flat_map(items).collect()
}

#[test]
fn the_daemons_own_metrics_are_where_prometheus_looks() {
    let options = Options { metrics_listen: "127.0.0.1:0".into(), ..Default::default() };
    let daemon = Daemon::with_fixture_and(options);
    let log = daemon.log();
    let served = log.lines().find_map(|line| line.split_once("metrics are served address="));
    let address: std::net::SocketAddr = served.unwrap_or_else(|| panic!("{log}")).1.trim().parse().unwrap();
    let ask = |line| web::ask(&address.ip().to_string(), address.port(), line).unwrap();
    let pod = daemon.plain_pod("metrics");
    daemon.launch(&pod, &asked("c", &["sleep", "inf"])).unwrap();
    let absent = cri::ContainerStatusRequest { container_id: "0".repeat(64), verbose: false };
    daemon.call(daemon.runtime().container_status(absent)).unwrap_err();

    let text = ask("GET /metrics");
    assert!(text.starts_with("HTTP/1.0 200 OK") && text.contains("application/openmetrics-text"), "{text}");
    let service = r#"service="runtime.v1.RuntimeService""#;
    for line in [
        r#"berth_pods{client="cri",state="ready"} 1"#.to_owned(),
        r#"berth_containers{client="cri",state="running"} 1"#.to_owned(),
        format!(r#"berth_rpc_seconds_count{{{service},method="StartContainer",code="Ok"}} 1"#),
        format!(r#"berth_rpc_seconds_count{{{service},method="ContainerStatus",code="NotFound"}} 1"#),
        "# EOF".to_owned(),
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
    let resident = text.lines().find_map(|line| line.strip_prefix("berth_process_resident_memory_bytes "));
    assert!(resident.unwrap().parse::<u64>().unwrap() > 1 << 20, "{text}");
    assert!(ask("GET /").starts_with("HTTP/1.0 404"));
    assert!(ask("POST /metrics").starts_with("HTTP/1.0 405"));
}
