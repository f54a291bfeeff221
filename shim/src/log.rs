//! The container's log: what comes out of its pipes, as lines of the CRI format.
//!
//! ```text
//! 2026-11-24T01:02:03.000000004Z stdout F a whole line
//! 2026-11-24T01:02:03.000000005Z stdout P the first 16 KiB of a long one
//! ```
//! Lines that can't be written are counted, and a line that says how many bytes are missing follows as soon as one can. So it
//! is with lines that are more than the plan's limit of a second.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use berth_launch::v1;

use crate::{
    clock,
    rate::Rate,
    stage::{Place, Stage},
};

/// So much is written at once, and so much while more comes than that.
const BATCH_BYTES: usize = 8 * 1024;
const BULK_BYTES: usize = 64 * 1024;
/// What comes before a record's content: the time, the stream, the tag.
const PREFIX_BYTES: usize = 30 + 8 + 2;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    Stdout,
    Stderr,
}

impl Source {
    /// Of what comes out of it and is not in the log yet.
    pub fn stage_name(self) -> &'static str {
        match self {
            Self::Stdout => berth_launch::STAGED_STDOUT,
            Self::Stderr => berth_launch::STAGED_STDERR,
        }
    }
}

/// How much comes out of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    Calm,
    Bulk,
}

/// The log file.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    max_bytes: u64,
    max_files: u32,
    file: Option<File>,
    written: u64,
    inode: u64,
    batch: Vec<u8>,
    batch_bytes: usize,
    /// Of the last record: those of what was read at once have it in common but for the tag.
    prefix: [u8; PREFIX_BYTES],
    prefix_is_of: Option<(Source, i64)>,
    /// Bytes of records that could not be written, and since when.
    lost: u64,
    lost_in_all: u64,
    rate: Option<Box<Rate>>,
}

impl Log {
    /// Opens the plan's log, to append; none where the plan has none.
    pub fn open(log: &v1::Log) -> io::Result<Self> {
        let path = PathBuf::from(&log.path);
        let (file, written, inode) = match log.path.is_empty() {
            true => (None, 0, 0),
            false => {
                let file = open(&path, OpenOptions::new().create(true))?;
                let metadata = file.metadata()?;
                (Some(file), metadata.len(), metadata.ino())
            }
        };
        Ok(Self {
            path,
            max_bytes: log.max_bytes,
            max_files: log.max_files,
            file,
            written,
            inode,
            batch: Vec::new(),
            batch_bytes: BATCH_BYTES,
            prefix: [0; PREFIX_BYTES],
            prefix_is_of: None,
            lost: 0,
            lost_in_all: 0,
            rate: Rate::of(log.rate_bytes),
        })
    }

    /// Opens the path anew after somebody renamed the file; what was collected has been flushed. On an error nothing has changed and no file was made.
    pub fn reopen(&mut self) -> io::Result<()> {
        if self.path.as_os_str().is_empty() {
            return Ok(());
        }
        // A missing directory fails before anything is made.
        let file = open(&self.path, OpenOptions::new().create(true))?;
        let metadata = file.metadata()?;
        (self.written, self.inode) = (metadata.len(), metadata.ino());
        self.file = Some(file);
        Ok(())
    }

    /// Bytes of output that are in no log.
    pub fn lost_bytes(&self) -> u64 {
        self.lost_in_all
    }

    pub fn record(
        &mut self,
        source: Source,
        tag: u8,
        content: &[u8],
        at: i64,
        mut stage: Option<&mut Stage>,
    ) {
        self.collect(source, tag, content, at, stage.as_deref_mut());
        if let Some(stage) = stage {
            stage.recorded(content.len() + usize::from(tag == b'F'));
        }
    }

    fn collect(&mut self, source: Source, tag: u8, content: &[u8], at: i64, mut stage: Option<&mut Stage>) {
        if self.file.is_none() {
            return;
        }
        let length = PREFIX_BYTES + content.len() + 1;
        if self.rate.is_some() {
            let now = clock::monotonic();
            if self.due().is_some_and(|at| at <= now) {
                self.tell_dropped();
            }
            let admits = |rate: &mut Box<Rate>| rate.admits(source, tag == b'F', length as u64, now);
            if !self.rate.as_mut().is_some_and(admits) {
                return;
            }
        }
        if !self.batch.is_empty() && self.batch.len() + length > self.batch_bytes {
            self.flush(stage.as_deref_mut());
        }
        self.rotate_before(length as u64, stage);
        if self.prefix_is_of != Some((source, at)) {
            self.prefix = prefix(source, at);
            self.prefix_is_of = Some((source, at));
        }
        self.prefix[PREFIX_BYTES - 2] = tag;
        self.batch.reserve(length);
        self.batch.extend_from_slice(&self.prefix);
        self.batch.extend_from_slice(content);
        self.batch.push(b'\n');
    }

