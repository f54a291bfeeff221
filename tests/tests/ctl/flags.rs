//! The flags of `berth run`: each is seen inside of the container.

use std::fs;

use berth_tests::{Daemon, images};
use serde_json::json;

use crate::{IMAGE, info, inspect};

#[test]
fn environment_directory_user_and_name_are_as_asked() {
    let daemon = Daemon::with_fixture();
    let found = info(&daemon, &["-e", "A=1", "-e", "B=two words", "-w", "/tmp", "-u", "worker", "-h", "box"]);
    assert_eq!((&found["env"]["A"], &found["env"]["B"]), (&json!("1"), &json!("two words")));
    assert_eq!((&found["cwd"], &found["hostname"]), (&json!("/tmp"), &json!("box")));
    assert_eq!(
        (&found["uid"], &found["gid"], &found["groups"]),
        (&json!(1001), &json!(1001), &json!([1001, 2000, 2001]))
    );
    let found = info(&daemon, &["-u", "5:6"]);
    assert_eq!((&found["uid"], &found["gid"]), (&json!(5), &json!(6)));
    // As docker: process 1 of its own namespaces, confined.
    assert_eq!((&found["pid"], &found["seccomp"]), (&json!(1), &json!(2)));
}

#[test]
fn volumes_are_mounted() {
    let daemon = Daemon::with_fixture();
    let data = daemon.dir().join("data");
    fs::create_dir(&data).unwrap();
    let volume = format!("{}:/data", data.display());
    daemon.berth_ok(&["run", "--rm", "-v", &volume, IMAGE, "write", "/data/x", "from inside"]);
    assert_eq!(fs::read_to_string(data.join("x")).unwrap(), "from inside\n");
    let read_only = format!("{volume}:ro");
    let refused = daemon.berth(&["run", "--rm", "-v", &read_only, IMAGE, "write", "/data/y", "x"]);
    assert!(refused.code == 1 && refused.stderr.contains("Read-only"), "{refused:?}");
    assert_eq!(daemon.berth_ok(&["run", "--rm", "-v", &read_only, IMAGE, "cat", "/data/x"]), "from inside");
}

#[test]
fn limits_are_the_cgroups() {
    let daemon = Daemon::with_fixture();
    daemon.berth_ok(&[
        "run",
        "-d",
        "--name",
        "limited",
        "--memory",
        "32m",
        "--cpus",
        "0.5",
        "--pids-limit",
        "50",
        IMAGE,
        "sleep",
        "inf",
    ]);
    let told = inspect(&daemon, "limited");
    assert_eq!(told["HostConfig"]["Memory"], 32 << 20);
    assert_eq!(told["HostConfig"]["NanoCpus"], 500_000_000);
    let path = told["Berth"]["Cgroup"].as_str().unwrap().to_owned();
    let read = |hierarchy: &str, v1: &str, v2: &str| {
        let old = format!("/sys/fs/cgroup/{hierarchy}{path}/{v1}");
        let new = format!("/sys/fs/cgroup{path}/{v2}");
        fs::read_to_string(old).or_else(|_| fs::read_to_string(new)).unwrap().trim().to_owned()
    };
    assert_eq!(read("memory", "memory.limit_in_bytes", "memory.max"), (32 << 20).to_string());
    let quota = read("cpu", "cpu.cfs_quota_us", "cpu.max");
    assert!(quota == "50000" || quota == "50000 100000", "{quota}");
    assert_eq!(read("pids", "pids.max", "pids.max"), "50");
    let eaten = daemon.berth(&["run", "--name", "eats", "--memory", "32m", IMAGE, "eat", "512m"]);
    assert_eq!(eaten.code, 137, "{eaten:?}");
    assert_eq!(inspect(&daemon, "eats")["State"]["OOMKilled"], true);
}

