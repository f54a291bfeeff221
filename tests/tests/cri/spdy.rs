//! Exec, attach and port-forward over SPDY, as kubelets and crictl speak it by default, and SPDY in WebSocket's tunnel, as
//! kubectl's port-forward comes.

use std::fs::File;

use berth_cri::v1 as cri;
use berth_tests::{
    Daemon, Pod, asked, eventually, exec_of, pod, processes_naming,
    sockets::{Socket, Wire},
    spdy::Spdy,
};

const V4: &str = "v4.channel.k8s.io";
const FORWARD: &str = "portforward.k8s.io";
const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";

fn exec(daemon: &Daemon, id: &str, words: &[&str]) -> Spdy {
    Spdy::open(&daemon.exec_url(exec_of(id, words)).unwrap(), V4).unwrap()
}

/// The streams in the order that clients open them: error, stdin, stdout, stderr.
fn streams(session: &mut Spdy) -> [u32; 4] {
    ["error", "stdin", "stdout", "stderr"].map(|kind| session.of_type(kind))
}

#[test]
fn an_exec_has_its_streams_its_half_close_and_its_exit_code() {
    let daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("exec");
    let id = daemon.launch(&pod, &asked("c", &["sleep", "inf"])).unwrap();
    let mut session = exec(&daemon, &id, &["cat"]);
    let [error, stdin, stdout, stderr] = streams(&mut session);
    session.send(stdin, b"hello", false);
    assert_eq!(session.take(stdout, 5), b"hello");
    // More than any buffer on the way holds: it is taken while it comes back.
    let much = vec![b'x'; 40_000];
    for _ in 0..25 {
        session.send(stdin, &much, false);
        assert_eq!(session.take(stdout, much.len()), much);
    }
    session.send(stdin, b"", true);
    assert_eq!((session.text(stdout), session.text(stderr)), (String::new(), String::new()));
    assert_eq!(session.status(error)["status"], "Success");

    let mut session = exec(&daemon, &id, &["stderr", "oh"]);
    let [error, _, stdout, stderr] = streams(&mut session);
    assert_eq!((session.text(stdout), session.text(stderr)), (String::new(), "oh\n".into()));
    assert_eq!(session.status(error)["status"], "Success");

    let mut session = exec(&daemon, &id, &["exit", "3"]);
    let [error, ..] = streams(&mut session);
    let status = session.status(error);
    assert_eq!(status["reason"], "NonZeroExitCode");
    assert_eq!(status["details"]["causes"][0]["message"], "3");
}

#[test]
fn a_client_that_goes_takes_its_exec_with_it() {
    let daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("gone");
    let id = daemon.launch(&pod, &asked("c", &["sleep", "inf"])).unwrap();
    let mark = format!("87{:06}", std::process::id());
    let mut session = exec(&daemon, &id, &["sleep", &mark]);
    streams(&mut session);
    eventually("the exec to run", || (!processes_naming(&mark).is_empty()).then_some(()));
    drop(session);
    eventually("the exec to end", || processes_naming(&mark).is_empty().then_some(()));
}

