//! `features`: what this runtime can do on this host, `features.md` of the runtime spec. Only what is true.

use std::path::Path;

use serde_json::json;

use super::{Globals, line::Line, state::SPEC};
use crate::{
    Result,
    cgroup::{Group, Hierarchy, Mode},
    oci,
};

/// Options of mounts that have a meaning here; others are the file system's.
const MOUNT_OPTIONS: &[&str] = &[
    "atime",
    "bind",
    "defaults",
    "dev",
    "diratime",
    "idmap",
    "exec",
    "noatime",
    "nodev",
    "nodiratime",
    "noexec",
    "nosuid",
    "nosymfollow",
    "private",
    "rbind",
    "relatime",
    "rexec",
    "ridmap",
    "rnoatime",
    "rnodev",
    "rnoexec",
    "rnosuid",
    "ro",
    "rprivate",
    "rro",
    "rrw",
    "rshared",
    "rslave",
    "runbindable",
    "rw",
    "shared",
    "slave",
    "strictatime",
    "suid",
    "symfollow",
    "tmpcopyup",
    "rsuid",
    "rdev",
    "unbindable",
];

pub fn features(_: &Globals, _: &Line) -> Result<u8> {
    let mode = Hierarchy::detect().map(|hierarchy| hierarchy.mode).ok();
    let file = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let last: u32 = file("/proc/sys/kernel/cap_last_cap").trim().parse().unwrap_or(40);
    let namespaces: Vec<&str> = ["cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"]
        .into_iter()
        .filter(|name| {
            let file = match *name {
                "mount" => "mnt",
                "network" => "net",
                other => other,
            };
            Path::new("/proc/self/ns").join(file).exists()
        })
        .collect();
    // v2 says what its root has; v1's hierarchies are named by their controllers.
    let rdma = Hierarchy::detect().is_ok_and(|hierarchy| {
        let Group { v1, v2 } = hierarchy.group("/");
        let listed =
            v2.map(|root| file(&root.join("cgroup.controllers").to_string_lossy())).unwrap_or_default();
        listed.split_whitespace().any(|name| name == "rdma") || v1.iter().any(|root| root.ends_with("rdma"))
    });
    let systemd = matches!(mode, Some(Mode::V2)) && Path::new("/run/systemd/system").is_dir();
    let features = json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": SPEC,
        "hooks": ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"],
        "mountOptions": MOUNT_OPTIONS,
        "linux": {
            "namespaces": namespaces,
            "capabilities": oci::capability_names(u64::MAX >> (63 - last.min(63))),
            "cgroup": {
                "v1": matches!(mode, Some(Mode::V1 | Mode::Hybrid)),
                "v2": matches!(mode, Some(Mode::V2 | Mode::Hybrid)),
                "systemd": systemd, "systemdUser": systemd, "rdma": rdma,
            },
            "seccomp": {
                "enabled": true,
                "actions": ["SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS",
                    "SCMP_ACT_KILL_THREAD", "SCMP_ACT_LOG", "SCMP_ACT_NOTIFY", "SCMP_ACT_TRACE", "SCMP_ACT_TRAP"],
                "knownFlags": oci::SECCOMP_FLAGS, "supportedFlags": oci::SECCOMP_FLAGS,
                "operators": ["SCMP_CMP_EQ", "SCMP_CMP_GE", "SCMP_CMP_GT", "SCMP_CMP_LE", "SCMP_CMP_LT",
                    "SCMP_CMP_MASKED_EQ", "SCMP_CMP_NE"],
                "archs": [if cfg!(target_arch = "x86_64") { "SCMP_ARCH_X86_64" } else { "SCMP_ARCH_AARCH64" }],
            },
            "apparmor": {"enabled": file("/sys/module/apparmor/parameters/enabled").starts_with('Y')},
            "selinux": {"enabled": Path::new("/sys/fs/selinux/enforce").exists()},
            "intelRdt": {"enabled": true, "schemata": true, "monitoring": true},
            "mountExtensions": {"idmap": {"enabled": true}},
            "netDevices": {"enabled": true},
            "memoryPolicy": {
                "modes": ["MPOL_BIND", "MPOL_DEFAULT", "MPOL_INTERLEAVE", "MPOL_LOCAL", "MPOL_PREFERRED",
                    "MPOL_PREFERRED_MANY", "MPOL_WEIGHTED_INTERLEAVE"],
                "flags": ["MPOL_F_NUMA_BALANCING", "MPOL_F_RELATIVE_NODES", "MPOL_F_STATIC_NODES"],
            },
        },
        "annotations": {"dev.berth.version": env!("CARGO_PKG_VERSION")},
    });
    say!("{features:#}");
    Ok(0)
}
