//! What can't be done is refused with its reason before anything is made; `features` promises only the rest.

use berth_tests::{oci::Oci, systemd};
use serde_json::{Value, json};

/// Creates with something more in the config, which has to be refused; says why.
fn refusal(oci: &Oci, change: impl FnOnce(&mut Value)) -> String {
    let mut config = oci.config("c1", &["true"]);
    change(&mut config);
    oci.write(&config);
    let why = oci.refused(&["create", "c1"]);
    assert!(oci.refused(&["state", "c1"]).contains("does not exist"), "{why}");
    why
}

#[test]
fn what_no_plan_can_say_is_refused_by_its_name() {
    let oci = Oci::new();
    let map = json!([{"containerID": 0, "hostID": 100_000, "size": 1}]);
    let notifies = json!({"defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}]});
    let rows: [(&str, Value, &str); 10] = [
        ("/linux/seccomp", notifies, "linux.seccomp.listenerPath"),
        ("/linux/memoryPolicy", json!({"mode": "MPOL_INTERLEAVE", "nodes": "all"}), "linux.memoryPolicy"),
        // Where it is mounted there is no such group, and else not even that.
        ("/linux/intelRdt", json!({"closID": "no-such-group"}), "resctrl"),
        ("/linux/netDevices", json!({"nosuch9": {}}), "no such network device"),
        ("/linux/resources", json!({"hugepageLimits": [{"pageSize": "3MB", "limit": 3_145_728}]}), "3MB"),
        ("/linux/resources", json!({"rdma": {"mlx5_1": {"hcaHandles": 3}}}), "rdma"),
        ("/linux/resources", json!({"network": {"classID": 1}}), "network"),
        ("/linux/resources", json!({"cpu": {"realtimeRuntime": 1000}}), "realtime"),
        ("/linux/uidMappings", map.clone(), "no user namespace"),
        ("/windows", json!({"layerFolders": []}), "this is Linux"),
    ];
    for (pointer, value, why) in rows {
        let said = refusal(&oci, |config| {
            let (parent, key) = pointer.rsplit_once('/').unwrap();
            config.pointer_mut(parent).unwrap()[key] = value;
        });
        assert!(said.contains(why), "{pointer}: {said}");
    }
    let said = refusal(&oci, |config| {
        config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"}));
        config["linux"]["uidMappings"] = map.clone();
    });
    assert!(said.contains("both user and group ids"), "{said}");
}

#[test]
fn mounts_that_would_come_out_as_others_are_refused() {
    let oci = Oci::new();
    for option in ["copy-symlink", "dest-nofollow", "src-nofollow", "remount"] {
        let said = refusal(&oci, |config| {
            let mount = json!({"destination": "/x", "type": "tmpfs", "source": "x", "options": [option]});
            config["mounts"].as_array_mut().unwrap().push(mount);
        });
        assert!(said.contains(option), "{option}: {said}");
    }
    let said = refusal(&oci, |config| {
        let mount =
            json!({"destination": "/x", "type": "none", "source": "/tmp", "options": ["bind", "tmpcopyup"]});
        config["mounts"].as_array_mut().unwrap().push(mount);
    });
    assert!(said.contains("tmpcopyup is for a tmpfs"), "{said}");
    let said = refusal(&oci, |config| {
        let map = json!([{"containerID": 0, "hostID": 100_000, "size": 1}]);
        let mount = json!({"destination": "/x", "type": "none", "source": "/tmp", "options": ["bind"],
            "uidMappings": map});
        config["mounts"].as_array_mut().unwrap().push(mount);
    });
    assert!(said.contains("has to map both"), "{said}");
}

#[test]
fn what_contradicts_itself_is_refused() {
    let oci = Oci::new();
    let rows: [(&str, Value, &str); 6] = [
        ("/ociVersion", json!("2.0.0"), "ociVersion"),
        ("/process/args", json!([]), "process.args"),
        ("/process/cwd", json!("tmp"), "not absolute"),
        ("/linux/sysctl", json!({"kernel.panic": "1"}), "no namespace"),
        ("/linux/namespaces", json!([{"type": "pid"}, {"type": "uts"}]), "mount namespace"),
        ("/linux/namespaces", json!([{"type": "mount"}, {"type": "mount"}]), "twice"),
    ];
    for (pointer, value, why) in rows {
        let said = refusal(&oci, |config| {
            let (parent, key) = pointer.rsplit_once('/').unwrap();
            config.pointer_mut(parent).unwrap()[key] = value;
        });
        assert!(said.contains(why), "{pointer}: {said}");
    }
}

#[test]
fn flags_that_ask_for_what_is_not_there_are_refused() {
    let oci = Oci::new();
    oci.write(&oci.config("c1", &["true"]));
    assert!(oci.refused(&["create", "--no-pivot", "c1"]).contains("--no-pivot"));
    for verb in ["checkpoint", "restore"] {
        assert!(oci.refused(&[verb, "--image-path", "/x", "c1"]).contains("CRIU"), "{verb}");
    }
    assert!(oci.refused(&["fly"]).contains("no such verb"));
}

#[test]
fn features_promise_what_is_kept() {
    let oci = Oci::new();
    let features: Value = serde_json::from_str(&oci.ok(&["features"])).unwrap();
    assert_eq!(features["ociVersionMin"], "1.0.0");
    assert!(features["hooks"].as_array().unwrap().contains(&json!("createRuntime")));
    let linux = &features["linux"];
    assert_eq!(linux["cgroup"]["systemd"], systemd::runs_here());
    assert_eq!(linux["intelRdt"], json!({"enabled": true, "schemata": true, "monitoring": true}));
    assert_eq!(linux["seccomp"]["enabled"], true);
    let options = features["mountOptions"].as_array().unwrap();
    assert!(options.contains(&json!("rro")) && options.contains(&json!("tmpcopyup")));
    assert!(!options.contains(&json!("remount")));
    assert!(linux["seccomp"]["actions"].as_array().unwrap().contains(&json!("SCMP_ACT_NOTIFY")));
    assert_eq!(linux["netDevices"]["enabled"], true);
}
