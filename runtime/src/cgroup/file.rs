//! Control files: small texts that the kernel makes up. Errors name the file, the value and what the errno means here.

use std::{
    fs::OpenOptions,
    io::{self, Write},
    path::Path,
};

use crate::{Error, Kind, Result};

/// Reads a control file; `None` where it, or its group, does not exist (any more).
pub fn read(path: &Path) -> Result<Option<String>> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if gone(&error) => Ok(None),
        Err(error) => Err(Error::io("read", path.display().to_string(), error)),
    }
}

/// Writes a value in one write(2), as control files want it, and never creates a file.
pub fn write(path: &Path, value: &str) -> Result<()> {
    raw_write(path, value).map_err(|error| explain(path, value, error))
}

/// Writes several values to one file, each in a write(2) of its own.
pub fn write_lines<'a>(path: &Path, lines: impl Iterator<Item = &'a str>) -> Result<()> {
    let mut lines = lines.peekable();
    let Some(first) = lines.peek().copied() else { return Ok(()) };
    let mut file = OpenOptions::new().write(true).open(path).map_err(|error| explain(path, first, error))?;
    lines.try_for_each(|line| file.write_all(line.as_bytes()).map_err(|error| explain(path, line, error)))
}

/// `write` with the kernel's bare answer, for callers that act on it.
pub fn raw_write(path: &Path, value: &str) -> io::Result<()> {
    OpenOptions::new().write(true).open(path)?.write_all(value.as_bytes())
}

/// What a refused write means.
pub fn explain(path: &Path, value: &str, error: io::Error) -> Error {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let (kind, hint) = match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV) => (
            Kind::Precondition,
            Some("the group is gone or the controller not enabled: see cgroup.controllers of the group"),
        ),
        Some(libc::EINVAL) if name.starts_with("memory.memsw") || name == "memory.limit_in_bytes" => (
            Kind::Invalid,
            Some("memory plus swap can't be less than memory, nor a group's limit more than its parent's"),
        ),
        Some(libc::EINVAL | libc::ERANGE) => {
            (Kind::Invalid, Some("the kernel takes no such value, or the parent group allows less"))
        }
        Some(libc::EBUSY) if name.starts_with("memory.") => {
            (Kind::Precondition, Some("more memory than that is in use and can't be reclaimed"))
        }
        Some(libc::EBUSY) if name == "cgroup.subtree_control" => (
            Kind::Precondition,
            Some("processes live in a group that is to have children: they belong in a leaf"),
        ),
        Some(libc::EBUSY) => (Kind::Precondition, Some("the group has children or processes that forbid it")),
        Some(libc::EACCES | libc::EPERM) => {
            (Kind::Denied, Some("the parent group does not allow it, or berthd lacks the right"))
        }
        Some(libc::EROFS) => (Kind::Precondition, Some("cgroups are mounted read-only: remount them rw")),
        _ => (Error::io("", "", io::Error::from(error.kind())).kind, None),
    };
    let explained = Error::new(kind, "set", format!("{} to {value:?}", path.display())).because(error);
    match hint {
        Some(hint) => explained.hint(hint),
        None => explained,
    }
}

/// Groups vanish while they are read: then the open says ENOENT or, on an open file, the read says ENODEV.
pub fn gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV | libc::ENOTDIR))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_write_names_file_value_cause_and_remedy() {
        let path = Path::new("/sys/fs/cgroup/memory/x/memory.limit_in_bytes");
        let error = explain(path, "5", io::Error::from_raw_os_error(libc::EBUSY));
        assert_eq!(error.kind, Kind::Precondition);
        let text = error.chain();
        for part in ["memory.limit_in_bytes", "\"5\"", "Device or resource busy", "in use"] {
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn a_write_never_creates_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pids.max");
        let error = write(&path, "1").unwrap_err();
        assert_eq!(error.kind, Kind::Precondition);
        assert!(error.chain().contains("controller not enabled"), "{}", error.chain());
        assert!(!path.exists());
        assert_eq!(read(&path).unwrap(), None);
    }
}
