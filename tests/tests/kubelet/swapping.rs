//! Pods that swap, on a machine of cgroup v2 that has swap. To a kubelet without an apiserver all pods are critical, and those
//! never swap: the node joins one, to which pods are bound by hand.

use std::{collections::BTreeMap, fs};

use berth_tests::{skip, systemd::systemctl, until};
use serde_json::{Value, json};

use crate::{
    Named, driver, kubectl,
    node::{self, Node, PATIENCE, Setting, container, fixture, is_ready, with},
    plane::{self, Plane},
};

pub const TRIALS: &[Named<Joined>] = &[
    ("a_burstable_pod_swaps_within_its_part_and_the_kubelet_counts_it", swaps),
    ("only_what_may_use_more_than_it_asked_for_gets_swap", who_swaps),
];

const PODS: &str = "/api/v1/namespaces/default/pods";
const MIB: u64 = 1 << 20;

/// A node of a cluster without controllers. Dropped, it takes the node down, which looks for leaks, and then the rest.
#[derive(Debug)]
pub struct Joined {
    node: Node,
    plane: Plane,
}

impl Joined {
    /// Has a node join that has no pods any more. None where what it would join was not built, which is said of each trial.
    pub fn up(node: Node) -> Option<Self> {
        let missing: Vec<&str> =
            ["etcd", "kube-apiserver"].into_iter().filter(|name| !kubectl::program(name).is_file()).collect();
        if !missing.is_empty() {
            for (name, _) in TRIALS {
                skip(&format!("kubelet::systemd::{name}"), &format!("not built: {}", missing.join(", ")));
            }
            return None;
        }
        node.leave();
        let plane = Plane::bare(&node.dir().join("plane"));
        let mut over = driver::swapping();
        over["registerNode"] = json!(true);
        let arguments = vec![format!("--kubeconfig={}", plane.kubeconfig("kubelet").display())];
        node.set(Setting { over, arguments });
        node.start_kubelet();
        let joined = Self { node, plane };
        joined
            .wait(&format!("/api/v1/nodes/{}", node::NAME), "readiness", |node| is_ready(node).then_some(()));
        Some(joined)
    }

    /// Waits until the apiserver says something of an object.
    fn wait<T>(&self, path: &str, what: &str, look: impl Fn(&Value) -> Option<T>) -> T {
        let mut last = None;
        let found = until(PATIENCE, || {
            last = plane::object(path);
            last.as_ref().and_then(&look)
        });
        found.unwrap_or_else(|| {
            let status =
                last.map_or_else(|| "there is none".into(), |object| format!("{:#}", object["status"]));
            panic!("{path} did not come to {what}: {status}\n---- kubelet\n{}", self.node.kubelet_log())
        })
    }

    /// A pod of these containers, once they run.
    fn run(&self, name: &'static str, containers: &[Value]) -> Bound<'_> {
        plane::make(
            PODS,
            &json!({
                "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
                "spec": {"nodeName": node::NAME, "terminationGracePeriodSeconds": 1, "containers": containers},
            }),
        );
        let mut bound = Bound { joined: self, name, status: Value::Null };
        bound.status = self.wait(&bound.path(), "readiness", |pod| is_ready(pod).then(|| pod.clone()));
        bound
    }

    /// What the kubelet computes by the machine's memory and swap.
    fn part_of_the_swap(&self, requested: u64) -> u64 {
        let (memory, swap) = machine();
        let part = requested as f64 / memory as f64 * swap as f64;
        // The kernel counts pages.
        part as u64 / 4096 * 4096
    }
}

impl Drop for Joined {
    fn drop(&mut self) {
        self.node.leave();
        self.plane.end();
    }
}

/// Gone with this.
struct Bound<'a> {
    joined: &'a Joined,
    name: &'static str,
    status: Value,
}

impl Bound<'_> {
    fn path(&self) -> String {
        format!("{PODS}/{}", self.name)
    }

    /// What a file of a container's cgroup says.
    fn file(&self, container: &str, file: &str) -> String {
        let id = node::container(&self.status, container)["containerID"].as_str().unwrap_or_default();
        let id = id.trim_start_matches("berth://");
        let found = self.joined.node.container_file(id, file);
        found.unwrap_or_else(|| panic!("container {container} of {} has no {file}", self.name))
    }

    fn number(&self, container: &str, file: &str) -> u64 {
        let text = self.file(container, file);
        text.parse().unwrap_or_else(|error| panic!("{file} of {container}: {text}: {error}"))
    }
}

