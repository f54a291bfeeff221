//! What a runtime costs: processor time by a cgroup of its own, memory by /proc.
//!
//! ```text
//!   <cpuacct of v1, else v2>/<parent>/daemon   the daemon, and whatever it starts that moves nowhere else
//!                                    /pods …   what it makes of CRI's pods: the same parent counts them as well
//! ```
//! The directories go with the rest of what bears the runtime's names ([`leftovers`]).

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result};
use rustix::process::Pid;

use crate::leftovers;

/// Memory of some processes, in KiB.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    pub processes: u64,
    pub rss_kib: u64,
    pub pss_kib: u64,
    pub private_dirty_kib: u64,
}

/// A program that will run in a runtime's cgroup; where there is none it runs without.
pub fn command(parent: &str, program: &Path) -> Command {
    let place = hierarchy().map(|hierarchy| below(&hierarchy, parent).join("daemon"));
    match place.filter(|place| fs::create_dir_all(place).is_ok()) {
        None => Command::new(program),
        Some(place) => {
            let mut shell = Command::new("sh");
            // No fork: the daemon has the id that was waited for.
            shell.args(["-c", "echo 0 >\"$0\" && exec \"$@\""]).arg(place.join("cgroup.procs")).arg(program);
            shell
        }
    }
}

/// What everything of a runtime has used, ended processes as well; None where nobody counts it.
pub fn cpu(parent: &str) -> Option<Duration> {
    let place = below(&hierarchy()?, parent);
    if let Ok(text) = fs::read_to_string(place.join("cpuacct.usage")) {
        return Some(Duration::from_nanos(text.trim().parse().ok()?));
    }
    usage(&fs::read_to_string(place.join("cpu.stat")).ok()?)
}

/// What the machine's kernel has for itself and can't give back, in KiB: slab, stacks, page tables, per-CPU memory.
///
/// # Errors
/// There is no /proc/meminfo.
pub fn kernel_kib() -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo").context("read /proc/meminfo")?;
    Ok(kernel_of(&text))
}

fn kernel_of(meminfo: &str) -> u64 {
    const KERNELS: [&str; 4] = ["SUnreclaim", "KernelStack", "PageTables", "Percpu"];
    let lines = meminfo.lines().filter_map(|line| line.split_once(':'));
    let kernels = lines.filter(|(name, _)| KERNELS.contains(name));
    kernels.filter_map(|(_, value)| value.trim().strip_suffix(" kB")?.parse::<u64>().ok()).sum()
}

/// The memory of one process.
///
/// # Errors
/// It has ended.
pub fn of_process(pid: Pid) -> Result<Memory> {
    let path = format!("/proc/{}/smaps_rollup", pid.as_raw_nonzero());
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    rollup(&text).with_context(|| format!("no memory in {path}"))
}

/// The memory of all processes that run one of these programs.
pub fn of_programs(programs: &[PathBuf]) -> Memory {
    let mut sum = Memory::default();
    for (pid, _) in leftovers::running(|path| programs.iter().any(|program| program == path)) {
        // One that has just ended has none.
        let Ok(memory) = of_process(pid) else { continue };
        sum.processes += 1;
        sum.rss_kib += memory.rss_kib;
        sum.pss_kib += memory.pss_kib;
        sum.private_dirty_kib += memory.private_dirty_kib;
    }
    sum
}

/// The most that a process has had in memory, in KiB, since it was reset.
pub fn peak_kib(pid: Pid) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).ok()?;
    kib(&status, "VmHWM:")
}

/// Begins the peak anew. See proc_pid_clear_refs(5).
pub fn reset_peak(pid: Pid) {
    // Without, the peak is since its start: no less than what is asked.
    fs::write(format!("/proc/{}/clear_refs", pid.as_raw_nonzero()), "5").ok();
}

/// v1's hierarchy that counts processor time, else v2's: on hybrid hosts containers are in v1.
fn hierarchy() -> Option<PathBuf> {
    let mounts = leftovers::cgroup_mounts();
    let v1 = mounts.iter().find(|mount| mount.join("cpuacct.usage").is_file());
    v1.or_else(|| mounts.iter().find(|mount| mount.join("cgroup.controllers").is_file())).cloned()
}

fn below(hierarchy: &Path, parent: &str) -> PathBuf {
    hierarchy.join(parent.trim_start_matches('/'))
}

fn usage(cpu_stat: &str) -> Option<Duration> {
    let line = cpu_stat.lines().find_map(|line| line.strip_prefix("usage_usec "))?;
    Some(Duration::from_micros(line.trim().parse().ok()?))
}

fn rollup(text: &str) -> Option<Memory> {
    Some(Memory {
        processes: 1,
        rss_kib: kib(text, "Rss:")?,
        pss_kib: kib(text, "Pss:")?,
        private_dirty_kib: kib(text, "Private_Dirty:")?,
    })
}

fn kib(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_figures_are_read() {
        let text = "Rss: 900 kB\nPss:   40 kB\nPss_Dirty: 1 kB\nPrivate_Dirty:       212 kB\n";
        let memory = Memory { processes: 1, rss_kib: 900, pss_kib: 40, private_dirty_kib: 212 };
        assert_eq!(rollup(text), Some(memory));
        assert_eq!(rollup("Rss: 900 kB\n"), None);
        let machine = "MemFree: 7 kB\nSUnreclaim:  100 kB\nKernelStack: 20 kB\nPageTables: 3 kB\nPercpu: 4 kB\nSlab: 9 kB\n";
        assert_eq!(kernel_of(machine), 127);
        assert_eq!(usage("usage_usec 1500\nuser_usec 2\n"), Some(Duration::from_micros(1500)));
    }

    #[test]
    fn a_program_runs_under_its_own_id() {
        let parent = format!("/berth-meter-test-{}", std::process::id());
        let mut child = command(&parent, Path::new("/bin/sleep")).arg("1000").spawn().unwrap();
        let pid = Pid::from_child(&child);
        let line = || fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).unwrap();
        while !line().starts_with(b"/bin/sleep") {
            std::thread::yield_now();
        }
        assert!(of_process(pid).unwrap().rss_kib > 0);
        let counted = cpu(&parent);
        child.kill().unwrap();
        child.wait().unwrap();
        if let Some(hierarchy) =
            hierarchy().map(|hierarchy| below(&hierarchy, &parent)).filter(|at| at.is_dir())
        {
            assert!(counted.is_some());
            fs::remove_dir(hierarchy.join("daemon")).and_then(|()| fs::remove_dir(hierarchy)).unwrap();
        }
    }
}
