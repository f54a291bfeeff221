//! Namespaces: what is shared in a pod, what is a container's own, what is the host's.

use berth_cri::v1::{self as cri, NamespaceMode};
use berth_tests::{Asked, Daemon, Pod, asked, eventually, pod};
use serde_json::Value;

fn namespaces(daemon: &Daemon, pod: &Pod, asked: &Asked) -> Value {
    daemon.info(pod, asked)["namespaces"].clone()
}

fn host(name: &str) -> String {
    std::fs::read_link(format!("/proc/self/ns/{name}")).unwrap().to_string_lossy().into_owned()
}

/// A pod and its containers' requests in one mode of process namespace.
fn in_mode(name: &str, mode: NamespaceMode) -> (cri::PodSandboxConfig, impl Fn(&str, &[&str]) -> Asked) {
    let mut config = pod(name);
    let security = config.linux.as_mut().unwrap().security_context.as_mut().unwrap();
    security.namespace_options.as_mut().unwrap().pid = mode.into();
    let ask = move |name: &str, words: &[&str]| {
        asked(name, words).secured(|security| security.namespace_options.as_mut().unwrap().pid = mode.into())
    };
    (config, ask)
}

#[test]
fn a_pod_shares_net_ipc_and_uts_and_nothing_of_the_hosts() {
    let daemon = Daemon::with_fixture();
    let (pod, other) = (daemon.plain_pod("ns"), daemon.plain_pod("other"));
    // All at once: the kernel gives the number of a namespace that is gone to the next one.
    let [one, two, three] = [(&pod, "one"), (&pod, "two"), (&other, "three")].map(|(pod, name)| {
        let id = daemon.launch(pod, &asked(name, &["sleep", "inf"])).unwrap();
        let info: Value = serde_json::from_str(&daemon.exec_ok(&id, &["info"])).unwrap();
        info["namespaces"].clone()
    });
    for name in ["net", "ipc", "uts"] {
        assert_eq!(one[name], two[name], "{name}");
        assert_ne!(one[name], three[name], "{name}");
        assert_ne!(one[name], host(name), "{name}");
    }
    for name in ["pid", "mnt"] {
        assert_ne!(one[name], two[name], "{name}");
        assert_ne!(one[name], host(name), "{name}");
    }
}

#[test]
fn a_container_is_process_1_of_its_own() {
    let daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("one");
    let info = daemon.info(&pod, &asked("c", &["info"]));
    assert_eq!((&info["pid"], &info["ppid"]), (&1.into(), &0.into()));
}

#[test]
fn a_shared_process_namespace_is_shared() {
    let daemon = Daemon::with_fixture();
    let (config, ask) = in_mode("shared", NamespaceMode::Pod);
    let pod = daemon.run_pod(config).unwrap();
    let one = daemon.launch(&pod, &ask("one", &["sleep", "1000001"])).unwrap();
    let two = daemon.launch(&pod, &ask("two", &["sleep", "1000002"])).unwrap();
    let commands = |id: &str| -> Vec<String> {
        let names = daemon.exec_ok(id, &["ls", "/proc"]);
        let pids = names.lines().filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()));
        pids.filter_map(|pid| {
            let line = daemon.exec(id, &["cat", &format!("/proc/{pid}/cmdline")], 5).unwrap().stdout;
            Some(String::from_utf8_lossy(&line).replace('\0', " ").trim().to_owned())
                .filter(|line| !line.is_empty())
        })
        .collect()
    };
    for id in [&one, &two] {
        let found = commands(id);
        for command in ["sleep 1000001", "sleep 1000002"] {
            assert!(found.iter().any(|line| line == command), "{found:?}");
        }
    }
    // The end of one is not the end of the other, and takes its children along.
    let tree = ask("tree", &["tree", "3"]);
    let third = daemon.launch(&pod, &tree).unwrap();
    eventually("three children", || (daemon.log_of(&pod, &tree).len() == 3).then_some(()));
    daemon.stop_container(&third, 0).unwrap();
    eventually("the tree to be gone", || {
        (!commands(&one).iter().any(|line| line.contains("tree"))).then_some(())
    });
    assert_eq!(daemon.status(&one).unwrap().state(), cri::ContainerState::ContainerRunning);
    daemon.stop_container(&two, 0).unwrap();
    assert_eq!(daemon.status(&two).unwrap().exit_code, 137);
}

