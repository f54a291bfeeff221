//! Signals for a process that waits in the foreground: taken as they come and handed on.

use std::os::fd::AsFd;

use nix::sys::{
    signal::{SigSet, SigmaskHow, Signal, sigprocmask},
    signalfd::{SfdFlags, SignalFd},
};

use crate::{Error, Result};

/// Blocks all that can be handed on, and gives a descriptor that they are read from. Called before what they are for runs:
/// none comes too early. What inherits the mask unblocks them itself: the shim for what it launches, [`super::hooks`].
pub fn take() -> Result<SignalFd> {
    let failed = |errno: nix::errno::Errno| Error::io("take", "signals", std::io::Error::from(errno));
    let mut set = SigSet::all();
    for kept in [
        Signal::SIGCHLD,
        Signal::SIGURG,
        Signal::SIGPIPE,
        Signal::SIGSEGV,
        Signal::SIGBUS,
        Signal::SIGILL,
        Signal::SIGFPE,
        Signal::SIGTRAP,
        Signal::SIGTTIN,
        Signal::SIGTTOU,
    ] {
        set.remove(kept);
    }
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&set), None).map_err(failed)?;
    SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).map_err(failed)
}

/// Hands on what came; a change of the terminal's size is told apart.
pub fn hand_on(signals: &mut SignalFd, process: &impl AsFd) -> Resized {
    let mut resized = Resized::No;
    while let Ok(Some(told)) = signals.read_signal() {
        let number = told.ssi_signo.cast_signed();
        if number == libc::SIGWINCH {
            resized = Resized::Yes;
        } else if let Some(signal) = rustix::process::Signal::from_named_raw(number) {
            // Gone already is as good.
            rustix::process::pidfd_send_signal(process, signal).ok();
        }
    }
    resized
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resized {
    Yes,
    No,
}
