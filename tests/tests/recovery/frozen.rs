//! The disks of `berthd`'s own records and state do not answer: lists and statuses are answered from memory, what runs runs
//! on, calls that have to write are told by a deadline what they wait for, and what they began is done once the disk answers.

use std::{fs, os::unix::net::UnixDatagram, path::PathBuf, thread};

use berth_cri::v1::{
    self as cri,
    ContainerState::{ContainerExited as Exited, ContainerRunning as Running},
};
use berth_tests::{BOUND, Daemon, Freezer, Options, asked, eventually, images};
use tonic::Code;

use crate::hang::thread_waits;

/// A daemon with one of its directories on such a disk.
fn on_disk(test: &str, directory: impl Fn(&Daemon) -> PathBuf) -> Option<(Daemon, Freezer)> {
    on_disk_of(Daemon::start(), test, directory)
}

fn on_disk_of(
    mut daemon: Daemon,
    test: &str,
    directory: impl Fn(&Daemon) -> PathBuf,
) -> Option<(Daemon, Freezer)> {
    daemon.stop();
    let target = directory(&daemon);
    std::fs::remove_dir_all(&target).ok();
    let disk = Freezer::mount(test, daemon.dir(), &target);
    daemon.up();
    Some((daemon, disk?))
}

/// As much as a node with a hanging disk has to do: look, and go on with what runs.
fn still_answers(daemon: &Daemon, id: &str) {
    assert_eq!(daemon.status(id).unwrap().state(), Running);
    assert_eq!(daemon.list_containers(cri::ContainerFilter::default()).len(), 2);
    assert_eq!(daemon.list_pods(cri::PodSandboxFilter::default()).len(), 2);
    assert_eq!(daemon.exec_ok(id, &["echo", "on"]), "on\n");
    daemon.berth_ok(&["ps"]);
    daemon.berth_ok(&["explain", id]);
}

/// What is on that disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kept {
    /// All that is to last: records, leases, images, and the lock that a start of berthd has to take.
    Root,
    /// Those of containers; what pods have is elsewhere.
    Records,
    /// Containers' directories of the state; those of pods are elsewhere.
    State,
}

fn hangs_and_answers_again(test: &str, kept: Kept) {
    let directory = |daemon: &Daemon| match kept {
        Kept::Root => daemon.root(),
        Kept::Records => daemon.root().join("containers"),
        Kept::State => daemon.state().join("containers"),
    };
    let Some((mut daemon, disk)) = on_disk(test, directory) else { return };
    daemon.load_image(images::FIXTURE, &images::base());
    let (pod, other) = (daemon.plain_pod("hangs"), daemon.plain_pod("other"));
    let spam = asked("spam", &["spam", "0", "100"]);
    let runs = daemon.launch(&pod, &spam).unwrap();
    let beside = daemon.launch(&other, &asked("c", &["trap", "--exit", "3"])).unwrap();
    disk.freeze();
    if kept != Kept::Root {
        // Nothing that a start has to write is there.
        daemon.kill9();
        daemon.up();
    }
    still_answers(&daemon, &runs);
    let berthd = daemon.pid().as_raw();
    let next = asked("next", &["exit", "7"]);
    thread::scope(|scope| {
        let create = scope.spawn(|| daemon.create(&pod, &next));
        let make = (kept == Kept::Root).then(|| scope.spawn(|| daemon.run_pod(berth_tests::pod("new"))));
        let remove = scope.spawn(|| daemon.remove_pod(&other.id));
        eventually("berthd to wait for the disk", || thread_waits(berthd).then_some(()));
        still_answers(&daemon, &runs);
        let made = make.map(|make| ("run pod", make.join().unwrap().map(drop)));
        let rest = [("create", create.join().unwrap().map(drop)), ("remove pod", remove.join().unwrap())];
        for (what, told) in made.into_iter().chain(rest) {
            let told = told.unwrap_err();
            assert_eq!(told.code(), Code::DeadlineExceeded, "{what}: {told}");
            assert!(told.message().contains("disk"), "{what}: {told}");
        }
        still_answers(&daemon, &runs);
    });
    disk.thaw();
    // What was begun is had by the same call, made again.
    let id = daemon.launch(&pod, &next).unwrap();
    assert_eq!(daemon.exited(&id).exit_code, 7);
    assert_eq!(
        daemon
            .list_containers(cri::ContainerFilter::default())
            .iter()
            .filter(|one| one.pod_sandbox_id == pod.id)
            .count(),
        2
    );
    daemon.remove_pod(&other.id).unwrap();
    assert!(daemon.status(&beside).is_err());
    let lines = daemon.log_of(&pod, &spam).len();
    eventually("more lines", || (daemon.log_of(&pod, &spam).len() > lines + 5).then_some(()));
    daemon.stop_container(&runs, 0).unwrap();
    let status = daemon.status(&runs).unwrap();
    assert_eq!((status.state(), status.exit_code), (Exited, 137));
    let log = daemon.log_of(&pod, &spam);
    let wrong = (1..).zip(&log).find(|(n, line)| !line.content.starts_with(&format!("line {n:06} ")));
    assert!(wrong.is_none(), "{wrong:?}");
    daemon.remove_all().unwrap();
    daemon.stop();
    drop(disk);
    daemon.up();
}

