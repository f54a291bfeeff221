//! The socket pair between the shim and a process it launches: the child says ready (with its pty master, where it has
//! one; a helper with what it has made) or why not; the parent opens the gate; then either exec closes the socket or a failure comes through it.

use std::{
    io::{IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{BorrowedFd, OwnedFd},
};

use berth_launch::v1::{Birth, Failure, Ready, Step, birth::Outcome};
use prost::Message;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

use super::{
    failure::{At, Result, fail},
    user::Resolved,
};

#[derive(Debug)]
pub struct Channel(OwnedFd);

/// What came from the child.
#[derive(Debug)]
pub enum Message_ {
    Ready(Ready, Option<OwnedFd>),
    Failure(Failure),
    /// It is gone, or has become its program.
    Closed,
}

impl Channel {
    /// The parent's end and the child's.
    pub fn pair() -> Result<(Self, Self)> {
        let (parent, child) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .at(Step::Stdio, "socketpair")?;
        Ok((Self(parent), Self(child)))
    }

    /// The child's end to whoever comes to a listening socket; the socket is closed, so nobody comes after.
    pub fn accept(socket: OwnedFd) -> Result<Self> {
        loop {
            match rustix::net::accept_with(&socket, SocketFlags::CLOEXEC) {
                Ok(connection) => return Ok(Self(connection)),
                Err(rustix::io::Errno::INTR | rustix::io::Errno::CONNABORTED) => {}
                Err(errno) => return Err(errno).at(Step::Stdio, "start socket"),
            }
        }
    }

    pub fn send_ready(&self, who: &Resolved, warnings: Vec<String>, master: Option<BorrowedFd<'_>>) {
        let ready =
            Ready { uid: who.uid, gid: who.gid, groups: who.groups.clone(), warnings, ..Ready::default() };
        self.send(Outcome::Ready(ready), master);
    }

    /// A helper's word, with what it has made.
    pub fn hand_over(&self, ready: Ready, made: BorrowedFd<'_>) {
        self.send(Outcome::Ready(ready), Some(made));
    }

    pub fn send_failure(&self, failure: Failure) {
        self.send(Outcome::Failure(failure), None);
    }

    fn send(&self, outcome: Outcome, fd: Option<BorrowedFd<'_>>) {
        let bytes = Birth { outcome: Some(outcome) }.encode_to_vec();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let fds = fd.as_slice();
        if !fds.is_empty() {
            ancillary.push(SendAncillaryMessage::ScmRights(fds));
        }
        // A parent that is gone has killed us already; there is nobody else to tell.
        sendmsg(&self.0, &[IoSlice::new(&bytes)], &mut ancillary, SendFlags::NOSIGNAL).ok();
    }

    /// Waits for what the child has to say.
    pub fn receive(&self) -> Result<Message_> {
        let mut bytes = [0u8; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let length = loop {
            match recvmsg(
                &self.0,
                &mut [IoSliceMut::new(&mut bytes)],
                &mut ancillary,
                RecvFlags::CMSG_CLOEXEC,
            ) {
                Ok(message) => break message.bytes,
                Err(rustix::io::Errno::INTR) => {}
                // It died with our gate byte unread; told once, before the message that may still be there.
                Err(rustix::io::Errno::CONNRESET) => {}
                Err(errno) => return Err(fail(Step::Stdio, "child", errno.raw_os_error(), "")),
            }
        };
        if length == 0 {
            return Ok(Message_::Closed);
        }
        let fd = ancillary
            .drain()
            .filter_map(|message| match message {
                RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
                _ => None,
            })
            .next();
        match Birth::decode(&bytes[..length]).ok().and_then(|birth| birth.outcome) {
            Some(Outcome::Ready(ready)) => Ok(Message_::Ready(ready, fd)),
            Some(Outcome::Failure(failure)) => Ok(Message_::Failure(failure)),
            Some(Outcome::Unsupported(_)) | None => {
                Err(fail(Step::Stdio, "child", 0, "it sent what is no message"))
            }
        }
    }

    /// Lets the child go on.
    pub fn open_gate(&self) -> Result<()> {
        match rustix::net::send(&self.0, b"go", SendFlags::NOSIGNAL) {
            // Gone already: what it said last, and why, is read next.
            Ok(_) | Err(rustix::io::Errno::PIPE | rustix::io::Errno::CONNRESET) => Ok(()),
            Err(errno) => Err(errno).at(Step::Exec, "gate"),
        }
    }

    /// Blocks until the gate opens; false when the parent is gone.
    pub fn wait_for_gate(&self) -> bool {
        let mut byte = [0u8; 8];
        loop {
            match rustix::net::recv(&self.0, &mut byte[..], RecvFlags::empty()) {
                Ok((_, length)) => return length > 0,
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return false,
            }
        }
    }
}
