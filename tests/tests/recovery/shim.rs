//! A shim dies; its container does not, where the kernel keeps exit statuses (Linux 6.15). Elsewhere the end is told.

use std::fs;

use berth_cri::v1 as cri;
use berth_tests::{Daemon, asked, eventually, images, read_log, skip};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

/// Says so and gives true where a takeover can't be tested.
pub fn skipped(test: &str) -> bool {
    if !crate::kernel_keeps() {
        skip(test, "the kernel keeps no exit statuses (before Linux 6.15)");
    }
    !crate::kernel_keeps()
}

pub fn pid_of(daemon: &Daemon, id: &str) -> i32 {
    daemon.details(id)["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()).unwrap()
}

fn inspect(daemon: &Daemon, container: &str) -> Value {
    let mut found: Vec<Value> = serde_json::from_str(&daemon.berth_ok(&["inspect", container])).unwrap();
    found.remove(0)
}

/// The shim of a container that it has started itself.
pub fn shim_of(init: i32) -> Pid {
    let status = fs::read_to_string(format!("/proc/{init}/status")).unwrap();
    let shim = status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap().trim();
    let name = fs::read_to_string(format!("/proc/{shim}/comm")).unwrap();
    assert!(name.starts_with("berth-shim"), "{name}");
    Pid::from_raw(shim.parse().unwrap())
}

pub fn kill_shim_of(init: i32) {
    kill(shim_of(init), Signal::SIGKILL).unwrap();
}

/// Waits until another shim answers for the container.
fn taken_over(daemon: &Daemon, id: &str) {
    eventually("another shim to take over", || (takeovers(daemon, id) > 0).then_some(()));
}

/// How often one has.
fn takeovers(daemon: &Daemon, id: &str) -> usize {
    let log = daemon.log();
    log.lines().filter(|line| line.contains("another took over") && line.contains(id)).count()
}

#[test]
fn the_shim_that_takes_over_checks_health_on() {
    if skipped("the_shim_that_takes_over_checks_health_on") {
        return;
    }
    let daemon = Daemon::with_fixture();
    const CHECKED: &str = "localhost/checked:1";
    daemon.load_image(CHECKED, &images::base().healthcheck(&["CMD", "cat", "/well"]));
    let quick = ["--health-interval", "50ms", "--health-retries", "2"];
    let id =
        daemon.berth_ok(&[&["run", "-d", "--name", "web"], &quick[..], &[CHECKED, "sleep", "inf"]].concat());
    let until = |status: &str| {
        eventually(&format!("it to be {status}"), || {
            (inspect(&daemon, "web")["State"]["Health"]["Status"] == status).then_some(())
        });
    };
    until("unhealthy");
    let pid = inspect(&daemon, "web")["State"]["Pid"].as_i64().unwrap();
    kill_shim_of(i32::try_from(pid).unwrap());
    taken_over(&daemon, &id);
    // What the dead one thought of it is thought on.
    let health = inspect(&daemon, "web")["State"]["Health"].clone();
    assert_eq!(health["Status"], "unhealthy", "{health}");
    assert!(health["FailingStreak"].as_u64() >= Some(2), "{health}");
    daemon.berth_ok(&["exec", "web", "write", "/well", "x"]);
    until("healthy");
    assert_eq!(inspect(&daemon, "web")["State"]["Pid"].as_i64(), Some(pid));
}

#[test]
fn a_container_outlives_its_shim() {
    if skipped("a_container_outlives_its_shim") {
        return;
    }
    let daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("shim");
    let (spam, trap) = (asked("spam", &["spam", "0", "100"]), asked("trap", &["trap", "--exit", "3"]));
    let (writes, ends) = (daemon.launch(&pod, &spam).unwrap(), daemon.launch(&pod, &trap).unwrap());
    let before = daemon.status(&writes).unwrap();
    for id in [&writes, &ends] {
        kill_shim_of(pid_of(&daemon, id));
        taken_over(&daemon, id);
    }
    assert_eq!(daemon.status(&writes).unwrap(), before);
    // Its log goes on: no line of what came after is missing.
    let lines = daemon.log_of(&pod, &spam).len();
    eventually("more lines", || (daemon.log_of(&pod, &spam).len() > lines + 5).then_some(()));
    assert_eq!(daemon.exec_ok(&writes, &["echo", "on"]), "on\n");
    daemon.stop_container(&writes, 0).unwrap();
    assert_eq!(daemon.status(&writes).unwrap().exit_code, 137);
    let log = daemon.log_of(&pod, &spam);
    let wrong: Vec<_> = (log.iter().enumerate())
        .filter(|(n, line)| !line.content.starts_with(&format!("line {:06} ", n + 1)))
        .collect();
    assert!(wrong.is_empty(), "{wrong:?}");
    // The code of one that ends by itself is known, though its parent is another now.
    daemon.stop_container(&ends, 10).unwrap();
    let ended = daemon.status(&ends).unwrap();
    assert_eq!((ended.exit_code, ended.message.as_str()), (3, ""));
    assert_eq!(daemon.run_to_end(&pod, &asked("next", &["true"])).unwrap().0.exit_code, 0);
}

#[test]
fn a_container_outlives_its_shim_and_the_daemon() {
    if skipped("a_container_outlives_its_shim_and_the_daemon") {
        return;
    }
    let mut daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("both");
    let spam = asked("spam", &["spam", "0", "100"]);
    let id = daemon.launch(&pod, &spam).unwrap();
    let init = pid_of(&daemon, &id);
    let shim = shim_of(init);
    daemon.kill9();
    kill(shim, Signal::SIGKILL).unwrap();
    // Nobody reads: it writes until its pipe is full, and waits. No signal ends it.
    daemon.up();
    taken_over(&daemon, &id);
    assert_eq!(pid_of(&daemon, &id), init);
    let lines = daemon.log_of(&pod, &spam).len();
    eventually("more lines", || (daemon.log_of(&pod, &spam).len() > lines + 5).then_some(()));
    let log = daemon.log_of(&pod, &spam);
    let in_place =
        |(n, line): &(usize, &berth_tests::Line)| line.content.starts_with(&format!("line {:06} ", n + 1));
    assert!(log.iter().enumerate().filter(|line| !in_place(line)).count() <= 1);
    kill(Pid::from_raw(init), Signal::SIGTERM).unwrap();
    assert_eq!(daemon.exited(&id).exit_code, 143);
}

#[test]
fn what_ends_while_nobody_watches_is_told_as_that() {
    if skipped("what_ends_while_nobody_watches_is_told_as_that") {
        return;
    }
    let mut daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("nobody");
    let spam = asked("spam", &["spam", "0", "100"]);
    let ends = daemon.launch(&pod, &spam).unwrap();
    let tty = asked("tty", &["spam", "0", "100"]).with(|config| config.tty = true);
    let hangs_up = daemon.launch(&pod, &tty).unwrap();
    daemon.logged_lines(&pod, &spam, 5);
    daemon.logged_lines(&pod, &tty, 5);
    let inits = [&ends, &hangs_up].map(|id| pid_of(&daemon, id));
    let shims = inits.map(shim_of);
    daemon.kill9();
    shims.into_iter().for_each(|shim| kill(shim, Signal::SIGKILL).unwrap());
    kill(Pid::from_raw(inits[0]), Signal::SIGKILL).unwrap();
    // The other one's terminal hangs up, as nobody holds its master.
    for init in inits {
        let reaped = || (!fs::exists(format!("/proc/{init}")).unwrap()).then_some(());
        eventually("it to end, and its new parent to reap it", reaped);
    }
    daemon.up();
    for (id, asked) in [(&ends, &spam), (&hangs_up, &tty)] {
        let ended = daemon.exited(id);
        assert_eq!((ended.exit_code, ended.reason.as_str()), (137, "Error"), "{ended:?}");
        assert!(
            ended.message.contains("its shim was killed") && ended.message.contains("exit code is lost"),
            "{ended:?}"
        );
        assert!(ended.started_at > 0, "{ended:?}");
        // What was in the log is there, whole.
        let log = daemon.log_of(&pod, asked);
        let wrong = (1..).zip(&log).find(|(n, line)| !line.content.starts_with(&format!("line {n:06} ")));
        assert!(wrong.is_none() && log.len() >= 5, "{wrong:?}");
    }
    assert_eq!(daemon.run_to_end(&pod, &asked("next", &["true"])).unwrap().0.exit_code, 0);
}

#[test]
fn the_shim_that_takes_over_restarts_too() {
    if skipped("the_shim_that_takes_over_restarts_too") {
        return;
    }
    let daemon = Daemon::with_fixture();
    let id = daemon.berth_ok(&[
        "run",
        "-d",
        "--name",
        "again",
        "--restart",
        "always",
        images::FIXTURE,
        "trap",
        "--exit",
        "3",
    ]);
    let init =
        inspect(&daemon, "again")["State"]["Pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()).unwrap();
    kill_shim_of(init);
    taken_over(&daemon, &id);
    kill(Pid::from_raw(init), Signal::SIGKILL).unwrap();
    let again = eventually("another run", || {
        let told = inspect(&daemon, "again");
        let pid = told["State"]["Pid"].as_i64()?;
        (told["RestartCount"] == 1 && pid != 0 && pid != i64::from(init)).then_some(pid)
    });
    // The new run is its own child: a kill of that shim is survived as well.
    kill_shim_of(i32::try_from(again).unwrap());
    // Whoever stops it just now asks the one that takes over.
    daemon.berth_ok(&["stop", "again"]);
    let told = inspect(&daemon, "again");
    assert_eq!((&told["State"]["Status"], &told["State"]["ExitCode"]), (&"exited".into(), &3.into()));
}

#[test]
fn the_shim_that_takes_over_counts_restarts_on() {
    if skipped("the_shim_that_takes_over_counts_restarts_on") {
        return;
    }
    let daemon = Daemon::with_fixture();
    let run = ["run", "-d", "--name", "twice", "--restart", "on-failure:2", images::FIXTURE, "sleep", "inf"];
    let id = daemon.berth_ok(&run);
    for restarts in 0..3 {
        let init = eventually("it to run", || {
            let told = inspect(&daemon, "twice");
            let pid = told["State"]["Pid"].as_i64().and_then(|pid| i32::try_from(pid).ok())?;
            (told["RestartCount"] == restarts && pid != 0).then_some(pid)
        });
        // Each run has another shim in the end: what one has counted the next one knows.
        let before = takeovers(&daemon, &id);
        kill_shim_of(init);
        eventually("another shim to take over", || (takeovers(&daemon, &id) > before).then_some(()));
        kill(Pid::from_raw(init), Signal::SIGKILL).unwrap();
    }
    assert_eq!(daemon.berth(&["wait", "twice"]).stdout, "137\n");
    assert_eq!(inspect(&daemon, "twice")["RestartCount"], 2);
}

#[test]
fn a_terminal_outlives_its_shim() {
    if skipped("a_terminal_outlives_its_shim") {
        return;
    }
    let daemon = Daemon::with_fixture();
    let id = daemon.berth_ok(&["run", "-dt", "--name", "tty", images::FIXTURE, "spam", "0", "100"]);
    let told = inspect(&daemon, "tty");
    let log = told["LogPath"].as_str().unwrap().to_owned();
    kill_shim_of(told["State"]["Pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()).unwrap());
    taken_over(&daemon, &id);
    let lines = read_log(log.as_ref()).len();
    eventually("more lines", || (read_log(log.as_ref()).len() > lines + 5).then_some(()));
    daemon.berth_ok(&["rm", "-f", "tty"]);
}

#[test]
fn what_cannot_be_taken_over_is_ended_and_told() {
    let daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("told");
    // It dies with its shim, as its program has not begun.
    let created = daemon.create(&pod, &asked("created", &["sleep", "inf"])).unwrap();
    kill_shim_of(pid_of(&daemon, &created));
    let ended = daemon.exited(&created);
    assert!(ended.exit_code == 137 && ended.message.contains("its shim was killed"), "{ended:?}");
    // Without the plan no other can take over.
    let id = daemon.launch(&pod, &asked("c", &["tree", "2"])).unwrap();
    fs::remove_file(daemon.state().join("containers").join(&id).join("plan")).unwrap();
    kill_shim_of(pid_of(&daemon, &id));
    let ended = daemon.exited(&id);
    assert!(ended.exit_code == 137 && ended.message.contains("its shim was killed"), "{ended:?}");
    // It had run.
    assert!(ended.started_at > 0 && ended.reason == "Error", "{ended:?}");
    for id in [&created, &id] {
        daemon.remove_container(id).unwrap();
    }
    // The pod is as good as before.
    assert_eq!(daemon.run_to_end(&pod, &asked("d", &["true"])).unwrap().0.exit_code, 0);
}

#[test]
fn a_stopped_shim_holds_up_nobody_and_is_heard_again() {
    let mut daemon = Daemon::with_fixture();
    let (pod, other) = (daemon.plain_pod("stopped"), daemon.plain_pod("other"));
    let spam = asked("spam", &["spam", "0", "100"]);
    let id = daemon.launch(&pod, &spam).unwrap();
    let beside = daemon.launch(&other, &asked("c", &["sleep", "inf"])).unwrap();
    let shim = shim_of(pid_of(&daemon, &id));
    daemon.kill9();
    kill(shim, Signal::SIGSTOP).unwrap();
    daemon.up();
    assert_eq!(daemon.status(&beside).unwrap().state(), cri::ContainerState::ContainerRunning);
    let told = daemon.status(&id).unwrap();
    assert_eq!(told.state(), cri::ContainerState::ContainerUnknown);
    assert!(told.message.contains("its shim does not answer"), "{told:?}");
    kill(shim, Signal::SIGCONT).unwrap();
    eventually("the container to be known again", || {
        (daemon.status(&id).unwrap().state() == cri::ContainerState::ContainerRunning).then_some(())
    });
    assert_eq!(daemon.exec_ok(&id, &["echo", "on"]), "on\n");
    daemon.stop_container(&id, 0).unwrap();
    assert_eq!(daemon.status(&id).unwrap().exit_code, 137);
    let log = daemon.log_of(&pod, &spam);
    assert!(log.iter().enumerate().all(|(n, line)| line.content.starts_with(&format!("line {:06} ", n + 1))));
}

#[test]
fn a_container_whose_shim_is_stopped_can_be_ended_and_removed() {
    let mut daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("ended");
    let [before, after] = ["before", "after"].map(|name| {
        let id = daemon.launch(&pod, &asked(name, &["trap", "--exit", "3"])).unwrap();
        let shim = shim_of(pid_of(&daemon, &id));
        (id, shim)
    });
    // Under the daemon that started it, and under one that has never heard its shim.
    kill(before.1, Signal::SIGSTOP).unwrap();
    daemon.stop_container(&before.0, 0).unwrap();
    daemon.kill9();
    kill(after.1, Signal::SIGSTOP).unwrap();
    daemon.up();
    daemon.stop_container(&after.0, 0).unwrap();
    for (id, shim) in [before, after] {
        let ended = daemon.status(&id).unwrap();
        assert_eq!(
            (ended.state(), ended.exit_code),
            (cri::ContainerState::ContainerExited, 137),
            "{ended:?}"
        );
        eventually("the shim to be gone", || kill(shim, None).is_err().then_some(()));
        daemon.remove_container(&id).unwrap();
    }
    assert_eq!(daemon.run_to_end(&pod, &asked("next", &["true"])).unwrap().0.exit_code, 0);
}

#[test]
fn an_exec_ends_with_its_shim_and_the_next_one_works() {
    if skipped("an_exec_ends_with_its_shim_and_the_next_one_works") {
        return;
    }
    let daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("exec");
    let id = daemon.launch(&pod, &asked("c", &["sleep", "inf"])).unwrap();
    let init = pid_of(&daemon, &id);
    std::thread::scope(|scope| {
        let call = scope.spawn(|| daemon.exec(&id, &["sleep", "86399"], 0));
        let runs = || berth_tests::processes_naming("86399").into_iter().next();
        eventually("the exec to run", runs);
        kill_shim_of(init);
        let told = call.join().unwrap().unwrap_err();
        assert_eq!(told.code(), tonic::Code::Unavailable, "{told}");
        assert!(told.message().contains("shim died"), "{told}");
    });
    taken_over(&daemon, &id);
    assert_eq!(daemon.exec_ok(&id, &["echo", "on"]), "on\n");
    assert_eq!(daemon.status(&id).unwrap().state(), cri::ContainerState::ContainerRunning);
}
