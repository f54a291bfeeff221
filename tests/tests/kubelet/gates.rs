//! The same with what a kubelet has behind gates: it asks the runtime for statistics, streams and events.

use berth_tests::until;
use serde_json::{Value, json};

use crate::{
    Test,
    node::{Node, PATIENCE, Setting, StaticPod, container, fixture, with},
};

pub const TRIALS: &[(&str, Test)] = &[
    ("events_of_the_runtime_are_heard", events),
    ("statistics_have_the_pods_network", network),
    ("a_stop_signal_of_the_pods_own_is_sent", stop_signal),
    ("a_pod_with_users_of_its_own_has_the_nodes_network", users_on_the_nodes_network),
    ("options_of_a_volume_hold_for_the_mount_that_has_them", mount_options),
];

/// Starts the kubelet again with them.
pub fn open(node: &Node) {
    let gates = json!({
        "EventedPLEG": true,
        "PodAndContainerStatsFromCRI": true,
        "CRIListStreaming": true,
        "ContainerStopSignals": true,
        "UserNamespacesHostNetworkSupport": true,
        "VolumeBindMountOptions": true,
    });
    node.stop_kubelet();
    let over = json!({"staticPodPath": node.manifests(), "registerNode": false, "featureGates": gates});
    node.set(Setting { over, arguments: Vec::new() });
    node.start_kubelet();
}

fn events(node: &Node) {
    let pod = node.run("events", json!({"containers": [fixture("c", &["sleep", "inf"])]}));
    pod.wait_ready();
    let metrics = node.get("/metrics").expect("ask the kubelet for its metrics");
    let of = |name: &str| {
        let line = metrics.lines().find(|line| line.split([' ', '{']).next() == Some(name))?;
        line.rsplit(' ').next()?.parse::<f64>().ok()
    };
    let counted = of("kubelet_evented_pleg_connection_success_count");
    assert!(counted.is_some_and(|times| times >= 1.0), "{counted:?}");
    assert_eq!(of("kubelet_evented_pleg_connection_error_count").unwrap_or(0.0), 0.0);
}

fn network(node: &Node) {
    let pod = node.run("network", json!({"containers": [fixture("c", &["http", "8080", "x"])]}));
    pod.wait_ready();
    let found = until(PATIENCE, || {
        let summary: Value = serde_json::from_str(&node.get("/stats/summary")?).ok()?;
        let pods = summary["pods"].as_array()?;
        let pod = pods.iter().find(|pod| pod["podRef"]["name"] == "network-node")?;
        (pod["network"]["rxBytes"].as_u64().is_some() && pod["cpu"]["usageCoreNanoSeconds"].as_u64()? > 0)
            .then_some(())
    });
    assert!(found.is_some(), "{:?}", node.get("/stats/summary"));
}

fn stop_signal(node: &Node) {
    let pod = node.run(
        "stop-signal",
        json!({
            "os": {"name": "linux"},
            // It says what it caught, and stays.
            "terminationGracePeriodSeconds": 3,
            "containers": [with(
                fixture("c", &["trap", "USR1"]),
                json!({"lifecycle": {"stopSignal": "SIGUSR1"}}),
            )],
        }),
    );
    let ready = pod.wait_ready();
    assert_eq!(container(&ready, "c")["stopSignal"], "SIGUSR1");
    let id = container(&ready, "c")["containerID"].as_str().unwrap_or_default();
    let id = id.trim_start_matches("berth://").to_owned();
    let log = pod.logs().join("c/0.log");
    let heard = std::thread::scope(|scope| {
        let watcher =
            scope.spawn(|| until(PATIENCE, || crate::node::read(&log).filter(|text| text.contains("USR1"))));
        pod.remove();
        watcher.join().expect("the watcher ends")
    });
    assert!(heard.is_some(), "it was not sent USR1");
    let gone = until(PATIENCE, || node.daemon().status(&id).is_err().then_some(()));
    assert!(gone.is_some(), "container {id} stays");
}

fn users_on_the_nodes_network(node: &Node) {
    let pod = node.run(
        "host-users",
        json!({
            "hostUsers": false,
            "hostNetwork": true,
            "restartPolicy": "Never",
            "containers": [fixture("c", &["info"])],
        }),
    );
    let told = told(&pod);
    assert!(told["interfaces"]["node0"].is_object(), "{}", told["interfaces"]);
    assert_ne!(told["uid_map"].as_str().unwrap_or_default().split_whitespace().nth(1), Some("0"));
}

fn mount_options(node: &Node) {
    let pod = node.run(
        "mount-options",
        json!({
            "restartPolicy": "Never",
            "containers": [with(fixture("c", &["info"]), json!({"volumeMounts": [
                {"name": "empty", "mountPath": "/bound", "bindMountOptions": ["noexec", "nodev", "nosuid"]},
                {"name": "empty", "mountPath": "/plain"},
            ]}))],
            "volumes": [{"name": "empty", "emptyDir": {}}],
        }),
    );
    let told = told(&pod);
    let has = |target: &str, option: &str| {
        let mut mounts = told["mounts"].as_array().into_iter().flatten();
        let mount = mounts.find(|mount| mount["target"] == target).expect("it is mounted");
        mount["options"].as_array().is_some_and(|all| all.iter().any(|one| one == option))
    };
    for option in ["noexec", "nodev", "nosuid"] {
        assert!(has("/bound", option), "{option}: {}", told["mounts"]);
    }
    assert!(!has("/plain", "noexec"), "{}", told["mounts"]);
}

/// What a pod's `info` said, which has ended well.
fn told(pod: &StaticPod<'_>) -> Value {
    let ended = pod.wait("its end", |pod| {
        let ended = &container(pod, "c")["state"]["terminated"];
        ended.is_object().then(|| ended.clone())
    });
    assert_eq!(ended["exitCode"], 0, "{ended}");
    let log = berth_tests::read_log(&pod.logs().join("c/0.log"));
    serde_json::from_str(&log[0].content).expect("a line is JSON")
}
