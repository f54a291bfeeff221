//! Named points at which a test ends `berthd` or a shim, as a kill would. Nothing in release builds.

use std::fs::File;

/// `NAME=FILE`: the first who comes to the point NAME makes FILE and is gone.
pub const VARIABLE: &str = "BERTH_FAULT";

/// A step between two of which a process may die: what is before it is done, what follows is not. The tests find all of
/// them in the sources.
pub fn point(name: &str) {
    if !cfg!(debug_assertions) {
        return;
    }
    if let Ok(fault) = std::env::var(VARIABLE)
        && let Some((wanted, mark)) = fault.split_once('=')
        && wanted == name
        && File::create_new(mark).is_ok()
    {
        std::process::abort();
    }
}
