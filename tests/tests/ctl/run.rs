//! `berth run`: output, input, exit codes.

use std::io::{BufRead, BufReader};

use berth_tests::{Daemon, eventually, web};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{IMAGE, inspect, wait};

#[test]
fn output_and_exit_code_are_the_containers() {
    let daemon = Daemon::with_fixture();
    let said = daemon.berth(&["run", "--rm", IMAGE, "echo", "a", "b"]);
    assert_eq!((said.code, said.stdout.as_str(), said.stderr.as_str()), (0, "a b\n", ""));
    let said = daemon.berth(&["run", "--rm", IMAGE, "stderr", "wrong"]);
    assert_eq!((said.code, said.stdout.as_str(), said.stderr.as_str()), (0, "", "wrong\n"));
    let said = daemon.berth(&["run", "--rm", IMAGE, "noeol", "half"]);
    assert_eq!(said.stdout, "half");
    for code in [1, 7, 125, 255] {
        assert_eq!(daemon.berth(&["run", "--rm", IMAGE, "exit", &code.to_string()]).code, code);
    }
    assert_eq!(daemon.berth(&["run", "--rm", IMAGE, "crash"]).code, 139);
}

#[test]
fn much_output_arrives_whole() {
    let daemon = Daemon::with_fixture();
    let said = daemon.berth(&["run", "--rm", IMAGE, "spam", "20000", "0", "100"]);
    assert_eq!(said.code, 0, "{}", said.stderr);
    let lines: Vec<&str> = said.stdout.lines().collect();
    assert_eq!(lines.len(), 20_000);
    let wrong = lines.iter().enumerate().find(|(n, line)| !line.starts_with(&format!("line {:06} ", n + 1)));
    assert!(wrong.is_none(), "{wrong:?}");
}

#[test]
fn input_goes_in_and_ends() {
    let daemon = Daemon::with_fixture();
    let said = daemon.berth_with(&["run", "--rm", "-i", IMAGE, "lines"], b"one\ntwo");
    assert_eq!((said.code, said.stdout.as_str()), (0, "got: one\ngot: two\n"));
    let much = vec![b'x'; 300_000];
    let said = daemon.berth_with(&["run", "--rm", "-i", IMAGE, "cat"], &much);
    assert_eq!((said.code, said.stdout.len()), (0, much.len()));
    // Without -i there is none.
    let said = daemon.berth_with(&["run", "--rm", IMAGE, "lines"], b"one\n");
    assert_eq!((said.code, said.stdout.as_str()), (0, ""));
}

#[test]
fn a_program_that_cannot_run_is_126_or_127() {
    let daemon = Daemon::with_fixture();
    let missing = daemon.berth(&["run", "--rm", IMAGE, "nosuch"]);
    assert_eq!(missing.code, 127, "{missing:?}");
    assert!(missing.stderr.contains("nosuch") && missing.stderr.contains("PATH"), "{missing:?}");
    let missing = daemon.berth(&["run", "--rm", IMAGE, "/no/such"]);
    assert_eq!(missing.code, 127, "{missing:?}");
    let closed = daemon.berth(&["run", "--rm", IMAGE, "/etc/passwd"]);
    assert_eq!(closed.code, 126, "{closed:?}");
    assert!(closed.stderr.contains("chmod +x"), "{closed:?}");
    let directory = daemon.berth(&["run", "--rm", IMAGE, "/etc"]);
    assert_eq!(directory.code, 126, "{directory:?}");
    for said in [missing, closed, directory] {
        assert_eq!(said.stderr.lines().count(), 1, "{said:?}");
    }
    // Nothing of them stays.
    assert_eq!(daemon.berth_ok(&["ps", "-a", "-q"]), "");
}

#[test]
fn what_berth_itself_cannot_do_is_125() {
    let daemon = Daemon::with_fixture();
    let rows: [&[&str]; 7] = [
        &["run", "--rm", "--pull", "never", "localhost/nosuch:1"],
        &["run", "--rm", "--user", "nobody-here", IMAGE],
        &["run", "--rm", "--memory", "lots", IMAGE],
        &["run", "--rm", "--no-such-flag", IMAGE],
        &["run", "--rm", "-v", "relative:also", IMAGE],
        &["nosuchverb"],
        &["stop", "nosuch"],
    ];
    for row in rows {
        let said = daemon.berth(row);
        assert_eq!(said.code, 125, "{row:?}: {said:?}");
        assert!(!said.stderr.is_empty(), "{row:?}");
    }
    assert_eq!(daemon.berth_ok(&["ps", "-a", "-q"]), "");
}

