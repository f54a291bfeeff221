//! The way out of the node: what pods send beyond it comes from the node's address, as nobody there knows theirs.

use std::{
    net::TcpListener,
    process::{Child, Command, Stdio},
};

use berth_tests::{Daemon, asked, eventually, images, program, skip, web};

/// A network namespace beyond a link of the node's, with addresses of the test's own and no way to anywhere else.
struct Outside {
    name: String,
    link: String,
    /// IPv4, then IPv6.
    addresses: [String; 2],
    server: Option<Child>,
}

impl Outside {
    fn new(daemon: &Daemon) -> Self {
        let (four, six) = daemon.named_subnet(3);
        let of =
            |last: u8| [four.replace(".0/24", &format!(".{last}")), six.replace("/64", &last.to_string())];
        let (name, link) = (format!("{}-out", daemon.bridge()), format!("o{}", &daemon.bridge()[3..]));
        let outside = Self { name, link, addresses: of(2), server: None };
        let (ns, link, [host4, host6]) = (&outside.name, &outside.link, of(1));
        let [there4, there6] = &outside.addresses;
        ip(&["netns", "add", ns]);
        ip(&["link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", ns]);
        ip(&["address", "add", &format!("{host4}/24"), "dev", link]);
        ip(&["address", "add", &format!("{host6}/64"), "dev", link, "nodad"]);
        ip(&["link", "set", link, "up"]);
        ip(&["-n", ns, "address", "add", &format!("{there4}/24"), "dev", "eth0"]);
        ip(&["-n", ns, "address", "add", &format!("{there6}/64"), "dev", "eth0", "nodad"]);
        ip(&["-n", ns, "link", "set", "eth0", "up"]);
        ip(&["-n", ns, "link", "set", "lo", "up"]);
        outside
    }

    fn serve(&mut self) {
        let fixture = program("fixture");
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(fixture).args(["http", "8080", "outside"]);
        self.server = Some(command.stdout(Stdio::null()).spawn().expect("run ip"));
        for address in &self.addresses {
            eventually("the server outside", || web::ask(address, 8080, "GET /").ok());
        }
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        if let Some(mut server) = self.server.take() {
            // It may have ended by itself, which the test has told then.
            server.kill().ok();
            server.wait().ok();
        }
        for words in [&["netns", "delete", &self.name][..], &["link", "delete", &self.link]] {
            // The link goes with the namespace, sooner or later.
            Command::new("ip").args(words).stderr(Stdio::null()).status().ok();
        }
    }
}

fn ip(words: &[&str]) {
    let output = Command::new("ip").args(words).output().expect("run ip");
    assert!(output.status.success(), "ip {words:?}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn what_leaves_the_node_comes_from_its_address_by_both_families() {
    let test = "what_leaves_the_node_comes_from_its_address_by_both_families";
    let daemon = Daemon::with_fixture();
    if TcpListener::bind(("::1", 0)).is_err() {
        return skip(test, "the node has no IPv6");
    }
    let (four, six) = daemon.named_subnet(0);
    daemon.berth_ok(&["network", "create", "--subnet", &four, "--subnet", &six, "blue"]);
    daemon.berth_ok(&["run", "-d", "--name", "person", "--network", "blue", images::FIXTURE, "sleep", "inf"]);
    let pod = daemon.plain_pod("pod");
    let asking = daemon.launch(&pod, &asked("sleep", &["sleep", "inf"])).unwrap();
    let mut outside = Outside::new(&daemon);
    outside.serve();
    // No way back to a pod's own address: an answer that comes was sent to the node's.
    for address in [daemon.gateway(), daemon.gateway6()] {
        let words = ["-n", &outside.name, "route", "get", &address];
        assert!(!Command::new("ip").args(words).output().unwrap().status.success(), "{address}");
    }
    for address in &outside.addresses {
        assert_eq!(daemon.exec_ok(&asking, &["get", address, "8080"]), "outside\n");
        assert_eq!(daemon.berth_ok(&["exec", "person", "get", address, "8080"]), "outside");
    }
}
