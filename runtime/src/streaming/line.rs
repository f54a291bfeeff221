//! The TCP connection under a session: whether its other end has gone, and how long it has been silent.

use std::{
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::time::Instant;

use crate::{Error, Result};

/// Without a byte for so long a session is let go; kubelets have the same.
const IDLE: Duration = Duration::from_secs(4 * 60 * 60);

/// How often one who can't read further looks whether anybody is still there.
///
/// A client that died with unsent input leaves its end of the connection behind it, and we never come to read that. So
/// a heartbeat is sent, too: to bytes for nobody the client's kernel answers with a reset, which is seen at the next
/// look. It must need no answer: a Go client gives one only when it has sent what we don't read.
pub const LOOK: Duration = Duration::from_secs(1);

#[derive(Debug, Clone)]
pub struct Line {
    socket: Arc<OwnedFd>,
    began: Instant,
    last_ms: Arc<AtomicU64>,
}

impl Line {
    pub fn of(socket: impl AsFd) -> Result<Self> {
        let socket = socket.as_fd().try_clone_to_owned();
        let socket = socket.map_err(|error| Error::io("duplicate", "a connection's socket", error))?;
        Ok(Self { socket: Arc::new(socket), began: Instant::now(), last_ms: Arc::new(AtomicU64::new(0)) })
    }

    /// Whether the other end has gone, though what it sent last may still wait to be read.
    pub fn hung_up(&self) -> bool {
        let mut fds = [PollFd::new(&*self.socket, PollFlags::RDHUP)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        // An error, EINTR say, says nothing; the next look will.
        poll(&mut fds, Some(&now)).is_ok_and(|ready| ready > 0)
    }

    /// Something came or went.
    pub fn touch(&self) {
        let now = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_ms.store(now, Ordering::Relaxed);
    }

    fn until(&self) -> Instant {
        self.began + Duration::from_millis(self.last_ms.load(Ordering::Relaxed)) + IDLE
    }

    /// Resolves when nothing came or went for too long.
    pub async fn idle(&self) {
        loop {
            let until = self.until();
            if until <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(until).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_peer_that_left_is_noticed_though_its_last_words_are_unread() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let line = Line::of(&ours).unwrap();
        std::io::Write::write_all(&mut &theirs, b"last words").unwrap();
        assert!(!line.hung_up());
        drop(theirs);
        assert!(line.hung_up());
    }

    #[tokio::test]
    async fn what_comes_puts_the_end_off() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let mut line = Line::of(&ours).unwrap();
        line.began = Instant::now().checked_sub(IDLE / 2).unwrap();
        let before = line.until();
        line.touch();
        assert!(line.until() >= before + IDLE / 2);
        line.last_ms.store(0, Ordering::Relaxed);
        line.began = Instant::now().checked_sub(IDLE).unwrap();
        line.idle().await;
    }
}
