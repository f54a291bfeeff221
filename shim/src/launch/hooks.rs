//! Hooks: programs of the host at points of a container's life, `hooks` of the runtime spec. Each reads the container's
//! state from its standard input; its output goes to the shim's log.

use std::{
    ffi::OsStr,
    io::Write,
    os::{fd::AsFd, unix::ffi::OsStrExt},
    process::{Command, ExitStatus, Stdio},
    time::Duration,
};

use berth_launch::v1::{Hook, Hooks, Step};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, pidfd_open},
};

use super::{
    failure::{At, Result, fail},
    root,
};
use crate::{clock, kernel};

/// The state's text: the pid between its pieces.
pub fn state(pieces: &[Vec<u8>], pid: i32) -> Vec<u8> {
    pieces.join(pid.to_string().as_bytes())
}

/// The pieces of a status, or those of `creating` where it has none of its own.
pub fn pieces<'a>(hooks: &'a Hooks, own: &'a [Vec<u8>]) -> &'a [Vec<u8>] {
    if own.is_empty() { &hooks.creating } else { own }
}

/// Runs hooks one after the other; the first that fails is the last.
pub fn run(hooks: &[Hook], state: &[u8]) -> Result<()> {
    hooks.iter().try_for_each(|hook| one(hook, state))
}

/// Runs all hooks and gives what went wrong: of those after which nothing is undone.
pub fn run_all(hooks: &[Hook], state: &[u8]) -> Vec<berth_launch::v1::Failure> {
    hooks.iter().filter_map(|hook| one(hook, state).err()).collect()
}

fn one(hook: &Hook, state: &[u8]) -> Result<()> {
    use std::os::unix::process::CommandExt;
    let path = root::path(&hook.path);
    // Our standard output is for our own word, and no file of the container is to be trusted.
    let log = std::io::stderr().as_fd().try_clone_to_owned().at(Step::Hook, path)?;
    let mut command = Command::new(path);
    let mut args = hook.args.iter().map(|arg| OsStr::from_bytes(arg));
    if let Some(name) = args.next() {
        command.arg0(name);
    }
    command.args(args).env_clear().stdin(Stdio::piped()).stdout(log);
    for variable in &hook.env {
        if let Some(at) = variable.iter().position(|byte| *byte == b'=') {
            command.env(OsStr::from_bytes(&variable[..at]), OsStr::from_bytes(&variable[at + 1..]));
        }
    }
    let mut child = kernel::signal::reset_in(&mut command).spawn().at(Step::Hook, path)?;
    if let Some(mut input) = child.stdin.take() {
        // One that doesn't want to know has ended, or closed it; SIGPIPE is ignored by the shim.
        input.write_all(state).ok();
    }
    let within = Duration::from_secs(hook.timeout_seconds.into());
    if !within.is_zero() && !ends_within(child.id(), within).at(Step::Hook, path)? {
        child.kill().at(Step::Hook, path)?;
        child.wait().at(Step::Hook, path)?;
        return Err(fail(
            Step::Hook,
            path,
            0,
            &format!("it took longer than its {} s", hook.timeout_seconds),
        ));
    }
    match child.wait().at(Step::Hook, path)? {
        status if status.success() => Ok(()),
        status => Err(fail(Step::Hook, path, 0, &ended(status))),
    }
}

fn ended(status: ExitStatus) -> String {
    format!("it ended with {status}")
}

/// Waits for a child, up to a time.
fn ends_within(pid: u32, within: Duration) -> rustix::io::Result<bool> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(rustix::io::Errno::SRCH)?;
    let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
    let deadline = clock::monotonic().saturating_add(within);
    loop {
        let left = deadline.saturating_sub(clock::monotonic());
        if left.is_zero() {
            return Ok(false);
        }
        let timeout = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::from_borrowed_fd(pidfd.as_fd(), PollFlags::IN)], Some(&timeout)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => {}
            Ok(_) => return Ok(true),
            Err(errno) => return Err(errno),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pid_goes_between_the_pieces() {
        let pieces = [b"{\"pid\":".to_vec(), b",\"again\":".to_vec(), b"}".to_vec()];
        assert_eq!(state(&pieces, 7), b"{\"pid\":7,\"again\":7}");
        assert_eq!(state(&[], 7), b"");
    }
}