    /// Much comes at once from now on, or no longer: how much is collected before it is written.
    pub fn expect(&mut self, flow: Flow) {
        self.batch_bytes = match flow {
            Flow::Calm => BATCH_BYTES,
            Flow::Bulk => BULK_BYTES,
        };
        self.batch = Vec::with_capacity(match flow {
            Flow::Calm => 0,
            Flow::Bulk => BULK_BYTES,
        });
    }

    /// When `keep_time` has something to do.
    pub fn due(&self) -> Option<Duration> {
        self.rate.as_ref().and_then(|rate| rate.due())
    }

    /// Tells what was dropped for the limit of the second that has gone by.
    pub fn keep_time(&mut self, now: Duration) {
        if self.due().is_some_and(|at| at <= now) {
            self.tell_dropped();
            self.flush(None);
        }
    }

    /// Tells what was dropped and not told yet, once that is flushed.
    pub fn tell_dropped(&mut self) {
        let Some(rate) = self.rate.as_mut().filter(|rate| rate.due().is_some()) else { return };
        let (limit, dropped) = (rate.bytes, rate.take());
        clock::rfc3339(clock::now(), &mut self.batch);
        let (lines, bytes) = (dropped.lines, dropped.bytes);
        let note =
            format!(" stderr F berth: {lines} lines dropped, {bytes} bytes: more than {limit} in a second\n");
        self.batch.extend_from_slice(note.as_bytes());
    }

    /// A stream has ended, perhaps within a line.
    pub fn cut(&mut self, source: Source) {
        if let Some(rate) = &mut self.rate {
            rate.cut(source);
        }
    }

    pub fn is_kept(&self) -> bool {
        self.file.is_some()
    }

    /// Of a container that never began: a kubelet takes a log that is there for an attempt.
    pub fn remove_unused(&self) {
        let empty =
            self.file.as_ref().and_then(|file| file.metadata().ok()).is_some_and(|file| file.len() == 0);
        if empty {
            // One that stays says of itself that nothing was written.
            std::fs::remove_file(&self.path).ok();
        }
    }

    /// Where it stands.
    pub fn place(&self) -> Place {
        Place { inode: self.inode, length: self.written }
    }

    /// Drops what follows: a record that was not written whole.
    pub fn cut_at(&mut self, length: u64) -> io::Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        file.set_len(length)?;
        self.written = length;
        Ok(())
    }

    /// Writes what is collected, all of it of the output whose stage this is.
    pub fn flush(&mut self, mut stage: Option<&mut Stage>) {
        let place = self.place();
        let Some(file) = &mut self.file else { return };
        if self.batch.is_empty() {
            // Nothing of it came into the log, and nothing is to come.
            settle(stage);
            return;
        }
        if self.lost > 0 {
            let mut note = Vec::new();
            clock::rfc3339(clock::now(), &mut note);
            note.extend_from_slice(format!(" stderr F berth: {} bytes of log lost\n", self.lost).as_bytes());
            if file.write_all(&note).is_ok() {
                self.written += note.len() as u64;
                self.lost = 0;
            }
        }
        if let Some(stage) = stage.as_deref_mut() {
            // What could fail is a page that is there.
            stage.begin_write(Place { length: self.written, ..place }, self.batch.len()).ok();
        }
        match file.write_all(&self.batch) {
            Ok(()) => self.written += self.batch.len() as u64,
            Err(error) => {
                if self.lost == 0 {
                    crate::complain!("berth-shim: write log {}: {error}", self.path.display());
                }
                self.lost += self.batch.len() as u64;
                self.lost_in_all += self.batch.len() as u64;
            }
        }
        settle(stage);
        self.batch.clear();
        if self.batch.capacity() > 2 * self.batch_bytes {
            self.batch = Vec::new();
        }
    }

    /// Own rotation: `log` -> `log.1` -> … -> `log.N`, the last is dropped.
    fn rotate_before(&mut self, length: u64, stage: Option<&mut Stage>) {
        let full = self.written + self.batch.len() as u64 + length > self.max_bytes;
        if self.max_bytes == 0 || !full || self.written + self.batch.len() as u64 == 0 {
            return;
        }
        self.flush(stage);
        let numbered = |n: u32| match n {
            0 => self.path.clone(),
            n => PathBuf::from(format!("{}.{n}", self.path.display())),
        };
        for n in (0..self.max_files.max(1)).rev() {
            let rotated = match n + 1 < self.max_files {
                true => std::fs::rename(numbered(n), numbered(n + 1)),
                false => std::fs::remove_file(numbered(n)),
            };
            if let Err(error) = rotated
                && error.kind() != io::ErrorKind::NotFound
            {
                crate::complain!("berth-shim: rotate log {}: {error}", numbered(n).display());
            }
        }
        if let Err(error) = self.reopen() {
            // We go on in the renamed file: longer than asked for is better than lost.
            crate::complain!("berth-shim: open log {}: {error}", self.path.display());
        }
    }
}