#[test]
fn without_a_daemon_there_is_one_clear_line() {
    let mut daemon = Daemon::start();
    daemon.stop();
    for words in [&["ps"][..], &["run", IMAGE], &["version"]] {
        let said = daemon.berth(words);
        assert_eq!((said.code, said.stdout.as_str()), (125, ""), "{said:?}");
        assert_eq!(said.stderr.lines().count(), 1, "{said:?}");
        let socket = daemon.state().join("berth.sock");
        assert!(said.stderr.contains(socket.to_str().unwrap()), "{said:?}");
        assert!(said.stderr.contains("berthd"), "what to do: {said:?}");
    }
}

#[test]
fn a_container_behind_is_named_by_its_id() {
    let daemon = Daemon::with_fixture();
    let id = daemon.berth_ok(&["run", "-d", "--name", "back", IMAGE, "spam", "3", "0", "13"]);
    assert_eq!(id.len(), 64);
    assert_eq!(wait(&daemon, "back"), 0);
    let expected = "line 000001 x\nline 000002 x\nline 000003 x";
    assert_eq!(daemon.berth_ok(&["logs", "back"]), expected);
    assert_eq!(daemon.berth_ok(&["logs", &id[..12]]), expected);
    assert_eq!(daemon.berth_ok(&["logs", "-n", "1", "back"]), "line 000003 x");
    assert_eq!(daemon.berth_ok(&["logs", "-f", "back"]), expected);
    let stamped = daemon.berth_ok(&["logs", "-t", "back"]);
    assert!(stamped.lines().all(|line| line.starts_with("20") && line.contains("Z line ")), "{stamped}");
    assert_eq!(daemon.berth_ok(&["rm", "back"]), "back");
    assert_eq!(daemon.berth(&["logs", "back"]).code, 125);
}

#[test]
fn a_removed_container_is_gone_with_its_end() {
    let daemon = Daemon::with_fixture();
    daemon.berth_ok(&["run", "--rm", IMAGE, "true"]);
    eventually("the container to be removed", || daemon.berth_ok(&["ps", "-aq"]).is_empty().then_some(()));
    let id = daemon.berth_ok(&["run", "-d", "--rm", IMAGE, "sleep", "inf"]);
    assert_eq!(daemon.berth_ok(&["ps", "-q"]), id[..12]);
    daemon.berth_ok(&["stop", "-t", "0", &id]);
    eventually("the container to be removed", || daemon.berth_ok(&["ps", "-aq"]).is_empty().then_some(()));
}

#[test]
fn a_log_is_followed_while_it_grows() {
    let daemon = Daemon::with_fixture();
    daemon.berth_ok(&["run", "-d", "--name", "spam", IMAGE, "spam", "0", "50"]);
    let mut follow = daemon.berth_start(&["logs", "-f", "spam"]);
    let mut lines = BufReader::new(follow.take_stdout()).lines();
    for number in 1..=20 {
        let line = lines.next().unwrap().unwrap();
        assert!(line.starts_with(&format!("line {number:06} ")), "{line}");
    }
    daemon.berth_ok(&["stop", "-t", "0", "spam"]);
    // It ends with the container, and has it all.
    let rest = lines.count();
    assert_eq!(follow.ended(), 0);
    assert_eq!(daemon.berth_ok(&["logs", "spam"]).lines().count(), 20 + rest);
}

#[test]
fn signals_are_handed_on() {
    let daemon = Daemon::with_fixture();
    let mut run =
        daemon.berth_start(&["run", "--rm", "--name", "trap", IMAGE, "trap", "INT", "USR1", "--exit", "9"]);
    let mut lines = BufReader::new(run.take_stdout()).lines();
    let mut line = || lines.next().unwrap().unwrap();
    assert_eq!(line(), "ready");
    for (signal, name) in
        [(Signal::SIGINT, "SIGINT"), (Signal::SIGUSR1, "SIGUSR1"), (Signal::SIGTERM, "SIGTERM")]
    {
        kill(Pid::from_raw(run.pid()), signal).unwrap();
        assert_eq!(line(), name);
    }
    assert_eq!(run.ended(), 9);
}

