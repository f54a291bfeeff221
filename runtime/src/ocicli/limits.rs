//! `linux.resources` of a spec -> the usual limits of a cgroup; `extras` has the others.

use oci_spec::runtime::LinuxResources;

use crate::cgroup::{HugePageLimit, Limits};

/// What the usual limits are.
pub fn limits(resources: &LinuxResources) -> Limits {
    let (cpu, memory) = (resources.cpu().clone().unwrap_or_default(), *resources.memory());
    let memory = memory.unwrap_or_default();
    let mut unified: Vec<(String, String)> =
        resources.unified().iter().flatten().map(|(name, value)| (name.clone(), value.clone())).collect();
    unified.sort();
    Limits {
        cpu_shares: cpu.shares(),
        cpu_quota_us: cpu.quota(),
        cpu_period_us: cpu.period(),
        cpuset_cpus: cpu.cpus().clone(),
        cpuset_mems: cpu.mems().clone(),
        memory_bytes: memory.limit(),
        memory_swap_bytes: memory.swap(),
        pids: resources.pids().as_ref().map(|pids| pids.limit()),
        huge_pages: resources
            .hugepage_limits()
            .iter()
            .flatten()
            .map(|limit| HugePageLimit {
                size: limit.page_size().clone(),
                bytes: u64::try_from(limit.limit()).ok(),
            })
            .collect(),
        unified,
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
    fn limits_are_taken_over() {
        let resources = of(json!({"cpu": {"shares": 512, "quota": -1}, "memory": {"limit": 1000, "swap": -1,
            "reservation": 500}, "pids": {"limit": 7}, "unified": {"memory.high": "9"}}));
        let limits_of = limits(&resources);
        assert_eq!(
            (limits_of.cpu_shares, limits_of.memory_bytes, limits_of.pids),
            (Some(512), Some(1000), Some(7))
        );
    }
}
