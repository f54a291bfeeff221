//! Devices: which ones a container may open, whatever nodes it makes; those that vendors describe (CDI), what they bring
//! into a container, and what is told where there is none.

use std::{fs, path::Path};

use berth_cri::v1 as cri;
use berth_tests::{Asked, Daemon, Options, asked, skip};
use serde_json::{Value, json};
use tonic::Code;

/// A daemon whose descriptions are in these two directories, the later one over the earlier.
fn daemon(directories: &[&Path]) -> Daemon {
    Daemon::with_fixture_and(Options {
        over: format!("[daemon]\ncdi_dirs = {directories:?}\n"),
        ..Options::default()
    })
}

fn with(asked: Asked, devices: &[&str]) -> Asked {
    asked.with(|config| {
        config.cdi_devices = devices.iter().map(|name| cri::CdiDevice { name: (*name).into() }).collect();
    })
}

fn described(nodes: &Value, edits: &Value) -> Value {
    let mut own = edits.clone();
    own["deviceNodes"] = nodes.clone();
    json!({"cdiVersion": "0.6.0", "kind": "berth.dev/test", "devices": [{"name": "one", "containerEdits": own}]})
}

#[test]
fn a_described_device_brings_its_nodes_mounts_variables_and_groups() {
    let place = tempfile::tempdir().unwrap();
    let (fixed, changing) = (place.path().join("etc"), place.path().join("run"));
    fs::create_dir(&fixed).unwrap();
    fs::create_dir(&changing).unwrap();
    let data = place.path().join("data");
    fs::create_dir(&data).unwrap();
    fs::write(data.join("driver"), "driver\n").unwrap();
    let daemon = daemon(&[&fixed, &changing]);
    let pod = daemon.plain_pod("devices");
    let edits = json!({
        "env": ["ACME=1", "PATH=/bin"],
        "mounts": [{"hostPath": data, "containerPath": "/opt/acme", "options": ["ro"]}],
        "additionalGids": [4711],
    });
    let nodes = json!([{"path": "/dev/acme0", "hostPath": "/dev/zero", "uid": 7, "gid": 8}]);
    fs::write(fixed.join("acme.json"), described(&nodes, &edits).to_string()).unwrap();
    let run = |name: &str| with(asked(name, &["sleep", "inf"]), &["berth.dev/test=one"]);
    let id = daemon.launch(&pod, &run("first")).unwrap();
    let node: Value = serde_json::from_str(&daemon.exec_ok(&id, &["stat", "/dev/acme0"])).unwrap();
    assert_eq!(
        [&node["kind"], &node["device"], &node["uid"], &node["gid"]],
        [&json!("char"), &json!([1, 5]), &json!(7), &json!(8)]
    );
    assert_eq!(daemon.exec_ok(&id, &["cat", "/opt/acme/driver"]), "driver\n");
    let refused = daemon.exec(&id, &["write", "/opt/acme/x", "x"], 5).unwrap();
    assert!(String::from_utf8_lossy(&refused.stderr).contains("Read-only"), "{refused:?}");
    let status = daemon.status(&id).unwrap();
    let groups = status.user.unwrap().linux.unwrap().supplemental_groups;
    assert!(groups.contains(&4711), "{groups:?}");
    let info = daemon.info(&pod, &with(asked("info", &["info"]), &["berth.dev/test=one"]));
    assert_eq!(info["env"]["ACME"], "1", "{info}");

    // What is written later, in the directory that wins, counts at once; YAML is as good.
    let yaml = "cdiVersion: 0.6.0\nkind: berth.dev/test\ndevices:\n- name: one\n  containerEdits:\n    env: [ACME=2]\n";
    fs::write(changing.join("acme.yaml"), yaml).unwrap();
    let info = daemon.info(&pod, &with(asked("info2", &["info"]), &["berth.dev/test=one"]));
    assert_eq!(info["env"]["ACME"], "2", "{info}");
}

#[test]
fn a_device_that_nobody_describes_is_told_and_leaves_nothing() {
    let place = tempfile::tempdir().unwrap();
    let daemon = daemon(&[place.path()]);
    let pod = daemon.plain_pod("devices");
    fs::write(place.path().join("broken.json"), "{").unwrap();
    let create = |name: &str| daemon.create(&pod, &with(asked("c", &["true"]), &[name])).unwrap_err();
    let status = create("berth.dev/test=one");
    assert_eq!(status.code(), Code::NotFound, "{status}");
    for word in ["berth.dev/test=one", "broken.json"] {
        assert!(status.message().contains(word), "{status}");
    }
    assert_eq!(create("no-device").code(), Code::InvalidArgument);
    let nodes = json!([{"path": "/dev/acme0", "hostPath": "/dev/there-is-none"}]);
    fs::write(place.path().join("acme.json"), described(&nodes, &json!({})).to_string()).unwrap();
    let status = create("berth.dev/test=one");
    assert_eq!(status.code(), Code::NotFound, "{status}");
    assert!(status.message().contains("/dev/there-is-none"), "{status}");
    assert!(daemon.list_containers(Default::default()).is_empty());
}

