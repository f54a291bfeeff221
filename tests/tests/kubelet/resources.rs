//! Limits: given, changed under a running container, and what happens over them; and how a container is told to end.

use berth_tests::until;
use serde_json::{Value, json};

use crate::{
    cluster::{Cluster, Test, busybox},
    node::{PATIENCE, container, fixture, with},
};

pub const TRIALS: &[(&str, Test)] = &[
    ("cpu_and_memory_are_resized_in_place", resize),
    ("memory_resized_with_a_restart_restarts", resize_by_restart),
    ("over_its_memory_a_container_is_oom_killed", oom),
    ("a_stop_signal_of_its_own_ends_a_container", stop_signal),
    ("kubectl_top_and_the_summary_have_figures", statistics),
];

/// What the first of these files says that a container's cgroup has.
fn limit(cluster: &Cluster, status: &Value, files: [&str; 2]) -> Option<String> {
    let id = status["containerID"].as_str().unwrap_or_default().trim_start_matches("berth://");
    files.iter().find_map(|file| cluster.node().container_file(id, file))
}

fn resized(cluster: &Cluster, name: &str, policy: &str, cpu: &str, memory: &str) -> (Value, Value) {
    let status = |pod: &Value| container(pod, "c").clone();
    let before = status(&cluster.wait_ready(name));
    let patch = json!({"spec": {"containers": [{"name": "c", "resources": {
        "requests": {"cpu": cpu, "memory": memory}, "limits": {"cpu": cpu, "memory": memory},
    }}]}});
    cluster.ok(&["patch", "pod", name, "--subresource=resize", "-p", &patch.to_string()]);
    let after = cluster.wait_for("pods", name, &format!("its new resources ({policy})"), |pod| {
        let status = container(pod, "c");
        let limits = &status["resources"]["limits"];
        (limits["cpu"] == cpu && limits["memory"] == memory && status["ready"] == true)
            .then(|| status.clone())
    });
    (before, after)
}

fn sized(policy: &str) -> Value {
    let resources = json!({"cpu": "100m", "memory": "64Mi"});
    json!({"terminationGracePeriodSeconds": 1, "containers": [with(fixture("c", &["sleep", "inf"]), json!({
        "resources": {"requests": resources, "limits": resources},
        "resizePolicy": [
            {"resourceName": "cpu", "restartPolicy": "NotRequired"},
            {"resourceName": "memory", "restartPolicy": policy},
        ],
    }))]})
}

fn resize(cluster: &Cluster) {
    let _pod = cluster.pod("resize", &sized("NotRequired"));
    // Up, and down again.
    for (cpu, memory, quota, bytes) in [
        ("200m", "128Mi", ("20000", "20000 100000"), "134217728"),
        ("50m", "48Mi", ("5000", "5000 100000"), "50331648"),
    ] {
        let (before, after) = resized(cluster, "resize", "NotRequired", cpu, memory);
        assert_eq!(
            (&after["containerID"], &after["restartCount"]),
            (&before["containerID"], &before["restartCount"])
        );
        let found = limit(cluster, &after, ["memory.limit_in_bytes", "memory.max"]);
        assert_eq!(found.as_deref(), Some(bytes));
        let found = limit(cluster, &after, ["cpu.cfs_quota_us", "cpu.max"]);
        assert!(found.as_deref().is_some_and(|text| text == quota.0 || text == quota.1), "{found:?}");
    }
}

fn resize_by_restart(cluster: &Cluster) {
    let _pod = cluster.pod("resize-restart", &sized("RestartContainer"));
    let (before, after) = resized(cluster, "resize-restart", "RestartContainer", "100m", "96Mi");
    assert_ne!(after["containerID"], before["containerID"]);
    assert_eq!(after["restartCount"], 1);
}

fn oom(cluster: &Cluster) {
    let _pod = cluster.pod(
        "oom",
        &json!({
            "restartPolicy": "Never",
            "containers": [
                with(fixture("init", &["eat", "256M"]), json!({"resources": {"limits": {"memory": "32Mi"}}})),
                // A child of its first process dies, and the first process tells so.
                with(busybox("child", "dd if=/dev/zero of=/dev/null bs=200M count=1; exit $?"), json!({
                    "resources": {"limits": {"memory": "24Mi"}},
                })),
            ],
        }),
    );
    for name in ["init", "child"] {
        let ended = cluster.ended("oom", name);
        assert_eq!((&ended["exitCode"], &ended["reason"]), (&json!(137), &json!("OOMKilled")), "{ended}");
    }
}

fn stop_signal(cluster: &Cluster) {
    // Without its signal it would be killed after ten minutes.
    let script = "trap 'echo heard; exit 0' USR1; trap '' TERM; echo ready; while :; do usleep 50000; done";
    let pod = cluster.pod(
        "stop-signal",
        &json!({
            "os": {"name": "linux"},
            "terminationGracePeriodSeconds": 600,
            "containers": [with(busybox("c", script), json!({"lifecycle": {"stopSignal": "SIGUSR1"}}))],
        }),
    );
    let ready = cluster.wait_ready("stop-signal");
    assert_eq!(container(&ready, "c")["stopSignal"], "SIGUSR1");
    let says = until(PATIENCE, || cluster.ok(&["logs", "stop-signal"]).contains("ready").then_some(()));
    assert!(says.is_some(), "its trap is not set");
    // kubectl waits until it is gone, two minutes at most.
    drop(pod);
}

fn statistics(cluster: &Cluster) {
    let _pod = cluster.pod(
        "statistics",
        &json!({"containers": [fixture("c", &["burn", "600"])], "terminationGracePeriodSeconds": 1}),
    );
    cluster.wait_ready("statistics");
    let found = until(PATIENCE, || {
        let words = ["get", "--raw", "/api/v1/nodes/node/proxy/stats/summary"];
        let summary: Value = serde_json::from_str(&cluster.ok(&words)).ok()?;
        let pods = summary["pods"].as_array()?;
        let pod = pods.iter().find(|pod| pod["podRef"]["name"] == "statistics")?;
        let one = pod["containers"].as_array()?.first()?;
        (one["cpu"]["usageNanoCores"].as_u64()? > 0 && one["memory"]["workingSetBytes"].as_u64()? > 0)
            .then_some(())
    });
    assert!(found.is_some(), "the summary has no figures of it");
}
