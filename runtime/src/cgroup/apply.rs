//! Writes limits into a group that exists. Each limit goes where its controller is: a hybrid host has most of them on
//! v1 and may have some on v2, so the file decides, not the mode.

use std::{io, path::Path};

use super::{Group, Limits, file, huge, values};
use crate::{Error, Kind, Result};

/// The directory that has the controller.
enum Place<'a> {
    V1(&'a Path),
    V2(&'a Path),
}

/// Writes all that is asked for. 0 means "not said", as in CRI, except in cpuset and `unified`.
pub fn limits(group: &Group, limits: &Limits) -> Result<()> {
    cpu(group, limits)?;
    cpuset(group, limits)?;
    memory(group, limits)?;
    pids(group, limits)?;
    huge::limits(group, &limits.huge_pages)?;
    unified(group, limits)
}

fn cpu(group: &Group, limits: &Limits) -> Result<()> {
    if let Some(shares) = limits.cpu_shares.filter(|shares| *shares != 0) {
        match place(group, "cpu", "cpu.shares", "cpu.weight")? {
            Place::V1(dir) => file::write(&dir.join("cpu.shares"), &shares.to_string())?,
            Place::V2(dir) => file::write(&dir.join("cpu.weight"), &values::weight(shares).to_string())?,
        }
    }
    let quota_us = limits.cpu_quota_us.filter(|quota| *quota != 0);
    let period_us = limits.cpu_period_us.filter(|period| *period != 0);
    if quota_us.is_none() && period_us.is_none() {
        return Ok(());
    }
    match place(group, "cpu", "cpu.cfs_quota_us", "cpu.max")? {
        Place::V1(dir) => v1_bandwidth(dir, quota_us, period_us),
        Place::V2(dir) => {
            let path = dir.join("cpu.max");
            let now = file::read(&path)?.unwrap_or_default();
            file::write(&path, &values::cpu_max(&now, quota_us, period_us))
        }
    }
}

/// Two files whose ratio the kernel checks against the parent's after each write: either order may be the wrong one.
fn v1_bandwidth(dir: &Path, quota_us: Option<i64>, period_us: Option<u64>) -> Result<()> {
    let (quota_path, period_path) = (dir.join("cpu.cfs_quota_us"), dir.join("cpu.cfs_period_us"));
    let quota = quota_us.map(|quota| quota.max(-1).to_string());
    let Some(period) = period_us.map(|period| period.to_string()) else {
        return quota.map_or(Ok(()), |quota| file::write(&quota_path, &quota));
    };
    let first = file::raw_write(&period_path, &period);
    if let Some(quota) = quota {
        file::write(&quota_path, &quota)?;
    }
    match first {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => file::write(&period_path, &period),
        Err(error) => Err(file::explain(&period_path, &period, error)),
        Ok(()) => Ok(()),
    }
}

fn cpuset(group: &Group, limits: &Limits) -> Result<()> {
    for (name, value) in [("cpuset.cpus", &limits.cpuset_cpus), ("cpuset.mems", &limits.cpuset_mems)] {
        if let Some(value) = value.as_deref().filter(|value| !value.is_empty()) {
            let (Place::V1(dir) | Place::V2(dir)) = place(group, "cpuset", name, name)?;
            file::write(&dir.join(name), value)?;
        }
    }
    Ok(())
}

fn memory(group: &Group, limits: &Limits) -> Result<()> {
    let memory = limits.memory_bytes.filter(|bytes| *bytes != 0);
    let swap = limits.memory_swap_bytes.filter(|bytes| *bytes != 0);
    if memory.is_none() && swap.is_none() {
        return Ok(());
    }
    match place(group, "memory", "memory.limit_in_bytes", "memory.max")? {
        Place::V1(dir) => v1_memory(dir, memory, swap),
        Place::V2(dir) => v2_memory(dir, memory, swap),
    }
}

/// At every moment memory plus swap must be at least memory: raise the sum first, lower it last.
fn v1_memory(dir: &Path, memory: Option<i64>, swap: Option<i64>) -> Result<()> {
    let (memory_path, swap_path) =
        (dir.join("memory.limit_in_bytes"), dir.join("memory.memsw.limit_in_bytes"));
    // Kernels without swap accounting have no such file, and swap can't be limited there: no reason not to run.
    let swap_now = file::read(&swap_path)?;
    let swap = swap.filter(|_| swap_now.is_some()).map(|bytes| bytes.max(-1));
    let memory = memory.map(|bytes| bytes.max(-1));
    let swap_now = swap_now.as_deref().and_then(values::v1_bytes);
    let raises = |swap: i64| swap_now.is_some_and(|now| swap < 0 || swap as u64 > now);

    let before = swap.filter(|swap| raises(*swap));
    let after = swap.filter(|swap| !raises(*swap));
    for (path, value) in [(&swap_path, before), (&memory_path, memory), (&swap_path, after)] {
        if let Some(value) = value {
            file::write(path, &value.to_string())?;
        }
    }
    Ok(())
}

fn v2_memory(dir: &Path, memory: Option<i64>, swap: Option<i64>) -> Result<()> {
    let path = dir.join("memory.max");
    let swap = match swap {
        Some(sum) => {
            let memory = match memory {
                Some(memory) => Some(memory).filter(|memory| *memory >= 0),
                None => values::v2_bytes(&file::read(&path)?.unwrap_or_default()).map(|bytes| bytes as i64),
            };
            Some(values::swap_max(memory, sum)?)
        }
        None => None,
    };
    if let Some(swap) = swap {
        let path = dir.join("memory.swap.max");
        match file::raw_write(&path, &swap) {
            // As on v1: no swap accounting, nothing to limit.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            outcome => outcome.map_err(|error| file::explain(&path, &swap, error))?,
        }
    }
    memory.map_or(Ok(()), |memory| file::write(&path, &values::count(memory)))
}

fn pids(group: &Group, limits: &Limits) -> Result<()> {
    let Some(pids) = limits.pids.filter(|pids| *pids != 0) else { return Ok(()) };
    let (Place::V1(dir) | Place::V2(dir)) = place(group, "pids", "pids.max", "pids.max")?;
    file::write(&dir.join("pids.max"), &values::count(pids))
}

fn unified(group: &Group, limits: &Limits) -> Result<()> {
    for (name, value) in &limits.unified {
        values::unified_name(name)?;
        let Some(dir) = &group.v2 else {
            return Err(Error::new(Kind::Precondition, "set unified limit", name.as_str())
                .hint("this host has no cgroup v2; say it with the v1 limits"));
        };
        // io.max and its like take one device per write.
        value
            .lines()
            .filter(|line| !line.is_empty())
            .try_for_each(|line| file::write(&dir.join(name), line))?;
    }
    Ok(())
}

fn place<'a>(group: &'a Group, controller: &'static str, v1: &str, v2: &str) -> Result<Place<'a>> {
    if let Some(dir) = group.v1_with(v1) {
        return Ok(Place::V1(dir));
    }
    if let Some(dir) = group.v2.as_deref().filter(|dir| dir.join(v2).exists()) {
        return Ok(Place::V2(dir));
    }
    let named = group.v2.iter().chain(&group.v1).next();
    let object = named.map_or_else(String::new, |dir| dir.display().to_string());
    Err(Error::new(Kind::Precondition, "limit group", object)
        .because(crate::error::Cause(format!("controller {controller} not enabled")))
        .hint("enable it in cgroup.subtree_control of the groups above, or boot the kernel with it"))
}
