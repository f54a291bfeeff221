//! Pods: run, look, list, stop, remove; addresses and what is reached by them.

use std::{collections::HashMap, time::Instant};

use berth_cri::v1 as cri;
use berth_tests::{Daemon, asked, eventually, host_network, pod, web};
use tonic::Code;

const NOBODY: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

#[test]
fn a_pod_runs_stops_and_goes() {
    let daemon = Daemon::start();
    let mut config = pod("life");
    config.labels.insert("app".into(), "life".into());
    config.annotations.insert("note".into(), "ä\n\"quoted\"".into());
    let pod = daemon.run_pod(config).unwrap();
    assert_eq!(pod.id.len(), 64);
    assert!(pod.id.bytes().all(|byte| byte.is_ascii_hexdigit()));
    let status = daemon.pod_status(&pod.id).unwrap();
    assert_eq!(status.state(), cri::PodSandboxState::SandboxReady);
    assert_eq!(status.metadata, pod.config.metadata);
    assert_eq!((&status.labels, &status.annotations), (&pod.config.labels, &pod.config.annotations));
    assert!(status.created_at > 0);
    let ip = status.network.unwrap().ip;
    assert!(ip.starts_with(daemon.gateway().trim_end_matches(".1")), "{ip}");

    daemon.stop_pod(&pod.id).unwrap();
    let status = daemon.pod_status(&pod.id).unwrap();
    assert_eq!(status.state(), cri::PodSandboxState::SandboxNotready);
    daemon.stop_pod(&pod.id).unwrap();
    daemon.remove_pod(&pod.id).unwrap();
    assert_eq!(daemon.pod_status(&pod.id).unwrap_err().code(), Code::NotFound);
    daemon.stop_pod(&pod.id).unwrap();
    daemon.remove_pod(&pod.id).unwrap();
}

#[test]
fn a_running_pod_can_be_removed_with_all_in_it() {
    let daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("whole");
    let container = daemon.launch(&pod, &asked("c", &["trap"])).unwrap();
    daemon.remove_pod(&pod.id).unwrap();
    assert_eq!(daemon.status(&container).unwrap_err().code(), Code::NotFound);
    assert!(daemon.list_containers(cri::ContainerFilter::default()).is_empty());
    assert!(daemon.list_pods(cri::PodSandboxFilter::default()).is_empty());
}

#[test]
fn stopping_a_pod_ends_its_containers() {
    let daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("stop");
    let one = daemon.launch(&pod, &asked("one", &["sleep", "inf"])).unwrap();
    let two = daemon.launch(&pod, &asked("two", &["sleep", "inf"])).unwrap();
    daemon.stop_pod(&pod.id).unwrap();
    for id in [one, two] {
        let status = daemon.status(&id).unwrap();
        assert_eq!(status.state(), cri::ContainerState::ContainerExited);
        assert!(status.finished_at >= status.started_at);
    }
}

#[test]
fn unknown_pods_are_told_from_stopped_ones() {
    let daemon = Daemon::start();
    daemon.stop_pod(NOBODY).unwrap();
    daemon.remove_pod(NOBODY).unwrap();
    let missing = daemon.pod_status(NOBODY).unwrap_err();
    assert_eq!(missing.code(), Code::NotFound);
    assert!(missing.message().contains(NOBODY), "{missing}");
    // What is no id of ours is nobody's.
    for text in ["x", "some-pod"] {
        daemon.stop_pod(text).unwrap();
        assert_eq!(daemon.pod_status(text).unwrap_err().code(), Code::NotFound, "{text}");
    }
}

#[test]
fn lists_are_filtered_by_id_state_and_labels() {
    let daemon = Daemon::start();
    let labelled = |name: &str, tier: &str| {
        let mut config = pod(name);
        config.labels = HashMap::from([("name".into(), name.into()), ("tier".into(), tier.into())]);
        daemon.run_pod(config).unwrap()
    };
    let (web, db) = (labelled("web", "front"), labelled("db", "back"));
    let ids = |filter| {
        let mut ids: Vec<String> = daemon.list_pods(filter).into_iter().map(|pod| pod.id).collect();
        ids.sort();
        ids
    };
    let all = cri::PodSandboxFilter::default;
    let mut both = vec![web.id.clone(), db.id.clone()];
    both.sort();
    assert_eq!(ids(all()), both);
    assert_eq!(ids(cri::PodSandboxFilter { id: web.id.clone(), ..all() }), [web.id.as_str()]);
    assert_eq!(ids(cri::PodSandboxFilter { id: web.id[..13].into(), ..all() }), [web.id.as_str()]);
    let selector = HashMap::from([("tier".to_owned(), "back".to_owned())]);
    assert_eq!(ids(cri::PodSandboxFilter { label_selector: selector.clone(), ..all() }), [db.id.as_str()]);
    let none = cri::PodSandboxFilter { id: web.id.clone(), label_selector: selector, ..all() };
    assert!(ids(none).is_empty());
    daemon.stop_pod(&db.id).unwrap();
    let state = |state: cri::PodSandboxState| cri::PodSandboxFilter {
        state: Some(cri::PodSandboxStateValue { state: state.into() }),
        ..all()
    };
    assert_eq!(ids(state(cri::PodSandboxState::SandboxReady)), [web.id.as_str()]);
    assert_eq!(ids(state(cri::PodSandboxState::SandboxNotready)), [db.id.as_str()]);
}

