//! The shim's socket: `s` in the plan's directory, SOCK_SEQPACKET, several clients, one message per packet, descriptors
//! beside it. Nothing here blocks; a client that doesn't read is let go.

use std::{
    collections::VecDeque,
    fs, io,
    io::{IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use berth_launch::{
    PACKET_BYTES, SOCKET,
    v1::{Event, FromShim, Reply, Request, from_shim::Message as Outgoing},
};
use prost::Message;
use rustix::{
    io::Errno,
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, listen,
        recvmsg, sendmsg, socket_with,
    },
};

/// Messages that wait for a slow client; the next one ends its connection.
const QUEUE: usize = 256;
/// The most descriptors beside one request.
const FDS: usize = 3;
/// The most beside one of ours: a container's four ends, its init, and two files with output on its way into the log.
const SENT_FDS: usize = 7;

/// Binds the socket in the working directory, over one that a dead shim left.
pub fn bind_here() -> io::Result<OwnedFd> {
    match fs::remove_file(SOCKET) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    // Nobody but root: bind(2) gives the file the mode 0777 less the umask.
    let old = rustix::process::umask(rustix::fs::Mode::from(0o177));
    let bound = bind(&socket, &SocketAddrUnix::new(SOCKET)?);
    rustix::process::umask(old);
    bound?;
    listen(&socket, 16)?;
    Ok(socket)
}

/// Takes a waiting connection, if there is one.
pub fn accept(listener: &OwnedFd) -> Option<Client> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = accept_with(listener, flags).ok()?;
    Some(Client { socket, events: false, gone: false, queue: VecDeque::new() })
}

/// One connection.
#[derive(Debug)]
pub struct Client {
    pub socket: OwnedFd,
    /// It said Hello: it gets events.
    pub events: bool,
    /// To be dropped at the end of the round.
    pub gone: bool,
    queue: VecDeque<(Vec<u8>, Vec<OwnedFd>)>,
}

/// What came from a client.
#[derive(Debug)]
pub enum Incoming {
    Request(Box<Request>, Vec<OwnedFd>),
    /// Nothing for now.
    Nothing,
    /// It has gone, or speaks another language.
    Gone,
}

impl Client {
    pub fn receive(&mut self) -> Incoming {
        // Its length first: a buffer for the longest would stay resident.
        let peek = RecvFlags::PEEK | RecvFlags::TRUNC | RecvFlags::DONTWAIT;
        let mut buffer = match rustix::net::recv(&self.socket, &mut [0u8; 1][..], peek) {
            Ok((_, 0)) => return Incoming::Gone,
            Ok((_, length)) => vec![0; length.min(PACKET_BYTES)],
            Err(Errno::INTR | Errno::AGAIN) => return Incoming::Nothing,
            Err(_) => return Incoming::Gone,
        };
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        let length = match recvmsg(&self.socket, &mut [IoSliceMut::new(&mut buffer)], &mut ancillary, flags) {
            Ok(message) => message.bytes,
            Err(Errno::INTR | Errno::AGAIN) => return Incoming::Nothing,
            Err(_) => return Incoming::Gone,
        };
        if length == 0 {
            return Incoming::Gone;
        }
        let fds = ancillary
            .drain()
            .flat_map(|message| match message {
                RecvAncillaryMessage::ScmRights(fds) => fds.collect::<Vec<_>>(),
                _ => Vec::new(),
            })
            .collect();
        match Request::decode(&buffer[..length]) {
            Ok(request) => Incoming::Request(Box::new(request), fds),
            Err(_) => Incoming::Gone,
        }
    }

    /// Sends a reply. False: the client is beyond help.
    pub fn reply(&mut self, reply: Reply, fds: Vec<OwnedFd>) -> bool {
        self.send(Outgoing::Reply(reply), fds)
    }

    pub fn event(&mut self, event: &Event, fds: Vec<OwnedFd>) -> bool {
        !self.events || self.send(Outgoing::Event(event.clone()), fds)
    }

    pub fn has_queue(&self) -> bool {
        !self.queue.is_empty()
    }

    fn send(&mut self, message: Outgoing, fds: Vec<OwnedFd>) -> bool {
        if self.queue.len() >= QUEUE {
            return false;
        }
        let bytes = FromShim { message: Some(message) }.encode_to_vec();
        debug_assert!(bytes.len() <= PACKET_BYTES);
        self.queue.push_back((bytes, fds));
        self.flush()
    }

    /// Sends what waits, as far as the socket takes it. False: the client has gone.
    pub fn flush(&mut self) -> bool {
        while let Some((bytes, fds)) = self.queue.front() {
            match send(&self.socket, bytes, fds) {
                Ok(()) => {
                    self.queue.pop_front();
                }
                Err(Errno::AGAIN) => return true,
                Err(Errno::INTR) => {}
                Err(_) => return false,
            }
        }
        true
    }
}

fn send(socket: &OwnedFd, bytes: &[u8], fds: &[OwnedFd]) -> rustix::io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SENT_FDS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
    if !fds.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    sendmsg(socket, &[IoSlice::new(bytes)], &mut ancillary, flags).map(|_| ())
}
