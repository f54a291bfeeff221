//! Mounts as the kernel lists them for a container: options, propagation, ids, what is masked and what can't be written.

use std::{fs, os::unix::fs::chown, path::Path};

use berth_tests::{
    oci::{Oci, text},
    required, skip,
};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount};
use serde_json::{Value, json};

/// A file system of a test's own, shared or private as the host's is not to be relied on.
struct Tree<'a>(&'a Path);

impl<'a> Tree<'a> {
    fn new(place: &'a Path, how: MountPropagationFlags) -> Self {
        fs::create_dir_all(place).unwrap();
        mount("tmpfs", place, "tmpfs", MountFlags::empty(), None).unwrap();
        let tree = Self(place);
        mount_change(place, how).unwrap();
        tree
    }
}

impl Drop for Tree<'_> {
    fn drop(&mut self) {
        // With what is mounted in it.
        unmount(self.0, UnmountFlags::DETACH).ok();
    }
}

/// A line of /proc/PID/mountinfo about a place: its options, and its propagation.
fn mounted(pid: i32, place: &str) -> Option<(String, String)> {
    let text = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
    // Of several at one place the last is on top.
    let mut lines = text.lines().filter(|line| line.split(' ').nth(4) == Some(place));
    let words: Vec<String> = lines.next_back()?.split(' ').map(str::to_owned).collect();
    let optional: Vec<&str> = words[6..].iter().map(String::as_str).take_while(|word| *word != "-").collect();
    Some((words[5].clone(), optional.join(" ")))
}

fn with(config: &mut Value, mount: Value) {
    config["mounts"].as_array_mut().unwrap().push(mount);
}

fn delete(oci: &Oci, id: &str) {
    oci.ok(&["delete", "--force", id]);
    oci.reap(id);
}

#[test]
fn a_volume_hears_of_the_hosts_mounts_and_the_host_of_its_as_is_asked_for() {
    let oci = Oci::new();
    let place = oci.dir().join("shared");
    let tree = Tree::new(&place, MountPropagationFlags::SHARED);
    for name in ["before", "later"] {
        fs::create_dir(tree.0.join(name)).unwrap();
    }
    mount("tmpfs", tree.0.join("before"), "tmpfs", MountFlags::empty(), None).unwrap();
    let mut config = oci.config("c1", &["sleep", "1000"]);
    for (at, how) in [("/slave", "rslave"), ("/shared", "rshared"), ("/private", "rprivate"), ("/said", "")] {
        let options: Vec<&str> = ["rbind", how].into_iter().filter(|option| !option.is_empty()).collect();
        with(
            &mut config,
            json!({"destination": at, "type": "bind", "source": text(tree.0), "options": options}),
        );
    }
    oci.start("c1", &config);
    let pid = oci.pid("c1");
    let how = |at: &str| mounted(pid, at).unwrap_or_else(|| panic!("nothing is at {at}")).1;
    assert!(how("/slave").starts_with("master:") && how("/slave/before").starts_with("master:"));
    assert!(how("/shared").starts_with("shared:") && how("/shared/before").starts_with("shared:"));
    assert_eq!((how("/private"), how("/said"), how("/private/before")), Default::default());
    mount("tmpfs", tree.0.join("later"), "tmpfs", MountFlags::empty(), None).unwrap();
    let comes = ["/slave/later", "/shared/later", "/private/later", "/said/later"];
    assert_eq!(comes.map(|at| mounted(pid, at).is_some()), [true, true, false, false]);
}

#[test]
fn a_root_hears_of_the_hosts_mounts_is_shared_or_cannot_be_bound() {
    let oci = Oci::new();
    let place = oci.dir().join("roots");
    let tree = Tree::new(&place, MountPropagationFlags::SHARED);
    let root = tree.0.join("root");
    let copied =
        std::process::Command::new("cp").arg("-a").arg(oci.bundle().join("rootfs")).arg(&root).status();
    assert!(copied.unwrap().success());
    fs::create_dir(root.join("later")).unwrap();
    let mut config = oci.config("c1", &["sleep", "1000"]);
    config["root"]["path"] = json!(text(&root));
    for (asked, said, comes) in [
        ("", "", false),
        ("private", "", false),
        ("slave", "master:", true),
        ("rslave", "master:", true),
        ("shared", "shared:", false),
        ("unbindable", "unbindable", false),
    ] {
        config["linux"]["rootfsPropagation"] = json!(asked);
        config["linux"]["maskedPaths"] = json!(["/etc/passwd"]);
        config["linux"]["readonlyPaths"] = json!(["/etc"]);
        oci.start("c1", &config);
        let pid = oci.pid("c1");
        let (_, how) = mounted(pid, "/").unwrap();
        assert!(how.starts_with(said) && how.is_empty() == said.is_empty(), "{asked}: {how}");
        let later = root.join("later");
        mount("tmpfs", &later, "tmpfs", MountFlags::empty(), None).unwrap();
        let came = mounted(pid, "/later").is_some();
        unmount(&later, UnmountFlags::DETACH).unwrap();
        assert_eq!(came, comes, "{asked}");
        delete(&oci, "c1");
    }
    config["linux"]["rootfsPropagation"] = json!("everywhere");
    oci.write(&config);
    assert!(oci.refused(&["create", "c1"]).contains("everywhere"));
}

