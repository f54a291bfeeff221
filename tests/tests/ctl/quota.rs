//! `--storage`: what a container's own layer may take.

use std::{fs, os::unix::fs::MetadataExt, path::Path};

use berth_tests::{Daemon, Disk, Options, asked, images, pod};

use crate::{IMAGE, inspect};

const KINDS: [&[&str]; 2] = [&["mkfs.ext4", "-q", "-O", "project,quota"], &["mkfs.xfs", "-q"]];
/// The least that mkfs.xfs(8) makes.
const MEBIBYTES: u64 = 320;

/// What all files below a directory take, in bytes.
fn taken(at: &Path) -> u64 {
    let entries = fs::read_dir(at).unwrap().map(|entry| entry.unwrap());
    let of = |entry: fs::DirEntry| {
        let metadata = entry.metadata().unwrap();
        metadata.blocks() * 512 + if metadata.is_dir() { taken(&entry.path()) } else { 0 }
    };
    entries.map(of).sum()
}

/// A daemon that keeps all on the disk, with the image of busybox.
fn on(disk: &Disk, more: &str) -> Daemon {
    let over = format!("[daemon]\nroot = {:?}\n{more}", disk.root());
    let daemon = Daemon::start_with(Options { over, ..Options::default() });
    daemon.load_image(images::BUSYBOX, &images::busybox().expect("busybox-static is installed"));
    daemon
}

fn fill(mebibytes: u64) -> Vec<String> {
    let words = ["dd", "if=/dev/zero", "of=/big", "bs=65536"].map(str::to_owned);
    [&words[..], &[format!("count={}", mebibytes * 16)]].concat()
}

#[test]
fn a_layer_takes_no_more_than_it_may() {
    for make in KINDS {
        let test = "a_layer_takes_no_more_than_it_may";
        let Some(disk) = Disk::mount(test, MEBIBYTES, make, "prjquota") else { continue };
        let daemon = on(&disk, "");
        let big = fill(32);
        let big: Vec<&str> = big.iter().map(String::as_str).collect();
        let run = [&["run", "--name", "full", "--storage", "8m", images::BUSYBOX], &big[..]].concat();
        let said = daemon.berth(&run);
        assert_eq!(said.code, 1, "{said:?}");
        assert!(said.stderr.contains("quota exceeded") || said.stderr.contains("No space left"), "{said:?}");
        let told = inspect(&daemon, "full");
        assert_eq!(told["HostConfig"]["StorageOpt"]["size"], "8388608");
        let id = told["Id"].as_str().unwrap().to_owned();
        let upper = disk.root().join("containers").join(&id).join("upper");
        let used = taken(&upper);
        assert!((7 << 20..=8 << 20).contains(&used), "{make:?}: {used}");
        // It stays so for as long as the layer is there.
        let again = daemon.berth(&["start", "-a", "full"]);
        assert_eq!(again.code, 1, "{again:?}");
        assert!(taken(&upper) <= 8 << 20);

        // Files come from below and are renamed within it as without a limit.
        let change = "mv /etc/passwd /etc/moved && mkdir -p /a/b && mv /etc/moved /a/b/c && cat /a/b/c";
        let limited = ["run", "--rm", "--storage", "8m", images::BUSYBOX, "sh", "-c", change];
        let read = daemon.berth_ok(&limited);
        assert!(read.contains("root:"), "{read}");
        // Others are not bounded by it.
        daemon.berth_ok(&[&["run", "--rm", images::BUSYBOX], &big[..]].concat());
        daemon.berth_ok(&["rm", "full"]);
    }
}

#[test]
fn a_node_limits_all_layers_and_a_pod_its_own() {
    let test = "a_node_limits_all_layers_and_a_pod_its_own";
    let Some(disk) = Disk::mount(test, MEBIBYTES, KINDS[0], "prjquota") else { return };
    let daemon = on(&disk, "layer_max_bytes = 4194304\n");
    let mut config = pod("limited");
    config.annotations.insert("berth.dev/storage.more".into(), "16Mi".into());
    let pod = daemon.run_pod(config).unwrap();
    let of = |name: &str, mebibytes: u64| {
        let words = fill(mebibytes);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        daemon.run_to_end(&pod, &asked(name, &words).image(images::BUSYBOX)).unwrap().0.exit_code
    };
    assert_eq!([of("less", 2), of("usual", 8), of("more", 8)], [0, 1, 0]);
}

#[test]
fn a_disk_without_quotas_is_told() {
    let test = "a_disk_without_quotas_is_told";
    let Some(disk) = Disk::mount(test, 64, &["mkfs.ext4", "-q", "-O", "^project"], "defaults") else {
        return;
    };
    let over = format!("[daemon]\nroot = {:?}\n", disk.root());
    let daemon = Daemon::with_fixture_and(Options { over, ..Options::default() });
    let said = daemon.berth(&["run", "--name", "bounded", "--storage", "8m", IMAGE, "true"]);
    assert_eq!(said.code, 125, "{said:?}");
    assert!(said.stderr.contains("project quotas") && said.stderr.contains("prjquota"), "{said:?}");
    let left = fs::read_dir(disk.root().join("containers")).unwrap().count();
    assert_eq!((left, daemon.berth_ok(&["ps", "-aq"]).as_str()), (0, ""));
    daemon.berth_ok(&["run", "--rm", IMAGE, "true"]);
}
