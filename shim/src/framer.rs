//! One output's bytes as lines: cut where they end, or after 16 KiB that something follows.

use std::{io, os::fd::OwnedFd};

use rustix::io::Errno;

use crate::{
    clock, kernel,
    log::{Log, Source},
    stage::{Place, Stage},
};

/// The longest content of one record, bytes; what the kubelet's reader and the peers use.
pub const RECORD_BYTES: usize = 16 * 1024;

/// One stream's incomplete line.
#[derive(Debug)]
pub struct Framer {
    source: Source,
    pending: Vec<u8>,
    /// Where what is not in the log yet outlives us.
    pub stage: Option<Stage>,
    /// That is elsewhere than whoever holds it in reserve believes.
    pub moved: bool,
}

impl Framer {
    pub fn new(source: Source) -> Self {
        Self { source, pending: Vec::new(), stage: None, moved: false }
    }

    pub fn stage_name(&self) -> &'static str {
        self.source.stage_name()
    }

    /// Takes bytes, gives complete records.
    pub fn feed(&mut self, mut bytes: &[u8], at: i64, log: &mut Log) {
        while let Some(newline) = kernel::memory::find(b'\n', bytes) {
            let (line, rest) = bytes.split_at(newline);
            bytes = &rest[1..];
            if self.pending.is_empty() && line.len() <= RECORD_BYTES {
                log.record(self.source, b'F', line, at, self.stage.as_mut());
                continue;
            }
            self.overlong(line, at, log);
            log.record(self.source, b'F', &self.pending, at, self.stage.as_mut());
            self.pending.clear();
        }
        self.overlong(bytes, at, log);
        if self.pending.capacity() > 2048 && self.pending.is_empty() {
            self.pending = Vec::new();
        }
    }

    /// The stream has ended: what has no newline is a partial line, and stays one.
    pub fn finish(&mut self, at: i64, log: &mut Log) {
        if !self.pending.is_empty() {
            log.record(self.source, b'P', &self.pending, at, self.stage.as_mut());
            self.pending = Vec::new();
        }
        log.cut(self.source);
    }

    /// Takes what a pipe has, at most as much as the buffer holds.
    pub fn take(&mut self, pipe: &OwnedFd, buffer: &mut [u8]) -> rustix::io::Result<usize> {
        match self.stage.as_mut().map(|stage| stage.take(pipe, buffer)) {
            Some(Err(errno @ (Errno::AGAIN | Errno::INTR))) => Err(errno),
            Some(Ok(length)) => Ok(length),
            Some(Err(errno)) => {
                crate::complain!("berth-shim: no room for output on its way into the log: {errno}");
                self.stage = self.stage.take().and_then(|stage| stage.moved().ok());
                self.moved = true;
                match &mut self.stage {
                    Some(stage) => stage.take(pipe, buffer),
                    None => rustix::io::read(pipe, buffer),
                }
            }
            None => rustix::io::read(pipe, buffer),
        }
    }

    /// Goes on with what the shim before had taken, in `file`; the log is where that shim had left it.
    pub fn resume(&mut self, file: OwnedFd, place: Place, log: &mut Log) -> io::Result<()> {
        let (stage, rest, cut_at) = Stage::resume(file, place)?;
        if let Some(length) = cut_at {
            log.cut_at(length)?;
        }
        self.stage = Some(stage);
        self.feed(&rest, clock::now(), log);
        self.flush(log);
        Ok(())
    }

    /// Writes what is collected of it.
    pub fn flush(&mut self, log: &mut Log) {
        log.flush(self.stage.as_mut());
    }

    /// Appends, and gives away each full 16 KiB that something still follows.
    fn overlong(&mut self, mut bytes: &[u8], at: i64, log: &mut Log) {
        while self.pending.len() + bytes.len() > RECORD_BYTES {
            let (head, rest) = bytes.split_at(RECORD_BYTES - self.pending.len());
            self.pending.extend_from_slice(head);
            bytes = rest;
            log.record(self.source, b'P', &self.pending, at, self.stage.as_mut());
            self.pending.clear();
        }
        self.pending.extend_from_slice(bytes);
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use berth_launch::v1;

    use super::*;

    fn log(directory: &Path) -> Log {
        let path = directory.join("log").to_str().unwrap().to_owned();
        Log::open(&v1::Log { path, ..v1::Log::default() }).unwrap()
    }

    fn written(directory: &Path) -> String {
        std::fs::read_to_string(directory.join("log")).unwrap()
    }

    #[test]
    fn lines_are_whole_wherever_the_pipe_cuts_them() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = log(dir.path());
        let mut framer = Framer::new(Source::Stdout);
        for piece in ["a", "b\nc", "\n\nd"] {
            framer.feed(piece.as_bytes(), 0, &mut log);
        }
        framer.finish(0, &mut log);
        log.flush(None);
        let stamp = "1970-01-01T00:00:00.000000000Z stdout";
        let expected = format!("{stamp} F ab\n{stamp} F c\n{stamp} F \n{stamp} P d\n");
        assert_eq!(written(dir.path()), expected);
    }

    #[test]
    fn a_long_line_is_cut_into_partial_records_of_16_kib() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = log(dir.path());
        let mut framer = Framer::new(Source::Stderr);
        let long = vec![b'x'; 2 * RECORD_BYTES];
        framer.feed(&long, 0, &mut log);
        framer.feed(b"\n", 0, &mut log);
        framer.feed(&[&long[..RECORD_BYTES + 1], b"\n"].concat(), 0, &mut log);
        log.flush(None);
        let text = written(dir.path());
        let shape: Vec<_> =
            text.lines().map(|line| (line.split(' ').nth(2).unwrap(), line.len() - 40)).collect();
        let full = RECORD_BYTES - 1 + 1;
        assert_eq!(shape, [("P", full), ("F", full), ("P", full), ("F", 1)]);
    }
}
