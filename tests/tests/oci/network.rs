//! Network devices that a bundle wants moved into its container. The host of these tests is a network namespace that is
//! made around `berth oci`.

use std::process::Command;

use berth_tests::{
    oci::{Oci, Ran, text},
    program, required,
};
use serde_json::{Value, json};

/// Runs a container in a network namespace that was set up by these lines, and then has these lines said.
fn run(oci: &Oci, config: &Value, before: &str, after: &str) -> Ran {
    oci.write(config);
    let berth = format!("{} oci --root {} run c1", text(&program("berth")), text(&oci.root()));
    let script = format!("set -e; {before}; {berth}; {after}");
    let mut command = Command::new("unshare");
    command.args(["--net", "sh", "-c", &script]).current_dir(oci.bundle());
    command.env("BERTH_TESTS_PLACE", oci.cgroup(""));
    oci.finish(command)
}

#[test]
fn a_network_device_is_moved_with_its_addresses_and_brought_up() {
    let test = "a_network_device_is_moved_with_its_addresses_and_brought_up";
    if !required(test, &["ip", "unshare"]) {
        return;
    }
    let oci = Oci::new();
    let mut config = oci.config("c1", &["info"]);
    config["linux"]["netDevices"] = json!({"dev0": {"name": "eth0"}, "dev1": {}});
    let sys = json!({"destination": "/sys", "type": "sysfs", "source": "sysfs"});
    config["mounts"].as_array_mut().unwrap().push(sys);
    let before = "ip link add dev0 mtu 1400 type veth peer name dev1; \
        ip address add 10.9.0.2/24 dev dev0; ip -6 address add fd09::2/64 dev dev0 nodad; ip link set dev0 up";
    let ran = run(&oci, &config, before, "ip -o link show");
    assert_eq!(ran.code, 0, "{}", ran.stderr());
    let stdout = ran.stdout();
    let (info, here) = stdout.split_once('\n').unwrap();
    let info: Value = serde_json::from_str(info).unwrap();
    let device = &info["interfaces"]["eth0"];
    assert_eq!((&device["up"], &device["mtu"]), (&json!(true), &json!(1400)), "{}", info["interfaces"]);
    let addresses = device["addresses"].to_string();
    assert!(addresses.contains("10.9.0.2") && addresses.contains("fd09::2"), "{addresses}");
    assert_eq!(info["interfaces"]["dev1"]["up"], true);
    assert!(!here.contains("dev0") && !here.contains("dev1"), "{here}");
}

#[test]
fn a_network_device_that_cannot_be_moved_is_told_with_its_reason() {
    let test = "a_network_device_that_cannot_be_moved_is_told_with_its_reason";
    if !required(test, &["ip", "unshare"]) {
        return;
    }
    let oci = Oci::new();
    let mut config = oci.config("c1", &["true"]);
    for (device, name, why) in [
        ("nosuch0", "eth0", "no such network device"),
        ("dev0", "lo", "has a network device lo already"),
        ("lo", "eth0", "lets it go to no other network namespace"),
    ] {
        config["linux"]["netDevices"] = json!({device: {"name": name}});
        let ran = run(&oci, &config, "ip link add dev0 type veth peer name peer0", "true");
        assert_ne!(ran.code, 0, "{device}");
        assert!(ran.stderr().contains(why), "{device}: {}", ran.stderr());
        assert_eq!(oci.zombies(), Vec::<i32>::new());
    }
}
