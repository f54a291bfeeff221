//! The leak check finds what it is there to find: a check that never fails proves nothing.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use berth_tests::{Daemon, asked, eventually};
use rustix::mount::{MountFlags, UnmountFlags};

/// Whether one of the leaks is of a kind and has a word.
fn told(left: &[String], kind: &str, word: &str) -> bool {
    left.iter().any(|leak| leak.starts_with(kind) && leak.contains(word))
}

#[test]
fn every_kind_of_leak_is_found() {
    let daemon = Daemon::start();
    assert_eq!(daemon.left_behind(), Vec::<String>::new());
    let name = daemon.bridge().to_owned();

    let mut sleep =
        Command::new("sleep").arg("1000").env("LEAKED_BY", &name).stdin(Stdio::null()).spawn().unwrap();
    // Its environment is there with its exec.
    eventually("the process to be found", || {
        told(&daemon.left_behind(), "process", "sleep 1000").then_some(())
    });
    sleep.kill().unwrap();
    sleep.wait().unwrap();

    let point = daemon.dir().join("leak");
    fs::create_dir(&point).unwrap();
    rustix::mount::mount("tmpfs", &point, "tmpfs", MountFlags::empty(), None).unwrap();
    assert!(told(&daemon.left_behind(), "mount", "/leak"));
    rustix::mount::unmount(&point, UnmountFlags::empty()).unwrap();

    let hierarchies = ["/sys/fs/cgroup/memory", "/sys/fs/cgroup"];
    let hierarchy =
        hierarchies.iter().map(Path::new).find(|path| path.join("cgroup.procs").exists()).unwrap();
    let parent = hierarchy.join(&name);
    fs::create_dir_all(parent.join("leak")).unwrap();
    assert!(told(&daemon.left_behind(), "cgroup", "/leak"));
    fs::remove_dir(parent.join("leak")).unwrap();
    fs::remove_dir(parent).unwrap();

    let link = |words: &[&str]| {
        assert!(Command::new("ip").arg("link").args(words).status().unwrap().success(), "ip link {words:?}");
    };
    let end = format!("l{}", &name[4..]);
    link(&["add", &end, "type", "veth", "peer", "name", &format!("{end}p")]);
    link(&["set", &end, "master", &name]);
    assert!(told(&daemon.left_behind(), "link", &end));
    link(&["delete", &end]);

    let file = daemon.state().join("leak");
    fs::write(&file, "").unwrap();
    assert!(told(&daemon.left_behind(), "file", "/leak"));
    fs::remove_file(file).unwrap();

    assert_eq!(daemon.left_behind(), Vec::<String>::new());
}

#[test]
fn a_running_container_is_all_of_these() {
    let daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("leaks");
    let id = daemon.launch(&pod, &asked("c", &["sleep", "1000"])).unwrap();
    let left = daemon.left_behind();
    for (kind, word) in [
        ("process", "sleep 1000"),
        ("process", "berth-shim"),
        ("mount", &pod.id),
        ("cgroup", &id),
        ("link", "bth"),
        ("file", &id),
        ("file", &pod.id),
    ] {
        assert!(told(&left, kind, word), "no {kind} {word}:\n{}", left.join("\n"));
    }
}

#[test]
fn a_leak_fails_the_test_and_is_swept() {
    let daemon = Daemon::start();
    let (dir, file) = (daemon.dir().to_owned(), daemon.state().join("leak"));
    fs::write(&file, "").unwrap();
    let dropped = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(daemon)));
    let told = dropped.unwrap_err().downcast::<String>().unwrap();
    assert!(told.contains("left behind") && told.contains(file.to_str().unwrap()), "{told}");
    assert!(!dir.exists());
}
