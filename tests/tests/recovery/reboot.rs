//! After a reboot: what is always to run is started again, the rest has ended, and says why.

use std::{fs, path::Path};

use berth_cri::v1 as cri;
use berth_tests::{Daemon, asked, eventually, images, processes_naming};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use rustix::mount::{UnmountFlags, unmount};
use serde_json::Value;

const OTHER_BOOT: &str = "00000000-0000-4000-8000-000000000000";

fn inspect(daemon: &Daemon, container: &str) -> Value {
    let mut found: Vec<Value> = serde_json::from_str(&daemon.berth_ok(&["inspect", container])).unwrap();
    found.remove(0)
}

/// What a reboot does: no process, no mount, nothing in /run; and the records are of another boot.
fn reboot(daemon: &mut Daemon) {
    daemon.kill9();
    let word = daemon.dir().file_name().unwrap().to_str().unwrap().to_owned();
    eventually("all processes to be gone", || {
        let pids = processes_naming(&word);
        for pid in &pids {
            kill(Pid::from_raw(*pid), Signal::SIGKILL).ok();
        }
        pids.is_empty().then_some(())
    });
    for pod in fs::read_dir(daemon.state().join("pods")).unwrap().flatten() {
        let pins = fs::read_dir(pod.path().join("ns")).into_iter().flatten().flatten().map(|pin| pin.path());
        for path in pins.chain([pod.path().join("shm")]) {
            // Not every pod has each of them.
            unmount(&path, UnmountFlags::DETACH).ok();
        }
    }
    fs::remove_dir_all(daemon.state()).unwrap();
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    for kind in ["pods", "containers"] {
        for entry in fs::read_dir(daemon.root().join(kind)).unwrap().flatten() {
            age(&entry.path().join("record"), boot.trim());
        }
    }
    daemon.up();
}

/// Another boot's name in place of this one's: as long as that, so that the record stays whole.
fn age(record: &Path, boot: &str) {
    let mut bytes = fs::read(record).unwrap();
    let at = bytes.windows(boot.len()).position(|window| window == boot.as_bytes());
    // What has ended before keeps the name of its own boot.
    let Some(at) = at else { return };
    bytes[at..at + boot.len()].copy_from_slice(OTHER_BOOT.as_bytes());
    fs::write(record, bytes).unwrap();
}

#[test]
fn what_is_always_to_run_runs_again_after_a_reboot() {
    let mut daemon = Daemon::with_fixture();
    let run = |name: &str, policy: &str| {
        daemon.berth_ok(&[
            "run",
            "-d",
            "--name",
            name,
            "--restart",
            policy,
            images::FIXTURE,
            "trap",
            "--exit",
            "3",
        ])
    };
    for (name, policy) in
        [("always", "always"), ("stopped", "always"), ("failing", "on-failure"), ("once", "no")]
    {
        run(name, policy);
    }
    daemon.berth_ok(&["create", "--name", "created", "--restart", "always", images::FIXTURE, "sleep", "inf"]);
    daemon.berth_ok(&["stop", "stopped"]);
    let pod = daemon.plain_pod("kubelet");
    let id = daemon.launch(&pod, &asked("c", &["sleep", "inf"])).unwrap();

    reboot(&mut daemon);

    let runs = |daemon: &Daemon| (inspect(daemon, "always")["State"]["Status"] == "running").then_some(());
    eventually("it to run again", || runs(&daemon));
    assert_eq!(daemon.berth_ok(&["exec", "always", "echo", "back"]), "back");
    for name in ["failing", "once", "created"] {
        let told = inspect(&daemon, name)["State"].clone();
        assert_eq!(told["Status"], "exited", "{name}: {told}");
        assert!(told.to_string().contains("the machine was started anew"), "{name}: {told}");
    }
    assert_eq!(inspect(&daemon, "stopped")["State"]["ExitCode"], 3);
    let status = daemon.status(&id).unwrap();
    assert_eq!((status.state(), status.exit_code), (cri::ContainerState::ContainerExited, 137));
    assert_eq!(status.reason, "Error", "{status:?}");
    assert!(status.message.contains("the machine was started anew"), "{status:?}");
    assert_eq!(daemon.pod_status(&pod.id).unwrap().state(), cri::PodSandboxState::SandboxNotready);
    // And once more: it was not once only.
    reboot(&mut daemon);
    eventually("it to run again", || runs(&daemon));
    daemon.berth_ok(&["stop", "always"]);
    assert_eq!(inspect(&daemon, "always")["State"]["ExitCode"], 3);
}
