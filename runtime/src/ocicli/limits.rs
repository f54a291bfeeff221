//! `linux.resources` of a spec -> limits of a cgroup. What no controller here takes is refused with its name.

use oci_spec::runtime::LinuxResources;

use super::groups;
use crate::{
    Error, Kind, Result,
    cgroup::{Group, Limits},
    error::Cause,
};

/// One control file that `Limits` doesn't know; empty where a version of cgroups has none.
struct Extra {
    v1: String,
    v2: String,
    value: String,
}

/// What the usual limits are.
pub fn limits(resources: &LinuxResources) -> Result<Limits> {
    unsaid(resources)?;
    let (cpu, memory) = (resources.cpu().clone().unwrap_or_default(), *resources.memory());
    let memory = memory.unwrap_or_default();
    let mut unified: Vec<(String, String)> =
        resources.unified().iter().flatten().map(|(name, value)| (name.clone(), value.clone())).collect();
    unified.sort();
    Ok(Limits {
        cpu_shares: cpu.shares(),
        cpu_quota_us: cpu.quota(),
        cpu_period_us: cpu.period(),
        cpuset_cpus: cpu.cpus().clone(),
        cpuset_mems: cpu.mems().clone(),
        memory_bytes: memory.limit(),
        memory_swap_bytes: memory.swap(),
        pids: resources.pids().as_ref().map(|pids| pids.limit()),
        unified,
    })
}

/// Writes what `Limits` has no field for.
///
/// # Errors
/// `Precondition` where no controller takes it.
pub fn rest(group: &Group, resources: &LinuxResources) -> Result<()> {
    for extra in extras(resources) {
        let named = !extra.v1.is_empty();
        let v1 = group.v1.iter().map(|dir| dir.join(&extra.v1)).find(|path| named && path.exists());
        let v2 = group.v2.as_ref().map(|dir| dir.join(&extra.v2)).filter(|_| !extra.v2.is_empty());
        match v1.or(v2.filter(|path| path.exists())) {
            Some(path) => groups::write(&path, &extra.value)?,
            None => {
                let named = if extra.v1.is_empty() { extra.v2 } else { extra.v1 };
                return Err(Error::new(Kind::Precondition, "limit cgroup", named)
                    .because(Cause("no controller of this host takes it".into())));
            }
        }
    }
    Ok(())
}

fn extras(resources: &LinuxResources) -> Vec<Extra> {
    let mut all = Vec::new();
    let mut add = |v1: &str, v2: &str, value: String| all.push(Extra { v1: v1.into(), v2: v2.into(), value });
    if let Some(memory) = resources.memory() {
        // Below 0 is none, which is what a new group has.
        if let Some(bytes) = memory.reservation().filter(|bytes| *bytes > 0) {
            add("memory.soft_limit_in_bytes", "memory.low", bytes.to_string());
        }
        if let Some(swappiness) = memory.swappiness() {
            add("memory.swappiness", "", swappiness.to_string());
        }
        if memory.disable_oom_killer() == Some(true) {
            add("memory.oom_control", "", "1".into());
        }
    }
    if let Some(cpu) = resources.cpu() {
        if let Some(burst) = cpu.burst() {
            add("cpu.cfs_burst_us", "cpu.max.burst", burst.to_string());
        }
        if let Some(idle) = cpu.idle() {
            add("cpu.idle", "cpu.idle", idle.to_string());
        }
    }
    for page in resources.hugepage_limits().iter().flatten() {
        let size = page.page_size();
        add(
            &format!("hugetlb.{size}.limit_in_bytes"),
            &format!("hugetlb.{size}.max"),
            page.limit().to_string(),
        );
    }
    all
}

/// What is refused rather than left out.
fn unsaid(resources: &LinuxResources) -> Result<()> {
    let cpu = resources.cpu().as_ref();
    let realtime = cpu.is_some_and(|cpu| {
        cpu.realtime_runtime().is_some_and(|us| us != 0) || cpu.realtime_period().is_some_and(|us| us != 0)
    });
    let block = resources.block_io().as_ref().is_some_and(|block| *block != Default::default());
    let network = resources.network().as_ref().is_some_and(|network| *network != Default::default());
    let rdma = resources.rdma().as_ref().is_some_and(|rdma| !rdma.is_empty());
    let told = [("cpu.realtime*", realtime), ("blockIO", block), ("network", network), ("rdma", rdma)];
    match told.iter().find(|(_, said)| *said) {
        Some((what, _)) => {
            Err(Error::new(Kind::Unimplemented, "limit cgroup", format!("linux.resources.{what}"))
                .because(Cause("this version can't limit it".into())))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(value: serde_json::Value) -> LinuxResources {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn limits_are_taken_over_and_what_cannot_be_is_refused() {
        let resources = of(json!({"cpu": {"shares": 512, "quota": -1}, "memory": {"limit": 1000, "swap": -1,
            "reservation": 500}, "pids": {"limit": 7}, "unified": {"memory.high": "9"}}));
        let limits_of = limits(&resources).unwrap();
        assert_eq!(
            (limits_of.cpu_shares, limits_of.memory_bytes, limits_of.pids),
            (Some(512), Some(1000), Some(7))
        );
        assert_eq!(extras(&resources).len(), 1);
        assert!(limits(&of(json!({"blockIO": {"weight": 10}}))).is_err());
        assert!(limits(&of(json!({"network": {"classID": 1}}))).is_err());
        assert!(limits(&of(json!({"blockIO": {}, "rdma": {}}))).is_ok());
    }
}
