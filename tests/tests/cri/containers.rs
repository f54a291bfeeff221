//! Containers: their life, exec, stop and what a kubelet asks of them.

use std::collections::HashMap;

use berth_cri::v1 as cri;
use berth_tests::{Daemon, Stream, asked, eventually, images};
use tonic::Code;

const NOBODY: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

#[test]
fn a_container_is_created_started_and_ends_by_itself() {
    let daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("life");
    let mut asked = asked("c", &["exit", "7"]);
    asked.0.labels.insert("io.kubernetes.container.name".into(), "c".into());
    asked.0.annotations.insert("io.kubernetes.container.hash".into(), "ä\t1".into());
    let id = daemon.create(&pod, &asked).unwrap();
    let created = daemon.status(&id).unwrap();
    assert_eq!(created.state(), cri::ContainerState::ContainerCreated);
    assert!(created.created_at > 0);
    assert_eq!((created.started_at, created.finished_at), (0, 0));

    daemon.start_container(&id).unwrap();
    let ended = daemon.exited(&id);
    assert_eq!((ended.exit_code, ended.reason.as_str()), (7, "Error"));
    assert!(ended.created_at <= ended.started_at && ended.started_at <= ended.finished_at, "{ended:?}");
    assert_eq!((&ended.labels, &ended.annotations), (&asked.0.labels, &asked.0.annotations));
    assert_eq!(ended.metadata, asked.0.metadata);
    assert_eq!(ended.log_path, daemon.log_path_of(&pod, &asked).to_str().unwrap());

    daemon.remove_container(&id).unwrap();
    assert_eq!(daemon.status(&id).unwrap_err().code(), Code::NotFound);
    daemon.remove_container(&id).unwrap();
}

#[test]
fn an_end_without_error_is_completed() {
    let daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("ok");
    let (status, _) = daemon.run_to_end(&pod, &asked("c", &["true"])).unwrap();
    assert_eq!((status.exit_code, status.reason.as_str()), (0, "Completed"));
}

#[test]
fn a_signal_is_128_and_its_number() {
    let daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("signal");
    let (status, _) = daemon.run_to_end(&pod, &asked("c", &["crash"])).unwrap();
    assert_eq!((status.exit_code, status.reason.as_str()), (139, "Error"));
}

#[test]
fn the_images_id_is_the_same_everywhere() {
    let daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("image");
    let id = daemon.launch(&pod, &asked("c", &["sleep", "inf"])).unwrap();
    let request = cri::ListImagesRequest::default();
    let image = daemon.call(daemon.images().list_images(request)).unwrap().images.remove(0);
    let status = daemon.status(&id).unwrap();
    let listed = daemon.list_containers(cri::ContainerFilter::default()).remove(0);
    assert_eq!(
        [status.image_ref, status.image_id, listed.image_ref, listed.image_id],
        std::array::from_fn::<_, 4, _>(|_| image.id.clone())
    );
    assert_eq!(status.image.unwrap().image, images::FIXTURE);
}

#[test]
fn stop_is_a_signal_then_a_kill() {
    let daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("stop");
    let polite = asked("polite", &["trap", "--exit", "5"]);
    let id = daemon.launch(&pod, &polite).unwrap();
    daemon.logged(&pod, &polite, "ready");
    daemon.stop_container(&id, 20).unwrap();
    let status = daemon.status(&id).unwrap();
    assert_eq!((status.state(), status.exit_code), (cri::ContainerState::ContainerExited, 5));
    daemon.logged(&pod, &polite, "SIGTERM");

    let deaf = asked("deaf", &["trap"]);
    let id = daemon.launch(&pod, &deaf).unwrap();
    daemon.logged(&pod, &deaf, "ready");
    daemon.stop_container(&id, 1).unwrap();
    let status = daemon.status(&id).unwrap();
    assert_eq!((status.state(), status.exit_code), (cri::ContainerState::ContainerExited, 137));
    daemon.logged(&pod, &deaf, "SIGTERM");
    daemon.stop_container(&id, 1).unwrap();

    // Without grace there is no signal to hear.
    let now = asked("now", &["trap"]);
    let id = daemon.launch(&pod, &now).unwrap();
    daemon.logged(&pod, &now, "ready");
    daemon.stop_container(&id, 0).unwrap();
    assert_eq!(daemon.status(&id).unwrap().exit_code, 137);
    assert_eq!(daemon.log_of(&pod, &now).len(), 1);
}

