//! Connects inside a pod's network: a short-lived shim enters it, and hands the connected socket back. The daemon
//! itself, threaded as it is, never changes its namespaces.

use std::{
    io::{self, IoSliceMut},
    mem::MaybeUninit,
    net::TcpStream,
    os::fd::OwnedFd,
    path::Path,
    process::Stdio,
    time::Duration,
};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType, socketpair,
};
use tokio::{io::unix::AsyncFd, process::Command, time::timeout};

use super::Launcher;
use crate::{Error, Kind, Result, error::Cause};

/// A loopback answers at once; a pod that drops its own packets never.
const PATIENCE: Duration = Duration::from_secs(10);

impl Launcher {
    /// Connects to a port of the network namespace pinned at `netns`: at 127.0.0.1, else at ::1. Non-blocking.
    ///
    /// # Errors
    /// `Unavailable` when nobody listens there.
    pub async fn dial(&self, netns: &Path, port: u16) -> Result<TcpStream> {
        const OP: &str = "connect to port";
        let failed = |error: io::Error| Error::io(OP, port.to_string(), error);
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
            .map_err(|errno| failed(errno.into()))?;
        // Dropped, it is killed; the runtime reaps it.
        let mut child = Command::new(&self.program)
            .arg("dial")
            .arg(netns)
            .arg(port.to_string())
            .env_clear()
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| Error::io("start shim", self.program.display().to_string(), error))?;
        #[expect(deprecated, reason = "its successor is unsafe; an OwnedFd upholds what that asks for")]
        let ours = AsyncFd::new(ours).map_err(failed)?;
        let Ok(answer) = timeout(PATIENCE, answer(&ours)).await else {
            return Err(Error::new(Kind::Deadline, OP, port.to_string())
                .because(Cause(format!("no answer for {PATIENCE:?}"))));
        };
        let answer = answer.map_err(failed)?;
        // It ends by itself after its word; what it exits with says nothing more.
        child.wait().await.ok();
        match answer {
            Answer::Connected(socket) => {
                let socket = TcpStream::from(socket);
                socket.set_nonblocking(true).map_err(failed)?;
                Ok(socket)
            }
            Answer::Refused(error) => {
                Err(Error::new(Kind::Unavailable, OP, format!("{port} of the pod")).because(error))
            }
            Answer::Silence => Err(Error::new(Kind::Internal, OP, port.to_string())
                .because(Cause("the shim ended without a word".into()))
                .hint("install berthd and berth-shim of one version")),
        }
    }
}

enum Answer {
    Connected(OwnedFd),
    Refused(io::Error),
    Silence,
}

/// Four bytes, an errno or zero; with zero a socket.
async fn answer(socket: &AsyncFd<OwnedFd>) -> io::Result<Answer> {
    socket
        .async_io(tokio::io::Interest::READABLE, |socket| {
            let mut errno = [0; 4];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
            let mut room = [IoSliceMut::new(&mut errno)];
            let received = rustix::net::recvmsg(socket, &mut room, &mut ancillary, flags)?;
            let fd = ancillary.drain().find_map(|message| match message {
                RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
                _ => None,
            });
            Ok(match (received.bytes, i32::from_ne_bytes(errno), fd) {
                (4, 0, Some(fd)) => Answer::Connected(fd),
                (4, errno, None) if errno > 0 => Answer::Refused(io::Error::from_raw_os_error(errno)),
                _ => Answer::Silence,
            })
        })
        .await
}
