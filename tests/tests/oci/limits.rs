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
fn limits_of_memory_swap_and_processors_are_in_their_files() {
    let oci = Oci::new();
    let mut config = oci.config("c1", &["sleep", "1000"]);
    config["linux"]["resources"] = json!({
        "memory": {"limit": 67_108_864, "reservation": 33_554_432},
        "cpu": {"quota": 50_000, "period": 100_000}});
    let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let has_cpusets = fs::exists("/sys/fs/cgroup/cpuset").unwrap()
        || text("/sys/fs/cgroup/cgroup.controllers").split_whitespace().any(|name| name == "cpuset");
    if has_cpusets {
        config["linux"]["resources"]["cpu"]["cpus"] = json!("0");
        config["linux"]["resources"]["cpu"]["mems"] = json!("0");
    } else {
        skip(
            "limits_of_memory_swap_and_processors_are_in_their_files",
            "no cpuset controller: without those",
        );
    }
    let counts_swap = fs::exists("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes").unwrap()
        || fs::read_to_string("/proc/swaps").is_ok_and(|text| text.lines().count() > 1);
    if counts_swap {
        // Together with the memory, as v1 writes it.
        config["linux"]["resources"]["memory"]["swap"] = json!(134_217_728);
    }
    oci.start("c1", &config);
    let mut rows = vec![
        ("memory.limit_in_bytes", "67108864", "memory.max", "67108864"),
        ("memory.soft_limit_in_bytes", "33554432", "memory.low", "33554432"),
        ("cpu.cfs_quota_us", "50000", "cpu.max", "50000 100000"),
        ("cpu.cfs_period_us", "100000", "cpu.max", "50000 100000"),
    ];
    if has_cpusets {
        rows.extend([("cpuset.cpus", "0", "cpuset.cpus", "0"), ("cpuset.mems", "0", "cpuset.mems", "0")]);
    }
    if counts_swap {
        rows.push(("memory.memsw.limit_in_bytes", "134217728", "memory.swap.max", "67108864"));
    }
    for (v1, in_v1, v2, in_v2) in rows {
        let said = limit(&oci, [v1, v2]);
        assert!(said == in_v1 || said == in_v2, "{v1} or {v2}: {said}");
    }
}

#[test]
fn limits_that_few_ask_for_are_in_their_files_or_refused_by_name() {
    let oci = Oci::new();
    oci.start("c1", &oci.config("c1", &["sleep", "1000"]));
    let rows = [
        (
            json!({"cpu": {"quota": 50_000, "period": 100_000, "burst": 20_000}}),
            "cpu.burst",
            ["cpu.cfs_burst_us", "cpu.max.burst"],
            "20000",
        ),
        (json!({"cpu": {"idle": 1}}), "cpu.idle", ["cpu.idle", "cpu.idle"], "1"),
        (json!({"memory": {"swappiness": 17}}), "memory.swappiness", ["memory.swappiness", ""], "17"),
    ];
    for (resources, name, files, value) in rows {
        let path = oci.dir().join("limits");
        fs::write(&path, resources.to_string()).unwrap();
        let said = oci.run(&["update", "--resources", path.to_str().unwrap(), "c1"]);
        match said.code {
            0 => assert_eq!(limit(&oci, files), value, "{name}"),
            _ => assert!(
                said.stderr.contains(name) && said.stderr.contains("no controller"),
                "{name}: {said:?}"
            ),
        }
    }
    // What no kernel holds any more is told, and is no failure.
    let path = oci.dir().join("limits");
    fs::write(&path, json!({"memory": {"kernel": 10_000_000}}).to_string()).unwrap();
    let said = oci.run(&["update", "--resources", path.to_str().unwrap(), "c1"]);
    assert!(said.code == 0 && said.stderr.contains("memory.kernel"), "{said:?}");
}

#[test]
fn a_limit_below_what_is_used_is_refused_where_that_is_to_be_looked_at() {
    let oci = Oci::new();
    let mut config = oci.config("c1", &["eat", "32M"]);
    config["linux"]["resources"] = json!({"memory": {"limit": 134_217_728, "checkBeforeUpdate": true}});
    let ran = oci.start("c1", &config);
    berth_tests::eventually("the memory to be eaten", || ran.stdout().contains("ate").then_some(()));
    let path = oci.dir().join("limits");
    fs::write(&path, json!({"memory": {"limit": 4_194_304, "checkBeforeUpdate": true}}).to_string()).unwrap();
    let told = oci.refused(&["update", "--resources", path.to_str().unwrap(), "c1"]);
    assert!(told.contains("4194304") && told.contains("checkBeforeUpdate"), "{told}");
    assert_eq!(limit(&oci, ["memory.limit_in_bytes", "memory.max"]), "134217728");
    assert_eq!(oci.status("c1"), "running");
}

#[test]
fn files_of_cgroup_v2_are_written_as_the_map_names_them() {
    let test = "files_of_cgroup_v2_are_written_as_the_map_names_them";
    let oci = Oci::new();
    let places = ["", "/unified"].map(|root| PathBuf::from(format!("/sys/fs/cgroup{root}")));
    let Some(root) = places.into_iter().find(|root| root.join("cgroup.controllers").exists()) else {
        return skip(test, "no cgroup v2 is mounted");
    };
    let mut config = oci.config("c1", &["sleep", "1000"]);
    config["linux"]["resources"] =
        json!({"unified": {"cgroup.max.depth": "5", "cgroup.max.descendants": "7"}});
    oci.start("c1", &config);
    let read = |file: &str| {
        let path = root.join(oci.cgroup("c1").trim_start_matches('/')).join(file);
        fs::read_to_string(path).unwrap().trim().to_owned()
    };
    assert_eq!((read("cgroup.max.depth"), read("cgroup.max.descendants")), ("5".into(), "7".into()));
    // What leads elsewhere, and what is not there.
    for (file, why) in [("../cgroup.procs", "../cgroup.procs"), ("no.such.file", "no.such.file")] {
        config["linux"]["cgroupsPath"] = json!(oci.cgroup("c2"));
        config["linux"]["resources"] = json!({"unified": {file: "1"}});
        oci.write(&config);
        let said = oci.refused(&["create", "c2"]);
        assert!(said.contains(why), "{file}: {said}");
    }
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
