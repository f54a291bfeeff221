//! Services by kube-proxy, in its nftables mode, over Berth's own bridge.

use berth_tests::{until, web};
use serde_json::json;

use crate::{
    cluster::{Cluster, Test, pod},
    node::{PATIENCE, fixture, with},
    world,
};

pub const TRIALS: &[(&str, Test)] = &[
    ("a_service_leads_to_ready_pods", service),
    ("a_node_port_leads_to_a_pod", node_port),
    ("a_pod_reaches_the_apiserver_by_its_service", apiserver),
];

fn service(cluster: &Cluster) {
    let server = |name: &str| {
        let mut pod = pod(
            name,
            &json!({"containers": [with(fixture("c", &["http", "8080", name]), json!({
                "readinessProbe": {"httpGet": {"port": 8080, "path": "/"}, "periodSeconds": 1},
            }))]}),
        );
        pod["metadata"]["labels"]["app"] = json!("served");
        pod
    };
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "served"},
        "spec": {"selector": {"app": "served"}, "ports": [{"port": 80, "targetPort": 8080}]},
    });
    let client = pod("client", &json!({"containers": [fixture("c", &["sleep", "inf"])]}));
    let objects = cluster.have(&[service, server("one"), server("two"), client]);
    for name in ["one", "two", "client"] {
        cluster.wait_ready(name);
    }
    let address = cluster.get("services", "served").expect("it is there")["spec"]["clusterIP"].clone();
    let address = address.as_str().expect("it has an address").to_owned();
    // From the node, and from a pod that is on the servers' bridge.
    for from in ["node", "pod"] {
        let mut seen = std::collections::BTreeSet::new();
        let both = until(PATIENCE, || {
            let said = match from {
                "node" => web::ask(&address, 80, "GET /").ok()?,
                _ => {
                    let words = ["exec", "client", "--", "/bin/fixture", "get", &address, "80"];
                    let output = cluster.run(&words);
                    String::from_utf8_lossy(&output.stdout).into_owned()
                }
            };
            seen.extend(["one", "two"].into_iter().filter(|name| said.trim_end().ends_with(name)));
            (seen.len() == 2).then_some(())
        });
        assert!(both.is_some(), "from the {from} only {seen:?} answer at {address}");
    }
    drop(objects);
}

fn node_port(cluster: &Cluster) {
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "outside"},
        "spec": {"type": "NodePort", "selector": {"app": "outside"}, "ports": [{"port": 80, "targetPort": 8080, "nodePort": 30080}]},
    });
    let server = pod("outside", &json!({"containers": [fixture("c", &["http", "8080", "outside"])]}));
    let _objects = cluster.have(&[service, server]);
    cluster.wait_ready("outside");
    let answers = until(PATIENCE, || {
        web::ask(world::NODE_IP, 30080, "GET /").ok().filter(|answer| answer.contains("outside"))
    });
    assert!(answers.is_some(), "nothing answers at port 30080 of the node");
}

fn apiserver(cluster: &Cluster) {
    let address =
        cluster.get("services", "kubernetes").expect("it is always there")["spec"]["clusterIP"].clone();
    let address = address.as_str().expect("it has an address").to_owned();
    // What answers in plain words what was asked without TLS.
    let _pod = cluster.pod("asks", &json!({"containers": [fixture("c", &["sleep", "inf"])]}));
    cluster.wait_ready("asks");
    let said = until(PATIENCE, || {
        let output = cluster.run(&["exec", "asks", "--", "/bin/fixture", "get", &address, "443"]);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        said.contains("HTTP request to an HTTPS server").then_some(())
    });
    assert!(said.is_some(), "the apiserver does not answer at {address}");
}
