//! `--systemd-cgroup`: cgroupsPath is slice:prefix:name, and systemd makes the scope.

use std::fs;

use berth_tests::{
    eventually,
    oci::Oci,
    skip,
    systemd::{self, Slice, property, units},
};
use serde_json::json;

#[test]
fn a_container_lives_in_the_scope_that_its_path_names() {
    if !systemd::runs_here() {
        return skip(
            "a_container_lives_in_the_scope_that_its_path_names",
            "systemd does not run this machine, or not on cgroup v2",
        );
    }
    let oci = Oci::new();
    let slice = Slice::of(&oci.cgroup("machine"));
    let name = slice.name().trim_end_matches(".slice").to_owned();
    let unit = format!("libpod-{name}.scope");
    let mut config = oci.config("c1", &["sleep", "1000"]);
    config["linux"]["cgroupsPath"] = json!(format!("{}:libpod:{name}", slice.name()));
    config["linux"]["resources"] =
        json!({"memory": {"limit": 67_108_864}, "devices": [{"allow": false, "access": "rwm"}]});
    oci.write(&config);
    let pid_file = oci.dir().join("pid");
    let create = ["--systemd-cgroup", "create", "--pid-file", pid_file.to_str().unwrap(), "c1"];
    let created = oci.finish(oci.command(&create));
    assert_eq!(created.code, 0, "{}", created.stderr());
    oci.adopt("c1", &pid_file);
    assert_eq!(property(&unit, "Slice"), slice.name());
    assert_eq!(property(&unit, "ActiveState"), "active");
    let scope = format!("/sys/fs/cgroup{}/{unit}", slice.path());
    assert_eq!(
        fs::read_to_string(format!("{scope}/container/cgroup.procs")).unwrap().trim(),
        oci.pid("c1").to_string()
    );
    // Nobody of ours stays: init alone keeps it.
    assert_eq!(fs::read_to_string(format!("{scope}/supervisor/cgroup.procs")).unwrap(), "");
    oci.ok(&["start", "c1"]);
    oci.ok(&["exec", "c1", "true"]);
    systemd::systemctl(&["daemon-reload"]);
    let memory = || fs::read_to_string(format!("{scope}/container/memory.max")).unwrap();
    assert_eq!(memory().trim(), "67108864");
    oci.ok(&["update", "--memory", "134217728", "c1"]);
    assert_eq!(memory().trim(), "134217728");
    assert_eq!(oci.status("c1"), "running");
    oci.ok(&["kill", "c1", "KILL"]);
    assert_eq!(oci.reap("c1"), 137);
    oci.ok(&["delete", "c1"]);
    eventually("systemd to let the scope go", || units(&unit).is_empty().then_some(()));
}

#[test]
fn a_path_of_cgroupfs_is_refused_with_what_would_do() {
    let oci = Oci::new();
    oci.write(&oci.config("c1", &["true"]));
    let told = oci.refused(&["--systemd-cgroup", "create", "c1"]);
    assert!(told.contains("slice:prefix:name"), "{told}");
}

#[test]
fn a_host_without_systemd_is_told() {
    if systemd::runs_here() {
        return skip("a_host_without_systemd_is_told", "systemd runs this machine");
    }
    let oci = Oci::new();
    let mut config = oci.config("c1", &["true"]);
    config["linux"]["cgroupsPath"] = json!("machine.slice:libpod:c1");
    oci.write(&config);
    let told = oci.refused(&["--systemd-cgroup", "create", "c1"]);
    assert!(told.contains("systemd") && told.contains("cgroupfs"), "{told}");
}
