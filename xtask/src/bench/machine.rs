//! The machine and the hour: what figures are only good for.

use std::{fs, path::Path, process::Command};

use serde_json::{Value, json};

use crate::{
    cargo,
    peers::{KINDS, Programs},
    process,
};

/// What stands above all figures.
pub fn describe(programs: &Programs, profile: &str) -> Value {
    let first = |path: &str| {
        let text = fs::read_to_string(path).unwrap_or_default();
        text.lines().next().unwrap_or_default().trim().to_owned()
    };
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let memory_kib = number_of(&memory, "MemTotal:").unwrap_or_default();
    let mut git = Command::new("git");
    let commit = process::output(git.current_dir(cargo::root()).args(["describe", "--always", "--dirty"]));
    json!({
        "processor": field(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default(), "model name"),
        "cores": std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        "memory_mib": memory_kib / 1024,
        "kernel": first("/proc/sys/kernel/osrelease"),
        "cgroups": cgroups(),
        "load_before": load(),
        "uptime_seconds": first("/proc/uptime").split('.').next().and_then(|text| text.parse::<u64>().ok()),
        "date": process::output(Command::new("date").args(["-u", "+%Y-%m-%dT%H:%MZ"])).unwrap_or_default().trim(),
        "commit": commit.unwrap_or_default().trim(),
        "profile": profile,
        "programs": versions(programs),
    })
}

/// The three load averages.
pub fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').take(3).collect::<Vec<_>>().join(" ")
}

fn cgroups() -> &'static str {
    let here = |path: &str| Path::new("/sys/fs/cgroup").join(path).exists();
    match (here("cgroup.controllers"), here("unified")) {
        (true, _) => "v2",
        (false, true) => "v1 with v2 beside it",
        (false, false) => "v1",
    }
}

/// What each peer's program says of itself, in its first line.
fn versions(programs: &Programs) -> Value {
    let mut names: Vec<&str> = KINDS.iter().flat_map(crate::peers::Kind::programs).collect();
    names.extend(["podman", "youki"]);
    names.sort_unstable();
    names.dedup();
    // It has no flag for it, or says only what it was built with.
    names.retain(|name| !["pinns", "containerd-shim-runc-v2"].contains(name));
    let version = |name: &str| {
        let program = programs.find(name)?;
        let said = process::output(Command::new(program).arg("--version").env("HOME", "/")).ok()?;
        Some((name.to_owned(), Value::from(said.lines().next().unwrap_or_default())))
    };
    Value::Object(names.into_iter().filter_map(version).collect())
}

fn field(text: &str, key: &str) -> String {
    let line = text.lines().find(|line| line.starts_with(key));
    line.and_then(|line| line.split_once(':')).map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
}

fn number_of(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.trim().trim_end_matches("kB").trim().parse().ok()
}
