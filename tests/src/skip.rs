//! What this machine lacks is skipped, loudly: a line on standard error and one in the file `BERTH_SKIPS`.

use std::{env, ffi::OsStr, fs::OpenOptions, io::Write, path::Path};

/// Says that a test, or part of one, is skipped and why.
pub fn skip(name: &str, reason: &str) {
    let line = format!("skipped {name}: {reason}\n");
    // The test's own output may be captured; the file is what is counted.
    eprint!("{line}");
    if let Some(path) = env::var_os("BERTH_SKIPS") {
        let file = OpenOptions::new().append(true).create(true).open(&path);
        let written = file.and_then(|mut file| file.write_all(line.as_bytes()));
        written.unwrap_or_else(|error| panic!("write {}: {error}", Path::new(&path).display()));
    }
}

/// Tells whether all programs are in PATH; skips if not.
pub fn required(name: &str, programs: &[&str]) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    let there = |program: &str| env::split_paths(&path).any(|dir| dir.join(OsStr::new(program)).is_file());
    let missing: Vec<&str> = programs.iter().copied().filter(|program| !there(program)).collect();
    if !missing.is_empty() {
        skip(name, &format!("not in PATH: {}", missing.join(", ")));
    }
    missing.is_empty()
}
