//! Project quotas: what all files below a directory take together, ioctl_fsxattr(2) and quotactl(2). Of ext4 and XFS.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

const FS_IOC_FSGETXATTR: libc::Ioctl = 0x801c_581f_u32 as libc::Ioctl;
const FS_IOC_FSSETXATTR: libc::Ioctl = 0x401c_5820;
const FS_XFLAG_PROJINHERIT: u32 = 0x200;
/// Linux 5.14; the same number on all architectures that Berth is made for.
const SYS_QUOTACTL_FD: libc::c_long = 443;
const Q_SETQUOTA: u32 = 0x80_0008;
const PRJQUOTA: u32 = 2;
const QIF_BLIMITS: u32 = 1;
/// The unit of quotas.
const BLOCK_BYTES: u64 = 1024;

/// `struct fsxattr` of linux/fs.h.
#[repr(C)]
#[derive(Debug, Default)]
struct Attributes {
    flags: u32,
    extent_size: u32,
    extents: u32,
    project: u32,
    copy_extent_size: u32,
    padding: [u8; 8],
}

/// `struct if_dqblk` of linux/quota.h.
#[repr(C)]
#[derive(Debug, Default)]
struct Limits {
    hard_blocks: u64,
    soft_blocks: u64,
    used_bytes: u64,
    hard_inodes: u64,
    soft_inodes: u64,
    used_inodes: u64,
    block_time: u64,
    inode_time: u64,
    valid: u32,
}

/// Makes a directory, and all that comes to lie in it, part of a project.
pub fn set_project(directory: BorrowedFd<'_>, project: u32) -> io::Result<()> {
    let mut attributes = Attributes::default();
    // SAFETY: the kernel writes one `struct fsxattr`, which `attributes` is, and keeps nothing of it.
    let read = unsafe { libc::ioctl(directory.as_raw_fd(), FS_IOC_FSGETXATTR, &raw mut attributes) };
    if read != 0 {
        return Err(io::Error::last_os_error());
    }
    attributes.project = project;
    attributes.flags |= FS_XFLAG_PROJINHERIT;
    // SAFETY: the kernel reads one `struct fsxattr`, which `attributes` is.
    let written = unsafe { libc::ioctl(directory.as_raw_fd(), FS_IOC_FSSETXATTR, &raw const attributes) };
    if written == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Limits what a project's files take on the file system that `place` lies on; less than a KiB more may fit.
pub fn set_limit(place: BorrowedFd<'_>, project: u32, bytes: u64) -> io::Result<()> {
    let limits = Limits { hard_blocks: bytes.div_ceil(BLOCK_BYTES), valid: QIF_BLIMITS, ..Limits::default() };
    let command = (Q_SETQUOTA << 8) | PRJQUOTA;
    // SAFETY: the kernel reads one `struct if_dqblk`, which `limits` is, and keeps nothing of it.
    let set = unsafe {
        libc::syscall(SYS_QUOTACTL_FD, place.as_raw_fd(), command, project, std::ptr::from_ref(&limits))
    };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
