//! One line of a log in CRI's format, and lines that an application's long line was cut into. Pure.
//!
//! ```text
//! 2026-01-02T03:04:05.678901234Z stdout F what the application wrote\n
//!                                       P: the line goes on in the next entry of the same stream
//! ```

use std::mem;

use berth_cri::berth::LogEntry;
use jiff::Timestamp;

/// A joined line longer than this is handed on in pieces: a message must stay below what clients take.
const JOINED_BYTES: usize = 256 * 1024;

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Line<'a> {
    pub at: i64,
    pub stderr: bool,
    pub end: End,
    pub content: &'a [u8],
}

/// Whether the application's own line ends with this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Full,
    Partial,
}

/// Reads a line without its newline; `None` for what is none.
pub(super) fn parse(line: &[u8]) -> Option<Line<'_>> {
    let mut parts = line.splitn(4, |byte| *byte == b' ');
    let at = std::str::from_utf8(parts.next()?).ok()?.parse::<Timestamp>().ok()?;
    let stderr = match parts.next()? {
        b"stdout" => false,
        b"stderr" => true,
        _ => return None,
    };
    // Tags may follow, split by colons; the first says how the line ends.
    let end = match parts.next()?.split(|byte| *byte == b':').next()? {
        b"F" => End::Full,
        b"P" => End::Partial,
        _ => return None,
    };
    let content = parts.next().unwrap_or_default();
    Some(Line { at: i64::try_from(at.as_nanosecond()).unwrap_or(i64::MAX), stderr, end, content })
}

/// Joins partial lines, stdout's and stderr's each for itself.
#[derive(Debug, Default)]
pub(super) struct Joiner {
    waiting: [Option<LogEntry>; 2],
    parts: [Vec<u8>; 2],
}

impl Joiner {
    /// Takes a line; gives what is whole, or too long to wait for.
    pub(super) fn take(&mut self, line: &Line<'_>) -> Option<LogEntry> {
        let stream = usize::from(line.stderr);
        let parts = &mut self.parts[stream];
        self.waiting[stream].get_or_insert_with(|| LogEntry {
            at: line.at,
            stderr: line.stderr,
            content: Default::default(),
        });
        parts.extend_from_slice(line.content);
        match line.end {
            End::Full => parts.push(b'\n'),
            End::Partial if parts.len() < JOINED_BYTES => return None,
            End::Partial => {}
        }
        self.give(stream)
    }

    /// What waits for a rest that does not come any more.
    pub(super) fn finish(&mut self) -> impl Iterator<Item = LogEntry> {
        [self.give(0), self.give(1)].into_iter().flatten()
    }

    fn give(&mut self, stream: usize) -> Option<LogEntry> {
        let mut entry = self.waiting[stream].take()?;
        entry.content = mem::take(&mut self.parts[stream]).into();
        Some(entry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_time_stream_tag_and_the_rest() {
        type Row = (&'static [u8], Option<(bool, End, &'static [u8])>);
        let rows: [Row; 12] = [
            (
                b"1970-01-01T00:00:01.000000002Z stdout F hello world",
                Some((false, End::Full, b"hello world")),
            ),
            (b"1970-01-01T00:00:01.000000002Z stderr P  x ", Some((true, End::Partial, b" x "))),
            (b"1970-01-01T00:00:01.000000002Z stdout F ", Some((false, End::Full, b""))),
            (b"1970-01-01T00:00:01.000000002Z stdout F", Some((false, End::Full, b""))),
            (b"1970-01-01T01:00:01.000000002+01:00 stdout F x", Some((false, End::Full, b"x"))),
            (b"1970-01-01T00:00:01.000000002Z stdout F:tag x\xff", Some((false, End::Full, b"x\xff"))),
            (b"1970-01-01T00:00:01.000000002Z stdin F x", None),
            (b"1970-01-01T00:00:01.000000002Z stdout X x", None),
            (b"1970-01-01T00:00:01.000000002Z", None),
            (b"yesterday stdout F x", None),
            (b"\xff stdout F x", None),
            (b"", None),
        ];
        for (text, expected) in rows {
            let line = parse(text);
            if let Some(line) = &line {
                assert_eq!(line.at, 1_000_000_002);
            }
            let line = line.map(|line| (line.stderr, line.end, line.content));
            assert_eq!(line, expected, "{}", String::from_utf8_lossy(text));
        }
    }

    fn line(at: i64, stderr: bool, end: End, content: &[u8]) -> Line<'_> {
        Line { at, stderr, end, content }
    }

    #[test]
    fn parts_are_joined_per_stream_under_the_time_of_the_first() {
        let mut joiner = Joiner::default();
        assert_eq!(joiner.take(&line(1, false, End::Partial, b"a")), None);
        let between = joiner.take(&line(2, true, End::Full, b"err")).unwrap();
        assert_eq!((between.at, between.stderr, &between.content[..]), (2, true, &b"err\n"[..]));
        let joined = joiner.take(&line(3, false, End::Full, b"b")).unwrap();
        assert_eq!((joined.at, &joined.content[..]), (1, &b"ab\n"[..]));
        assert_eq!(joiner.finish().count(), 0);
    }

    #[test]
    fn a_last_line_without_newline_comes_at_the_end_and_an_endless_one_in_pieces() {
        let mut joiner = Joiner::default();
        assert_eq!(joiner.take(&line(1, false, End::Partial, b"$ ")), None);
        let last: Vec<_> = joiner.finish().collect();
        assert_eq!((last.len(), &last[0].content[..]), (1, &b"$ "[..]));
        let piece = vec![b'x'; JOINED_BYTES];
        let cut = joiner.take(&line(2, false, End::Partial, &piece)).unwrap();
        assert_eq!(cut.content.len(), JOINED_BYTES);
        assert_eq!(joiner.finish().count(), 0);
    }
}
