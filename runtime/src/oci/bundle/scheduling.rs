//! How a process is scheduled: `sched_setattr(2)`, `ioprio_set(2)`, `set_mempolicy(2)`, lists of CPUs and memory nodes as
//! `cpuset(7)` writes them.

use berth_launch::v1 as launch;
use oci_spec::runtime::{
    IOPriorityClass, LinuxIOPriority, LinuxMemoryPolicy, LinuxSchedulerFlag, LinuxSchedulerPolicy,
    MemoryPolicyFlagType, MemoryPolicyModeType, Scheduler,
};

use super::refused;
use crate::Result;

pub fn scheduler(asked: &Scheduler) -> Result<launch::Scheduler> {
    let policy = match asked.policy() {
        LinuxSchedulerPolicy::SchedOther => 0,
        LinuxSchedulerPolicy::SchedFifo => 1,
        LinuxSchedulerPolicy::SchedRr => 2,
        LinuxSchedulerPolicy::SchedBatch => 3,
        LinuxSchedulerPolicy::SchedIso => 4,
        LinuxSchedulerPolicy::SchedIdle => 5,
        LinuxSchedulerPolicy::SchedDeadline => 6,
    };
    let flag = |flag: &LinuxSchedulerFlag| match flag {
        LinuxSchedulerFlag::SchedResetOnFork => 0x01,
        LinuxSchedulerFlag::SchedFlagReclaim => 0x02,
        LinuxSchedulerFlag::SchedFlagDLOverrun => 0x04,
        LinuxSchedulerFlag::SchedFlagKeepPolicy => 0x08,
        LinuxSchedulerFlag::SchedFlagKeepParams => 0x10,
        LinuxSchedulerFlag::SchedFlagUtilClampMin => 0x20,
        LinuxSchedulerFlag::SchedFlagUtilClampMax => 0x40,
    };
    let priority = asked.priority().unwrap_or(0);
    Ok(launch::Scheduler {
        policy,
        nice: asked.nice().unwrap_or(0),
        priority: u32::try_from(priority)
            .map_err(|_| refused("process.scheduler", &format!("priority {priority} is below 0")))?,
        flags: asked.flags().iter().flatten().map(flag).fold(0, |all, flag| all | flag),
        runtime: asked.runtime().unwrap_or(0),
        deadline: asked.deadline().unwrap_or(0),
        period: asked.period().unwrap_or(0),
    })
}

/// Class and level in one number.
pub fn io_priority(asked: &LinuxIOPriority) -> Result<u32> {
    let class = match asked.class() {
        IOPriorityClass::IoprioClassRt => 1,
        IOPriorityClass::IoprioClassBe => 2,
        IOPriorityClass::IoprioClassIdle => 3,
    };
    let level = u32::try_from(asked.priority()).ok().filter(|level| *level < 8);
    let level = level.ok_or_else(|| {
        refused("process.ioPriority", &format!("priority {} is not between 0 and 7", asked.priority()))
    })?;
    Ok(class << 13 | level)
}

/// Where memory comes from. Which modes go with which flags and nodes is the kernel's to say.
pub fn memory_policy(asked: &LinuxMemoryPolicy) -> Result<launch::MemoryPolicy> {
    let mode = match asked.mode() {
        MemoryPolicyModeType::MpolDefault => 0,
        MemoryPolicyModeType::MpolPreferred => 1,
        MemoryPolicyModeType::MpolBind => 2,
        MemoryPolicyModeType::MpolInterleave => 3,
        MemoryPolicyModeType::MpolLocal => 4,
        MemoryPolicyModeType::MpolPreferredMany => 5,
        MemoryPolicyModeType::MpolWeightedInterleave => 6,
    };
    let flag = |flag: &MemoryPolicyFlagType| match flag {
        MemoryPolicyFlagType::MpolFStaticNodes => 1 << 15,
        MemoryPolicyFlagType::MpolFRelativeNodes => 1 << 14,
        MemoryPolicyFlagType::MpolFNumaBalancing => 1 << 13,
    };
    Ok(launch::MemoryPolicy {
        mode: asked.flags().iter().flatten().map(flag).fold(mode, |all, flag| all | flag),
        nodes: numbers("linux.memoryPolicy", asked.nodes().as_deref().unwrap_or_default())?,
    })
}

/// "0-3,7" as a bit mask.
pub fn cpus(text: &str) -> Result<Vec<u8>> {
    numbers("process.execCPUAffinity", text)
}

fn numbers(whose: &str, text: &str) -> Result<Vec<u8>> {
    const MOST: usize = 8192;
    let bad = || refused(whose, &format!("{text:?} is no list of numbers such as 0-3,7"));
    let mut mask = Vec::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |text: &str| text.trim().parse::<usize>().ok().filter(|cpu| *cpu < MOST).ok_or_else(bad);
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return Err(bad());
        }
        mask.resize(mask.len().max(last / 8 + 1), 0u8);
        (first..=last).for_each(|cpu| mask[cpu / 8] |= 1 << (cpu % 8));
    }
    Ok(mask)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_memory_policy_is_a_mode_with_its_flags_and_nodes() {
        let of = |document| memory_policy(&serde_json::from_value(document).unwrap());
        let interleaved =
            of(json!({"mode": "MPOL_INTERLEAVE", "nodes": "0,2-3", "flags": ["MPOL_F_STATIC_NODES"]}));
        assert_eq!(interleaved.unwrap(), launch::MemoryPolicy { mode: 3 | 1 << 15, nodes: vec![0b1101] });
        assert_eq!(of(json!({"mode": "MPOL_DEFAULT"})).unwrap(), launch::MemoryPolicy::default());
        let said = of(json!({"mode": "MPOL_BIND", "nodes": "all"})).unwrap_err().chain();
        assert!(said.contains("linux.memoryPolicy") && said.contains("all"), "{said}");
    }

    #[test]
    fn lists_of_cpus_become_masks() {
        assert_eq!(cpus("0-1,3").unwrap(), [0b1011]);
        assert_eq!(cpus("8").unwrap(), [0, 1]);
        assert_eq!(cpus("").unwrap(), Vec::<u8>::new());
        for bad in ["a", "3-1", "99999999", "-"] {
            assert!(cpus(bad).is_err(), "{bad}");
        }
    }
}
