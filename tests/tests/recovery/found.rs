//! What runs is found again, and what ended meanwhile is known.

use std::fs;

use berth_cri::v1 as cri;
use berth_tests::{Daemon, Registry, Transport, asked, eventually, images, read_log, skip};
use serde_json::Value;

fn inspect(daemon: &Daemon, container: &str) -> Value {
    let text = daemon.berth_ok(&["inspect", container]);
    let mut found: Vec<Value> = serde_json::from_str(&text).expect("inspect prints JSON");
    found.remove(0)
}

/// A directory that the container waits on, so that the test says when it goes on.
const GO: &str = "/gate/go";

#[test]
fn no_line_and_no_exit_code_is_lost_while_the_daemon_is_dead() {
    let test = "no_line_and_no_exit_code_is_lost_while_the_daemon_is_dead";
    let image = match images::busybox() {
        Ok(image) => image,
        Err(reason) => return skip(test, &reason),
    };
    let Some(registry) = Registry::start(test, Transport::Http) else { return };
    registry.push("library/busybox:1", &image);
    let mut daemon = Daemon::start();
    let reference = registry.reference("library/busybox:1");
    assert_eq!(daemon.berth(&["pull", &reference]).code, 0);
    let gate = daemon.dir().join("gate");
    fs::create_dir(&gate).unwrap();
    let script = format!(
        "i=0; while [ $i -lt 500 ]; do i=$((i+1)); echo line $i; echo other $i >&2; \
         if [ $i = 100 ]; then while [ ! -e {GO} ]; do sleep 0.02; done; fi; done; exit 7"
    );
    let volume = format!("{}:/gate", gate.display());
    let id =
        daemon.berth_ok(&["run", "-d", "--name", "worker", "-v", &volume, &reference, "sh", "-c", &script]);
    let log = inspect(&daemon, "worker")["LogPath"].as_str().unwrap().to_owned();
    eventually("the first hundred lines", || {
        let lines = read_log(log.as_ref());
        lines.iter().any(|line| line.content == "line 100").then_some(())
    });

    daemon.kill9();
    fs::write(gate.join("go"), "").unwrap();
    // It writes on and ends, and nobody of ours but its shim is there to see it.
    let record = daemon.root().join("containers").join(&id).join("exit");
    eventually("the exit record", || record.is_file().then_some(()));

    daemon.up();
    let told = inspect(&daemon, "worker");
    assert_eq!((&told["State"]["Status"], &told["State"]["ExitCode"]), (&"exited".into(), &7.into()));
    assert_ne!(told["State"]["FinishedAt"], "0001-01-01T00:00:00Z");
    let waited = daemon.berth(&["wait", "worker"]);
    assert_eq!((waited.code, waited.stdout.as_str()), (7, "7\n"));
    let said = daemon.berth(&["logs", "worker"]);
    let expected = |word: &str| (1..=500).map(|n| format!("{word} {n}\n")).collect::<String>();
    assert!(said.stdout == expected("line"), "{} lines", said.stdout.lines().count());
    assert!(said.stderr == expected("other"), "{} lines", said.stderr.lines().count());
    assert_eq!(daemon.berth_ok(&["rm", "worker"]), "worker");
}

