//! `berth-shim dial NETNS PORT`: connects inside a network namespace and hands the socket to the one who holds the other
//! end of our standard input. Its message is four bytes: 0 with the socket beside it, or an errno.

use std::{
    io::{self, IoSlice},
    mem::MaybeUninit,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    os::fd::AsFd,
};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

use crate::kernel::clone::setns;

/// Connects and answers.
///
/// # Errors
/// The answer could not be sent.
pub fn dial(netns: &str, port: u16) -> io::Result<()> {
    answer(enter(netns).and_then(|()| connect(port)))
}

/// Hands a descriptor over, or says why there is none.
///
/// # Errors
/// The answer could not be sent.
pub fn answer(brought: io::Result<impl AsFd>) -> io::Result<()> {
    let errno = match &brought {
        Ok(_) => 0,
        Err(error) => error.raw_os_error().unwrap_or(libc::EIO),
    };
    let brought = brought.ok();
    let fds: Vec<_> = brought.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    }
    let message = errno.to_ne_bytes();
    rustix::net::sendmsg(io::stdin(), &[IoSlice::new(&message)], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

fn enter(netns: &str) -> io::Result<()> {
    setns(std::fs::File::open(netns)?.as_fd(), libc::CLONE_NEWNET)
}

/// At 127.0.0.1, else at ::1; the first failure is the one to tell.
fn connect(port: u16) -> io::Result<TcpStream> {
    let at = |ip| TcpStream::connect(SocketAddr::new(ip, port));
    at(Ipv4Addr::LOCALHOST.into()).or_else(|first| at(Ipv6Addr::LOCALHOST.into()).map_err(|_| first))
}
