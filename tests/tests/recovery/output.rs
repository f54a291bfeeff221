//! A shim dies between a container's output and its log: each line is there, once, in its place.

use std::fs;

use berth_cri::v1 as cri;
use berth_tests::{Asked, Daemon, Pod, asked, eventually};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{faults::each, shim::skipped};

/// How often another shim has taken a container over.
fn takeovers(daemon: &Daemon, id: &str) -> usize {
    daemon.log().lines().filter(|line| line.contains("another took over") && line.contains(id)).count()
}

fn is_whole(daemon: &Daemon, pod: &Pod, asked: &Asked, lines: usize) {
    let log = daemon.log_of(pod, asked);
    let wrong: Vec<_> = (log.iter().enumerate())
        .filter(|(n, line)| !line.content.starts_with(&format!("line {:06} ", n + 1)) || line.partial)
        .take(3)
        .collect();
    assert!(wrong.is_empty() && log.len() == lines, "{} lines of {lines}; {wrong:?}", log.len());
}

#[test]
fn a_torrent_outlives_its_shims() {
    if skipped("a_torrent_outlives_its_shims") {
        return;
    }
    const LINES: usize = 1_500_000;
    let daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("torrent");
    // From a file, so that it writes faster than a shim can take it away.
    let numbered = daemon.dir().join("numbered");
    let text: String = (1..=LINES).map(|n| format!("line {n:06} {}\n", "x".repeat(30))).collect();
    fs::write(&numbered, text).unwrap();
    let file = cri::Mount {
        host_path: numbered.display().to_string(),
        container_path: "/numbered".into(),
        readonly: true,
        ..Default::default()
    };
    let torrent = asked("torrent", &["cat", "/numbered"]).mount(file);
    let id = daemon.launch(&pod, &torrent).unwrap();
    let path = daemon.log_path_of(&pod, &torrent);
    let length = || fs::metadata(&path).map_or(0, |log| log.len());
    let mut killed = 0;
    while killed < 5 {
        // In the midst of it: it has written since the last one died. A machine that kept us from it may have let it end.
        let before = length();
        let more = || (length() > before + 200_000).then_some(true);
        let over = || (daemon.status(&id).unwrap().finished_at != 0).then_some(false);
        if !eventually("the log to grow", || more().or_else(over)) {
            break;
        }
        kill_shim(&daemon, &id);
        killed += 1;
    }
    assert!(killed > 0, "it had ended before its shim was killed");
    assert_eq!(daemon.exited(&id).exit_code, 0);
    is_whole(&daemon, &pod, &torrent, LINES);
}

/// Kills the shim that it has now, and waits for the next.
fn kill_shim(daemon: &Daemon, id: &str) {
    let before = takeovers(daemon, id);
    kill(shim_in(id).expect("it has a shim"), Signal::SIGKILL).unwrap();
    eventually("another shim to take over", || (takeovers(daemon, id) > before).then_some(()));
}

/// A shim works in its container's directory.
fn shim_in(id: &str) -> Option<Pid> {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok()).find_map(|pid| {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
        let cwd = fs::read_link(format!("/proc/{pid}/cwd")).ok()?;
        (name.starts_with("berth-shim") && cwd.to_string_lossy().contains(id)).then(|| Pid::from_raw(pid))
    })
}

#[test]
fn a_shim_may_die_at_every_point_on_the_way_into_the_log() {
    const TEST: &str = "a_shim_may_die_at_every_point_on_the_way_into_the_log";
    if skipped(TEST) {
        return;
    }
    const LINES: usize = 20_000;
    each(
        TEST,
        |name| name.starts_with("output."),
        |daemon, point| {
            let pod = daemon.plain_pod("output");
            let spam = asked("spam", &["spam", &LINES.to_string(), "0", "73"]);
            let id = daemon.launch(&pod, &spam).unwrap();
            assert_eq!(daemon.exited(&id).exit_code, 0, "{point}");
            assert_eq!(takeovers(daemon, &id), 1, "{point}");
            is_whole(daemon, &pod, &spam, LINES);
        },
    );
}
