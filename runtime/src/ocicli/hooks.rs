//! Hooks after the start and after the end: those that no shim is there for.

use std::{
    ffi::{CString, NulError, OsStr},
    fs::File,
    io::Write,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
    time::{Duration, Instant},
};

use berth_launch::v1::Hook;
use nix::{
    errno::Errno,
    fcntl::OFlag,
    spawn::{PosixSpawnAttr, PosixSpawnFileActions, PosixSpawnFlags, posix_spawn},
    sys::{
        signal::{SigSet, Signal},
        stat::Mode,
    },
};
use oci_spec::runtime::Spec;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    pipe::{PipeFlags, pipe_with},
    process::{Pid, PidfdFlags, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid},
};

use super::{
    Globals,
    state::{Container, State},
};
use crate::{Error, Kind, Result, error::Cause, oci};

/// Runs the hooks after a start; the first that fails is the last.
///
/// # Errors
/// The hook's: the spec then has the container stopped.
pub fn poststart(container: &Container) -> Result<()> {
    let spec = container.spec()?;
    let (hooks, _) = oci::late_hooks(&spec)?;
    let known = &container.state;
    let state = oci::state_text(&spec, &known.id, &known.bundle, "running", known.init.pid);
    hooks.iter().try_for_each(|hook| one(hook, &state))
}

/// Runs the hooks after an end. The spec: a failure is logged, and the rest goes on as if it had succeeded.
pub fn poststop(globals: &Globals, spec: &Spec, known: &State) -> Result<()> {
    let (_, hooks) = oci::late_hooks(spec)?;
    let state = oci::state_text(spec, &known.id, &known.bundle, "stopped", 0);
    for hook in &hooks {
        if let Err(error) = one(hook, &state) {
            globals.log.warn(&error.chain());
        }
    }
    Ok(())
}

fn one(hook: &Hook, state: &[u8]) -> Result<()> {
    const OP: &str = "run hook";
    let shown = String::from_utf8_lossy(&hook.path).into_owned();
    let failed = |error| Error::io(OP, shown.clone(), error);
    let (pid, input) = spawn(hook).map_err(failed)?;
    // One that doesn't want to know has closed it.
    File::from(input).write_all(state).ok();
    // Our child: the number is its own until we have waited for it.
    let handle = pidfd_open(pid, PidfdFlags::empty()).map_err(|errno| failed(errno.into()))?;
    let wait = || loop {
        match waitid(WaitId::PidFd(handle.as_fd()), WaitIdOptions::EXITED) {
            Err(rustix::io::Errno::INTR) => {}
            other => break other.map_err(|errno| failed(errno.into())),
        }
    };
    if !ends(&handle, hook.timeout_seconds).map_err(failed)? {
        pidfd_send_signal(&handle, rustix::process::Signal::KILL).map_err(|errno| failed(errno.into()))?;
        wait()?;
        let why = format!("it took longer than its {} s", hook.timeout_seconds);
        return Err(Error::new(Kind::Deadline, OP, shown).because(Cause(why)));
    }
    let status = wait()?;
    let how = match status.map(|status| (status.exit_status(), status.terminating_signal())) {
        Some((Some(0), _)) => return Ok(()),
        Some((Some(code), _)) => format!("it ended with exit status: {code}"),
        Some((None, Some(signal))) => format!("it ended with signal: {signal}"),
        Some((None, None)) | None => "how it ended is not known".to_owned(),
    };
    Err(Error::new(Kind::Internal, OP, shown).because(Cause(how)))
}

/// Starts a hook with no signal blocked or ignored, whatever is so with us; gives the end that its input is written to.
fn spawn(hook: &Hook) -> std::io::Result<(Pid, OwnedFd)> {
    let words = |words: &[Vec<u8>]| -> std::result::Result<Vec<CString>, NulError> {
        words.iter().map(|word| CString::new(word.as_slice())).collect()
    };
    let mut args = words(&hook.args)?;
    if args.is_empty() {
        args.push(CString::new(hook.path.as_slice())?);
    }
    let env = words(&hook.env)?;
    let (theirs, ours) = pipe_with(PipeFlags::CLOEXEC)?;
    let mut actions = PosixSpawnFileActions::init()?;
    actions.add_dup2(theirs.as_raw_fd(), 0)?;
    actions.add_open(1, "/dev/null", OFlag::O_WRONLY, Mode::empty())?;
    let mut attributes = PosixSpawnAttr::init()?;
    attributes.set_sigmask(&SigSet::empty())?;
    attributes.set_sigdefault(&SigSet::from(Signal::SIGPIPE))?;
    let flags = PosixSpawnFlags::POSIX_SPAWN_SETSIGMASK | PosixSpawnFlags::POSIX_SPAWN_SETSIGDEF;
    attributes.set_flags(flags)?;
    let path = Path::new(OsStr::from_bytes(&hook.path));
    let pid = posix_spawn(path, &actions, &attributes, &args, &env)?;
    Pid::from_raw(pid.as_raw()).map(|pid| (pid, ours)).ok_or_else(|| Errno::ESRCH.into())
}

/// Whether a process ends within so many seconds; 0 for no limit.
fn ends(handle: &OwnedFd, seconds: u32) -> std::io::Result<bool> {
    let until = (seconds > 0).then(|| Instant::now() + Duration::from_secs(seconds.into()));
    loop {
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        let left = left.map(Timespec::try_from).transpose().map_err(std::io::Error::other)?;
        match poll(&mut [PollFd::new(handle, PollFlags::IN)], left.as_ref()) {
            Ok(count) => return Ok(count > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}
