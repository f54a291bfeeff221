//! Exec and attach: the URLs that CRI gives, and WebSocket at them by a client of a few lines. SPDY and port-forward: spdy.rs.

use std::{
    fs,
    io::{Read, Write},
    path::Path,
    sync::Arc,
};

use berth_cri::v1 as cri;
use berth_tests::{
    Daemon, Options, asked, eventually, exec_of, processes_naming,
    sockets::{CLOSE, STDIN, STDOUT, Socket, Wire, connect},
};
use rustls::pki_types::CertificateDer;
use tonic::Code;

/// TLS with a server that has to show one of these certificates for `localhost`.
fn secured(url: &str, trusted: &[CertificateDer<'static>]) -> Result<Box<dyn Wire>, rustls::Error> {
    let (host, _) = url.strip_prefix("https://").unwrap().split_once('/').unwrap();
    let mut roots = rustls::RootCertStore::empty();
    trusted.iter().for_each(|certificate| roots.add(certificate.clone()).unwrap());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = "localhost".try_into().unwrap();
    let mut client = rustls::ClientConnection::new(Arc::new(config), name)?;
    let mut socket = connect(host);
    while client.is_handshaking() {
        client.complete_io(&mut socket).map_err(|error| match error.downcast::<rustls::Error>() {
            Ok(refused) => refused,
            Err(error) => rustls::Error::General(error.to_string()),
        })?;
    }
    Ok(Box::new(rustls::StreamOwned::new(client, socket)))
}

/// A certificate for `localhost`, written where the daemon reads it.
fn certify(dir: &Path) -> CertificateDer<'static> {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
    fs::write(dir.join("key.pem"), made.signing_key.serialize_pem()).unwrap();
    fs::write(dir.join("cert.pem"), made.cert.pem()).unwrap();
    made.cert.der().clone()
}

#[test]
fn streams_are_in_tls_where_that_is_asked_and_a_new_certificate_needs_no_restart() {
    let certificates = tempfile::tempdir().unwrap();
    let first = certify(certificates.path());
    let file = |name: &str| certificates.path().join(name);
    let over = format!(
        "[streaming]\ntls = \"files\"\ncertificate = {:?}\nkey = {:?}\n",
        file("cert.pem"),
        file("key.pem")
    );
    let daemon = Daemon::with_fixture_and(Options { over, ..Options::default() });
    let pod = daemon.plain_pod("tls");
    let id = daemon.launch(&pod, &asked("c", &["sleep", "inf"])).unwrap();
    let run = |trusted: &[CertificateDer<'static>]| {
        let url = daemon.exec_url(exec_of(&id, &["echo", "hello"])).unwrap();
        let socket = secured(&url, trusted)?;
        let (output, _, status) = Socket::over(socket, &url, "v5.channel.k8s.io").unwrap().rest();
        assert_eq!(status["status"], "Success");
        Ok::<_, rustls::Error>(output)
    };
    assert_eq!(run(std::slice::from_ref(&first)).unwrap(), "hello\n");
    let second = certify(certificates.path());
    assert!(matches!(run(&[first]), Err(rustls::Error::InvalidCertificate(_))));
    assert_eq!(run(std::slice::from_ref(&second)).unwrap(), "hello\n");
    // What is no certificate leaves the old one in force.
    fs::write(file("cert.pem"), "nothing\n").unwrap();
    assert_eq!(run(&[second]).unwrap(), "hello\n");
    // Plain HTTP finds nobody there.
    let url = daemon.exec_url(exec_of(&id, &["true"])).unwrap().replace("https://", "http://");
    let (host, _) = url.strip_prefix("http://").unwrap().split_once('/').unwrap();
    let mut plain = connect(host);
    plain.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    // The connection ends, with an alert or a reset.
    plain.read_to_end(&mut answer).ok();
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
}

