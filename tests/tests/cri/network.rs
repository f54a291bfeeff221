//! The built-in bridge in both families, with traffic really sent: pod to pod, pod to node, the node's ports to a pod.

use std::{
    fs,
    net::{IpAddr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket},
    os::unix::fs::PermissionsExt,
    time::Duration,
};

use berth_cri::v1 as cri;
use berth_tests::{Daemon, Pod, asked, eventually, pod, skip, web};
use rustix::net;
use tonic::Code;

use crate::cni::network_ready;

/// The node's IPv6 address on the bridge, where the node has IPv6; skips else.
fn gateway6(test: &str, daemon: &Daemon) -> Option<String> {
    let gateway = daemon.gateway6();
    let there = TcpListener::bind((gateway.as_str(), 0)).is_ok();
    if !there {
        skip(test, "the node has no IPv6");
    }
    there.then_some(gateway)
}

fn ips(daemon: &Daemon, pod: &Pod) -> Vec<String> {
    let network = daemon.pod_status(&pod.id).unwrap().network.unwrap();
    let more = network.additional_ips.into_iter().map(|more| more.ip);
    std::iter::once(network.ip).chain(more).collect()
}

fn mapping(protocol: cri::Protocol, port: u16, host_ip: &str) -> cri::PortMapping {
    cri::PortMapping {
        protocol: protocol.into(),
        host_port: port.into(),
        container_port: 8080,
        host_ip: host_ip.into(),
    }
}

#[test]
fn pods_have_both_families_and_reach_each_other_and_the_node_by_each() {
    let test = "pods_have_both_families_and_reach_each_other_and_the_node_by_each";
    let mut daemon = Daemon::with_fixture();
    let Some(gateway) = gateway6(test, &daemon) else { return };
    let (server, client) = (daemon.plain_pod("server"), daemon.plain_pod("client"));
    let there = ips(&daemon, &server);
    assert_eq!(there.len(), 2, "{there:?}");
    assert!(there[0].parse::<IpAddr>().unwrap().is_ipv4(), "{there:?}");
    assert!(there[1].starts_with(gateway.trim_end_matches('1')), "{there:?}");
    let http = asked("http", &["http", "8080", "hello"]);
    daemon.launch(&server, &http).unwrap();
    daemon.logged(&server, &http, "listening 8080");
    let asking = daemon.launch(&client, &asked("sleep", &["sleep", "inf"])).unwrap();
    // At once, no second is waited for duplicates.
    for ip in &there {
        assert_eq!(daemon.exec_ok(&asking, &["get", ip, "8080"]), "hello\n");
    }
    // The node answers at its own address, and is answered.
    let listener = TcpListener::bind((gateway.as_str(), 0)).unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let served = std::thread::spawn(move || berth_tests::web::answer_once(&listener, "node"));
    assert_eq!(daemon.exec_ok(&asking, &["get", &gateway, &port]), "node\n");
    let peer = served.join().unwrap();
    assert_eq!(peer.ip().to_string(), ips(&daemon, &client)[1]);
    assert!(web::ask(&there[1], 8080, "GET /").unwrap().contains("hello"));
    // The pod's own names are of both.
    let hosts = daemon.exec_ok(&asking, &["cat", "/etc/hosts"]);
    assert!(ips(&daemon, &client).iter().all(|ip| hosts.contains(ip.as_str())), "{hosts}");
    // A successor knows them, and gives nobody else the same.
    daemon.kill9();
    daemon.up();
    assert_eq!(ips(&daemon, &server), there);
    let third = ips(&daemon, &daemon.plain_pod("third"));
    assert!(!there.contains(&third[0]) && !there.contains(&third[1]), "{third:?}");
}

