//! Documents that nobody would write: `config.json` with anything in any place, and with bytes that are no JSON.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

/// One that says something of everything.
fn whole() -> Value {
    const TEXT: &str = r#"{
        "ociVersion": "1.3.0",
        "process": {
            "terminal": true, "consoleSize": {"height": 1, "width": 2}, "cwd": "/", "args": ["a"], "env": ["A=b"],
            "user": {"uid": 1, "gid": 2, "umask": 3, "additionalGids": [4]},
            "capabilities": {"bounding": ["CAP_KILL"], "ambient": ["CAP_KILL"]},
            "rlimits": [{"type": "RLIMIT_CORE", "soft": 1, "hard": 2}], "noNewPrivileges": true, "oomScoreAdj": 5,
            "apparmorProfile": "p", "selinuxLabel": "l",
            "scheduler": {"policy": "SCHED_DEADLINE", "runtime": 1, "deadline": 2, "period": 3, "flags": ["SCHED_FLAG_RECLAIM"]},
            "ioPriority": {"class": "IOPRIO_CLASS_RT", "priority": 7}, "execCPUAffinity": {"initial": "0-3", "final": "1"}
        },
        "root": {"path": "rootfs", "readonly": true}, "hostname": "h", "domainname": "d",
        "mounts": [
            {"destination": "/a", "type": "tmpfs", "source": "s", "options": ["ro", "size=1", "tmpcopyup"]},
            {"destination": "b", "type": "bind", "source": "s", "options": ["rbind", "rro", "rslave", "idmap"],
                "uidMappings": [{"containerID": 0, "hostID": 1, "size": 2}],
                "gidMappings": [{"containerID": 0, "hostID": 1, "size": 2}]}
        ],
        "hooks": {"prestart": [{"path": "/p", "args": ["a"], "env": ["A=b"], "timeout": 1}], "poststop": [{"path": "/q"}]},
        "annotations": {"a": "b"},
        "linux": {
            "namespaces": [{"type": "mount"}, {"type": "pid"}, {"type": "network"}, {"type": "uts"}, {"type": "ipc"},
                {"type": "user"}, {"type": "time"}, {"type": "cgroup", "path": "/proc/1/ns/cgroup"}],
            "uidMappings": [{"containerID": 0, "hostID": 1, "size": 2}], "gidMappings": [{"containerID": 0, "hostID": 1, "size": 2}],
            "devices": [{"path": "/dev/x", "type": "c", "major": 1, "minor": 2, "fileMode": 438, "uid": 0, "gid": 0}],
            "cgroupsPath": "/c", "sysctl": {"net.core.somaxconn": "1"}, "rootfsPropagation": "slave",
            "maskedPaths": ["/m"], "readonlyPaths": ["/r"], "mountLabel": "m", "personality": {"domain": "LINUX32"},
            "timeOffsets": {"boottime": {"secs": -1, "nanosecs": 2}}, "netDevices": {"eth1": {"name": "net0"}},
            "memoryPolicy": {"mode": "MPOL_BIND", "nodes": "0-3,5", "flags": ["MPOL_F_STATIC_NODES"]},
            "intelRdt": {"closID": "c", "schemata": ["L3:0=f"], "enableMonitoring": true},
            "seccomp": {"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1, "architectures": ["SCMP_ARCH_X86_64"],
                "flags": ["SECCOMP_FILTER_FLAG_LOG"], "listenerPath": "/l", "listenerMetadata": "m",
                "syscalls": [{"names": ["read", "mkdir"], "action": "SCMP_ACT_NOTIFY", "args": [
                    {"index": 0, "value": 1, "valueTwo": 2, "op": "SCMP_CMP_MASKED_EQ"}]}]},
            "resources": {
                "devices": [{"allow": false, "access": "rwm"}, {"allow": true, "type": "c", "major": 1, "minor": 3, "access": "r"}],
                "memory": {"limit": 1, "reservation": 1, "swap": -1, "swappiness": 1, "disableOOMKiller": true},
                "cpu": {"shares": 1, "quota": -1, "period": 1, "burst": 1, "idle": 1, "cpus": "0", "mems": "0"},
                "pids": {"limit": -1}, "hugepageLimits": [{"pageSize": "2MB", "limit": 1}], "unified": {"memory.high": "1"},
                "blockIO": {"weight": 10, "weightDevice": [{"major": 8, "minor": 0, "weight": 10, "leafWeight": 10}],
                    "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 1}]},
                "rdma": {"mlx": {"hcaHandles": 1}}, "network": {"classID": 1, "priorities": [{"name": "e", "priority": 1}]}
            }
        }
    }"#;
    serde_json::from_str(TEXT).unwrap()
}

