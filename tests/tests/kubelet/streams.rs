//! kubectl's streams: run, logs, exec, attach, cp, port-forward; they go from the apiserver to the kubelet to Berth.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Read, Write},
    os::fd::OwnedFd,
    process::Stdio,
};

use berth_tests::{images, web};
use rustix::{
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{Winsize, tcsetwinsize},
};
use serde_json::json;

use crate::{
    cluster::{Cluster, Test, busybox},
    node::{fixture, with},
};

pub const TRIALS: &[(&str, Test)] = &[
    ("run_and_logs_follow_to_the_end", run_and_logs),
    ("exec_gives_output_input_and_exit_codes", exec),
    ("exec_has_a_terminal_of_the_right_size", exec_tty),
    ("attach_talks_with_the_main_process", attach),
    ("cp_carries_files_both_ways", copy),
    ("port_forward_reaches_the_pod", port_forward),
];

fn run_and_logs(cluster: &Cluster) {
    let run = ["run", "greeter", "--image", images::FIXTURE, "--restart=Never", "--command", "--"];
    cluster.ok(&[run.as_slice(), &["/bin/fixture", "spam", "60", "20"]].concat());
    cluster
        .wait_for("pods", "greeter", "its start", |pod| (pod["status"]["phase"] != "Pending").then_some(()));
    // It goes on for three seconds, and the log ends with it.
    let followed = cluster.ok(&["logs", "-f", "greeter"]);
    assert_eq!(followed.lines().count(), 60, "{followed}");
    assert_eq!(cluster.ended("greeter", "greeter")["exitCode"], 0);
    let tail = cluster.ok(&["logs", "greeter", "--tail=2", "--timestamps"]);
    assert_eq!(tail.lines().count(), 2, "{tail}");
    assert!(tail.lines().all(|line| line.starts_with("20") && line.contains("T")), "{tail}");
    cluster.ok(&["delete", "pod", "greeter", "--timeout=120s"]);
}

fn exec(cluster: &Cluster) {
    let _pod = cluster.pod(
        "exec",
        &json!({"containers": [busybox("c", "sleep 1000000")], "terminationGracePeriodSeconds": 1}),
    );
    cluster.wait_ready("exec");
    assert_eq!(cluster.exec("exec", &["echo", "hello"]), "hello\n");
    let both = cluster.run(&["exec", "exec", "--", "sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!(both.status.code(), Some(7));
    assert_eq!(both.stdout, b"out\n");
    assert!(String::from_utf8_lossy(&both.stderr).starts_with("err\n"), "{both:?}");
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|number| (number % 251) as u8).collect();
    let back = cluster.with_input(&["exec", "-i", "exec", "--", "cat"], &bytes);
    assert!(back.status.success() && back.stdout == bytes, "{} bytes came back", back.stdout.len());
    let missing = cluster.run(&["exec", "exec", "--", "/no/such/program"]);
    let said = String::from_utf8_lossy(&missing.stderr).into_owned();
    assert!(!missing.status.success() && said.contains("/no/such/program"), "{said}");
}

/// A terminal: its end for the program, and ours.
fn terminal() -> (File, OwnedFd) {
    let ours =
        openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).expect("make a terminal");
    grantpt(&ours).and_then(|()| unlockpt(&ours)).expect("open a terminal");
    tcsetwinsize(&ours, Winsize { ws_row: 33, ws_col: 101, ws_xpixel: 0, ws_ypixel: 0 }).expect("size it");
    let name = ptsname(&ours, Vec::new()).expect("name it").into_string().expect("a name of letters");
    let theirs = File::options().read(true).write(true).open(name).expect("open its other end");
    (theirs, ours)
}

/// All that is written to a terminal until its last other end is closed, after some words typed in.
fn read_all(terminal: OwnedFd, typed: &str) -> String {
    let mut terminal = File::from(terminal);
    terminal.write_all(typed.as_bytes()).expect("type");
    let (mut all, mut piece) = (Vec::new(), [0; 4096]);
    // EIO when nobody has the other end any more.
    while let Ok(count @ 1..) = terminal.read(&mut piece) {
        all.extend_from_slice(&piece[..count]);
    }
    String::from_utf8_lossy(&all).into_owned()
}

