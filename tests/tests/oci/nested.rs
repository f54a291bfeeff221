//! Containers in a container, and a container that has a tree of cgroups for itself, as a systemd within would.

use std::{fs, path::PathBuf};

use berth_tests::{
    oci::{Oci, text},
    program, skip,
};
use serde_json::{Value, json};

/// A container on the host's own root, with all rights that we have, which runs a script of the host's shell.
fn outer(oci: &Oci, script: &str) -> Value {
    let features: Value = serde_json::from_str(&oci.ok(&["features"])).unwrap();
    let held = fs::read_to_string("/proc/self/status").unwrap();
    let held = held.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
    let held = u64::from_str_radix(held.trim(), 16).unwrap();
    let names = features["linux"]["capabilities"].as_array().unwrap().iter().enumerate();
    let capabilities: Vec<&Value> = names.filter(|(n, _)| held >> n & 1 == 1).map(|(_, name)| name).collect();
    let mut config = oci.config("outer", &["/bin/sh", "-ec", script]);
    config["root"]["path"] = json!("/");
    config["process"]["env"] = json!(["PATH=/usr/bin:/bin"]);
    config["process"]["noNewPrivileges"] = json!(false);
    config["process"]["capabilities"] =
        json!({"bounding": capabilities, "effective": capabilities, "permitted": capabilities});
    config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "cgroup"}));
    if is_v2() {
        let mount = json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
            "options": ["rw", "nosuid", "noexec", "nodev"]});
        config["mounts"].as_array_mut().unwrap().push(mount);
    }
    config
}

/// As an init within does on v2: it leaves the top, where then no processes are.
const HAND_ON: &str = "[ ! -e /sys/fs/cgroup/cgroup.procs ] || \
    { mkdir /sys/fs/cgroup/init; echo 1 >/sys/fs/cgroup/init/cgroup.procs; };";

fn is_v2() -> bool {
    fs::exists("/sys/fs/cgroup/cgroup.controllers").unwrap()
}

/// A bundle for `berth oci` within, on the same root file system; the line that runs it.
fn inner(oci: &Oci, words: &[&str], resources: Value) -> String {
    let bundle = oci.dir().join("inner");
    fs::create_dir_all(&bundle).unwrap();
    let mut config = oci.config("inner", words);
    config["root"]["path"] = json!(text(&oci.bundle().join("rootfs")));
    config["linux"]["cgroupsPath"] = json!(if is_v2() { "/inner".to_owned() } else { oci.cgroup("inner") });
    config["linux"]["resources"] = resources;
    fs::write(bundle.join("config.json"), config.to_string()).unwrap();
    let root = oci.dir().join("inner-root");
    format!("{} oci --root {} run --bundle {} inner", text(&program("berth")), text(&root), text(&bundle))
}

#[test]
fn a_container_runs_containers() {
    let oci = Oci::new();
    let line = inner(&oci, &["info"], json!({}));
    if is_v2() {
        // cgroups(7): what is at the top has no groups below it that could count.
        oci.write(&outer(&oci, &line));
        assert!(oci.refused(&["run", "outer"]).contains("processes"));
    }
    oci.write(&outer(&oci, &format!("{HAND_ON} exec {line}")));
    let said = oci.run(&["run", "outer"]);
    assert_eq!(said.code, 0, "{}", said.stderr);
    let info: Value = serde_json::from_str(&said.stdout).unwrap();
    assert_eq!((&info["pid"], &info["hostname"]), (&json!(1), &json!("box")));
    assert_eq!(fs::read_dir(oci.dir().join("inner-root")).unwrap().count(), 0);
}

#[test]
fn a_container_limits_its_own_in_the_tree_that_it_was_given() {
    let test = "a_container_limits_its_own_in_the_tree_that_it_was_given";
    if !is_v2() {
        return skip(test, "cgroup v1 has no trees that are handed on");
    }
    let oci = Oci::new();
    let line =
        inner(&oci, &["sleep", "1000"], json!({"pids": {"limit": 7}, "memory": {"limit": 33_554_432}}));
    oci.start("outer", &outer(&oci, &format!("{HAND_ON} exec {line}")));
    let top = PathBuf::from(format!("/sys/fs/cgroup{}", oci.cgroup("outer")));
    let read = |name: &str| fs::read_to_string(top.join(name)).unwrap_or_default();
    berth_tests::eventually("the inner one to run", || {
        (!read("inner/cgroup.procs").is_empty()).then_some(())
    });
    assert_eq!((read("inner/pids.max").trim(), read("inner/memory.max").trim()), ("7", "33554432"));
    // The top can't have processes any more: an exec is beside init.
    assert!(oci.ok(&["exec", "outer", "/bin/cat", "/proc/self/cgroup"]).contains("0::/init"));
    oci.ok(&["pause", "outer"]);
    assert!(read("inner/cgroup.events").contains("frozen 1"));
    oci.ok(&["resume", "outer"]);
    let told = oci.ok(&["ps", "--format", "json", "outer"]);
    assert_eq!(serde_json::from_str::<Vec<i32>>(&told).unwrap().len(), 2, "{told}");
    // All of the tree goes, with what runs in it.
    oci.ok(&["delete", "--force", "outer"]);
    assert_eq!(oci.reap("outer"), 128 + 9);
    assert!(!top.exists());
}
