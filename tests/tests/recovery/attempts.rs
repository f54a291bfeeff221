//! A kubelet's container that its pod wants started again: each attempt has an id, an exit code and a log of its own, with a
//! kubelet or without one, with `berthd` or after it.

use std::{collections::HashMap, fs, path::PathBuf};

use berth_cri::v1::{
    self as cri,
    ContainerState::{ContainerExited as Exited, ContainerRunning as Running},
};
use berth_tests::{Asked, Daemon, Pod, asked, eventually};
use nix::{
    sys::signal::{Signal, kill},
    unistd,
};

const RESTARTS: &str = "io.kubernetes.container.restartCount";
const LAST_WORDS: &str = "io.kubernetes.container.terminationMessagePath";

pub fn pod_with(daemon: &Daemon, annotations: &[(&str, &str)]) -> Pod {
    let mut config = berth_tests::pod("attempts");
    config.annotations.extend(annotations.iter().map(|(key, text)| ((*key).to_owned(), (*text).to_owned())));
    daemon.run_pod(config).unwrap()
}

/// As a kubelet asks for an attempt.
pub fn attempt(daemon: &Daemon, number: u32, words: &[&str]) -> Asked {
    let last = daemon.dir().join(format!("last-words-{number}"));
    fs::write(&last, "").unwrap();
    let mount = cri::Mount {
        host_path: last.display().to_string(),
        container_path: "/dev/termination-log".into(),
        ..Default::default()
    };
    asked("web", words).mount(mount).with(|config| {
        config.metadata.get_or_insert_default().attempt = number;
        config.log_path = format!("web/{number}.log");
        config.annotations.insert(RESTARTS.into(), number.to_string());
        config.annotations.insert(LAST_WORDS.into(), "/dev/termination-log".into());
    })
}

/// The pod's containers by their attempt.
pub fn attempts(daemon: &Daemon, pod: &Pod) -> HashMap<u32, cri::Container> {
    let filter = cri::ContainerFilter { pod_sandbox_id: pod.id.clone(), ..Default::default() };
    let all = daemon.list_containers(filter);
    all.into_iter().map(|found| (found.metadata.clone().unwrap().attempt, found)).collect()
}

/// Waits until that attempt has come so far.
pub fn comes(daemon: &Daemon, pod: &Pod, number: u32, state: cri::ContainerState) -> cri::ContainerStatus {
    eventually(&format!("attempt {number} to be {state:?}"), || {
        let found = attempts(daemon, pod).remove(&number).filter(|found| found.state() == state)?;
        Some(daemon.status(&found.id).unwrap())
    })
}

pub fn pid_of(daemon: &Daemon, id: &str) -> unistd::Pid {
    unistd::Pid::from_raw(i32::try_from(daemon.details(id)["pid"].as_i64().unwrap()).unwrap())
}

/// Kills a process that somebody else watches.
pub fn end(pid: unistd::Pid) {
    kill(pid, Signal::SIGKILL).unwrap();
}

fn log_of(pod: &Pod, number: u32) -> PathBuf {
    PathBuf::from(&pod.config.log_directory).join(format!("web/{number}.log"))
}

#[test]
fn each_attempt_has_an_id_an_exit_code_and_a_log_of_its_own() {
    let daemon = Daemon::with_fixture();
    let pod = pod_with(&daemon, &[("berth.dev/restart.web", "on-failure:2")]);
    let first = daemon.launch(&pod, &attempt(&daemon, 0, &["exit", "3"])).unwrap();
    let last = comes(&daemon, &pod, 2, Exited);
    assert_eq!(last.exit_code, 3);
    assert_eq!(last.annotations[RESTARTS], "2");
    assert_eq!(last.log_path, log_of(&pod, 2).display().to_string());
    let all = attempts(&daemon, &pod);
    assert_eq!((all.len(), &all[&0].id), (3, &first));
    let mut words = Vec::new();
    for (number, found) in &all {
        let status = daemon.status(&found.id).unwrap();
        assert_eq!((status.state(), status.exit_code), (Exited, 3));
        assert!(log_of(&pod, *number).is_file());
        assert_eq!(status.annotations[RESTARTS], number.to_string());
        let mount = status.mounts.iter().find(|mount| mount.container_path == "/dev/termination-log");
        words.push(mount.unwrap().host_path.clone());
    }
    words.sort();
    words.dedup();
    assert_eq!(words.len(), 3, "each has a file for its last words: {words:?}");
    // A kubelet goes on counting.
    let next = daemon.launch(&pod, &attempt(&daemon, 3, &["sleep", "inf"])).unwrap();
    assert_eq!(daemon.status(&next).unwrap().state(), Running);
}