fn exec_tty(cluster: &Cluster) {
    let _pod = cluster.pod(
        "tty",
        &json!({"containers": [busybox("c", "sleep 1000000")], "terminationGracePeriodSeconds": 1}),
    );
    cluster.wait_ready("tty");
    let run = |command: &[&str], typed: &str| {
        let (theirs, ours) = terminal();
        let words = [&["exec", "-it", "tty", "--"], command].concat();
        let mut kubectl = cluster.kubectl(&words);
        let copy = || theirs.try_clone().expect("share a terminal");
        let mut child = kubectl.stdin(copy()).stdout(copy()).stderr(copy()).spawn().expect("run kubectl");
        // Only what kubectl has keeps the terminal open.
        drop((kubectl, theirs));
        let said = read_all(ours, typed);
        (child.wait().expect("wait for kubectl").code(), said)
    };
    let (code, said) = run(&["sh", "-c", "tty && exit 9"], "");
    assert!(code == Some(9) && said.contains("/dev/pts/"), "{code:?}: {said}");
    // Its size comes behind the command's start.
    let sized = r#"until [ "$(stty size)" = "33 101" ]; do usleep 50000; done; echo is sized"#;
    let (code, said) = run(&["sh", "-c", sized], "");
    assert!(code == Some(0) && said.contains("is sized"), "{code:?}: {said}");
    let (code, said) = run(&["sh", "-c", "read word; echo got $word"], "typed\n");
    assert!(code == Some(0) && said.contains("got typed"), "{code:?}: {said}");
}

fn attach(cluster: &Cluster) {
    let _pod = cluster.pod(
        "attach",
        &json!({
            "restartPolicy": "Never",
            "containers": [with(fixture("c", &["lines"]), json!({"stdin": true, "stdinOnce": true}))],
        }),
    );
    cluster.wait_ready("attach");
    let back = cluster.with_input(&["attach", "-i", "attach"], b"one\ntwo\n");
    let said = String::from_utf8_lossy(&back.stdout).into_owned();
    assert!(back.status.success(), "{back:?}");
    // What is said before the stream is there is in the log only.
    assert_eq!(cluster.told("attach", "c"), "got: one\ngot: two\n", "attach said {said:?}");
}

fn copy(cluster: &Cluster) {
    let spec = json!({"containers": [busybox("c", "sleep 1000000")], "terminationGracePeriodSeconds": 1});
    let _pod = cluster.pod("copy", &spec);
    cluster.wait_ready("copy");
    let here = cluster.node().volume("copy");
    let tree = here.join("tree/below");
    fs::create_dir_all(&tree).expect("make a directory");
    let bytes: Vec<u8> = (0..2_000_000_u32).map(|number| (number % 253) as u8).collect();
    fs::write(tree.join("big"), &bytes)
        .and_then(|()| fs::write(here.join("tree/small"), "x\n"))
        .expect("write");
    cluster.ok(&["cp", &here.join("tree").display().to_string(), "copy:/tmp/there"]);
    assert_eq!(cluster.exec("copy", &["cat", "/tmp/there/small"]), "x\n");
    let back = here.join("back");
    cluster.ok(&["cp", "copy:/tmp/there", &back.display().to_string()]);
    assert!(fs::read(back.join("below/big")).expect("read what came back") == bytes);
}

fn port_forward(cluster: &Cluster) {
    // Before it listens a connection is refused, and kubectl gives up.
    let server = with(
        fixture("c", &["http", "8080", "forwarded"]),
        json!({"readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1}}),
    );
    let _pod = cluster.pod("forward", &json!({"containers": [server]}));
    cluster.wait_ready("forward");
    let mut kubectl = cluster.kubectl(&["port-forward", "--address=127.0.0.1", "pod/forward", ":8080"]);
    let mut child = kubectl.stdout(Stdio::piped()).spawn().expect("run kubectl");
    let said = child.stdout.take().expect("it is piped");
    // Kept open: kubectl goes on to tell of each connection.
    let mut said = BufReader::new(said).lines();
    let line = said.next().expect("it says where").expect("it says it in words");
    let port = line.split([':', ' ']).find_map(|word| word.parse::<u16>().ok().filter(|port| *port > 1024));
    let answers: Vec<_> = (0..5).map(|_| web::ask("127.0.0.1", port.unwrap_or(0), "GET /")).collect();
    child.kill().and_then(|()| child.wait()).expect("end kubectl");
    for answer in answers {
        assert!(answer.as_ref().is_ok_and(|text| text.contains("forwarded")), "{line}: {answer:?}");
    }
}
