//! The logs that a kubelet reads: CRI's form, every line of them, opened anew when asked.

use std::fs;

use berth_tests::{Daemon, Stream, asked, eventually, lines, read_log};

#[test]
fn lines_have_their_stream_and_their_tag() {
    let daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("log");
    let out = asked("out", &["spam", "3", "0", "13"]);
    let log = daemon.run_to_end(&pod, &out).unwrap().1;
    let found: Vec<(&str, Stream, bool)> =
        log.iter().map(|line| (line.content.as_str(), line.stream, line.partial)).collect();
    let whole = |text| (text, Stream::Stdout, false);
    assert_eq!(found, [whole("line 000001 x"), whole("line 000002 x"), whole("line 000003 x")]);
    assert!(log.windows(2).all(|pair| pair[0].at <= pair[1].at), "{log:?}");

    let log = daemon.run_to_end(&pod, &asked("err", &["stderr", "to the other"])).unwrap().1;
    assert_eq!((log.len(), log[0].stream, log[0].content.as_str()), (1, Stream::Stderr, "to the other"));

    let log = daemon.run_to_end(&pod, &asked("half", &["noeol", "no end"])).unwrap().1;
    assert_eq!((log.len(), log[0].partial, log[0].content.as_str()), (1, true, "no end"));
}

#[test]
fn a_long_line_is_cut_and_can_be_put_together() {
    let daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("long");
    let log = daemon.run_to_end(&pod, &asked("long", &["spam", "2", "0", "100000"])).unwrap().1;
    let mut whole = vec![String::new()];
    for line in &log {
        whole.last_mut().unwrap().push_str(&line.content);
        if !line.partial {
            whole.push(String::new());
        }
    }
    assert_eq!(whole.pop().as_deref(), Some(""));
    assert_eq!(whole.iter().map(String::len).collect::<Vec<_>>(), [100_000, 100_000]);
    assert!(whole[1].starts_with("line 000002 x"));
    assert!(log.iter().all(|line| line.content.len() <= 16 * 1024), "pieces are 16 KiB at most");
}

#[test]
fn every_line_of_a_fast_writer_is_there() {
    let daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("fast");
    let log = daemon.run_to_end(&pod, &asked("fast", &["spam", "50000", "0", "80"])).unwrap().1;
    assert_eq!(log.len(), 50_000);
    let wrong =
        log.iter().enumerate().find(|(n, line)| !line.content.starts_with(&format!("line {:06} ", n + 1)));
    assert!(wrong.is_none(), "{wrong:?}");
}

#[test]
fn a_log_moved_away_is_opened_anew() {
    let daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("rotate");
    let asked = asked("spam", &["spam", "0", "200"]);
    let id = daemon.launch(&pod, &asked).unwrap();
    let path = daemon.log_path_of(&pod, &asked);
    let old = path.with_extension("old");
    eventually("some lines", || (read_log(&path).len() > 10).then_some(()));
    fs::rename(&path, &old).unwrap();
    let request = berth_cri::v1::ReopenContainerLogRequest { container_id: id.clone() };
    daemon.call(daemon.runtime().reopen_container_log(request)).unwrap();
    let there = |path| fs::read_to_string(path).unwrap_or_default();
    eventually("lines in the new log", || (there(&path).lines().count() > 10).then_some(()));
    daemon.stop_container(&id, 0).unwrap();
    let (before, after) = (read_log(&old), read_log(&path));
    // None lost, none twice.
    let numbers: Vec<String> =
        before.iter().chain(&after).map(|line| line.content[..11].to_owned()).collect();
    let expected: Vec<String> = (1..=numbers.len()).map(|n| format!("line {n:06}")).collect();
    assert_eq!(numbers, expected);
}

#[test]
fn a_log_of_an_ended_container_is_not_made_again() {
    let daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("ended");
    let asked = asked("c", &["true"]);
    let id = daemon.launch(&pod, &asked).unwrap();
    daemon.exited(&id);
    let path = daemon.log_path_of(&pod, &asked);
    fs::remove_file(&path).unwrap();
    let request = berth_cri::v1::ReopenContainerLogRequest { container_id: id };
    // CRI: whoever answers with an error must not have made the file.
    if daemon.call(daemon.runtime().reopen_container_log(request)).is_err() {
        assert!(!path.exists());
    }
}

