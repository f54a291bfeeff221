//! Where the built programs are: beside the running test, or where `BERTH_PROGRAMS` says.

use std::{env, path::PathBuf};

/// Finds `berthd`, `berth`, `berth-shim` or `fixture`.
///
/// # Panics
/// Saying how to build them.
pub fn program(name: &str) -> PathBuf {
    if let Some(directory) = env::var_os("BERTH_PROGRAMS") {
        return PathBuf::from(directory).join(name);
    }
    let running = env::current_exe().expect("Linux names the running program");
    // A test runs from target/…/debug/deps.
    let found = running.ancestors().skip(1).take(2).map(|directory| directory.join(name));
    found.into_iter().find(|path| path.is_file()).unwrap_or_else(|| {
        panic!("no program {name} near {}; build it: cargo build --workspace --bins", running.display())
    })
}
