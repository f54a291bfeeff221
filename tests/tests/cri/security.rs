//! Who a container runs as and what it may do.

use berth_cri::v1 as cri;
use berth_fixtures::{Entry, Layer};
use berth_tests::{Asked, Daemon, asked, images};
use serde_json::{Value, json};
use tonic::Code;

fn uid(value: i64) -> Option<cri::Int64Value> {
    Some(cri::Int64Value { value })
}

fn info() -> Asked {
    asked("info", &["info"])
}

/// Numbered, since one pod has each name once.
fn each(daemon: &Daemon, rows: impl IntoIterator<Item = (Asked, Value)>, keys: &[&str]) {
    let pod = daemon.plain_pod("each");
    for (number, (asked, expected)) in rows.into_iter().enumerate() {
        let asked = asked.with(|config| {
            config.metadata.as_mut().unwrap().name = format!("c{number}");
            config.log_path = format!("{number}.log");
        });
        let found = daemon.info(&pod, &asked);
        let found: Vec<&Value> = keys.iter().map(|key| &found[key]).collect();
        assert_eq!(json!(found), expected, "row {number}");
    }
}

#[test]
fn users_and_groups_are_as_asked() {
    let daemon = Daemon::with_fixture();
    daemon.load_image("localhost/app:1", &images::base().user("app"));
    daemon.load_image("localhost/staff:1", &images::base().user("worker:staff"));
    daemon.load_image("localhost/numbers:1", &images::base().user("4321:8765"));
    let as_uid = |id: i64| info().secured(|security| security.run_as_user = uid(id));
    let rows = [
        (info(), json!([0, 0, [0]])),
        // The groups of the image's /etc/group are merged in.
        (info().image("localhost/app:1"), json!([1000, 1000, [1000, 2001]])),
        (info().image("localhost/staff:1"), json!([1001, 2000, [2000, 2001]])),
        (info().image("localhost/numbers:1"), json!([4321, 8765, [8765]])),
        (as_uid(1001), json!([1001, 1001, [1001, 2000, 2001]])),
        // A number that /etc/passwd does not know is good, in the group root.
        (as_uid(7777), json!([7777, 0, [0]])),
        (
            as_uid(1000).secured(|security| security.run_as_group = uid(2000)),
            json!([1000, 2000, [2000, 2001]]),
        ),
        (
            info().secured(|security| security.run_as_username = "worker".into()),
            json!([1001, 1001, [1001, 2000, 2001]]),
        ),
        (
            as_uid(1000).secured(|security| security.supplemental_groups = vec![5001, 5002]),
            json!([1000, 1000, [1000, 2001, 5001, 5002]]),
        ),
        (
            as_uid(1000).secured(|security| {
                security.supplemental_groups = vec![5001];
                security.supplemental_groups_policy = cri::SupplementalGroupsPolicy::Strict.into();
            }),
            json!([1000, 1000, [1000, 5001]]),
        ),
    ];
    each(&daemon, rows, &["uid", "gid", "groups"]);
}

#[test]
fn the_status_says_as_whom_it_runs() {
    let daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("user");
    let asked = asked("c", &["sleep", "inf"]).secured(|security| {
        security.run_as_user = uid(1000);
        security.supplemental_groups = vec![5001];
    });
    let id = daemon.launch(&pod, &asked).unwrap();
    let mut user = daemon.status(&id).unwrap().user.unwrap().linux.unwrap();
    user.supplemental_groups.sort_unstable();
    assert_eq!((user.uid, user.gid), (1000, 1000));
    assert_eq!(user.supplemental_groups, [1000, 2001, 5001]);
    // An exec is the same person.
    assert_eq!(daemon.exec_ok(&id, &["id"]), "uid=1000 gid=1000 groups=1000,2001,5001\n");
    assert!(daemon.exec_ok(&id, &["env"]).contains("HOME=/home/app\n"));
}

#[test]
fn a_group_without_a_user_is_refused() {
    let daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("group");
    let asked = info().secured(|security| security.run_as_group = uid(1000));
    let refused = daemon.create(&pod, &asked).unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    assert!(refused.message().contains("run_as_group"), "{refused}");
}

