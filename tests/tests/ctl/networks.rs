//! Networks that a person makes: told as docker tells them, kept apart by real traffic, there after every death.

use std::{net::TcpListener, process::Command, thread};

use berth_tests::{Daemon, eventually, skip, web};
use serde_json::Value;

use crate::{IMAGE, inspect};

/// What `berth network inspect` says of one.
pub(crate) fn network(daemon: &Daemon, name: &str) -> Value {
    let text = daemon.berth_ok(&["network", "inspect", name]);
    let mut found: Vec<Value> = serde_json::from_str(&text).expect("inspect prints JSON");
    assert_eq!(found.len(), 1, "{text}");
    found.remove(0)
}

/// Makes a network with subnets of the test's own; whether it has IPv6.
pub(crate) fn create(daemon: &Daemon, name: &str, number: u8) -> bool {
    let (four, six) = daemon.named_subnet(number);
    let has_six = TcpListener::bind(("::1", 0)).is_ok();
    let mut words = vec!["network", "create", "--subnet", &four];
    if has_six {
        words.extend(["--subnet", &six]);
    }
    words.push(name);
    assert_eq!(daemon.berth_ok(&words), name);
    has_six
}

/// Its addresses, IPv4 first.
pub(crate) fn ips(daemon: &Daemon, container: &str) -> Vec<String> {
    let settings = inspect(daemon, container)["NetworkSettings"].clone();
    let text = |key: &str| settings[key].as_str().unwrap_or_default().to_owned();
    [text("IPAddress"), text("GlobalIPv6Address")].into_iter().filter(|ip| !ip.is_empty()).collect()
}

/// Starts one that serves its name at 8080.
pub(crate) fn serve(daemon: &Daemon, name: &str, flags: &[&str]) {
    let words = [&["run", "-d", "--name", name], flags, &[IMAGE, "http", "8080", name]].concat();
    daemon.berth_ok(&words);
    eventually("it to listen", || daemon.berth_ok(&["logs", name]).contains("listening").then_some(()));
}

pub(crate) fn idle(daemon: &Daemon, name: &str, network: &str) {
    daemon.berth_ok(&["run", "-d", "--name", name, "--network", network, IMAGE, "sleep", "inf"]);
}

#[test]
fn a_network_is_made_told_and_removed() {
    let daemon = Daemon::with_fixture();
    assert_eq!(daemon.berth_ok(&["network", "create", "--label", "a=b", "--mtu", "1400", "blue"]), "blue");
    let told = network(&daemon, "blue");
    let subnet = told["IPAM"]["Config"][0]["Subnet"].as_str().unwrap();
    // Of the pool, and the first that is free.
    assert_eq!(subnet, daemon.named_subnet(0).0);
    assert_eq!((&told["Driver"], &told["Labels"]["a"]), (&"bridge".into(), &"b".into()));
    assert_eq!(
        (&told["Internal"], &told["Options"]["com.docker.network.driver.mtu"]),
        (&false.into(), &"1400".into())
    );
    let link = told["Options"]["com.docker.network.bridge.name"].as_str().unwrap();
    let shown = Command::new("ip").args(["link", "show", "dev", link]).output().unwrap();
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.contains("mtu 1400") && shown.contains("network blue"), "{shown}");

    let id = told["Id"].as_str().unwrap();
    let table = daemon.berth_ok(&["network", "ls"]);
    assert!(table.starts_with("NETWORK ID") && table.lines().count() == 3, "{table}");
    assert!(table.contains(&id[..12]) && table.contains(subnet), "{table}");
    assert_eq!(daemon.berth_ok(&["network", "ls", "-q"]), "bridge\nblue");
    let listed: Value = serde_json::from_str(&daemon.berth_ok(&["network", "ls", "-o", "json"])).unwrap();
    assert_eq!(
        (&listed["networks"][1]["id"], &listed["networks"][0]["name"]),
        (&id.into(), &"bridge".into())
    );
    assert_eq!(network(&daemon, &id[..12])["Name"], "blue");

    for (words, said) in [
        (&["create", "blue"][..], "a network of that name exists"),
        (&["create", "--subnet", subnet, "red"], "the network blue has"),
        (&["create", "--subnet", daemon.subnet(), "red"], "the network bridge has"),
        (&["create", "--subnet", "127.0.0.0/8", "red"], "can't have addresses of that range"),
        (&["create", "--gateway", "10.1.2.3", "red"], "--subnet"),
        (&["create", "a/b"], "a network's name is"),
        (&["create", "host"], "a meaning of its own"),
        (&["create", "--mtu", "5", "red"], "mtu 5"),
        (&["rm", "bridge"], "the node's own"),
        (&["rm", "green"], "berth network ls"),
        (&["inspect", "green"], "berth network ls"),
    ] {
        let done = daemon.berth(&[&["network"], words].concat());
        assert!(done.code == 125 && done.stderr.contains(said), "{words:?}: {done:?}");
    }
    assert_eq!(daemon.berth_ok(&["network", "rm", "blue"]), "blue");
    let gone = Command::new("ip").args(["link", "show", "dev", link]).output().unwrap();
    assert!(!gone.status.success());
    assert_eq!(daemon.berth_ok(&["network", "ls", "-q"]), "bridge");
    // A container of no network that is there.
    let done = daemon.berth(&["run", "--rm", "--network", "blue", IMAGE, "true"]);
    assert!(done.code == 125 && done.stderr.contains("no network of that name"), "{done:?}");
}

