//! How this thread is scheduled, where its memory lies, and its session keyring: calls that rustix lacks.

use std::{ffi::CStr, io};

/// `sched_setattr(2)`.
pub fn set_scheduler(
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    [runtime, deadline, period]: [u64; 3],
) -> io::Result<()> {
    #[repr(C)]
    struct Attributes {
        size: u32,
        policy: u32,
        flags: u64,
        nice: i32,
        priority: u32,
        runtime: u64,
        deadline: u64,
        period: u64,
    }
    let size = size_of::<Attributes>() as u32;
    let attributes = Attributes { size, policy, flags, nice, priority, runtime, deadline, period };
    // SAFETY: the struct is the kernel's first version of sched_attr, says its size and outlives the call.
    check(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) })
}

/// `ioprio_set(2)` of this process.
pub fn set_io_priority(value: u32) -> io::Result<()> {
    const WHO_PROCESS: i32 = 1;
    // SAFETY: integers only.
    check(unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, value) })
}

/// `sched_setaffinity(2)`: byte n of the mask holds the CPUs 8n to 8n+7.
pub fn set_affinity(mask: &[u8]) -> io::Result<()> {
    let words = words(mask);
    let bytes = size_of_val(words.as_slice());
    // SAFETY: the mask is as long as is said and outlives the call.
    check(unsafe { libc::syscall(libc::SYS_sched_setaffinity, 0, bytes, words.as_ptr()) })
}

/// `set_mempolicy(2)`.
pub fn set_memory_policy(mode: u32, nodes: &[u8]) -> io::Result<()> {
    let words = words(nodes);
    // The kernel takes one bit less than is said, and no pointer for no nodes.
    let (mask, bits) = if words.iter().all(|word| *word == 0) {
        (std::ptr::null(), 0)
    } else {
        (words.as_ptr(), words.len() * 64 + 1)
    };
    // SAFETY: the mask is as long as is said and outlives the call.
    check(unsafe { libc::syscall(libc::SYS_set_mempolicy, mode, mask, bits) })
}

/// `personality(2)`.
pub fn set_personality(persona: u64) -> io::Result<()> {
    // SAFETY: integers only.
    check(unsafe { libc::syscall(libc::SYS_personality, persona) })
}

/// Joins a new session keyring, `keyctl(2)`.
pub fn new_keyring(name: &CStr) -> io::Result<()> {
    const JOIN_SESSION_KEYRING: i32 = 1;
    // SAFETY: the name ends with NUL and outlives the call.
    check(unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, name.as_ptr()) })
}

fn words(mask: &[u8]) -> Vec<u64> {
    mask.chunks(8)
        .map(|bytes| bytes.iter().rev().fold(0u64, |word, byte| word << 8 | u64::from(*byte)))
        .collect()
}

fn check(result: i64) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_of_bytes_becomes_words_with_the_lowest_cpu_first() {
        assert_eq!(words(&[0b101, 0, 0, 0, 0, 0, 0, 0, 1]), [0b101, 1]);
        assert_eq!(words(&[]), Vec::<u64>::new());
    }
}