#[test]
fn the_stop_signal_is_the_configurations_or_the_images() {
    let daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("signal");
    let asked_for =
        asked("own", &["trap", "QUIT"]).with(|config| config.stop_signal = cri::Signal::Sigquit.into());
    let id = daemon.launch(&pod, &asked_for).unwrap();
    daemon.logged(&pod, &asked_for, "ready");
    daemon.stop_container(&id, 1).unwrap();
    daemon.logged(&pod, &asked_for, "SIGQUIT");
    assert_eq!(daemon.status(&id).unwrap().stop_signal(), cri::Signal::Sigquit);

    daemon.load_image("localhost/usr1:1", &images::base().stop_signal("SIGUSR1"));
    let of_image = asked("image", &["trap", "USR1"]).image("localhost/usr1:1");
    let id = daemon.launch(&pod, &of_image).unwrap();
    daemon.logged(&pod, &of_image, "ready");
    daemon.stop_container(&id, 1).unwrap();
    daemon.logged(&pod, &of_image, "SIGUSR1");
}

#[test]
fn stop_takes_the_whole_tree() {
    let daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("tree");
    let tree = asked("tree", &["tree", "5"]);
    let id = daemon.launch(&pod, &tree).unwrap();
    eventually("five children", || (daemon.log_of(&pod, &tree).len() == 5).then_some(()));
    daemon.stop_container(&id, 0).unwrap();
    // The leak check looks for the children.
    daemon.remove_container(&id).unwrap();
}

#[test]
fn a_running_container_can_be_removed() {
    let daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("remove");
    let id = daemon.launch(&pod, &asked("c", &["trap"])).unwrap();
    daemon.remove_container(&id).unwrap();
    assert_eq!(daemon.status(&id).unwrap_err().code(), Code::NotFound);
    // A created one too.
    let id = daemon.create(&pod, &asked("d", &["true"])).unwrap();
    daemon.remove_container(&id).unwrap();
    assert!(daemon.list_containers(cri::ContainerFilter::default()).is_empty());
}

#[test]
fn unknown_containers_are_told_from_ended_ones() {
    let daemon = Daemon::start();
    daemon.stop_container(NOBODY, 1).unwrap();
    daemon.remove_container(NOBODY).unwrap();
    assert_eq!(daemon.status(NOBODY).unwrap_err().code(), Code::NotFound);
    assert_eq!(daemon.start_container(NOBODY).unwrap_err().code(), Code::NotFound);
    assert_eq!(daemon.exec(NOBODY, &["true"], 1).unwrap_err().code(), Code::NotFound);
}

#[test]
fn a_container_starts_once() {
    let daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("once");
    let id = daemon.launch(&pod, &asked("c", &["true"])).unwrap();
    daemon.exited(&id);
    let refused = daemon.start_container(&id).unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    assert_eq!(daemon.exec(&id, &["true"], 1).unwrap_err().code(), Code::FailedPrecondition);
}

#[test]
fn a_retry_of_create_gets_the_container_that_is_there() {
    let daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("retry");
    let first = asked("c", &["true"]);
    let id = daemon.create(&pod, &first).unwrap();
    assert_eq!(daemon.create(&pod, &first).unwrap(), id);
    let refused = daemon.create(&pod, &asked("c", &["false"])).unwrap_err();
    assert_eq!(refused.code(), Code::AlreadyExists, "{refused}");
    let next = first.with(|config| config.metadata.as_mut().unwrap().attempt = 1);
    assert_ne!(daemon.create(&pod, &next).unwrap(), id);
}

#[test]
fn lists_are_filtered_by_id_pod_state_and_labels() {
    let daemon = Daemon::with_fixture();
    let (one, two) = (daemon.plain_pod("one"), daemon.plain_pod("two"));
    let mut asked_for = asked("a", &["sleep", "inf"]);
    asked_for.0.labels.insert("role".into(), "main".into());
    let a = daemon.launch(&one, &asked_for).unwrap();
    let b = daemon.create(&two, &asked("b", &["true"])).unwrap();
    let all = cri::ContainerFilter::default;
    let ids = |filter| -> Vec<String> {
        daemon.list_containers(filter).into_iter().map(|container| container.id).collect()
    };
    assert_eq!(ids(all()).len(), 2);
    assert_eq!(ids(cri::ContainerFilter { id: a.clone(), ..all() }), [a.as_str()]);
    assert_eq!(ids(cri::ContainerFilter { pod_sandbox_id: two.id.clone(), ..all() }), [b.as_str()]);
    let selector = HashMap::from([("role".to_owned(), "main".to_owned())]);
    assert_eq!(ids(cri::ContainerFilter { label_selector: selector, ..all() }), [a.as_str()]);
    let state = |state: cri::ContainerState| cri::ContainerFilter {
        state: Some(cri::ContainerStateValue { state: state.into() }),
        ..all()
    };
    assert_eq!(ids(state(cri::ContainerState::ContainerRunning)), [a.as_str()]);
    assert_eq!(ids(state(cri::ContainerState::ContainerCreated)), [b.as_str()]);
    assert!(ids(state(cri::ContainerState::ContainerExited)).is_empty());
}