#[test]
fn a_run_that_is_killed_leaves_its_container_running() {
    let daemon = Daemon::with_fixture();
    let mut run = daemon.berth_start(&["run", "--name", "left", IMAGE, "trap"]);
    let mut lines = BufReader::new(run.take_stdout()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "ready");
    drop(run);
    assert_eq!(inspect(&daemon, "left")["State"]["Running"], true);
    daemon.berth_ok(&["kill", "left"]);
    assert_eq!(wait(&daemon, "left"), 137);
}

#[test]
fn standalone_containers_are_in_no_list_of_cri() {
    let daemon = Daemon::with_fixture();
    let id = daemon.berth_ok(&["run", "-d", IMAGE, "sleep", "inf"]);
    assert!(daemon.list_pods(Default::default()).is_empty());
    assert!(daemon.list_containers(Default::default()).is_empty());
    assert_eq!(daemon.status(&id).unwrap_err().code(), tonic::Code::NotFound);
    daemon.stop_container(&id, 0).unwrap();
    daemon.remove_container(&id).unwrap();
    assert_eq!(inspect(&daemon, &id)["State"]["Status"], "running");
    let stats = berth_cri::v1::ListContainerStatsRequest::default();
    assert!(daemon.call(daemon.runtime().list_container_stats(stats)).unwrap().stats.is_empty());
    // And the kubelet's show only where asked for.
    let pod = daemon.plain_pod("cri");
    let other = daemon.launch(&pod, &berth_tests::asked("c", &["sleep", "inf"])).unwrap();
    assert_eq!(daemon.berth_ok(&["ps", "-q"]), id[..12]);
    let all = daemon.berth_ok(&["ps", "-q", "--all-clients"]);
    assert!(all.contains(&id[..12]) && all.contains(&other[..12]), "{all}");
}

#[test]
fn a_published_port_leads_into_the_container() {
    let daemon = Daemon::with_fixture();
    let port = web::free_port();
    let publish = format!("127.0.0.1:{port}:8080");
    let run = ["run", "-d", "--name", "web", "-p", &publish, IMAGE, "http", "8080", "published"];
    let said = daemon.berth(&run);
    assert_eq!(said.code, 0, "{}", said.stderr);
    let answer = eventually("the published port to answer", || web::ask("127.0.0.1", port, "GET /").ok());
    assert!(answer.contains("published"), "{answer}");
    let bindings = &inspect(&daemon, "web")["HostConfig"]["PortBindings"];
    assert_eq!(bindings["8080/tcp"][0]["HostPort"], port.to_string());
    let said = daemon.berth(&["run", "--rm", "-p", &format!("{port}:1"), IMAGE, "true"]);
    assert_eq!(said.code, 125);
    assert!(said.stderr.contains(&format!("{port}/tcp")), "{}", said.stderr);
    let said = daemon.berth(&["run", "--rm", "--network", "host", "-p", "1:1", IMAGE, "true"]);
    assert!(said.code == 125 && said.stderr.contains("bridge"), "{}", said.stderr);

    // One that has ended lets its port go, to whoever comes next; started again it takes it, or says who has it.
    daemon.berth_ok(&["stop", "-t", "0", "web"]);
    assert!(web::ask("127.0.0.1", port, "GET /").is_err());
    let run = ["run", "-d", "--name", "next", "-p", &publish, IMAGE, "http", "8080", "next"];
    daemon.berth_ok(&run);
    let answer = eventually("the port to answer again", || web::ask("127.0.0.1", port, "GET /").ok());
    assert!(answer.contains("next"), "{answer}");
    let said = daemon.berth(&["start", "web"]);
    assert!(said.code != 0 && said.stderr.contains(&format!("{port}/tcp")), "{}", said.stderr);
    daemon.berth_ok(&["rm", "-f", "next"]);
    daemon.berth_ok(&["start", "web"]);
    let answer = eventually("the first to answer again", || web::ask("127.0.0.1", port, "GET /").ok());
    assert!(answer.contains("published"), "{answer}");
}
