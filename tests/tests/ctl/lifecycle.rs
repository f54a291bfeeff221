//! create, start, stop, restart, kill, exec, rm, wait; restart policies.

use berth_tests::{Daemon, eventually};

use crate::{IMAGE, inspect, wait};

#[test]
fn a_container_starts_stops_and_starts_again() {
    let daemon = Daemon::with_fixture();
    let id = daemon.berth_ok(&["create", "--name", "web", IMAGE, "trap", "--exit", "4"]);
    assert_eq!(inspect(&daemon, "web")["State"]["Status"], "created");
    daemon.berth_ok(&["start", "web"]);
    let ready = |lines: usize| {
        eventually("it to be ready", || {
            let log = daemon.berth_ok(&["logs", "web"]);
            (log.lines().filter(|line| *line == "ready").count() == lines).then_some(())
        });
    };
    ready(1);
    daemon.berth_ok(&["stop", "web"]);
    let told = inspect(&daemon, "web");
    assert_eq!((&told["State"]["Status"], &told["State"]["ExitCode"]), (&"exited".into(), &4.into()));
    assert_eq!(wait(&daemon, "web"), 4);
    // The same container: its id, its files, its log go on.
    daemon.berth_ok(&["start", "web"]);
    ready(2);
    assert_eq!(inspect(&daemon, "web")["Id"], id.as_str());
    daemon.berth_ok(&["exec", "web", "write", "/tmp/kept", "here"]);
    daemon.berth_ok(&["restart", "web"]);
    ready(3);
    assert_eq!(daemon.berth_ok(&["exec", "web", "cat", "/tmp/kept"]), "here");
    daemon.berth_ok(&["stop", "web"]);
    daemon.berth_ok(&["stop", "web"]);
}

#[test]
fn stop_waits_its_time_and_kill_does_not() {
    let daemon = Daemon::with_fixture();
    daemon.berth_ok(&["run", "-d", "--name", "deaf", IMAGE, "trap", "USR1"]);
    let logged = |line: &str| {
        eventually(line, || {
            daemon.berth_ok(&["logs", "deaf"]).lines().any(|found| found == line).then_some(())
        });
    };
    logged("ready");
    daemon.berth_ok(&["kill", "-s", "USR1", "deaf"]);
    logged("SIGUSR1");
    daemon.berth_ok(&["stop", "-t", "1", "deaf"]);
    logged("SIGTERM");
    assert_eq!(inspect(&daemon, "deaf")["State"]["ExitCode"], 137);
    daemon.berth_ok(&["start", "deaf"]);
    daemon.berth_ok(&["kill", "deaf"]);
    assert_eq!(wait(&daemon, "deaf"), 137);
    let refused = daemon.berth(&["kill", "-s", "NOSUCH", "deaf"]);
    assert!(refused.code == 125 && refused.stderr.contains("NOSUCH"), "{refused:?}");
}

#[test]
fn exec_runs_beside_and_tells_its_end() {
    let daemon = Daemon::with_fixture();
    daemon.berth_ok(&["run", "-d", "--name", "box", "-e", "OF=container", IMAGE, "sleep", "inf"]);
    let said = daemon.berth(&["exec", "box", "exit", "42"]);
    assert_eq!((said.code, said.stderr.as_str()), (42, ""));
    assert_eq!(daemon.berth_ok(&["exec", "-w", "/tmp", "box", "pwd"]), "/tmp");
    assert_eq!(daemon.berth_ok(&["exec", "-u", "app", "box", "id"]), "uid=1000 gid=1000 groups=1000,2001");
    let env = daemon.berth_ok(&["exec", "-e", "MORE=1", "box", "env"]);
    assert!(env.contains("OF=container\n") && env.contains("MORE=1"), "{env}");
    let said = daemon.berth_with(&["exec", "-i", "box", "lines"], b"one\n");
    assert_eq!((said.code, said.stdout.as_str()), (0, "got: one\n"));
    let missing = daemon.berth(&["exec", "box", "nosuch"]);
    assert_eq!(missing.code, 127, "{missing:?}");
    let closed = daemon.berth(&["exec", "box", "/etc/passwd"]);
    assert_eq!(closed.code, 126, "{closed:?}");
    daemon.berth_ok(&["kill", "box"]);
    wait(&daemon, "box");
    let ended = daemon.berth(&["exec", "box", "true"]);
    assert_eq!(ended.code, 125, "{ended:?}");
    assert!(ended.stderr.contains("not running"), "{ended:?}");
}

