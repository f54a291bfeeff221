//! Signals: what the reaper waits for, and the clean slate a container's process starts with.

use std::{mem::MaybeUninit, ptr::null_mut};

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
