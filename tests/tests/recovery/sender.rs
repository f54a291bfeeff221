//! Whose signal ended a container is told, whatever was started anew or killed in between; of others' no sender is made up.

use berth_cri::v1 as cri;
use berth_tests::{Asked, Daemon, Pod, asked, eventually};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use crate::shim::{kill_shim_of, pid_of, shim_of};

/// One that is not process 1 of a namespace, and so ends by what it does not ask for.
fn on_node(name: &str, words: &[&str]) -> Asked {
    asked(name, words).secured(|security| {
        security.namespace_options.get_or_insert_default().pid = cri::NamespaceMode::Node.into();
    })
}

fn ended(daemon: &Daemon, id: &str) -> (i32, String) {
    let status = daemon.exited(id);
    assert_eq!(status.reason, "Error", "{status:?}");
    (status.exit_code, status.message)
}

/// What `explain` tells of the end, also of one that is gone.
fn end_of(daemon: &Daemon, id: &str) -> String {
    let told: Value = serde_json::from_str(&daemon.berth_ok(&["explain", "-o", "json", id])).unwrap();
    let steps = told["stories"][0]["steps"].as_array().unwrap();
    let end = steps.iter().rev().find(|step| step["what"] == "ended").unwrap();
    end["detail"].as_str().unwrap().to_owned()
}

/// A container that hears SIGTERM and goes on, and is told to end within so long.
fn stubborn(daemon: &Daemon, pod: &Pod, name: &str) -> (Asked, String) {
    let asked = asked(name, &["trap"]);
    let id = daemon.launch(pod, &asked).unwrap();
    daemon.logged(pod, &asked, "ready");
    (asked, id)
}

const TERM: &str = "ended by SIGTERM, which Berth sent because it was to stop";
const AT_ONCE: &str = "ended by SIGKILL, which Berth sent because it was to stop at once";
const OTHERS: &str = "ended by SIGKILL, which Berth did not send";

fn grace_over(seconds: i64) -> String {
    format!("ended by SIGKILL, which Berth sent because it had not ended {seconds}s after it was asked to")
}

#[test]
fn whose_signal_it_was_is_told() {
    let daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("sender");
    let is = |id: &str, code: i32, message: &str| {
        assert_eq!(ended(&daemon, id), (code, message.to_owned()));
        assert_eq!(end_of(&daemon, id), format!("exit code {code}, Error: {message}"));
    };
    let sleeps = |name: &str| daemon.launch(&pod, &on_node(name, &["sleep", "inf"])).unwrap();
    let stopped = sleeps("stopped");
    daemon.stop_container(&stopped, 30).unwrap();
    is(&stopped, 143, TERM);
    let at_once = sleeps("at-once");
    daemon.stop_container(&at_once, 0).unwrap();
    is(&at_once, 137, AT_ONCE);
    let (_, id) = stubborn(&daemon, &pod, "stubborn");
    daemon.stop_container(&id, 1).unwrap();
    is(&id, 137, &grace_over(1));
    // What comes from elsewhere is not Berth's, and by whom it is can't be known.
    let killed = sleeps("killed");
    kill(Pid::from_raw(pid_of(&daemon, &killed)), Signal::SIGKILL).unwrap();
    is(&killed, 137, OTHERS);
    let crashed = daemon.launch(&pod, &asked("crashed", &["crash"])).unwrap();
    is(&crashed, 139, "ended by SIGSEGV, which Berth did not send");
    // One that takes the signal and exits has nothing to explain.
    let heeds = asked("heeds", &["trap", "--exit", "5"]);
    let id = daemon.launch(&pod, &heeds).unwrap();
    daemon.logged(&pod, &heeds, "ready");
    daemon.stop_container(&id, 30).unwrap();
    assert_eq!(ended(&daemon, &id), (5, String::new()));
    // What was removed while it ran.
    let removed = sleeps("removed");
    daemon.remove_container(&removed).unwrap();
    let told = end_of(&daemon, &removed);
    assert_eq!(told, "exit code 137, Error: ended by SIGKILL, which Berth sent because it was removed");
    let with_pod = sleeps("with-pod");
    daemon.stop_pod(&pod.id).unwrap();
    is(&with_pod, 137, "ended by SIGKILL, which Berth sent because its pod was stopped");
    // A person's.
    let id =
        daemon.berth_ok(&["run", "-d", "--name", "person", berth_tests::images::FIXTURE, "sleep", "inf"]);
    daemon.berth_ok(&["kill", "person"]);
    daemon.berth(&["wait", "person"]);
    let told = end_of(&daemon, &id);
    assert_eq!(
        told,
        "exit code 137, Error: ended by SIGKILL, which Berth sent because it was asked to send that"
    );
}

#[test]
fn a_new_berthd_and_a_new_shim_know_whose_signal_it_was() {
    let mut daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("between");
    let (asked, id) = stubborn(&daemon, &pod, "berthd");
    let others = daemon.launch(&pod, &on_node("others", &["sleep", "inf"])).unwrap();
    let pid = Pid::from_raw(pid_of(&daemon, &others));
    // The call hangs until its berthd is killed; what it has begun goes on.
    let socket = daemon.pid();
    std::thread::scope(|scope| {
        let stop = scope.spawn(|| daemon.stop_container(&id, 3));
        daemon.logged(&pod, &asked, "SIGTERM");
        kill(socket, Signal::SIGKILL).unwrap();
        // The connection ended with it.
        stop.join().unwrap().unwrap_err();
    });
    kill(pid, Signal::SIGKILL).unwrap();
    daemon.reap();
    daemon.up();
    assert_eq!(ended(&daemon, &id), (137, grace_over(3)));
    assert_eq!(ended(&daemon, &others), (137, OTHERS.to_owned()));
    if crate::shim::skipped("a_new_berthd_and_a_new_shim_know_whose_signal_it_was") {
        return;
    }
    let (asked, id) = stubborn(&daemon, &pod, "shim");
    let init = pid_of(&daemon, &id);
    std::thread::scope(|scope| {
        let stop = scope.spawn(|| daemon.stop_container(&id, 3));
        daemon.logged(&pod, &asked, "SIGTERM");
        kill_shim_of(init);
        stop.join().unwrap().unwrap();
    });
    assert_eq!(ended(&daemon, &id), (137, grace_over(3)));
    // A shim that does not even hear of it: berthd kills the cgroup, and the shim after it says so.
    let id = daemon.launch(&pod, &berth_tests::asked("silent", &["sleep", "inf"])).unwrap();
    let shim = shim_of(pid_of(&daemon, &id));
    kill(shim, Signal::SIGSTOP).unwrap();
    eventually("the stop to come through", || daemon.stop_container(&id, 0).is_ok().then_some(()));
    let told = "ended by SIGKILL, which Berth sent to all of its cgroup, because its shim did not end it";
    assert_eq!(ended(&daemon, &id), (137, told.to_owned()));
}
