//! What a container costs in the daemon: a node has hundreds of them.

use std::fs;

use berth_tests::{Daemon, asked};

/// A debug build's; a release build's is a third of it.
const OF_A_CONTAINER_KIB: u64 = 64;

/// Memory that is the daemon's alone, KiB. `proc_pid_status(5)`.
fn anonymous(daemon: &Daemon) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn a_container_costs_the_daemon_little() {
    const CONTAINERS: u64 = 40;
    let daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("many");
    let start = |name: String| daemon.launch(&pod, &asked(&name, &["sleep", "inf"])).unwrap();
    // What the first ones bring stays whatever comes.
    for n in 0..10 {
        start(format!("first-{n}"));
    }
    let before = anonymous(&daemon);
    for n in 0..CONTAINERS {
        start(format!("more-{n}"));
    }
    let each = anonymous(&daemon).saturating_sub(before) / CONTAINERS;
    assert!(each <= OF_A_CONTAINER_KIB, "{each} KiB more for each container");
}
