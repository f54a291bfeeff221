//! One more process in a container.

use std::{fs, io::Read};

use berth_tests::oci::{Console, Oci, read, reap, text};
use serde_json::{Value, json};

/// A container that only waits.
fn running(oci: &Oci) {
    oci.start("c1", &oci.config("c1", &["sleep", "1000"]));
}

#[test]
fn an_exec_has_streams_and_an_exit_code() {
    let oci = Oci::new();
    running(&oci);
    let finished = oci.run(&["exec", "c1", "echo", "-e", "hello"]);
    assert_eq!((finished.code, finished.stdout.as_str()), (0, "-e hello\n"), "{finished:?}");
    assert_eq!(oci.run(&["exec", "c1", "stderr", "oh"]).stderr, "oh\n");
    assert_eq!(oci.run(&["exec", "c1", "exit", "9"]).code, 9);
    assert_eq!(oci.run(&["exec", "c1", "crash"]).code, 128 + 11);
    assert_eq!(oci.zombies(), Vec::<i32>::new());
}

#[test]
fn flags_lie_over_what_init_has() {
    let oci = Oci::new();
    running(&oci);
    let words = [
        "exec",
        "--user",
        "1000:1001",
        "-g",
        "7",
        "--cwd",
        "/tmp",
        "-e",
        "A=b",
        "-c",
        "CAP_NET_RAW",
        "c1",
        "info",
    ];
    let info: Value = serde_json::from_str(&oci.ok(&words)).unwrap();
    // The group itself is among the others: who leaves it is not to be given what it is denied (CVE-2022-2989).
    assert_eq!(
        (&info["uid"], &info["gid"], &info["groups"]),
        (&json!(1000), &json!(1001), &json!([7, 1001]))
    );
    assert_eq!((&info["cwd"], &info["env"]["A"]), (&json!("/tmp"), &json!("b")));
    assert_eq!(info["env"]["PATH"], "/bin");
    assert_eq!(info["hostname"], "box");
    // CAP_CHOWN, CAP_KILL, CAP_NET_RAW.
    assert_eq!(info["caps"]["bounding"], "0000000000002021");
    assert!(oci.refused(&["exec", "--user", "app", "c1", "id"]).contains("digits"));
}

#[test]
fn a_process_document_is_taken_as_it_is() {
    let oci = Oci::new();
    running(&oci);
    let path = oci.dir().join("process.json");
    let document = json!({"args": ["id"], "cwd": "/", "env": ["PATH=/bin"],
        "user": {"uid": 5, "gid": 6, "additionalGids": [8]}});
    fs::write(&path, document.to_string()).unwrap();
    let said = oci.ok(&["exec", "--process", text(&path), "c1"]);
    assert_eq!(said, "uid=5 gid=6 groups=6,8\n");
}

#[test]
fn a_detached_exec_is_its_callers_child() {
    let oci = Oci::new();
    running(&oci);
    let pid_file = oci.dir().join("exec.pid");
    oci.ok(&["exec", "--detach", "--pid-file", text(&pid_file), "c1", "wait-file", "/tmp/go"]);
    let pid: i32 = read(&pid_file).parse().unwrap();
    assert!(oci.ok(&["ps", "--format", "json", "c1"]).contains(&pid.to_string()));
    fs::write(oci.bundle().join("rootfs/tmp/go"), "").unwrap();
    assert_eq!(reap(pid), 0);
}

#[test]
fn an_exec_whose_pid_file_cannot_be_written_does_not_stay() {
    let oci = Oci::new();
    running(&oci);
    let why = oci.refused(&["exec", "--detach", "--pid-file", "/no/such/pid", "c1", "sleep", "1000"]);
    assert!(why.contains("/no/such"), "{why}");
    assert_eq!(oci.ok(&["ps", "--format", "json", "c1"]), format!("[{}]\n", oci.pid("c1")));
    assert_eq!(oci.zombies(), Vec::<i32>::new());
}

#[test]
fn a_terminal_of_an_exec_comes_to_the_console_socket() {
    let oci = Oci::new();
    running(&oci);
    let console = Console::new(&oci);
    let pid_file = oci.dir().join("exec.pid");
    let words = [
        "exec",
        "--tty",
        "--detach",
        "--console-socket",
        console.path(),
        "--pid-file",
        text(&pid_file),
        "c1",
        "info",
    ];
    oci.ok(&words);
    let mut master = console.master();
    let mut said = String::new();
    let mut bytes = [0u8; 4096];
    // A pty whose other end is closed fails to be read.
    while let Ok(length @ 1..) = master.read(&mut bytes) {
        said += &String::from_utf8_lossy(&bytes[..length]);
    }
    let info: Value = serde_json::from_str(said.trim()).unwrap();
    assert_eq!(info["tty"], json!([true, true, true]));
    assert_eq!(reap(read(&pid_file).parse().unwrap()), 0);
}

#[test]
fn an_exec_in_the_foreground_relays_a_terminal_of_its_own() {
    let oci = Oci::new();
    running(&oci);
    let finished = oci.run(&["exec", "--tty", "c1", "echo", "through a pty"]);
    assert_eq!((finished.code, finished.stdout.as_str()), (0, "through a pty\r\n"), "{finished:?}");
}

#[test]
fn a_failed_exec_says_why_and_leaves_no_zombie() {
    let oci = Oci::new();
    running(&oci);
    for (words, why) in [
        (&["exec", "c1", "no-such-program"][..], "executable file not found in $PATH"),
        (&["exec", "c1", "/no/such/program"], "/no/such/program"),
        (&["exec", "--cwd", "/no/such", "c1", "true"], "/no/such"),
    ] {
        let finished = oci.run(words);
        assert_eq!(finished.code, 255, "{finished:?}");
        assert!(finished.stderr.contains(why), "{finished:?}");
        assert_eq!(oci.zombies(), Vec::<i32>::new(), "{words:?}");
    }
    assert_eq!(oci.status("c1"), "running");
}

#[test]
fn only_a_container_that_can_is_execed_in() {
    let oci = Oci::new();
    oci.create("c1", &oci.config("c1", &["sleep", "1000"]));
    // Before its start too, as with the peers.
    assert_eq!(oci.ok(&["exec", "c1", "echo", "early"]), "early\n");
    oci.ok(&["start", "c1"]);
    oci.ok(&["pause", "c1"]);
    assert!(oci.refused(&["exec", "c1", "true"]).contains("paused"));
    oci.ok(&["resume", "c1"]);
    oci.ok(&["kill", "c1", "KILL"]);
    assert_eq!(oci.reap("c1"), 128 + 9);
    assert!(oci.refused(&["exec", "c1", "true"]).contains("stopped"));
}

#[test]
fn an_exec_ends_with_its_container() {
    let oci = Oci::new();
    running(&oci);
    let pid_file = oci.dir().join("exec.pid");
    oci.ok(&["exec", "--detach", "--pid-file", text(&pid_file), "c1", "sleep", "1000"]);
    let pid: i32 = read(&pid_file).parse().unwrap();
    oci.ok(&["kill", "c1", "KILL"]);
    // The first process of a PID namespace is the last to be gone, and so waits for those who wait for the others.
    assert_eq!(reap(pid), 128 + 9);
    assert_eq!(oci.reap("c1"), 128 + 9);
}
