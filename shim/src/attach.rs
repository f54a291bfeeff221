//! Those attached to a container's streams: what it writes is copied to them, what they send becomes its input.
//!
//! A slow one holds the stream back, as a terminal would; one that takes nothing for five seconds is let go.

use std::{os::fd::OwnedFd, time::Duration};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};

use crate::clock;

/// What may wait for one that is slow, bytes.
const PENDING_BYTES: usize = 64 * 1024;
const PATIENCE: Duration = Duration::from_secs(5);

/// A far end that gets output.
#[derive(Debug)]
pub struct Sink {
    pub fd: OwnedFd,
    pending: Vec<u8>,
    progress: Duration,
}

impl Sink {
    pub fn new(fd: OwnedFd) -> rustix::io::Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        Ok(Self { fd, pending: Vec::new(), progress: clock::monotonic() })
    }

    /// Takes output. False: the far end is gone or hopeless.
    pub fn take(&mut self, bytes: &[u8]) -> bool {
        if self.pending.is_empty() {
            self.progress = clock::monotonic();
        }
        self.pending.extend_from_slice(bytes);
        self.flush()
    }

    /// Writes what waits. False: the far end is gone, or has taken nothing for too long.
    pub fn flush(&mut self) -> bool {
        while !self.pending.is_empty() {
            match rustix::io::write(&self.fd, &self.pending) {
                Ok(written) => {
                    self.pending.drain(..written);
                    self.progress = clock::monotonic();
                }
                Err(Errno::AGAIN) => return clock::monotonic() < self.gives_up_at(),
                Err(Errno::INTR) => {}
                Err(_) => return false,
            }
        }
        self.pending = Vec::new();
        true
    }

    /// Whether the far end has gone, though nothing waits for it. poll(2) says so at each call until it is let go.
    pub fn is_gone(&self) -> bool {
        let mut fds = [PollFd::new(&self.fd, PollFlags::empty())];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut fds, Some(&now)).is_ok_and(|ready| ready > 0)
    }

    /// Whether the stream has to wait for it.
    pub fn is_full(&self) -> bool {
        self.pending.len() >= PENDING_BYTES
    }

    pub fn is_waiting(&self) -> bool {
        !self.pending.is_empty()
    }

    pub fn gives_up_at(&self) -> Duration {
        self.progress + PATIENCE
    }
}

/// A far end that sends input.
#[derive(Debug)]
pub struct Input {
    pub fd: OwnedFd,
}

impl Input {
    pub fn new(fd: OwnedFd) -> rustix::io::Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        Ok(Self { fd })
    }
}
