//! Disks and servers that do not answer: whoever needs them waits, nobody else does, and once they answer all is well.

use std::{fs, path::Path, thread};

use berth_cri::v1::{
    self as cri,
    ContainerState::{ContainerExited as Exited, ContainerRunning as Running, ContainerUnknown as Unknown},
};
use berth_tests::{Asked, Daemon, Freezer, Mood, Pod, Sick, asked, eventually, processes_naming};
use nix::sys::signal::{Signal, kill};
use tonic::Code;

use crate::shim::{pid_of, shim_of};

/// A directory of a server's, as a container's volume.
fn volume(sick: &Sick) -> cri::Mount {
    cri::Mount {
        host_path: sick.path().join("data").display().to_string(),
        container_path: "/data".into(),
        ..Default::default()
    }
}

fn served(test: &str, daemon: &Daemon) -> Option<Sick> {
    let sick = Sick::mount(test, &daemon.dir().join("server"))?;
    fs::create_dir(sick.path().join("data")).unwrap();
    Some(sick)
}

/// That a process waits in the kernel and hears no signal.
pub fn waits_for_a_disk(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| rest.starts_with(" D"))
}

/// Kills berthd while others hold it, and starts it again once it has ended: no thread of it waits for a disk.
fn dies_and_comes_back(daemon: &mut Daemon) {
    eventually("berthd to be dead", || daemon.has_died().then_some(()));
    daemon.up();
}

/// What has nothing to do with the disk goes on.
pub fn others_work(daemon: &Daemon, pod: &Pod, beside: &str) {
    assert_eq!(daemon.exec_ok(beside, &["echo", "on"]), "on\n");
    assert_eq!(daemon.status(beside).unwrap().state(), Running);
    let next = asked("next", &["true"]);
    let id = daemon.launch(pod, &next).unwrap();
    assert_eq!(daemon.exited(&id).exit_code, 0);
    daemon.remove_container(&id).unwrap();
}

#[test]
fn a_volume_that_hangs_holds_up_its_own_container_only() {
    const TEST: &str = "a_volume_that_hangs_holds_up_its_own_container_only";
    let mut daemon = Daemon::with_fixture();
    let Some(sick) = served(TEST, &daemon) else { return };
    let (pod, other) = (daemon.plain_pod("hangs"), daemon.plain_pod("other"));
    let beside = daemon.launch(&other, &asked("c", &["sleep", "inf"])).unwrap();
    sick.is_now(Mood::Silent);
    let waits = asked("c", &["sleep", "inf"]).mount(volume(&sick));
    thread::scope(|scope| {
        let call = scope.spawn(|| daemon.launch(&pod, &waits));
        eventually("a shim to wait for the server", || (sick.waiting() > 0).then_some(()));
        others_work(&daemon, &other, &beside);
        assert_eq!(daemon.pod_status(&pod.id).unwrap().state(), cri::PodSandboxState::SandboxReady);
        kill(daemon.pid(), Signal::SIGKILL).unwrap();
        call.join().unwrap().unwrap_err();
    });
    dies_and_comes_back(&mut daemon);
    others_work(&daemon, &other, &beside);
    // The retry is told what it waited for, and leaves nothing.
    let told = daemon.launch(&pod, &waits).unwrap_err();
    assert_eq!(told.code(), Code::DeadlineExceeded, "{told}");
    assert!(told.message().contains("a volume, a layer or the log"), "{told}");
    let of_pod = cri::ContainerFilter { pod_sandbox_id: pod.id.clone(), ..Default::default() };
    assert!(daemon.list_containers(of_pod).is_empty());
    daemon.stop_pod(&pod.id).unwrap();
    daemon.remove_pod(&pod.id).unwrap();
    // Whoever was killed meanwhile ends now, and nothing comes to life.
    sick.is_now(Mood::Well);
}

#[test]
fn who_waits_for_a_volume_is_told_and_ends_when_that_answers() {
    const TEST: &str = "who_waits_for_a_volume_is_told_and_ends_when_that_answers";
    let mut daemon = Daemon::with_fixture();
    let Some(sick) = served(TEST, &daemon) else { return };
    let (pod, other) = (daemon.plain_pod("waits"), daemon.plain_pod("other"));
    let ended = daemon.launch(&pod, &asked("ended", &["true"]).mount(volume(&sick))).unwrap();
    daemon.exited(&ended);
    let id = daemon.launch(&pod, &asked("c", &["wait-file", "/data/go"]).mount(volume(&sick))).unwrap();
    let beside = daemon.launch(&other, &asked("c", &["sleep", "inf"])).unwrap();
    sick.is_now(Mood::Silent);
    eventually("the container to wait for the server", || (sick.waiting() > 0).then_some(()));
    daemon.kill9();
    daemon.up();
    assert_eq!(daemon.status(&id).unwrap().state(), Running);
    assert_eq!(daemon.exec_ok(&id, &["echo", "on"]), "on\n");
    // One that has ended needs it no more.
    daemon.remove_container(&ended).unwrap();
    thread::scope(|scope| {
        let call = scope.spawn(|| daemon.stop_container(&id, 0));
        others_work(&daemon, &other, &beside);
        let told = call.join().unwrap().unwrap_err();
        assert_eq!(told.code(), Code::DeadlineExceeded, "{told}");
        assert!(told.message().contains("a disk or"), "{told}");
    });
    sick.is_now(Mood::Well);
    assert_eq!(daemon.exited(&id).exit_code, 137);
    daemon.stop_container(&id, 0).unwrap();
    daemon.remove_container(&id).unwrap();
}

