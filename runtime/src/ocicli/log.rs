//! The log that supervisors read: lines as runc's logger writes them, text or JSON, in a file or on standard error.

use std::{
    fs::File,
    io::{self, Write},
};

use jiff::{Timestamp, tz::TimeZone};
use serde_json::json;

use super::line::{Line, wrong};
use crate::{Error, Result};

#[derive(Debug, Default)]
pub struct Log {
    /// None: standard error.
    file: Option<File>,
    format: Format,
    debug: Verbosity,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Format {
    #[default]
    Text,
    Json,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Verbosity {
    #[default]
    Plain,
    Debug,
}

impl Log {
    /// Opens the log that the line names.
    pub fn open(line: &Line) -> Result<Self> {
        let format = match line.last("log-format") {
            None | Some("text" | "") => Format::Text,
            Some("json") => Format::Json,
            Some(other) => return Err(wrong("--log-format", format!("{other:?} is neither text nor json"))),
        };
        let file = match line.last("log").filter(|path| !path.is_empty()) {
            None => None,
            Some(path) => {
                let file = File::options().append(true).create(true).open(path);
                Some(file.map_err(|error| Error::io("open log", path, error))?)
            }
        };
        let debug = if line.has("debug") { Verbosity::Debug } else { Verbosity::Plain };
        Ok(Self { file, format, debug })
    }

    pub fn share(&self) -> Result<Self> {
        let file = self.file.as_ref().map(File::try_clone).transpose();
        let file = file.map_err(|error| Error::io("share", "log", error))?;
        Ok(Self { file, ..*self })
    }

    pub fn debug(&self, text: &str) {
        if self.debug == Verbosity::Debug {
            self.write("debug", text);
        }
    }

    pub fn warn(&self, text: &str) {
        self.write("warning", text);
    }

    /// Says why a verb failed: in the log, and on standard error, where a caller without a log looks.
    pub fn fail(&self, error: &Error) {
        let text = error.chain();
        self.write("error", &text);
        if self.file.is_some() {
            eprintln!("{text}");
        }
    }

    fn write(&self, level: &str, text: &str) {
        let line = render(self.format, level, text, Timestamp::now());
        // A log that can't be written has no other place to say so than standard error, where the failure goes anyway.
        match &self.file {
            Some(file) => (&mut &*file).write_all(line.as_bytes()).ok(),
            None => io::stderr().write_all(line.as_bytes()).ok(),
        };
    }
}

fn render(format: Format, level: &str, text: &str, now: Timestamp) -> String {
    let time = now.to_zoned(TimeZone::UTC).strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    match format {
        Format::Json => format!("{}\n", json!({ "level": level, "msg": text, "time": time })),
        Format::Text => format!("time={time:?} level={level} msg={text:?}\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_have_the_keys_that_podman_and_containerd_read() {
        let now = Timestamp::from_second(1_700_000_000).unwrap();
        let json: serde_json::Value =
            serde_json::from_str(&render(Format::Json, "error", "a \"b\"\n", now)).unwrap();
        assert_eq!(json, json!({ "level": "error", "msg": "a \"b\"\n", "time": "2023-11-14T22:13:20Z" }));
        let text = render(Format::Text, "warning", "a \"b\"", now);
        assert_eq!(text, "time=\"2023-11-14T22:13:20Z\" level=warning msg=\"a \\\"b\\\"\"\n");
    }
}
