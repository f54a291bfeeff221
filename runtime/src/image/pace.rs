//! Whether bytes come fast enough. Pure: time is told, not asked for.

use std::time::Duration;

/// How much came in the time that was waited for the network.
#[derive(Debug, Clone)]
pub(super) struct Pace {
    window: Duration,
    /// What a window must bring.
    least: u64,
    waited: Duration,
    bytes: u64,
}

impl Pace {
    pub(super) fn new(window: Duration, bytes_per_second: u32) -> Self {
        Self {
            window,
            least: u64::from(bytes_per_second) * window.as_secs(),
            waited: Duration::ZERO,
            bytes: 0,
        }
    }

    /// Notes bytes and how long they were waited for.
    ///
    /// # Errors
    /// What a whole window brought, if that is too little.
    pub(super) fn note(&mut self, waited: Duration, bytes: usize) -> Result<(), u64> {
        self.waited += waited;
        self.bytes += bytes as u64;
        if self.waited < self.window {
            return Ok(());
        }
        let brought = std::mem::take(&mut self.bytes);
        self.waited = Duration::ZERO;
        if brought < self.least { Err(brought) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_trickle_is_told_after_a_window_and_a_slow_beginning_is_not() {
        let mut pace = Pace::new(10 * SECOND, 100);
        for _ in 0..9 {
            pace.note(SECOND, 1).unwrap();
        }
        assert_eq!(pace.note(SECOND, 1), Err(10));
        for _ in 0..9 {
            pace.note(SECOND, 0).unwrap();
        }
        assert_eq!(pace.note(SECOND, 1000), Ok(()));
    }

    #[test]
    fn time_that_was_not_waited_does_not_count() {
        let mut pace = Pace::new(10 * SECOND, 1000);
        for _ in 0..1000 {
            pace.note(Duration::from_millis(1), 20).unwrap();
        }
        // Nothing is too little where nothing is demanded.
        assert_eq!(Pace::new(SECOND, 0).note(SECOND, 0), Ok(()));
    }
}