#[test]
fn a_disk_of_all_that_is_to_last_that_hangs_is_told_and_waited_for() {
    hangs_and_answers_again("a_disk_of_all_that_is_to_last_that_hangs_is_told_and_waited_for", Kept::Root);
}

#[test]
fn a_disk_of_records_that_hangs_is_told_and_waited_for() {
    hangs_and_answers_again("a_disk_of_records_that_hangs_is_told_and_waited_for", Kept::Records);
}

#[test]
fn a_disk_of_the_state_that_hangs_is_told_and_waited_for() {
    hangs_and_answers_again("a_disk_of_the_state_that_hangs_is_told_and_waited_for", Kept::State);
}

/// What a service manager hears of a start that waits for a disk, and what the log says.
fn start_waits(test: &str, directory: impl Fn(&Daemon) -> PathBuf, what: &str) {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(BOUND)).unwrap();
    let next = || {
        let mut buffer = [0; 1024];
        let length = socket.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    };
    let env = vec![("NOTIFY_SOCKET".to_owned(), path.display().to_string())];
    let daemon = Daemon::start_with(Options { env, ..Options::default() });
    let Some((mut daemon, disk)) = on_disk_of(daemon, test, &directory) else { return };
    let log = daemon.dir().join("berthd.log");
    let named = directory(&daemon).display().to_string();
    daemon.stop();
    disk.freeze();
    while next() != "STOPPING=1" {}
    socket.set_nonblocking(true).unwrap();
    while socket.recv(&mut [0; 1024]).is_ok() {}
    socket.set_nonblocking(false).unwrap();
    thread::scope(|scope| {
        let up = scope.spawn(|| daemon.up());
        let told = next();
        let lines: Vec<&str> = told.lines().collect();
        assert!(lines[0].starts_with("STATUS=waits since ") && lines[0].contains(what), "{told}");
        assert!(lines[0].contains(&named) && lines[1].starts_with("EXTEND_TIMEOUT_USEC="), "{told}");
        let text = fs::read_to_string(&log).unwrap();
        let lines: Vec<&str> = text.lines().filter(|line| line.contains("the start waits")).collect();
        assert_eq!(lines.len(), 1, "{text}");
        assert!(lines[0].contains(&named) && lines[0].contains("findmnt"), "{lines:?}");
        disk.thaw();
        up.join().unwrap();
    });
    // It is as any other from then on.
    assert_eq!(next(), "STATUS=");
    assert_eq!(next(), "READY=1");
    assert_eq!(daemon.log().matches("the start waits").count(), 1);
    assert!(daemon.log().contains("the start goes on"));
    daemon.berth_ok(&["ps"]);
    daemon.stop();
    drop(disk);
    daemon.up();
}

#[test]
fn a_start_on_a_disk_that_hangs_says_what_it_waits_for() {
    const TEST: &str = "a_start_on_a_disk_that_hangs_says_what_it_waits_for";
    start_waits(TEST, Daemon::root, "to take the locks in");
    start_waits(TEST, |daemon| daemon.root().join("images"), "to open the images in");
}