#[test]
fn what_was_stopped_or_did_its_work_is_not_started_again() {
    let daemon = Daemon::with_fixture();
    let failing = [("berth.dev/restart", "on-failure"), ("berth.dev/restart.ever", "always")];
    let pod = pod_with(&daemon, &failing);
    let done = daemon.launch(&pod, &asked("done", &["true"])).unwrap();
    let ever = asked("ever", &["trap", "--exit", "3"]);
    let stopped = daemon.launch(&pod, &ever).unwrap();
    daemon.exited(&done);
    daemon.logged(&pod, &ever, "ready");
    daemon.stop_container(&stopped, 10).unwrap();
    assert_eq!(daemon.status(&stopped).unwrap().exit_code, 3);
    // One that ends after them has another attempt; by then theirs would be there.
    let other = daemon.launch(&pod, &asked("other", &["exit", "4"])).unwrap();
    daemon.exited(&other);
    comes(&daemon, &pod, 1, Exited);
    let names = |found: &cri::Container| found.metadata.clone().unwrap().name;
    let filter = cri::ContainerFilter { pod_sandbox_id: pod.id.clone(), ..Default::default() };
    let again = daemon.list_containers(filter);
    let again: Vec<_> = again.iter().filter(|found| found.metadata.as_ref().unwrap().attempt > 0).collect();
    assert!(again.iter().all(|found| names(found) == "other"), "{again:?}");
}

#[test]
fn a_kubelet_that_asks_for_the_same_attempt_gets_it_and_another_takes_its_place() {
    let daemon = Daemon::with_fixture();
    let pod = pod_with(&daemon, &[("berth.dev/restart", "always")]);
    let words = ["sleep", "inf"];
    let id = daemon.launch(&pod, &attempt(&daemon, 0, &words)).unwrap();
    end(pid_of(&daemon, &id));
    let ours = comes(&daemon, &pod, 1, Running);
    assert_eq!(daemon.launch(&pod, &attempt(&daemon, 1, &words)).unwrap(), ours.id);
    let other = daemon.launch(&pod, &attempt(&daemon, 1, &["sleep", "86400"])).unwrap();
    assert_ne!(other, ours.id);
    assert_eq!(attempts(&daemon, &pod)[&1].id, other);
    assert_eq!(daemon.status(&other).unwrap().state(), Running);
}

#[test]
fn what_ended_while_berthd_was_dead_is_started_again_by_the_next_one() {
    let mut daemon = Daemon::with_fixture();
    let pod = pod_with(&daemon, &[("berth.dev/restart", "on-failure:1")]);
    let gate = daemon.dir().join("gate");
    fs::create_dir(&gate).unwrap();
    let volume = cri::Mount {
        host_path: gate.display().to_string(),
        container_path: "/gate".into(),
        ..Default::default()
    };
    let killed = attempt(&daemon, 0, &["wait-file", "/gate/go"]).mount(volume);
    let id = daemon.launch(&pod, &killed).unwrap();
    let pid = pid_of(&daemon, &id);
    daemon.kill9();
    end(pid);
    let record = daemon.root().join("containers").join(&id).join("exit");
    eventually("the exit record", || record.is_file().then_some(()));
    daemon.up();
    let next = comes(&daemon, &pod, 1, Running);
    assert_eq!(daemon.status(&id).unwrap().exit_code, 137);
    // The one after it is found again as what it is: it was the last.
    daemon.kill9();
    daemon.up();
    assert_eq!(daemon.status(&next.id).unwrap().state(), Running);
    fs::write(gate.join("go"), "").unwrap();
    comes(&daemon, &pod, 1, Exited);
    assert_eq!(attempts(&daemon, &pod).len(), 2);
}

#[test]
fn a_pod_that_asks_for_what_nobody_understands_is_refused() {
    let daemon = Daemon::with_fixture();
    for (key, text) in [("berth.dev/restart", "sometimes"), ("berth.dev/log-rate.web", "fast")] {
        let mut config = berth_tests::pod("refused");
        config.annotations.insert(key.into(), text.into());
        let status = daemon.run_pod(config).unwrap_err();
        assert_eq!(status.code(), tonic::Code::InvalidArgument);
        assert!(status.message().contains(key) && status.message().contains(text), "{status}");
    }
}