#[test]
fn a_running_container_is_found_again() {
    let mut daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("found");
    let spam = asked("spam", &["spam", "0", "100"]);
    let id = daemon.launch(&pod, &spam).unwrap();
    let standalone =
        daemon.berth_ok(&["run", "-d", "--name", "alone", images::FIXTURE, "trap", "--exit", "3"]);
    let (before, ip) = (daemon.status(&id).unwrap(), daemon.pod_ip(&pod));
    let pid = daemon.details(&id)["pid"].clone();

    daemon.kill9();
    let lines = daemon.log_of(&pod, &spam).len();
    // The shim writes on without anybody.
    eventually("more lines", || (daemon.log_of(&pod, &spam).len() > lines + 5).then_some(()));
    daemon.up();

    let after = daemon.status(&id).unwrap();
    assert_eq!(after, before);
    assert_eq!(daemon.details(&id)["pid"], pid);
    assert_eq!(daemon.pod_status(&pod.id).unwrap().state(), cri::PodSandboxState::SandboxReady);
    assert_eq!(daemon.pod_ip(&pod), ip);
    assert_eq!(daemon.exec_ok(&id, &["echo", "still here"]), "still here\n");
    assert_eq!(daemon.berth_ok(&["exec", "alone", "echo", "me too"]), "me too");
    assert_eq!(inspect(&daemon, "alone")["Id"], standalone.as_str());
    // It can be stopped, its end is seen, its log is whole.
    daemon.stop_container(&id, 0).unwrap();
    let ended = daemon.status(&id).unwrap();
    assert_eq!((ended.state(), ended.exit_code), (cri::ContainerState::ContainerExited, 137));
    let log = daemon.log_of(&pod, &spam);
    let wrong =
        log.iter().enumerate().find(|(n, line)| !line.content.starts_with(&format!("line {:06} ", n + 1)));
    assert!(wrong.is_none(), "{wrong:?}");
    daemon.berth_ok(&["stop", "alone"]);
    assert_eq!(inspect(&daemon, "alone")["State"]["ExitCode"], 3);
    // New ones start beside the old.
    let next = asked("next", &["echo", "new"]);
    assert_eq!(daemon.run_to_end(&pod, &next).unwrap().1[0].content, "new");
}

#[test]
fn an_orderly_stop_is_no_end_for_containers() {
    let mut daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("orderly");
    let id = daemon.launch(&pod, &asked("c", &["trap", "--exit", "9"])).unwrap();
    let created = daemon.create(&pod, &asked("later", &["exit", "4"])).unwrap();
    assert!(daemon.stop().success());
    daemon.up();
    assert_eq!(daemon.exec_ok(&id, &["echo", "on"]), "on\n");
    // One that was only created can still be started.
    daemon.start_container(&created).unwrap();
    assert_eq!(daemon.exited(&created).exit_code, 4);
    daemon.stop_container(&id, 10).unwrap();
    assert_eq!(daemon.status(&id).unwrap().exit_code, 9);
}

#[test]
fn what_ended_meanwhile_is_known_in_cri_too() {
    let mut daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("meanwhile");
    let gate = daemon.dir().join("gate");
    fs::create_dir(&gate).unwrap();
    let volume = cri::Mount {
        host_path: gate.display().to_string(),
        container_path: "/gate".into(),
        ..Default::default()
    };
    let waits = asked("waits", &["wait-file", GO]).mount(volume);
    let id = daemon.launch(&pod, &waits).unwrap();
    let eats = asked("eats", &["sleep", "inf"]);
    let killed = daemon.launch(&pod, &eats).unwrap();
    let pid = daemon.details(&killed)["pid"].as_i64().unwrap();
    daemon.kill9();
    fs::write(gate.join("go"), "").unwrap();
    let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    for id in [&id, &killed] {
        let record = daemon.root().join("containers").join(id).join("exit");
        eventually("the exit record", || record.is_file().then_some(()));
    }
    daemon.up();
    let status = daemon.status(&id).unwrap();
    assert_eq!((status.state(), status.exit_code), (cri::ContainerState::ContainerExited, 0));
    assert_eq!((status.reason.as_str(), status.finished_at > status.started_at), ("Completed", true));
    let status = daemon.status(&killed).unwrap();
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "Error"));
}

#[test]
fn restarts_go_on_without_the_daemon() {
    let mut daemon = Daemon::with_fixture();
    daemon.berth_ok(&["run", "-d", "--name", "loop", "--restart", "always", images::FIXTURE, "echo", "run"]);
    let log = inspect(&daemon, "loop")["LogPath"].as_str().unwrap().to_owned();
    daemon.kill9();
    let runs = || read_log(log.as_ref()).len();
    let before = runs();
    eventually("two runs more", || (runs() >= before + 2).then_some(()));
    daemon.up();
    let told = inspect(&daemon, "loop");
    assert!(told["RestartCount"].as_u64().unwrap() as usize > before, "{told}");
    daemon.berth_ok(&["stop", "loop"]);
    let ended = runs();
    assert_eq!(inspect(&daemon, "loop")["State"]["Status"], "exited");
    assert_eq!(daemon.berth_ok(&["logs", "loop"]).lines().count(), ended);
}