#[test]
fn the_hosts_processes_can_be_seen_where_asked() {
    let daemon = Daemon::with_fixture();
    let (config, ask) = in_mode("host", NamespaceMode::Node);
    let pod = daemon.run_pod(config).unwrap();
    let found = namespaces(&daemon, &pod, &ask("c", &["info"]));
    assert_eq!(found["pid"], host("pid"));
    // Its end is the end of all that it started.
    let tree = ask("tree", &["tree", "3"]);
    let id = daemon.launch(&pod, &tree).unwrap();
    eventually("three children", || (daemon.log_of(&pod, &tree).len() == 3).then_some(()));
    let children: Vec<String> = daemon.log_of(&pod, &tree).into_iter().map(|line| line.content).collect();
    daemon.stop_container(&id, 0).unwrap();
    for pid in children {
        let comm = std::path::PathBuf::from(format!("/proc/{pid}/cmdline"));
        eventually("a child of the tree to be gone", || {
            std::fs::read(&comm).unwrap_or_default().is_empty().then_some(())
        });
    }
}

#[test]
fn the_hosts_ipc_can_be_had() {
    let daemon = Daemon::with_fixture();
    let mut config = pod("ipc");
    let security = config.linux.as_mut().unwrap().security_context.as_mut().unwrap();
    security.namespace_options.as_mut().unwrap().ipc = NamespaceMode::Node.into();
    let pod = daemon.run_pod(config).unwrap();
    let ask = asked("c", &["info"])
        .secured(|security| security.namespace_options.as_mut().unwrap().ipc = NamespaceMode::Node.into());
    assert_eq!(namespaces(&daemon, &pod, &ask)["ipc"], host("ipc"));
}

#[test]
fn shared_memory_is_the_pods() {
    let daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("shm");
    let one = daemon.launch(&pod, &asked("one", &["sleep", "inf"])).unwrap();
    let two = daemon.launch(&pod, &asked("two", &["sleep", "inf"])).unwrap();
    daemon.exec_ok(&one, &["write", "/dev/shm/x", "shared"]);
    assert_eq!(daemon.exec_ok(&two, &["cat", "/dev/shm/x"]), "shared\n");
    assert!(!std::path::Path::new("/dev/shm/x").exists());
}

#[test]
fn names_are_the_pods() {
    let daemon = Daemon::with_fixture();
    let mut config = pod("names");
    config.hostname = "web-0".into();
    config.dns_config = Some(cri::DnsConfig {
        servers: vec!["192.0.2.53".into()],
        searches: vec!["svc.cluster.local".into(), "cluster.local".into()],
        options: vec!["ndots:5".into()],
    });
    let pod = daemon.run_pod(config).unwrap();
    let info = daemon.info(&pod, &asked("c", &["info"]));
    assert_eq!(info["hostname"], "web-0");
    assert_eq!(info["env"]["HOSTNAME"], "web-0");
    let resolv = info["resolv_conf"].as_str().unwrap();
    let expected = "search svc.cluster.local cluster.local\nnameserver 192.0.2.53\noptions ndots:5";
    assert_eq!(resolv, expected);
    let hosts = info["hosts"].as_str().unwrap();
    assert!(hosts.contains("127.0.0.1") && hosts.contains("localhost"), "{hosts}");
    let ip = daemon.pod_ip(&pod);
    assert!(hosts.lines().any(|line| line.starts_with(&ip) && line.contains("web-0")), "{hosts}");
}

#[test]
fn without_dns_configuration_the_hosts_is_used() {
    let daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("dns");
    let info = daemon.info(&pod, &asked("c", &["info"]));
    let own = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let servers = |text: &str| -> Vec<String> {
        text.lines().filter(|line| line.starts_with("nameserver")).map(str::to_owned).collect()
    };
    assert_eq!(servers(info["resolv_conf"].as_str().unwrap_or_default()), servers(&own));
}
