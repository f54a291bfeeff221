//! What happens to pods when the kubelet or berthd is started again under them: nothing.

use std::{
    fs,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use berth_cri::v1::ContainerState;
use berth_tests::until;
use serde_json::{Value, json};

use crate::{
    Test,
    node::{Node, PATIENCE, container, fixture, is_ready, with},
};

pub const TRIALS: &[(&str, Test)] = &[
    ("a_kubelet_that_starts_again_finds_its_pods", kubelet_again),
    ("berthd_starts_again_and_no_pod_is_restarted_or_unready", berthd_again),
    ("berthd_is_killed_and_no_pod_is_restarted_or_unready", berthd_killed),
];

/// On the host only: the VM takes its time.
pub const FAULTS: &[(&str, Test)] = &[
    ("a_container_that_can_not_be_made_is_not_counted", unmade),
    ("berthd_dies_while_a_pod_comes_and_goes_and_the_kubelet_goes_on", berthd_dies),
];

/// Named moments of the code, see recovery/faults.rs: some of a pod's coming, some of its going.
const COMES: &[&str] = &[
    "pod.intended",
    "pod.pinned",
    "pod.attached",
    "pod.recorded",
    "container.intended",
    "container.held",
    "container.grouped",
    "container.born",
    "container.recorded",
    "container.starting",
    "container.started",
];
const GOES: &[&str] = &["pod.stopping", "pod.down", "pod.stopped"];

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

/// A kubelet counts the logs that it finds, where the runtime has no container.
fn unmade(node: &Node) {
    let shared = node.volume("unmade");
    let source = shared.join("source");
    fs::write(&source, "").expect("make a file");
    let spec = json!({
        "containers": [with(fixture("c", &["http", "8080", "x"]), json!({
            "volumeMounts": [{"name": "source", "mountPath": "/tmp"}],
        }))],
        "volumes": [{"name": "source", "hostPath": {"path": source}}],
    });
    let pod = node.run("unmade", spec);
    // A file can't be bound to a directory.
    let refused = || {
        let log = node.daemon().log();
        let lines =
            log.lines().filter(|line| line.contains("op=\"CreateContainer\"") && line.contains("/tmp"));
        (lines.count() >= 2).then_some(())
    };
    assert!(until(PATIENCE, refused).is_some(), "{}\n{}", node.daemon().log_tail(), node.kubelet_log());
    fs::remove_file(&source).and_then(|()| fs::create_dir(&source)).expect("make a directory in its place");
    assert_eq!(container(&pod.wait_ready(), "c")["restartCount"], 0);
    let logs = fs::read_dir(pod.logs().join("c")).expect("list its logs").count();
    assert_eq!(logs, 1);
}

fn berthd_dies(node: &Node) {
    let mark = node.dir().join("mark");
    let arm = |point: &str| {
        let mut daemon = node.daemon_mut();
        daemon.stop();
        daemon.up_to(point, &mark);
    };
    let dies = |point: &str| {
        let died = until(PATIENCE, || node.daemon_mut().has_died().then_some(()));
        assert!(died.is_some() && mark.is_file(), "{point} was not reached\n{}", node.kubelet_log());
        fs::remove_file(&mark).expect("remove the mark");
        node.daemon_mut().up();
    };
    let spec =
        json!({"containers": [fixture("c", &["http", "8080", "x"])], "terminationGracePeriodSeconds": 1});
    for point in COMES {
        arm(point);
        let pod = node.run(&point.replace('.', "-"), spec.clone());
        dies(point);
        // What it finds made and not begun a kubelet takes for an attempt.
        let found = u64::from(["container.recorded", "container.starting"].contains(point));
        assert_eq!(container(&pod.wait_ready(), "c")["restartCount"], found, "{point}");
    }
    for point in GOES {
        let pod = node.run(&point.replace('.', "-"), spec.clone());
        pod.wait_ready();
        arm(point);
        pod.forget();
        dies(point);
    }
    // What was under way is over once no container of theirs is left that runs.
    let over = || {
        let all = node.daemon().list_containers(Default::default());
        let ours = all
            .iter()
            .filter(|one| one.labels.get("io.kubernetes.pod.name").is_some_and(|name| is_ours(name)));
        ours.into_iter().all(|one| one.state() == ContainerState::ContainerExited).then_some(())
    };
    assert!(until(PATIENCE, over).is_some(), "{:?}", node.daemon().list_containers(Default::default()));
}

fn is_ours(pod: &str) -> bool {
    COMES.iter().chain(GOES).any(|point| pod.starts_with(&point.replace('.', "-")))
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
