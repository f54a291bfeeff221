//! image check, image prune, system df.

use std::{fs, path::PathBuf};

use berth_tests::{Daemon, images};
use serde_json::Value;

use crate::IMAGE;

/// Some file of some layer.
fn a_file(daemon: &Daemon) -> PathBuf {
    let layers = fs::read_dir(daemon.root().join("images/layers")).unwrap();
    let mut open: Vec<PathBuf> = layers.map(|layer| layer.unwrap().path().join("fs")).collect();
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let entry = entry.unwrap();
            let kind = entry.file_type().unwrap();
            if kind.is_dir() {
                open.push(entry.path());
            } else if kind.is_file() && entry.metadata().unwrap().len() > 0 {
                return entry.path();
            }
        }
    }
    panic!("no layer has a file");
}

#[test]
fn a_damaged_layer_is_told_and_repaired() {
    let daemon = Daemon::with_fixture();
    let whole = daemon.berth_ok(&["image", "check"]);
    assert!(whole.contains("1 images") && whole.contains("all is whole"), "{whole}");
    let file = a_file(&daemon);
    fs::write(&file, "damaged").unwrap();
    let name = file.file_name().unwrap().to_str().unwrap().to_owned();
    let found = daemon.berth(&["image", "check"]);
    assert_eq!(found.code, 1);
    let repaired = daemon.berth_ok(&["image", "check", "--repair"]);
    assert!(repaired.contains(&name) && repaired.contains("repaired: unpacked again"), "{repaired}");
    let lines = daemon.berth_ok(&["image", "check", "-o", "json"]);
    let done: Value = serde_json::from_str(&lines).unwrap();
    assert_eq!(done["done"]["images"], "1", "{done}");
    assert_eq!(daemon.berth_ok(&["run", "--rm", IMAGE, "echo", "on"]), "on");
}

#[test]
fn what_is_not_used_is_shown_and_pruned() {
    let daemon = Daemon::with_fixture();
    daemon.load_image("localhost/other:1", &images::base().env("OTHER", "1"));
    daemon.berth_ok(&["create", "--name", "user", IMAGE, "true"]);
    let table = daemon.berth_ok(&["system", "df"]);
    assert!(table.starts_with("TYPE") && table.contains("RECLAIMABLE"), "{table}");
    let used: Value = serde_json::from_str(&daemon.berth_ok(&["system", "df", "-o", "json"])).unwrap();
    let row = |kind: &str| used["rows"].as_array().unwrap().iter().find(|row| row["type"] == kind).unwrap();
    assert_eq!((&row("images")["total"], &row("images")["active"]), (&"2".into(), &"1".into()), "{used}");
    assert_eq!(row("containers")["total"], "1", "{used}");
    // Both have tags.
    let none = daemon.berth_ok(&["image", "prune"]);
    assert!(none.contains("0 images"), "{none}");
    let pruned = daemon.berth_ok(&["image", "prune", "--all"]);
    assert!(pruned.contains("1 images"), "{pruned}");
    let left = daemon.berth_ok(&["image", "ls"]);
    assert!(!left.contains("other") && left.lines().count() == 2, "{left}");
    daemon.berth_ok(&["rm", "user"]);
}
