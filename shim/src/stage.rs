//! Output on its way into the log, where it outlives the shim: the kernel moves it from the pipe into a file in memory, and
//! it leaves that only once it is written. Where the state directory is in memory, as /run is, the file has a name there and
//! outlives `berthd` too; elsewhere, or once there is no room, it has none and `berthd` holds it. A shim that takes over finds there what is not in the
//! log yet, and whether the last write came to its end: no line is lost, and none stands twice.
//!
//! ```text
//! 0        64                  start             upto     size
//! | header | written before ... | being written | to come |
//! ```
//! The kernel moves the end of the file as it moves the bytes, so that the two can't differ. `splice(2)`

use std::{io, os::fd::OwnedFd};

use berth_launch::fault;
use rustix::{
    fs::{FallocateFlags, MemfdFlags, Mode, OFlags, fallocate, memfd_create, open},
    pipe::{SpliceFlags, splice},
};

const HEADER_BYTES: u64 = 64;
/// TMPFS_MAGIC of linux/magic.h
const TMPFS: i64 = 0x0102_1994;
/// What a calm stage keeps: a page.
const CALM_BYTES: u64 = 4096;
/// So much that is written is given back at once.
const HOLE_BYTES: u64 = 256 * 1024;

/// Where the log stood when the write began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    pub inode: u64,
    pub length: u64,
}

/// What is in the file's head: five numbers of eight bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Header {
    /// What lies before is in the log.
    start: u64,
    /// If it lies behind `start`: what lies before is being written, `bytes` long, at that place.
    upto: u64,
    inode: u64,
    length: u64,
    bytes: u64,
}

/// What a shim that takes over does first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Resume {
    start: u64,
    /// Of the log: what follows is part of a record that was not written whole.
    cut_log_at: Option<u64>,
}

#[derive(Debug)]
pub struct Stage {
    file: OwnedFd,
    /// The file's end.
    size: u64,
    start: u64,
    /// What lies before is in records that were made.
    recorded: u64,
    /// Where the hole ends that what was written left.
    hole: u64,
}

