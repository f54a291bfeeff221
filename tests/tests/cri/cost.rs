//! What a launch asks of the kernel and what it does outside it, counted: guards of the launch path that no load of the
//! machine disturbs. When a number here is exceeded something has been added for every pod or container; when one is far
//! below, it has been made less, and is to be lowered.

use std::{
    collections::HashSet,
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
};

use berth_tests::{Daemon, asked, program, required, skip};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// Made by the shims and by init until it executes the container's program: for a pod on the bridge, for a container beside
/// cgroup v2, and for each hierarchy of cgroup v1, which a container sees mounted.
const OF_A_POD: usize = 260;
const OF_A_CONTAINER: usize = 960;
const OF_A_HIERARCHY: usize = 20;

/// Instructions of the same, of a shim as it is shipped.
const STEPS_OF_A_POD: usize = 110_000;
const STEPS_OF_A_CONTAINER: usize = 350_000;
const STEPS_OF_A_HIERARCHY: usize = 18_000;

/// What a shim as it is shipped is smaller than, in bytes.
const SHIPPED: u64 = 4 << 20;

/// Traces the daemon and all that it starts while `act` is at work, and counts what others than its own threads asked for.
fn counted(daemon: &Daemon, name: &str, act: impl FnOnce()) -> usize {
    let trace = daemon.dir().join(name);
    let mut strace = Command::new("strace")
        .args(["-f", "-o"])
        .arg(&trace)
        .args(["-p", &daemon.pid().to_string()])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It says so of each thread; the first is attached last or first, all are before it waits.
    let mut told = BufReader::new(strace.stderr.take().unwrap()).lines();
    assert!(told.next().unwrap().unwrap().contains("attached"));
    act();
    let threads = threads_of(daemon.pid());
    kill(Pid::from_raw(i32::try_from(strace.id()).unwrap()), Signal::SIGINT).unwrap();
    told.by_ref().count();
    strace.wait().unwrap();
    of_others(&trace, &threads)
}

/// Steps through all that the daemon starts while `act` is at work.
fn stepped(daemon: &Daemon, act: impl FnOnce()) -> usize {
    let mut counter = Command::new(program("instructions"))
        .arg(daemon.pid().to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut told = BufReader::new(counter.stdout.take().unwrap()).lines();
    assert_eq!(told.next().unwrap().unwrap(), "ready");
    act();
    drop(counter.stdin.take());
    let count = told.next().unwrap().unwrap().parse().unwrap();
    assert!(counter.wait().unwrap().success());
    count
}

fn hierarchies() -> usize {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    mounts.lines().filter(|line| line.split(' ').nth(2) == Some("cgroup")).count()
}

/// Steps of an emulated processor, or of one that is a program itself, take a hundred times as long.
fn steps_take_long() -> bool {
    let processors = fs::read_to_string("/proc/cpuinfo").unwrap();
    ["QEMU", "User Mode Linux"].iter().any(|emulated| processors.contains(emulated))
}

fn threads_of(pid: Pid) -> HashSet<String> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    tasks.map(|task| task.file_name().to_string_lossy().into_owned()).collect()
}

/// Calls of processes that are not threads of the daemon and have not executed a container's program yet.
fn of_others(trace: &Path, threads: &HashSet<String>) -> usize {
    let (mut gone_on, mut calls) = (HashSet::new(), 0);
    let text = String::from_utf8_lossy(&fs::read(trace).unwrap()).into_owned();
    for line in text.lines() {
        let Some((pid, call)) = line.split_once(' ') else { continue };
        let call = call.trim_start();
        let is_call = !call.starts_with("+++") && !call.starts_with("---") && !call.starts_with("<...");
        if threads.contains(pid) || gone_on.contains(pid) || !is_call {
            continue;
        }
        calls += 1;
        if call.starts_with("execve(\"/bin/") {
            gone_on.insert(pid.to_owned());
        }
    }
    calls
}

#[test]
fn a_launch_asks_no_more_of_the_kernel_than_it_did() {
    if !required("a_launch_asks_no_more_of_the_kernel_than_it_did", &["strace"]) {
        return;
    }
    let daemon = Daemon::with_fixture();
    // Once before: what is done at the first time only is not the launch's.
    let warm = daemon.plain_pod("warm");
    daemon.launch(&warm, &asked("warm", &["sleep", "inf"])).unwrap();
    let mut pod = None;
    let of_pod = counted(&daemon, "pod", || pod = Some(daemon.plain_pod("counted")));
    let pod = pod.unwrap();
    let of_container = counted(&daemon, "container", || {
        daemon.launch(&pod, &asked("counted", &["sleep", "inf"])).unwrap();
    });
    let hierarchies = hierarchies();
    let allowed = OF_A_CONTAINER + hierarchies * OF_A_HIERARCHY;
    eprintln!("a pod {of_pod}, a container {of_container} beside {hierarchies} hierarchies");
    assert!(of_pod <= OF_A_POD, "a pod: {of_pod} system calls, {OF_A_POD} were enough");
    assert!(of_container <= allowed, "a container: {of_container} system calls, {allowed} were enough");
    // One that counts nothing guards nothing.
    assert!(of_pod > OF_A_POD / 2 && of_container > allowed / 2, "{of_pod}, {of_container}");
}

#[test]
fn a_launch_takes_no_more_instructions_than_it_did() {
    let name = "a_launch_takes_no_more_instructions_than_it_did";
    // One for debugging is several MB larger, and takes ten times the steps.
    if fs::metadata(program("berth-shim")).unwrap().len() > SHIPPED {
        skip(name, "the shim is not the one that is shipped: cargo xtask test builds that");
        return;
    }
    if steps_take_long() {
        skip(name, "the processor is emulated");
        return;
    }
    let daemon = Daemon::with_fixture();
    let warm = daemon.plain_pod("warm");
    daemon.launch(&warm, &asked("warm", &["sleep", "inf"])).unwrap();
    let mut pod = None;
    let of_pod = stepped(&daemon, || pod = Some(daemon.plain_pod("counted")));
    let pod = pod.unwrap();
    let of_container = stepped(&daemon, || {
        daemon.launch(&pod, &asked("counted", &["sleep", "inf"])).unwrap();
    });
    let hierarchies = hierarchies();
    let allowed = STEPS_OF_A_CONTAINER + hierarchies * STEPS_OF_A_HIERARCHY;
    eprintln!("a pod {of_pod}, a container {of_container} instructions beside {hierarchies} hierarchies");
    assert!(of_pod <= STEPS_OF_A_POD, "a pod: {of_pod} instructions, {STEPS_OF_A_POD} were enough");
    assert!(of_container <= allowed, "a container: {of_container} instructions, {allowed} were enough");
    assert!(of_pod > STEPS_OF_A_POD / 2 && of_container > allowed / 2, "{of_pod}, {of_container}");
}