#[test]
fn capabilities_are_the_default_ones_more_or_less() {
    const NET_ADMIN: u64 = 1 << 12;
    const CHOWN: u64 = 1;
    const SYS_ADMIN: u64 = 1 << 21;
    // What containerd, CRI-O and docker agree on.
    const DEFAULT: u64 = 0xa804_25fb;
    let daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("caps");
    let of = |name: &str, change: &dyn Fn(&mut cri::LinuxContainerSecurityContext)| -> (u64, u64, u64) {
        let asked = asked(name, &["info"]).secured(|security| change(security));
        let caps = &daemon.info(&pod, &asked)["caps"];
        let set = |name: &str| u64::from_str_radix(caps[name].as_str().unwrap(), 16).unwrap();
        (set("effective"), set("bounding"), set("ambient"))
    };
    let (effective, bounding, ambient) = of("default", &|_| {});
    // CRI-O leaves four of docker's away; none may have more.
    assert_eq!((effective & !DEFAULT, bounding & !DEFAULT, ambient), (0, 0, 0), "{effective:x}");
    assert_eq!(effective & CHOWN, CHOWN);
    let change = |add: &[&str], drop: &[&str]| {
        let words = |words: &[&str]| words.iter().map(ToString::to_string).collect();
        Some(cri::Capability {
            add_capabilities: words(add),
            drop_capabilities: words(drop),
            add_ambient_capabilities: Vec::new(),
        })
    };
    let (more, _, _) = of("more", &|security| security.capabilities = change(&["NET_ADMIN"], &["CHOWN"]));
    assert_eq!(more, (effective | NET_ADMIN) & !CHOWN);
    let (none, bounding, _) = of("none", &|security| security.capabilities = change(&[], &["ALL"]));
    assert_eq!((none, bounding), (0, 0));
    let (one, _, _) = of("one", &|security| security.capabilities = change(&["NET_ADMIN"], &["ALL"]));
    assert_eq!(one, NET_ADMIN);
    let (all, _, _) = of("all", &|security| security.capabilities = change(&["ALL"], &["SYS_ADMIN"]));
    assert_eq!(all & SYS_ADMIN, 0);
    assert_eq!(all & NET_ADMIN, NET_ADMIN);
    // An ordinary user has none in effect but may get them back by a file's.
    let (user, bounding, _) = of("user", &|security| security.run_as_user = uid(1000));
    assert_eq!((user, bounding), (0, effective));
    let (user, _, ambient) = of("ambient", &|security| {
        security.run_as_user = uid(1000);
        security.capabilities = Some(cri::Capability {
            add_capabilities: vec!["NET_ADMIN".into()],
            drop_capabilities: Vec::new(),
            add_ambient_capabilities: vec!["NET_ADMIN".into()],
        });
    });
    assert_eq!((user, ambient), (NET_ADMIN, NET_ADMIN));
}

#[test]
fn an_unknown_capability_is_named() {
    let daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("caps");
    let asked = info().secured(|security| {
        security.capabilities =
            Some(cri::Capability { add_capabilities: vec!["NET_ADMINN".into()], ..Default::default() });
    });
    let refused = daemon.create(&pod, &asked).unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    assert!(refused.message().contains("NET_ADMINN"), "{refused}");
}

#[test]
fn privileges_stay_lost_where_asked() {
    let daemon = Daemon::with_fixture();
    let layer = Layer::new().with(Entry::file(
        "bin/su",
        0o4755,
        std::fs::read(berth_tests::program("fixture")).unwrap(),
    ));
    daemon.load_image("localhost/setuid:1", &images::with_layer(layer));
    let pod = daemon.plain_pod("nnp");
    let asked = |name: &str, on: bool| {
        asked(name, &["/bin/su", "info"]).image("localhost/setuid:1").secured(|security| {
            security.run_as_user = uid(1000);
            security.no_new_privs = on;
        })
    };
    let found = daemon.info(&pod, &asked("off", false));
    assert_eq!([&found["no_new_privs"], &found["euid"]], [&json!(0), &json!(0)]);
    let found = daemon.info(&pod, &asked("on", true));
    assert_eq!([&found["no_new_privs"], &found["euid"]], [&json!(1), &json!(1000)]);
}

#[test]
fn seccomp_filters_where_asked() {
    let daemon = Daemon::with_fixture();
    let profile = daemon.dir().join("profile.json");
    let text = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 99 }],
    });
    std::fs::write(&profile, text.to_string()).unwrap();
    let with = |kind: cri::security_profile::ProfileType, path: &str| {
        let seccomp = cri::SecurityProfile { profile_type: kind.into(), localhost_ref: path.into() };
        info().secured(|security| security.seccomp = Some(seccomp))
    };
    use cri::security_profile::ProfileType::{Localhost, RuntimeDefault, Unconfined};
    let rows = [
        (with(Unconfined, ""), json!([0])),
        (with(RuntimeDefault, ""), json!([2])),
        (with(Localhost, profile.to_str().unwrap()), json!([2])),
    ];
    each(&daemon, rows, &["seccomp"]);
    let pod = daemon.plain_pod("missing");
    let missing = daemon.create(&pod, &with(Localhost, "/nowhere/profile.json")).unwrap_err();
    assert!(missing.message().contains("/nowhere/profile.json"), "{missing}");
}

#[test]
fn a_privileged_container_has_it_all() {
    let daemon = Daemon::with_fixture();
    let mut config = berth_tests::pod("privileged");
    config.linux.as_mut().unwrap().security_context.as_mut().unwrap().privileged = true;
    let pod = daemon.run_pod(config).unwrap();
    let info = daemon.info(&pod, &asked("c", &["info"]).secured(|security| security.privileged = true));
    let own = std::fs::read_to_string("/proc/self/status").unwrap();
    let bounding = own.lines().find_map(|line| line.strip_prefix("CapBnd:")).unwrap().trim().to_owned();
    assert_eq!((&info["caps"]["effective"], &info["seccomp"]), (&json!(bounding), &json!(0)));
    let mounts = info["mounts"].as_array().unwrap();
    let sys = mounts.iter().find(|mount| mount["target"] == "/sys").unwrap();
    assert!(sys["options"].as_array().unwrap().contains(&json!("rw")), "{sys}");
}