#[test]
fn an_attached_terminal_is_heard_and_has_the_clients_size() {
    let daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("attach");
    let asked = asked("c", &["cat"]).with(|config| {
        config.stdin = true;
        config.tty = true;
    });
    let id = daemon.launch(&pod, &asked).unwrap();
    let url = daemon.attach_url(&id, true).unwrap();
    let mut session = Spdy::open(&url, V4).unwrap();
    let [error, stdin, stdout, resize] =
        ["error", "stdin", "stdout", "resize"].map(|kind| session.of_type(kind));
    session.send(stdin, b"hi\n", false);
    // The terminal echoes, cat repeats.
    assert_eq!(String::from_utf8(session.take(stdout, 8)).unwrap(), "hi\r\nhi\r\n");
    session.send(resize, br#"{"Width":101,"Height":41}"#, false);
    let terminal = format!("/proc/{}/fd/0", daemon.details(&id)["pid"]);
    eventually("the terminal to have the client's size", || {
        let size = rustix::termios::tcgetwinsize(File::open(&terminal).unwrap()).unwrap();
        ((size.ws_col, size.ws_row) == (101, 41)).then_some(())
    });
    // The end of its input by the terminal's own sign.
    session.send(stdin, b"\x04", false);
    assert_eq!(session.status(error)["status"], "Success");
    assert_eq!(daemon.exited(&id).exit_code, 0);
}

fn forwarded(daemon: &Daemon, pod: &Pod) -> String {
    let request = cri::PortForwardRequest { pod_sandbox_id: pod.id.clone(), port: Vec::new() };
    daemon.call(daemon.runtime().port_forward(request)).unwrap().url
}

/// Connections that speak in turns, one that ends first, one that nobody answers: none disturbs another.
fn talk(mut session: Spdy) {
    let (first_error, first) = session.forward(8080, "1");
    let (_, second) = session.forward(8080, "2");
    for (stream, word) in [(first, "one"), (second, "two"), (first, "three")] {
        session.send(stream, word.as_bytes(), false);
        assert_eq!(session.take(stream, word.len()), word.as_bytes());
    }
    let much: Vec<u8> = (0..30_000u32).flat_map(u32::to_be_bytes).collect();
    for piece in much.chunks(20_000) {
        session.send(second, piece, false);
    }
    assert!(session.take(second, much.len()) == much, "it came back otherwise");
    // The server closes once its client has: half a close is one.
    session.send(first, b"last", true);
    assert_eq!(session.text(first), "last");
    assert_eq!(session.text(first_error), "");
    let (error, data) = session.forward(9, "3");
    let told = session.text(error);
    assert!(told.contains('9') && told.to_lowercase().contains("refused"), "{told}");
    assert_eq!(session.text(data), "");
    session.send(second, b"still", true);
    assert_eq!(session.text(second), "still");
}

#[test]
fn a_pods_port_is_forwarded_over_spdy_and_over_its_tunnel_in_websocket() {
    let daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("ports");
    let server = asked("c", &["tcp", "8080"]);
    daemon.launch(&pod, &server).unwrap();
    eventually("the server to listen", || {
        daemon.log_of(&pod, &server).iter().any(|line| line.content.starts_with("listening")).then_some(())
    });
    talk(Spdy::open(&forwarded(&daemon, &pod), FORWARD).unwrap());
    let tunnel = Socket::open(&forwarded(&daemon, &pod), TUNNEL).unwrap().tunnel();
    let tunnel: Box<dyn Wire> = Box::new(tunnel);
    talk(Spdy::over(tunnel));
    // A URL is good once.
    let url = forwarded(&daemon, &pod);
    drop(Spdy::open(&url, FORWARD).unwrap());
    assert_eq!(Spdy::open(&url, FORWARD).err(), Some(404));
}

/// A pod on the node's network has the node's ports.
#[test]
fn a_port_of_a_pod_on_the_hosts_network_is_the_hosts() {
    let daemon = Daemon::with_fixture();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let pod = daemon.run_pod(berth_tests::host_network("host")).unwrap();
    let mut session = Spdy::open(&forwarded(&daemon, &pod), FORWARD).unwrap();
    let (_, data) = session.forward(port, "1");
    let (mut peer, _) = listener.accept().unwrap();
    session.send(data, b"ask", true);
    assert_eq!(std::io::read_to_string(&peer).unwrap(), "ask");
    std::io::Write::write_all(&mut peer, b"answer").unwrap();
    drop(peer);
    assert_eq!(session.text(data), "answer");
}

/// Nobody can reach into a pod that has stopped.
#[test]
fn a_stopped_pods_ports_are_told_to_be_gone() {
    let daemon = Daemon::with_fixture();
    let stopped = daemon.run_pod(pod("stopped")).unwrap();
    let url = forwarded(&daemon, &stopped);
    daemon.stop_pod(&stopped.id).unwrap();
    let mut session = Spdy::open(&url, FORWARD).unwrap();
    let (error, data) = session.forward(8080, "1");
    let told = session.text(error);
    assert!(told.contains("8080"), "{told}");
    assert_eq!(session.text(data), "");
}
