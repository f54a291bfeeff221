//! Pods whose network plugins make: the CNI project's own with traffic really sent, and plugins that misbehave.

use berth_cri::v1 as cri;
use berth_tests::{BOUND, Daemon, asked, cni, eventually, pod, until, web};
use serde_json::{Value, json};
use tonic::Code;

/// One that does its work and says so.
const GOOD: &str = r#"
echo "$CNI_COMMAND $CNI_IFNAME ${CNI_NETNS:-gone} $CNI_ARGS $(cat)" >>"$LOG"
case $CNI_COMMAND in
VERSION) echo '{"cniVersion":"1.1.0","supportedVersions":["0.3.1","0.4.0","1.0.0","1.1.0"]}';;
ADD) echo '{"cniVersion":"1.1.0","interfaces":[{"name":"eth0","sandbox":"x"}],"ips":[{"address":"10.7.0.9/24","interface":0},{"address":"fd07::9/64","interface":0}]}';;
esac"#;

pub(crate) fn network_ready(daemon: &Daemon) -> cri::RuntimeCondition {
    let answer =
        daemon.call(daemon.runtime().status(cri::StatusRequest::default())).expect("ask for the status");
    let conditions = answer.status.expect("an answer has a status").conditions;
    conditions.into_iter().find(|one| one.r#type == "NetworkReady").expect("the network's condition is told")
}

/// The table that portmap makes for the whole node and keeps: removed where this test brought it.
struct Table([bool; 2]);

impl Table {
    const NAME: &str = "cni_hostport";
    const FAMILIES: [&str; 2] = ["ip", "ip6"];

    fn look() -> Self {
        Self(Self::FAMILIES.map(|family| nft("list", family, Self::NAME)))
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        for (family, was_there) in Self::FAMILIES.iter().zip(self.0) {
            if !was_there {
                nft("delete", family, Self::NAME);
            }
        }
    }
}

fn nft(verb: &str, family: &str, table: &str) -> bool {
    let output = std::process::Command::new("nft").args([verb, "table", family, table]).output();
    output.is_ok_and(|output| output.status.success())
}

/// What the firewall plugin makes for the whole node and keeps: iptables' own table where there was none, else its
/// chains there. Removed where this test brought it.
struct Chains(Vec<(&'static str, &'static str, Past)>);

enum Past {
    NoTable,
    NoChains,
    Chains,
}

impl Chains {
    fn look() -> Self {
        let past = |program, family| {
            // Asked first: iptables makes the table to look into it.
            let table = nft("list", family, "filter");
            match (table, Self::run(program, &["-S", "CNI-FORWARD"])) {
                (false, _) => Past::NoTable,
                (true, false) => Past::NoChains,
                (true, true) => Past::Chains,
            }
        };
        let both = [("iptables", "ip"), ("ip6tables", "ip6")];
        Self(both.map(|(program, family)| (program, family, past(program, family))).into())
    }

    fn run(program: &str, words: &[&str]) -> bool {
        let output = std::process::Command::new(program).args(words).output();
        output.is_ok_and(|output| output.status.success())
    }
}

impl Drop for Chains {
    fn drop(&mut self) {
        let comment = "CNI firewall plugin rules";
        for (program, family, past) in &self.0 {
            match past {
                Past::Chains => {}
                Past::NoTable => {
                    nft("delete", family, "filter");
                }
                Past::NoChains => {
                    let jump = ["-D", "FORWARD", "-m", "comment", "--comment", comment, "-j", "CNI-FORWARD"];
                    Self::run(program, &jump);
                    // The first jumps into the second.
                    for verb in ["-F", "-X"] {
                        for chain in ["CNI-FORWARD", "CNI-ADMIN"] {
                            Self::run(program, &[verb, chain]);
                        }
                    }
                }
            }
        }
    }
}

pub(crate) fn calls(daemon: &Daemon, verb: &str) -> Vec<String> {
    daemon.cni_log().into_iter().filter(|line| line.starts_with(verb)).collect()
}

#[test]
fn pods_of_the_bridge_plugin_reach_each_other_and_ports_of_the_node_lead_to_them() {
    let test = "pods_of_the_bridge_plugin_reach_each_other_and_ports_of_the_node_lead_to_them";
    let kinds = ["bridge", "host-local", "portmap", "loopback"];
    if !cni::required(test, &kinds) || !berth_tests::required(test, &["nft"]) {
        return;
    }
    let _table = Table::look();
    let daemon = Daemon::with_fixture();
    daemon.cni_list(
        "10-test.conflist",
        "1.0.0",
        &json!([
            daemon.cni_bridge(),
            {"type": "portmap", "backend": "nftables", "capabilities": {"portMappings": true}},
            {"type": "loopback"},
        ]),
    );
    assert!(network_ready(&daemon).status, "{}", network_ready(&daemon).message);
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut config = pod("server");
    config.port_mappings.push(cri::PortMapping {
        protocol: cri::Protocol::Tcp.into(),
        container_port: 8080,
        host_port: i32::from(free),
        host_ip: String::new(),
    });
    let (server, client) = (daemon.run_pod(config).unwrap(), daemon.plain_pod("client"));
    let there = daemon.pod_ip(&server);
    assert!(there.starts_with(daemon.gateway().trim_end_matches(".1")), "{there}");
    let http = asked("http", &["http", "8080", "hello"]);
    let serving = daemon.launch(&server, &http).unwrap();
    daemon.logged(&server, &http, "listening 8080");
    let asking = daemon.launch(&client, &asked("sleep", &["sleep", "inf"])).unwrap();
    assert_eq!(daemon.exec_ok(&asking, &["get", &there, "8080"]), "hello\n");
    assert_eq!(daemon.exec_ok(&serving, &["get", "127.0.0.1", "8080"]), "hello\n");
    // A port of the node, from a pod and from the node, by the bridge's addresses of both families.
    let there6 = daemon.pod_status(&server.id).unwrap().network.unwrap().additional_ips[0].ip.clone();
    assert!(there6.starts_with(daemon.gateway6().trim_end_matches('1')), "{there6}");
    assert_eq!(daemon.exec_ok(&asking, &["get", &there6, "8080"]), "hello\n");
    for gateway in [daemon.gateway(), daemon.gateway6()] {
        assert_eq!(daemon.exec_ok(&asking, &["get", &gateway, &free.to_string()]), "hello\n", "{gateway}");
        assert!(web::ask(&gateway, free, "GET /").unwrap().contains("hello"), "{gateway}");
    }
    // Its traffic is counted, in its own namespace.
    let request = cri::PodSandboxStatsRequest { pod_sandbox_id: server.id.clone() };
    let stats = daemon.call(daemon.runtime().pod_sandbox_stats(request)).unwrap().stats.unwrap();
    let eth0 = stats.linux.unwrap().network.unwrap().default_interface.unwrap();
    assert!(eth0.name == "eth0" && eth0.rx_bytes.unwrap().value > 100, "{}", eth0.name);
    // libcni's tools see it.
    let name = format!("{}-{}-eth0", daemon.bridge(), server.id);
    let cached = daemon.cni_cache_dir().join("results").join(name);
    let cached: Value = serde_json::from_slice(&std::fs::read(&cached).unwrap()).unwrap();
    assert_eq!((&cached["kind"], &cached["ifName"]), (&json!("cniCacheV1"), &json!("eth0")));
    assert!(cached["result"]["ips"][0]["address"].as_str().unwrap().starts_with(&there), "{cached}");
    // Another daemon finds it all, and can take it down.
    let mut daemon = daemon;
    daemon.kill9();
    daemon.up();
    assert_eq!(daemon.exec_ok(&asking, &["get", &there, "8080"]), "hello\n");
    daemon.stop_pod(&server.id).unwrap();
    daemon.stop_pod(&server.id).unwrap();
    assert!(std::net::TcpStream::connect(("127.0.0.1", free)).is_err());
}

#[test]
fn other_plugins_of_the_project_make_networks_too() {
    let test = "other_plugins_of_the_project_make_networks_too";
    if !cni::required(test, &["ptp", "macvlan", "bridge", "bandwidth", "host-local"]) {
        return;
    }
    let daemon = Daemon::with_fixture();
    let reaches_node = |name: &str, config: cri::PodSandboxConfig| {
        let pod = daemon.run_pod(config).unwrap_or_else(|status| panic!("{name}: {status}"));
        let asking = daemon.launch(&pod, &asked("sleep", &["sleep", "inf"])).unwrap();
        for target in [daemon.gateway(), daemon.gateway6()] {
            let listener = std::net::TcpListener::bind((target.as_str(), 0)).unwrap();
            let port = listener.local_addr().unwrap().port().to_string();
            let served = std::thread::spawn(move || web::answer_once(&listener, "hi"));
            assert_eq!(daemon.exec_ok(&asking, &["get", &target, &port]), "hi\n", "{name} {target}");
            served.join().unwrap();
        }
        daemon.remove_pod(&pod.id).unwrap();
    };
    let ptp = json!([{"type": "ptp", "ipMasq": false, "ipam": daemon.cni_ipam()}]);
    daemon.cni_list("10.conflist", "1.0.0", &ptp);
    reaches_node("ptp", pod("ptp"));
    // Limits that the pod's annotations ask for; the kernel may not have the discipline: then that is what is told.
    let shaped = json!([daemon.cni_bridge(), {"type": "bandwidth", "capabilities": {"bandwidth": true}}]);
    daemon.cni_list("10.conflist", "1.0.0", &shaped);
    for direction in ["ingress", "egress"] {
        let mut limited = pod("limited");
        limited.annotations.insert(format!("kubernetes.io/{direction}-bandwidth"), "100M".into());
        match daemon.run_pod(limited.clone()) {
            Ok(made) => {
                daemon.remove_pod(&made.id).unwrap();
                reaches_node("bandwidth", limited);
            }
            Err(status) => {
                assert!(status.message().contains("run network plugin bandwidth ADD"), "{status}");
                berth_tests::skip(test, &format!("its part of bandwidth, {direction}: {}", status.message()));
            }
        }
    }
    // Two pods on one macvlan over the bridge, which has a carrier as long as another pod is on it.
    daemon.plain_pod("carrier");
    let macvlan = json!([{"type": "macvlan", "master": daemon.bridge(), "ipam": daemon.cni_ipam()}]);
    daemon.cni_list("10.conflist", "1.0.0", &macvlan);
    let (server, client) = (daemon.plain_pod("server"), daemon.plain_pod("client"));
    let http = asked("http", &["http", "80", "mac"]);
    daemon.launch(&server, &http).unwrap();
    daemon.logged(&server, &http, "listening 80");
    let asking = daemon.launch(&client, &asked("sleep", &["sleep", "inf"])).unwrap();
    let network = daemon.pod_status(&server.id).unwrap().network.unwrap();
    for ip in [&network.ip, &network.additional_ips[0].ip] {
        assert_eq!(daemon.exec_ok(&asking, &["get", ip, "80"]), "mac\n");
    }
}

#[test]
fn the_firewall_plugin_admits_a_pod_and_takes_that_back() {
    let test = "the_firewall_plugin_admits_a_pod_and_takes_that_back";
    let kinds = ["bridge", "host-local", "firewall"];
    if !cni::required(test, &kinds) || !berth_tests::required(test, &["iptables", "ip6tables"]) {
        return;
    }
    let _chains = Chains::look();
    let daemon = Daemon::with_fixture();
    let list = json!([daemon.cni_bridge(), {"type": "firewall", "backend": "iptables"}]);
    daemon.cni_list("10.conflist", "1.0.0", &list);
    let (server, client) = (daemon.plain_pod("server"), daemon.plain_pod("client"));
    let admitted = || {
        let saved = std::process::Command::new("iptables").args(["-S", "CNI-FORWARD"]).output().unwrap();
        String::from_utf8_lossy(&saved.stdout).contains(&format!("{}/32", daemon.pod_ip(&server)))
    };
    assert!(admitted());
    let http = asked("http", &["http", "80", "walled"]);
    daemon.launch(&server, &http).unwrap();
    daemon.logged(&server, &http, "listening 80");
    let asking = daemon.launch(&client, &asked("sleep", &["sleep", "inf"])).unwrap();
    assert_eq!(daemon.exec_ok(&asking, &["get", &daemon.pod_ip(&server), "80"]), "walled\n");
    let ip = daemon.pod_ip(&server);
    daemon.stop_pod(&server.id).unwrap();
    let saved = std::process::Command::new("iptables").args(["-S", "CNI-FORWARD"]).output().unwrap();
    assert!(!String::from_utf8_lossy(&saved.stdout).contains(&format!("{ip}/32")));
}

#[test]
fn plugins_are_told_what_they_ask_for_and_all_their_addresses_are_the_pods() {
    let daemon = Daemon::start();
    daemon.cni_script("good", GOOD);
    let asks = json!({"type": "good", "capabilities": {"dns": true, "portMappings": true, "ipRanges": true}});
    daemon.cni_list("10.conflist", "1.1.0", &json!([asks, {"type": "good", "second": true}]));
    let network = cri::NetworkConfig { pod_cidr: "10.7.0.0/24,fd07::/64".into() };
    let ranges = cri::UpdateRuntimeConfigRequest {
        runtime_config: Some(cri::RuntimeConfig { network_config: Some(network) }),
    };
    daemon.call(daemon.runtime().update_runtime_config(ranges)).unwrap();
    let mut config = pod("told");
    config.dns_config = Some(cri::DnsConfig { servers: vec!["10.0.0.10".into()], ..Default::default() });
    let pod = daemon.run_pod(config).unwrap();
    let network = daemon.pod_status(&pod.id).unwrap().network.unwrap();
    assert_eq!((network.ip.as_str(), network.additional_ips[0].ip.as_str()), ("10.7.0.9", "fd07::9"));
    let added = calls(&daemon, "ADD eth0");
    assert_eq!(added.len(), 2, "{added:?}");
    let words = format!("K8S_POD_NAMESPACE=tests;K8S_POD_NAME=told;K8S_POD_INFRA_CONTAINER_ID={}", pod.id);
    assert!(added[0].contains(&format!("IgnoreUnknown=1;{words}")), "{}", added[0]);
    let input = |line: &str| -> Value { serde_json::from_str(&line[line.find('{').unwrap()..]).unwrap() };
    let (first, second) = (input(&added[0]), input(&added[1]));
    assert_eq!(first["runtimeConfig"]["dns"]["servers"], json!(["10.0.0.10"]));
    assert_eq!(first["runtimeConfig"]["ipRanges"][1], json!([{"subnet": "fd07::/64"}]));
    assert_eq!((first.get("prevResult"), second.get("runtimeConfig")), (None, None));
    assert_eq!(second["prevResult"]["ips"][0]["address"], "10.7.0.9/24");
    daemon.stop_pod(&pod.id).unwrap();
    // The last first, each with the result.
    let deleted: Vec<Value> = calls(&daemon, "DEL").iter().map(|line| input(line)).collect();
    assert_eq!((&deleted[0]["second"], deleted[1].get("second")), (&json!(true), None));
    assert!(deleted.iter().all(|input| input["prevResult"]["ips"][0]["address"] == "10.7.0.9/24"));
    // STATUS, and GC and CHECK at a start.
    assert!(network_ready(&daemon).status);
    assert!(!calls(&daemon, "STATUS").is_empty());
    let living = daemon.plain_pod("living");
    let mut daemon = daemon;
    daemon.restart();
    eventually("GC and CHECK", || {
        let collected = calls(&daemon, "GC").iter().any(|line| line.contains(&living.id));
        (collected && !calls(&daemon, "CHECK").is_empty()).then_some(())
    });
}

#[test]
fn the_first_configuration_serves_live_and_a_broken_one_is_told() {
    let daemon = Daemon::start();
    let on_bridge = daemon.plain_pod("bridge");
    let with = |file: &str, text: &str| {
        daemon.cni_file(file, text);
        let ready = network_ready(&daemon);
        assert!(!ready.status && ready.reason == "NetworkNotReady", "{text}: {ready:?}");
        let refused = daemon.run_pod(pod("refused")).unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable, "{refused}");
        (ready.message, refused.message().to_owned())
    };
    daemon.cni_script("good", GOOD);
    daemon.cni_list("20.conflist", "1.0.0", &json!([{"type": "good"}]));
    assert!(network_ready(&daemon).status);
    let (ready, refused) = with("10.conflist", "{");
    assert!(
        ready.contains("10.conflist: it is no JSON") && refused.contains("mend or remove"),
        "{ready}; {refused}"
    );
    let (ready, refused) =
        with("10.conflist", r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"nobody"}]}"#);
    assert!(
        ready.contains("find network plugin nobody") && refused.contains("in none of"),
        "{ready}; {refused}"
    );
    std::fs::remove_file(daemon.cni_conf_dir().join("10.conflist")).unwrap();
    assert_eq!(daemon.pod_ip(&daemon.plain_pod("plugin")), "10.7.0.9");
    // A plugin that speaks only what is older than the configuration.
    daemon
        .cni_script("old", r#"[ $CNI_COMMAND = VERSION ] && echo '{"supportedVersions":["0.1.0","0.3.1"]}'"#);
    daemon.cni_list("10.conflist", "1.0.0", &json!([{"type": "old"}]));
    let told = network_ready(&daemon).message;
    assert!(told.contains("the plugin speaks 0.1.0, 0.3.1"), "{told}");
    // None at all: the bridge, whose pods have it still.
    for file in ["10.conflist", "20.conflist"] {
        std::fs::remove_file(daemon.cni_conf_dir().join(file)).unwrap();
    }
    assert!(network_ready(&daemon).status);
    let again = daemon.plain_pod("again");
    let prefix = daemon.gateway().trim_end_matches(".1").to_owned();
    assert!([&on_bridge, &again].into_iter().all(|pod| daemon.pod_ip(pod).starts_with(&prefix)));
}

