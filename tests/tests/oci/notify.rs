//! Filters that ask somebody: `SCMP_ACT_NOTIFY` with a `listenerPath`.

use std::{
    fs,
    io::{IoSliceMut, Read},
    mem::MaybeUninit,
    os::{fd::OwnedFd, unix::net::UnixListener},
};

use berth_tests::oci::{Oci, read, reap, text};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde_json::{Value, json};

/// The state that comes to a listener's socket, and the descriptor beside it.
fn notified(socket: &UnixListener) -> (Value, OwnedFd) {
    let (mut connection, _) = socket.accept().expect("accept at the listener's socket");
    let mut bytes = vec![0u8; 1 << 16];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC;
    let got = recvmsg(&connection, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, flags)
        .expect("take what is sent");
    let fd = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    let mut rest = bytes[..got.bytes].to_vec();
    connection.read_to_end(&mut rest).expect("read to the end");
    (serde_json::from_slice(&rest).expect("a state is JSON"), fd.expect("a descriptor comes with it"))
}

#[test]
fn a_listener_gets_its_descriptor_with_the_state_of_the_process() {
    let oci = Oci::new();
    let path = oci.dir().join("agent");
    let socket = UnixListener::bind(&path).unwrap();
    let mut config = oci.config("c1", &["sleep", "1000"]);
    config["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": path,
        "listenerMetadata": "who asks", "flags": ["SECCOMP_FILTER_FLAG_LOG"],
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_NOTIFY"}]});
    oci.create("c1", &config);
    oci.ok(&["start", "c1"]);
    let (state, fd) = notified(&socket);
    assert_eq!((&state["fds"], &state["metadata"]), (&json!(["seccompFd"]), &json!("who asks")));
    assert_eq!((&state["pid"], &state["state"]["pid"]), (&json!(oci.pid("c1")), &json!(oci.pid("c1"))));
    assert_eq!((&state["state"]["id"], &state["state"]["bundle"]), (&json!("c1"), &json!(oci.bundle())));
    let name = fs::read_link(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&fd))).unwrap();
    assert!(text(&name).contains("seccomp notify"), "{name:?}");

    let pid_file = oci.dir().join("exec.pid");
    oci.ok(&["exec", "--detach", "--pid-file", text(&pid_file), "c1", "wait-file", "/tmp/go"]);
    let (state, _fd) = notified(&socket);
    let pid: i32 = read(&pid_file).parse().unwrap();
    assert_eq!((&state["pid"], &state["state"]["pid"]), (&json!(pid), &json!(oci.pid("c1"))));
    assert_eq!(state["state"]["status"], "running");
    fs::write(oci.bundle().join("rootfs/tmp/go"), "").unwrap();
    assert_eq!(reap(pid), 0);
}

#[test]
fn a_listener_where_nobody_is_fails_the_create() {
    let oci = Oci::new();
    let mut config = oci.config("c1", &["true"]);
    config["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": oci.dir().join("agent"),
        "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}]});
    oci.write(&config);
    let why = oci.refused(&["create", "c1"]);
    assert!(why.contains("agent"), "{why}");
    assert_eq!(oci.zombies(), Vec::<i32>::new());
}