#[test]
fn options_hold_for_a_mount_or_for_all_below_it() {
    let oci = Oci::new();
    let place = oci.dir().join("tree");
    let tree = Tree::new(&place, MountPropagationFlags::PRIVATE);
    fs::create_dir(tree.0.join("below")).unwrap();
    mount("tmpfs", tree.0.join("below"), "tmpfs", MountFlags::empty(), None).unwrap();
    let mut config = oci.config("c1", &["sleep", "1000"]);
    for (at, options) in [
        ("/top", json!(["rbind", "ro", "nosuid"])),
        ("/all", json!(["rbind", "rro", "rnoexec", "nodev"])),
        ("/flat", json!(["bind", "noatime"])),
    ] {
        with(
            &mut config,
            json!({"destination": at, "type": "bind", "source": text(tree.0), "options": options}),
        );
    }
    with(
        &mut config,
        json!({"destination": "/tmp", "type": "tmpfs", "source": "tmpfs",
        "options": ["nosuid", "noexec", "size=64k", "mode=0711"]}),
    );
    config["root"]["readonly"] = json!(true);
    oci.start("c1", &config);
    let pid = oci.pid("c1");
    let has = |at: &str, wanted: &[&str]| {
        let (options, _) = mounted(pid, at).unwrap_or_else(|| panic!("nothing is at {at}"));
        let all: Vec<&str> = options.split(',').collect();
        wanted.iter().all(|option| all.contains(option))
    };
    assert!(has("/", &["ro"]));
    assert!(has("/top", &["ro", "nosuid"]) && has("/top/below", &["rw"]) && !has("/top/below", &["nosuid"]));
    assert!(has("/all", &["ro", "noexec", "nodev"]));
    assert!(has("/all/below", &["ro", "noexec"]) && !has("/all/below", &["nodev"]));
    assert!(has("/flat", &["rw", "noatime"]) && mounted(pid, "/flat/below").is_none());
    assert!(has("/tmp", &["nosuid", "noexec"]));
    for (at, writes) in
        [("/x", false), ("/top/x", false), ("/top/below/x", true), ("/all/below/x", false), ("/tmp/x", true)]
    {
        assert_eq!(oci.run(&["exec", "c1", "write", at, "y"]).code == 0, writes, "{at}");
    }
    assert!(oci.run(&["exec", "c1", "write", "/tmp/big", &"y".repeat(100_000)]).stderr.contains("No space"));
}

#[test]
fn masked_paths_show_nothing_and_read_only_ones_take_nothing() {
    let oci = Oci::new();
    let rootfs = oci.bundle().join("rootfs");
    fs::create_dir_all(rootfs.join("hidden/deep")).unwrap();
    fs::create_dir_all(rootfs.join("fixed")).unwrap();
    fs::write(rootfs.join("secret"), "word").unwrap();
    let mut config = oci.config("c1", &["sleep", "1000"]);
    config["linux"]["maskedPaths"] = json!(["/secret", "/hidden", "/proc/version", "/not/there"]);
    config["linux"]["readonlyPaths"] = json!(["/fixed", "/proc/sys", "/not/there"]);
    oci.start("c1", &config);
    assert_eq!(oci.ok(&["exec", "c1", "cat", "/secret", "/proc/version"]), "");
    assert_eq!(oci.ok(&["exec", "c1", "ls", "/hidden"]), "");
    assert_ne!(oci.run(&["exec", "c1", "write", "/hidden/x", "y"]).code, 0);
    assert_ne!(oci.run(&["exec", "c1", "write", "/fixed/x", "y"]).code, 0);
    assert_ne!(oci.run(&["exec", "c1", "write", "/proc/sys/kernel/hostname", "y"]).code, 0);
    assert_eq!(oci.run(&["exec", "c1", "write", "/x", "y"]).code, 0);
}

