//! What the machine has of devices, for tests of who may open them.

use std::{
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt},
};

/// A block device of this machine and its number, as "MAJOR:MINOR".
pub fn block_device() -> Option<(String, String)> {
    let mut found: Vec<(String, String)> = fs::read_dir("/dev")
        .ok()?
        .flatten()
        .filter_map(|entry| {
            let metadata = entry.metadata().ok().filter(|metadata| metadata.file_type().is_block_device())?;
            let (major, minor) = (rustix::fs::major(metadata.rdev()), rustix::fs::minor(metadata.rdev()));
            Some((entry.path().to_str()?.to_owned(), format!("{major}:{minor}")))
        })
        // One that can be opened at all.
        .filter(|(path, _)| fs::File::open(path).is_ok())
        .collect();
    found.sort();
    found.into_iter().next()
}
