//! What is printed: tables for people, JSON for scripts.

use berth_tests::{Daemon, images};
use serde_json::Value;

use crate::{IMAGE, inspect};

#[test]
fn ps_lists_what_runs_and_all_where_asked() {
    let daemon = Daemon::with_fixture();
    daemon.berth_ok(&["run", "-d", "--name", "up", IMAGE, "sleep", "inf"]);
    daemon.berth(&["run", "--name", "down", IMAGE, "exit", "3"]);
    let table = daemon.berth_ok(&["ps"]);
    assert!(table.starts_with("CONTAINER ID") && table.lines().count() == 2, "{table}");
    assert!(table.contains("up") && table.contains(IMAGE) && table.contains("\"sleep inf\""), "{table}");
    let table = daemon.berth_ok(&["ps", "-a"]);
    assert!(table.contains("Exited (3)"), "{table}");
    let listed: Value = serde_json::from_str(&daemon.berth_ok(&["ps", "-a", "-o", "json"])).unwrap();
    let names: Vec<&Value> = listed["containers"].as_array().unwrap().iter().map(|c| &c["name"]).collect();
    assert_eq!(names.len(), 2, "{names:?}");
    let down = listed["containers"].as_array().unwrap().iter().find(|c| c["name"] == "down").unwrap();
    assert_eq!((&down["state"], &down["exitCode"]), (&"EXITED".into(), &3.into()));
}

#[test]
fn inspect_has_dockers_keys() {
    let daemon = Daemon::with_fixture();
    let id = daemon
        .berth_ok(&["run", "-d", "--name", "web", "--label", "a=b", "-e", "X=1", IMAGE, "sleep", "inf"]);
    let told = inspect(&daemon, "web");
    assert_eq!((&told["Id"], &told["Name"]), (&id.as_str().into(), &"/web".into()));
    assert_eq!((&told["State"]["Status"], &told["State"]["Running"]), (&"running".into(), &true.into()));
    assert_eq!((&told["Config"]["Image"], &told["Config"]["Labels"]["a"]), (&IMAGE.into(), &"b".into()));
    assert_eq!((&told["Path"], &told["Args"][0]), (&"sleep".into(), &"inf".into()));
    let env = told["Config"]["Env"].as_array().unwrap();
    assert!(env.contains(&"X=1".into()), "{env:?}");
    let pid = told["State"]["Pid"].as_i64().unwrap();
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap();
    assert_eq!(line, b"sleep\0inf\0");
    let log = told["LogPath"].as_str().unwrap();
    assert!(log.starts_with(daemon.root().to_str().unwrap()) && log.contains(&id), "{log}");
    assert!(told["Image"].as_str().unwrap().starts_with("sha256:"));
}

#[test]
fn stats_count() {
    let daemon = Daemon::with_fixture();
    daemon.berth_ok(&["run", "-d", "--name", "eats", "--memory", "64m", IMAGE, "eat", "20m"]);
    berth_tests::eventually("it to have eaten", || {
        daemon.berth_ok(&["logs", "eats"]).contains("ate").then_some(())
    });
    let request = berth_cri::berth::StatsRequest { containers: vec!["eats".into()], follow: false };
    let mut stream = daemon.call(daemon.containers().stats(request)).unwrap();
    let stats = daemon.wait(stream.message()).unwrap().unwrap().stats;
    assert_eq!(stats.len(), 1);
    assert!(stats[0].memory_bytes >= 20 << 20, "{stats:?}");
    assert_eq!((stats[0].memory_limit_bytes, stats[0].name.as_str()), (64 << 20, "eats"));
    assert!(stats[0].pids >= 1 && stats[0].cpu_ns > 0, "{stats:?}");
    assert!(daemon.wait(stream.message()).unwrap().is_none(), "one sample was asked for");
}

#[test]
fn images_are_listed_saved_loaded_and_removed() {
    let daemon = Daemon::with_fixture();
    let table = daemon.berth_ok(&["images"]);
    assert!(table.contains("localhost/fixture"), "{table}");
    let file = daemon.dir().join("saved.tar");
    daemon.berth_ok(&["save", "-o", file.to_str().unwrap(), IMAGE]);
    assert_eq!(daemon.berth_ok(&["rmi", IMAGE]), IMAGE);
    assert_eq!(daemon.berth_ok(&["images", "-q"]), "");
    assert_eq!(daemon.berth(&["rmi", IMAGE]).code, 125);
    assert_eq!(daemon.berth_ok(&["load", "-i", file.to_str().unwrap()]), IMAGE);
    assert_eq!(daemon.berth_ok(&["run", "--rm", IMAGE, "echo", "again"]), "again");
    // By a pipe as well.
    let bytes = std::fs::read(&file).unwrap();
    let said = daemon.berth_with(&["load"], &bytes);
    assert_eq!((said.code, said.stdout.trim()), (0, IMAGE), "{}", said.stderr);
    let half = daemon.berth_with(&["load"], &bytes[..bytes.len() / 2]);
    assert_eq!(half.code, 125, "{half:?}");
    assert_eq!(images::FIXTURE, IMAGE);
}

#[test]
fn version_and_info_tell_where_one_is() {
    let daemon = Daemon::start();
    let told = daemon.berth_ok(&["version"]);
    assert!(told.contains(env!("CARGO_PKG_VERSION")), "{told}");
    let told: Value = serde_json::from_str(&daemon.berth_ok(&["info", "-o", "json"])).unwrap();
    assert_eq!(told["root"], daemon.root().to_str().unwrap());
    assert_eq!(told["state"], daemon.state().to_str().unwrap());
    let facts = daemon.call(daemon.facts().version(berth_cri::berth::VersionRequest {})).unwrap();
    assert_eq!(facts.version, env!("CARGO_PKG_VERSION"));
}
