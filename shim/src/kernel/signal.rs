//! Signals: what the reaper waits for, and the clean slate a container's process starts with.

use std::{mem::MaybeUninit, os::unix::process::CommandExt, process::Command, ptr::null_mut};

use rustix::process::Signal;

/// Gives every signal its default action and unblocks all: a new program expects that, SIGPIPE above all.
pub fn reset() {
    for signal in 1..=64 {
        // SAFETY: SIG_DFL is valid for every signal; the kernel refuses KILL and STOP and glibc its own two, harmlessly.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset initialises the set before sigprocmask reads it.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigprocmask(libc::SIG_SETMASK, set.as_ptr(), null_mut());
    }
}

/// Has a command's program begin with that clean slate, whatever is blocked or ignored here.
pub fn reset_in(command: &mut Command) -> &mut Command {
    let reset = || {
        reset();
        Ok(())
    };
    // SAFETY: signal and sigprocmask are async-signal-safe, and nothing is allocated.
    unsafe { command.pre_exec(reset) }
}

/// The signal of a number, real-time ones too; none for what is no signal or is the C library's own.
pub fn numbered(number: i32) -> Option<Signal> {
    let real_time = || {
        // SAFETY: the kernel has signals up to 64, and of the real-time ones glibc keeps 32 and 33 for itself.
        (34..=64).contains(&number).then(|| unsafe { Signal::from_raw_unchecked(number) })
    };
    Signal::from_named_raw(number).or_else(real_time)
}

/// Ignores a signal.
pub fn ignore(signal: i32) {
    // SAFETY: SIG_IGN installs no handler code.
    unsafe { libc::signal(signal, libc::SIG_IGN) };
}

/// Blocks one signal so that [`wait`] can take it.
pub fn wait_set(signal: i32) -> libc::sigset_t {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset initialises the set before anything reads it.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), signal);
        libc::sigprocmask(libc::SIG_BLOCK, set.as_ptr(), null_mut());
        set.assume_init()
    }
}

/// Waits for a signal of a blocked set. `sigwaitinfo(2)`.
pub fn wait(set: &libc::sigset_t) {
    // SAFETY: the set is initialised and outlives the call; no information is asked for.
    unsafe { libc::sigwaitinfo(set, null_mut()) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_named_or_real_time() {
        for number in [1, 9, 15, 34, 37, 64] {
            assert_eq!(numbered(number).map(Signal::as_raw), Some(number));
        }
        for number in [-1, 0, 32, 33, 65] {
            assert_eq!(numbered(number), None, "{number}");
        }
    }
}
