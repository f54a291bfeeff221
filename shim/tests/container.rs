//! One container's life through the shim's own door: launch, log, exec, stop, restart, exit record. Needs root and
//! /bin/busybox.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::os::fd::AsFd;

use berth_launch::v1::{
    Attach, Exec, ExecExited, Kill, Process, ReopenLog, Restart, Shutdown, Start, Status, Stdio, Step, Stop,
    User, event, reply, request::Call, restart::Policy, status, stdio, user,
};
use support::container::Container;

#[test]
fn a_container_writes_its_log_and_leaves_its_exit_record() {
    let mut container = Container::new();
    let script = "echo $$ $(hostname); echo oops >&2; printf rest; exit 7";
    let mut client = container.start(&container.plan(&["sh", "-c", script]));
    let exit = client.exited();
    assert_eq!((exit.exit_code, exit.signal), (7, 0));
    let log = container.log();
    for line in ["stdout F 1 box", "stdout P rest", "stderr F oops"] {
        assert!(log.iter().any(|l| l == line), "{log:?}");
    }
    assert_eq!(container.record(), exit);
    assert!(exit.finished_at >= exit.started_at && exit.started_at > 0);
    assert!(!container.dir.path().join("run/s").exists() && !container.dir.path().join("run/live").exists());
}

#[test]
fn a_shim_whose_container_was_removed_leaves_without_a_record() {
    let mut container = Container::new();
    let mut client = container.start(&container.plan(&["sleep", "1000"]));
    std::fs::remove_dir_all(container.dir.path().join("record")).unwrap();
    client.call(Call::Kill(Kill { signal: 9, all: false }), &[]);
    // Waits for the shim's end of the connection, and dropping the container for the shim itself.
    assert_eq!(client.exited().exit_code, 137);
}

#[test]
fn a_created_container_waits_for_its_start_and_can_be_shut_down() {
    let mut container = Container::new();
    let (mut client, ready) = container.create(&container.plan(&["sh", "-c", "echo never"]));
    assert!(ready.pid > 0 && ready.pid_start_time > 0);
    client.call(Call::Shutdown(Shutdown::default()), &[]);
    let exit = client.exited();
    assert_eq!((exit.exit_code, exit.started_at), (137, 0));
    assert_eq!(container.log(), Vec::<String>::new());
}

#[test]
fn a_program_that_is_not_there_is_named_at_the_start() {
    let mut container = Container::new();
    let (mut client, _) = container.create(&container.plan(&["no-such-program"]));
    let reply::Result::Failure(failure) = client.call(Call::Start(Start {}), &[]) else { panic!() };
    assert_eq!((failure.step(), failure.object.as_str()), (Step::Exec, "no-such-program"));
    assert_eq!(client.exited().exit_code, 127);
}

#[test]
fn stop_asks_first_and_kills_after_the_grace() {
    let mut container = Container::new();
    let script = "trap 'echo asked' TERM; echo ready; while true; do sleep 0.05; done";
    let mut client = container.start(&container.plan(&["sh", "-c", script]));
    support::wait_for_text(&container.dir.path().join("log"), |text| text.contains("ready"));
    client.call(Call::Stop(Stop { signal: 0, grace_ms: 300 }), &[]);
    let exit = client.exited();
    assert_eq!((exit.exit_code, exit.signal), (137, 9));
    assert!(container.log().contains(&"stdout F asked".into()), "{:?}", container.log());
}

