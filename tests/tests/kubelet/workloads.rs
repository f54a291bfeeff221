//! What controllers make of pods: deployments, jobs, daemon sets; and how fast many of them are ready.

use std::{
    fs,
    time::{Duration, Instant},
};

use berth_tests::until;
use serde_json::{Value, json};

use crate::{
    cluster::{Cluster, Test, pod},
    node::{PATIENCE, fixture, is_ready, with},
    plane,
};

pub const TRIALS: &[(&str, Test)] = &[
    ("a_deployment_rolls_over_and_back", deployment),
    ("a_job_is_done_as_often_as_asked", job),
    ("a_failing_job_is_tried_again", failing_job),
    ("a_daemon_set_has_a_pod_on_the_node", daemon_set),
];

/// Those that want the node for themselves.
pub const ALONE: &[(&str, Test)] = &[("forty_pods_become_ready_and_go", many)];

fn set(kind: &str, name: &str, more: Value, spec: Value) -> Value {
    let mut object = json!({
        "apiVersion": "apps/v1", "kind": kind, "metadata": {"name": name},
        "spec": {
            "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}}, "spec": spec},
        },
    });
    object["spec"] = with(object["spec"].clone(), more);
    object
}

/// Pods of an application.
pub fn pods_of(app: &str) -> Vec<Value> {
    let list = plane::object(&format!("/api/v1/namespaces/default/pods?labelSelector=app%3D{app}"));
    list.and_then(|list| list["items"].as_array().cloned()).unwrap_or_default()
}

fn deployment(cluster: &Cluster) {
    let server = |text: &str| {
        with(
            fixture("c", &["http", "8080", text]),
            json!({
                "readinessProbe": {"httpGet": {"port": 8080, "path": "/"}, "periodSeconds": 1},
            }),
        )
    };
    let _set = cluster.have(&[set(
        "Deployment",
        "rolling",
        json!({"replicas": 3, "strategy": {"rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}}}),
        json!({"containers": [server("old")]}),
    )]);
    let rolled = ["rollout", "status", "deployment/rolling", "--timeout=170s"];
    cluster.ok(&rolled);
    let before: Vec<Value> = pods_of("rolling").iter().map(|pod| pod["metadata"]["uid"].clone()).collect();
    assert_eq!(before.len(), 3);
    let patch = json!({"spec": {"template": {"spec": {"containers": [server("new")]}}}});
    cluster.ok(&["patch", "deployment", "rolling", "-p", &patch.to_string()]);
    cluster.ok(&rolled);
    let new = |text: &'static str| {
        until(PATIENCE, || {
            let pods = pods_of("rolling");
            let all =
                pods.iter().all(|pod| is_ready(pod) && pod["spec"]["containers"][0]["command"][3] == text);
            (pods.len() == 3 && all).then_some(pods)
        })
        .unwrap_or_else(|| panic!("not three of {text}: {:#?}", pods_of("rolling")))
    };
    let after = new("new");
    assert!(after.iter().all(|pod| !before.contains(&pod["metadata"]["uid"])));
    cluster.ok(&["rollout", "undo", "deployment/rolling"]);
    cluster.ok(&rolled);
    new("old");
    cluster.ok(&["scale", "deployment/rolling", "--replicas=1"]);
    let one = until(PATIENCE, || (pods_of("rolling").len() == 1).then_some(()));
    assert!(one.is_some(), "{:#?}", pods_of("rolling"));
}

fn a_job(name: &str, more: Value, command: &[&str]) -> Value {
    let spec = json!({"template": {
        "metadata": {"labels": {"app": name}},
        "spec": {"restartPolicy": "Never", "containers": [fixture("c", command)]},
    }});
    json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name}, "spec": with(spec, more)})
}

fn job(cluster: &Cluster) {
    let _job = cluster.have(&[a_job("done", json!({"completions": 4, "parallelism": 2}), &["true"])]);
    cluster.ok(&["wait", "--for=condition=complete", "--timeout=170s", "job/done"]);
    let succeeded =
        cluster.wait_for("jobs", "done", "four successes", |job| job["status"]["succeeded"].as_u64());
    assert_eq!(succeeded, 4);
}

fn failing_job(cluster: &Cluster) {
    let _job = cluster.have(&[a_job("fails", json!({"backoffLimit": 1}), &["exit", "3"])]);
    cluster.ok(&["wait", "--for=condition=failed", "--timeout=170s", "job/fails"]);
    let failed = cluster.wait_for("jobs", "fails", "its failures", |job| job["status"]["failed"].as_u64());
    assert_eq!(failed, 2);
}

fn daemon_set(cluster: &Cluster) {
    let _set = cluster.have(&[set(
        "DaemonSet",
        "everywhere",
        json!({}),
        json!({"hostNetwork": true, "containers": [fixture("c", &["sleep", "inf"])]}),
    )]);
    cluster.wait_for("daemonsets", "everywhere", "a ready pod", |set| {
        (set["status"]["numberReady"] == 1).then_some(())
    });
    let first = pods_of("everywhere")[0]["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    // One that goes is replaced.
    cluster.ok(&["delete", "pod", &first, "--timeout=120s"]);
    let again = until(PATIENCE, || {
        let pods = pods_of("everywhere");
        pods.iter().any(|pod| is_ready(pod) && pod["metadata"]["name"] != first.as_str()).then_some(())
    });
    assert!(again.is_some(), "{:#?}", pods_of("everywhere"));
}

/// Prints figures; nothing is asserted about time.
fn many(cluster: &Cluster) {
    const PODS: usize = 40;
    let one = |name: &str, label: &str| {
        let mut pod = pod(name, &json!({"containers": [fixture("c", &["http", "8080", "x"])]}));
        pod["metadata"]["labels"]["app"] = json!(label);
        pod
    };
    let begun = Instant::now();
    let _first = cluster.have(&[one("single", "single")]);
    cluster.wait_ready("single");
    println!(
        "one pod: {:.1} s from kubectl create to Ready as the apiserver tells",
        begun.elapsed().as_secs_f64()
    );
    let items: Vec<Value> = (0..PODS).map(|number| one(&format!("many-{number}"), "many")).collect();
    let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
    let begun = Instant::now();
    let created = cluster.with_input(&["create", "-f", "-"], list.to_string().as_bytes());
    assert!(created.status.success(), "{created:?}");
    let ready = until(PATIENCE * 2, || {
        (pods_of("many").iter().filter(|pod| is_ready(pod)).count() == PODS).then_some(())
    });
    assert!(ready.is_some(), "{} are ready", pods_of("many").iter().filter(|pod| is_ready(pod)).count());
    println!("{PODS} pods: {:.1} s from kubectl create to the last one Ready", begun.elapsed().as_secs_f64());
    let pid = cluster.node().daemon().pid().as_raw();
    let (before, begun) = (cpu_ticks(pid), Instant::now());
    // The kubelet's own questions meanwhile, for some of its rounds.
    until(Duration::from_secs(20), || None::<()>);
    let (ticks, seconds) = (cpu_ticks(pid) - before, begun.elapsed().as_secs_f64());
    println!(
        "berthd beside {PODS} pods at rest: {:.2} % of a core over {seconds:.0} s",
        ticks as f64 / seconds
    );
    let begun = Instant::now();
    cluster.ok(&["delete", "pods", "-l", "app=many", "--timeout=170s"]);
    println!("{PODS} pods: {:.1} s from kubectl delete to the last one gone", begun.elapsed().as_secs_f64());
}

/// Hundredths of a second in user and kernel mode.
fn cpu_ticks(pid: i32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("read berthd's times");
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields).split_whitespace();
    fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum()
}