#[test]
fn a_port_of_the_node_leads_in_by_both_families_or_the_one_that_is_named() {
    let test = "a_port_of_the_node_leads_in_by_both_families_or_the_one_that_is_named";
    let daemon = Daemon::with_fixture();
    let Some(gateway) = gateway6(test, &daemon) else { return };
    let (both, four, six) = (web::free_port(), web::free_port(), web::free_port());
    let mut config = pod("web");
    config.port_mappings = vec![
        mapping(cri::Protocol::Tcp, both, ""),
        mapping(cri::Protocol::Tcp, four, &daemon.gateway()),
        mapping(cri::Protocol::Tcp, six, &gateway),
    ];
    let server = daemon.run_pod(config).unwrap();
    let http = asked("c", &["http", "8080", "from-the-pod"]);
    let serving = daemon.launch(&server, &http).unwrap();
    daemon.logged(&server, &http, "listening 8080");
    for (address, port) in [("127.0.0.1", both), (&daemon.gateway(), four), (&gateway, both), (&gateway, six)]
    {
        let answer =
            web::ask(address, port, "GET /").unwrap_or_else(|error| panic!("{address} {port}: {error}"));
        assert!(answer.contains("from-the-pod"), "{address} {port}");
    }
    for (address, port) in [(gateway.as_str(), four), (&daemon.gateway(), six)] {
        assert!(web::ask(address, port, "GET /").is_err(), "{address} {port}");
    }
    // From another pod, and back to itself.
    let peer = daemon.plain_pod("peer");
    let asking = daemon.launch(&peer, &asked("sleep", &["sleep", "inf"])).unwrap();
    for container in [&asking, &serving] {
        assert_eq!(daemon.exec_ok(container, &["get", &gateway, &both.to_string()]), "from-the-pod\n");
    }
    // What the kernel would never let through is refused by name.
    let mut loopback = pod("loopback");
    loopback.port_mappings = vec![mapping(cri::Protocol::Tcp, web::free_port(), "::1")];
    let refused = daemon.run_pod(loopback).unwrap_err();
    assert!(refused.code() == Code::Unimplemented && refused.message().contains("::1"), "{refused}");
    daemon.stop_pod(&server.id).unwrap();
    assert!(web::ask(&gateway, both, "GET /").is_err());
}

#[test]
fn a_udp_client_that_goes_on_sending_is_served_by_the_pod_that_has_the_port_now() {
    let mut daemon = Daemon::with_fixture();
    let port = UdpSocket::bind("0.0.0.0:0").unwrap().local_addr().unwrap().port();
    let echo = asked("udp", &["udp", "8080"]);
    let serve = |daemon: &Daemon, name: &str| {
        let mut config = pod(name);
        config.port_mappings = vec![mapping(cri::Protocol::Udp, port, "")];
        let made = daemon.run_pod(config).unwrap();
        daemon.launch(&made, &echo).unwrap();
        daemon.logged(&made, &echo, "listening 8080");
        made
    };
    // One socket: always the same flow to the kernel.
    let client = UdpSocket::bind("0.0.0.0:0").unwrap();
    client.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let at = SocketAddr::new(daemon.gateway().parse().unwrap(), port);
    let answered = |word: &str| {
        client.send_to(word.as_bytes(), at).ok();
        let mut answer = [0; 64];
        // A refusal that an earlier datagram met comes first.
        (0..2).any(|_| client.recv(&mut answer).is_ok_and(|length| &answer[..length] == word.as_bytes()))
    };
    // Sent before there is anybody: the kernel notes a flow that leads nowhere.
    daemon.plain_pod("carrier");
    assert!(!answered("nobody"));
    let first = serve(&daemon, "first");
    eventually("the first to answer", || answered("one").then_some(()));
    daemon.stop_pod(&first.id).unwrap();
    assert!(!answered("gone"));
    let second = serve(&daemon, "second");
    eventually("the second to answer", || answered("two").then_some(()));
    // Killed after the port was taken: the successor's bookkeeping is the same.
    daemon.kill9();
    daemon.up();
    daemon.remove_pod(&second.id).unwrap();
    serve(&daemon, "third");
    eventually("the third to answer", || answered("three").then_some(()));
}

#[test]
fn an_sctp_port_of_the_node_leads_to_the_pod_where_the_kernel_has_sctp() {
    use std::io::{Read, Write};
    let test = "an_sctp_port_of_the_node_leads_to_the_pod_where_the_kernel_has_sctp";
    let protocol = Some(net::ipproto::SCTP);
    let socket = || net::socket(net::AddressFamily::INET, net::SocketType::STREAM, protocol);
    if let Err(errno) = socket() {
        return skip(test, &format!("the kernel has no SCTP: {errno}"));
    }
    let daemon = Daemon::with_fixture();
    let mut config = pod("sctp");
    let port = web::free_port();
    config.port_mappings = vec![mapping(cri::Protocol::Sctp, port, "")];
    let made = daemon.run_pod(config).unwrap();
    let echo = asked("sctp", &["sctp", "8080"]);
    daemon.launch(&made, &echo).unwrap();
    daemon.logged(&made, &echo, "listening 8080");
    for (ip, port) in [(daemon.pod_ip(&made), 8080), (daemon.gateway(), port)] {
        let socket = socket().unwrap();
        net::connect(&socket, &SocketAddrV4::new(ip.parse().unwrap(), port)).unwrap();
        let mut stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream.write_all(b"hello").unwrap();
        let mut answer = [0; 5];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"hello", "{ip} {port}");
    }
}