#[test]
fn a_container_without_a_log_path_runs() {
    let daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("none");
    let id =
        daemon.launch(&pod, &asked("c", &["spam", "1000"]).with(|config| config.log_path.clear())).unwrap();
    assert_eq!(daemon.exited(&id).exit_code, 0);
}

#[test]
fn a_log_path_may_have_directories() {
    let daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("deep");
    let asked = asked("c", &["echo", "here"]).with(|config| config.log_path = "c/0.log".into());
    let log = daemon.run_to_end(&pod, &asked).unwrap().1;
    assert_eq!(log[0].content, "here");
    let text = fs::read_to_string(daemon.log_path_of(&pod, &asked)).unwrap();
    assert_eq!(lines(&text), log);
}

#[test]
fn a_limited_log_says_how_much_was_dropped() {
    let daemon = Daemon::with_fixture();
    let mut config = berth_tests::pod("limited");
    config.annotations.insert("berth.dev/log-rate.fast".into(), "4Ki".into());
    let pod = daemon.run_pod(config).unwrap();
    let all = daemon.run_to_end(&pod, &asked("free", &["spam", "500", "0", "80"])).unwrap().1;
    assert_eq!(all.len(), 500);
    let log = daemon.run_to_end(&pod, &asked("fast", &["spam", "500", "0", "80"])).unwrap().1;
    let (notes, kept): (Vec<_>, Vec<_>) = log.iter().partition(|line| line.content.starts_with("berth: "));
    let number =
        |line: &&berth_tests::Line| line.content.split(' ').nth(1).unwrap().parse::<usize>().unwrap();
    assert_eq!(kept.len() + notes.iter().map(number).sum::<usize>(), 500, "{notes:?}");
    assert!(kept.len() < 500 && kept[0].content.starts_with("line 000001 "));
    assert!(notes[0].content.ends_with("more than 4096 in a second"), "{notes:?}");
    assert!(log.last().unwrap().content.starts_with("berth: "));
}

#[test]
fn the_nodes_limit_is_for_all_that_do_not_say_otherwise() {
    let over = "[daemon]\nlog_rate_bytes = 4096\n".to_owned();
    let daemon = Daemon::with_fixture_and(berth_tests::Options { over, ..Default::default() });
    let mut config = berth_tests::pod("limited");
    config.annotations.insert("berth.dev/log-rate.free".into(), "0".into());
    let pod = daemon.run_pod(config).unwrap();
    let lines = |name| daemon.run_to_end(&pod, &asked(name, &["spam", "500", "0", "80"])).unwrap().1.len();
    assert_eq!(lines("free"), 500);
    assert!(lines("other") < 500);
    daemon.berth_ok(&["run", "--name", "person", berth_tests::images::FIXTURE, "spam", "500", "0", "80"]);
    assert!(daemon.berth_ok(&["logs", "person"]).lines().count() < 500);
}

#[test]
fn what_never_began_leaves_no_log_that_a_kubelet_would_count() {
    let daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("uncounted");
    let fails = asked("fails", &["true"]).secured(|security| security.run_as_username = "nobody-here".into());
    daemon.create(&pod, &fails).unwrap_err();
    assert!(!daemon.log_path_of(&pod, &fails).exists());
    let created = asked("created", &["true"]);
    let id = daemon.create(&pod, &created).unwrap();
    assert!(daemon.log_path_of(&pod, &created).exists());
    daemon.remove_container(&id).unwrap();
    assert!(!daemon.log_path_of(&pod, &created).exists());
    // What has run and was silent has one.
    let silent = asked("silent", &["true"]);
    daemon.run_to_end(&pod, &silent).unwrap();
    assert!(daemon.log_path_of(&pod, &silent).exists());
}
