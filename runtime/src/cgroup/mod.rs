//! THE METER: cgroups of pods and containers, made with their limits before anything runs in them, read for stats,
//! killed and removed whole. v2 first, v1 and hybrid supported. Knows no pod and no CRI.

use std::path::PathBuf;

use crate::Result;

/// How this host mounts cgroups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    V1,
    V2,
    /// v1 controllers with a v2 hierarchy beside them.
    Hybrid,
}

/// The host's hierarchies, looked at once.
#[derive(Debug, Clone)]
pub struct Hierarchy {
    pub mode: Mode,
}

/// Limits; `None` leaves the kernel's default.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Limits {
    /// CPU weight as CRI and docker say it: 2..=262144, 1024 is the default.
    pub cpu_shares: Option<u64>,
    /// Microseconds per period; negative: unlimited.
    pub cpu_quota_us: Option<i64>,
    pub cpu_period_us: Option<u64>,
    pub cpuset_cpus: Option<String>,
    pub cpuset_mems: Option<String>,
    pub memory_bytes: Option<i64>,
    /// Memory plus swap, as CRI says it.
    pub memory_swap_bytes: Option<i64>,
    pub pids: Option<i64>,
    /// v2 files by name, written last.
    pub unified: Vec<(String, String)>,
    /// v1 device rules or the v2 program come with the whole OCI surface; until then: the default list or everything.
    pub all_devices: bool,
}

/// One cgroup in every hierarchy, as a name below the roots ("/kubepods/pod1/<id>").
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// The v2 directory, also on hybrid hosts (for tracking and `cgroup.kill`).
    pub v2: Option<PathBuf>,
    /// A directory per v1 hierarchy.
    pub v1: Vec<PathBuf>,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub struct Stats {
    pub cpu_usage_ns: u64,
    pub memory_usage_bytes: u64,
    /// usage less inactive_file, as the kubelet counts it.
    pub memory_working_set_bytes: u64,
    pub memory_rss_bytes: u64,
    /// None: unlimited.
    pub memory_limit_bytes: Option<u64>,
    pub page_faults: u64,
    pub major_page_faults: u64,
    pub swap_usage_bytes: Option<u64>,
    pub pids: u64,
    pub read_bytes: u64,
    pub write_bytes: u64,
}

impl Hierarchy {
    /// Reads /proc/self/mountinfo and /proc/cgroups.
    pub fn detect() -> Result<Self> {
        todo!()
    }
    /// Makes `path` (absolute below the roots, may exist) in all hierarchies with these limits; undoes itself on failure.
    pub fn create(&self, path: &str, limits: &Limits) -> Result<Group> {
        todo!("{path} {limits:?}")
    }
    /// Names the group without touching it.
    pub fn group(&self, path: &str) -> Group {
        todo!("{path}")
    }
}

impl Group {
    pub fn update(&self, limits: &Limits) -> Result<()> {
        todo!("{limits:?}")
    }
    pub fn stats(&self) -> Result<Stats> {
        todo!()
    }
    /// Kills every process in it and below (cgroup.kill, else SIGKILL by pidfd until empty). Blocks; bounded.
    pub fn kill(&self) -> Result<()> {
        todo!()
    }
    pub fn is_empty(&self) -> bool {
        todo!()
    }
    /// Removes it with all below it; absent is success; waits (bounded, by event or retry with backoff) while it drains.
    pub fn remove(&self) -> Result<()> {
        todo!()
    }
}
