//! What the kernel keeps of a process that is gone, for whoever holds its pidfd: `PIDFD_GET_INFO`, `ioctl_pidfd(2)`; the
//! exit status since Linux 6.15.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
};

use rustix::process::{WaitId, WaitIdOptions, waitid};

use super::clone::{Parent, Side, clone3, exit_now};

/// struct pidfd_info as of its first version.
#[repr(C)]
#[derive(Debug, Default)]
struct Info {
    mask: u64,
    cgroup: u64,
    ids: [u32; 11],
    exit_code: i32,
}

/// _IOWR(0xFF, 11, struct pidfd_info).
const GET_INFO: libc::Ioctl = (3 << 30 | size_of::<Info>() << 16 | 0xff << 8 | 11) as libc::Ioctl;
const EXIT: u64 = 1 << 3;
/// What the child of the trial ends with.
const TRIAL: i32 = 7;

/// The wait status of a process that was reaped, by whomever; none while it is there, or where the kernel keeps none.
pub fn exit_status(pidfd: BorrowedFd<'_>) -> Option<i32> {
    let mut info = Info { mask: EXIT, ..Info::default() };
    // SAFETY: the number names the size of `info`, which the kernel reads and fills, and which outlives the call.
    let result = unsafe { libc::ioctl(pidfd.as_raw_fd(), GET_INFO, &raw mut info) };
    (result == 0 && info.mask & EXIT != 0).then_some(info.exit_code)
}

/// Whether this kernel keeps exit statuses: tried with a child.
pub fn keeps_exit_statuses() -> io::Result<bool> {
    match clone3(0, None, Parent::Us)? {
        Side::Child => exit_now(TRIAL),
        Side::Parent { pidfd, .. } => {
            waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED)?;
            Ok(exit_status(pidfd.as_fd()) == Some(TRIAL << 8))
        }
    }
}
