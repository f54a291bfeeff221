//! What a supervisor hands over and reads back: descriptors, sockets, logs, pid files.

use std::{
    fs,
    os::{fd::AsRawFd, unix::net::UnixListener},
    process::Command,
};

use berth_tests::{
    oci::{Oci, read, text},
    program,
};
use serde_json::{Value, json};

/// A shell that opens descriptors from 3 on, sets variables and becomes `berth oci run`: what `LISTEN_PID` names is then it.
fn run_by_shell(oci: &Oci, script: &str, flags: &str) -> Value {
    oci.write(&oci.config("c1", &["info"]));
    let berth = program("berth");
    let script = format!("{script} exec {} oci --root {} run {flags} c1", text(&berth), text(&oci.root()));
    let mut command = Command::new("sh");
    command.args(["-c", &script]).current_dir(oci.bundle()).env("BERTH_TESTS_PLACE", oci.cgroup(""));
    let ran = oci.finish(command);
    assert_eq!(ran.code, 0, "{script}: {}", ran.stderr());
    serde_json::from_str(&ran.stdout()).expect("info is JSON")
}

/// Its open descriptors; the last is of the listing itself.
fn open(info: &Value) -> Vec<String> {
    let names = info["fds"].as_array().expect("descriptors are listed").iter();
    names.map(|name| name.as_str().expect("a name").to_owned()).collect()
}

#[test]
fn only_as_many_descriptors_as_said_are_passed_on() {
    let oci = Oci::new();
    let opened = "exec 3</dev/null 4</dev/null 5</dev/null;";
    assert_eq!(open(&run_by_shell(&oci, opened, "")), ["0", "1", "2", "3"]);
    let passed = open(&run_by_shell(&oci, opened, "--preserve-fds 2"));
    assert_eq!(passed, ["0", "1", "2", "3", "4", "5"]);
    oci.write(&oci.config("c1", &["info"]));
    let why = oci.refused(&["run", "--preserve-fds", "7", "c1"]);
    assert!(why.contains("is not open"), "{why}");
}

#[test]
fn sockets_are_passed_on_where_they_are_meant_for_us() {
    let oci = Oci::new();
    let opened = "exec 3</dev/null 4</dev/null; export LISTEN_FDS=1";
    let info = run_by_shell(&oci, &format!("{opened} LISTEN_PID=$$;"), "");
    assert_eq!((&info["env"]["LISTEN_FDS"], &info["env"]["LISTEN_PID"]), (&json!("1"), &json!("1")));
    assert_eq!(open(&info), ["0", "1", "2", "3", "4"]);
    // Another's.
    let info = run_by_shell(&oci, &format!("{opened} LISTEN_PID=1;"), "");
    assert_eq!((&info["env"]["LISTEN_FDS"], &info["env"]["LISTEN_PID"]), (&Value::Null, &Value::Null));
    assert_eq!(open(&info), ["0", "1", "2", "3"]);
}

#[test]
fn a_log_in_json_is_what_supervisors_read() {
    let oci = Oci::new();
    let log = oci.dir().join("log.json");
    let said = oci.refused(&["--log", text(&log), "--log-format", "json", "state", "nobody"]);
    let line: Value = serde_json::from_str(read(&log).trim()).unwrap();
    assert_eq!(line["level"], "error");
    assert!(line["msg"].as_str().unwrap().contains("container does not exist"), "{line}");
    assert!(line["time"].as_str().unwrap().ends_with('Z'), "{line}");
    // A person sees it too.
    assert!(said.contains("does not exist"), "{said}");
    oci.refused(&["--log", text(&log), "--log-format", "json", "state", "nobody"]);
    assert_eq!(read(&log).lines().count(), 2);
    assert!(oci.refused(&["--log-format", "xml", "list"]).contains("neither text nor json"));
}

#[test]
fn a_pid_file_that_cannot_be_written_takes_the_container_back() {
    let oci = Oci::new();
    oci.write(&oci.config("c1", &["true"]));
    let why = oci.refused(&["create", "--pid-file", "/no/such/pid", "c1"]);
    assert!(why.contains("/no/such"), "{why}");
    assert!(oci.refused(&["state", "c1"]).contains("does not exist"));
    assert_eq!(oci.zombies(), Vec::<i32>::new());
}

#[test]
fn a_create_that_fails_leaves_no_zombie_and_no_cgroup() {
    let oci = Oci::new();
    let mut config = oci.config("c1", &["true"]);
    config["mounts"]
        .as_array_mut()
        .unwrap()
        .push(json!({"destination": "/x", "type": "none", "source": "/no/such/source", "options": ["bind"]}));
    oci.write(&config);
    let why = oci.refused(&["create", "c1"]);
    assert!(why.contains("/no/such/source"), "{why}");
    assert_eq!(oci.zombies(), Vec::<i32>::new());
    assert!(oci.refused(&["state", "c1"]).contains("does not exist"));
}

#[test]
fn a_console_socket_where_nobody_listens_is_told() {
    let oci = Oci::new();
    let mut config = oci.config("c1", &["true"]);
    config["process"]["terminal"] = json!(true);
    oci.write(&config);
    let path = oci.dir().join("console");
    drop(UnixListener::bind(&path).unwrap());
    let why = oci.refused(&["create", "--console-socket", text(&path), "c1"]);
    assert!(why.contains("open terminal") && why.contains("console"), "{why}");
}

#[test]
fn a_create_that_was_killed_half_way_can_be_deleted() {
    let oci = Oci::new();
    // What one leaves that has taken its id and nothing else.
    fs::create_dir_all(oci.root().join("c1")).unwrap();
    assert!(oci.refused(&["state", "c1"]).contains("does not exist"));
    oci.ok(&["delete", "c1"]);
    assert!(!oci.root().join("c1").exists());
}

#[test]
fn a_caller_keeps_its_descriptors() {
    let oci = Oci::new();
    let file = fs::File::open("/dev/null").unwrap();
    oci.start("c1", &oci.config("c1", &["sleep", "1000"]));
    let links = fs::read_dir(format!("/proc/{}/fd", oci.pid("c1"))).unwrap().count();
    assert_eq!(links, 3, "{} of ours is not its own", file.as_raw_fd());
}
