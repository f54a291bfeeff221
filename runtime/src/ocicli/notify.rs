//! `sd_notify(3)` from inside: a container's words come to a socket of ours, and go on from a process that the caller's systemd
//! knows. What it gets from another cgroup it can't place, and drops.
//!
//! ```text
//! create: <root>/<id>/notify  ──mounted, read-only──>  /run/notify
//! start:  notify.sock in it, bound by us until the program is ready or has ended ──READY=1, MAINPID=──> $NOTIFY_SOCKET
//! run:    the same to its end, and all else that is said
//! ```

use std::{
    ffi::{OsStr, OsString},
    fs::{self, DirBuilder, File, Permissions},
    io::IoSlice,
    mem::MaybeUninit,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::{
            ffi::OsStrExt,
            fs::{DirBuilderExt, PermissionsExt},
            net::UnixDatagram,
        },
    },
    path::{Path, PathBuf},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    net::{
        AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags,
        SocketType, connect, sendmsg, socket_with,
    },
    pipe::{PipeFlags, pipe_with},
};

use super::{identity::Identity, state::Container};
use crate::{Error, Result};

/// The directory in a container's own, which it finds at `/run/notify`.
const DIRECTORY: &str = "notify";
const SOCKET: &str = "notify.sock";
const OP: &str = "pass notifications on";
/// How long who is told may take to have read it: once we are gone, as after a start, nobody can say whose word it was.
const HEARING: Timespec = Timespec { tv_sec: 5, tv_nsec: 0 };

/// Makes the directory that the socket is to be in, where the caller has a systemd that waits.
pub fn prepare(container: &Path) -> Result<Option<PathBuf>> {
    if wanted().is_none() {
        return Ok(None);
    }
    let dir = container.join(DIRECTORY);
    let made = DirBuilder::new().mode(0o755).create(&dir);
    made.map_err(|error| Error::io(OP, dir.display().to_string(), error))?;
    Ok(Some(dir))
}

fn wanted() -> Option<OsString> {
    std::env::var_os("NOTIFY_SOCKET").filter(|path| is_address(path))
}

/// A path, or `@` and an abstract name.
fn is_address(text: &OsStr) -> bool {
    matches!(text.as_bytes(), [b'/' | b'@', _, ..])
}

/// Our socket in the container, and the caller's.
#[derive(Debug)]
pub struct Proxy {
    theirs: UnixDatagram,
    name: PathBuf,
    caller: OwnedFd,
}

/// Where the program stands by its own word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Said {
    Ready,
    Else,
}

impl Proxy {
    /// Binds the container's socket; None where its create or this call has no `NOTIFY_SOCKET`.
    pub fn bind(container: &Container) -> Result<Option<Self>> {
        let dir = container.dir.join(DIRECTORY);
        let (Some(address), true) = (wanted(), dir.is_dir()) else { return Ok(None) };
        let failed = |error: std::io::Error| Error::io(OP, address.to_string_lossy(), error);
        let caller = dial(&address).map_err(|errno| failed(errno.into()))?;
        let name = dir.join(SOCKET);
        let theirs = listen(&dir, &name).map_err(|error| Error::io(OP, name.display().to_string(), error))?;
        Ok(Some(Self { theirs, name, caller }))
    }

    /// Waits until the program has said that it is ready, and says so with its pid; one that ends before says nothing.
    pub fn until_ready(&self, init: &Identity) -> Result<()> {
        let Some(pidfd) = init.handle()? else { return Ok(()) };
        loop {
            let mut watched = [PollFd::new(&self.theirs, PollFlags::IN), PollFd::new(&pidfd, PollFlags::IN)];
            match poll(&mut watched, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(Error::io(OP, init.pid.to_string(), errno)),
            }
            let ended = !watched[1].revents().is_empty();
            if self.hand_on(Some(init.pid)) == Said::Ready || ended {
                return Ok(());
            }
        }
    }

    /// Hands on what has been said up to now.
    pub fn hand_on_all(&self) {
        self.hand_on(None);
    }

