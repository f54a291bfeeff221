//! execve(2), execveat(2), close_range(2), and what a process drops before it becomes another program.

use std::{
    ffi::{CStr, CString},
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    ptr::null,
};

/// Becomes the program at `path`; returns only on failure. `execve(2)`.
pub fn execve(path: &CStr, args: &[CString], env: &[CString]) -> io::Error {
    let args: Vec<_> = args.iter().map(|arg| arg.as_ptr()).chain([null()]).collect();
    let env: Vec<_> = env.iter().map(|var| var.as_ptr()).chain([null()]).collect();
    // SAFETY: path is NUL-terminated, both arrays end with a null pointer, and all of it outlives the call.
    unsafe { libc::execve(path.as_ptr(), args.as_ptr(), env.as_ptr()) };
    io::Error::last_os_error()
}

/// Becomes the program that a descriptor is of; returns only on failure. `execveat(2)`.
pub fn execute(program: BorrowedFd<'_>, args: &[CString], env: &[CString]) -> io::Error {
    let args: Vec<_> = args.iter().map(|arg| arg.as_ptr()).chain([null()]).collect();
    let env: Vec<_> = env.iter().map(|var| var.as_ptr()).chain([null()]).collect();
    // SAFETY: the path is an empty C string, both arrays end with a null pointer, and all of it outlives the call.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            program.as_raw_fd(),
            c"".as_ptr(),
            args.as_ptr(),
            env.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    io::Error::last_os_error()
}

/// Marks every descriptor from `first` on to be closed by the next exec. `close_range(2)`, CLOEXEC since Linux 5.11.
pub fn cloexec_from(first: u32) -> io::Result<()> {
    // SAFETY: only the close-on-exec flag changes; no descriptor that Rust owns is closed.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Takes a descriptor that whoever started us left open, by its number; no program of ours inherits it.
///
/// # Errors
/// `EBADF` where it isn't open, `EINVAL` for the standard streams. To be called once for each number.
pub fn inherited(number: i32) -> io::Result<OwnedFd> {
    if number < 3 {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: fcntl takes integers only.
    let result = unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is open, and the caller takes each number once, before anything else of ours is opened at it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Starts a new session; fails only in a group leader, which a fresh clone is not. `setsid(2)`.
pub fn setsid() {
    // SAFETY: setsid has no preconditions.
    unsafe { libc::setsid() };
}

/// Closes every descriptor from `first` on in a child that does one thing and exits without destructors.
pub fn close_from(first: u32) {
    // SAFETY: called in such a child, which afterwards uses only lower ones and what it opens itself.
    unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0u32) };
}

/// Closes every descriptor of a process that only waits from now on.
pub fn close_all() {
    // SAFETY: called by a pod's PID 1 alone, which never returns to code that owns a descriptor.
    unsafe { libc::syscall(libc::SYS_close_range, 0u32, u32::MAX, 0u32) };
}
