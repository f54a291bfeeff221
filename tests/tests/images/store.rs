//! The store: what is listed, removed, counted.

use std::{path::Path, process::Command};

use berth_cri::v1 as cri;
use berth_tests::{BOUND, Daemon, asked, images, until};

use crate::{files, list, remove, status};

#[test]
fn an_absent_image_is_no_error() {
    let daemon = Daemon::start();
    assert!(status(&daemon, "localhost/nosuch:1").is_none());
    assert!(
        status(&daemon, "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef").is_none()
    );
    remove(&daemon, "localhost/nosuch:1").unwrap();
    assert!(list(&daemon).is_empty());
}

#[test]
fn images_are_found_by_name_id_and_prefix() {
    let daemon = Daemon::with_fixture();
    let id = status(&daemon, images::FIXTURE).unwrap().id;
    let hex = id.trim_start_matches("sha256:");
    for name in [images::FIXTURE, &id, hex, &hex[..12]] {
        assert_eq!(status(&daemon, name).map(|image| image.id).as_deref(), Some(id.as_str()), "{name}");
    }
    let request = cri::ListImagesRequest {
        filter: Some(cri::ImageFilter { image: crate::named("localhost/other:1") }),
    };
    assert!(daemon.call(daemon.images().list_images(request)).unwrap().images.is_empty());
}

#[test]
fn the_user_of_an_image_is_told() {
    let daemon = Daemon::start();
    daemon.load_image("localhost/name:1", &images::base().user("app:staff"));
    daemon.load_image("localhost/number:1", &images::base().user("1000:1000"));
    let name = status(&daemon, "localhost/name:1").unwrap();
    assert_eq!((name.username.as_str(), name.uid), ("app", None));
    let number = status(&daemon, "localhost/number:1").unwrap();
    assert_eq!((number.username.as_str(), number.uid.unwrap().value), ("", 1000));
}

#[test]
fn five_removals_at_once_all_succeed() {
    let daemon = Daemon::with_fixture();
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..5)
            .map(|_| {
                scope.spawn(|| {
                    remove(&daemon, images::FIXTURE)?;
                    Ok::<_, tonic::Status>(status(&daemon, images::FIXTURE))
                })
            })
            .collect();
        for removed in all {
            assert!(removed.join().unwrap().unwrap().is_none(), "gone when the call returns");
        }
    });
    assert!(list(&daemon).is_empty());
}

#[test]
fn nothing_of_a_removed_image_stays() {
    let daemon = Daemon::start();
    let before = files(&daemon);
    daemon.load_layered();
    assert!(files(&daemon).len() > before.len());
    remove(&daemon, images::LAYERED).unwrap();
    let more = || {
        // The tables of names stay, the last one empty.
        let all = files(&daemon).into_iter().filter(|file| !file.starts_with("images/names.json"));
        all.filter(|file| !before.contains(file)).collect::<Vec<_>>()
    };
    until(BOUND, || more().is_empty().then_some(()));
    assert_eq!(more(), Vec::<String>::new());
}

#[test]
fn an_image_in_use_can_be_removed_and_its_container_runs_on() {
    let daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("use");
    let id = daemon.launch(&pod, &asked("c", &["sleep", "inf"])).unwrap();
    if remove(&daemon, images::FIXTURE).is_ok() {
        assert!(status(&daemon, images::FIXTURE).is_none());
    }
    assert_eq!(daemon.exec_ok(&id, &["echo", "on"]), "on\n");
    daemon.exec_ok(&id, &["cat", "/etc/passwd"]);
    daemon.remove_pod(&pod.id).unwrap();
    remove(&daemon, images::FIXTURE).unwrap();
    assert!(list(&daemon).is_empty());
}

#[test]
fn the_file_system_of_images_is_counted() {
    let daemon = Daemon::start();
    let used = || {
        let answer = daemon.call(daemon.images().image_fs_info(cri::ImageFsInfoRequest {})).unwrap();
        let found = &answer.image_filesystems[0];
        let mountpoint = found.fs_id.as_ref().unwrap().mountpoint.clone();
        assert!(Path::new(&mountpoint).starts_with(daemon.root()), "{mountpoint}");
        assert!(found.timestamp > 0);
        assert!(!answer.container_filesystems.is_empty());
        (found.used_bytes.unwrap().value, found.inodes_used.unwrap().value)
    };
    let before = used();
    daemon.load_layered();
    let after = used();
    assert!(after.0 > before.0 + 100_000 && after.1 > before.1 + 50, "{before:?} {after:?}");
    let du = |flag: &str| -> u64 {
        let run = Command::new("du").args(["--summarize", flag]).arg(daemon.root().join("images")).output();
        let said = String::from_utf8(run.unwrap().stdout).unwrap();
        said.split_whitespace().next().unwrap().parse().unwrap()
    };
    assert_eq!(after, (du("--block-size=1"), du("--inodes")));
}

#[test]
fn images_are_there_after_a_restart() {
    let mut daemon = Daemon::with_fixture();
    daemon.load_layered();
    let ids = |daemon: &Daemon| {
        let mut ids: Vec<String> = list(daemon).into_iter().map(|image| image.id).collect();
        ids.sort();
        ids
    };
    let before = ids(&daemon);
    daemon.restart();
    assert_eq!(ids(&daemon), before);
    daemon.kill9();
    daemon.up();
    assert_eq!(ids(&daemon), before);
    let pod = daemon.plain_pod("after");
    assert_eq!(daemon.run_to_end(&pod, &asked("c", &["true"])).unwrap().0.exit_code, 0);
}