#[test]
fn a_subnet_that_the_node_reaches_by_another_way_is_told_by_network_ready() {
    let first = Daemon::start();
    // The bridge of the one is a way of the node's; the other is to have the same subnet.
    let over = format!("[network.bridge]\nsubnet = {:?}\n", first.subnet());
    let second = Daemon::start_with(berth_tests::Options { over, ..Default::default() });
    let network = network_ready(&second);
    let expected = format!("by {}; set network.bridge.subnet", first.bridge());
    assert!(!network.status && network.message.contains(&expected), "{network:?}");
    let refused = second.run_pod(pod("refused")).unwrap_err();
    assert!(refused.code() == Code::Unavailable && refused.message().contains(&expected), "{refused}");
}

#[test]
fn a_network_that_could_not_be_set_up_is_tried_again_when_a_kubelet_asks() {
    let mut daemon = Daemon::with_fixture();
    daemon.stop();
    // As where the package comes after berthd, or the node is too busy at its start.
    let broken = daemon.helper_dir().join("nft");
    fs::create_dir_all(daemon.helper_dir()).unwrap();
    fs::write(&broken, "#!/bin/sh\nexit 1\n").unwrap();
    fs::set_permissions(&broken, fs::Permissions::from_mode(0o755)).unwrap();
    daemon.up();
    let told = network_ready(&daemon);
    assert!(!told.status && told.message.contains("nft"), "{told:?}");
    fs::remove_file(&broken).unwrap();
    // It makes no pod before.
    let told = network_ready(&daemon);
    assert!(told.status, "{told:?}");
    let pod = daemon.plain_pod("late");
    assert!(!daemon.pod_ip(&pod).is_empty());
}

#[test]
fn a_stop_does_not_wait_for_the_link_and_its_address_is_kept_until_it_has_gone() {
    let mut daemon = Daemon::start();
    let pod = daemon.plain_pod("held");
    let leases = daemon.root().join("network/leases");
    // Somebody holds the namespace: the link stays.
    let held = std::fs::File::open(daemon.state().join("pods").join(&pod.id).join("ns/net")).unwrap();
    let began = std::time::Instant::now();
    daemon.stop_pod(&pod.id).unwrap();
    daemon.remove_pod(&pod.id).unwrap();
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    assert!(leases.join(&pod.id).is_file());
    // The next berthd knows that, and the link's end is the lease's.
    daemon.kill9();
    assert!(leases.join(&pod.id).is_file());
    daemon.up();
    drop(held);
    eventually("the lease to go", || (!leases.join(&pod.id).exists()).then_some(()));
}

/// Sends so many bytes to an echo and reads them back; how long that took.
fn echoed(ip: &str, bytes: usize) -> Duration {
    use std::io::{Read, Write};
    let began = std::time::Instant::now();
    let mut stream = std::net::TcpStream::connect((ip, 8080)).unwrap();
    let mut sending = stream.try_clone().unwrap();
    let sender = std::thread::spawn(move || {
        sending.write_all(&vec![7; bytes]).unwrap();
        sending.shutdown(std::net::Shutdown::Write).unwrap();
    });
    let mut back = Vec::new();
    stream.read_to_end(&mut back).unwrap();
    sender.join().unwrap();
    assert_eq!(back.len(), bytes);
    began.elapsed()
}

#[test]
fn bandwidth_is_bounded_both_ways_or_refused_where_the_kernel_cannot() {
    let test = "bandwidth_is_bounded_both_ways_or_refused_where_the_kernel_cannot";
    let daemon = Daemon::with_fixture();
    // A megabyte each second.
    for direction in ["ingress", "egress"] {
        let mut config = pod(direction);
        config.annotations.insert(format!("kubernetes.io/{direction}-bandwidth"), "8M".into());
        let made = match daemon.run_pod(config) {
            Ok(made) => made,
            Err(status) => {
                assert!(status.message().contains("no queueing discipline tbf"), "{status}");
                return skip(test, "the kernel has no tbf, and says so");
            }
        };
        let echo = asked("echo", &["tcp", "8080"]);
        daemon.launch(&made, &echo).unwrap();
        daemon.logged(&made, &echo, "listening 8080");
        // What fits into the burst and the queue goes at once; the rest does not.
        let took = echoed(&daemon.pod_ip(&made), 1 << 20);
        assert!(took > Duration::from_millis(600), "{direction}: {took:?}");
    }
    let mut wrong = pod("wrong");
    wrong.annotations.insert("kubernetes.io/ingress-bandwidth".into(), "fast".into());
    let refused = daemon.run_pod(wrong).unwrap_err();
    assert!(refused.code() == Code::InvalidArgument && refused.message().contains("fast"), "{refused}");
}
