//! `berth explain`: what happened, in order, with times and errors; also of what has gone.

use berth_tests::{Daemon, asked, eventually};
use serde_json::Value;

use crate::{IMAGE, wait};

fn explain(daemon: &Daemon, subject: &str) -> Value {
    serde_json::from_str(&daemon.berth_ok(&["explain", "-o", "json", subject])).unwrap()
}

fn steps(story: &Value) -> Vec<&str> {
    story["steps"].as_array().unwrap().iter().map(|step| step["what"].as_str().unwrap()).collect()
}

/// Whether these come in this order, others between them or not.
fn come_in_order(all: &[&str], wanted: &[&str]) -> bool {
    let mut all = all.iter();
    wanted.iter().all(|one| all.any(|step| step == one))
}

#[test]
fn the_life_of_a_container_is_told_and_kept_when_it_has_gone() {
    let daemon = Daemon::with_fixture();
    daemon.berth_ok(&["run", "-d", "--name", "web", "--restart", "on-failure:1", IMAGE, "exit", "3"]);
    assert_eq!(wait(&daemon, "web"), 3);
    let wanted = [
        "hold layers",
        "make cgroup",
        "prepare",
        "launch",
        "start",
        "ended, to be started again",
        "started again",
        "ended",
    ];
    let told = eventually("all of it to be told", || {
        let told = explain(&daemon, "web");
        come_in_order(&steps(&told["stories"][0]), &wanted).then_some(told)
    });
    let story = &told["stories"][0];
    let all = story["steps"].as_array().unwrap();
    assert!(all.iter().any(|step| step["took_us"].is_string() || step["tookUs"].is_string()), "{story:#}");
    let end = all.iter().rev().find(|step| step["what"] == "ended").unwrap();
    assert!(end["detail"].as_str().unwrap().contains("exit code 3"), "{end}");
    // Its hidden pod's network and namespaces are part of it.
    assert!(come_in_order(&steps(&told["stories"][1]), &["take addresses", "make namespaces"]), "{told:#}");
    daemon.berth_ok(&["rm", "web"]);
    let gone = explain(&daemon, "web");
    assert_ne!(gone["stories"][0]["goneAt"], "0", "{gone:#}");
    assert!(come_in_order(&steps(&gone["stories"][0]), &["ended", "remove"]), "{gone:#}");
    let people = daemon.berth_ok(&["explain", "web"]);
    assert!(people.starts_with("container web ") && people.contains(", gone "), "{people}");
    let missing = daemon.berth(&["explain", "nosuch"]);
    assert!(missing.code == 125 && missing.stderr.contains("kept for an hour"), "{missing:?}");
}

#[test]
fn a_failure_is_told_with_its_reason() {
    let daemon = Daemon::with_fixture();
    let said = daemon.berth(&["run", "-d", "--name", "bad", IMAGE, "nosuch"]);
    assert_eq!(said.code, 127, "{said:?}");
    let told = explain(&daemon, "bad");
    let all = told["stories"][0]["steps"].as_array().unwrap();
    let start = all.iter().find(|step| step["what"] == "start").unwrap();
    assert!(start["error"].as_str().unwrap().contains("nosuch"), "{start}");
    let pod = daemon.plain_pod("told");
    let id = daemon.launch(&pod, &asked("c", &["sleep", "inf"])).unwrap();
    let told = explain(&daemon, &pod.id[..12]);
    assert_eq!(told["stories"].as_array().unwrap().len(), 2, "{told:#}");
    assert_eq!(told["stories"][1]["id"], id.as_str());
    assert!(come_in_order(&steps(&told["stories"][1]), &["launch", "start"]), "{told:#}");
}

#[test]
fn a_new_berthd_tells_what_it_has_found() {
    let mut daemon = Daemon::with_fixture();
    daemon.berth_ok(&["run", "-d", "--name", "web", IMAGE, "sleep", "inf"]);
    daemon.kill9();
    daemon.up();
    let told = explain(&daemon, "web");
    let all = told["stories"][0]["steps"].as_array().unwrap();
    let found = all.iter().find(|step| step["what"] == "found by a new berthd").unwrap();
    assert!(found["detail"].as_str().unwrap().starts_with("running, pid "), "{told:#}");
}