#[test]
fn a_retry_gets_the_pod_that_is_there() {
    let daemon = Daemon::start();
    let first = daemon.plain_pod("retry");
    let again = daemon.run_pod(first.config.clone()).unwrap();
    assert_eq!(again.id, first.id);
    let mut other = first.config.clone();
    other.hostname = "another".into();
    assert_eq!(daemon.run_pod(other).unwrap_err().code(), Code::AlreadyExists);
    let mut next = first.config.clone();
    next.metadata.as_mut().unwrap().attempt = 1;
    assert_ne!(daemon.run_pod(next).unwrap().id, first.id);
}

#[test]
fn pods_have_addresses_of_their_own_and_reach_each_other() {
    let daemon = Daemon::with_fixture();
    let (server, client) = (daemon.plain_pod("server"), daemon.plain_pod("client"));
    let (there, here) = (daemon.pod_ip(&server), daemon.pod_ip(&client));
    assert_ne!(there, here);
    let http = asked("http", &["http", "8080", "hello"]);
    let serving = daemon.launch(&server, &http).unwrap();
    daemon.logged(&server, &http, "listening 8080");
    let asking = daemon.launch(&client, &asked("sleep", &["sleep", "inf"])).unwrap();
    assert_eq!(daemon.exec_ok(&asking, &["get", &there, "8080"]), "hello\n");
    // A pod reaches itself, by its address and by loopback.
    assert_eq!(daemon.exec_ok(&serving, &["get", &there, "8080"]), "hello\n");
    assert_eq!(daemon.exec_ok(&serving, &["get", "127.0.0.1", "8080"]), "hello\n");
    // And its containers share the network.
    let beside = daemon.launch(&server, &asked("beside", &["sleep", "inf"])).unwrap();
    assert_eq!(daemon.exec_ok(&beside, &["get", "localhost", "8080"]), "hello\n");
    // The host reaches pods.
    let told = std::net::TcpStream::connect((there.as_str(), 8080));
    assert!(told.is_ok(), "{told:?}");
}

#[test]
fn a_pods_network_is_up_and_routed_by_the_bridge() {
    let daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("net");
    let ip = daemon.pod_ip(&pod);
    let info = daemon.info(&pod, &asked("info", &["info"]));
    assert_eq!(info["interfaces"]["lo"]["up"], true, "{}", info["interfaces"]);
    assert_eq!(info["interfaces"]["eth0"]["up"], true);
    let addresses = info["interfaces"]["eth0"]["addresses"].as_array().unwrap();
    assert!(addresses.iter().any(|a| a.as_str().unwrap().starts_with(&ip)), "{ip}: {addresses:?}");
    // A default route through the bridge's address, in the kernel's byte order.
    let gateway: Vec<u8> = daemon.gateway().split('.').map(|byte| byte.parse().unwrap()).collect();
    let gateway = format!("{:08X}", u32::from_le_bytes([gateway[0], gateway[1], gateway[2], gateway[3]]));
    let routes = info["routes"].as_str().unwrap();
    let default = routes.lines().any(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        words[1] == "00000000" && words[2] == gateway
    });
    assert!(default, "{gateway}: {routes}");
}

#[test]
fn a_pod_on_the_hosts_network_sees_the_hosts_links() {
    let daemon = Daemon::with_fixture();
    let pod = daemon.run_pod(host_network("host")).unwrap();
    let status = daemon.pod_status(&pod.id).unwrap();
    let options = status.linux.unwrap().namespaces.unwrap().options.unwrap();
    assert_eq!(options.network(), cri::NamespaceMode::Node);
    let asked = asked("info", &["info"]).secured(|security| {
        security.namespace_options.get_or_insert_default().network = cri::NamespaceMode::Node.into();
    });
    let info = daemon.info(&pod, &asked);
    let host = std::fs::read_link("/proc/self/ns/net").unwrap();
    assert_eq!(info["namespaces"]["net"], host.to_str().unwrap());
    let hostname = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    assert_eq!(info["hostname"], hostname.trim());
}

#[test]
fn addresses_come_back_when_pods_go() {
    let daemon = Daemon::start();
    let mut seen = Vec::new();
    for round in 0..4 {
        let pod = daemon.plain_pod(&format!("round-{round}"));
        seen.push(daemon.pod_ip(&pod));
        daemon.remove_pod(&pod.id).unwrap();
    }
    let pods: Vec<_> = (0..5).map(|n| daemon.plain_pod(&format!("many-{n}"))).collect();
    let mut ips: Vec<String> = pods.iter().map(|pod| daemon.pod_ip(pod)).collect();
    ips.sort();
    ips.dedup();
    assert_eq!(ips.len(), pods.len());
}

