//! How a process is scheduled: `sched_setattr(2)`, `ioprio_set(2)`, lists of CPUs as `cpuset(7)` writes them.

use berth_launch::v1 as launch;
use oci_spec::runtime::{
    IOPriorityClass, LinuxIOPriority, LinuxSchedulerFlag, LinuxSchedulerPolicy, Scheduler,
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

/// "0-3,7" as a bit mask.
pub fn cpus(text: &str) -> Result<Vec<u8>> {
    const MOST: usize = 8192;
    let bad = || refused("process.execCPUAffinity", &format!("{text:?} is no list of CPUs"));
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
    use super::*;

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