#[test]
fn containers_of_a_network_reach_each_other_and_nobody_of_another() {
    let daemon = Daemon::with_fixture();
    let six = create(&daemon, "blue", 0);
    create(&daemon, "red", 1);
    let port = web::free_port();
    serve(&daemon, "server", &["--network", "blue", "-p", &format!("{port}:8080")]);
    serve(&daemon, "plain", &[]);
    for (name, network) in [("friend", "blue"), ("stranger", "red"), ("other", "bridge")] {
        idle(&daemon, name, network);
    }
    let there = ips(&daemon, "server");
    assert_eq!(there.len(), if six { 2 } else { 1 }, "{there:?}");
    let members = &network(&daemon, "blue")["Containers"];
    assert_eq!(members.as_object().unwrap().len(), 2, "{members}");
    for ip in &there {
        assert_eq!(daemon.berth_ok(&["exec", "friend", "get", ip, "8080"]), "server");
        // The node reaches it.
        assert!(web::ask(ip, 8080, "GET /").unwrap().contains("server"));
    }
    // And is reached, at its address there.
    for subnet in network(&daemon, "red")["IPAM"]["Config"].as_array().unwrap() {
        let gateway = subnet["Gateway"].as_str().unwrap();
        let listener = TcpListener::bind((gateway, 0)).unwrap();
        let at = listener.local_addr().unwrap().port().to_string();
        let served = thread::spawn(move || web::answer_once(&listener, "node"));
        assert_eq!(daemon.berth_ok(&["exec", "stranger", "get", gateway, &at]), "node");
        assert!(ips(&daemon, "stranger").contains(&served.join().unwrap().ip().to_string()));
    }
    // By its port of the node it is reached from everywhere.
    let port = port.to_string();
    for (from, at) in
        [("stranger", daemon.gateway()), ("other", daemon.gateway()), ("friend", daemon.gateway())]
    {
        assert_eq!(daemon.berth_ok(&["exec", from, "get", &at, &port]), "server", "{from}");
    }
    assert!(web::ask("127.0.0.1", port.parse().unwrap(), "GET /").unwrap().contains("server"));
    // Past that nobody of one network reaches another, either way and by either family. Each waits in vain for ten
    // seconds, so all do at once.
    let plain = ips(&daemon, "plain");
    let tries = there
        .iter()
        .flat_map(|ip| [("stranger", ip.clone()), ("other", ip.clone())])
        .chain(plain.iter().map(|ip| ("friend", ip.clone())));
    let daemon = &daemon;
    thread::scope(|scope| {
        let mut asked = Vec::new();
        for (from, ip) in tries {
            asked.push(scope.spawn(move || {
                let done = daemon.berth(&["exec", from, "get", &ip, "8080"]);
                assert!(done.code != 0 && done.stderr.contains("connect to"), "{from} {ip}: {done:?}");
            }));
        }
        asked.into_iter().for_each(|asked| asked.join().unwrap());
    });
}

