//! Pods whose annotation asks Berth itself to start again what failed, under a kubelet that does that too: whoever was first,
//! each attempt is there once, and the kubelet counts it, shows it and finds its log.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use berth_cri::v1::{self as cri, ContainerState};
use berth_tests::until;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};

use crate::{
    Test, kubectl,
    node::{NAME, Node, PATIENCE, StaticPod, container, fixture, read, with},
};

pub const TOGETHER: &[(&str, Test)] = &[
    ("what_berth_starts_again_is_counted_and_its_logs_are_found", counted),
    ("a_crash_loop_that_both_start_again_has_each_attempt_once", crash_loop),
    ("what_failed_and_then_did_its_work_is_not_started_again", on_failure),
    ("a_pod_that_is_never_to_restart_ends_for_both", never),
];

pub const ALONE: &[(&str, Test)] = &[
    ("what_berth_starts_again_without_the_kubelet_is_counted_by_it", without_kubelet),
    ("what_ends_without_berthd_has_one_next_attempt", without_berthd),
];

fn asking<'a>(node: &'a Node, name: &str, policy: &str, spec: Value) -> StaticPod<'a> {
    node.run_asking(name, json!({"berth.dev/restart": policy}), spec)
}

/// What berthd has of a pod's container `c`, by attempt; no two of them run, and no attempt is there twice.
fn attempts(node: &Node, name: &str) -> BTreeMap<u32, cri::Container> {
    let pod = format!("{name}-{NAME}");
    let all = node.daemon().list_containers(cri::ContainerFilter::default());
    let ours = all.into_iter().filter(|one| one.labels.get("io.kubernetes.pod.name") == Some(&pod));
    let mut found = BTreeMap::new();
    for one in ours {
        let attempt = one.metadata.as_ref().map_or(0, |metadata| metadata.attempt);
        let twice = found.insert(attempt, one);
        assert!(twice.is_none(), "attempt {attempt} is there twice: {twice:?}, {:?}", found[&attempt]);
    }
    let running = found.values().filter(|one| one.state() == ContainerState::ContainerRunning).count();
    assert!(running <= 1, "{running} run at once: {found:?}");
    found
}

fn newest(node: &Node, name: &str) -> (u32, cri::Container) {
    attempts(node, name).pop_last().expect("berthd has a container of it")
}

/// How often berthd has made one for this pod, whoever asked for it.
fn made(node: &Node, one: &cri::Container) -> usize {
    let log = node.daemon().log();
    let made = |line: &&str| line.contains("container created") && line.contains(&one.pod_sandbox_id);
    log.lines().filter(made).count()
}

/// Ends the container that runs, and waits for the next one to run.
fn kill_and_wait(node: &Node, name: &str, attempt: u32) {
    let id = attempts(node, name)[&attempt].id.clone();
    kill_container(node, &id);
    running(node, name, attempt + 1);
}

fn kill_container(node: &Node, id: &str) {
    let pid = node.daemon().details(id)["pid"].as_i64().expect("it has a process");
    kill(Pid::from_raw(i32::try_from(pid).expect("a process id")), Signal::SIGKILL).expect("kill it");
}

fn running(node: &Node, name: &str, attempt: u32) -> cri::Container {
    let runs = || {
        let (newest, one) = attempts(node, name).pop_last()?;
        (newest == attempt && one.state() == ContainerState::ContainerRunning).then_some(one)
    };
    until(PATIENCE, runs)
        .unwrap_or_else(|| panic!("attempt {attempt} does not run: {:?}", attempts(node, name)))
}

/// Waits until the kubelet shows that attempt as the one that runs, and the one before as the last.
fn shown(node: &Node, pod: &StaticPod<'_>, attempt: u32, last_exit: i32) {
    let id = format!("berth://{}", running(node, &pod.name, attempt).id);
    let seen = pod.wait(&format!("attempt {attempt}"), |pod| {
        let status = container(pod, "c");
        (status["containerID"] == id.as_str() && status["state"]["running"].is_object())
            .then(|| status.clone())
    });
    assert_eq!(seen["restartCount"], attempt, "{seen}");
    let last = &seen["lastState"]["terminated"];
    assert_eq!(last["exitCode"], last_exit, "{seen}");
    assert_eq!(seen["ready"], true, "{seen}");
}

