//! The stages that run a kubelet, alone and in a cluster: in mount, network and PID namespaces of their own, so that its mounts, links and processes
//! go with it. What has no namespace is put back afterwards: sysctls of the kernel that a kubelet sets.

use std::{fs, io, process::Command};

use anyhow::{Context, Result};

use super::{suites, tally::Tally};
use crate::{cargo, debian, install, kubernetes};

/// What a kubelet sets for the whole machine (its `setupKernelTunables`).
const SYSCTLS: &[&str] = &[
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
];

/// A kubelet alone, with static pods.
pub fn alone() -> Result<Tally> {
    run("kubelet", kubernetes::NODE)
}

/// A kubelet that has joined a cluster of its own.
pub fn cluster() -> Result<Tally> {
    if let Err(error) = debian::install(debian::REGISTRY) {
        // The tests that need them say so one by one.
        eprintln!("xtask: going on without: {error:#}");
    }
    run("cluster", kubernetes::CLUSTER)
}

/// The first with systemd's driver on cgroup v2 and with swap, in the VM.
pub fn in_vm() -> Result<Tally> {
    // Without an apiserver its tests of swap say so by name; without a kubelet there is none.
    let programs = kubernetes::programs(kubernetes::JOINED).or_else(|error| {
        eprintln!("xtask: going on without: {error:#}");
        kubernetes::programs(kubernetes::NODE)
    });
    match programs {
        Ok(directory) => suites::in_vm(&["kubelet"], &[("BERTH_KUBERNETES", &directory)]),
        Err(error) => {
            let mut tally = Tally::default();
            tally.skip("kubelet-vm", &format!("Kubernetes could not be built: {error:#}"));
            Ok(tally)
        }
    }
}

/// Runs one part of the suite, which wants these programs of Kubernetes.
fn run(name: &str, wanted: &[&str]) -> Result<Tally> {
    let mut tally = Tally::default();
    if !rustix::process::geteuid().is_root() {
        tally.skip(name, "a kubelet runs as root");
        return Ok(tally);
    }
    let kubernetes = match kubernetes::programs(wanted) {
        Ok(directory) => directory,
        Err(error) => {
            tally.skip(name, &format!("Kubernetes could not be built: {error:#}"));
            return Ok(tally);
        }
    };
    if let Err(error) = debian::install(debian::RUNTIME) {
        // The tests that need them say so one by one.
        eprintln!("xtask: going on without: {error:#}");
    }
    let programs = cargo::programs()?;
    let berthd = programs.path("berthd")?;
    let here = berthd.parent().context("find the programs' directory")?;
    install::place(programs.path("berth-shim")?, &here.join("berth-shim"))?;
    let test =
        cargo::test_program(&["--workspace", "--features", "berth-tests/kubelet", "--test", "kubelet"])?;

    let sysctls = Sysctls::save();
    let mut command = Command::new("unshare");
    command
        .args([
            "--mount",
            "--net",
            "--pid",
            "--fork",
            "--mount-proc",
            "--kill-child",
            "--propagation",
            "slave",
        ])
        .arg(test.path("kubelet")?)
        .env("BERTH_KUBERNETES", &kubernetes)
        .env("BERTH_KUBELET_PART", name)
        .env("BERTH_PROGRAMS", here)
        .env("BERTH_FIXTURE", programs.path("fixture")?);
    let tally = suites::read(&mut command, name, &mut io::stdout());
    drop(sysctls);
    tally
}

/// Values that are written back when this is dropped.
struct Sysctls(Vec<(String, String)>);

impl Sysctls {
    fn save() -> Self {
        let value = |name: &&str| {
            let path = format!("/proc/sys/{name}");
            fs::read_to_string(&path).ok().map(|value| (path, value))
        };
        Self(SYSCTLS.iter().filter_map(value).collect())
    }
}

impl Drop for Sysctls {
    fn drop(&mut self) {
        for (path, value) in &self.0 {
            if fs::read_to_string(path).is_ok_and(|now| now == *value) {
                continue;
            }
            if let Err(error) = fs::write(path, value) {
                eprintln!("xtask: put back {path}: {error}");
            }
        }
    }
}
