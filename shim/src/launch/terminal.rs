//! A container's terminal: a pty pair of its own devpts, `pty(7)`, and the standard streams in their places.

use std::{
    os::fd::{AsRawFd, OwnedFd},
    path::Path,
};

use berth_launch::v1::{Process, Step};
use rustix::{
    fs::OFlags,
    io::Errno,
    mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree},
    pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt},
    termios::{Winsize, tcsetwinsize},
};

use super::{
    child::Streams,
    failure::{At, Result, fail},
    root::Root,
};

/// Opens a pty pair; the slave becomes all three streams and /dev/console.
pub fn open(root: &Root, process: &Process) -> Result<(Streams, OwnedFd)> {
    let (streams, master) = pair(root, process)?;
    console(root, &streams.stdin)?;
    Ok((streams, master))
}

/// Opens a pty pair for one more process: /dev/console stays the first one's.
pub fn pair(root: &Root, process: &Process) -> Result<(Streams, OwnedFd)> {
    let ptmx = Path::new("/dev/pts/ptmx");
    let master = root.open_plain(ptmx, OFlags::RDWR | OFlags::NOCTTY).at(Step::Pty, ptmx)?;
    unlockpt(&master).at(Step::Pty, ptmx)?;
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    // TIOCGPTPEER gives this pty's own slave, whatever the image has put at /dev/pts/N.
    let slave = ioctl_tiocgptpeer(&master, flags).at(Step::Pty, ptmx)?;
    if process.rows != 0 && process.columns != 0 {
        resize(&master, process.rows, process.columns).at(Step::Pty, ptmx)?;
    }
    let again = || slave.try_clone().at(Step::Pty, ptmx);
    Ok((Streams { stdin: again()?, stdout: again()?, stderr: slave }, master))
}

/// Shows the terminal as /dev/console, where programs that manage a system look for one.
fn console(root: &Root, slave: &OwnedFd) -> Result<()> {
    let path = Path::new("/dev/console");
    // A link there would have it cover another file of the container's, before /proc's are masked (CVE-2025-52565).
    let target = match root.open_plain(path, OFlags::PATH) {
        Err(Errno::NOENT) => root.make_file(path).at(Step::Pty, path)?,
        Err(Errno::LOOP) => {
            return Err(fail(Step::Pty, path, libc::ELOOP, "the image has a symbolic link there"));
        }
        other => other.at(Step::Pty, path)?,
    };
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = open_tree(slave, "", flags).at(Step::Pty, path)?;
    let how = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(&tree, "", &target, "", how).at(Step::Pty, path)
}

/// Sets a pty's size, `ioctl_tty(2)`.
pub fn resize(master: &OwnedFd, rows: u32, columns: u32) -> rustix::io::Result<()> {
    let cells = |n: u32| n.min(u16::MAX.into()) as u16;
    tcsetwinsize(master, Winsize { ws_row: cells(rows), ws_col: cells(columns), ws_xpixel: 0, ws_ypixel: 0 })
}

/// Makes standard input this session's controlling terminal.
pub fn take() -> rustix::io::Result<()> {
    rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())
}

/// Puts a stream at its number.
pub fn place(stream: &OwnedFd, number: i32) -> rustix::io::Result<()> {
    if stream.as_raw_fd() == number {
        return rustix::io::fcntl_setfd(stream, rustix::io::FdFlags::empty());
    }
    match number {
        0 => rustix::stdio::dup2_stdin(stream),
        1 => rustix::stdio::dup2_stdout(stream),
        _ => rustix::stdio::dup2_stderr(stream),
    }
}
