//! What a container costs in the daemon: a node has hundreds of them.

use std::fs;

use berth_cri::v1 as cri;
use berth_tests::{Daemon, asked};

/// A debug build's; a release build's is a third of it.
const OF_A_CONTAINER_KIB: u64 = 64;

/// A number of the daemon's `proc_pid_status(5)`.
fn status(daemon: &Daemon, name: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Memory that is the daemon's alone, KiB.
fn anonymous(daemon: &Daemon) -> u64 {
    status(daemon, "RssAnon")
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

/// A kubelet asks every ten seconds, which is as long as a thread waits for more work: what it takes it keeps.
#[test]
fn statistics_of_many_containers_take_few_threads() {
    const CONTAINERS: usize = 40;
    let daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("measured");
    for n in 0..CONTAINERS {
        daemon.launch(&pod, &asked(&format!("c{n}"), &["sleep", "inf"])).unwrap();
    }
    let before = status(&daemon, "Threads");
    let request = cri::ListContainerStatsRequest::default();
    let listed = daemon.call(daemon.runtime().list_container_stats(request)).unwrap();
    assert_eq!(listed.stats.len(), CONTAINERS);
    let request = cri::ListPodSandboxStatsRequest::default();
    daemon.call(daemon.runtime().list_pod_sandbox_stats(request)).unwrap();
    let after = status(&daemon, "Threads");
    assert!(after < before + 12, "{before} threads before, {after} after");
}