impl Drop for Bound<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        plane::remove(&self.path());
        let gone = until(PATIENCE, || plane::object(&self.path()).is_none().then_some(()));
        assert!(gone.is_some(), "pod {} stays", self.name);
    }
}

/// Bytes of memory and of swap.
fn machine() -> (u64, u64) {
    let text = fs::read_to_string("/proc/meminfo").expect("read the machine's memory");
    let of = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        kib.unwrap_or_else(|| panic!("no {name}")) << 10
    };
    (of("MemTotal"), of("SwapTotal"))
}

fn sized(name: &str, command: &[&str], resources: Value) -> Value {
    with(fixture(name, command), json!({"resources": resources}))
}

fn swaps(joined: &Joined) {
    let name = "swaps";
    let requested = 128 * MIB;
    let part = joined.part_of_the_swap(requested);
    // More than its limit, by less than its part.
    let (limit, more) = (136, 20);
    assert!(part > (more + 4) * MIB, "of 128 MiB the part is {part} bytes only");
    let eats = format!("{}M", limit + more);
    let resources =
        json!({"requests": {"memory": "128Mi", "cpu": "10m"}, "limits": {"memory": format!("{limit}Mi")}});
    let pod = joined.run(name, &[sized("c", &["eat", &eats], resources)]);
    let limits = || (pod.number("c", "memory.max"), pod.number("c", "memory.swap.max"));
    assert_eq!(limits(), (limit * MIB, part));
    let full = until(PATIENCE, || (pod.number("c", "memory.swap.current") >= more * MIB).then_some(()));
    assert!(full.is_some(), "{} bytes are swapped of {more} MiB", pod.file("c", "memory.swap.current"));
    // systemd writes anew what it takes for its own.
    systemctl(&["daemon-reload"]);
    assert_eq!(limits(), (limit * MIB, part));

    let counted = until(PATIENCE, || {
        let summary: Value = serde_json::from_str(&joined.node.get("/stats/summary")?).ok()?;
        let pods = summary["pods"].as_array()?;
        let of_pod = pods.iter().find(|pod| pod["podRef"]["name"] == name)?;
        let of_container = of_pod["containers"].as_array()?.first()?;
        let used = |of: &Value| of["swap"]["swapUsageBytes"].as_u64();
        let counts = [used(&summary["node"])?, used(of_pod)?, used(of_container)?];
        counts.iter().all(|bytes| *bytes >= more * MIB).then_some(())
    });
    assert!(counted.is_some(), "{:?}", joined.node.get("/stats/summary"));

    let now = plane::object(&pod.path()).expect("it is there");
    let status = container(&now, "c");
    assert_eq!(
        (&status["restartCount"], status["state"]["running"].is_object()),
        (&json!(0), true),
        "{status}"
    );
    let events = pod.file("c", "memory.events");
    assert!(events.lines().any(|line| line == "oom_kill 0"), "{events}");
}

fn who_swaps(joined: &Joined) {
    let sleep = ["sleep", "inf"];
    let memory = |requested: &str, limit: &str| json!({"requests": {"cpu": "10m", "memory": requested}, "limits": {"cpu": "10m", "memory": limit}});
    let burstable = joined.run(
        "burstable",
        &[
            sized("more", &sleep, memory("32Mi", "64Mi")),
            sized("without-limit", &sleep, json!({"requests": {"memory": "48Mi"}})),
            sized("even", &sleep, memory("32Mi", "32Mi")),
            fixture("nothing", &sleep),
        ],
    );
    let guaranteed = joined.run("guaranteed", &[sized("c", &sleep, memory("32Mi", "32Mi"))]);
    let best_effort = joined.run("best-effort", &[fixture("c", &sleep)]);
    let given: BTreeMap<&str, u64> = [
        ("more", &burstable, "more"),
        ("without limit", &burstable, "without-limit"),
        ("even", &burstable, "even"),
        ("nothing", &burstable, "nothing"),
        ("guaranteed", &guaranteed, "c"),
        ("best effort", &best_effort, "c"),
    ]
    .map(|(of, pod, container)| (of, pod.number(container, "memory.swap.max")))
    .into();
    let parts =
        [("more", joined.part_of_the_swap(32 * MIB)), ("without limit", joined.part_of_the_swap(48 * MIB))];
    let none = ["even", "nothing", "guaranteed", "best effort"].map(|of| (of, 0));
    assert_eq!(given, parts.into_iter().chain(none).collect());
    let class = |pod: &Bound| pod.status["status"]["qosClass"].as_str().unwrap_or_default().to_owned();
    assert_eq!([&burstable, &guaranteed, &best_effort].map(class), ["Burstable", "Guaranteed", "BestEffort"]);
}
