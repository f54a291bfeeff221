//! THE METER: cgroups of pods and containers, made with their limits before anything runs in them, read for stats,
//! killed and removed whole. v2 first, v1 and hybrid supported. Knows no pod and no CRI.
//!
//! ```text
//! mounts  where the hierarchies are          make   directories, controllers, cpusets    drain  kill, empty, remove
//! file    one control file                   apply  limits -> files (values, huge)       stats  files -> counters
//! devices rules -> a v1 list, a v2 program                                               detail, pressure  the rest
//! systemd scopes, where systemd is to make groups
//! ```
//!
//! Everything here blocks: callers hop to a thread that may.

mod apply;
mod detail;
mod devices;
mod drain;
mod file;
mod huge;
mod make;
mod mounts;
mod pressure;
mod stats;
pub mod systemd;
mod values;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

pub use self::devices::Rules as DeviceRules;
use crate::{Error, Kind, Result, error::Cause};

/// How this host mounts cgroups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    V1,
    V2,
    /// v1 controllers with a v2 hierarchy beside them.
    Hybrid,
}

/// Of the names of our scopes.
const PREFIX: &str = "berth";

/// Who makes groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Driver {
    /// Ourselves, as directories.
    Cgroupfs,
    Systemd,
}

/// The host's hierarchies, looked at once.
#[derive(Debug, Clone)]
pub struct Hierarchy {
    pub mode: Mode,
    /// Whether a controller counts huge pages: beside v1 controllers, one of v1, where OCI runtimes look. `cgroups(7)`.
    pub counts_huge_pages: bool,
    /// The mount points.
    roots: Group,
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
    pub huge_pages: Vec<HugePageLimit>,
    /// v2 files by name, written last.
    pub unified: Vec<(String, String)>,
}

/// How much of one size a group may have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HugePageLimit {
    /// As the kernel writes it: "2MB".
    pub size: String,
    /// None: all there is.
    pub bytes: Option<u64>,
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
    /// Beside the memory's own. None: unlimited, or not counted.
    pub swap_limit_bytes: Option<u64>,
    pub pids: u64,
    pub read_bytes: u64,
    pub write_bytes: u64,
    /// None where the kernel does not tell: it needs a v2 hierarchy and PSI.
    pub cpu_pressure: Option<Pressure>,
    pub memory_pressure: Option<Pressure>,
    pub io_pressure: Option<Pressure>,
}

/// What `Stats` leaves out; `None` where the host does not tell. Limits are nought where there is none.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Detail {
    pub cpu_user_ns: Option<u64>,
    pub cpu_system_ns: Option<u64>,
    pub periods: Option<u64>,
    pub throttled_periods: Option<u64>,
    pub throttled_ns: Option<u64>,
    pub cache_bytes: Option<u64>,
    pub rss_bytes: Option<u64>,
    pub mapped_bytes: Option<u64>,
    pub swap_bytes: Option<u64>,
    pub kernel_bytes: Option<u64>,
    /// The most that was ever used.
    pub most_bytes: Option<u64>,
    /// How often usage was held back by the limit.
    pub limit_hits: Option<u64>,
    pub faults: Option<Faults>,
    /// With all groups below.
    pub faults_below: Option<Faults>,
    pub oom_kills: Option<u64>,
    pub cpu_shares: Option<u64>,
    pub cpu_period_us: Option<u64>,
    /// None also where there is no limit.
    pub cpu_quota_us: Option<u64>,
    pub memory_limit_bytes: Option<u64>,
    pub memory_reservation_bytes: Option<u64>,
    /// v1: memory plus swap; v2: swap alone. As the kernel says it.
    pub swap_limit_bytes: Option<u64>,
    pub threads_limit: Option<u64>,
    pub devices: Vec<Device>,
    pub huge_pages: Vec<HugePages>,
    pub processes: Option<u64>,
    pub descriptors: Option<u64>,
    pub sockets: Option<u64>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Faults {
    pub all: u64,
    pub major: u64,
}

/// What went through one block device.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Device {
    pub major: u32,
    pub minor: u32,
    pub read_bytes: u64,
    pub write_bytes: u64,
    pub reads: u64,
    pub writes: u64,
}

/// Of one size, as the kernel writes it: "2MB".
#[derive(Debug, Clone, Default, PartialEq)]
pub struct HugePages {
    pub size: String,
    pub bytes: u64,
    pub most_bytes: Option<u64>,
}

/// Time that was lost because tasks waited.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Pressure {
    /// At least one waited.
    pub some: Stall,
    /// All of them did.
    pub full: Stall,
}

#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Stall {
    /// Percent of the last 10 s, minute, 5 min.
    pub avg10: f64,
    pub avg60: f64,
    pub avg300: f64,
    pub total_us: u64,
}

impl Driver {
    /// The path of the group of `id` in a parent, which is a path or the name of a slice.
    ///
    /// # Errors
    /// `Invalid` for what can be no slice.
    pub fn path(self, parent: &str, id: &str) -> Result<String> {
        match self {
            Self::Cgroupfs => Ok(format!("/{}/{id}", parent.trim_matches('/'))),
            Self::Systemd => systemd::container(&systemd::slice(parent), PREFIX, id),
        }
    }

    /// The id that an entry of such a parent is named by.
    pub fn id_in(self, name: &str) -> Option<&str> {
        match self {
            Self::Cgroupfs => Some(name),
            Self::Systemd => name.strip_prefix(PREFIX)?.strip_prefix('-')?.strip_suffix(".scope"),
        }
    }
}

