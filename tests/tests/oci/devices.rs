//! Device rules: by the list of cgroup v1 or the program of v2.

use std::{io::Write, process::Stdio};

use berth_tests::{oci::Oci, skip};
use serde_json::{Value, json};

const DENIED: &str = "Operation not permitted";

/// A config whose container may make nodes, with these device rules.
fn config(oci: &Oci, rules: Value) -> Value {
    let mut config = oci.config("c1", &["sleep", "1000"]);
    let capabilities = json!(["CAP_MKNOD", "CAP_KILL"]);
    for set in ["bounding", "effective", "permitted"] {
        config["process"]["capabilities"][set] = capabilities.clone();
    }
    config["linux"]["resources"] = json!({"devices": rules});
    config
}

fn open(oci: &Oci, path: &str, how: &str) -> String {
    oci.run(&["exec", "c1", "open", path, how]).stderr
}

fn update(oci: &Oci, resources: &Value) {
    let mut command = oci.command(&["update", "--resources", "-", "c1"]);
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(resources.to_string().as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "{resources}");
}

#[test]
fn rules_hold_and_change_only_where_an_update_names_them() {
    let Some((_, number)) = berth_tests::block_device() else {
        return skip("rules_hold_and_change_only_where_an_update_names_them", "no block device in /dev");
    };
    let (major, minor) = number.split_once(':').unwrap();
    let (major, minor): (u32, u32) = (major.parse().unwrap(), minor.parse().unwrap());
    let oci = Oci::new();
    let deny = json!({"allow": false, "access": "rwm"});
    let read = json!({"allow": true, "type": "b", "major": major, "minor": minor, "access": "r"});
    oci.start("c1", &config(&oci, json!([deny])));
    oci.ok(&["exec", "c1", "mknod", "/dev/disk", "b", &number]);
    assert!(open(&oci, "/dev/disk", "r").contains(DENIED));
    assert_eq!(open(&oci, "/dev/null", "rw"), "");
    update(&oci, &json!({"pids": {"limit": 44}}));
    assert!(open(&oci, "/dev/disk", "r").contains(DENIED));
    update(&oci, &json!({"devices": [deny, read]}));
    assert_eq!(open(&oci, "/dev/disk", "r"), "");
    assert!(open(&oci, "/dev/disk", "rw").contains(DENIED));
    update(&oci, &json!({"devices": [deny]}));
    assert!(open(&oci, "/dev/disk", "r").contains(DENIED));
    assert_eq!(open(&oci, "/dev/null", "rw"), "");
}

#[test]
fn a_container_without_rules_has_the_usual_devices_and_one_with_all_has_all() {
    let Some((_, number)) = berth_tests::block_device() else {
        return skip("a_container_without_rules_has_the_usual_devices", "no block device in /dev");
    };
    for (rules, denied) in [(json!([]), true), (json!([{"allow": true, "access": "rwm"}]), false)] {
        let oci = Oci::new();
        oci.start("c1", &config(&oci, rules));
        oci.ok(&["exec", "c1", "mknod", "/dev/disk", "b", &number]);
        assert_eq!(open(&oci, "/dev/disk", "r").contains(DENIED), denied);
        assert_eq!(open(&oci, "/dev/null", "rw"), "");
    }
}

#[test]
fn a_rule_about_no_device_is_refused_and_leaves_nothing() {
    let oci = Oci::new();
    oci.write(&config(
        &oci,
        json!([{"allow": true, "type": "c", "major": 4_294_967_296_i64, "access": "r"}]),
    ));
    let told = oci.refused(&["create", "c1"]);
    assert!(told.contains("4294967296") && told.contains("no number of a device"), "{told}");
    assert!(oci.refused(&["state", "c1"]).contains("does not exist"));
}

#[test]
fn nodes_are_made_as_the_spec_lists_them() {
    let oci = Oci::new();
    let words = ["stat", "/dev/zeros", "/dev/deep/pipe", "/dev/null"];
    let mut config = oci.config("c1", &words);
    config["linux"]["devices"] = json!([
        {"path": "/dev/zeros", "type": "c", "major": 1, "minor": 5, "fileMode": 0o640, "uid": 5, "gid": 6},
        {"path": "/dev/deep/pipe", "type": "p", "fileMode": 0o622},
    ]);
    oci.write(&config);
    let said = oci.ok(&["run", "c1"]);
    let told: Vec<Value> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let row = |n: usize| {
        let one = &told[n];
        ["kind", "mode", "uid", "gid", "device"].map(|key| one[key].clone())
    };
    assert_eq!(row(0), [json!("char"), json!("0640"), json!(5), json!(6), json!([1, 5])], "{said}");
    assert_eq!(row(1)[..2], [json!("fifo"), json!("0622")], "{said}");
    // What each container has is there as well.
    assert_eq!((&row(2)[0], &row(2)[4]), (&json!("char"), &json!([1, 3])), "{said}");
    config["linux"]["devices"] = json!([{"path": "/dev/x", "type": "z", "major": 1, "minor": 5}]);
    oci.write(&config);
    assert!(!oci.refused(&["create", "c1"]).is_empty());
}