#[test]
fn networks_are_bridge_none_and_host() {
    let daemon = Daemon::with_fixture();
    let bridged = info(&daemon, &[]);
    let subnet = daemon.gateway().trim_end_matches('1').to_owned();
    let addresses = bridged["interfaces"]["eth0"]["addresses"].to_string();
    assert!(addresses.contains(&subnet), "{addresses}");
    let none = info(&daemon, &["--network", "none"]);
    assert_eq!(none["interfaces"]["lo"]["up"], true, "{}", none["interfaces"]);
    assert!(none["interfaces"].get("eth0").is_none(), "{}", none["interfaces"]);
    let host = info(&daemon, &["--network", "host"]);
    let own = fs::read_link("/proc/self/ns/net").unwrap();
    assert_eq!(host["namespaces"]["net"], own.to_str().unwrap());
    // Two on the bridge reach each other.
    daemon.berth_ok(&["run", "-d", "--name", "web", IMAGE, "http", "8080", "hello"]);
    let ip = inspect(&daemon, "web")["NetworkSettings"]["IPAddress"].as_str().unwrap().to_owned();
    berth_tests::eventually("the server to listen", || {
        daemon.berth_ok(&["logs", "web"]).contains("listening").then_some(())
    });
    assert_eq!(daemon.berth_ok(&["run", "--rm", IMAGE, "get", &ip, "8080"]), "hello");
}

#[test]
fn a_read_only_root_and_entry_points() {
    let daemon = Daemon::with_fixture();
    let refused = daemon.berth(&["run", "--rm", "--read-only", IMAGE, "write", "/x", "x"]);
    assert!(refused.code == 1 && refused.stderr.contains("Read-only"), "{refused:?}");
    assert_eq!(daemon.berth_ok(&["run", "--rm", "--entrypoint", "echo", IMAGE, "a", "b"]), "a b");
    daemon.load_image("localhost/entry:1", &images::base().entrypoint(&["echo", "entry"]).cmd(&["cmd"]));
    assert_eq!(daemon.berth_ok(&["run", "--rm", "localhost/entry:1"]), "entry cmd");
    assert_eq!(daemon.berth_ok(&["run", "--rm", "localhost/entry:1", "other"]), "entry other");
    assert_eq!(
        daemon.berth_ok(&["run", "--rm", "--entrypoint", "", "localhost/entry:1", "echo", "none"]),
        "none"
    );
}

#[test]
fn capabilities_and_privileges() {
    let daemon = Daemon::with_fixture();
    let set = |found: &serde_json::Value| {
        u64::from_str_radix(found["caps"]["effective"].as_str().unwrap(), 16).unwrap()
    };
    let few = set(&info(&daemon, &[]));
    assert_eq!(set(&info(&daemon, &["--cap-drop", "ALL"])), 0);
    assert_eq!(set(&info(&daemon, &["--cap-add", "NET_ADMIN"])), few | 1 << 12);
    let all = info(&daemon, &["--privileged"]);
    assert!(set(&all) > few);
    assert_eq!(all["seccomp"], 0);
}

#[test]
fn a_terminal_is_refused_where_there_is_none() {
    let daemon = Daemon::with_fixture();
    let refused = daemon.berth(&["run", "--rm", "-it", IMAGE, "stty"]);
    assert_eq!(refused.code, 125, "{refused:?}");
    assert!(refused.stderr.contains("terminal"), "{refused:?}");
    assert_eq!(daemon.berth_ok(&["ps", "-aq"]), "");
}

#[test]
fn names_are_given_once() {
    let daemon = Daemon::with_fixture();
    daemon.berth_ok(&["create", "--name", "one", IMAGE]);
    let refused = daemon.berth(&["create", "--name", "one", IMAGE]);
    assert_eq!(refused.code, 125);
    assert!(refused.stderr.contains("one"), "{refused:?}");
    daemon.berth_ok(&["rm", "one"]);
    daemon.berth_ok(&["create", "--name", "one", IMAGE]);
    // Without one it is made up, and it works.
    let id = daemon.berth_ok(&["create", IMAGE]);
    let name = inspect(&daemon, &id)["Name"].as_str().unwrap().trim_start_matches('/').to_owned();
    assert!(!name.is_empty());
    assert_eq!(inspect(&daemon, &name)["Id"], id.as_str());
}