#[test]
fn execs_have_their_own_streams_and_codes_and_a_deadline_kills_their_tree() {
    let mut container = Container::new();
    let mut client = container.start(&container.plan(&["sleep", "1000"]));
    let mut exec = |id: &str, script: &str, timeout_ms: u64| {
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let process = Process {
            args: [&b"sh"[..], b"-c", script.as_bytes()].map(<[u8]>::to_vec).into(),
            env: vec!["PATH=/bin".into()],
            user: Some(User {
                user: Some(user::User::UserName("app".into())),
                image_groups: true,
                ..User::default()
            }),
            ..Process::default()
        };
        let exec = Exec {
            exec_id: id.into(),
            process: Some(process),
            has_stdout: true,
            timeout_ms,
            ..Exec::default()
        };
        let reply = client.call(Call::Exec(exec), &[write.as_fd()]);
        assert!(matches!(reply, reply::Result::ExecStarted(_)), "{reply:?}");
        drop(write);
        let exited = client.event(|event| match event {
            event::Event::ExecExited(exited) if exited.exec_id == id => Some(exited.clone()),
            _ => None,
        });
        (exited, std::io::read_to_string(std::fs::File::from(read)).unwrap())
    };
    let (exited, text) = exec("one", "id; cat /proc/1/comm; exit 3", 0);
    assert_eq!(exited, ExecExited { exec_id: "one".into(), exit_code: 3, timed_out: false });
    assert_eq!(text, "uid=1000(app) gid=1001(app) groups=1001(app),2000(extra)\nsleep\n");
    let (exited, _) = exec("two", "sleep 1000 & sleep 1000", 100);
    assert!(exited.timed_out && exited.exit_code == 137);
    assert!(!container.cgroup.join("exec-one").exists());
    client.call(Call::Kill(Kill { signal: 9, all: false }), &[]);
    assert_eq!(client.exited().exit_code, 137);
}

#[test]
fn a_failing_container_is_restarted_so_often_with_backoff_and_keeps_its_log() {
    let mut container = Container::new();
    let mut plan = container.plan(&["sh", "-c", "echo run; exit 5"]);
    plan.restart = Some(Restart { policy: Policy::OnFailure.into(), max_retries: 2 });
    let mut client = container.start(&plan);
    let state = |event: &event::Event| match event {
        event::Event::Changed(status) => Some(status.clone()),
        _ => None,
    };
    let seen: Vec<Status> = (0..5).map(|_| client.event(state)).collect();
    let states: Vec<_> = seen.iter().map(Status::state).collect();
    use status::State::{Backoff, Running};
    assert_eq!(states, [Running, Backoff, Running, Backoff, Running]);
    let exit = client.exited();
    assert_eq!((exit.exit_code, exit.restarts), (5, 2));
    assert_eq!(container.log(), ["stdout F run"; 3]);
}

#[test]
fn input_reaches_the_container_and_its_end_too_and_output_those_attached() {
    let mut container = Container::new();
    let mut plan = container.plan(&["cat"]);
    plan.stdio = Some(Stdio { stdin: stdio::Stdin::Once.into() });
    let (mut client, _) = container.create(&plan);
    let (their_in, our_in) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let (our_out, their_out) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let attach = Attach { has_stdin: true, has_stdout: true, has_stderr: false };
    client.call(Call::Attach(attach), &[their_in.as_fd(), their_out.as_fd()]);
    drop((their_in, their_out));
    client.call(Call::Start(Start {}), &[]);
    let text = "some text\n".repeat(40_000);
    let sent = text.clone();
    let writer = std::thread::spawn(move || {
        std::io::Write::write_all(&mut std::fs::File::from(our_in), sent.as_bytes()).unwrap();
    });
    let got = std::io::read_to_string(std::fs::File::from(our_out)).unwrap();
    writer.join().unwrap();
    assert!(got == text, "{} of {} bytes came back", got.len(), text.len());
    assert_eq!(client.exited().exit_code, 0);
    assert_eq!(container.log().len(), 40_000);
}

#[test]
fn a_terminal_is_one_and_the_log_can_be_reopened() {
    let mut container = Container::new();
    let mut plan = container.plan(&["sh", "-c", "test -t 0 && test -t 1 && echo tty; read x; echo got $x"]);
    plan.stdio = Some(Stdio { stdin: stdio::Stdin::Open.into() });
    plan.process.as_mut().unwrap().tty = true;
    let mut client = container.start(&plan);
    let log = container.dir.path().join("log");
    support::wait_for_text(&log, |text| text.contains("stdout F tty"));
    let old = container.dir.path().join("log.old");
    std::fs::rename(&log, &old).unwrap();
    client.call(Call::ReopenLog(ReopenLog {}), &[]);
    let (their_in, our_in) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let attach = Attach { has_stdin: true, ..Attach::default() };
    client.call(Call::Attach(attach), &[their_in.as_fd()]);
    rustix::io::write(&our_in, b"word\n").unwrap();
    assert_eq!(client.exited().exit_code, 0);
    assert!(std::fs::read_to_string(&log).unwrap().contains("got word"));
    assert!(!std::fs::read_to_string(&old).unwrap().contains("got word"));
}