/// The places in a document, as JSON pointers.
fn places(value: &Value, at: &str, found: &mut Vec<String>) {
    found.push(at.to_owned());
    match value {
        Value::Object(fields) => {
            fields.iter().for_each(|(key, value)| places(value, &format!("{at}/{key}"), found))
        }
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(n, value)| places(value, &format!("{at}/{n}"), found))
        }
        _ => {}
    }
}

fn anything() -> impl Strategy<Value = Value> {
    let text = prop_oneof![
        "\\PC{0,12}",
        prop::sample::select(vec![
            "",
            "/",
            "..",
            "/../..",
            "a/../b",
            "\0",
            "rw",
            "rshared",
            "idmap",
            "SCMP_ACT_NOTIFY",
            "SCMP_ACT_TRACE",
            "0-4294967296",
            "7-1",
            "1.9.9",
            "-1",
            "net.\u{e9}",
            "shared",
            "MPOL_LOCAL",
            "CAP_",
            "RLIMIT_NOFILE",
        ])
        .prop_map(str::to_owned),
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        prop::sample::select(vec![0i64, -1, 1, 7, 8, 64, 65535, 4_294_967_295, 4_294_967_296])
            .prop_map(Value::from),
        text.prop_map(Value::from),
    ];
    leaf.prop_recursive(2, 8, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::hash_map("[a-zA-Z]{1,8}", inner, 0..4).prop_map(|map| json!(map)),
        ]
    })
}

/// Everything that is read of a document before anything is made.
fn read(text: &[u8]) -> Result<launch::ContainerPlan> {
    let spec = parse(text)?;
    late_hooks(&spec)?;
    if let Some(asked) = spec.process() {
        process(asked, &spec)?;
    }
    plan(&Bundle {
        spec: &spec,
        id: "c1",
        path: Path::new("/bundle"),
        dir: Path::new("/dir"),
        cgroup: launch::Cgroup::default(),
        outside: launch::Outside::default(),
        notify: Some(Path::new("/dir/notify")),
        keyring: Keyring::New,
    })
}

/// What a plan never says, whatever it came from.
fn is_sound(plan: &launch::ContainerPlan) -> bool {
    let process = plan.process.as_ref().expect("a plan has a process");
    let mounts = plan.mounts.iter().all(|mount| mount.destination.starts_with(b"/") && mount.from.is_some());
    let limits = process.rlimits.iter().all(|limit| limit.soft <= limit.hard);
    let own = launch::NamespaceKind::Mount;
    let apart = plan.namespaces.iter().any(|one| one.kind() == own && one.path.is_empty());
    mounts && limits && apart && !process.args.is_empty() && process.cwd.starts_with(b"/")
}

#[test]
fn the_document_that_says_everything_is_taken() {
    read(whole().to_string().as_bytes()).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn anything_in_any_place_gives_a_sound_plan_or_a_reason(
        changes in prop::collection::vec((any::<prop::sample::Index>(), prop::option::of(anything())), 1..5)
    ) {
        let mut document = whole();
        for (which, value) in changes {
            let mut found = Vec::new();
            places(&document, "", &mut found);
            let pointer = which.get(&found);
            match (value, pointer.rsplit_once('/')) {
                (Some(value), _) => *document.pointer_mut(pointer).unwrap() = value,
                (None, Some((parent, key))) => match document.pointer_mut(parent).unwrap() {
                    Value::Object(fields) => drop(fields.remove(key)),
                    Value::Array(items) => drop(items.remove(key.parse().unwrap())),
                    _ => {}
                },
                (None, None) => document = Value::Null,
            }
        }
        match read(document.to_string().as_bytes()) {
            Ok(plan) => prop_assert!(is_sound(&plan), "{document}"),
            Err(error) => {
                prop_assert!(matches!(error.kind, Kind::Invalid | Kind::Unimplemented), "{error:?}: {document}");
                prop_assert!(error.chain().len() > 20, "{error:?}");
            }
        }
    }

    #[test]
    fn bytes_that_are_no_document_are_refused_in_words(
        at in any::<prop::sample::Index>(), bytes in prop::collection::vec(any::<u8>(), 0..8), cut in any::<bool>()
    ) {
        let mut text = whole().to_string().into_bytes();
        let at = at.index(text.len());
        let end = if cut { text.len() } else { (at + bytes.len()).min(text.len()) };
        text.splice(at..end, bytes);
        if let Err(error) = read(&text) {
            prop_assert!(matches!(error.kind, Kind::Invalid | Kind::Unimplemented), "{error:?}");
        }
        parse_process(&text).err();
    }
}
