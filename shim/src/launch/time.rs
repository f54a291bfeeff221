//! A new time namespace. Its offsets can be set only as long as nobody is in it, `time_namespaces(7)`: so the parent
//! makes it for its next child, sets them, and takes its own back after the clone.

use std::{
    fmt::Write,
    os::fd::{AsFd, OwnedFd},
};

use berth_launch::v1::{ContainerPlan, NamespaceKind, Step, time_offset::Clock};
use rustix::fs::{Mode, OFlags, open};

use super::failure::{At, Result};
use crate::kernel;

/// Makes the plan's time namespace that of our children. Gives our own, for [`back`]; none where the plan wants none.
pub fn prepare(plan: &ContainerPlan) -> Result<Option<OwnedFd>> {
    let is_wanted =
        plan.namespaces.iter().any(|one| one.kind() == NamespaceKind::Time && one.path.is_empty());
    if !is_wanted {
        return Ok(None);
    }
    let path = "/proc/self/ns/time";
    let own = open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).at(Step::Time, path)?;
    kernel::clone::unshare(libc::CLONE_NEWTIME).at(Step::Time, "unshare")?;
    let mut text = String::new();
    for offset in &plan.time_offsets {
        let clock = match offset.clock() {
            Clock::Monotonic => libc::CLOCK_MONOTONIC,
            Clock::Boottime => libc::CLOCK_BOOTTIME,
        };
        // A String takes every write.
        writeln!(text, "{clock} {} {}", offset.seconds, offset.nanoseconds).ok();
    }
    if text.is_empty() {
        return Ok(Some(own));
    }
    let file = "/proc/self/timens_offsets";
    match std::fs::write(file, text).at(Step::Time, file) {
        Ok(()) => Ok(Some(own)),
        Err(failure) => {
            back(Some(own))?;
            Err(failure)
        }
    }
}

/// Enters the namespace that was ours.
pub fn back(own: Option<OwnedFd>) -> Result<()> {
    match own {
        Some(own) => kernel::clone::setns(own.as_fd(), libc::CLONE_NEWTIME).at(Step::Time, "our own"),
        None => Ok(()),
    }
}