/// A block device of this machine, with its number as `mknod` wants it.
fn disk(test: &str) -> Option<(String, String)> {
    let found = berth_tests::block_device();
    if found.is_none() {
        skip(test, "this machine has no block device in /dev");
    }
    found
}

/// How an open in a container ends: in nothing, or in what the kernel says.
fn open(daemon: &Daemon, id: &str, path: &str, how: &str) -> String {
    let answer = daemon.exec(id, &["open", path, how], 30).unwrap();
    String::from_utf8_lossy(&answer.stderr).into_owned()
}

const DENIED: &str = "Operation not permitted";

#[test]
fn a_container_may_make_a_disks_node_and_not_open_it() {
    let Some((_, number)) = disk("a_container_may_make_a_disks_node_and_not_open_it") else { return };
    let daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("devices");
    let id = daemon.launch(&pod, &asked("plain", &["sleep", "inf"])).unwrap();
    for how in ["r", "w", "rw"] {
        let path = format!("/dev/disk-{how}");
        daemon.exec_ok(&id, &["mknod", &path, "b", &number]);
        assert!(open(&daemon, &id, &path, how).contains(DENIED));
    }
    for device in ["null", "zero", "full", "random", "urandom"] {
        assert_eq!(open(&daemon, &id, &format!("/dev/{device}"), "rw"), "");
    }
    // An update is about other things: the door stays shut.
    let update = cri::UpdateContainerResourcesRequest {
        container_id: id.clone(),
        linux: Some(cri::LinuxContainerResources { memory_limit_in_bytes: 64 << 20, ..Default::default() }),
        ..Default::default()
    };
    daemon.call(daemon.runtime().update_container_resources(update)).unwrap();
    assert!(open(&daemon, &id, "/dev/disk-r", "r").contains(DENIED));
    // The container's own process is held as an exec is.
    let own = asked("own", &["open", "/dev/disk", "r"]).with(|config| {
        config.mounts.push(cri::Mount {
            container_path: "/dev/disk".into(),
            host_path: disk("own").expect("it was there").0,
            ..Default::default()
        });
    });
    let (status, log) = daemon.run_to_end(&pod, &own).unwrap();
    assert!(status.exit_code != 0 && format!("{log:?}").contains(DENIED), "{log:?}");

    let all = asked("all", &["sleep", "inf"]).secured(|security| security.privileged = true);
    let id = daemon.launch(&pod, &all).unwrap();
    daemon.exec_ok(&id, &["mknod", "/dev/disk", "b", &number]);
    assert_eq!(open(&daemon, &id, "/dev/disk", "r"), "");
}

#[test]
fn a_device_is_opened_as_it_was_asked_for() {
    let Some((path, _)) = disk("a_device_is_opened_as_it_was_asked_for") else { return };
    let daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("devices");
    let device = |permissions: &str| cri::Device {
        container_path: "/dev/given".into(),
        host_path: path.clone(),
        permissions: permissions.into(),
    };
    let given = asked("given", &["sleep", "inf"]).with(|config| config.devices = vec![device("r")]);
    let id = daemon.launch(&pod, &given).unwrap();
    assert_eq!(open(&daemon, &id, "/dev/given", "r"), "");
    for how in ["w", "rw"] {
        assert!(open(&daemon, &id, "/dev/given", how).contains(DENIED));
    }
    let made = asked("made", &["sleep", "inf"]).with(|config| config.devices = vec![device("m")]);
    let id = daemon.launch(&pod, &made).unwrap();
    assert!(open(&daemon, &id, "/dev/given", "r").contains(DENIED));
    let wrong = asked("wrong", &["true"]).with(|config| config.devices = vec![device("rx")]);
    let refused = daemon.create(&pod, &wrong).unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
}

#[test]
fn a_described_device_is_opened_as_its_vendor_says() {
    let Some((path, _)) = disk("a_described_device_is_opened_as_its_vendor_says") else { return };
    let place = tempfile::tempdir().unwrap();
    let nodes = json!([{"path": "/dev/acme0", "hostPath": path, "permissions": "r"}]);
    fs::write(place.path().join("acme.json"), described(&nodes, &json!({})).to_string()).unwrap();
    let daemon = daemon(&[place.path()]);
    let pod = daemon.plain_pod("devices");
    let id = daemon.launch(&pod, &with(asked("c", &["sleep", "inf"]), &["berth.dev/test=one"])).unwrap();
    assert_eq!(open(&daemon, &id, "/dev/acme0", "r"), "");
    assert!(open(&daemon, &id, "/dev/acme0", "rw").contains(DENIED));
}
