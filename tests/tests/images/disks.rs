//! Images on a disk of their own, `registry.root`.

use berth_cri::v1 as cri;
use berth_tests::{Daemon, Disk, Options, asked, images};

use crate::{list, remove, status};

const EXT4: [&str; 2] = ["mkfs.ext4", "-q"];

fn split(disk: &Disk) -> Daemon {
    let over = format!("[registry]\nroot = {:?}\n", disk.root().join("images"));
    Daemon::start_with(Options { over, ..Options::default() })
}

fn filesystems(daemon: &Daemon) -> (cri::FilesystemUsage, cri::FilesystemUsage) {
    let mut told = daemon.call(daemon.images().image_fs_info(cri::ImageFsInfoRequest {})).unwrap();
    assert_eq!((told.image_filesystems.len(), told.container_filesystems.len()), (1, 1), "{told:?}");
    (told.image_filesystems.remove(0), told.container_filesystems.remove(0))
}

fn mountpoint(usage: &cri::FilesystemUsage) -> String {
    usage.fs_id.clone().unwrap().mountpoint
}

#[test]
fn images_live_on_their_disk_and_containers_on_theirs() {
    let Some(disk) =
        Disk::mount("images_live_on_their_disk_and_containers_on_theirs", 128, &EXT4, "defaults")
    else {
        return;
    };
    let mut daemon = split(&disk);
    let (before, _) = filesystems(&daemon);
    daemon.load_fixture();
    assert!(!daemon.root().join("images").exists());
    let (image, container) = filesystems(&daemon);
    assert!(mountpoint(&image).starts_with(disk.root().to_str().unwrap()), "{image:?}");
    assert!(mountpoint(&container).starts_with(daemon.root().to_str().unwrap()), "{container:?}");
    let used = |usage: &cri::FilesystemUsage| usage.used_bytes.unwrap().value;
    assert!(used(&image) > used(&before) + 100_000, "{before:?} {image:?}");

    let pod = daemon.plain_pod("split");
    let id = daemon.launch(&pod, &asked("c", &["sleep", "inf"])).unwrap();
    daemon.exec_ok(&id, &["write", "/file", "text"]);
    daemon.restart();
    assert_eq!(daemon.exec_ok(&id, &["cat", "/file"]), "text\n");
    assert!(status(&daemon, images::FIXTURE).is_some());
    daemon.remove_pod(&pod.id).unwrap();
    remove(&daemon, images::FIXTURE).unwrap();
    assert!(list(&daemon).is_empty());
    assert_eq!(std::fs::read_dir(disk.root().join("images/images/layers")).unwrap().count(), 0);
}

#[test]
fn a_full_disk_of_images_leaves_containers_alone() {
    let test = "a_full_disk_of_images_leaves_containers_alone";
    let Some(disk) = Disk::mount(test, 48, &EXT4, "defaults") else { return };
    let daemon = split(&disk);
    daemon.load_fixture();
    let pod = daemon.plain_pod("beside");
    let id = daemon.launch(&pod, &asked("c", &["sleep", "inf"])).unwrap();
    let noise: Vec<u8> = (0..64_u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let big = images::with_layer(berth_fixtures::Layer::new().file("noise", 0o644, noise));
    let refused = daemon.load(&images::archive("localhost/big:1", &big), None).unwrap_err();
    let disk_root = disk.root();
    assert!(refused.message().contains(disk_root.to_str().unwrap()), "{refused}");
    assert!(refused.message().to_lowercase().contains("space"), "{refused}");
    assert!(status(&daemon, "localhost/big:1").is_none());
    daemon.exec_ok(&id, &["write", "/file", "text"]);
    let (after, _) = daemon.run_to_end(&pod, &asked("more", &["true"])).unwrap();
    assert_eq!(after.exit_code, 0);
    daemon.remove_pod(&pod.id).unwrap();
    remove(&daemon, images::FIXTURE).unwrap();
}
