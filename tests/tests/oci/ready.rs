//! `NOTIFY_SOCKET`: what a container says to the systemd that its caller is under, sd_notify(3).

use std::{
    io,
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixDatagram},
    },
    process::{Command, Stdio},
    time::Duration,
};

use berth_tests::{
    eventually,
    oci::{Oci, text},
};
use serde_json::{Value, json};

/// Longer than anything here takes on a machine with much else to do.
const PATIENCE: Duration = Duration::from_secs(60);

fn heard(socket: &UnixDatagram) -> String {
    let mut bytes = [0u8; 4096];
    let length = socket.recv(&mut bytes).expect("something is said");
    String::from_utf8(bytes[..length].to_vec()).expect("words are UTF-8")
}

/// A socket as systemd's, and what names it.
fn socket(oci: &Oci, address: &str) -> UnixDatagram {
    let address = match address.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(oci.dir().join(address)),
    };
    let socket = UnixDatagram::bind_addr(&address.unwrap()).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

fn to(mut command: Command, address: &str) -> Command {
    command.env("NOTIFY_SOCKET", address);
    command
}

#[test]
fn a_container_in_the_foreground_says_all_that_is_true_outside_too() {
    let oci = Oci::new();
    let words = ["STATUS=half way", "MAINPID=1\nREADY=1", "FDSTORE=1", "STOPPING=1"];
    let abstractly = format!("@{}/ready", oci.cgroup("").trim_matches('/'));
    let path = oci.dir().join("systemd");
    for (place, address) in [("systemd", text(&path)), (&abstractly, &abstractly)] {
        let systemd = socket(&oci, place);
        oci.write(&oci.config("c1", &[&["notify"], &words[..]].concat()));
        let ran = oci.finish(to(oci.command(&["run", "c1"]), address));
        assert_eq!(ran.code, 0, "{}", ran.stderr());
        assert_eq!(
            [heard(&systemd), heard(&systemd), heard(&systemd)],
            ["STATUS=half way", "READY=1", "STOPPING=1"]
        );
        systemd.set_nonblocking(true).unwrap();
        assert_eq!(systemd.recv(&mut [0; 9]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }
    // A socket of nobody's fails the start, and not in silence.
    oci.write(&oci.config("c1", &["true"]));
    let ran = oci.finish(to(oci.command(&["run", "c1"]), text(&oci.dir().join("nobody"))));
    assert!(ran.code != 0 && ran.stderr().contains("nobody"), "{}", ran.stderr());
}

#[test]
fn start_returns_once_the_program_is_ready_and_names_it() {
    let oci = Oci::new();
    let systemd = socket(&oci, "systemd");
    let address = oci.dir().join("systemd");
    let pid_file = oci.dir().join("pid");
    oci.write(&oci.config("c1", &["sleep", "1000"]));
    let create = oci.command(&["create", "--pid-file", text(&pid_file), "c1"]);
    let created = oci.finish(to(create, text(&address)));
    assert_eq!(created.code, 0, "{}", created.stderr());
    oci.adopt("c1", &pid_file);
    let mut start = to(oci.command(&["start", "c1"]), text(&address));
    let mut starting = start.stdout(Stdio::null()).spawn().unwrap();
    eventually("the program to run", || (oci.status("c1") == "running").then_some(()));
    let env = "NOTIFY_SOCKET=/run/notify/notify.sock";
    let say = |word: &str| oci.ok(&["exec", "--user", "5:5", "--env", env, "c1", "notify", word]);
    say("STATUS=nearly");
    assert_eq!(heard(&systemd), "STATUS=nearly");
    assert!(starting.try_wait().unwrap().is_none(), "it has not said that it is ready");
    // Who is kept waiting keeps nobody out.
    assert_eq!(oci.run(&["start", "c1"]).code, 1);
    say("READY=1");
    assert_eq!(heard(&systemd), format!("MAINPID={}\nREADY=1", oci.pid("c1")));
    assert_eq!(heard(&systemd), "BARRIER=1");
    assert!(starting.wait().unwrap().success());
    // Nobody listens any more, and nothing else can be left there.
    let gone = oci.run(&["exec", "--env", env, "c1", "notify", "STATUS=late"]);
    assert_ne!(gone.code, 0);
    assert_ne!(oci.run(&["exec", "c1", "write", "/run/notify/x", "y"]).code, 0);
}

#[test]
fn a_program_that_ends_before_it_is_ready_keeps_nobody_waiting() {
    let oci = Oci::new();
    let systemd = socket(&oci, "systemd");
    let address = oci.dir().join("systemd");
    let pid_file = oci.dir().join("pid");
    oci.write(&oci.config("c1", &["exit", "3"]));
    let run = oci.command(&["run", "--detach", "--pid-file", text(&pid_file), "c1"]);
    let ran = oci.finish(to(run, text(&address)));
    assert_eq!(ran.code, 0, "{}", ran.stderr());
    oci.adopt("c1", &pid_file);
    assert_eq!(oci.reap("c1"), 3);
    systemd.set_nonblocking(true).unwrap();
    assert_eq!(systemd.recv(&mut [0; 9]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
}

#[test]
fn without_such_a_socket_there_is_none() {
    let oci = Oci::new();
    oci.write(&oci.config("c1", &["info"]));
    for address in ["", "vsock:2:1", "relative"] {
        let ran = oci.finish(to(oci.command(&["run", "c1"]), address));
        let info: Value = serde_json::from_str(&ran.stdout()).unwrap();
        assert_eq!(info["env"]["NOTIFY_SOCKET"], json!(null), "{address}");
    }
}
