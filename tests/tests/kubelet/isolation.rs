//! What keeps pods apart from the node and each other, and what may be let in.

use serde_json::{Value, json};

use crate::{
    cluster::{Cluster, Test, busybox, runc},
    node::{container, fixture, with},
};

pub const TRIALS: &[(&str, Test)] = &[
    ("runtime_classes_choose_who_runs_a_pod", runtime_classes),
    ("users_are_the_pods_own", users),
    ("users_of_its_own_and_the_nodes_network", users_on_the_nodes_network),
    ("seccomp_is_the_runtimes_default_or_none", seccomp),
    ("identities_and_capabilities_are_as_asked", identity),
    ("sysctls_safe_and_unsafe_are_the_pods_own", sysctls),
    ("the_nodes_namespaces_can_be_shared", of_the_node),
    ("a_pod_can_share_its_processes", shared_processes),
];

fn once(cluster: &Cluster, name: &str, spec: Value, container: Value) -> Value {
    let spec = with(with(spec, json!({"restartPolicy": "Never"})), json!({"containers": [container]}));
    let _pod = cluster.pod(name, &spec);
    cluster.info(name, "c")
}

fn runtime_classes(cluster: &Cluster) {
    let classes = ["berth", "runc"].into_iter().filter(|class| *class == "berth" || runc().is_some());
    for class in classes {
        let name = format!("class-{class}");
        let _pod = cluster.pod(&name, &json!({
            "runtimeClassName": class,
            "terminationGracePeriodSeconds": 1,
            "containers": [
                with(fixture("c", &["http", "8080", "from a class"]), json!({
                    "readinessProbe": {"exec": {"command": ["/bin/fixture", "get", "127.0.0.1", "8080"]}, "periodSeconds": 1},
                    "resources": {"limits": {"memory": "64Mi", "cpu": "200m"}},
                })),
                fixture("beside", &["sleep", "inf"]),
            ],
        }));
        cluster.wait_ready(&name);
        let got =
            cluster.ok(&["exec", &name, "-c", "beside", "--", "/bin/fixture", "get", "127.0.0.1", "8080"]);
        assert_eq!(got, "from a class\n", "{class}");
        let listed = cluster.node().daemon().list_pods(Default::default());
        let pod =
            listed.iter().find(|pod| pod.metadata.as_ref().is_some_and(|metadata| metadata.name == name));
        assert_eq!(pod.map(|pod| pod.runtime_handler.as_str()), Some(class));
    }
    // One that nobody knows is the pod's error, told by its event.
    let _class = cluster.have(&[json!({
        "apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": "unknown"}, "handler": "unknown",
    })]);
    let _pod = cluster.pod(
        "class-unknown",
        &json!({
            "runtimeClassName": "unknown", "containers": [fixture("c", &["true"])],
        }),
    );
    cluster.wait_for("pods", "class-unknown", "an event of its failure", |_| {
        let words = ["get", "events", "--field-selector", "involvedObject.name=class-unknown"];
        let events = cluster.ok(&words);
        (events.contains("FailedCreatePodSandBox") && events.contains("handler")).then_some(())
    });
}

fn is_mapped(info: &Value) -> bool {
    let map = info["uid_map"].as_str().unwrap_or_default().split_whitespace();
    map.filter_map(|word| word.parse::<u32>().ok()).nth(1).is_some_and(|outside| outside >= 65_536)
}

fn users(cluster: &Cluster) {
    let info = once(cluster, "users", json!({"hostUsers": false}), fixture("c", &["info"]));
    assert!(is_mapped(&info), "{}", info["uid_map"]);
    assert_eq!(info["uid"], 0);
}

fn users_on_the_nodes_network(cluster: &Cluster) {
    let spec = json!({"hostUsers": false, "hostNetwork": true});
    let info = once(cluster, "users-host-network", spec, fixture("c", &["info"]));
    assert!(is_mapped(&info), "{}", info["uid_map"]);
    assert!(info["interfaces"]["node0"].is_object(), "{}", info["interfaces"]);
}

fn seccomp(cluster: &Cluster) {
    let of = |kind: &str| {
        let security = json!({"securityContext": {"seccompProfile": {"type": kind}}});
        let name = format!("seccomp-{}", kind.to_lowercase());
        once(cluster, &name, json!({}), with(fixture("c", &["info"]), security))["seccomp"].clone()
    };
    assert_eq!((of("RuntimeDefault"), of("Unconfined")), (json!(2), json!(0)));
}