#[test]
fn an_internal_network_has_no_way_out() {
    let daemon = Daemon::with_fixture();
    let (subnet, _) = daemon.named_subnet(0);
    daemon.berth_ok(&["network", "create", "--internal", "--subnet", &subnet, "inside"]);
    serve(&daemon, "server", &["--network", "inside"]);
    idle(&daemon, "client", "inside");
    let there = ips(&daemon, "server").remove(0);
    assert_eq!(daemon.berth_ok(&["exec", "client", "get", &there, "8080"]), "server");
    assert!(web::ask(&there, 8080, "GET /").unwrap().contains("server"));
    let done = daemon.berth(&["exec", "client", "get", &daemon.gateway(), "8080"]);
    assert!(done.code != 0 && done.stderr.contains("unreachable"), "{done:?}");
    assert_eq!(network(&daemon, "inside")["Internal"], true);
    assert!(daemon.berth_ok(&["network", "ls"]).contains("internal"));
}

#[test]
fn a_network_in_use_stays_and_an_address_that_is_asked_for_is_had_once() {
    let daemon = Daemon::with_fixture();
    let six = create(&daemon, "blue", 0);
    let (four, prefix) = daemon.named_subnet(0);
    let (ip, ip6) = (four.replace(".0/24", ".77"), prefix.replace("/64", "77"));
    let mut words = vec!["run", "-d", "--name", "web", "--network", "blue", "--ip", &ip];
    if six {
        words.extend(["--ip6", &ip6]);
    }
    daemon.berth_ok(&[&words[..], &[IMAGE, "sleep", "inf"]].concat());
    assert_eq!(ips(&daemon, "web")[0], ip);
    assert!(!six || ips(&daemon, "web")[1] == ip6, "{:?}", ips(&daemon, "web"));
    let done = daemon.berth(&["run", "--rm", "--network", "blue", "--ip", &ip, IMAGE, "true"]);
    assert!(done.code == 125 && done.stderr.contains(&ip), "{done:?}");
    let done = daemon.berth(&["run", "--rm", "--network", "blue", "--ip", "10.0.0.9", IMAGE, "true"]);
    assert!(done.code == 125 && done.stderr.contains("10.0.0.9"), "{done:?}");

    let refused = || {
        let done = daemon.berth(&["network", "rm", "blue"]);
        assert!(done.code == 125 && done.stderr.contains("containers are in it: web"), "{done:?}");
    };
    refused();
    // One that has ended comes back to its place.
    daemon.berth_ok(&["stop", "-t", "0", "web"]);
    refused();
    daemon.berth_ok(&["start", "web"]);
    assert_eq!(ips(&daemon, "web")[0], ip);
    // At once: whoever is leaving is waited for.
    daemon.berth_ok(&["rm", "-f", "web"]);
    assert_eq!(daemon.berth_ok(&["network", "rm", "blue"]), "blue");
    assert_eq!(std::fs::read_dir(daemon.root().join("network/networks")).unwrap().count(), 0);
}

#[test]
fn networks_outlive_the_daemon_and_are_set_up_again() {
    let test = "networks_outlive_the_daemon_and_are_set_up_again";
    let mut daemon = Daemon::with_fixture();
    create(&daemon, "blue", 0);
    let port = web::free_port();
    serve(&daemon, "server", &["--network", "blue", "-p", &format!("{port}:8080")]);
    let before = network(&daemon, "blue");
    daemon.kill9();
    // As after a start of the machine, but for the links of containers, which are not on it any more.
    let link = before["Options"]["com.docker.network.bridge.name"].as_str().unwrap();
    if !Command::new("nft").args(["delete", "table", "ip", &daemon.table()]).status().unwrap().success() {
        return skip(test, "nft is not here");
    }
    daemon.up();
    let after = network(&daemon, "blue");
    assert_eq!(after, before);
    assert!(web::ask("127.0.0.1", port, "GET /").unwrap().contains("server"));
    idle(&daemon, "friend", "blue");
    let there = ips(&daemon, "server").remove(0);
    assert_eq!(daemon.berth_ok(&["exec", "friend", "get", &there, "8080"]), "server");
    daemon.berth_ok(&["rm", "-f", "server", "friend"]);
    daemon.kill9();
    assert!(Command::new("ip").args(["link", "delete", link]).status().unwrap().success());
    daemon.up();
    serve(&daemon, "again", &["--network", "blue"]);
    assert!(web::ask(&ips(&daemon, "again")[0], 8080, "GET /").unwrap().contains("again"));
}