/// A pod whose logs are there.
fn pod_on(disk: &Freezer, daemon: &Daemon, name: &str) -> Pod {
    let directory = disk.path().join(name);
    fs::create_dir(&directory).unwrap();
    let log_directory = directory.display().to_string();
    daemon.run_pod(cri::PodSandboxConfig { log_directory, ..berth_tests::pod(name) }).unwrap()
}

fn spam(name: &str) -> Asked {
    asked(name, &["spam", "0", "100"])
}

#[test]
fn a_log_disk_that_hangs_holds_up_its_own_containers_only() {
    const TEST: &str = "a_log_disk_that_hangs_holds_up_its_own_containers_only";
    let mut daemon = Daemon::with_fixture();
    let Some(disk) = Freezer::mount(TEST, daemon.dir(), &daemon.dir().join("logs")) else { return };
    let (pod, other) = (pod_on(&disk, &daemon, "hangs"), daemon.plain_pod("other"));
    let ids = ["one", "two", "three"].map(|name| daemon.launch(&pod, &spam(name)).unwrap());
    let beside = daemon.launch(&other, &asked("c", &["sleep", "inf"])).unwrap();
    let shims = ids.each_ref().map(|id| shim_of(pid_of(&daemon, id)));
    disk.freeze();
    for shim in shims {
        eventually("a shim to wait for the disk", || waits_for_a_disk(shim.as_raw()).then_some(()));
    }
    let ended = |daemon: &Daemon, id: &str| {
        daemon.stop_container(id, 0).unwrap();
        let status = daemon.status(id).unwrap();
        assert_eq!((status.state(), status.exit_code), (Exited, 137), "{status:?}");
        assert!(status.message.contains("hangs on a disk") && status.reason == "Error", "{status:?}");
        assert!(status.started_at > 0, "{status:?}");
    };
    others_work(&daemon, &other, &beside);
    ended(&daemon, &ids[0]);
    daemon.kill9();
    daemon.up();
    others_work(&daemon, &other, &beside);
    for id in &ids[1..] {
        let status = daemon.status(id).unwrap();
        assert!(
            status.state() == Unknown && status.message.contains("the disk of its log hangs"),
            "{status:?}"
        );
    }
    ended(&daemon, &ids[1]);
    daemon.remove_container(&ids[1]).unwrap();
    disk.thaw();
    eventually("the third to be known again", || {
        (daemon.status(&ids[2]).unwrap().state() == Running).then_some(())
    });
    let lines = daemon.log_of(&pod, &spam("three")).len();
    eventually("more lines", || (daemon.log_of(&pod, &spam("three")).len() > lines + 5).then_some(()));
    let log = daemon.log_of(&pod, &spam("three"));
    let wrong = (1..).zip(&log).find(|(n, line)| !line.content.starts_with(&format!("line {n:06} ")));
    assert!(wrong.is_none(), "{wrong:?}");
    // Both that were killed are gone.
    for shim in &shims[..2] {
        eventually("a killed shim to be gone", || kill(*shim, None).is_err().then_some(()));
    }
    daemon.remove_pod(&pod.id).unwrap();
}

#[test]
fn berthd_can_die_while_a_container_waits_for_its_logs_disk() {
    const TEST: &str = "berthd_can_die_while_a_container_waits_for_its_logs_disk";
    let mut daemon = Daemon::with_fixture();
    let Some(disk) = Freezer::mount(TEST, daemon.dir(), &daemon.dir().join("logs")) else { return };
    let (pod, other) = (pod_on(&disk, &daemon, "hangs"), daemon.plain_pod("other"));
    let beside = daemon.launch(&other, &asked("c", &["sleep", "inf"])).unwrap();
    let name = daemon.bridge().to_owned();
    disk.freeze();
    thread::scope(|scope| {
        let call = scope.spawn(|| daemon.launch(&pod, &asked("c", &["true"])));
        eventually("somebody to wait for the disk", || {
            processes_naming(&name).into_iter().find(|pid| thread_waits(*pid))
        });
        others_work(&daemon, &other, &beside);
        kill(daemon.pid(), Signal::SIGKILL).unwrap();
        call.join().unwrap().unwrap_err();
    });
    dies_and_comes_back(&mut daemon);
    others_work(&daemon, &other, &beside);
    disk.thaw();
    assert_eq!(daemon.run_to_end(&pod, &asked("c", &["true"])).unwrap().0.exit_code, 0);
    daemon.remove_pod(&pod.id).unwrap();
}

pub fn thread_waits(pid: i32) -> bool {
    let threads = fs::read_dir(Path::new("/proc").join(pid.to_string()).join("task"));
    threads.into_iter().flatten().flatten().any(|thread| {
        thread.file_name().to_str().and_then(|name| name.parse().ok()).is_some_and(waits_for_a_disk)
    })
}
