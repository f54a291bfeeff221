//! The attacks of the last years on programs like ours, each by a bundle that tries it. Others sit with what they try:
//! `exec --user` by words (CVE-2026-30892) in exec.rs, sysctls and descriptors (CVE-2025-52881, CVE-2024-21626) in the
//! shim's own tests, images in the CRI suite.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
};

use berth_tests::oci::{Console, Oci, text};
use rustix::fs::{Access, StatVfsMountFlags};
use serde_json::{Value, json};

/// CVE-2019-5736: by `#!/proc/self/exe` the launching program becomes a process of the container, by which its file could
/// be opened to write.
#[test]
fn the_launchers_own_file_is_read_only_to_whoever_reaches_it_through_a_process() {
    let oci = Oci::new();
    oci.create("c1", &oci.config("c1", &["true"]));
    let exe = format!("/proc/{}/exe", oci.pid("c1"));
    let shim = fs::metadata(berth_tests::program("berth-shim")).unwrap();
    let seen = fs::metadata(&exe).unwrap();
    assert_eq!((seen.dev(), seen.ino()), (shim.dev(), shim.ino()), "init is not the shim yet");
    assert!(rustix::fs::statvfs(&exe).unwrap().f_flag.contains(StatVfsMountFlags::RDONLY));
    assert_eq!(rustix::fs::access(&exe, Access::WRITE_OK), Err(rustix::io::Errno::ROFS));
    oci.ok(&["delete", "c1"]);
    assert_eq!(oci.reap("c1"), 128 + 9);

    // The attack itself comes as far as that, and no further.
    let evil = oci.bundle().join("rootfs/bin/evil");
    fs::write(&evil, "#!/proc/self/exe --version\n").unwrap();
    fs::set_permissions(&evil, fs::Permissions::from_mode(0o755)).unwrap();
    oci.write(&oci.config("c1", &["/bin/evil"]));
    oci.run(&["run", "c1"]);
}

/// CVE-2024-21626: a working directory by a descriptor that the launcher may have left open.
#[test]
fn no_descriptor_leads_a_working_directory_out() {
    let oci = Oci::new();
    for number in 0..24 {
        let mut config = oci.config("c1", &["ls", "."]);
        config["process"]["cwd"] = json!(format!("/proc/self/fd/{number}"));
        oci.write(&config);
        let said = oci.run(&["run", "c1"]);
        assert_ne!(said.code, 0, "{number}: {}", said.stdout);
        assert!(!said.stdout.contains("config.json") && !said.stdout.contains("proc"), "{number}: {said:?}");
    }
}

/// CVE-2025-31133: an image's /dev/null that is another file would be shown, writable, over what is masked.
#[test]
fn a_dev_null_that_is_none_masks_nothing() {
    let oci = Oci::new();
    let dev = oci.bundle().join("rootfs/dev");
    fs::create_dir_all(&dev).unwrap();
    let mut config = oci.config("c1", &["true"]);
    config["mounts"] = json!([{"destination": "/proc", "type": "proc", "source": "proc"}]);
    config["linux"]["maskedPaths"] = json!(["/proc/kcore"]);
    for kind in ["link", "file"] {
        fs::remove_file(dev.join("null")).ok();
        match kind {
            "link" => symlink("/proc/sys/kernel/core_pattern", dev.join("null")).unwrap(),
            _ => fs::write(dev.join("null"), "").unwrap(),
        }
        oci.write(&config);
        let why = oci.refused(&["create", "c1"]);
        assert!(why.contains("/dev/null"), "{kind}: {why}");
    }
}

/// CVE-2025-52565: a /dev/console that is a link would have the terminal cover another file.
#[test]
fn a_dev_console_that_is_a_link_is_refused() {
    let oci = Oci::new();
    let mut config = oci.config("c1", &["true"]);
    config["process"]["terminal"] = json!(true);
    // /dev of the image, where such a link can lie.
    let dev = oci.bundle().join("rootfs/dev");
    fs::create_dir_all(dev.join("pts")).unwrap();
    config["mounts"].as_array_mut().unwrap().retain(|mount| mount["destination"] != "/dev");
    symlink("/proc/sys/kernel/core_pattern", dev.join("console")).unwrap();
    oci.write(&config);
    let console = Console::new(&oci);
    let why = oci.refused(&["create", "--console-socket", console.path(), "c1"]);
    assert!(why.contains("/dev/console") && why.contains("symbolic link"), "{why}");
}