#[test]
fn a_certificate_of_the_daemons_own_is_made_where_that_is_asked() {
    let over = "[streaming]\ntls = \"made\"\n".to_owned();
    let daemon = Daemon::with_fixture_and(Options { over, ..Options::default() });
    let pod = daemon.plain_pod("tls");
    let id = daemon.launch(&pod, &asked("c", &["sleep", "inf"])).unwrap();
    let url = daemon.exec_url(exec_of(&id, &["true"])).unwrap();
    assert!(url.starts_with("https://127.0.0.1:"), "{url}");
    // Nobody vouches for it: a client that asks is told so, and it got as far as a certificate.
    match secured(&url, &[]).err() {
        Some(rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer)) => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_exec_has_its_streams_and_its_exit_code() {
    let daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("exec");
    let id = daemon.launch(&pod, &asked("c", &["sleep", "inf"])).unwrap();
    let mut socket =
        Socket::open(&daemon.exec_url(exec_of(&id, &["cat"])).unwrap(), "v5.channel.k8s.io").unwrap();
    assert_eq!(socket.see(), Some((STDOUT, Vec::new())));
    socket.send(STDIN, b"hello");
    assert_eq!(socket.see(), Some((STDOUT, b"hello".to_vec())));
    socket.send(CLOSE, &[STDIN]);
    let (_, errors, status) = socket.rest();
    assert_eq!((errors.as_str(), status["status"].as_str()), ("", Some("Success")));

    let socket =
        Socket::open(&daemon.exec_url(exec_of(&id, &["exit", "3"])).unwrap(), "v4.channel.k8s.io").unwrap();
    let (_, _, status) = socket.rest();
    assert_eq!(status["reason"], "NonZeroExitCode");
    assert_eq!(status["details"]["causes"][0]["message"], "3");

    let socket =
        Socket::open(&daemon.exec_url(exec_of(&id, &["nosuch"])).unwrap(), "v5.channel.k8s.io").unwrap();
    let (_, _, status) = socket.rest();
    assert_eq!(status["reason"], "InternalError");
    assert!(status["message"].as_str().unwrap().contains("nosuch"), "{status}");
}

#[test]
fn a_url_is_good_once_and_only_for_what_it_is() {
    let daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("url");
    let id = daemon.launch(&pod, &asked("c", &["sleep", "inf"])).unwrap();
    let url = daemon.exec_url(exec_of(&id, &["true"])).unwrap();
    let protocol = "v5.channel.k8s.io";
    assert_eq!(Socket::open(&url.replace("/exec/", "/attach/"), protocol).err(), Some(404));
    // What can't be agreed on leaves it good.
    assert_eq!(Socket::open(&url, "v9.channel.k8s.io").err(), Some(400));
    Socket::open(&url, protocol).unwrap().rest();
    assert_eq!(Socket::open(&url, protocol).err(), Some(404));
}

#[test]
fn a_client_that_goes_takes_its_exec_with_it() {
    let daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("gone");
    let id = daemon.launch(&pod, &asked("c", &["sleep", "inf"])).unwrap();
    let mark = format!("86{:06}", std::process::id());
    let url = daemon.exec_url(exec_of(&id, &["sleep", &mark])).unwrap();
    let mut socket = Socket::open(&url, "v5.channel.k8s.io").unwrap();
    socket.see().unwrap();
    eventually("the exec to run", || (!processes_naming(&mark).is_empty()).then_some(()));
    drop(socket);
    eventually("the exec to end", || processes_naming(&mark).is_empty().then_some(()));
    assert_eq!(daemon.status(&id).unwrap().state(), cri::ContainerState::ContainerRunning);
}

#[test]
fn an_attached_client_hears_and_is_heard_until_the_containers_end() {
    let daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("attach");
    let asked = asked("c", &["cat"]).with(|config| {
        config.stdin = true;
        config.stdin_once = true;
    });
    let id = daemon.launch(&pod, &asked).unwrap();
    let url = daemon.attach_url(&id, false).unwrap();
    let mut socket = Socket::open(&url, "v5.channel.k8s.io").unwrap();
    assert_eq!(socket.see(), Some((STDOUT, Vec::new())));
    socket.send(STDIN, b"hello\n");
    assert_eq!(socket.see(), Some((STDOUT, b"hello\n".to_vec())));
    socket.send(CLOSE, &[STDIN]);
    let (_, _, status) = socket.rest();
    assert_eq!(status["status"], "Success");
    assert_eq!(daemon.exited(&id).exit_code, 0);
}

/// Its end of the pipe would be told as broken at each look: the shim looked without a pause until the container spoke.
#[test]
fn a_client_that_leaves_is_let_go_though_the_container_says_nothing() {
    let daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("attach");
    let asked = asked("c", &["cat"]).with(|config| config.stdin = true);
    let id = daemon.launch(&pod, &asked).unwrap();
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.details(&id)["pid"])).unwrap();
    let shim = status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap().trim().to_owned();
    let pipes = || {
        let fds = fs::read_dir(format!("/proc/{shim}/fd")).unwrap().flatten();
        fds.filter(|fd| fs::read_link(fd.path()).is_ok_and(|to| to.to_string_lossy().starts_with("pipe:")))
            .count()
    };
    let before = pipes();
    let url = daemon.attach_url(&id, false).unwrap();
    let mut socket = Socket::open(&url, "v5.channel.k8s.io").unwrap();
    assert_eq!(socket.see(), Some((STDOUT, Vec::new())));
    socket.send(STDIN, b"hello\n");
    assert_eq!(socket.see(), Some((STDOUT, b"hello\n".to_vec())));
    assert!(pipes() > before);
    drop(socket);
    eventually("the shim to let go of the client", || (pipes() == before).then_some(()));
}

