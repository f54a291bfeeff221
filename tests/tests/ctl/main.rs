//! `berth`, as a person and their scripts use it.

mod doctor;
mod explain;
mod flags;
mod health;
mod lifecycle;
mod names;
mod networks;
mod quota;
mod run;
mod shape;
mod storage;

use berth_tests::{Daemon, images};

/// Shorter to read in a line of arguments.
const IMAGE: &str = images::FIXTURE;

/// `berth inspect` of one container.
fn inspect(daemon: &Daemon, container: &str) -> serde_json::Value {
    let text = daemon.berth_ok(&["inspect", container]);
    let mut found: Vec<serde_json::Value> = serde_json::from_str(&text).expect("inspect prints JSON");
    assert_eq!(found.len(), 1, "{text}");
    found.remove(0)
}

/// What `info` prints of a container that is run with these flags.
fn info(daemon: &Daemon, flags: &[&str]) -> serde_json::Value {
    let words = [&["run", "--rm"], flags, &[IMAGE, "info"]].concat();
    let text = daemon.berth_ok(&words);
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("info is JSON: {error}: {text}"))
}

/// The exit code of a container once it has ended; `berth wait` prints it and ends with it.
fn wait(daemon: &Daemon, container: &str) -> i32 {
    let said = daemon.berth(&["wait", container]);
    assert_eq!(said.stdout, format!("{}\n", said.code), "{said:?}");
    said.code
}