impl Stage {
    /// One of that name in the working directory, if that is in memory: a disk may hang, and holds up its own only.
    pub fn new(name: &str) -> rustix::io::Result<Self> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        if rustix::fs::statfs(".").is_ok_and(|system| system.f_type == TMPFS) {
            match open(name, flags, Mode::RUSR | Mode::WUSR) {
                Ok(file) => return Self::empty(file),
                Err(errno) => {
                    crate::complain!("berth-shim: make {name}: {errno}; without a name");
                }
            }
        }
        Self::nameless()
    }

    /// One that ends with its last holder.
    fn nameless() -> rustix::io::Result<Self> {
        Self::empty(memfd_create("berth-output", MemfdFlags::CLOEXEC)?)
    }

    fn empty(file: OwnedFd) -> rustix::io::Result<Self> {
        rustix::fs::ftruncate(&file, HEADER_BYTES)?;
        Ok(Self { file, size: HEADER_BYTES, start: HEADER_BYTES, recorded: HEADER_BYTES, hole: HEADER_BYTES })
    }

    /// What a shim has left of that name in the working directory.
    pub fn left(name: &str) -> Option<OwnedFd> {
        open(name, OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()).ok()
    }

    /// A nameless one with all of this that is not in the log, where this has a name: what has none needs no room of a
    /// file system.
    pub fn moved(self) -> io::Result<Self> {
        let moved = self.copy();
        self.give_up();
        moved
    }

    fn copy(&self) -> io::Result<Self> {
        if rustix::fs::fstat(&self.file)?.st_nlink == 0 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let mut rest = vec![0; usize::try_from(self.size - self.start).map_err(io::Error::other)?];
        read_whole(&self.file, &mut rest, self.start)?;
        let mut new = Self::nameless()?;
        rustix::io::pwrite(&new.file, &rest, HEADER_BYTES)?;
        new.size = HEADER_BYTES + rest.len() as u64;
        new.recorded = HEADER_BYTES + (self.recorded - self.start);
        Ok(new)
    }

    /// The stage of a shim that was killed, what it holds that is not in the log, and where the log is to be cut before
    /// that is written.
    pub fn resume(file: OwnedFd, log: Place) -> rustix::io::Result<(Self, Vec<u8>, Option<u64>)> {
        let size = rustix::fs::fstat(&file)?.st_size.unsigned_abs();
        let mut bytes = [0u8; HEADER_BYTES as usize];
        read_whole(&file, &mut bytes, 0)?;
        let resume = Header::of(&bytes).resume(size, log);
        let mut rest = vec![0; usize::try_from(size - resume.start).unwrap_or(0)];
        read_whole(&file, &mut rest, resume.start)?;
        let stage = Self { file, size, start: resume.start, recorded: resume.start, hole: HEADER_BYTES };
        stage.write(Header { start: resume.start, ..Header::default() })?;
        Ok((stage, rest, resume.cut_log_at))
    }

    /// For whoever holds it in reserve.
    pub fn file(&self) -> &OwnedFd {
        &self.file
    }

    /// Takes what is in the pipe, at most as much as the buffer holds, and reads it into that; 0 is the pipe's end.
    ///
    /// # Errors
    /// Whatever `splice(2)` says, then nothing was taken; or another, then what was taken is in the file.
    pub fn take(&mut self, pipe: &OwnedFd, buffer: &mut [u8]) -> rustix::io::Result<usize> {
        let mut end = self.size;
        let length = splice(pipe, None, &self.file, Some(&mut end), buffer.len(), SpliceFlags::NONBLOCK)?;
        fault::point("output.taken");
        read_whole(&self.file, &mut buffer[..length], self.size)?;
        self.size += length as u64;
        Ok(length)
    }

    /// So many bytes more have become records.
    pub fn recorded(&mut self, bytes: usize) {
        self.recorded += bytes as u64;
    }

    /// The records are about to be written, so many bytes.
    pub fn begin_write(&self, log: Place, bytes: usize) -> rustix::io::Result<()> {
        let Place { inode, length } = log;
        self.write(Header { start: self.start, upto: self.recorded, inode, length, bytes: bytes as u64 })?;
        fault::point("output.begun");
        Ok(())
    }

    /// They are in the log, or are counted as lost.
    pub fn written(&mut self) -> rustix::io::Result<()> {
        if self.start == self.recorded {
            return Ok(());
        }
        fault::point("output.written");
        self.start = self.recorded;
        self.write(Header { start: self.start, ..Header::default() })?;
        if self.start == self.size && self.size > CALM_BYTES {
            rustix::fs::ftruncate(&self.file, HEADER_BYTES)?;
            fault::point("output.emptied");
            (self.size, self.start, self.recorded, self.hole) =
                (HEADER_BYTES, HEADER_BYTES, HEADER_BYTES, HEADER_BYTES);
            self.write(Header { start: HEADER_BYTES, ..Header::default() })?;
        } else if self.start - self.hole >= HOLE_BYTES {
            // Of the header's page only whole others after it.
            let (from, to) = (self.hole.next_multiple_of(CALM_BYTES), self.start / CALM_BYTES * CALM_BYTES);
            fallocate(&self.file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, from, to - from)?;
            self.hole = to;
        }
        Ok(())
    }

    /// Whoever takes over is to take nothing from here.
    pub fn give_up(self) {
        // The page is there: what could fail is beyond help.
        self.write(Header { start: u64::MAX, ..Header::default() }).ok();
    }

    fn write(&self, header: Header) -> rustix::io::Result<()> {
        // So few bytes of one page are written whole.
        rustix::io::pwrite(&self.file, &header.bytes(), 0).map(drop)
    }
}

fn read_whole(file: &OwnedFd, bytes: &mut [u8], from: u64) -> rustix::io::Result<()> {
    let mut read = 0;
    while read < bytes.len() {
        match rustix::io::pread(file, &mut bytes[read..], from + read as u64)? {
            0 => return Err(rustix::io::Errno::IO),
            more => read += more,
        }
    }
    Ok(())
}

