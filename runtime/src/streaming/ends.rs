//! The daemon's end of a pipe or a terminal on the event loop.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use rustix::{
    io::Errno,
    pipe::{PipeFlags, pipe_with},
};
use tokio::io::unix::AsyncFd;

use crate::{Error, Result};

/// Read at once, and so the largest piece of output in one message.
pub const PIECE_BYTES: usize = 32 * 1024;

/// After the end of the process so much is still taken from a terminal or pipe that somebody else keeps full.
const LAST_BYTES: usize = 1024 * 1024;

#[derive(Debug)]
pub struct End(AsyncFd<OwnedFd>);

/// A pipe to read from, and the end that somebody writes to.
pub fn outgoing() -> Result<(End, OwnedFd)> {
    let (read, write) = pipe()?;
    Ok((End::new(read)?, write))
}

/// A pipe to write to, and the end that somebody reads from.
pub fn incoming() -> Result<(End, OwnedFd)> {
    let (read, write) = pipe()?;
    Ok((End::new(write)?, read))
}

fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    pipe_with(PipeFlags::CLOEXEC).map_err(|errno| Error::io("make pipe", "for a stream", errno))
}

impl End {
    pub fn new(fd: OwnedFd) -> Result<Self> {
        let failed = |error| Error::io("watch", "a stream's end", error);
        // Only ours: each end of a pipe is an open file of its own.
        rustix::io::ioctl_fionbio(&fd, true).map_err(|errno| failed(errno.into()))?;
        register(fd).map(Self).map_err(failed)
    }

    /// Reads what is there, waiting for it; empty at the end. Cancel-safe.
    pub async fn read(&self) -> Result<Vec<u8>> {
        let mut piece = vec![0; PIECE_BYTES];
        let failed = |error| Error::io("read", "a stream", error);
        loop {
            let mut ready = self.0.readable().await.map_err(failed)?;
            match ready.try_io(|end| read(end.get_ref(), &mut piece)) {
                Ok(taken) => {
                    piece.truncate(taken.map_err(failed)?);
                    return Ok(piece);
                }
                Err(_would_block) => {}
            }
        }
    }

    /// Reads once more after the writer's end: what is there, waiting at most so long for each piece. `None`: no more.
    pub async fn rest(&self, left: &mut Left) -> Option<Vec<u8>> {
        if left.bytes == 0 {
            return None;
        }
        let mut piece = vec![0; PIECE_BYTES];
        // Asks the kernel first, not the event loop, which may not have seen the last bytes yet.
        let mut taken = read(self.0.get_ref(), &mut piece);
        if matches!(&taken, Err(error) if error.kind() == io::ErrorKind::WouldBlock) {
            taken = match tokio::time::timeout(left.patience, self.read()).await {
                Ok(Ok(late)) => {
                    piece = late;
                    Ok(piece.len())
                }
                // Nothing came, or it is unreadable: what was sent is what there is.
                Ok(Err(_)) | Err(_) => return None,
            };
        }
        let taken = taken.ok().filter(|taken| *taken > 0)?;
        piece.truncate(taken);
        left.bytes = left.bytes.saturating_sub(taken);
        Some(piece)
    }

    /// Writes all of it, at the reader's pace.
    pub async fn write(&self, mut bytes: &[u8]) -> Result<()> {
        let failed = |error| Error::io("write", "a stream", error);
        while !bytes.is_empty() {
            let mut ready = self.0.writable().await.map_err(failed)?;
            let written = ready.try_io(|end| Ok(rustix::io::write(end.get_ref(), bytes)?));
            match written {
                Ok(Ok(written)) => bytes = &bytes[written..],
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Err(failed(error)),
                Err(_would_block) => {}
            }
        }
        Ok(())
    }
}

/// How much is still waited for and taken once the process has ended.
#[derive(Debug)]
pub struct Left {
    bytes: usize,
    patience: Duration,
}

impl Left {
    pub fn patient(patience: Duration) -> Self {
        Self { bytes: LAST_BYTES, patience }
    }
}

/// Puts an fd, non-blocking already, on the event loop.
#[expect(
    deprecated,
    reason = "the new one is unsafe for types that may swap their fd; an OwnedFd never does"
)]
pub fn register(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::new(fd)
}

fn read(fd: impl AsFd, piece: &mut [u8]) -> io::Result<usize> {
    loop {
        match rustix::io::read(&fd, &mut *piece) {
            Err(Errno::INTR) => {}
            // A terminal whose other side nobody has open any more.
            Err(Errno::IO) => return Ok(0),
            other => return Ok(other?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_written_is_read_at_the_readers_pace_to_the_end() {
        let (read, write) = pipe().unwrap();
        let (reader, writer) = (End::new(read).unwrap(), End::new(write).unwrap());
        let sent = vec![7; 1024 * 1024];
        let expected = sent.len();
        let sending = tokio::spawn(async move { writer.write(&sent).await });
        let mut got = 0;
        loop {
            let piece = reader.read().await.unwrap();
            if piece.is_empty() {
                break;
            }
            got += piece.len();
        }
        sending.await.unwrap().unwrap();
        assert_eq!(got, expected);
    }

    #[tokio::test]
    async fn the_last_words_are_taken_though_somebody_holds_the_pipe_open() {
        let (reader, end) = outgoing().unwrap();
        rustix::io::write(&end, b"last words").unwrap();
        let mut left = Left::patient(Duration::ZERO);
        assert_eq!(reader.rest(&mut left).await.unwrap(), b"last words");
        assert_eq!(reader.rest(&mut left).await, None);
        drop(end);
    }

    #[tokio::test]
    async fn a_writer_learns_that_nobody_reads() {
        let (writer, end) = incoming().unwrap();
        drop(end);
        assert!(writer.write(b"x").await.unwrap_err().chain().contains("Broken pipe"));
    }
}
