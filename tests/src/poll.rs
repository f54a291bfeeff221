//! The one place where tests wait for what has no event: a look, a short pause, a bound.

use std::time::{Duration, Instant};

/// Long enough for a loaded machine with two cores; what takes longer hangs.
pub const BOUND: Duration = Duration::from_secs(30);

const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LAST_PAUSE: Duration = Duration::from_millis(50);

/// Looks until there is something, and returns it.
///
/// # Panics
/// After `BOUND`, naming what was waited for.
pub fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    until(BOUND, &mut look).unwrap_or_else(|| panic!("waited {BOUND:?} in vain for {what}"))
}

/// Looks until there is something or the time is over.
pub fn until<T>(bound: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + bound;
    let mut pause = FIRST_PAUSE;
    loop {
        if let Some(found) = look() {
            return Some(found);
        }
        if Instant::now() >= end {
            return None;
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(LAST_PAUSE);
    }
}