/// The daemon is on the way of an attached client's bytes, and on no other: the container goes on, what it says meanwhile is
/// in its log, and a client that comes back hears and is heard.
#[test]
fn attach_goes_on_with_the_next_daemon_and_the_container_never_notices() {
    let mut daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("attach");
    let asked = asked("c", &["cat"]).with(|config| config.stdin = true);
    let id = daemon.launch(&pod, &asked).unwrap();
    let attach = |daemon: &Daemon| {
        let url = daemon.attach_url(&id, false).unwrap();
        let mut socket = Socket::open(&url, "v5.channel.k8s.io").unwrap();
        assert_eq!(socket.see(), Some((STDOUT, Vec::new())));
        socket
    };
    let pid = daemon.details(&id)["pid"].clone();
    for how in ["stopped", "killed"] {
        let mut socket = attach(&daemon);
        socket.send(STDIN, format!("{how} once\n").as_bytes());
        assert_eq!(socket.see(), Some((STDOUT, format!("{how} once\n").into_bytes())));
        match how {
            "killed" => daemon.kill9(),
            _ => assert!(daemon.stop().success()),
        }
        drop(socket);
        daemon.up();
    }
    let mut socket = attach(&daemon);
    socket.send(STDIN, b"and again\n");
    assert_eq!(socket.see(), Some((STDOUT, b"and again\n".to_vec())));
    let status = daemon.status(&id).unwrap();
    assert_eq!((status.state(), &daemon.details(&id)["pid"]), (cri::ContainerState::ContainerRunning, &pid));
    let log: Vec<_> = daemon.log_of(&pod, &asked).into_iter().map(|line| line.content).collect();
    assert_eq!(log, ["stopped once", "killed once", "and again"]);
}

#[test]
fn what_can_not_be_streamed_is_refused_before_there_is_a_url() {
    let daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("refused");
    let id = daemon.launch(&pod, &asked("c", &["sleep", "inf"])).unwrap();
    let code = |request| daemon.exec_url(request).unwrap_err().code();
    assert_eq!(code(cri::ExecRequest { tty: true, ..exec_of(&id, &["true"]) }), Code::InvalidArgument);
    assert_eq!(code(exec_of(&id, &[])), Code::InvalidArgument);
    let none = cri::ExecRequest { stdin: false, stdout: false, stderr: false, ..exec_of(&id, &["true"]) };
    assert_eq!(code(none), Code::InvalidArgument);
    assert_eq!(code(exec_of("00ff", &["true"])), Code::NotFound);
    daemon.stop_container(&id, 0).unwrap();
    assert_eq!(code(exec_of(&id, &["true"])), Code::FailedPrecondition);
    let forward = |id: &str| {
        let request = cri::PortForwardRequest { pod_sandbox_id: id.into(), port: vec![80] };
        daemon.call(daemon.runtime().port_forward(request))
    };
    assert!(forward(&pod.id).unwrap().url.contains("/portforward/"));
    daemon.stop_pod(&pod.id).unwrap();
    assert_eq!(forward(&pod.id).unwrap_err().code(), Code::FailedPrecondition);
    assert_eq!(forward("00ff").unwrap_err().code(), Code::NotFound);
}
