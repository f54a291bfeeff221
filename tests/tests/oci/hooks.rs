//! Hooks: which are run when, on which input, and what comes of one that fails.

use std::{fs, os::unix::fs::PermissionsExt};

use berth_tests::{
    eventually,
    oci::{Oci, read, text},
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

const POINTS: [&str; 6] =
    ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];

/// A hook that notes its point and the state that it reads.
fn noting(oci: &Oci, point: &str) -> Value {
    let script = format!("echo {point} $(cat) >> {}", text(&oci.dir().join("noted")));
    json!({"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"], "timeout": 20})
}

fn noted(oci: &Oci) -> Vec<(String, Value)> {
    let text = read(&oci.dir().join("noted"));
    let row = |line: &str| {
        let (point, state) = line.split_once(' ').expect("a point and a state");
        (point.to_owned(), serde_json::from_str(state).expect("a state is JSON"))
    };
    text.lines().map(row).collect()
}

fn points(oci: &Oci) -> Vec<String> {
    noted(oci).into_iter().map(|(point, _)| point).collect()
}

/// A hook inside of the container, which has no shell: the fixture writes what it was given as a file.
fn inside() -> Value {
    json!({"path": "/bin/write", "args": ["write", "/tmp/inside", "was here"]})
}

#[test]
fn hooks_are_run_in_order_with_the_state_on_their_input() {
    let oci = Oci::new();
    let mut config = oci.config("c1", &["exit", "3"]);
    for point in POINTS.iter().filter(|point| **point != "startContainer") {
        config["hooks"][point] = json!([noting(&oci, point)]);
    }
    config["hooks"]["startContainer"] = json!([inside()]);
    oci.create("c1", &config);
    let pid = oci.pid("c1");
    assert_eq!(points(&oci), ["prestart", "createRuntime", "createContainer"]);
    assert!(!oci.bundle().join("rootfs/tmp/inside").exists());
    oci.ok(&["start", "c1"]);
    assert!(oci.bundle().join("rootfs/tmp/inside").exists());
    assert_eq!(oci.reap("c1"), 3);
    assert_eq!(points(&oci).len(), 4);
    oci.ok(&["delete", "c1"]);
    let noted = noted(&oci);
    let told: Vec<(&str, &Value, &Value)> =
        noted.iter().map(|(point, state)| (point.as_str(), &state["status"], &state["pid"])).collect();
    let (creating, running, stopped) = (json!("creating"), json!("running"), json!("stopped"));
    let (pid, none) = (json!(pid), json!(0));
    let expected = [
        ("prestart", &creating, &pid),
        ("createRuntime", &creating, &pid),
        ("createContainer", &creating, &pid),
        ("poststart", &running, &pid),
        ("poststop", &stopped, &none),
    ];
    assert_eq!(told, expected);
    for (_, state) in &noted {
        assert_eq!((&state["id"], &state["bundle"]), (&json!("c1"), &json!(oci.bundle())));
        assert_eq!(state["annotations"], json!({"dev.berth.test": "yes"}));
        assert_eq!(state["ociVersion"], "1.2.0");
    }
}

#[test]
fn a_hook_that_fails_before_the_start_takes_the_container_back() {
    for point in ["prestart", "createRuntime", "createContainer"] {
        let oci = Oci::new();
        let mut config = oci.config("c1", &["true"]);
        let failing = json!({"path": "/bin/sh", "args": ["sh", "-c", "exit 3"]});
        config["hooks"] =
            json!({point: [failing, noting(&oci, point)], "poststop": [noting(&oci, "poststop")]});
        oci.write(&config);
        let why = oci.refused(&["create", "c1"]);
        assert!(why.contains("run hook") && why.contains("exit status: 3"), "{point}: {why}");
        // The next of its point is not run; what was made is destroyed, and that is told.
        assert_eq!(points(&oci), ["poststop"], "{point}");
        assert!(oci.refused(&["state", "c1"]).contains("does not exist"));
        assert_eq!(oci.zombies(), Vec::<i32>::new(), "{point}");
    }
}

#[test]
fn a_hook_that_takes_too_long_has_failed() {
    let oci = Oci::new();
    let mut config = oci.config("c1", &["true"]);
    config["hooks"]["createRuntime"] =
        json!([{"path": "/bin/sleep", "args": ["sleep", "1000"], "timeout": 1}]);
    oci.write(&config);
    let why = oci.refused(&["create", "c1"]);
    assert!(why.contains("longer than its 1 s"), "{why}");
}