    /// Whoever doesn't hear it, or is gone, is no reason to end the container.
    fn hand_on(&self, main: Option<i32>) -> Said {
        let mut said = Said::Else;
        let mut bytes = [0u8; 4096];
        while let Ok(length) = self.theirs.recv(&mut bytes) {
            let (mut text, ready) = words(&bytes[..length]);
            if ready {
                said = Said::Ready;
                text.splice(0..0, main.iter().flat_map(|pid| format!("MAINPID={pid}\n").into_bytes()));
            }
            if !text.is_empty() {
                rustix::net::send(&self.caller, &text, SendFlags::NOSIGNAL).ok();
            }
            if ready && main.is_some() {
                // What it says later is not for us to hear.
                self.be_heard().ok();
                break;
            }
        }
        said
    }

    /// `sd_notify_barrier(3)`: a pipe whose other end is closed by who has read all that came before.
    fn be_heard(&self) -> rustix::io::Result<()> {
        let (ours, sent) = pipe_with(PipeFlags::CLOEXEC)?;
        let fds: [BorrowedFd<'_>; 1] = [sent.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        ancillary.push(SendAncillaryMessage::ScmRights(&fds));
        sendmsg(&self.caller, &[IoSlice::new(b"BARRIER=1")], &mut ancillary, SendFlags::NOSIGNAL)?;
        drop(sent);
        poll(&mut [PollFd::new(&ours, PollFlags::empty())], Some(&HEARING)).map(drop)
    }
}

impl AsFd for Proxy {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.theirs.as_fd()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // It goes with the container's directory else.
        fs::remove_file(&self.name).ok();
    }
}

fn dial(address: &OsStr) -> rustix::io::Result<OwnedFd> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    let address = match address.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddrUnix::new_abstract_name(name)?,
        None => SocketAddrUnix::new(address)?,
    };
    connect(&socket, &address).map(|()| socket)
}

fn listen(dir: &Path, name: &Path) -> std::io::Result<UnixDatagram> {
    // Of a start that was killed.
    fs::remove_file(name).ok();
    let directory = File::open(dir)?;
    // Through the directory's descriptor: no root is too long for a socket's address.
    let socket = UnixDatagram::bind(format!("/proc/self/fd/{}/{SOCKET}", directory.as_raw_fd()))?;
    // Whoever the program is in there.
    fs::set_permissions(name, Permissions::from_mode(0o777))?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// What of a message means the same outside, and whether it says that the program is ready. Pids are of the container's own,
/// descriptors have not come along.
fn words(message: &[u8]) -> (Vec<u8>, bool) {
    const INSIDE: [&[u8]; 5] = [b"MAINPID", b"FDSTORE", b"FDSTOREREMOVE", b"FDNAME", b"BARRIER"];
    let variable = |line: &[u8]| line.split(|byte| *byte == b'=').next().unwrap_or_default().to_vec();
    let kept: Vec<&[u8]> = message
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty() && !INSIDE.contains(&variable(line).as_slice()))
        .collect();
    let ready = kept.contains(&b"READY=1".as_slice());
    (kept.join(&b'\n'), ready)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_only_true_inside_is_left_there() {
        let of = |text: &str| {
            let (kept, ready) = words(text.as_bytes());
            (String::from_utf8(kept).unwrap(), ready)
        };
        assert_eq!(of("READY=1\nSTATUS=up\n"), ("READY=1\nSTATUS=up".into(), true));
        assert_eq!(of("MAINPID=7\nREADY=1"), ("READY=1".into(), true));
        assert_eq!(of("STATUS=READY=1\nWATCHDOG=1"), ("STATUS=READY=1\nWATCHDOG=1".into(), false));
        assert_eq!(of("BARRIER=1"), (String::new(), false));
        assert_eq!(of("FDSTORE=1\nFDNAME=x\n\n"), (String::new(), false));
    }

    #[test]
    fn an_address_is_a_path_or_an_abstract_name() {
        for good in ["/run/systemd/notify", "@name"] {
            assert!(is_address(OsStr::new(good)), "{good}");
        }
        for bad in ["", "/", "@", "vsock:2:1234", "relative"] {
            assert!(!is_address(OsStr::new(bad)), "{bad}");
        }
    }
}
