//! Time for all groups of measures: each gets its share of what is left, so that one that is slow takes nothing from the last.

use std::time::{Duration, Instant};

/// How much of what is left a group may take, if the groups after it are to have their usual parts as well.
pub fn share(left: Duration, usual: Duration, after: Duration) -> Duration {
    let all = usual + after;
    if all.is_zero() {
        return left;
    }
    left.mul_f64(usual.as_secs_f64() / all.as_secs_f64())
}

/// Until when a group may begin another round.
#[derive(Debug, Clone, Copy)]
pub struct Deadline(Instant);

impl Deadline {
    pub fn after(time: Duration) -> Self {
        Self(Instant::now() + time)
    }

    pub fn left(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }

    pub fn is_over(self) -> bool {
        self.left().is_zero()
    }

    /// Whether one more round ends in time, if it takes as long as the one before it.
    pub fn has_room_for(self, round: Duration) -> bool {
        self.left() >= round
    }
}

/// The time that the client's figures are told by as well.
pub fn monotonic_nanos() -> f64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as f64 * 1e9 + now.tv_nsec as f64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_last_group_gets_all_that_is_left() {
        let seconds = Duration::from_secs;
        assert_eq!(share(seconds(100), seconds(30), seconds(0)), seconds(100));
        assert_eq!(share(seconds(100), seconds(30), seconds(90)), seconds(25));
        assert_eq!(share(seconds(0), seconds(30), seconds(90)), seconds(0));
    }

    proptest! {
        #[test]
        fn groups_that_keep_to_their_shares_end_in_time(total in 1u64..10_000, usual in prop::collection::vec(1u64..500, 1..12)) {
            let mut left = Duration::from_secs(total);
            for at in 0..usual.len() {
                let after = Duration::from_secs(usual[at + 1..].iter().sum());
                let share = share(left, Duration::from_secs(usual[at]), after);
                prop_assert!(share <= left);
                left -= share;
            }
            prop_assert!(left < Duration::from_millis(1));
        }
    }
}