#[test]
fn a_volumes_ids_are_those_of_the_containers_users_or_its_own() {
    let test = "a_volumes_ids_are_those_of_the_containers_users_or_its_own";
    let oci = Oci::new();
    let place = oci.dir().join("volume");
    let tree = Tree::new(&place, MountPropagationFlags::PRIVATE);
    fs::write(tree.0.join("file"), "").unwrap();
    chown(tree.0.join("file"), Some(7), Some(8)).unwrap();
    let owner = |config: &Value, id: &str| -> Option<(u64, u64)> {
        oci.write(config);
        let said = oci.run(&["run", id]);
        if said.stderr.contains("can't be id-mapped") {
            return None;
        }
        assert_eq!(said.code, 0, "{}", said.stderr);
        let told: Value = serde_json::from_str(&said.stdout).unwrap();
        Some((told["uid"].as_u64().unwrap(), told["gid"].as_u64().unwrap()))
    };
    let volume = |extra: Value| {
        let mut mount = json!({"destination": "/v", "type": "bind", "source": text(tree.0)});
        mount.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        mount
    };
    // Maps of its own, without a user namespace: what is 7 on the disk is 1007 there.
    let mut config = oci.config("c1", &["stat", "/v/file"]);
    let map = |inside: u32, outside: u32| json!([{"containerID": inside, "hostID": outside, "size": 100}]);
    with(
        &mut config,
        volume(
            json!({"options": ["rbind", "idmap"], "uidMappings": map(0, 1000), "gidMappings": map(0, 2000)}),
        ),
    );
    let Some(own) = owner(&config, "c1") else {
        return skip(test, "tmpfs can't be id-mapped here (Linux 6.3)");
    };
    assert_eq!(own, (1007, 2008));
    // With users of its own, and the volume as they count.
    let mut config = oci.config("c1", &["stat", "/v/file"]);
    config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"}));
    config["linux"]["uidMappings"] = map(0, 100_000);
    config["linux"]["gidMappings"] = map(0, 100_000);
    let mapped = &mut config.clone();
    with(mapped, volume(json!({"options": ["rbind", "idmap"]})));
    assert_eq!(owner(mapped, "c1"), Some((7, 8)));
    // Without, they are nobody's there.
    with(&mut config, volume(json!({"options": ["rbind"]})));
    assert_eq!(owner(&config, "c1"), Some((65534, 65534)));
    // The disk is as it was.
    let file = fs::metadata(tree.0.join("file")).unwrap();
    assert_eq!(
        (std::os::unix::fs::MetadataExt::uid(&file), std::os::unix::fs::MetadataExt::gid(&file)),
        (7, 8)
    );
}

#[test]
fn the_hosts_own_root_can_be_a_containers() {
    let oci = Oci::new();
    let mut config = oci.config("c1", &[text(&berth_tests::program("fixture")), "info"]);
    config["root"] = json!({"path": "/", "readonly": true});
    oci.write(&config);
    let info: Value = serde_json::from_str(&oci.ok(&["run", "c1"])).unwrap();
    assert_eq!((&info["pid"], &info["hostname"]), (&json!(1), &json!("box")));
    config["process"]["args"] =
        json!([text(&berth_tests::program("fixture")), "write", text(&oci.dir().join("x")), "y"]);
    oci.write(&config);
    assert_ne!(oci.run(&["run", "c1"]).code, 0);
    assert!(!oci.dir().join("x").exists());
}

/// As snapd pins its mount namespaces: a tree with such a file in it can't be put into a newer namespace.
#[test]
fn a_tree_with_a_pinned_mount_namespace_in_it_is_bound_without_it() {
    if !required("a_tree_with_a_pinned_mount_namespace_in_it_is_bound_without_it", &["unshare"]) {
        return;
    }
    let oci = Oci::new();
    let place = oci.dir().join("pinned");
    let tree = Tree::new(&place, MountPropagationFlags::PRIVATE);
    for name in ["ns", "file"] {
        fs::write(tree.0.join(name), "").unwrap();
    }
    let pin = format!("--mount={}", text(&tree.0.join("ns")));
    let pinned = std::process::Command::new("unshare").args([&pin, "true"]).status().unwrap();
    assert!(pinned.success());
    let mut config = oci.config("c1", &["ls", "/v"]);
    with(
        &mut config,
        json!({"destination": "/v", "type": "bind", "source": text(tree.0), "options": ["rbind", "rslave", "ro"]}),
    );
    oci.write(&config);
    let listed = oci.ok(&["run", "c1"]);
    assert!(listed.contains("file") && listed.contains("ns"), "{listed}");
}
