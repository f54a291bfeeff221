//! Reads a container's log files as one: rotated ones oldest first, then the current one as it grows. Blocks; whoever
//! follows calls `read` again.
//!
//! ```text
//! container.log.2   container.log.1   container.log       a rotation renames each to the next;
//! oldest ────────────────────────────────> grows          a file held open is told by its inode
//! ```

use std::{
    collections::VecDeque,
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use berth_cri::berth::LogEntry;

use super::line::{self, Joiner};
use crate::{Error, Result};

/// Read at once, and with it what one batch holds.
const PIECE_BYTES: usize = 64 * 1024;
/// No line of a log is longer; what is, is no log, and is handed on as it is.
const LINE_BYTES: usize = 1024 * 1024;

#[derive(Debug)]
pub(super) struct Tail {
    path: PathBuf,
    /// The front one is being read; the last one was the current log when looked at.
    files: VecDeque<File>,
    /// The beginning of a line whose end is not read yet.
    rest: Vec<u8>,
    joiner: Joiner,
    /// So many entries are not wanted.
    skip: u64,
    /// Unix nanoseconds; entries before are not wanted.
    since: i64,
    last_at: i64,
}

#[derive(Debug)]
pub(super) struct Batch {
    pub entries: Vec<LogEntry>,
    /// There is no more for now.
    pub at_end: bool,
}

impl Tail {
    /// Opens what there is; no file yet is no error. `last`: only so many entries of it.
    pub(super) fn open(path: &Path, last: Option<u64>, since: i64) -> Result<Self> {
        let mut tail = Self::of(path.to_owned(), newer(path, None)?, since);
        if let Some(last) = last {
            let files: io::Result<_> = tail.files.iter().map(File::try_clone).collect();
            let files = files.map_err(|error| unreadable(path, error))?;
            tail.skip = Self::of(path.to_owned(), files, 0).count()?.saturating_sub(last);
            for file in &mut tail.files {
                // The copy shares its position.
                file.rewind().map_err(|error| unreadable(path, error))?;
            }
        }
        tail.since = since;
        Ok(tail)
    }

    fn of(path: PathBuf, files: VecDeque<File>, since: i64) -> Self {
        Self { path, files, rest: Vec::new(), joiner: Joiner::default(), skip: 0, since, last_at: 0 }
    }

    /// Reads once; at the end of the last file looks whether the log was rotated.
    pub(super) fn read(&mut self) -> Result<Batch> {
        let mut entries = Vec::new();
        if self.piece(&mut entries)? {
            return Ok(Batch { entries, at_end: false });
        }
        if self.files.len() <= 1 {
            let newer = newer(&self.path, self.files.front())?;
            if newer.is_empty() {
                return Ok(Batch { entries, at_end: true });
            }
            // The old one is read again before it is left: its last lines may have come just before the rename.
            self.files.extend(newer);
            self.piece(&mut entries)?;
            return Ok(Batch { entries, at_end: false });
        }
        self.files.pop_front();
        let torn = std::mem::take(&mut self.rest);
        if !torn.is_empty() {
            self.line(&torn, &mut entries);
        }
        Ok(Batch { entries, at_end: false })
    }

    /// What was begun and will not be ended.
    pub(super) fn finish(&mut self) -> Vec<LogEntry> {
        let mut entries = Vec::new();
        let torn = std::mem::take(&mut self.rest);
        if !torn.is_empty() {
            self.line(&torn, &mut entries);
        }
        let waiting: Vec<_> = self.joiner.finish().collect();
        waiting.into_iter().for_each(|entry| self.keep(entry, &mut entries));
        entries
    }

    fn count(mut self) -> Result<u64> {
        let mut count = 0;
        loop {
            let mut entries = Vec::new();
            let more = self.piece(&mut entries)?;
            count += entries.len() as u64;
            if !more && self.files.pop_front().is_none() {
                return Ok(count + self.finish().len() as u64);
            }
        }
    }

    /// Reads a piece of the front file; false at its end.
    fn piece(&mut self, entries: &mut Vec<LogEntry>) -> Result<bool> {
        let Some(file) = self.files.front_mut() else { return Ok(false) };
        let failed = |error| unreadable(&self.path, error);
        let mut piece = vec![0; PIECE_BYTES];
        let mut taken = file.read(&mut piece).map_err(failed)?;
        if taken == 0 && file.metadata().map_err(failed)?.len() < file.stream_position().map_err(failed)? {
            // Somebody emptied it: it grows anew from its beginning.
            file.rewind().map_err(failed)?;
            taken = file.read(&mut piece).map_err(failed)?;
        }
        let mut left = &piece[..taken];
        while let Some(at) = left.iter().position(|byte| *byte == b'\n') {
            let mut line = std::mem::take(&mut self.rest);
            line.extend_from_slice(&left[..at]);
            left = &left[at + 1..];
            self.line(&line, entries);
        }
        self.rest.extend_from_slice(left);
        if self.rest.len() > LINE_BYTES {
            let line = std::mem::take(&mut self.rest);
            self.line(&line, entries);
        }
        Ok(taken > 0)
    }

    fn line(&mut self, text: &[u8], entries: &mut Vec<LogEntry>) {
        let entry = match line::parse(text) {
            Some(line) => {
                self.last_at = line.at;
                self.joiner.take(&line)
            }
            // Nothing is lost: what is no line of a log is shown as it is.
            None => {
                Some(LogEntry { at: self.last_at, stderr: false, content: [text, b"\n"].concat().into() })
            }
        };
        if let Some(entry) = entry {
            self.keep(entry, entries);
        }
    }

    fn keep(&mut self, entry: LogEntry, entries: &mut Vec<LogEntry>) {
        if self.skip > 0 {
            self.skip -= 1;
        } else if entry.at >= self.since {
            entries.push(entry);
        }
    }
}

/// The log's files, oldest first, that are newer than `held`; all where that one is not among them.
fn newer(path: &Path, held: Option<&File>) -> Result<VecDeque<File>> {
    let held = held.map(|file| identity(path, file)).transpose()?;
    let mut found = VecDeque::new();
    let mut seen = Vec::new();
    // Newest first: a rotation meanwhile shows one twice, but hides none.
    for number in 0..=oldest(path)? {
        let Some(file) = open(&numbered(path, number))? else { continue };
        let identity = identity(path, &file)?;
        if Some(identity) == held {
            break;
        }
        if !seen.contains(&identity) {
            seen.push(identity);
            found.push_front(file);
        }
    }
    Ok(found)
}

/// The highest number that a rotated file has now; 0 where none was rotated.
fn oldest(path: &Path) -> Result<u32> {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else { return Ok(0) };
    let mut prefix = name.to_owned();
    prefix.push(".");
    let listed = match fs::read_dir(directory) {
        Ok(listed) => listed,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(unreadable(directory, error)),
    };
    let mut oldest = 0;
    for entry in listed {
        let name = entry.map_err(|error| unreadable(directory, error))?.file_name();
        let number = name.to_str().zip(prefix.to_str()).and_then(|(name, prefix)| name.strip_prefix(prefix));
        // Three digits are more files than any rotation keeps.
        let number = number.filter(|digits| digits.len() <= 3).and_then(|digits| digits.parse().ok());
        oldest = oldest.max(number.unwrap_or(0));
    }
    Ok(oldest)
}

fn numbered(path: &Path, number: u32) -> PathBuf {
    if number == 0 {
        return path.to_owned();
    }
    let mut name = OsString::from(path);
    name.push(format!(".{number}"));
    name.into()
}

fn open(path: &Path) -> Result<Option<File>> {
    // Non-blocking: a FIFO in its place must not hold a thread.
    match OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path) {
        Ok(file) if file.metadata().map_err(|error| unreadable(path, error))?.is_file() => Ok(Some(file)),
        Ok(_) => Err(Error::invalid("read log", path.display().to_string(), "it is no regular file")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(unreadable(path, error)),
    }
}

fn identity(path: &Path, file: &File) -> Result<(u64, u64)> {
    let metadata = file.metadata().map_err(|error| unreadable(path, error))?;
    Ok((metadata.dev(), metadata.ino()))
}

fn unreadable(path: &Path, error: io::Error) -> Error {
    Error::io("read log", path.display().to_string(), error)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn write(path: &Path, second: u32, texts: &[&str]) {
        let mut file = OpenOptions::new().create(true).append(true).open(path).unwrap();
        for text in texts {
            writeln!(file, "1970-01-01T00:00:{second:02}.000000000Z stdout F {text}").unwrap();
        }
    }

    fn now(tail: &mut Tail) -> String {
        let mut text = Vec::new();
        loop {
            let batch = tail.read().unwrap();
            batch.entries.iter().for_each(|entry| text.extend_from_slice(&entry.content));
            if batch.at_end {
                return String::from_utf8(text).unwrap();
            }
        }
    }

    #[test]
    fn rotated_files_come_first_and_tail_and_since_count_over_all() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("container.log");
        write(&dir.path().join("container.log.2"), 1, &["a", "b"]);
        write(&dir.path().join("container.log.1"), 2, &["c"]);
        write(&log, 3, &["d", "e"]);
        write(&dir.path().join("container.log.x"), 1, &["no"]);
        let rows = [
            (None, 0, "a\nb\nc\nd\ne\n"),
            (Some(0), 0, ""),
            (Some(2), 0, "d\ne\n"),
            (Some(3), 0, "c\nd\ne\n"),
            (Some(u64::MAX), 0, "a\nb\nc\nd\ne\n"),
            (None, 2_000_000_000, "c\nd\ne\n"),
            (Some(4), 3_000_000_000, "d\ne\n"),
        ];
        for (last, since, expected) in rows {
            assert_eq!(now(&mut Tail::open(&log, last, since).unwrap()), expected, "{last:?} {since}");
        }
    }

    #[test]
    fn a_follower_loses_no_line_to_rotations() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let log = path("container.log");
        let mut tail = Tail::open(&log, None, 0).unwrap();
        assert_eq!(now(&mut tail), "");
        write(&log, 1, &["a"]);
        assert_eq!(now(&mut tail), "a\n");
        write(&log, 1, &["b"]);
        fs::rename(&log, path("container.log.1")).unwrap();
        write(&log, 2, &["c"]);
        assert_eq!(now(&mut tail), "b\nc\n");
        // Twice at once: what it holds is the oldest by now.
        write(&log, 2, &["d"]);
        fs::rename(path("container.log.1"), path("container.log.2")).unwrap();
        fs::rename(&log, path("container.log.1")).unwrap();
        write(&log, 3, &["e"]);
        fs::rename(path("container.log.1"), path("container.log.2")).unwrap();
        fs::rename(&log, path("container.log.1")).unwrap();
        write(&log, 4, &["f"]);
        assert_eq!(now(&mut tail), "d\ne\nf\n");
        assert_eq!(now(&mut tail), "");
    }

    #[test]
    fn an_emptied_log_is_read_from_its_beginning() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("container.log");
        write(&log, 1, &["long enough", "to be shorter after"]);
        let mut tail = Tail::open(&log, Some(1), 0).unwrap();
        assert_eq!(now(&mut tail), "to be shorter after\n");
        File::create(&log).unwrap();
        write(&log, 2, &["new"]);
        assert_eq!(now(&mut tail), "new\n");
    }

    #[test]
    fn what_is_no_line_is_shown_and_no_file_is_an_empty_log() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("container.log");
        fs::write(&log, "noise\n1970-01-01T00:00:01Z stdout P begun\n1970-01-01T00:").unwrap();
        let mut tail = Tail::open(&log, None, 0).unwrap();
        assert_eq!(now(&mut tail), "noise\n");
        let rest: Vec<_> = tail.finish().into_iter().map(|entry| entry.content).collect();
        assert_eq!(rest, [&b"1970-01-01T00:\n"[..], b"begun"]);
        assert_eq!(now(&mut Tail::open(&dir.path().join("none/x"), Some(3), 0).unwrap()), "");
        assert!(Tail::open(dir.path(), None, 0).is_err());
    }
}
