//! Which system call a seccomp filter forbade init that SIGSYS has ended: read from the kernel's log, only then, and not
//! waited for longer than the kernel takes to write it.

use std::{
    fs::{File, OpenOptions},
    io::{ErrorKind, Read},
    os::unix::fs::OpenOptionsExt,
    time::Duration,
};

use berth_launch::{
    denied::{self, Record},
    v1::{ContainerPlan, Denied, Sent, denied::Filter, sent::By},
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::{clock, run::Run};

/// The kernel writes it a moment after the end, by a thread of its own.
const PATIENCE: Duration = Duration::from_millis(200);
/// A record's time is rounded to a tick.
const ROUNDED: Duration = Duration::from_secs(1);
/// The longest record that the kernel gives.
const RECORD_BYTES: usize = 8 * 1024;

/// None: it was another signal, or sent by somebody.
#[inline(never)]
pub fn look(plan: &ContainerPlan, run: &Run, sent: Sent) -> Option<Denied> {
    if i32::try_from(sent.signal) != Ok(libc::SIGSYS) || sent.by() != By::NobodyHere {
        return None;
    }
    let filter = whose(plan);
    let began = Duration::from_nanos(run.started_at.unsigned_abs()).saturating_sub(ROUNDED);
    match (record(run.pid, began), filter) {
        (Some(record), _) => Some(Denied {
            filter: filter.into(),
            program: record.program,
            call: record.call,
            arch: record.arch,
        }),
        // Perhaps somebody sent it: it has no filter of ours that would.
        (None, Filter::Own) => None,
        (None, Filter::Either | Filter::Profile) => {
            Some(Denied { filter: filter.into(), ..Denied::default() })
        }
    }
}

/// Whose filter sends SIGSYS: the profile where it ever does, else one that the container has set itself.
fn whose(plan: &ContainerPlan) -> Filter {
    if plan.runtime.is_some() {
        return Filter::Either;
    }
    match crate::read_plan::<ContainerPlan>() {
        Ok(plan) if plan.process.as_ref().is_some_and(|process| denied::may_end(&process.seccomp)) => {
            Filter::Profile
        }
        Ok(_) => Filter::Own,
        Err(_) => Filter::Either,
    }
}

/// The last one of that process since then.
fn record(pid: i32, since: Duration) -> Option<Record> {
    let nonblock = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let mut log = OpenOptions::new().read(true).custom_flags(nonblock).open("/dev/kmsg").ok()?;
    let end = clock::monotonic() + PATIENCE;
    loop {
        let found = rest(&mut log, |record| record.pid == pid && record.at >= since)?;
        let left = end.saturating_sub(clock::monotonic());
        if found.is_some() || left.is_zero() {
            return found;
        }
        let left = Timespec { tv_sec: 0, tv_nsec: left.subsec_nanos().into() };
        poll(&mut [PollFd::new(&log, PollFlags::IN)], Some(&left)).ok()?;
    }
}

/// Reads on to the end of what is there. None: it can't be read.
fn rest(log: &mut File, is_meant: impl Fn(&Record) -> bool) -> Option<Option<Record>> {
    let mut buffer = [0u8; RECORD_BYTES];
    let mut found = None;
    loop {
        match log.read(&mut buffer) {
            Ok(0) => return Some(found),
            Ok(length) => {
                let record = str::from_utf8(&buffer[..length]).ok().and_then(denied::parse);
                found = record.filter(&is_meant).or(found);
            }
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock => return Some(found),
                // The oldest went while we read: the next read goes on with what is there.
                ErrorKind::BrokenPipe | ErrorKind::Interrupted => {}
                _ => return None,
            },
        }
    }
}
