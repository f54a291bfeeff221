//! `linux.resources` of a spec -> the usual limits of a cgroup; `extras` has the others.

use oci_spec::runtime::LinuxResources;

use super::Globals;
use crate::{
    Error, Kind, Result,
    cgroup::{Group, HugePageLimit, Limits},
    error::Cause,
};

/// Tells of limits that no kernel holds any more, which peers pass over as well.
pub fn tell_obsolete(globals: &Globals, resources: &LinuxResources) {
    for name in obsolete(resources) {
        globals.log.warn(&format!(
            "linux.resources.memory.{name} is not held: the kernel has no such limit any more"
        ));
    }
}

fn obsolete(resources: &LinuxResources) -> Vec<&'static str> {
    let memory = resources.memory().unwrap_or_default();
    let asked = [("kernel", memory.kernel()), ("kernelTCP", memory.kernel_tcp())];
    let said = asked.into_iter().filter(|(_, bytes)| bytes.is_some_and(|bytes| bytes > 0));
    said.map(|(name, _)| name).collect()
}

/// Refuses a limit of memory below what is in use where the document wants that looked at: the kernel would end processes.
///
/// # Errors
/// `Precondition` says both.
pub fn leave_room(group: &Group, resources: &LinuxResources) -> Result<()> {
    let memory = resources.memory().unwrap_or_default();
    let Some(limit) = memory.limit().and_then(|limit| u64::try_from(limit).ok()) else { return Ok(()) };
    if memory.check_before_update() != Some(true) {
        return Ok(());
    }
    match group.stats()?.memory_usage_bytes {
        used if used > limit => {
            Err(Error::new(Kind::Precondition, "limit cgroup", "linux.resources.memory.limit")
                .because(Cause(format!(
                    "{used} bytes are in use, more than {limit}, and checkBeforeUpdate is set"
                )))
                .hint("a higher limit, or none of checkBeforeUpdate, which then ends processes"))
        }
        _ => Ok(()),
    }
}

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

    #[test]
    fn what_the_kernel_has_no_more_is_named() {
        assert_eq!(obsolete(&of(json!({"memory": {"kernel": 5, "kernelTCP": 0}}))), ["kernel"]);
        assert_eq!(obsolete(&of(json!({"memory": {"kernel": -1, "kernelTCP": 7}}))), ["kernelTCP"]);
        assert_eq!(obsolete(&of(json!({}))), Vec::<&str>::new());
    }
}
