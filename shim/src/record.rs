//! What the shim leaves on disk for whoever comes later: the exit record, and where it is while it lives. Written new
//! and renamed, so that a reader sees the old or the new one, never half.

use std::{fs, io, path::Path};

use berth_launch::{
    EXIT, LIVE,
    v1::{Exit, Live},
};
use prost::Message;

/// Writes the last word on a container. One whose directory is gone was removed: nobody will ask, and that is no error.
pub fn write_exit(record_dir: &Path, exit: &Exit) -> io::Result<()> {
    match write(record_dir, EXIT, &exit.encode_to_vec()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && !record_dir.try_exists()? => Ok(()),
        written => written,
    }
}

pub fn write_live(dir: &Path, live: &Live) -> io::Result<()> {
    write(dir, LIVE, &live.encode_to_vec())
}

/// This boot's name; empty where the kernel doesn't say.
pub fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

fn write(directory: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let new = directory.join(format!(".{name}.new"));
    fs::write(&new, bytes)?;
    fs::rename(new, directory.join(name))
}
