//! `berth explain` tells on where `berthd` was killed in between, also of what has gone; whatever lies among its files.

use std::{fs, path::PathBuf};

use berth_tests::{Daemon, asked, eventually};
use serde_json::Value;

/// The steps of what is meant, oldest first, as one line each.
fn told(daemon: &Daemon, subject: &str) -> Vec<String> {
    let said = daemon.berth(&["explain", "-o", "json", subject]);
    if said.code != 0 {
        return Vec::new();
    }
    let told: Value = serde_json::from_str(&said.stdout).unwrap();
    let text = |step: &Value, key: &str| step[key].as_str().unwrap_or_default().to_owned();
    let line =
        |step: &Value| ["what", "detail", "error"].map(|key| text(step, key)).join(" ").trim_end().to_owned();
    told["stories"][0]["steps"].as_array().unwrap().iter().map(line).collect()
}

fn files(daemon: &Daemon) -> PathBuf {
    daemon.state().join("stories")
}

/// Until a pod's file, which is written behind what is told, has a word in it.
fn written(daemon: &Daemon, pod: &str, word: &str) {
    let file = files(daemon).join(pod);
    eventually("the story to be written", || {
        let bytes = fs::read(&file).unwrap_or_default();
        bytes.windows(word.len()).any(|window| window == word.as_bytes()).then_some(())
    });
}

#[test]
fn what_happened_is_told_by_the_next_berthd_too() {
    let mut daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("story");
    let id = daemon.launch(&pod, &asked("lives", &["sleep", "inf"])).unwrap();
    let gone = daemon.launch(&pod, &asked("gone", &["sleep", "inf"])).unwrap();
    daemon.launch(&pod, &asked("bad", &["nosuch"])).unwrap_err();
    daemon.stop_container(&gone, 0).unwrap();
    daemon.remove_container(&gone).unwrap();
    let before: Vec<_> = [&pod.id, &id, &gone].iter().map(|id| told(&daemon, id)).collect();
    assert!(before[1].iter().any(|step| step == "start"), "{before:#?}");
    assert!(before[2].iter().any(|step| step.starts_with("ended exit code 137")), "{before:#?}");
    written(&daemon, &pod.id, "remove");
    for round in 1..=2 {
        daemon.kill9();
        daemon.up();
        for (subject, before) in [&pod.id, &id, &gone].iter().zip(&before) {
            let after = told(&daemon, subject);
            assert_eq!(after[..before.len()], before[..], "{round}: {after:#?}");
        }
        assert_eq!(told(&daemon, &gone), before[2], "nothing happens to what is gone");
        let found =
            told(&daemon, &id).iter().filter(|step| step.starts_with("found by a new berthd")).count();
        assert_eq!(found, round);
        let people = daemon.berth_ok(&["explain", &gone]);
        assert!(people.starts_with("container gone ") && people.contains(", gone "), "{people}");
        written(&daemon, &pod.id, "found by a new berthd");
    }
    // One that is stopped writes its last words.
    daemon.stop_container(&id, 0).unwrap();
    let last = told(&daemon, &id);
    daemon.restart();
    assert_eq!(told(&daemon, &id)[..last.len()], last[..]);
    // A container that went while nobody was there.
    let lost = daemon.launch(&pod, &asked("lost", &["sleep", "inf"])).unwrap();
    written(&daemon, &pod.id, "lost");
    daemon.kill9();
    fs::remove_dir_all(daemon.root().join("containers").join(&lost)).unwrap();
    daemon.up();
    assert!(
        told(&daemon, &lost).last().unwrap().starts_with("not there any more"),
        "{:#?}",
        told(&daemon, &lost)
    );
    assert_eq!(
        fs::metadata(files(&daemon)).unwrap().permissions(),
        fs::metadata(daemon.state().join("pods")).unwrap().permissions()
    );
}

#[test]
fn a_story_that_is_damaged_is_told_once_and_one_that_is_not_ours_is_left() {
    let mut daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("damaged");
    let id = daemon.launch(&pod, &asked("c", &["sleep", "inf"])).unwrap();
    daemon.stop();
    let file = files(&daemon).join(&pod.id);
    let mut bytes = fs::read(&file).unwrap();
    let end = bytes.len() - 5;
    bytes[end] ^= 0x55;
    fs::write(&file, bytes).unwrap();
    let mine = files(&daemon).join("notes");
    fs::write(&mine, "mine").unwrap();
    daemon.up();
    let damage = |daemon: &Daemon| daemon.log().matches("a story is damaged").count();
    assert_eq!(damage(&daemon), 1);
    assert!(daemon.log().contains("files that are no stories"));
    let all = told(&daemon, &id);
    assert!(all.iter().any(|step| step.starts_with("found by a new berthd")) && all.len() > 2, "{all:#?}");
    daemon.restart();
    assert_eq!(damage(&daemon), 1);
    assert_eq!(told(&daemon, &id)[..all.len()], all[..]);
    // None at all is as good.
    daemon.kill9();
    fs::remove_dir_all(files(&daemon)).unwrap();
    daemon.up();
    assert!(told(&daemon, &id)[0].starts_with("found by a new berthd"));
    written(&daemon, &pod.id, "found by a new berthd");
}
