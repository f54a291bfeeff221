//! clone3(2): a child with its pidfd, in new namespaces and, on v2, in its cgroup from birth.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

/// CLONE_INTO_CGROUP does not fit the libc crate's c_int.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Which side of the clone is running.
#[derive(Debug)]
pub enum Side {
    Child,
    Parent { pid: i32, pidfd: OwnedFd },
}

/// Whose child a clone is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parent {
    /// This process.
    Us,
    /// Our own parent: `CLONE_PARENT`.
    Ours,
}

/// Clones the process: a fork with namespaces. `clone3(2)`, Linux 5.7 for the cgroup.
///
/// # Errors
/// The kernel's errno; `EAGAIN` here also when this process is not single-threaded.
pub fn clone3(namespaces: u64, cgroup: Option<BorrowedFd<'_>>, parent: Parent) -> io::Result<Side> {
    if thread_count()? != 1 {
        return Err(io::Error::from_raw_os_error(libc::EAGAIN));
    }
    let mut pidfd: i32 = -1;
    // SAFETY: clone_args is plain integers, for which zero is a valid value.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = namespaces | libc::CLONE_PIDFD as u64;
    match parent {
        Parent::Us => args.exit_signal = libc::SIGCHLD as u64,
        // The signal is then ours, and may not be said.
        Parent::Ours => args.flags |= libc::CLONE_PARENT as u64,
    }
    args.pidfd = (&raw mut pidfd) as u64;
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: without CLONE_VM the child gets a copy of our memory, so it may go on in Rust; that no lock of another
    // thread is held in that copy was checked just above. `args` and `pidfd` outlive the call.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<libc::clone_args>()) };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Side::Child),
        pid => {
            // SAFETY: the kernel stored a new descriptor that nobody else owns.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Side::Parent { pid: pid as i32, pidfd })
        }
    }
}

/// Leaves the child's copy of this process without running destructors or handlers. `_exit(2)`.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit has no preconditions.
    unsafe { libc::_exit(code) }
}

/// Moves this process to new namespaces. `unshare(2)`.
pub fn unshare(namespaces: i32) -> io::Result<()> {
    // SAFETY: only namespace flags are passed by our callers; none of them shares or splits memory or fds.
    check(unsafe { libc::unshare(namespaces) })
}

/// Enters the namespaces that `flags` names of a pidfd's process, or of a namespace file. `setns(2)`.
pub fn setns(fd: BorrowedFd<'_>, flags: i32) -> io::Result<()> {
    // SAFETY: setns takes integers only.
    check(unsafe { libc::setns(fd.as_raw_fd(), flags) })
}

fn check(result: i32) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn thread_count() -> io::Result<usize> {
    Ok(std::fs::read_dir("/proc/self/task")?.count())
}
