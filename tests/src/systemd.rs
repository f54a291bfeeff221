//! systemd, where it runs the machine: what it says of units, and slices of a test's own.

use std::{path::Path, process::Command};

/// Whether this machine is systemd's and has cgroup v2, which the systemd driver is for.
pub fn runs_here() -> bool {
    Path::new("/run/systemd/system").is_dir() && Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

/// What `systemctl` prints.
///
/// # Panics
/// Where it fails.
pub fn systemctl(words: &[&str]) -> String {
    let output = Command::new("systemctl").args(words).output().expect("run systemctl");
    assert!(output.status.success(), "systemctl {words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// A property of a unit, as `systemctl show` has it.
pub fn property(unit: &str, name: &str) -> String {
    systemctl(&["show", "--value", "--property", name, unit])
}

/// The units of a kind that systemd has in memory, by a pattern of their names.
pub fn units(pattern: &str) -> Vec<String> {
    let listed = systemctl(&["list-units", "--all", "--plain", "--no-legend", pattern]);
    listed.lines().filter_map(|line| line.split_whitespace().next().map(str::to_owned)).collect()
}

/// A slice of a test's own, which is stopped with it.
#[derive(Debug)]
pub struct Slice {
    name: String,
}

impl Slice {
    /// By a path as the harness names its cgroups: `/bt1` is `bt1.slice`.
    pub fn of(path: &str) -> Self {
        Self { name: format!("{}.slice", path.trim_matches('/').replace('/', "-")) }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it is below the root of cgroups: `a-b.slice` is in `a.slice`.
    pub fn path(&self) -> String {
        let name = self.name.trim_end_matches(".slice");
        let parts: Vec<&str> = name.split('-').collect();
        (1..=parts.len()).map(|count| format!("/{}.slice", parts[..count].join("-"))).collect()
    }
}

impl Drop for Slice {
    fn drop(&mut self) {
        // A test that has failed before there was one has nothing to stop.
        Command::new("systemctl").args(["stop", &self.name]).output().ok();
    }
}