#[test]
fn failures_of_plugins_explain_themselves_and_are_undone() {
    let daemon = Daemon::start();
    let rows = [
        (
            r#"echo '{"code":7,"msg":"no bridge","details":"br9"}'; echo why >&2; exit 1"#,
            "no bridge (br9); its stderr: why",
        ),
        ("kill -SEGV $$", "signal: 11"),
        ("echo garbage", "is no JSON"),
        (r#"echo '{"cniVersion":"9.0.0"}'"#, "its cniVersion \"9.0.0\" is not known"),
        ("exit 0", "answered nothing to ADD"),
    ];
    daemon.cni_script("good", GOOD);
    for (number, (script, said)) in rows.into_iter().enumerate() {
        let name = format!("bad{number}");
        daemon.cni_script(&name, &format!("[ $CNI_COMMAND = ADD ] || exit 0\n{script}"));
        // The first has done its part by then.
        daemon.cni_list("10.conflist", "0.4.0", &json!([{"type": "good"}, {"type": name}]));
        let status = daemon.run_pod(pod("bad")).unwrap_err();
        assert!(status.message().contains(said), "{script}: {status}");
        assert_eq!(calls(&daemon, "DEL").len(), number + 1, "{script}");
    }
    // One that answers in the oldest way there is.
    daemon.cni_script("oldest", r#"[ $CNI_COMMAND = ADD ] && echo '{"ip4":{"ip":"10.8.0.4/24"}}' || true"#);
    daemon.cni_list("10.conflist", "0.3.1", &json!([{"type": "oldest"}]));
    assert_eq!(daemon.pod_ip(&daemon.plain_pod("oldest")), "10.8.0.4");
}

#[test]
fn a_plugin_that_hangs_is_killed_and_holds_up_only_its_own_pod() {
    let over = "[network]\nplugin_seconds = 2\n".to_owned();
    let daemon = Daemon::start_with(berth_tests::Options { over, ..Default::default() });
    // It hangs for the one pod, with a delegate, in ADD only.
    let hangs = format!(
        "case $CNI_COMMAND$CNI_ARGS in ADD*hangs*) echo hung >>$LOG; sleep 600 & sleep 600;; esac\n{GOOD}"
    );
    daemon.cni_script("good", &hangs);
    daemon.cni_list("10.conflist", "1.0.0", &json!([{"type": "good"}]));
    std::thread::scope(|scope| {
        let hung = scope.spawn(|| daemon.run_pod(pod("hangs")).unwrap_err());
        eventually("the plugin to hang", || (!calls(&daemon, "hung").is_empty()).then_some(()));
        daemon.plain_pod("beside");
        let status = hung.join().unwrap();
        assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
        assert!(status.message().contains("did not end within 2 s and was killed"), "{status}");
    });
    assert_eq!(calls(&daemon, "DEL").len(), 1);
}

#[test]
fn a_del_that_fails_is_tried_until_it_works() {
    let daemon = Daemon::start();
    let flag = daemon.dir().join("cni/stuck");
    let script = format!(
        "if [ $CNI_COMMAND = DEL ] && [ -e {} ]; then echo '{{\"code\":100,\"msg\":\"stuck\"}}'; exit 1; fi\n{GOOD}",
        flag.display()
    );
    daemon.cni_script("good", &script);
    daemon.cni_list("10.conflist", "1.0.0", &json!([{"type": "good"}]));
    let pod = daemon.plain_pod("stuck");
    std::fs::write(&flag, "").unwrap();
    let status = daemon.stop_pod(&pod.id).unwrap_err();
    assert!(status.message().contains("stuck"), "{status}");
    let told = daemon.berth_ok(&["info"]);
    assert!(told.contains("is not undone yet"), "{told}");
    std::fs::remove_file(&flag).unwrap();
    daemon.stop_pod(&pod.id).unwrap();
    // One whose namespace is gone keeps nobody waiting, and is undone all the same in the end.
    let pod = daemon.plain_pod("gone");
    std::fs::write(&flag, "").unwrap();
    let pin = daemon.state().join("pods").join(&pod.id).join("ns/net");
    rustix::mount::unmount(&pin, rustix::mount::UnmountFlags::DETACH).unwrap();
    daemon.remove_pod(&pod.id).unwrap();
    std::fs::remove_file(&flag).unwrap();
    let undone = until(BOUND, || {
        let last = calls(&daemon, "DEL").last().cloned().unwrap_or_default();
        (last.starts_with("DEL eth0 gone") && last.contains(&pod.id)).then_some(())
    });
    assert!(undone.is_some(), "{:?}", calls(&daemon, "DEL"));
}
