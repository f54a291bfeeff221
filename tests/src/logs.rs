//! Container logs in CRI's form: `RFC3339Nano stream tag content`.

use std::{fs, path::Path};

/// A line of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    pub at: String,
    pub stream: Stream,
    /// It goes on in the next line of this stream.
    pub partial: bool,
    pub content: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

/// Reads a log whole.
///
/// # Panics
/// If a line is not of CRI's form, or the file is not there.
pub fn read_log(path: &Path) -> Vec<Line> {
    let text = fs::read(path).unwrap_or_else(|error| panic!("read {}: {error}", path.display()));
    lines(&String::from_utf8_lossy(&text))
}

/// Takes the text of a log apart.
///
/// # Panics
/// If a line is not of CRI's form.
pub fn lines(text: &str) -> Vec<Line> {
    text.lines().map(|line| parse(line).unwrap_or_else(|| panic!("no line of a CRI log: {line:?}"))).collect()
}

fn parse(line: &str) -> Option<Line> {
    let mut words = line.splitn(4, ' ');
    let (at, stream, tag, content) = (words.next()?, words.next()?, words.next()?, words.next()?);
    // 2026-11-24T02:19:05.123456789Z, or with an offset.
    let time = at.as_bytes();
    let form = time.len() >= 20 && time[4] == b'-' && time[10] == b'T' && time[13] == b':';
    let stream = match stream {
        "stdout" => Stream::Stdout,
        "stderr" => Stream::Stderr,
        _ => return None,
    };
    let partial = match tag {
        "P" => true,
        "F" => false,
        _ => return None,
    };
    form.then(|| Line { at: at.to_owned(), stream, partial, content: content.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_taken_apart() {
        let found = lines("2026-11-24T02:19:05.123456789Z stderr P half a \n");
        let expected = Line {
            at: "2026-11-24T02:19:05.123456789Z".into(),
            stream: Stream::Stderr,
            partial: true,
            content: "half a ".into(),
        };
        assert_eq!(found, [expected]);
    }
}