#[test]
fn a_hook_after_the_start_that_takes_too_long_stops_the_container() {
    let oci = Oci::new();
    let mut config = oci.config("c1", &["sleep", "1000"]);
    config["hooks"] = json!({"poststart": [{"path": "/bin/sleep", "args": ["sleep", "1000"], "timeout": 1}]});
    oci.create("c1", &config);
    let said = oci.refused(&["start", "c1"]);
    assert!(said.contains("longer than its 1 s"), "{said}");
    assert_eq!(oci.reap("c1"), 128 + 9);
    oci.ok(&["delete", "c1"]);
}

#[test]
fn a_signal_while_a_hook_runs_is_the_containers_and_the_hook_has_none_blocked() {
    let oci = Oci::new();
    let (held, go, masks) = (oci.dir().join("held"), oci.dir().join("go"), oci.dir().join("masks"));
    // By the shell itself: for a moment after it has started a program it blocks all.
    let mask = format!(
        "while read -r key mask; do [ $key != SigBlk: ] || echo $mask >> {}; done < /proc/$$/status",
        text(&masks)
    );
    let hold = format!("{mask}; echo > {}; until [ -e {} ]; do sleep 0.01; done", text(&held), text(&go));
    let hook = |script: &str| json!([{"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"]}]);
    let mut config = oci.config("c1", &["trap", "--exit", "5"]);
    config["hooks"] =
        json!({"createRuntime": hook(&mask), "poststart": hook(&hold), "poststop": hook(&mask)});
    oci.write(&config);
    let out = fs::File::create(oci.dir().join("trap")).unwrap();
    let mut child = oci.command(&["run", "c1"]).stdout(out).spawn().unwrap();
    eventually("the program to be ready", || read(&oci.dir().join("trap")).contains("ready").then_some(()));
    eventually("the hook to be held", || held.exists().then_some(()));
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    fs::write(&go, "").unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(5));
    let masks = read(&masks);
    assert_eq!(masks.lines().count(), 3, "{masks}");
    assert!(masks.lines().all(|mask| mask == "0000000000000000"), "{masks}");
}

#[test]
fn a_start_hook_inside_that_fails_keeps_the_program_from_running() {
    let oci = Oci::new();
    let mut config = oci.config("c1", &["write", "/tmp/program", "ran"]);
    config["hooks"] =
        json!({"startContainer": [{"path": "/bin/false"}], "poststop": [noting(&oci, "poststop")]});
    oci.create("c1", &config);
    let why = oci.refused(&["start", "c1"]);
    assert!(why.contains("run hook") && why.contains("/bin/false"), "{why}");
    assert_ne!(oci.reap("c1"), 0);
    assert_eq!(oci.status("c1"), "stopped");
    assert!(!oci.bundle().join("rootfs/tmp/program").exists());
    oci.ok(&["delete", "c1"]);
    assert_eq!(points(&oci), ["poststop"]);
}

#[test]
fn a_hook_that_fails_after_the_start_stops_the_container() {
    let oci = Oci::new();
    let mut config = oci.config("c1", &["sleep", "1000"]);
    config["hooks"] = json!({"poststart": [{"path": "/bin/false"}]});
    oci.create("c1", &config);
    let why = oci.refused(&["start", "c1"]);
    assert!(why.contains("/bin/false"), "{why}");
    assert_eq!(oci.reap("c1"), 128 + 9);
    assert_eq!(oci.status("c1"), "stopped");
    oci.ok(&["delete", "c1"]);
}

#[test]
fn a_hook_that_fails_after_the_end_is_told_and_the_rest_is_run() {
    let oci = Oci::new();
    let mut config = oci.config("c1", &["true"]);
    config["hooks"] = json!({"poststop": [{"path": "/bin/false"}, noting(&oci, "poststop")]});
    oci.start("c1", &config);
    assert_eq!(oci.reap("c1"), 0);
    let finished = oci.run(&["delete", "c1"]);
    assert_eq!(finished.code, 0, "{finished:?}");
    assert!(
        finished.stderr.contains("level=warning") && finished.stderr.contains("/bin/false"),
        "{finished:?}"
    );
    assert_eq!(points(&oci), ["poststop"]);
}

#[test]
fn a_hook_that_cannot_be_is_refused_before_anything_is_made() {
    let oci = Oci::new();
    let script = oci.dir().join("hook");
    fs::write(&script, "#!/bin/sh\n").unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    for point in POINTS {
        for (hook, why) in [
            (json!({"path": "hook"}), "not absolute"),
            (json!({"path": script, "timeout": 0}), "timeout of 0"),
        ] {
            let mut config = oci.config("c1", &["true"]);
            config["hooks"] = json!({point: [hook], "prestart": if point == "prestart" { json!([hook]) } else { json!([noting(&oci, "prestart")]) }});
            oci.write(&config);
            let said = oci.refused(&["create", "c1"]);
            assert!(said.contains(why), "{point}: {said}");
        }
    }
    assert_eq!(points(&oci), Vec::<String>::new());
}
