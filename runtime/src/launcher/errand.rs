//! What a short-lived shim is sent for: it brings a descriptor back, or says why not.

use std::{
    io::{self, IoSliceMut},
    mem::MaybeUninit,
    os::fd::OwnedFd,
    path::Path,
    process::Stdio,
    time::Duration,
};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType, socketpair,
};
use tokio::{io::unix::AsyncFd, process::Command, time::timeout};

use crate::{Error, Kind, Result, error::Cause};

/// A loopback answers at once; a pod that drops its own packets never.
const PATIENCE: Duration = Duration::from_secs(10);

/// What it came back with.
#[derive(Debug)]
pub enum Brought {
    Descriptor(OwnedFd),
    Refused(io::Error),
}

/// Runs `program` with these arguments for a descriptor. `op` and `object` name the errand in errors.
///
/// # Errors
/// Nobody answered.
pub async fn errand(program: &Path, arguments: &[&str], op: &'static str, object: &str) -> Result<Brought> {
    let failed = |error: io::Error| Error::io(op, object.to_owned(), error);
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
        .map_err(|errno| failed(errno.into()))?;
    // Dropped, it is killed; the runtime reaps it.
    let mut child = Command::new(program)
        .args(arguments)
        .env_clear()
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| Error::io("start shim", program.display().to_string(), error))?;
    #[expect(deprecated, reason = "its successor is unsafe; an OwnedFd upholds what that asks for")]
    let ours = AsyncFd::new(ours).map_err(failed)?;
    let Ok(answer) = timeout(PATIENCE, answer(&ours)).await else {
        let silence = Cause(format!("no answer for {PATIENCE:?}"));
        return Err(Error::new(Kind::Deadline, op, object.to_owned()).because(silence));
    };
    let answer = answer.map_err(failed)?;
    // It ends by itself after its word; what it exits with says nothing more, and nobody waits for its end but who reaps it.
    tokio::spawn(async move { child.wait().await.ok() });
    answer.ok_or_else(|| {
        Error::new(Kind::Internal, op, object.to_owned())
            .because(Cause("the shim ended without a word".into()))
            .hint("install berthd and berth-shim of one version")
    })
}

/// Four bytes, an errno or zero; with zero a descriptor. None: neither.
async fn answer(socket: &AsyncFd<OwnedFd>) -> io::Result<Option<Brought>> {
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
                (4, 0, Some(fd)) => Some(Brought::Descriptor(fd)),
                (4, errno, None) if errno > 0 => Some(Brought::Refused(io::Error::from_raw_os_error(errno))),
                _ => None,
            })
        })
        .await
}
