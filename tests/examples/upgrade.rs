//! An upgrade and a downgrade between two builds while containers run: `berthd` of one finds what that of the other has made,
//! and their shims serve both. Needs root, and `BERTH_PROGRAMS` naming an empty directory, in which links to the programs of
//! one build or the other are put: `BERTH_PROGRAMS=/tmp/now cargo run -p berth-tests --example upgrade -- OLD NEW`, the two
//! directories with `berthd`, `berth`, `berth-shim` and `fixture`.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::ExitCode,
};

use berth_cri::v1::{self as cri, ContainerState};
use berth_tests::{Daemon, Pod, asked, eventually, images};
use serde_json::Value;

const PROGRAMS: [&str; 4] = ["berthd", "berth", "berth-shim", "fixture"];

/// What one build has made, as it was seen then.
struct Made {
    pod: Pod,
    writes: String,
    created: String,
    ended: String,
    status: cri::ContainerStatus,
    person: String,
}

fn main() -> ExitCode {
    let directories: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let (Some(now), [old, new]) = (std::env::var_os("BERTH_PROGRAMS").map(PathBuf::from), &directories[..])
    else {
        eprintln!("usage: BERTH_PROGRAMS=DIRECTORY upgrade OLD NEW");
        return ExitCode::FAILURE;
    };
    turn(&now, old);
    let mut daemon = Daemon::with_fixture();
    let first = make(&daemon, "old");
    change(&mut daemon, &now, new);
    check(&daemon, &first, "an old build's, by the new one");
    let second = make(&daemon, "new");
    change(&mut daemon, &now, old);
    check(&daemon, &first, "an old build's, by itself again");
    check(&daemon, &second, "the new build's, by the old one");
    end(&daemon, &second);
    change(&mut daemon, &now, new);
    check(&daemon, &first, "an old build's, by the new one again");
    end(&daemon, &first);
    drop(daemon);
    println!("all found, and nothing left");
    ExitCode::SUCCESS
}

/// Puts links to the programs of a build.
fn turn(now: &Path, build: &Path) {
    fs::create_dir_all(now).expect("make the directory of links");
    for name in PROGRAMS {
        let link = now.join(name);
        fs::remove_file(&link).ok();
        symlink(build.join(name), &link).expect("link a program");
    }
}

/// The next berthd is of that build; the one before was killed.
fn change(daemon: &mut Daemon, now: &Path, build: &Path) {
    daemon.kill9();
    turn(now, build);
    daemon.up();
    println!("berthd of {} is up", build.display());
}

fn make(daemon: &Daemon, name: &str) -> Made {
    let pod = daemon.plain_pod(name);
    let writes = daemon.launch(&pod, &spam()).expect("launch a container");
    let created = daemon.create(&pod, &asked("created", &["exit", "4"])).expect("create a container");
    let (ended, _) = daemon.run_to_end(&pod, &asked("ended", &["exit", "3"])).expect("run a container");
    let run = ["run", "-d", "--name", name, "--restart", "always", images::FIXTURE, "trap", "--exit", "3"];
    let person = daemon.berth_ok(&run);
    let status = daemon.status(&writes).expect("ask for the container");
    Made { pod, writes, created, ended: ended.id, status, person }
}

fn spam() -> berth_tests::Asked {
    asked("writes", &["spam", "0", "100"])
}

fn check(daemon: &Daemon, made: &Made, what: &str) {
    assert_eq!(daemon.status(&made.writes).expect("ask for the container"), made.status, "{what}");
    assert_eq!(daemon.exec_ok(&made.writes, &["echo", "on"]), "on\n", "{what}");
    let before = daemon.log_of(&made.pod, &spam()).len();
    eventually("more lines", || (daemon.log_of(&made.pod, &spam()).len() > before).then_some(()));
    let log = daemon.log_of(&made.pod, &spam());
    let whole = (1..).zip(&log).all(|(n, line)| line.content.starts_with(&format!("line {n:06} ")));
    assert!(whole, "{what}: a line is missing");
    let ended = daemon.status(&made.ended).expect("ask for the ended container");
    assert_eq!((ended.state(), ended.exit_code), (ContainerState::ContainerExited, 3), "{what}");
    let created = daemon.status(&made.created).expect("ask for the created container");
    assert_eq!(created.state(), ContainerState::ContainerCreated, "{what}");
    let found: Value = serde_json::from_str(&daemon.berth_ok(&["inspect", &made.person])).expect("JSON");
    assert_eq!(found[0]["State"]["Status"], "running", "{what}");
    println!("{what}: found, and works");
}

/// What the other build has made can be started, stopped and removed.
fn end(daemon: &Daemon, made: &Made) {
    daemon.start_container(&made.created).expect("start the created container");
    assert_eq!(daemon.exited(&made.created).exit_code, 4);
    daemon.stop_container(&made.writes, 0).expect("stop the container");
    assert_eq!(daemon.status(&made.writes).expect("ask for the container").exit_code, 137);
    daemon.berth_ok(&["stop", &made.person]);
    let found: Value = serde_json::from_str(&daemon.berth_ok(&["inspect", &made.person])).expect("JSON");
    assert_eq!(found[0]["State"]["ExitCode"], 3);
    daemon.berth_ok(&["rm", &made.person]);
    daemon.remove_pod(&made.pod.id).expect("remove the pod");
}