#[test]
fn exec_tells_output_errors_and_exit_code() {
    let daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("exec");
    let id = daemon
        .launch(&pod, &asked("c", &["sleep", "inf"]).env("OF", b"container").env("RAW", b"\xfe\xff"))
        .unwrap();
    let answer = daemon.exec(&id, &["echo", "a  b"], 0).unwrap();
    assert_eq!((&answer.stdout[..], &answer.stderr[..], answer.exit_code), (&b"a  b\n"[..], &b""[..], 0));
    let answer = daemon.exec(&id, &["stderr", "wrong"], 0).unwrap();
    assert_eq!((&answer.stdout[..], &answer.stderr[..], answer.exit_code), (&b""[..], &b"wrong\n"[..], 0));
    assert_eq!(daemon.exec(&id, &["exit", "42"], 0).unwrap().exit_code, 42);
    assert_eq!(daemon.exec(&id, &["crash"], 0).unwrap().exit_code, 139);
    let env = daemon.exec(&id, &["env"], 0).unwrap().stdout;
    for line in [&b"OF=container\n"[..], b"RAW=\xfe\xff\n"] {
        assert!(env.windows(line.len()).any(|window| window == line), "{env:?}");
    }
    // It is in the container: its processes, its host name.
    let info: serde_json::Value = serde_json::from_str(&daemon.exec_ok(&id, &["info"])).unwrap();
    assert_eq!(info["hostname"], "exec");
    // A daemonized grandchild that keeps the streams open keeps nobody waiting.
    assert!(daemon.exec_ok(&id, &["daemonize", "inf"]).starts_with("daemon "));
}

#[test]
fn a_command_that_is_not_there_is_told() {
    let daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("exec");
    let id = daemon.launch(&pod, &asked("c", &["sleep", "inf"])).unwrap();
    let missing = daemon.exec(&id, &["nosuch"], 1).unwrap_err();
    assert!(missing.message().contains("nosuch") && missing.message().contains("PATH"), "{missing}");
    let empty = daemon.exec(&id, &[], 1).unwrap_err();
    assert_eq!(empty.code(), Code::InvalidArgument);
}

#[test]
fn an_exec_that_takes_too_long_is_killed_with_its_tree() {
    let daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("slow");
    // In the pod's process namespace of the container all its processes can be counted.
    let id = daemon.launch(&pod, &asked("c", &["sleep", "inf"])).unwrap();
    let late = daemon.exec(&id, &["tree", "3"], 1).unwrap_err();
    assert_eq!(late.code(), Code::DeadlineExceeded, "{late}");
    eventually("the exec's tree to be gone", || {
        let names = daemon.exec_ok(&id, &["ls", "/proc"]);
        let pids = names.lines().filter(|name| name.bytes().all(|byte| byte.is_ascii_digit())).count();
        // Process 1 and the one that asks; zombies of the tree are process 1's children by now.
        (pids <= 2 + 4 && running(&daemon, &id) == 1).then_some(())
    });
    assert_eq!(daemon.status(&id).unwrap().state(), cri::ContainerState::ContainerRunning);
    let late = daemon.exec(&id, &["daemonize", "--stay"], 1).unwrap_err();
    assert_eq!(late.code(), Code::DeadlineExceeded, "{late}");
    eventually("the daemonized grandchild to be gone", || (running(&daemon, &id) == 1).then_some(()));
}

/// How many processes of a container are no zombies, but for the one that counts.
fn running(daemon: &Daemon, id: &str) -> usize {
    let names = daemon.exec_ok(id, &["ls", "/proc"]);
    let pids = names.lines().filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()));
    pids.filter(|pid| {
        let status = daemon.exec(id, &["cat", &format!("/proc/{pid}/status")], 5).expect("exec");
        let status = String::from_utf8_lossy(&status.stdout).into_owned();
        !status.is_empty() && !status.contains("State:\tZ")
    })
    .count()
}

#[test]
fn much_output_of_an_exec_is_all_there() {
    let daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("much");
    let id = daemon.launch(&pod, &asked("c", &["sleep", "inf"])).unwrap();
    let answer = daemon.exec(&id, &["spam", "2000", "0", "1000"], 30).unwrap();
    assert_eq!((answer.exit_code, answer.stdout.len()), (0, 2000 * 1001));
    // More than a message may hold: cut, not failed, and the program runs to its end.
    let answer = daemon.exec(&id, &["spam", "20000", "0", "1000"], 60).unwrap();
    assert_eq!(answer.exit_code, 0);
    assert!(answer.stdout.len() > 15 << 20 && answer.stdout.len() <= 16 << 20, "{}", answer.stdout.len());
}

