//! mount_setattr(2), Linux 5.12: attributes of a mount, its propagation, its ids, each of them for a whole tree too.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

/// Changes a mount that `fd` is the root of: attribute bits MOUNT_ATTR_*, propagation MS_SHARED and its kin or 0.
pub fn set_attributes(
    fd: BorrowedFd<'_>,
    set: u64,
    clear: u64,
    propagation: u64,
    recursive: bool,
) -> io::Result<()> {
    let attributes = libc::mount_attr { attr_set: set, attr_clr: clear, propagation, userns_fd: 0 };
    change(fd, &attributes, recursive)
}

/// Makes a mount that has no place yet show ids as a user namespace has them: what is 0 on the disk is its root.
pub fn set_ids(fd: BorrowedFd<'_>, users: BorrowedFd<'_>, recursive: bool) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: users.as_raw_fd() as u64,
    };
    change(fd, &attributes, recursive)
}

fn change(fd: BorrowedFd<'_>, attributes: &libc::mount_attr, recursive: bool) -> io::Result<()> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is an empty C string, `attributes` is borrowed over the call and its size is passed.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd.as_raw_fd(),
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(attributes),
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