#[test]
fn a_running_container_is_removed_only_by_force() {
    let daemon = Daemon::with_fixture();
    daemon.berth_ok(&["run", "-d", "--name", "on", IMAGE, "sleep", "inf"]);
    let refused = daemon.berth(&["rm", "on"]);
    assert_eq!(refused.code, 125, "{refused:?}");
    assert!(refused.stderr.contains("-f") || refused.stderr.contains("stop"), "{refused:?}");
    assert_eq!(inspect(&daemon, "on")["State"]["Running"], true);
    daemon.berth_ok(&["rm", "-f", "on"]);
    assert_eq!(daemon.berth(&["inspect", "on"]).code, 125);
    let missing = daemon.berth(&["rm", "on"]);
    assert_eq!(missing.code, 125);
    let missing = daemon.berth(&["rm", "-f", "on"]);
    assert!(missing.code == 0 && missing.stdout.is_empty(), "{missing:?}");
    assert!(missing.stderr.contains("on"), "{missing:?}");
}

#[test]
fn one_of_several_that_fails_does_not_keep_the_rest() {
    let daemon = Daemon::with_fixture();
    for name in ["a", "b"] {
        daemon.berth_ok(&["create", "--name", name, IMAGE]);
    }
    let said = daemon.berth(&["rm", "a", "nosuch", "b"]);
    assert_eq!((said.code, said.stdout.as_str()), (125, "a\nb\n"));
    assert!(said.stderr.contains("nosuch"), "{said:?}");
}

#[test]
fn a_failing_container_is_restarted_as_often_as_asked() {
    let daemon = Daemon::with_fixture();
    daemon.berth_ok(&["run", "-d", "--name", "fails", "--restart", "on-failure:2", IMAGE, "exit", "3"]);
    assert_eq!(wait(&daemon, "fails"), 3);
    let told = inspect(&daemon, "fails");
    assert_eq!((&told["RestartCount"], &told["State"]["ExitCode"]), (&2.into(), &3.into()));
    assert_eq!(told["HostConfig"]["RestartPolicy"]["MaximumRetryCount"], 2);
    // One that succeeds is not.
    daemon.berth_ok(&["run", "-d", "--name", "works", "--restart", "on-failure:2", IMAGE, "true"]);
    assert_eq!(wait(&daemon, "works"), 0);
    assert_eq!(inspect(&daemon, "works")["RestartCount"], 0);
}

#[test]
fn one_that_always_runs_ends_when_it_is_told_to() {
    let daemon = Daemon::with_fixture();
    daemon.berth_ok(&["run", "-d", "--name", "always", "--restart", "always", IMAGE, "echo", "again"]);
    eventually("three runs", || (daemon.berth_ok(&["logs", "always"]).lines().count() >= 3).then_some(()));
    daemon.berth_ok(&["stop", "always"]);
    let count = inspect(&daemon, "always")["RestartCount"].clone();
    assert_eq!(inspect(&daemon, "always")["State"]["Status"], "exited");
    assert!(count.as_u64().unwrap() >= 2, "{count}");
    // Killed is not told to end.
    daemon.berth_ok(&["run", "-d", "--name", "killed", "--restart", "always", IMAGE, "sleep", "inf"]);
    let pid = |name: &str| inspect(&daemon, name)["State"]["Pid"].as_i64().unwrap();
    let first = pid("killed");
    let first = nix::unistd::Pid::from_raw(i32::try_from(first).unwrap());
    nix::sys::signal::kill(first, nix::sys::signal::Signal::SIGKILL).unwrap();
    eventually("a second run", || {
        let told = inspect(&daemon, "killed");
        let again = told["RestartCount"] == 1 && told["State"]["Status"] == "running";
        (again && pid("killed") != i64::from(first.as_raw())).then_some(())
    });
    daemon.berth_ok(&["rm", "-f", "killed"]);
}

#[test]
fn a_waiting_restart_can_be_removed() {
    let daemon = Daemon::with_fixture();
    daemon.berth_ok(&["run", "-d", "--name", "loop", "--restart", "always", IMAGE, "exit", "1"]);
    eventually("a pause between runs", || {
        (inspect(&daemon, "loop")["State"]["Status"] == "restarting").then_some(())
    });
    daemon.berth_ok(&["rm", "-f", "loop"]);
    assert_eq!(daemon.berth_ok(&["ps", "-aq"]), "");
}