/// The log that the kubelet gives out is that attempt's.
fn log_is(directory: &Path, pod: &str, which: &str, attempt: u32) {
    let own = directory.join(format!("c/{attempt}.log"));
    let text = read(&own).unwrap_or_else(|| panic!("{} is not there", own.display()));
    let path = format!("/containerLogs/default/{pod}-{NAME}/c?timestamps=true{which}");
    let through = kubectl::raw("get", &path).expect("ask the kubelet for the log");
    // The kubelet gives the time and the content, without stream and tag.
    let bare = |line: &str| {
        let mut words = line.splitn(4, ' ');
        format!("{} {}", words.next().unwrap_or_default(), words.nth(2).unwrap_or_default())
    };
    assert!(!text.is_empty(), "{} is empty", own.display());
    assert_eq!(through.lines().collect::<Vec<_>>(), text.lines().map(bare).collect::<Vec<_>>());
}

fn counted(node: &Node) {
    let pod = asking(node, "asks-always", "always", json!({"containers": [fixture("c", &["trap", "USR1"])]}));
    pod.wait_ready();
    // Looked at all the while: `attempts` says what may never be.
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut last = 0;
            while !over.load(Ordering::Relaxed) {
                attempts(node, "asks-always");
                let now =
                    node.pod("asks-always").and_then(|pod| container(&pod, "c")["restartCount"].as_u64());
                let now = now.unwrap_or(last);
                assert!(now >= last, "{now} restarts after {last}");
                last = now;
                thread::yield_now();
            }
        });
        let disturbed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for attempt in 0..4 {
                kill_and_wait(node, "asks-always", attempt);
            }
            shown(node, &pod, 4, 137);
        }));
        over.store(true, Ordering::Relaxed);
        disturbed.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    log_is(&pod.logs(), "asks-always", "", 4);
    log_is(&pod.logs(), "asks-always", "&previous=true", 3);
    assert_eq!(made(node, &newest(node, "asks-always").1), 5);
}

fn crash_loop(node: &Node) {
    let pod = asking(node, "asks-crash", "always", json!({"containers": [fixture("c", &["exit", "3"])]}));
    // Berth's sixth start comes 6.3 s after the first end, the kubelet's own second and third after 10 s and 30 s.
    let seen = pod.wait("six restarts and its back-off", |pod| {
        attempts(node, "asks-crash");
        let status = container(pod, "c");
        (status["restartCount"].as_u64()? >= 6 && status["state"]["waiting"]["reason"] == "CrashLoopBackOff")
            .then(|| status.clone())
    });
    let last = &seen["lastState"]["terminated"];
    assert_eq!((&last["exitCode"], &last["reason"]), (&json!(3), &json!("Error")), "{seen}");
    // None was made that has no number of its own, and no number was left out.
    let counts = || {
        let before = newest(node, "asks-crash");
        let made = made(node, &before.1);
        // One more may have been made while we looked.
        (newest(node, "asks-crash").0 == before.0).then_some((made, before.0))
    };
    let (made, newest) = until(PATIENCE, counts).expect("a moment between two attempts");
    assert_eq!(made, newest as usize + 1);
    assert!(u64::from(newest) >= seen["restartCount"].as_u64().unwrap_or_default(), "{newest}, {seen}");
}