#[test]
fn sysctls_are_the_pods_own() {
    let daemon = Daemon::with_fixture();
    let mut config = pod("sysctl");
    let linux = config.linux.as_mut().unwrap();
    linux.sysctls.insert("net.ipv4.ip_unprivileged_port_start".into(), "80".into());
    linux.sysctls.insert("kernel.shm_rmid_forced".into(), "1".into());
    let pod = daemon.run_pod(config).unwrap();
    let id = daemon.launch(&pod, &asked("c", &["sleep", "inf"])).unwrap();
    assert_eq!(daemon.exec_ok(&id, &["cat", "/proc/sys/net/ipv4/ip_unprivileged_port_start"]), "80\n");
    assert_eq!(daemon.exec_ok(&id, &["cat", "/proc/sys/kernel/shm_rmid_forced"]), "1\n");
}

#[test]
fn a_pod_that_cannot_be_leaves_nothing() {
    let daemon = Daemon::start();
    let mut config = pod("sysctl");
    config.linux.as_mut().unwrap().sysctls.insert("net.no_such_thing".into(), "1".into());
    let refused = daemon.run_pod(config).unwrap_err();
    assert!(refused.message().contains("no_such_thing"), "{refused}");
    let request = cri::RunPodSandboxRequest { config: Some(pod("kata")), runtime_handler: "kata".into() };
    let refused = daemon.call(daemon.runtime().run_pod_sandbox(request)).unwrap_err();
    assert!(refused.message().contains("kata"), "{refused}");
    assert!(daemon.list_pods(cri::PodSandboxFilter::default()).is_empty());
}

#[test]
fn lists_do_not_wait_for_what_is_under_way() {
    let daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("busy");
    let ready = asked("deaf", &["trap"]);
    let deaf = daemon.launch(&pod, &ready).unwrap();
    daemon.logged(&pod, &ready, "ready");
    std::thread::scope(|scope| {
        let stopping = scope.spawn(|| daemon.stop_container(&deaf, 50));
        // The signal has come: the call is under way.
        daemon.logged(&pod, &ready, "SIGTERM");
        let begun = Instant::now();
        for _ in 0..10 {
            assert_eq!(daemon.list_pods(cri::PodSandboxFilter::default()).len(), 1);
            assert_eq!(daemon.list_containers(cri::ContainerFilter::default()).len(), 1);
            daemon.status(&deaf).unwrap();
        }
        assert!(!stopping.is_finished(), "thirty answers took {:?}", begun.elapsed());
        // Whoever doesn't want to wait ends it for all.
        daemon.stop_container(&deaf, 0).unwrap();
        stopping.join().unwrap().unwrap();
    });
    assert_eq!(daemon.status(&deaf).unwrap().exit_code, 137);
}

/// What a web server answers, once it is there.
fn answer(address: &str, port: u16) -> String {
    eventually(&format!("{address}:{port} to answer"), || web::ask(address, port, "GET /").ok())
}

#[test]
fn a_port_of_the_node_leads_into_the_pod_until_it_stops() {
    let mut daemon = Daemon::with_fixture();
    let port = web::free_port();
    let mapping =
        |port: u16| cri::PortMapping { host_port: port.into(), container_port: 8080, ..Default::default() };
    let mut config = pod("web");
    // 0 is no port of the node.
    config.port_mappings = vec![mapping(port), mapping(0)];
    let server = daemon.run_pod(config).unwrap();
    daemon.launch(&server, &asked("c", &["http", "8080", "from-the-pod"])).unwrap();
    let gateway = daemon.gateway();
    for address in ["127.0.0.1", gateway.as_str()] {
        assert!(answer(address, port).contains("from-the-pod"), "{address}");
    }
    // From another pod by the node's address, and from itself.
    let peer = daemon.plain_pod("peer");
    let words = ["get", gateway.as_str(), &port.to_string()];
    for home in [&peer, &server] {
        let caller = daemon.launch(home, &asked("caller", &["sleep", "inf"])).unwrap();
        assert_eq!(daemon.exec_ok(&caller, &words), "from-the-pod\n");
    }
    // A second pod does not get it, nor does one get what the node itself listens at.
    let mut second = pod("second");
    second.port_mappings = vec![mapping(port)];
    let refused = daemon.run_pod(second).unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    assert!(refused.message().contains(&format!("{port}/tcp")), "{refused}");
    let listener = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
    let mut third = pod("third");
    third.port_mappings = vec![mapping(listener.local_addr().unwrap().port())];
    let refused = daemon.run_pod(third).unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");

    // It is there without the daemon and with its successor, and goes with the pod.
    daemon.kill9();
    assert!(answer("127.0.0.1", port).contains("from-the-pod"));
    daemon.up();
    assert!(answer("127.0.0.1", port).contains("from-the-pod"));
    daemon.stop_pod(&server.id).unwrap();
    assert!(web::ask("127.0.0.1", port, "GET /").is_err());
}
