//! What happens to pods when the kubelet or berthd is started again under them: nothing.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use serde_json::{Value, json};

use crate::{
    Test,
    node::{Node, container, fixture, is_ready, with},
};

pub const TRIALS: &[(&str, Test)] = &[
    ("a_kubelet_that_starts_again_finds_its_pods", kubelet_again),
    ("berthd_starts_again_and_no_pod_is_restarted_or_unready", berthd_again),
    ("berthd_is_killed_and_no_pod_is_restarted_or_unready", berthd_killed),
];

fn probed() -> Value {
    json!({"containers": [with(fixture("c", &["http", "8080", "x"]), json!({
        "readinessProbe": {"httpGet": {"port": 8080, "path": "/"}, "periodSeconds": 1},
        "livenessProbe": {"exec": {"command": ["/bin/fixture", "true"]}, "periodSeconds": 1},
    }))]})
}

/// What must not change.
fn identity(pod: &Value) -> (Value, Value, Value) {
    let status = container(pod, "c");
    (status["containerID"].clone(), status["restartCount"].clone(), pod["status"]["podIP"].clone())
}

fn kubelet_again(node: &Node) {
    let pod = node.run("kept", probed());
    let before = identity(&pod.wait_ready());
    node.stop_kubelet();
    node.start_kubelet();
    assert_eq!(identity(&pod.wait_ready()), before);
}

fn berthd_again(node: &Node) {
    watched(node, "again", |node| {
        for _ in 0..3 {
            node.daemon_mut().restart();
        }
    });
}

fn berthd_killed(node: &Node) {
    watched(node, "killed", |node| {
        for _ in 0..3 {
            let mut daemon = node.daemon_mut();
            daemon.kill9();
            daemon.up();
        }
    });
}

/// Has the kubelet looked at all the while, and for a second of its own after.
fn watched(node: &Node, name: &str, disturb: impl Fn(&Node)) {
    let pod = node.run(name, probed());
    let before = identity(&pod.wait_ready());
    let over = AtomicBool::new(false);
    let unready = thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut seen = Vec::new();
            while !over.load(Ordering::Relaxed) {
                if let Some(pod) = node.pod(name)
                    && !is_ready(&pod)
                {
                    seen.push(pod["status"]["conditions"].clone());
                }
                thread::yield_now();
            }
            seen
        });
        disturb(node);
        // A probe of after the last start has come back: its result is newer than all that was disturbed.
        node.daemon()
            .exec_ok(before.0.as_str().unwrap_or_default().trim_start_matches("berth://"), &["sleep", "3"]);
        over.store(true, Ordering::Relaxed);
        watcher.join().expect("the watcher ends")
    });
    assert_eq!(unready, Vec::<Value>::new());
    assert_eq!(identity(&pod.wait_ready()), before);
}
