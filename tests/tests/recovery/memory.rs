//! Want of memory: of a container's child, of a pod, of `berthd` itself. Who was killed, and by whose limit, is told.

use std::{
    fs,
    path::{Path, PathBuf},
};

use berth_cri::v1 as cri;
use berth_tests::{Daemon, asked, eventually, skip};
use serde_json::Value;

/// Where this host counts memory, and the file of the limit there.
fn memory() -> (PathBuf, &'static str) {
    let old = Path::new("/sys/fs/cgroup/memory");
    match old.join("cgroup.procs").exists() {
        true => (old.to_owned(), "memory.limit_in_bytes"),
        false => ("/sys/fs/cgroup".into(), "memory.max"),
    }
}

/// Whether the kernel's log can be read, by which victims are named.
fn named(test: &str) -> bool {
    let read = fs::File::open("/dev/kmsg").is_ok();
    if !read {
        skip(test, "/dev/kmsg can't be read");
    }
    read
}

fn explained(daemon: &Daemon, id: &str, what: &str) -> Option<String> {
    let told: Value = serde_json::from_str(&daemon.berth_ok(&["explain", "-o", "json", id])).unwrap();
    let steps = told["stories"][0]["steps"].as_array().unwrap().clone();
    let step = steps.into_iter().find(|step| step["what"] == what)?;
    Some(step["detail"].as_str().unwrap().to_owned())
}

#[test]
fn a_child_that_was_killed_is_named_with_the_limit_and_init_lives() {
    const TEST: &str = "a_child_that_was_killed_is_named_with_the_limit_and_init_lives";
    if !named(TEST) {
        return;
    }
    let daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("child");
    let limited = |name: &str, words: &[&str]| {
        asked(name, words).limited(|limits| limits.memory_limit_in_bytes = 32 << 20)
    };
    let id = daemon.launch(&pod, &limited("lives", &["trap", "--exit", "3"])).unwrap();
    let eaten = daemon.exec(&id, &["eat", "512M"], 60).unwrap();
    assert_eq!(eaten.exit_code, 137);
    let told = eventually("it to be told", || explained(&daemon, &id, "out of memory"));
    assert!(told.contains("(eat) was killed for want of memory: the container's limit"), "{told}");
    assert_eq!(daemon.status(&id).unwrap().state(), cri::ContainerState::ContainerRunning);
    daemon.stop_container(&id, 10).unwrap();
    // It ended as it was asked to; what had happened to its child is told beside.
    let status = daemon.status(&id).unwrap();
    assert_eq!((status.exit_code, status.reason.as_str()), (3, "Error"), "{status:?}");
    assert!(status.message.contains("(eat)") && status.message.contains("limit of 32768 KiB"), "{status:?}");
    // And of init.
    let (status, _) = daemon.run_to_end(&pod, &limited("init", &["eat", "512M"])).unwrap();
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "OOMKilled"), "{status:?}");
    assert!(status.message.contains("the container's limit of 32768 KiB was reached"), "{status:?}");
}

#[test]
fn a_pods_limit_is_named_as_the_pods() {
    const TEST: &str = "a_pods_limit_is_named_as_the_pods";
    if !named(TEST) {
        return;
    }
    let daemon = Daemon::with_fixture();
    let parent = format!("{}/limited", daemon.cgroup_parent());
    let mut config = berth_tests::pod("limited");
    config.linux.get_or_insert_default().cgroup_parent.clone_from(&parent);
    let pod = daemon.run_pod(config).unwrap();
    // It is there with the pod's first container; the kubelet makes it before.
    let waits = daemon.launch(&pod, &asked("waits", &["sleep", "inf"])).unwrap();
    let (root, file) = memory();
    let group = root.join(parent.trim_start_matches('/'));
    fs::write(group.join(file), (32 << 20).to_string()).unwrap();
    let (status, _) = daemon.run_to_end(&pod, &asked("eats", &["eat", "512M"])).unwrap();
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "OOMKilled"), "{status:?}");
    assert!(status.message.contains("its pod's limit of 32768 KiB was reached"), "{status:?}");
    assert_eq!(daemon.status(&waits).unwrap().state(), cri::ContainerState::ContainerRunning);
    daemon.remove_pod(&pod.id).unwrap();
    remove(parent.trim_start_matches('/'));
}

/// Removes a group of the test's own from every hierarchy.
fn remove(group: &str) {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let roots = table.lines().filter_map(|line| {
        let (place, rest) = line.split_once(" - ")?;
        rest.starts_with("cgroup").then(|| Path::new(place.split(' ').nth(4).unwrap()).join(group))
    });
    for directory in roots.filter(|directory| directory.is_dir()) {
        eventually("the group to be free", || fs::remove_dir(&directory).is_ok().then_some(()));
    }
}

#[test]
fn berthd_may_run_out_of_memory_and_nothing_else_does() {
    let mut daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("memory");
    let spam = asked("spam", &["spam", "0", "100"]);
    let id = daemon.launch(&pod, &spam).unwrap();
    let pid = daemon.details(&id)["pid"].clone();
    let (root, file) = memory();
    let name = format!("{}-berthd", daemon.bridge());
    let group = root.join(&name);
    fs::create_dir(&group).unwrap();
    fs::write(group.join(file), (1 << 20).to_string()).unwrap();
    fs::write(group.join("cgroup.procs"), daemon.pid().to_string()).unwrap();
    // A long request is held whole before it is refused.
    eventually("berthd to be killed", || {
        let request = cri::VersionRequest { version: "v".repeat(8 << 20) };
        daemon.call(daemon.runtime().version(request)).ok();
        daemon.has_died().then_some(())
    });
    daemon.up();
    assert_eq!(daemon.details(&id)["pid"], pid);
    let lines = daemon.log_of(&pod, &spam).len();
    eventually("more lines", || (daemon.log_of(&pod, &spam).len() > lines + 5).then_some(()));
    let log = daemon.log_of(&pod, &spam);
    let wrong = (1..).zip(&log).find(|(n, line)| !line.content.starts_with(&format!("line {n:06} ")));
    assert!(wrong.is_none(), "{wrong:?}");
    assert_eq!(daemon.run_to_end(&pod, &asked("next", &["true"])).unwrap().0.exit_code, 0);
    daemon.remove_pod(&pod.id).unwrap();
    remove(&name);
}
