//! `--systemd-cgroup` for ordinary users: scopes of their own systemd, over their own bus.

use std::{fs, path::Path};

use berth_tests::{
    eventually,
    oci::{Oci, text},
    required,
};
use serde_json::json;

use crate::person::{Account, Person, Session};

const NEEDED: [&str; 5] = ["setpriv", "useradd", "userdel", "newuidmap", "newgidmap"];

#[test]
fn a_users_container_is_limited_in_a_scope_of_their_own_systemd() {
    let test = "a_users_container_is_limited_in_a_scope_of_their_own_systemd";
    if !required(test, &NEEDED) {
        return;
    }
    let oci = Oci::new();
    let account = Account::new();
    let Some(session) = Session::start(test, &account) else { return };
    let person = Person::new(&oci, account.ids()).with_session(&session);
    let name = oci.cgroup("").trim_matches('/').to_owned();
    let mut config = person.config(&["sleep", "1000"]);
    let [first, first_group] = account.ranges();
    let maps = |own: u32, first: u32| json!([{"containerID": 0, "hostID": own, "size": 1}, {"containerID": 1, "hostID": first, "size": 1000}]);
    config["linux"]["uidMappings"] = maps(account.ids().0, first);
    config["linux"]["gidMappings"] = maps(account.ids().1, first_group);
    config["linux"]["cgroupsPath"] = json!(format!("user.slice:berth:{name}"));
    config["linux"]["resources"] = json!({"memory": {"limit": 67_108_864}, "pids": {"limit": 30}});
    let may_cpu = session.controllers().iter().any(|name| name == "cpu");
    if may_cpu {
        config["linux"]["resources"]["cpu"] = json!({"quota": 50_000, "period": 100_000});
    }
    oci.write(&config);
    let pid_file = person.root().join("pid");
    person.ok(&["--systemd-cgroup", "run", "--detach", "--pid-file", text(&pid_file), "c1"]);
    oci.adopt("c1", &pid_file);

    let scope = format!("{}/user.slice/berth-{name}.scope", session.group());
    let read =
        |file: &str| fs::read_to_string(format!("{scope}/container/{file}")).unwrap().trim().to_owned();
    assert_eq!(read("cgroup.procs"), oci.pid("c1").to_string());
    // Nobody of ours stays: init alone keeps it.
    assert_eq!(fs::read_to_string(format!("{scope}/supervisor/cgroup.procs")).unwrap(), "");
    assert_eq!((read("memory.max").as_str(), read("pids.max").as_str()), ("67108864", "30"));
    if may_cpu {
        assert_eq!(read("cpu.max"), "50000 100000");
    }
    // What is run beside it is where it is, though whoever runs it is elsewhere.
    let pid_file = person.root().join("beside");
    person.ok(&["exec", "--detach", "--pid-file", text(&pid_file), "c1", "sleep", "1000"]);
    oci.adopt("beside", &pid_file);
    let beside = oci.pid("beside").to_string();
    assert!(read("cgroup.procs").lines().any(|pid| pid == beside), "{beside}: {}", read("cgroup.procs"));
    assert_eq!(person.run(&["exec", "c1", "exit", "3"]).code, 3);
    person.ok(&["update", "--memory", "134217728", "c1"]);
    assert_eq!(read("memory.max"), "134217728");
    person.ok(&["pause", "c1"]);
    assert!(read("cgroup.events").contains("frozen 1"));
    person.ok(&["resume", "c1"]);
    assert!(person.ok(&["events", "--stats", "c1"]).contains("134217728"));
    person.ok(&["kill", "c1", "KILL"]);
    assert_eq!((oci.reap("beside"), oci.reap("c1")), (128 + 9, 128 + 9));
    person.ok(&["delete", "c1"]);
    eventually("the scope to go", || (!Path::new(&scope).exists()).then_some(()));
}

#[test]
fn a_users_container_in_the_foreground_leaves_no_scope() {
    let test = "a_users_container_in_the_foreground_leaves_no_scope";
    if !required(test, &NEEDED) {
        return;
    }
    let oci = Oci::new();
    let account = Account::new();
    let Some(session) = Session::start(test, &account) else { return };
    let person = Person::new(&oci, account.ids()).with_session(&session);
    oci.write(&person.config(&["exit", "9"]));
    assert_eq!(person.run(&["--systemd-cgroup", "run", "c1"]).code, 9);
    let scope = format!("{}/user.slice/berth-c1.scope", session.group());
    eventually("the scope to go", || (!Path::new(&scope).exists()).then_some(()));
    // More than it may have: the kernel ends it, and nothing of it is left either.
    let mut config = person.config(&["eat", "64M"]);
    config["linux"]["resources"] = json!({"memory": {"limit": 16_777_216, "swap": 16_777_216}});
    oci.write(&config);
    let ran = person.run(&["--systemd-cgroup", "run", "c1"]);
    assert_eq!(ran.code, 128 + 9, "{ran:?}");
    eventually("the scope to go", || (!Path::new(&scope).exists()).then_some(()));
}