impl Header {
    fn of(bytes: &[u8; HEADER_BYTES as usize]) -> Self {
        let mut numbers = bytes.as_chunks::<8>().0.iter().map(|number| u64::from_ne_bytes(*number));
        let mut next = || numbers.next().unwrap_or_default();
        Self { start: next(), upto: next(), inode: next(), length: next(), bytes: next() }
    }

    fn bytes(self) -> [u8; 40] {
        let mut bytes = [0; 40];
        let numbers = [self.start, self.upto, self.inode, self.length, self.bytes];
        for (place, number) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(numbers) {
            *place = number.to_ne_bytes();
        }
        bytes
    }

    /// Pure.
    fn resume(self, size: u64, log: Place) -> Resume {
        // Nothing was written yet, or the file was just emptied.
        let start = self.start.clamp(HEADER_BYTES.min(size), size);
        let again = Resume { start, cut_log_at: None };
        // Of another file nothing can be told: rather twice than never.
        if self.upto <= start || self.upto > size || self.inode != log.inode {
            return again;
        }
        match log.length.checked_sub(self.length) {
            Some(bytes) if bytes >= self.bytes => Resume { start: self.upto, cut_log_at: None },
            Some(0) | None => again,
            Some(_) => Resume { start, cut_log_at: Some(self.length) },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write, path::Path};

    use berth_launch::v1;
    use proptest::prelude::*;
    use rustix::pipe::{PipeFlags, pipe_with};

    use super::*;
    use crate::{
        framer::Framer,
        log::{Log, Source},
    };

    fn log(directory: &Path) -> Log {
        let path = directory.join("log").to_str().unwrap().to_owned();
        Log::open(&v1::Log { path, ..v1::Log::default() }).unwrap()
    }

    /// The contents of the log's records, `P` without an end.
    fn contents(directory: &Path) -> Vec<u8> {
        let text = std::fs::read(directory.join("log")).unwrap();
        let mut all = Vec::new();
        for record in text.split_inclusive(|byte| *byte == b'\n') {
            assert!(record.ends_with(b"\n"), "a record was not written whole");
            let whole = record[38] == b'F';
            all.extend_from_slice(&record[40..record.len() - usize::from(!whole)]);
        }
        all
    }

    /// Where a shim is killed while it brings output into the log.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Death {
        Taken,
        Begun,
        /// So many bytes of the write were made.
        Writing(usize),
        Written,
        Never,
    }

    /// A shim's framer takes what is in the pipe and dies; gives what outlives it.
    fn live(framer: Framer, mut log: Log, directory: &Path, pipe: &OwnedFd, death: Death) -> OwnedFd {
        let mut framer = framer;
        let mut buffer = [0; 3000];
        let length = framer.take(pipe, &mut buffer).unwrap();
        let reserve = framer.stage.as_ref().unwrap().file().try_clone().unwrap();
        if death == Death::Taken {
            return reserve;
        }
        if matches!(death, Death::Written | Death::Never) {
            framer.feed(&buffer[..length], 0, &mut log);
            framer.flush(&mut log);
            return reserve;
        }
        // What a whole life would have written, and how far this one came.
        let place = log.place();
        let stage = framer.stage.take().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        let mut shadow = self::log(elsewhere.path());
        framer.feed(&buffer[..length], 0, &mut shadow);
        shadow.flush(None);
        let records = std::fs::read(elsewhere.path().join("log")).unwrap();
        let ended = contents(elsewhere.path()).len();
        if records.is_empty() {
            return reserve;
        }
        let stage = Stage { recorded: stage.start + ended as u64, ..stage };
        stage.begin_write(place, records.len()).unwrap();
        if let Death::Writing(bytes) = death {
            let path = directory.join("log");
            let mut file = std::fs::File::options().append(true).open(path).unwrap();
            file.write_all(&records[..bytes.min(records.len())]).unwrap();
        }
        reserve
    }

    fn deaths() -> impl Strategy<Value = Death> {
        prop_oneof![
            Just(Death::Taken),
            Just(Death::Begun),
            (0usize..4000).prop_map(Death::Writing),
            Just(Death::Written),
            Just(Death::Never),
        ]
    }

