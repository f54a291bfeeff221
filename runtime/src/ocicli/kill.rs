//! `kill`: a signal to init, or to everybody.

use std::os::fd::AsFd;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::{
    Globals, groups,
    line::{Line, wrong},
    shim,
    state::{Container, Status},
};
use crate::{Error, Kind, Result, error::Cause, oci};

pub fn kill(globals: &Globals, line: &Line) -> Result<u8> {
    let (id, word) = match line.words.as_slice() {
        [id] => (id, "TERM"),
        [id, signal] => (id, signal.as_str()),
        _ => return Err(wrong("container", "an id and a signal are all there may be".into())),
    };
    let container = globals.home.find(id)?;
    let number = oci::parse_signal(word)?;
    send(&container, number, line.has("all"))?;
    Ok(0)
}

fn send(container: &Container, number: u32, all: bool) -> Result<()> {
    let id = container.state.id.as_str();
    let group = container.state.group();
    let not_running =
        || Error::new(Kind::NotFound, "kill container", id).because(Cause("container not running".into()));
    let status = container.status()?;
    if all {
        if status == Status::Stopped && group.is_empty() {
            return Err(not_running());
        }
        return everybody(&container.state.group(), number);
    }
    let Some(init) = container.state.init.handle()?.filter(|_| status != Status::Creating) else {
        return Err(not_running());
    };
    signal(init.as_fd(), number, id)?;
    // One that is frozen dies only once it is thawed.
    match (number == libc::SIGKILL.unsigned_abs(), status) {
        (true, Status::Paused) => groups::thaw(&group),
        _ => Ok(()),
    }
}

fn everybody(group: &crate::cgroup::Group, number: u32) -> Result<()> {
    if number == libc::SIGKILL.unsigned_abs() {
        return group.kill();
    }
    for pid in groups::pids(group)? {
        let Some(pid) = Pid::from_raw(pid) else { continue };
        // One that is gone meanwhile needs no signal.
        let Ok(handle) = pidfd_open(pid, PidfdFlags::empty()) else { continue };
        if groups::pids(group)?.contains(&pid.as_raw_nonzero().get()) {
            signal(handle.as_fd(), number, &pid.as_raw_nonzero().to_string())?;
        }
    }
    Ok(())
}

fn signal(process: std::os::fd::BorrowedFd<'_>, number: u32, whose: &str) -> Result<()> {
    let signal = i32::try_from(number).ok().and_then(Signal::from_named_raw);
    let sent = match signal {
        Some(signal) => pidfd_send_signal(process, signal),
        None => return shim::signal(process, number),
    };
    match sent {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(errno) => Err(Error::io("kill", whose, errno)),
    }
}
