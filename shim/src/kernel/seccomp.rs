//! seccomp(2): loads a classic BPF program that berthd compiled.

use std::{
    io,
    os::fd::{FromRawFd, OwnedFd},
};

/// Filters this thread's system calls from now on. `program` is an array of `struct sock_filter`. With
/// `SECCOMP_FILTER_FLAG_NEW_LISTENER` gives the descriptor at which its notifications are read.
///
/// # Errors
/// `EINVAL` for a program the kernel's checker refuses, `EACCES` without CAP_SYS_ADMIN or no_new_privs.
pub fn load(program: &[u8], flags: u32) -> io::Result<Option<OwnedFd>> {
    const FILTER_BYTES: usize = size_of::<libc::sock_filter>();
    if program.is_empty()
        || !program.len().is_multiple_of(FILTER_BYTES)
        || program.len() / FILTER_BYTES > 4096
    {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let mut filters: Vec<libc::sock_filter> = program
        .chunks_exact(FILTER_BYTES)
        .map(|bytes| libc::sock_filter {
            code: u16::from_ne_bytes([bytes[0], bytes[1]]),
            jt: bytes[2],
            jf: bytes[3],
            k: u32::from_ne_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
        })
        .collect();
    let program = libc::sock_fprog { len: filters.len() as u16, filter: filters.as_mut_ptr() };
    // SAFETY: `program` points at `filters`, both outlive the call, and the kernel checks what they say.
    let result =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    let is_listener = u64::from(flags) & libc::SECCOMP_FILTER_FLAG_NEW_LISTENER != 0;
    // SAFETY: with that flag the result is a new descriptor that nobody else owns.
    Ok(is_listener.then(|| unsafe { OwnedFd::from_raw_fd(result as i32) }))
}