#[test]
fn paths_are_masked_and_read_only() {
    let daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("paths");
    let asked = asked("c", &["sleep", "inf"]).secured(|security| {
        security.masked_paths =
            ["/proc/kcore", "/proc/keys", "/sys/firmware", "/srv", "/no/such"].map(str::to_owned).into();
        security.readonly_paths = ["/proc/sys", "/tmp"].map(str::to_owned).into();
    });
    let id = daemon.launch(&pod, &asked).unwrap();
    assert_eq!(daemon.exec_ok(&id, &["cat", "/proc/keys"]), "");
    assert_eq!(daemon.exec_ok(&id, &["ls", "/srv"]), "");
    for path in ["/srv/x", "/tmp/x", "/proc/sys/kernel/domainname"] {
        let answer = daemon.exec(&id, &["write", path, "x"], 5).unwrap();
        assert_eq!(answer.exit_code, 1, "{path}");
        let told = String::from_utf8_lossy(&answer.stderr).into_owned();
        assert!(told.contains("Read-only") || told.contains("Permission"), "{path}: {told}");
    }
    assert_eq!(daemon.exec(&id, &["write", "/var/tmp/x", "x"], 5).unwrap().exit_code, 0);
}

#[test]
fn a_read_only_root_can_be_read_only() {
    let daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("ro");
    let asked = asked("c", &["sleep", "inf"]).secured(|security| security.readonly_rootfs = true);
    let id = daemon.launch(&pod, &asked).unwrap();
    for path in ["/x", "/tmp/x", "/etc/x"] {
        let answer = daemon.exec(&id, &["write", path, "x"], 5).unwrap();
        let told = String::from_utf8_lossy(&answer.stderr).into_owned();
        assert!(answer.exit_code == 1 && told.contains("Read-only"), "{path}: {told}");
    }
    assert_eq!(daemon.exec_ok(&id, &["write", "/dev/shm/x", "x"]), "");
    assert_eq!(daemon.exec_ok(&id, &["write", "/dev/null", "x"]), "");
}

#[test]
fn devices_are_the_few_and_those_asked_for() {
    let daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("devices");
    let few = asked("few", &["info"]);
    let found = daemon.info(&pod, &few)["devices"].clone();
    let found: Vec<&str> = found.as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
    for name in [
        "full", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout", "tty", "urandom",
        "zero", "fd",
    ] {
        assert!(found.contains(&name), "no {name} in {found:?}");
    }
    assert!(!found.iter().any(|name| name.starts_with("vd") || name.starts_with("sd")), "{found:?}");
    let own = asked("own", &["sleep", "inf"]).with(|config| {
        config.devices.push(cri::Device {
            container_path: "/dev/mine".into(),
            host_path: "/dev/zero".into(),
            permissions: "rw".into(),
        });
    });
    let id = daemon.launch(&pod, &own).unwrap();
    let told: Value = serde_json::from_str(&daemon.exec_ok(&id, &["stat", "/dev/mine"])).unwrap();
    assert_eq!((&told["kind"], &told["device"]), (&json!("char"), &json!([1, 5])));
    assert_eq!(daemon.exec_ok(&id, &["write", "/dev/mine", "x"]), "");
}

#[test]
fn an_apparmor_profile_is_set_or_refused_with_the_reason() {
    let daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("apparmor");
    let there = std::fs::read_to_string("/sys/module/apparmor/parameters/enabled")
        .is_ok_and(|text| text.starts_with('Y'));
    let with = |name: &str, kind: cri::security_profile::ProfileType, reference: &str| {
        let profile = cri::SecurityProfile { profile_type: kind.into(), localhost_ref: reference.into() };
        asked(name, &["cat", "/proc/self/attr/current"])
            .secured(|security| security.apparmor = Some(profile.clone()))
    };
    use cri::security_profile::ProfileType::{Localhost, RuntimeDefault, Unconfined};
    let own = daemon.create(&pod, &with("own", RuntimeDefault, ""));
    let missing = daemon.create(&pod, &with("missing", Localhost, "localhost/there-is-no-such"));
    let free = with("free", Unconfined, "");
    match there {
        true => {
            let id = own.expect("create with Berth's own profile");
            daemon.start_container(&id).unwrap();
            daemon.exited(&id);
            let log = daemon.log_of(&pod, &with("own", RuntimeDefault, ""));
            assert_eq!(log[0].content, "berth-default (enforce)");
            let status = missing.unwrap_err();
            assert_eq!(status.code(), Code::NotFound, "{status}");
            assert!(status.message().contains("there-is-no-such"), "{status}");
            let (_, log) = daemon.run_to_end(&pod, &free).unwrap();
            assert_eq!(log[0].content, "unconfined");
        }
        false => {
            for refused in [own, missing] {
                let status = refused.unwrap_err();
                assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
                assert!(status.message().contains("no AppArmor"), "{status}");
            }
            daemon.create(&pod, &free).unwrap();
        }
    }
}