fn on_failure(node: &Node) {
    let shared = node.volume("asks-failure");
    let pod = asking(
        node,
        "asks-failure",
        "on-failure",
        json!({
            "restartPolicy": "OnFailure",
            "containers": [with(fixture("c", &["cat", "/shared/go"]), json!({
                "volumeMounts": [{"name": "shared", "mountPath": "/shared"}],
            }))],
            "volumes": [{"name": "shared", "hostPath": {"path": shared}}],
        }),
    );
    pod.wait("three restarts", |pod| (container(pod, "c")["restartCount"].as_u64()? >= 3).then_some(()));
    fs::write(shared.join("go"), "went\n").expect("let it go");
    let seen = pod.wait("its end", |pod| {
        let done = container(pod, "c")["state"]["terminated"]["exitCode"] == 0;
        (done && pod["status"]["phase"] == "Succeeded").then(|| container(pod, "c").clone())
    });
    let (last, one) = newest(node, "asks-failure");
    assert_eq!(seen["restartCount"], last, "{seen}");
    assert_eq!(seen["containerID"], format!("berth://{}", one.id), "{seen}");
    assert_eq!(made(node, &one), last as usize + 1);
    // Another pod has come and gone since: neither has started it again.
    node.run("asks-beside", json!({"containers": [fixture("c", &["sleep", "inf"])]})).wait_ready();
    assert_eq!((newest(node, "asks-failure").0, made(node, &one)), (last, last as usize + 1));
}

fn never(node: &Node) {
    let spec = json!({"restartPolicy": "Never", "containers": [fixture("c", &["exit", "3"])]});
    let pod = asking(node, "asks-never", "always", spec);
    // The kubelet sees it ended in the end, since what Berth waits for grows.
    let seen = pod.wait("its end", |pod| {
        attempts(node, "asks-never");
        let status = container(pod, "c");
        (pod["status"]["phase"] == "Failed" && status["state"]["terminated"].is_object())
            .then(|| status.clone())
    });
    assert_eq!(seen["state"]["terminated"]["exitCode"], 3, "{seen}");
    // It stops the pod then, and Berth starts nothing more in it.
    let stopped = until(PATIENCE, || {
        let one = newest(node, "asks-never").1;
        let pod = node.daemon().pod_status(&one.pod_sandbox_id).ok()?;
        (pod.state() == cri::PodSandboxState::SandboxNotready).then_some(one)
    });
    let one = stopped.expect("the kubelet stops a pod that has ended");
    let count = made(node, &one);
    node.run("asks-next", json!({"containers": [fixture("c", &["sleep", "inf"])]})).wait_ready();
    assert_eq!(made(node, &one), count);
    let states: Vec<_> = attempts(node, "asks-never").values().map(cri::Container::state).collect();
    assert!(states.iter().all(|state| *state == ContainerState::ContainerExited), "{states:?}");
}

fn without_kubelet(node: &Node) {
    let pod = asking(node, "asks-alone", "always", json!({"containers": [fixture("c", &["trap", "USR1"])]}));
    pod.wait_ready();
    node.stop_kubelet();
    for attempt in 0..2 {
        kill_and_wait(node, "asks-alone", attempt);
    }
    node.start_kubelet();
    shown(node, &pod, 2, 137);
    log_is(&pod.logs(), "asks-alone", "", 2);
    assert_eq!(made(node, &newest(node, "asks-alone").1), 3);
}

fn without_berthd(node: &Node) {
    let pod = asking(node, "asks-dead", "always", json!({"containers": [fixture("c", &["trap", "USR1"])]}));
    pod.wait_ready();
    for attempt in 0..3 {
        let id = running(node, "asks-dead", attempt).id;
        let record = node.daemon().root().join("containers").join(&id).join("exit");
        let pid = node.daemon().details(&id)["pid"].as_i64().expect("it has a process");
        let mut daemon = node.daemon_mut();
        daemon.kill9();
        kill(Pid::from_raw(i32::try_from(pid).expect("a process id")), Signal::SIGKILL).expect("kill it");
        assert!(until(PATIENCE, || record.is_file().then_some(())).is_some(), "its shim writes its end down");
        daemon.up();
        drop(daemon);
        shown(node, &pod, attempt + 1, 137);
    }
    log_is(&pod.logs(), "asks-dead", "", 3);
    assert_eq!(made(node, &newest(node, "asks-dead").1), 4);
}