/// CVE-2026-41579: /dev as a link would have nodes made where it leads.
#[test]
fn a_dev_that_is_a_link_stays_inside() {
    let oci = Oci::new();
    let outside = oci.dir().join("outside");
    fs::create_dir(&outside).unwrap();
    let dev = oci.bundle().join("rootfs/dev");
    fs::remove_dir_all(&dev).ok();
    symlink(&outside, &dev).unwrap();
    for mounts in [json!([{"destination": "/proc", "type": "proc", "source": "proc"}]), Value::Null] {
        let mut config = oci.config("c1", &["true"]);
        if !mounts.is_null() {
            config["mounts"] = mounts;
        }
        oci.write(&config);
        // It may fail or stay inside.
        oci.run(&["run", "c1"]);
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    }
}

/// A mount whose place in the image is a link to somewhere outside.
#[test]
fn a_mount_through_a_link_stays_inside() {
    let oci = Oci::new();
    let outside = oci.dir().join("outside");
    fs::create_dir(&outside).unwrap();
    let rootfs = oci.bundle().join("rootfs");
    let up = format!("{}{}", "../".repeat(32), text(&outside).trim_start_matches('/'));
    symlink(&outside, rootfs.join("absolute")).unwrap();
    symlink(&up, rootfs.join("relative")).unwrap();
    symlink("/proc/1/root", rootfs.join("magic")).unwrap();
    for place in ["/absolute", "/relative", "/magic/x", "/absolute/deeper", "/relative/../x"] {
        let mut config = oci.config("c1", &["info"]);
        let mount = json!({"destination": place, "type": "tmpfs", "source": "tmpfs"});
        config["mounts"].as_array_mut().unwrap().push(mount);
        oci.write(&config);
        let said = oci.run(&["run", "c1"]);
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0, "{place}: {said:?}");
    }
    // /proc has to be what it is called: a link would leave the paths that are masked.
    symlink("/tmp", rootfs.join("linked")).unwrap();
    let mut config = oci.config("c1", &["true"]);
    config["mounts"][0]["destination"] = json!("/linked");
    oci.write(&config);
    assert!(oci.refused(&["create", "c1"]).contains("symbolic link"));
}

/// A directory that is swapped with a link to the outside over and over while containers mount below it.
#[test]
fn a_root_that_is_swapped_while_mounting_leads_nowhere() {
    use std::sync::atomic::{AtomicBool, Ordering};
    let oci = Oci::new();
    let rootfs = oci.bundle().join("rootfs");
    let outside = oci.dir().join("outside");
    fs::create_dir(&outside).unwrap();
    let (place, link) = (rootfs.join("volume"), rootfs.join("link"));
    fs::create_dir(&place).unwrap();
    symlink(&outside, &link).unwrap();
    let mut config = oci.config("c1", &["true"]);
    for number in 0..8 {
        let mount =
            json!({"destination": format!("/volume/a/b{number}"), "type": "tmpfs", "source": "tmpfs"});
        config["mounts"].as_array_mut().unwrap().push(mount);
    }
    oci.write(&config);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let flags = rustix::fs::RenameFlags::EXCHANGE;
                rustix::fs::renameat_with(rustix::fs::CWD, &place, rustix::fs::CWD, &link, flags).unwrap();
            }
        });
        // Whether a run works is luck; where it writes is not.
        (0..20).for_each(|_| drop(oci.run(&["run", "c1"])));
        done.store(true, Ordering::Relaxed);
    });
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
}

/// `setgroups(2)` before the maps of a user namespace are whole would leave a group that denies something.
#[test]
fn a_container_with_ids_of_its_own_has_no_group_of_the_callers() {
    let oci = Oci::new();
    let mut config = oci.config("c1", &["info"]);
    config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"}));
    let map = json!([{"containerID": 0, "hostID": 100_000, "size": 1000}]);
    config["linux"]["uidMappings"] = map.clone();
    config["linux"]["gidMappings"] = map;
    config["process"]["user"] = json!({"uid": 5, "gid": 6, "additionalGids": [7]});
    oci.write(&config);
    let info: Value = serde_json::from_str(&oci.ok(&["run", "c1"])).unwrap();
    assert_eq!((&info["uid"], &info["gid"], &info["groups"]), (&json!(5), &json!(6), &json!([6, 7])));
    // A group that is not mapped can't be had.
    config["process"]["user"]["additionalGids"] = json!([5000]);
    oci.write(&config);
    assert!(oci.refused(&["create", "c1"]).contains("setgroups"));
}
