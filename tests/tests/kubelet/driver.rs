//! With systemd's driver on cgroup v2, on a machine that has swap: pods in slices, containers in scopes. To a kubelet
//! without an apiserver all pods are critical, and those never swap; who may is in swapping.rs.

use std::{path::PathBuf, process::Command};

use berth_tests::{
    systemd::{property, systemctl},
    until,
};
use serde_json::{Value, json};

use crate::{
    Test,
    node::{Node, PATIENCE, container, fixture, with},
};

pub const TRIALS: &[(&str, Test)] = &[
    ("a_pod_is_a_slice_and_a_container_a_scope", slices),
    ("a_static_pod_is_critical_and_gets_no_swap", no_swap),
];

const MIB: u64 = 1 << 20;
const SWAP_MIB: u64 = 1024;

/// What a kubelet is told so that pods swap.
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

fn no_swap(node: &Node) {
    let swapping = std::fs::read_to_string("/proc/swaps").expect("read the machine's swap");
    assert!(swapping.lines().count() > 1, "the machine has none");
    // Burstable, so that it would have its part of the swap if it came from an apiserver.
    let pod = node.run(
        "no-swap",
        json!({
            "restartPolicy": "Never",
            "containers": [sized(&["sleep", "inf"], "64Mi", "80Mi"), with(sized(&["eat", "90M"], "64Mi", "80Mi"), json!({"name": "eats"}))],
        }),
    );
    let ended = pod.wait("the end of one", |pod| {
        let state = &container(pod, "eats")["state"]["terminated"];
        (state.is_object() && container(pod, "c")["state"]["running"].is_object())
            .then(|| (state.clone(), pod.clone()))
    });
    let (ended, pod) = ended;
    assert_eq!((&ended["exitCode"], &ended["reason"]), (&json!(137), &json!("OOMKilled")), "{ended}");
    assert_eq!(node.container_file(&id(&pod), "memory.swap.max").as_deref(), Some("0"));
}
