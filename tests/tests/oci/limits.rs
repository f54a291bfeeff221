//! Limits and figures: update, events, pause and resume.

use std::{fs, io::Write, path::PathBuf, process::Stdio};

use berth_tests::{
    oci::{Oci, state_letter},
    skip,
};
use serde_json::{Value, json};

/// What one of these files of the container's cgroup holds: v1's or v2's.
fn limit(oci: &Oci, files: [&str; 2]) -> String {
    let group = oci.cgroup("c1");
    let below = |root: &str, file: &str| PathBuf::from(format!("{root}{group}/{file}"));
    let (controller, _) = files[0].split_once('.').expect("a file is of a controller");
    let places = [
        below(&format!("/sys/fs/cgroup/{controller}"), files[0]),
        below("/sys/fs/cgroup", files[1]),
        below("/sys/fs/cgroup/unified", files[1]),
    ];
    let found = places.iter().find_map(|path| fs::read_to_string(path).ok());
    found.unwrap_or_else(|| panic!("none of {places:?}")).trim().to_owned()
}

#[test]
fn limits_are_those_of_the_config_and_then_of_update() {
    let oci = Oci::new();
    let mut config = oci.config("c1", &["sleep", "1000"]);
    config["linux"]["resources"] = json!({"memory": {"limit": 67_108_864}, "pids": {"limit": 20},
        "cpu": {"shares": 512}});
    oci.start("c1", &config);
    let memory = ["memory.limit_in_bytes", "memory.max"];
    let pids = ["pids.max", "pids.max"];
    assert_eq!((limit(&oci, memory), limit(&oci, pids)), ("67108864".into(), "20".into()));
    oci.ok(&["update", "--memory", "134217728", "--pids-limit", "33", "c1"]);
    assert_eq!((limit(&oci, memory), limit(&oci, pids)), ("134217728".into(), "33".into()));

    let mut child = oci.command(&["update", "--resources", "-", "c1"]).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(br#"{"pids": {"limit": 44}}"#).unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!((limit(&oci, memory), limit(&oci, pids)), ("134217728".into(), "44".into()));
    assert!(oci.refused(&["update", "--memory", "much", "c1"]).contains("no number"));
}

#[test]
fn block_io_is_throttled_and_what_no_controller_takes_is_refused() {
    let Some((_, number)) = berth_tests::block_device() else {
        return skip(
            "block_io_is_throttled_and_what_no_controller_takes_is_refused",
            "no block device in /dev",
        );
    };
    let (major, minor) = number.split_once(':').unwrap();
    let (major, minor): (u32, u32) = (major.parse().unwrap(), minor.parse().unwrap());
    let oci = Oci::new();
    let mut config = oci.config("c1", &["sleep", "1000"]);
    let throttled = json!([{"major": major, "minor": minor, "rate": 1_048_576}]);
    config["linux"]["resources"] = json!({"blockIO": {"throttleReadBpsDevice": throttled},
        "hugepageLimits": [{"pageSize": "2MB", "limit": 0}]});
    oci.start("c1", &config);
    let below = oci.cgroup("c1");
    let v1 = PathBuf::from(format!("/sys/fs/cgroup/blkio{below}/blkio.throttle.read_bps_device"));
    let (path, said) = match v1.exists() {
        true => (v1, format!("{number} 1048576")),
        false => (format!("/sys/fs/cgroup{below}/io.max").into(), format!("{number} rbps=1048576")),
    };
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains(&said), "{}: {text}", path.display());

    config["linux"]["cgroupsPath"] = json!(oci.cgroup("c2"));
    config["linux"]["resources"] = json!({"network": {"classID": 1}});
    oci.write(&config);
    if !PathBuf::from("/sys/fs/cgroup/net_cls").exists() {
        let told = oci.refused(&["create", "c2"]);
        assert!(told.contains("network.classID") && told.contains("net_cls.classid"), "{told}");
    }
}

#[test]
fn events_tell_statistics_in_runcs_form() {
    let oci = Oci::new();
    let mut config = oci.config("c1", &["eat", "8M"]);
    config["linux"]["resources"] = json!({"memory": {"limit": 67_108_864}, "pids": {"limit": 20}});
    let ran = oci.start("c1", &config);
    berth_tests::eventually("the memory to be eaten", || ran.stdout().contains("ate").then_some(()));
    let event: Value = serde_json::from_str(&oci.ok(&["events", "--stats", "c1"])).unwrap();
    assert_eq!((&event["type"], &event["id"]), (&json!("stats"), &json!("c1")));
    let data = &event["data"];
    assert_eq!(data["pids"], json!({"current": 1, "limit": 20}));
    assert_eq!(data["memory"]["usage"]["limit"], 67_108_864);
    assert!(data["memory"]["usage"]["usage"].as_u64().unwrap() >= 8 << 20, "{data}");
    assert!(data["cpu"]["usage"]["total"].as_u64().unwrap() > 0, "{data}");
    oci.ok(&["kill", "c1", "KILL"]);
    assert_eq!(oci.reap("c1"), 128 + 9);
    assert!(oci.refused(&["events", "--stats", "c1"]).contains("not running"));
    assert!(oci.refused(&["update", "--memory", "1000000", "c1"]).contains("not running"));
}

#[test]
fn a_paused_container_stands_still_and_goes_on() {
    let oci = Oci::new();
    oci.start("c1", &oci.config("c1", &["burn", "1000"]));
    let pid = oci.pid("c1");
    oci.ok(&["pause", "c1"]);
    assert_eq!(oci.status("c1"), "paused");
    assert_ne!(state_letter(pid), Some('R'));
    assert!(oci.refused(&["pause", "c1"]).contains("not running"));
    oci.ok(&["resume", "c1"]);
    assert_eq!(oci.status("c1"), "running");
    assert!(oci.refused(&["resume", "c1"]).contains("not paused"));
    oci.ok(&["pause", "c1"]);
    // A signal that ends it does so though it is frozen.
    oci.ok(&["kill", "c1", "KILL"]);
    assert_eq!(oci.reap("c1"), 128 + 9);
    oci.ok(&["delete", "c1"]);
}

#[test]
fn a_paused_container_is_deleted_with_force() {
    let oci = Oci::new();
    oci.start("c1", &oci.config("c1", &["sleep", "1000"]));
    oci.ok(&["pause", "c1"]);
    oci.ok(&["delete", "--force", "c1"]);
    assert_eq!(oci.reap("c1"), 128 + 9);
}