#[test]
fn a_pods_records_say_the_same_after_a_restart() {
    let mut daemon = Daemon::with_fixture();
    let mut config = berth_tests::pod("record");
    config.labels.insert("ä".into(), "\u{1f40b}".into());
    config.annotations.insert("long".into(), "x".repeat(200_000));
    let pod = daemon.run_pod(config).unwrap();
    let raw = asked("c", &["exit", "3"]).env("RAW", b"\xff\xfe");
    let id = daemon.launch(&pod, &raw).unwrap();
    daemon.exited(&id);
    let stopped = daemon.plain_pod("stopped");
    daemon.stop_pod(&stopped.id).unwrap();
    let all = |daemon: &Daemon| {
        let mut pods = daemon.list_pods(cri::PodSandboxFilter::default());
        pods.sort_by(|left, right| left.id.cmp(&right.id));
        (pods, daemon.list_containers(cri::ContainerFilter::default()), daemon.status(&id).unwrap())
    };
    let before = all(&daemon);
    daemon.restart();
    assert_eq!(all(&daemon), before);
    daemon.kill9();
    daemon.up();
    assert_eq!(all(&daemon), before);
    // The same request gets the same pod, also from a daemon that did not make it.
    assert_eq!(daemon.run_pod(pod.config.clone()).unwrap().id, pod.id);
    assert_eq!(daemon.create(&pod, &raw).unwrap(), id);
}

/// As one of a later version may be: a profile that this one took and that one does not understand.
#[test]
fn a_container_whose_profile_is_not_understood_any_more_is_found_and_can_be_stopped() {
    let mut daemon = Daemon::with_fixture();
    let profile = daemon.dir().join("profile.json");
    let text = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["personality"],
        "action": "SCMP_ACT_ERRNO", "args": [{"index": 0, "value": 77, "op": "SCMP_CMP_EQ"}]}]}"#;
    fs::write(&profile, text).unwrap();
    let under = |name: &str| {
        asked(name, &["trap", "--exit", "3"]).secured(|security| {
            let kind = cri::security_profile::ProfileType::Localhost;
            let localhost_ref = profile.display().to_string();
            security.seccomp = Some(cri::SecurityProfile { profile_type: kind.into(), localhost_ref });
        })
    };
    let pod = daemon.plain_pod("profile");
    let (odd, even) = (under("odd"), under("even"));
    let (id, other) = (daemon.launch(&pod, &odd).unwrap(), daemon.launch(&pod, &even).unwrap());
    daemon.logged(&pod, &odd, "ready");
    assert_eq!(daemon.exec_ok(&id, &["echo", "on"]), "on\n");
    let before = daemon.status(&id).unwrap();
    daemon.kill9();
    let record = daemon.root().join("containers").join(&id).join("record");
    let mut bytes = fs::read(&record).unwrap();
    let argument = br#""index":0"#;
    let at = bytes.windows(argument.len()).position(|window| window == argument).unwrap();
    bytes[at + argument.len() - 1] = b'9';
    fs::write(&record, bytes).unwrap();
    daemon.up();
    assert_eq!(daemon.status(&id).unwrap(), before);
    let refused = daemon.exec(&id, &["echo", "on"], 10).unwrap_err();
    assert_eq!(refused.code(), tonic::Code::FailedPrecondition, "{refused}");
    for word in ["seccomp profile", "this berthd can't read", "make the container again"] {
        assert!(refused.message().contains(word), "{refused}");
    }
    assert_eq!(daemon.exec_ok(&other, &["echo", "on"]), "on\n");
    daemon.stop_container(&id, 30).unwrap();
    assert_eq!(daemon.status(&id).unwrap().exit_code, 3);
    daemon.remove_container(&id).unwrap();
    assert!(daemon.status(&id).is_err());
}