    proptest! {
        #[test]
        fn what_a_killed_shim_had_taken_comes_into_the_log_once(
            lives in prop::collection::vec((prop::collection::vec(0usize..400, 0..12), deaths()), 1..8),
        ) {
            let dir = tempfile::tempdir().unwrap();
            let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).unwrap();
            let mut framer = Framer::new(Source::Stdout);
            framer.stage = Some(Stage::nameless().unwrap());
            let mut log = log(dir.path());
            let mut sent = Vec::new();
            for (n, (lines, death)) in lives.iter().enumerate() {
                for length in lines {
                    // The last of a life has no end yet.
                    sent.extend(std::iter::repeat_n(b'a' + (n % 26) as u8, *length));
                    sent.push(b'\n');
                }
                let from = sent.len() - lines.iter().map(|length| length + 1).sum::<usize>();
                rustix::io::write(&write, &sent[from..]).unwrap();
                rustix::io::write(&write, b"-").unwrap();
                sent.push(b'-');
                let reserve = live(framer, log, dir.path(), &read, *death);
                log = self::log(dir.path());
                framer = Framer::new(Source::Stdout);
                let place = log.place();
                framer.resume(reserve, place, &mut log).unwrap();
            }
            drop(write);
            let mut buffer = [0; 3000];
            loop {
                let length = framer.take(&read, &mut buffer).unwrap();
                if length == 0 {
                    break;
                }
                framer.feed(&buffer[..length], 0, &mut log);
            }
            framer.finish(0, &mut log);
            framer.flush(&mut log);
            prop_assert_eq!(String::from_utf8(contents(dir.path())), String::from_utf8(sent));
        }
    }

    #[test]
    fn what_is_written_is_given_back() {
        let dir = tempfile::tempdir().unwrap();
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).unwrap();
        let mut framer = Framer::new(Source::Stdout);
        framer.stage = Some(Stage::nameless().unwrap());
        let mut log = log(dir.path());
        let mut buffer = vec![0; 32 * 1024];
        let mut most = 0;
        for _ in 0..100 {
            // Never at the end of a line, so that the file is never empty.
            rustix::io::write(&write, &b"some line\nx".repeat(2000)).unwrap();
            let length = framer.take(&read, &mut buffer).unwrap();
            framer.feed(&buffer[..length], 0, &mut log);
            framer.flush(&mut log);
            let held = rustix::fs::fstat(framer.stage.as_ref().unwrap().file()).unwrap();
            most = most.max(held.st_blocks * 512);
        }
        assert!(most <= 2 * HOLE_BYTES as i64, "{most} bytes are held for what is written");
        rustix::io::write(&write, b"\n").unwrap();
        let length = framer.take(&read, &mut buffer).unwrap();
        framer.feed(&buffer[..length], 0, &mut log);
        framer.flush(&mut log);
        let held = rustix::fs::fstat(framer.stage.as_ref().unwrap().file()).unwrap();
        assert_eq!(held.st_blocks * 512, CALM_BYTES as i64);
    }

    #[test]
    fn of_another_log_nothing_can_be_told_and_it_is_written_again() {
        let begun = Header { start: 64, upto: 100, inode: 7, length: 1000, bytes: 50 };
        let at = |inode, length| begun.resume(200, Place { inode, length });
        assert_eq!(at(7, 1050), Resume { start: 100, cut_log_at: None });
        assert_eq!(at(7, 1049), Resume { start: 64, cut_log_at: Some(1000) });
        assert_eq!(at(7, 1000), Resume { start: 64, cut_log_at: None });
        assert_eq!(at(7, 10), Resume { start: 64, cut_log_at: None });
        assert_eq!(at(8, 1050), Resume { start: 64, cut_log_at: None });
        let given_up = Header { start: u64::MAX, ..Header::default() };
        assert_eq!(given_up.resume(200, Place { inode: 7, length: 0 }).start, 200);
        assert_eq!(Header::default().resume(64, Place { inode: 7, length: 0 }).start, 64);
    }
}
