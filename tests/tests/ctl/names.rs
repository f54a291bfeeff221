//! Names in a network that a person makes: found there and nowhere else, whatever dies; all others by the node's servers.

use std::{fs, net::UdpSocket, process::Command, thread};

use berth_tests::{Daemon, Finished, eventually, skip};

use crate::{
    IMAGE, inspect,
    networks::{create, idle, ips, network, serve},
};

/// What a container finds of a name: 0, and 2 where there is none of that name, 3 nothing of that kind, 4 nobody knows.
fn resolve(daemon: &Daemon, from: &str, words: &[&str]) -> Finished {
    daemon.berth(&[&["exec", from, "resolve"], words].concat())
}

fn found(daemon: &Daemon, from: &str, words: &[&str]) -> Vec<String> {
    let done = resolve(daemon, from, words);
    assert_eq!(done.code, 0, "{from} {words:?}: {done:?}");
    let mut lines: Vec<String> = done.stdout.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

fn short(daemon: &Daemon, container: &str) -> String {
    inspect(daemon, container)["Id"].as_str().unwrap()[..12].to_owned()
}

#[test]
fn containers_find_each_other_by_name_id_and_alias_in_their_network_only() {
    let daemon = Daemon::with_fixture();
    let six = create(&daemon, "blue", 0);
    create(&daemon, "red", 1);
    serve(&daemon, "web", &["--network", "blue", "--network-alias", "site", "--network-alias", "Db.Example"]);
    serve(&daemon, "twin", &["--network", "blue", "--network-alias", "site"]);
    for (name, network) in [("friend", "blue"), ("stranger", "red"), ("plain", "bridge")] {
        idle(&daemon, name, network);
    }
    let (web, twin) = (ips(&daemon, "web"), ips(&daemon, "twin"));
    assert_eq!(daemon.berth_ok(&["exec", "friend", "get", "web", "8080"]), "web");
    let id = short(&daemon, "web");
    for name in ["web", "WEB", "web.blue", &id, "db.example"] {
        assert_eq!(found(&daemon, "friend", &[name]), web[..1], "{name}");
    }
    let mut both = vec![web[0].clone(), twin[0].clone()];
    both.sort();
    assert_eq!(found(&daemon, "friend", &["site"]), both);
    assert_eq!(found(&daemon, "friend", &[&web[0], "PTR"]), ["web.blue."]);
    // It finds itself, too, and a name with nothing of a kind is there all the same.
    assert_eq!(found(&daemon, "web", &["web"]), web[..1]);
    assert_eq!(resolve(&daemon, "friend", &["web", "MX"]).code, 3);
    if six {
        assert_eq!(found(&daemon, "friend", &["web", "AAAA"]), web[1..]);
        assert_eq!(found(&daemon, "friend", &[&web[1], "PTR"]), ["web.blue."]);
        let gateway6 = network(&daemon, "blue")["IPAM"]["Config"][1]["Gateway"].as_str().unwrap().to_owned();
        assert_eq!(found(&daemon, "friend", &["web", "A", &gateway6]), web[..1]);
    } else {
        assert_eq!(resolve(&daemon, "friend", &["web", "AAAA"]).code, 3);
    }
    // Nobody of another network does, nor at this one's gateway.
    for name in ["web", "site", "web.blue", &id] {
        assert_eq!(resolve(&daemon, "stranger", &[name]).code, 4, "{name}");
    }
    assert_eq!(resolve(&daemon, "friend", &["stranger"]).code, 4);
    let gateway = network(&daemon, "blue")["IPAM"]["Config"][0]["Gateway"].as_str().unwrap().to_owned();
    assert_eq!(resolve(&daemon, "stranger", &["web", "A", &gateway]).code, 1);
    assert_eq!(resolve(&daemon, "plain", &["web", "A", &gateway]).code, 1);

    let written = daemon.berth_ok(&["exec", "friend", "cat", "/etc/resolv.conf"]);
    assert!(written.starts_with(&format!("nameserver {gateway}\n")), "{written}");
    assert!(written.ends_with("options ndots:0"), "{written}");
    let told = inspect(&daemon, "web")["NetworkSettings"]["Networks"]["blue"].clone();
    assert_eq!(told["Aliases"], serde_json::json!(["site", "Db.Example"]));
    assert_eq!(told["DNSNames"], serde_json::json!(["web", "site", "Db.Example", id]));
    for (words, said) in [
        (&["--network-alias", "a"][..], "only networks that somebody made"),
        (&["--network", "host", "--network-alias", "a"], "only networks that somebody made"),
        (&["--network", "blue", "--network-alias", "a b"], "letters, digits"),
    ] {
        let done = daemon.berth(&[&["create"], words, &[IMAGE, "true"]].concat());
        assert!(done.code == 125 && done.stderr.contains(said), "{words:?}: {done:?}");
    }
}

#[test]
fn a_name_that_many_have_is_answered_whole_over_tcp() {
    let test = "a_name_that_many_have_is_answered_whole_over_tcp";
    let daemon = Daemon::with_fixture();
    if !create(&daemon, "blue", 0) {
        return skip(test, "the node has no IPv6, whose addresses fill a datagram with fewer containers");
    }
    // Of 28 bytes each in 512.
    let names: Vec<String> = (0..18).map(|number| format!("one{number}")).collect();
    thread::scope(|scope| {
        for some in names.chunks(6) {
            let daemon = &daemon;
            scope.spawn(move || {
                for name in some {
                    let flags = ["--network", "blue", "--network-alias", "many"];
                    let words =
                        [&["run", "-d", "--name", name], &flags[..], &[IMAGE, "sleep", "inf"]].concat();
                    daemon.berth_ok(&words);
                }
            });
        }
    });
    let mut all: Vec<String> = names.iter().map(|name| ips(&daemon, name).remove(1)).collect();
    all.sort();
    assert_eq!(found(&daemon, "one0", &["many", "AAAA"]), all);
    assert_eq!(found(&daemon, "one1", &["many"]).len(), all.len());
}

#[test]
fn a_name_is_there_from_the_start_of_its_container_until_its_end() {
    let mut daemon = Daemon::with_fixture();
    create(&daemon, "blue", 0);
    idle(&daemon, "friend", "blue");
    daemon.berth_ok(&["create", "--name", "web", "--network", "blue", IMAGE, "sleep", "inf"]);
    let known = |daemon: &Daemon| resolve(daemon, "friend", &["web"]).code == 0;
    assert!(!known(&daemon));
    daemon.berth_ok(&["start", "web"]);
    assert!(known(&daemon));
    daemon.berth_ok(&["stop", "-t", "0", "web"]);
    assert!(!known(&daemon));
    daemon.berth_ok(&["start", "web"]);
    assert!(known(&daemon));
    daemon.kill9();
    daemon.up();
    // At once, and no other's: a new daemon knows who was there before it answers.
    assert!(known(&daemon));
    assert_eq!(found(&daemon, "friend", &["friend"]), ips(&daemon, "friend")[..1]);
    // One that ends while there is no daemon.
    let pid = inspect(&daemon, "web")["State"]["Pid"].as_i64().unwrap();
    daemon.kill9();
    assert!(Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap().success());
    daemon.up();
    eventually("its end", || (!known(&daemon)).then_some(()));
    daemon.berth_ok(&["start", "web"]);
    assert!(known(&daemon));
    daemon.berth_ok(&["rm", "-f", "web"]);
    assert!(!known(&daemon));
    // It finds itself before its program runs.
    let own =
        daemon.berth_ok(&["run", "--rm", "--name", "self", "--network", "blue", IMAGE, "resolve", "self"]);
    assert!(own.starts_with(daemon.named_subnet(0).0.trim_end_matches("0/24")), "{own}");
}

#[test]
fn other_names_are_asked_of_the_nodes_servers_over_tcp_where_they_are_long() {
    let daemon = Daemon::with_fixture();
    create(&daemon, "blue", 0);
    let (inside, _) = daemon.named_subnet(1);
    daemon.berth_ok(&["network", "create", "--internal", "--subnet", &inside, "inside"]);
    let many: Vec<String> = (1..=60).map(|number| format!("many.example=192.0.2.{number}")).collect();
    let known = ["names", "53", "out.example=192.0.2.100", "out.example=2001:db8::1", "web=192.0.2.200"];
    let words = ["run", "-d", "--name", "server", IMAGE].into_iter().chain(known);
    daemon.berth_ok(&words.chain(many.iter().map(String::as_str)).collect::<Vec<_>>());
    let logs = || daemon.berth_ok(&["logs", "server"]);
    eventually("it to listen", || logs().contains("listening 53").then_some(()));
    // The first of them is nobody.
    let server = &ips(&daemon, "server")[0];
    let text = format!(
        "nameserver {}\nnameserver {server}\nsearch example\noptions ndots:7 edns0\n",
        daemon.gateway()
    );
    fs::write(daemon.resolv_conf(), text).unwrap();
    idle(&daemon, "web", "blue");
    idle(&daemon, "shut", "inside");

    assert_eq!(found(&daemon, "web", &["out.example"]), ["192.0.2.100"]);
    assert_eq!(found(&daemon, "web", &["out.example", "AAAA"]), ["2001:db8::1"]);
    assert_eq!(resolve(&daemon, "web", &["out.example", "MX"]).code, 3);
    assert_eq!(resolve(&daemon, "web", &["nobody.example"]).code, 2);
    assert_eq!(found(&daemon, "web", &["many.example"]).len(), 60);
    let asked = logs();
    assert!(
        asked.contains("asked many.example A udp") && asked.contains("asked many.example A tcp"),
        "{asked}"
    );
    // What the network knows is its own affair, and of an internal one everything.
    assert_eq!(found(&daemon, "web", &["web"]), ips(&daemon, "web")[..1]);
    assert_eq!(resolve(&daemon, "web", &["web", "TXT"]).code, 3);
    let own = daemon.named_subnet(0).0.replace("0/24", "250");
    assert_eq!(resolve(&daemon, "web", &[&own, "PTR"]).code, 2);
    assert_eq!(resolve(&daemon, "shut", &["out.example"]).code, 2);
    assert_eq!(found(&daemon, "shut", &["shut"]), ips(&daemon, "shut")[..1]);
    let asked = logs();
    for own in ["asked web ", "in-addr.arpa", "asked shut"] {
        assert!(!asked.contains(own), "{asked}");
    }
    assert_eq!(asked.matches("asked out.example A ").count(), 1, "{asked}");
    let written = daemon.berth_ok(&["exec", "web", "cat", "/etc/resolv.conf"]);
    assert!(
        written.starts_with("search example\n") && written.ends_with("options edns0 ndots:0"),
        "{written}"
    );
    // Somebody else's name, by the search list.
    let done = daemon.berth(&["exec", "web", "get", "out", "80"]);
    assert!(done.code == 1 && done.stderr.contains("192.0.2.100:80"), "{done:?}");
}

#[test]
fn packets_of_any_kind_hurt_nobody() {
    let daemon = Daemon::with_fixture();
    create(&daemon, "blue", 0);
    for name in ["bad", "good"] {
        idle(&daemon, name, "blue");
    }
    // It holds as many connections as it gets while the other asks.
    let garbling = daemon.berth_start(&["exec", "bad", "garble", "4000"]);
    eventually("all it sends", || {
        assert_eq!(found(&daemon, "good", &["good"]), ips(&daemon, "good")[..1]);
        let done = daemon.berth(&["exec", "bad", "ls", "/garbled"]);
        (done.code == 0).then_some(())
    });
    assert_eq!(found(&daemon, "good", &["bad"]), ips(&daemon, "bad")[..1]);
    drop(garbling);
    assert!(!daemon.log().contains("panicked"), "{}", daemon.log_tail());
}

#[test]
fn a_gateway_whose_port_is_taken_is_told_and_hinders_nobody() {
    let test = "a_gateway_whose_port_is_taken_is_told_and_hinders_nobody";
    let mut daemon = Daemon::with_fixture();
    let (four, _) = daemon.named_subnet(0);
    daemon.berth_ok(&["network", "create", "--subnet", &four, "blue"]);
    idle(&daemon, "friend", "blue");
    let gateway = four.replace("0/24", "1");
    daemon.kill9();
    let Ok(taken) = UdpSocket::bind((gateway.as_str(), 53)) else {
        daemon.up();
        return skip(test, "port 53 of another address can't be bound here");
    };
    daemon.up();
    let told = network(&daemon, "blue")["Berth"]["Error"].as_str().unwrap().to_owned();
    let object = format!("answer names at {gateway} port 53/udp");
    assert!(told.contains(&object) && told.contains("let it listen at its own ones"), "{told}");
    assert!(daemon.berth_ok(&["info"]).contains(&object));
    let done = daemon.berth(&["run", "-d", "--name", "late", "--network", "blue", IMAGE, "sleep", "inf"]);
    assert!(done.code == 0 && done.stderr.contains(&object), "{done:?}");
    // It asks whom the node asks, as before there were names.
    let written = daemon.berth_ok(&["exec", "late", "cat", "/etc/resolv.conf"]);
    assert_eq!(written.trim(), fs::read_to_string("/etc/resolv.conf").unwrap().trim());
    drop(taken);
    eventually("names are answered", || (resolve(&daemon, "friend", &["late"]).code == 0).then_some(()));
    assert_eq!(network(&daemon, "blue")["Berth"]["Error"], "");
    let done = daemon.berth(&["run", "--rm", "--network", "blue", IMAGE, "cat", "/etc/resolv.conf"]);
    assert!(done.stderr.is_empty() && done.stdout.contains(&gateway), "{done:?}");
}
