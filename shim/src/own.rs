//! Our own program out of the reach of containers (CVE-2019-5736). A container's program may be a script that begins with
//! `#!/proc/self/exe`: the kernel then runs what the launching process ran, which is this file of the host's, as a process
//! of the container, by whose `/proc/PID/exe` the file could be opened and written to later. So before anything is
//! launched we execute ourselves again through a mount of the file that has no place and is read-only: what leads to the
//! file by us leads through that mount. `berthd` borrows one such mount, `berth-shim lend`, and executes all its shims
//! through that: they need not do so again.

use std::{
    ffi::CString,
    io,
    os::fd::{AsFd, OwnedFd},
};

use rustix::{
    fs::{CWD, StatVfsMountFlags, statvfs},
    mount::{OpenTreeFlags, open_tree},
};

use crate::kernel;

const EXE: &str = "/proc/self/exe";
/// What lists of processes show, which an execution by descriptor leaves to chance.
const NAME: &std::ffi::CStr = c"berth-shim";

/// Goes on behind the read-only mount; returns where we are there already.
///
/// # Errors
/// Those of mounting and executing. An ordinary user's `EPERM` is none: to root's file a container of theirs can't write.
pub fn shut_away() -> io::Result<()> {
    if statvfs(EXE)?.f_flag.contains(StatVfsMountFlags::RDONLY) {
        // For people to read.
        rustix::thread::set_name(NAME).ok();
        return Ok(());
    }
    let file = match mount() {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) && !rustix::process::geteuid().is_root() => {
            return Ok(());
        }
        other => other?,
    };
    let args = strings(std::env::args_os().map(std::os::unix::ffi::OsStringExt::into_vec))?;
    let env = std::env::vars_os().map(|(name, value)| {
        let mut variable = std::os::unix::ffi::OsStringExt::into_vec(name);
        variable.push(b'=');
        variable.extend(std::os::unix::ffi::OsStringExt::into_vec(value));
        variable
    });
    Err(kernel::exec::execute(file.as_fd(), &args, &strings(env)?))
}

/// Such a mount of our own file: for us, or for whoever starts shims and lends it to all of them.
///
/// # Errors
/// As of open_tree(2) and mount_setattr(2).
pub fn mount() -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let file = open_tree(CWD, EXE, flags)?;
    kernel::mount::set_attributes(file.as_fd(), libc::MOUNT_ATTR_RDONLY, 0, 0, false)?;
    Ok(file)
}

fn strings(all: impl Iterator<Item = Vec<u8>>) -> io::Result<Vec<CString>> {
    // None has a NUL inside: they came by execve(2).
    all.map(|one| CString::new(one).map_err(io::Error::from)).collect()
}
