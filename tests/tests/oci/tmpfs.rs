//! How a tmpfs begins: with the directory's mode, and by `tmpcopyup` with what lies there.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, chown, symlink},
};

use berth_tests::oci::Oci;
use serde_json::{Value, json};

/// What `stat` in the container says of these paths of a tmpfs over /srv.
fn stat(oci: &Oci, options: &[&str], paths: &[&str]) -> Vec<Value> {
    let mut config = oci.config("c1", &[&["stat"], paths].concat());
    let mount = json!({"destination": "/srv", "type": "tmpfs", "source": "tmpfs", "options": options});
    config["mounts"].as_array_mut().unwrap().push(mount);
    oci.write(&config);
    oci.ok(&["run", "c1"]).lines().map(|line| serde_json::from_str(line).expect("stat is JSON")).collect()
}

#[test]
fn a_tmpfs_begins_with_what_it_covers_where_that_is_asked_for() {
    let oci = Oci::new();
    let srv = oci.bundle().join("rootfs/srv");
    fs::create_dir_all(srv.join("deep/er")).unwrap();
    fs::write(srv.join("deep/er/file"), "twelve bytes").unwrap();
    fs::set_permissions(srv.join("deep/er/file"), fs::Permissions::from_mode(0o4751)).unwrap();
    chown(srv.join("deep/er"), Some(7), Some(8)).unwrap();
    // What is copied is the link, not what it leads to outside.
    symlink("/etc/passwd", srv.join("link")).unwrap();
    fs::set_permissions(&srv, fs::Permissions::from_mode(0o2710)).unwrap();

    let paths = ["/srv", "/srv/deep/er", "/srv/deep/er/file", "/srv/link"];
    let told = stat(&oci, &["tmpcopyup", "size=1m", "nosuid"], &paths);
    assert_eq!(told[0]["mode"], "2710");
    assert_eq!((&told[1]["uid"], &told[1]["gid"]), (&json!(7), &json!(8)));
    assert_eq!((&told[2]["mode"], &told[2]["size"]), (&json!("4751"), &json!(12)));
    assert_eq!((&told[3]["kind"], &told[3]["target"]), (&json!("symlink"), &json!("/etc/passwd")));
    // Not asked for: its mode alone, and that only where no other is said.
    assert_eq!(stat(&oci, &[], &["/srv"])[0]["mode"], "2710");
    assert_eq!(stat(&oci, &["mode=1700", "tmpcopyup"], &["/srv"])[0]["mode"], "1700");
    // One over nothing is everybody's, as the kernel makes it.
    fs::rename(&srv, oci.dir().join("was")).unwrap();
    assert_eq!(stat(&oci, &["tmpcopyup"], &["/srv"])[0]["mode"], "1777");
    fs::remove_dir(&srv).unwrap();
    fs::rename(oci.dir().join("was"), &srv).unwrap();
    // The image's own is as it was.
    assert_eq!(fs::read_dir(&srv).unwrap().count(), 2);
}

#[test]
fn a_tmpfs_that_is_too_small_for_what_it_covers_is_told() {
    let oci = Oci::new();
    let srv = oci.bundle().join("rootfs/srv");
    fs::create_dir_all(&srv).unwrap();
    fs::write(srv.join("file"), vec![0; 1 << 20]).unwrap();
    let mut config = oci.config("c1", &["true"]);
    let mount = json!({"destination": "/srv", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup", "size=64k"]});
    config["mounts"].as_array_mut().unwrap().push(mount);
    oci.write(&config);
    let why = oci.refused(&["create", "c1"]);
    assert!(why.contains("/srv") && why.contains("does not fit into the tmpfs"), "{why}");
    assert_eq!(oci.zombies(), Vec::<i32>::new());
}

#[test]
fn a_tree_that_is_nested_without_end_is_told() {
    let oci = Oci::new();
    let mut deep = oci.bundle().join("rootfs/srv");
    (0..300).for_each(|_| deep.push("d"));
    fs::create_dir_all(&deep).unwrap();
    let mut config = oci.config("c1", &["true"]);
    let mount = json!({"destination": "/srv", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup"]});
    config["mounts"].as_array_mut().unwrap().push(mount);
    oci.write(&config);
    let why = oci.refused(&["create", "c1"]);
    assert!(why.contains("nested too deeply"), "{why}");
}