fn identity(cluster: &Cluster) {
    let spec = json!({"securityContext": {"fsGroup": 4000, "supplementalGroups": [4001]}});
    let security = json!({"securityContext": {
        "runAsUser": 1234, "runAsGroup": 2345, "runAsNonRoot": true, "allowPrivilegeEscalation": false,
        "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]},
    }});
    let info = once(cluster, "identity", spec, with(fixture("c", &["info"]), security));
    assert_eq!((&info["uid"], &info["gid"]), (&json!(1234), &json!(2345)));
    let groups = info["groups"].as_array().cloned().unwrap_or_default();
    assert!([4000, 4001].iter().all(|group| groups.contains(&json!(group))), "{groups:?}");
    assert_eq!(info["no_new_privs"], 1);
    assert_eq!(info["caps"]["bounding"], "0000000000000400");
    let refused = with(fixture("c", &["true"]), json!({"securityContext": {"runAsNonRoot": true}}));
    let _pod = cluster.pod("not-root", &json!({"containers": [refused]}));
    cluster.wait_for("pods", "not-root", "the refusal of root", |pod| {
        let waiting = &container(pod, "c")["state"]["waiting"];
        (waiting["reason"] == "CreateContainerConfigError").then_some(())
    });
}

fn sysctls(cluster: &Cluster) {
    let script = "cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/net/core/somaxconn /proc/sys/kernel/shm_rmid_forced";
    let _pod = cluster.pod(
        "sysctls",
        &json!({
            "restartPolicy": "Never",
            "securityContext": {"sysctls": [
                {"name": "net.ipv4.ip_unprivileged_port_start", "value": "81"},
                {"name": "net.core.somaxconn", "value": "777"},
                {"name": "kernel.shm_rmid_forced", "value": "1"},
            ]},
            "containers": [busybox("c", script)],
        }),
    );
    assert_eq!(cluster.told("sysctls", "c"), "81\n777\n1\n");
    let _refused = cluster.pod(
        "sysctls-refused",
        &json!({
            "securityContext": {"sysctls": [{"name": "kernel.msgmax", "value": "8192"}]},
            "containers": [fixture("c", &["true"])],
        }),
    );
    cluster.wait_for("pods", "sysctls-refused", "its refusal", |pod| {
        (pod["status"]["reason"] == "SysctlForbidden").then_some(())
    });
}

fn of_the_node(cluster: &Cluster) {
    let spec = json!({"hostNetwork": true, "hostPID": true, "hostIPC": true});
    let info = once(cluster, "host", spec, fixture("c", &["info"]));
    assert!(info["interfaces"]["node0"].is_object(), "{}", info["interfaces"]);
    for kind in ["net", "pid", "ipc"] {
        let ours = std::fs::read_link(format!("/proc/self/ns/{kind}")).expect("read our namespace");
        assert_eq!(info["namespaces"][kind], ours.to_string_lossy().as_ref(), "{kind}");
    }
    let info = once(cluster, "apart", json!({}), fixture("c", &["info"]));
    for kind in ["net", "pid", "ipc", "mnt", "uts"] {
        let ours = std::fs::read_link(format!("/proc/self/ns/{kind}")).expect("read our namespace");
        assert_ne!(info["namespaces"][kind], ours.to_string_lossy().as_ref(), "{kind}");
    }
    assert_eq!(info["hostname"], "apart");
}

fn shared_processes(cluster: &Cluster) {
    let spec = json!({
        "shareProcessNamespace": true, "terminationGracePeriodSeconds": 1,
        "containers": [busybox("one", "sleep 1000001"), busybox("two", "sleep 1000002")],
    });
    let _pod = cluster.pod("shared", &spec);
    cluster.wait_ready("shared");
    let seen = cluster.ok(&["exec", "shared", "-c", "one", "--", "ps", "-o", "args"]);
    assert!(["sleep 1000001", "sleep 1000002"].iter().all(|line| seen.contains(line)), "{seen}");
    // An ephemeral container comes into a running pod.
    let words = [
        "debug",
        "shared",
        "--image",
        berth_tests::images::BUSYBOX,
        "--target=one",
        "--quiet",
        "-c",
        "late",
        "--",
        "sh",
        "-c",
        "ps -o args",
    ];
    cluster.ok(&words);
    cluster.wait_for("pods", "shared", "the end of the ephemeral container", |pod| {
        let all = pod["status"]["ephemeralContainerStatuses"].as_array()?;
        all.iter().find(|one| one["name"] == "late")?["state"]["terminated"].is_object().then_some(())
    });
    let seen = cluster.ok(&["logs", "shared", "-c", "late"]);
    assert!(seen.contains("sleep 1000001"), "{seen}");
}
