//! Namespaces: a container's own, those of another that it joins by their paths, and the caller's where none is asked for.

use std::fs;

use berth_tests::oci::Oci;
use serde_json::{Value, json};

/// Kinds as the spec has them, and as /proc/PID/ns does. A mount namespace is always the container's own.
const KINDS: [(&str, &str); 7] = [
    ("cgroup", "cgroup"),
    ("ipc", "ipc"),
    ("network", "net"),
    ("pid", "pid"),
    ("time", "time"),
    ("user", "user"),
    ("uts", "uts"),
];

fn of(pid: i32, kind: &str) -> String {
    let link = fs::read_link(format!("/proc/{pid}/ns/{kind}")).expect("a process has its namespaces");
    link.to_str().expect("a name is ASCII").to_owned()
}

/// Those of the kinds that this kernel has.
fn here() -> impl Iterator<Item = (&'static str, &'static str)> {
    KINDS.into_iter().filter(|(_, file)| fs::exists(format!("/proc/self/ns/{file}")).unwrap())
}

fn with_users(mut config: Value) -> Value {
    let maps = json!([{"containerID": 0, "hostID": 100_000, "size": 1000}]);
    config["linux"]["uidMappings"] = maps.clone();
    config["linux"]["gidMappings"] = maps;
    config
}

#[test]
fn a_container_joins_the_namespaces_that_are_named_and_no_others() {
    let oci = Oci::new();
    let mut first = with_users(oci.config("c1", &["sleep", "1000"]));
    let kinds = here().map(|(kind, _)| json!({"type": kind})).chain([json!({"type": "mount"})]);
    first["linux"]["namespaces"] = kinds.collect();
    oci.start("c1", &first);
    let pid = oci.pid("c1");
    let own = std::process::id() as i32;
    for (kind, file) in here() {
        assert_ne!(of(pid, file), of(own, file), "{kind} is its own");
    }
    // Each alone, and the rest as the caller has them.
    for (kind, file) in here() {
        let mut second = oci.config("c2", &["sleep", "1000"]);
        // Nobody mounts what belongs to namespaces of somebody else.
        second["mounts"] = json!([]);
        second["process"].as_object_mut().unwrap().remove("capabilities");
        second.as_object_mut().unwrap().remove("hostname");
        second["linux"]["namespaces"] =
            json!([{"type": "mount"}, {"type": kind, "path": format!("/proc/{pid}/ns/{file}")}]);
        oci.start("c2", &second);
        let joined = oci.pid("c2");
        for (other, file) in here() {
            let wanted = if other == kind { pid } else { own };
            assert_eq!(of(joined, file), of(wanted, file), "{other}, with {kind} joined");
        }
        assert_ne!(of(joined, "mnt"), of(own, "mnt"));
        oci.ok(&["delete", "--force", "c2"]);
        oci.reap("c2");
    }
    // All at once, with an exec that is in the same.
    let mut second = oci.config("c2", &["sleep", "1000"]);
    let kinds = here().map(|(kind, file)| json!({"type": kind, "path": format!("/proc/{pid}/ns/{file}")}));
    second["linux"]["namespaces"] = kinds.chain([json!({"type": "mount"})]).collect();
    second.as_object_mut().unwrap().remove("hostname");
    oci.start("c2", &second);
    for (kind, file) in here() {
        assert_eq!(of(oci.pid("c2"), file), of(pid, file), "{kind}");
    }
    assert_eq!(oci.ok(&["exec", "c2", "cat", "/proc/sys/kernel/hostname"]), "box\n");
    // Whose process 1 ends waits for all in there.
    oci.ok(&["delete", "--force", "c2"]);
    oci.reap("c2");
}

#[test]
fn a_container_with_ids_of_its_own_joins_what_is_the_hosts() {
    let oci = Oci::new();
    let mut first = oci.config("c1", &["sleep", "1000"]);
    let mine = ["ipc", "network", "time", "uts"];
    let kinds: Vec<_> = here().filter(|(kind, _)| mine.contains(kind)).collect();
    let new = kinds.iter().map(|(kind, _)| json!({"type": kind}));
    first["linux"]["namespaces"] = new.chain([json!({"type": "mount"}), json!({"type": "pid"})]).collect();
    oci.start("c1", &first);
    let pid = oci.pid("c1");
    // Those belong to the host's user namespace, as the ones that podman makes for a network do.
    let mut second = with_users(oci.config("c2", &["sleep", "1000"]));
    second.as_object_mut().unwrap().remove("hostname");
    let joined =
        kinds.iter().map(|(kind, file)| json!({"type": kind, "path": format!("/proc/{pid}/ns/{file}")}));
    let own = ["mount", "pid", "user"].map(|kind| json!({"type": kind}));
    second["linux"]["namespaces"] = joined.chain(own).collect();
    oci.start("c2", &second);
    for (kind, file) in kinds {
        assert_eq!(of(oci.pid("c2"), file), of(pid, file), "{kind}");
    }
    assert_ne!(of(oci.pid("c2"), "user"), of(pid, "user"));
    oci.ok(&["exec", "c2", "true"]);
}

#[test]
fn a_path_that_is_of_no_such_namespace_is_refused() {
    let oci = Oci::new();
    for (path, why) in [("/no/such/ns", "/no/such/ns"), ("/proc/self/ns/uts", "net"), ("/dev/null", "net")] {
        let mut config = oci.config("c1", &["true"]);
        let all = config["linux"]["namespaces"].as_array_mut().unwrap();
        all.retain(|namespace| namespace["type"] != "network");
        all.push(json!({"type": "network", "path": path}));
        oci.write(&config);
        let told = oci.refused(&["create", "c1"]);
        assert!(told.contains(why), "{path}: {told}");
        assert!(oci.refused(&["state", "c1"]).contains("does not exist"));
    }
}