#[test]
fn containers_get_what_the_configuration_says() {
    let daemon = Daemon::with_fixture();
    let image =
        images::base().entrypoint(&["/bin/fixture"]).cmd(&["info"]).env("FROM", "image").env("BOTH", "image");
    daemon.load_image("localhost/full:1", &image.workdir("/srv"));
    let pod = daemon.plain_pod("config");
    let plain = asked("plain", &[]).image("localhost/full:1").env("BOTH", b"config").env("EMPTY", b"");
    let info = daemon.info(&pod, &plain);
    assert_eq!(info["args"], serde_json::json!(["/bin/fixture", "info"]));
    let env = |name: &str| info["env"][name].clone();
    assert_eq!([env("FROM"), env("BOTH"), env("EMPTY")], ["image", "config", ""]);
    assert_eq!(info["cwd"], "/srv");
    assert_eq!(info["hostname"], "config");
    // Arguments replace the image's CMD and keep its entry point; a command replaces both.
    let words = asked("words", &["echo", "hi"]).image("localhost/full:1");
    assert_eq!(daemon.run_to_end(&pod, &words).unwrap().1[0].content, "hi");
    let command = asked("command", &["b"])
        .image("localhost/full:1")
        .with(|config| config.command = vec!["echo".into(), "a".into()]);
    assert_eq!(daemon.run_to_end(&pod, &command).unwrap().1[0].content, "a b");
    // A working directory is made where it is missing.
    let elsewhere = asked("elsewhere", &[])
        .image("localhost/full:1")
        .with(|config| config.working_dir = "/srv/deep/er".into());
    assert_eq!(daemon.info(&pod, &elsewhere)["cwd"], "/srv/deep/er");
}

#[test]
fn a_variable_need_not_be_utf8() {
    let daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("bytes");
    let id = daemon.launch(&pod, &asked("c", &["sleep", "inf"]).env("RAW", b"\xff=\xfe\n")).unwrap();
    let environ = daemon.exec(&id, &["cat", "/proc/1/environ"], 5).unwrap().stdout;
    let found = environ.split(|byte| *byte == 0).any(|pair| pair == b"RAW=\xff=\xfe\n");
    assert!(found, "{environ:?}");
}

#[test]
fn standard_input_is_closed_unless_asked_for() {
    let daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("stdin");
    let (status, log) = daemon.run_to_end(&pod, &asked("c", &["lines"])).unwrap();
    assert_eq!((status.exit_code, log.len()), (0, 0));
    let open = asked("open", &["lines"]).with(|config| config.stdin = true);
    let id = daemon.launch(&pod, &open).unwrap();
    assert_eq!(daemon.exec_ok(&id, &["echo", "x"]), "x\n");
    assert_eq!(daemon.status(&id).unwrap().state(), cri::ContainerState::ContainerRunning);
}

#[test]
fn a_terminal_is_one() {
    let daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("tty");
    let asked = asked("tty", &["info"]).with(|config| config.tty = true);
    let info = daemon.info(&pod, &asked);
    assert_eq!(info["tty"], serde_json::json!([true, true, true]));
    assert!(daemon.log_of(&pod, &asked).iter().all(|line| line.stream == Stream::Stdout));
}

#[test]
fn the_barest_image_runs() {
    let daemon = Daemon::start();
    daemon.load_scratch();
    let pod = daemon.plain_pod("bare");
    let info = daemon.info(&pod, &asked("c", &[]).image(images::SCRATCH));
    assert_eq!((&info["uid"], &info["cwd"]), (&0.into(), &"/".into()));
    assert!(info["mounts"].as_array().unwrap().iter().any(|mount| mount["target"] == "/proc"));
}

#[test]
fn stats_tell_what_a_container_uses() {
    let daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("stats");
    let eat = asked("eat", &["eat", "20M"]);
    let id = daemon.launch(&pod, &eat).unwrap();
    daemon.logged(&pod, &eat, "ate 20971520 bytes");
    let request = cri::ContainerStatsRequest { container_id: id.clone() };
    let stats = daemon.call(daemon.runtime().container_stats(request)).unwrap().stats.unwrap();
    assert_eq!(stats.attributes.unwrap().id, id);
    let memory = stats.memory.unwrap();
    assert!(memory.usage_bytes.unwrap().value >= 20 << 20, "{memory:?}");
    let cpu = stats.cpu.unwrap();
    assert!(cpu.usage_core_nano_seconds.unwrap().value > 0);
    assert!(cpu.timestamp > 0);
    let listed =
        daemon.call(daemon.runtime().list_container_stats(cri::ListContainerStatsRequest::default()));
    assert_eq!(listed.unwrap().stats.len(), 1);
}
