//! ExecSync: run, capture at most so much, answer when the process has ended.
//!
//! The process has the pipes' write ends itself, so all that it wrote is in them when its exit is known: what is
//! there then is read, and nobody waits for a grandchild that keeps an end open.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use berth_cri::v1 as cri;
use rustix::pipe::{PipeFlags, fcntl_getpipe_size, pipe_with};
use tokio::net::unix::pipe::Receiver;

use super::check;
use crate::{
    Error, Kind, Result,
    api::{Door, find, serve::MAX_MESSAGE_BYTES},
    pod::{Ends, Exec, exit_of},
    streaming::abandoned::KillOnDrop,
};

/// Of each stream; the rest is read and dropped (CVE-2022-1708, CVE-2022-31030).
const CAPTURE_BYTES: usize = 16 * 1024 * 1024;

/// What of a message is not output.
const ENVELOPE_BYTES: usize = 1024;

impl Door {
    pub(super) async fn exec_and_wait(&self, request: cri::ExecSyncRequest) -> Result<cri::ExecSyncResponse> {
        const OP: &str = "exec in container";
        let container = find::container(&self.pods, &request.container_id)?.id;
        if request.cmd.is_empty() {
            return Err(Error::invalid(OP, "cmd", "the command is empty"));
        }
        let shown = request.cmd.join(" ");
        // Zero means for ever.
        let seconds = check::seconds(OP, "timeout", request.timeout)?;
        let timeout = (seconds > 0).then(|| Duration::from_secs(seconds));
        let (mut stdout, stdout_end) = capture()?;
        let (mut stderr, stderr_end) = capture()?;
        let ends = Ends { stdin: None, stdout: Some(stdout_end), stderr: Some(stderr_end) };
        let exec = Exec { args: request.cmd, ..Exec::default() };
        let handle = self.pods.exec(&container, exec, ends, timeout).await?;
        let abandoned = KillOnDrop::new(&self.pods, &container, handle.exec_id);
        let exit = {
            let mut exit = handle.exit;
            loop {
                tokio::select! {
                    biased;
                    exit = &mut exit => break exit,
                    read = stdout.read(), if stdout.open => read?,
                    read = stderr.read(), if stderr.open => read?,
                }
            }
        };
        abandoned.done();
        let exit = exit_of(exit)?;
        if exit.timed_out {
            return Err(Error::new(Kind::Deadline, OP, shown).because(crate::error::Cause(format!(
                "it ran longer than {} s and was killed",
                request.timeout
            ))));
        }
        let (stdout, stderr) = fit(stdout.finish(), stderr.finish(), MAX_MESSAGE_BYTES - ENVELOPE_BYTES);
        Ok(cri::ExecSyncResponse { stdout: stdout.into(), stderr: stderr.into(), exit_code: exit.exit_code })
    }
}

/// One stream on its way in.
struct Capture {
    pipe: Receiver,
    kept: Vec<u8>,
    open: bool,
    pipe_bytes: usize,
}

/// A pipe: its reading half, and the end that the process gets.
fn capture() -> Result<(Capture, OwnedFd)> {
    let failed = |error: io::Error| Error::io("make pipe", "for exec", error);
    let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC).map_err(|errno| failed(errno.into()))?;
    let pipe_bytes = fcntl_getpipe_size(ours.as_fd()).map_err(|errno| failed(errno.into()))?;
    // Only our end: the flag is the open file's, and each end is one of its own.
    rustix::io::ioctl_fionbio(&ours, true).map_err(|errno| failed(errno.into()))?;
    let pipe = Receiver::from_owned_fd(ours).map_err(failed)?;
    Ok((Capture { pipe, kept: Vec::new(), open: true, pipe_bytes }, theirs))
}

impl Capture {
    /// Reads once. Cancel-safe: what was read is kept.
    async fn read(&mut self) -> Result<()> {
        let failed = |error| Error::io("read", "output of exec", error);
        self.pipe.readable().await.map_err(failed)?;
        let mut buffer = [0; 64 * 1024];
        match self.pipe.try_read(&mut buffer) {
            Ok(taken) => self.keep(&buffer[..taken]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(failed(error)),
        }
        Ok(())
    }

    /// Takes what is in the pipe now, at most what fits into one: the process has ended, more is not its own.
    fn finish(mut self) -> Vec<u8> {
        let mut left = self.pipe_bytes;
        let mut buffer = [0; 64 * 1024];
        while self.open && left > 0 {
            // Asks the kernel, not the event loop, which may not have seen the last bytes yet.
            match rustix::io::read(&self.pipe, &mut buffer) {
                Ok(taken) => {
                    self.keep(&buffer[..taken]);
                    left = left.saturating_sub(taken);
                }
                Err(rustix::io::Errno::INTR) => {}
                // Nothing there, or unreadable: what we have is what there is.
                Err(_) => break,
            }
        }
        self.kept
    }

    fn keep(&mut self, taken: &[u8]) {
        self.open = !taken.is_empty();
        let room = CAPTURE_BYTES.saturating_sub(self.kept.len());
        self.kept.extend_from_slice(&taken[..taken.len().min(room)]);
    }
}

/// Cuts both so that together they fit: a client refuses a larger message whole.
fn fit(mut stdout: Vec<u8>, mut stderr: Vec<u8>, limit: usize) -> (Vec<u8>, Vec<u8>) {
    let half = limit / 2;
    if stdout.len() + stderr.len() > limit {
        let stderr_room = limit - stdout.len().min(half).max(limit.saturating_sub(stderr.len()));
        stderr.truncate(stderr_room);
        stdout.truncate(limit - stderr.len());
    }
    (stdout, stderr)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_streams_share_what_a_message_may_hold() {
        let rows = [
            ((3, 4), (3, 4)),
            ((10, 0), (10, 0)),
            ((20, 0), (10, 0)),
            ((0, 20), (0, 10)),
            ((20, 20), (5, 5)),
            ((20, 2), (8, 2)),
            ((2, 20), (2, 8)),
            ((6, 5), (5, 5)),
        ];
        for ((out, err), expected) in rows {
            let (stdout, stderr) = fit(vec![1; out], vec![2; err], 10);
            assert_eq!((stdout.len(), stderr.len()), expected, "{out} {err}");
        }
    }

    #[tokio::test]
    async fn a_stream_is_kept_up_to_its_cap_and_read_to_its_end() {
        let (mut stream, end) = capture().unwrap();
        let writer = std::thread::spawn(move || {
            let mut end = std::fs::File::from(end);
            let piece = vec![b'x'; 1024 * 1024];
            for _ in 0..18 {
                io::Write::write_all(&mut end, &piece).unwrap();
            }
        });
        while stream.open {
            stream.read().await.unwrap();
        }
        writer.join().unwrap();
        assert_eq!(stream.finish().len(), CAPTURE_BYTES);
    }

    #[tokio::test]
    async fn what_is_in_the_pipe_at_the_end_is_taken_though_somebody_holds_it_open() {
        let (stream, end) = capture().unwrap();
        let held = end.try_clone().unwrap();
        io::Write::write_all(&mut std::fs::File::from(end), b"last words").unwrap();
        assert_eq!(stream.finish(), b"last words");
        drop(held);
    }
}
