//! Waiting for a process in the foreground: its signals, its terminal, its exit code. It is our child, since the shim
//! cloned it as its parent's, or has left it to us.

use std::{
    io::{IoSliceMut, Write},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::DirBuilderExt,
    },
    path::PathBuf,
};

use nix::sys::signalfd::SignalFd;
use rustix::{
    event::{PollFd, PollFlags, poll},
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketAddrUnix, SocketFlags,
        SocketType, accept_with, bind, listen, recvmsg, socket_with,
    },
    process::{WaitId, WaitIdOptions, waitid},
};

use super::{
    identity::Identity,
    notify::Proxy,
    signals::{self, Resized},
    terminal::{self, Raw},
};
use crate::{Error, Kind, Result, error::Cause};

/// A console socket of our own, for a terminal that we hold ourselves.
#[derive(Debug)]
pub struct Relay {
    directory: PathBuf,
    socket: OwnedFd,
}

impl Relay {
    pub fn new() -> Result<Self> {
        let directory = std::env::temp_dir().join(format!("berth-oci-{}", std::process::id()));
        let failed =
            |error: std::io::Error| Error::io("make console socket", directory.display().to_string(), error);
        std::fs::DirBuilder::new().mode(0o700).create(&directory).map_err(failed)?;
        let made = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).and_then(
            |socket| {
                bind(&socket, &SocketAddrUnix::new(directory.join("console"))?)?;
                listen(&socket, 1)?;
                Ok(socket)
            },
        );
        match made {
            Ok(socket) => Ok(Self { directory, socket }),
            Err(errno) => {
                // The failure is the story.
                std::fs::remove_dir_all(&directory).ok();
                Err(failed(errno.into()))
            }
        }
    }

    pub fn path(&self) -> PathBuf {
        self.directory.join("console")
    }

    /// The pty master that the shim has sent.
    fn master(&self) -> Result<OwnedFd> {
        let failed = |errno: rustix::io::Errno| Error::io("take", "terminal", errno);
        let connection = accept_with(&self.socket, SocketFlags::CLOEXEC).map_err(failed)?;
        let mut byte = [0u8; 64];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        recvmsg(&connection, &mut [IoSliceMut::new(&mut byte)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)
            .map_err(failed)?;
        let mut masters = ancillary.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        masters.next().ok_or_else(|| {
            Error::new(Kind::Internal, "take", "terminal").because(Cause("none was sent".into()))
        })
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        // What stays is an empty directory for who cleans /tmp.
        std::fs::remove_dir_all(&self.directory).ok();
    }
}

/// What a launch leaves behind is our child then: in a user namespace init is the shim's own, which goes.
/// `PR_SET_CHILD_SUBREAPER(2const)`.
pub fn adopting<T>(launch: impl FnOnce() -> Result<T>) -> Result<T> {
    let adopt = |whose| {
        rustix::process::set_child_subreaper(whose).map_err(|errno| Error::io("adopt", "container", errno))
    };
    adopt(Some(rustix::process::getpid()))?;
    let launched = launch();
    // The orphans of its program are not ours.
    adopt(None).and(launched)
}

/// Waits for the end, and hands on the signals, taken before the process ran, and its notifications; the exit code, 128 and
/// the signal's number where one ended it.
pub fn wait(
    process: &Identity,
    relay: Option<Relay>,
    proxy: Option<&Proxy>,
    mut signals: SignalFd,
) -> Result<u8> {
    let failed = |errno: rustix::io::Errno| Error::io("wait for", process.pid.to_string(), errno);
    let pid = rustix::process::Pid::from_raw(process.pid).ok_or_else(|| failed(rustix::io::Errno::SRCH))?;
    // Our child: the number is its own until we have waited for it.
    let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).map_err(failed)?;
    let master = relay.as_ref().map(Relay::master).transpose()?;
    let raw = master.as_ref().map(|master| {
        terminal::same_size(master);
        Raw::new()
    });
    let (mut input, mut output) = (master.is_some(), master.is_some());
    loop {
        let mut watched = vec![
            PollFd::from_borrowed_fd(pidfd.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(signals.as_fd(), PollFlags::IN),
        ];
        watched.extend(proxy.map(|proxy| PollFd::from_borrowed_fd(proxy.as_fd(), PollFlags::IN)));
        let terminal = master.as_ref().filter(|_| output);
        watched.extend(terminal.map(|master| PollFd::from_borrowed_fd(master.as_fd(), PollFlags::IN)));
        if input {
            watched.push(PollFd::from_borrowed_fd(rustix::stdio::stdin(), PollFlags::IN));
        }
        match poll(&mut watched, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(failed(errno)),
        }
        let mut told = watched.iter().map(|fd| !fd.revents().is_empty()).collect::<Vec<bool>>().into_iter();
        drop(watched);
        let ended = told.next() == Some(true);
        // Signals and notifications are read whether told of or not.
        told.next();
        if let Some(proxy) = proxy {
            told.next();
            proxy.hand_on_all();
        }
        let (spoke, typed) = (output && told.next() == Some(true), input && told.next() == Some(true));
        let resized = signals::hand_on(&mut signals, &pidfd) == Resized::Yes;
        if let Some(master) = &master {
            if resized {
                terminal::same_size(master);
            }
            if typed {
                input = copy(&rustix::stdio::stdin(), master);
            }
            // A terminal that nobody has open any more says so for ever: it is not listened to again.
            output = output && (!spoke || copy(master, &rustix::stdio::stdout()));
            input = input && output;
            // The rest of what it wrote; its terminal ends with its last process, or with us.
            while ended && output && ready(master) {
                output = copy(master, &rustix::stdio::stdout());
            }
        }
        if ended {
            break;
        }
    }
    drop(raw);
    code(&pidfd).map_err(failed)
}

fn ready(fd: &OwnedFd) -> bool {
    let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut [PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN)], Some(&now)).is_ok_and(|count| count > 0)
}

/// One piece from here to there; false at the end.
fn copy(from: &impl AsFd, to: &impl AsFd) -> bool {
    let mut bytes = [0u8; 8192];
    let length = match rustix::io::read(from, &mut bytes[..]) {
        Ok(0) => return false,
        Ok(length) => length,
        Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => return true,
        Err(_) => return false,
    };
    let mut rest = &bytes[..length];
    while !rest.is_empty() {
        match rustix::io::write(to, rest) {
            Ok(count) => rest = &rest[count..],
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return false,
        }
    }
    // Nobody reads what can't be written.
    std::io::stdout().flush().ok();
    true
}

fn code(pidfd: &OwnedFd) -> rustix::io::Result<u8> {
    let status = loop {
        match waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED) {
            Err(rustix::io::Errno::INTR) => {}
            other => break other?,
        }
    };
    let Some(status) = status else { return Ok(0) };
    let code = status.exit_status().or(status.terminating_signal().map(|signal| 128 + signal)).unwrap_or(0);
    Ok(u8::try_from(code & 0xff).unwrap_or(u8::MAX))
}