/// Of a whole line.
fn prefix(source: Source, at: i64) -> [u8; PREFIX_BYTES] {
    let mut text = Vec::with_capacity(PREFIX_BYTES);
    clock::rfc3339(at, &mut text);
    text.extend_from_slice(match source {
        Source::Stdout => b" stdout F ",
        Source::Stderr => b" stderr F ",
    });
    let mut prefix = [b' '; PREFIX_BYTES];
    prefix.iter_mut().zip(text).for_each(|(to, from)| *to = from);
    prefix
}

fn settle(stage: Option<&mut Stage>) {
    // What could fail is a page that is there, and memory that would be free.
    stage.map_or(Ok(()), Stage::written).ok();
}

fn open(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    options.append(true).mode(0o640).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::framer::{Framer, RECORD_BYTES};

    fn log(directory: &Path, max_bytes: u64, max_files: u32) -> Log {
        let path = directory.join("log").to_str().unwrap().to_owned();
        Log::open(&v1::Log { path, max_bytes, max_files, ..v1::Log::default() }).unwrap()
    }

    fn written(directory: &Path, name: &str) -> String {
        std::fs::read_to_string(directory.join(name)).unwrap()
    }

    #[test]
    fn rotation_keeps_so_many_files_and_loses_no_line() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = log(dir.path(), 200, 3);
        let mut framer = Framer::new(Source::Stdout);
        for n in 0..12 {
            framer.feed(format!("line {n:04}\n").as_bytes(), 0, &mut log);
        }
        log.flush(None);
        let all = ["log.2", "log.1", "log"].map(|name| written(dir.path(), name)).concat();
        let numbers: Vec<_> = all.lines().map(|line| line.rsplit(' ').next().unwrap()).collect();
        let expected: Vec<_> = (0..12).map(|n| format!("{n:04}")).collect();
        assert_eq!(numbers, expected);
        assert!(written(dir.path(), "log").len() <= 200);
        for n in 12..40 {
            framer.feed(format!("line {n:04}\n").as_bytes(), 0, &mut log);
        }
        log.flush(None);
        assert!(!dir.path().join("log.3").exists());
    }

    #[test]
    fn reopening_in_a_directory_that_is_gone_keeps_the_old_file_and_makes_none() {
        let dir = tempfile::tempdir().unwrap();
        let logs = dir.path().join("logs");
        std::fs::create_dir(&logs).unwrap();
        let mut log = log(&logs, 0, 0);
        std::fs::rename(&logs, dir.path().join("moved")).unwrap();
        assert!(log.reopen().is_err());
        assert!(!logs.exists());
        Framer::new(Source::Stdout).feed(b"still here\n", 0, &mut log);
        log.flush(None);
        assert!(written(&dir.path().join("moved"), "log").contains("still here"));
    }

    #[test]
    fn what_is_over_the_limit_of_a_second_is_told_in_its_place() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log").to_str().unwrap().to_owned();
        let mut log = Log::open(&v1::Log { path, rate_bytes: 100, ..v1::Log::default() }).unwrap();
        let mut framer = Framer::new(Source::Stdout);
        framer.feed(&[b'x'; 3 * RECORD_BYTES], 0, &mut log);
        framer.feed(b"\nshort\nshort\nbegun", 0, &mut log);
        framer.finish(0, &mut log);
        log.tell_dropped();
        log.tell_dropped();
        log.flush(None);
        let text = written(dir.path(), "log");
        let shape: Vec<_> =
            text.lines().map(|line| (line.split(' ').nth(2).unwrap(), line.len() - 40)).collect();
        assert_eq!(shape[..3], [("P", RECORD_BYTES), ("P", RECORD_BYTES), ("F", RECORD_BYTES)]);
        assert_eq!(text.lines().count(), 4);
        let length = 30 + 8 + 2 + 5 + 1;
        let note =
            format!(" stderr F berth: 3 lines dropped, {} bytes: more than 100 in a second\n", 3 * length);
        assert!(text.ends_with(&note), "{}", text.lines().next_back().unwrap());
    }

    #[test]
    fn what_a_full_disk_swallows_is_counted() {
        let full = v1::Log { path: "/dev/full".into(), ..v1::Log::default() };
        let mut log = Log::open(&full).unwrap();
        Framer::new(Source::Stdout).feed(b"0123456789\n", 0, &mut log);
        log.flush(None);
        assert_eq!(log.lost_bytes(), 30 + 8 + 2 + 10 + 1);
    }
}