impl Hierarchy {
    /// Reads /proc/self/mountinfo, /proc/cgroups and which controllers there are.
    ///
    /// # Errors
    /// `Precondition` where no cgroups are mounted.
    pub fn detect() -> Result<Self> {
        let read = |path: &str| match file::read(Path::new(path)) {
            Ok(text) => Ok(text.unwrap_or_default()),
            Err(error) => Err(error),
        };
        let roots = mounts::parse(&read("/proc/self/mountinfo")?, &read("/proc/cgroups")?);
        let roots = roots.ok_or_else(|| {
            Error::new(Kind::Precondition, "find cgroups", "/proc/self/mountinfo")
                .hint("none are mounted: mount -t cgroup2 none /sys/fs/cgroup")
        })?;
        Ok(Self {
            mode: roots.mode,
            counts_huge_pages: counts_huge_pages(&roots),
            roots: Group { v2: roots.v2, v1: roots.v1 },
        })
    }

    /// Makes `path` (absolute below the roots, may exist) in all hierarchies with these limits; undoes itself on failure.
    ///
    /// # Errors
    /// `Invalid` for a bad path or a value that the kernel won't take, `Precondition` where a controller is missing.
    pub fn create(&self, path: &str, limits: &Limits) -> Result<Group> {
        make::create(&self.roots, path, limits)
    }

    /// Names the group without touching it.
    pub fn group(&self, path: &str) -> Group {
        self.roots.below(&make::normal_parts(path))
    }

    /// The names of the groups right below it, in whatever hierarchy; none where it is absent.
    pub fn below(&self, path: &str) -> BTreeSet<String> {
        let parent = self.group(path);
        let listings = parent.v2.iter().chain(&parent.v1).filter_map(|dir| std::fs::read_dir(dir).ok());
        let groups =
            listings.flatten().flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        groups.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    }
}

fn counts_huge_pages(roots: &mounts::Roots) -> bool {
    const CONTROLLER: &str = "hugetlb";
    // A file that is not there names no controller.
    let read = |path: &Path| file::read(path).ok().flatten().unwrap_or_default();
    match (roots.mode, &roots.v2) {
        (Mode::V2, Some(root)) => {
            read(&root.join("cgroup.controllers")).split_whitespace().any(|name| name == CONTROLLER)
        }
        (Mode::V2 | Mode::V1 | Mode::Hybrid, _) => {
            let own = read(Path::new("/proc/self/cgroup"));
            let mut sets = own.lines().filter_map(|line| line.split(':').nth(1));
            sets.any(|names| names.split(',').any(|name| name == CONTROLLER))
        }
    }
}

impl Group {
    /// Writes these limits; `None` leaves what is there. Devices stay as they were.
    pub fn update(&self, limits: &Limits) -> Result<()> {
        apply::limits(self, limits)
    }

    /// Makes device rules hold: at once where a v1 controller has a list, else by the program that is given back, which a
    /// shim attaches to the v2 directory, and which is there as long as that. Empty: nothing is left to do. A group below
    /// can never have more than the one above.
    ///
    /// # Errors
    /// `Precondition` where neither is there, or v1's list can't say it.
    pub fn allow_devices(&self, rules: &DeviceRules) -> Result<Vec<u8>> {
        if let Some(dir) = self.v1_with("devices.list") {
            let list = devices::List::of(rules)?;
            let now = file::read(&dir.join("devices.list"))?.unwrap_or_default();
            let lines = list.lines(&now);
            // In their order, and a file is opened once for those that go there in a row.
            for of_one in lines.chunk_by(|one, next| one.0 == next.0) {
                file::write_lines(&dir.join(of_one[0].0), of_one.iter().map(|(_, line)| line.as_str()))?;
            }
            return Ok(Vec::new());
        }
        match &self.v2 {
            Some(_) => Ok(rules.program()),
            None => Err(Error::new(Kind::Precondition, "limit devices", "cgroup")
                .because(Cause("this host has neither v1's devices controller nor a v2 hierarchy".into()))),
        }
    }

    /// Reads what it used.
    ///
    /// # Errors
    /// `NotFound` where it does not exist.
    pub fn stats(&self) -> Result<Stats> {
        stats::read(self)
    }

    /// Reads what a monitor wants beside. It looks at every process: far more work than `stats`.
    pub fn detail(&self) -> Result<Detail> {
        detail::read(self)
    }

    /// Kills every process in it and below (cgroup.kill, else SIGKILL by pidfd until empty). Blocks; bounded.
    ///
    /// # Errors
    /// `Deadline` where some would not die.
    pub fn kill(&self) -> Result<()> {
        drain::kill(self)
    }

    /// Whether no process is in it or below. An absent group is empty.
    pub fn is_empty(&self) -> bool {
        drain::is_empty(self)
    }

    /// Removes it with all below it; absent is success; waits (bounded, by retry with backoff) while it drains.
    ///
    /// # Errors
    /// `Precondition` where processes live in it: kill first.
    pub fn remove(&self) -> Result<()> {
        drain::remove(self)
    }

    /// The v1 directory that has this control file. Looked for first where the path names its controller, as mount points do.
    pub fn v1_with(&self, file: &str) -> Option<&Path> {
        let controller = file.split('.').next().unwrap_or(file);
        let is_named = |dir: &Path| {
            let names = dir.iter().filter_map(|part| part.to_str());
            names.flat_map(|part| part.split(',')).any(|name| name == controller)
        };
        let (named, others): (Vec<&Path>, Vec<&Path>) =
            self.v1.iter().map(PathBuf::as_path).partition(|dir| is_named(dir));
        named.into_iter().chain(others).find(|dir| dir.join(file).exists())
    }

    fn below(&self, parts: &[&str]) -> Self {
        let down = |root: &PathBuf| parts.iter().fold(root.clone(), |dir, part| dir.join(part));
        Self { v2: self.v2.as_ref().map(down), v1: self.v1.iter().map(down).collect() }
    }
}

#[cfg(test)]
mod tests;
