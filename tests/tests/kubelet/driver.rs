//! With systemd's driver on cgroup v2, and with swap: pods in slices, containers in scopes, each with its part of the swap.

use std::{fs, path::PathBuf, process::Command};

use berth_tests::{
    systemd::{property, systemctl},
    until,
};
use serde_json::{Value, json};

use crate::{
    Test,
    node::{Node, PATIENCE, container, fixture, read, with},
};

pub const TRIALS: &[(&str, Test)] = &[
    ("a_pod_is_a_slice_and_a_container_a_scope", slices),
    ("swap_is_shared_out_by_what_was_asked_for", swap_share),
    ("who_may_not_swap_is_killed_where_others_go_on", swapped),
];

const MIB: u64 = 1 << 20;
const SWAP_MIB: u64 = 1024;

/// What a kubelet is told so that its pods swap.
pub fn swapping() -> Value {
    json!({"memorySwap": {"swapBehavior": "LimitedSwap"}})
}

/// Swap of the machine's, which goes with this.
#[derive(Debug)]
pub struct Swap {
    file: PathBuf,
    _directory: tempfile::TempDir,
}

impl Swap {
    pub fn on() -> Self {
        let directory = tempfile::tempdir().expect("make a directory");
        let file = directory.path().join("swap");
        let made = |program: &str, words: &[&str]| {
            let status = Command::new(program).args(words).arg(&file).status();
            let status = status.unwrap_or_else(|error| panic!("run {program}: {error}"));
            assert!(status.success(), "{program}: {status}");
        };
        // A file with holes is no swap.
        made("fallocate", &["--length", &format!("{SWAP_MIB}MiB")]);
        made("chmod", &["600"]);
        made("mkswap", &["--quiet"]);
        made("swapon", &[]);
        Self { file, _directory: directory }
    }
}

impl Drop for Swap {
    fn drop(&mut self) {
        let status = Command::new("swapoff").arg(&self.file).status();
        assert!(status.is_ok_and(|status| status.success()), "swapoff {}", self.file.display());
    }
}

fn sized(command: &[&str], requested: &str, limit: &str) -> Value {
    with(
        fixture("c", command),
        json!({
            "resources": {"requests": {"cpu": "10m", "memory": requested}, "limits": {"cpu": "500m", "memory": limit}},
        }),
    )
}

fn id(pod: &Value) -> String {
    container(pod, "c")["containerID"].as_str().unwrap_or_default().trim_start_matches("berth://").to_owned()
}

fn slices(node: &Node) {
    let pod = node.run("slices", json!({"containers": [sized(&["sleep", "inf"], "32Mi", "64Mi")]}));
    let id = id(&pod.wait_ready());
    let uid = node.pod("slices").expect("it runs")["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
    let slice = format!("kubepods-burstable-pod{}.slice", uid.replace('-', "_"));
    assert_eq!(property(&format!("berth-{id}.scope"), "Slice"), slice);
    let limits = || {
        ["memory.max", "cpu.max"]
            .map(|file| node.container_file(&id, file).unwrap_or_else(|| panic!("no {file}")))
    };
    let given = [(64 * MIB).to_string(), "50000 100000".to_owned()];
    assert_eq!(limits(), given);
    // systemd writes anew what it takes for its own.
    systemctl(&["daemon-reload"]);
    assert_eq!(limits(), given);
    pod.remove();
    let left = node.pod_cgroups().into_iter().find(|path| path.ends_with(&slice));
    let gone = left.is_none_or(|path| until(PATIENCE, || (!path.exists()).then_some(())).is_some());
    assert!(gone, "{slice} stays");
}

fn swap_share(node: &Node) {
    let some = node.run("some-swap", json!({"containers": [sized(&["sleep", "inf"], "64Mi", "80Mi")]}));
    let none = json!({"containers": [with(fixture("c", &["sleep", "inf"]), json!({
        "resources": {"limits": {"cpu": "100m", "memory": "64Mi"}},
    }))]});
    let none = node.run("no-swap", none);
    let swap = |pod: &Value| -> u64 {
        let text = node.container_file(&id(pod), "memory.swap.max").expect("the kernel counts swap");
        text.parse().unwrap_or_else(|_| panic!("memory.swap.max: {text}"))
    };
    // Its part of the swap is its request's of the machine's memory (Kubernetes v1.37, LimitedSwap).
    let memory: u64 = fs::read_to_string("/proc/meminfo")
        .expect("read the machine's memory")
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse().ok())
        .expect("it says how much there is");
    let part = 64 * MIB * SWAP_MIB / (memory / 1024);
    let given = swap(&some.wait_ready());
    assert!(given.abs_diff(part) <= MIB, "{given}, not {part}");
    assert_eq!(swap(&none.wait_ready()), 0, "limit and request are alike");
}

fn swapped(node: &Node) {
    let eat = ["eat", "90M"];
    let swaps = node.run("swaps", json!({"containers": [sized(&eat, "64Mi", "80Mi")]}));
    let never =
        node.run("swaps-not", json!({"restartPolicy": "Never", "containers": [sized(&eat, "80Mi", "80Mi")]}));
    let ended = never.wait("its end", |pod| {
        let state = &container(pod, "c")["state"]["terminated"];
        state.is_object().then(|| state.clone())
    });
    assert_eq!((&ended["exitCode"], &ended["reason"]), (&json!(137), &json!("OOMKilled")), "{ended}");
    let ready = swaps.wait_ready();
    let used = until(PATIENCE, || {
        let used: u64 = node.container_file(&id(&ready), "memory.swap.current")?.parse().ok()?;
        (used > 0).then_some(used)
    });
    assert!(used.is_some(), "it has more than its limit, and nothing of it is swapped");
    swaps.wait("all that it wanted", |pod| {
        let log = swaps.logs().join("c/0.log");
        (container(pod, "c")["restartCount"] == 0 && read(&log)?.contains("ate ")).then_some(())
    });
}
