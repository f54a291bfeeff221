//! Whether a container does its work: what follows from the outcomes of its checks and their times. Pure.
//!
//! ```text
//!              passed                      `retries` failures in a row
//! Starting ─────────────> Healthy ───────────────────────────────────────> Unhealthy
//!     └─ `retries` failures in a row after the start period ──────────────────^ └─ passed ─> Healthy
//! ```

use std::time::Duration;

use berth_launch::v1::{Health, health_status::State};

/// The times and numbers of a health check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    pub interval: Duration,
    pub timeout: Duration,
    pub start_period: Duration,
    pub start_interval: Duration,
    pub retries: u32,
}

/// Without a pause between checks the shim would do nothing else.
const LEAST: Duration = Duration::from_millis(1);

impl Rules {
    pub fn of(health: &Health) -> Self {
        Self {
            interval: Duration::from_millis(health.interval_ms).max(LEAST),
            timeout: Duration::from_millis(health.timeout_ms).max(LEAST),
            start_period: Duration::from_millis(health.start_period_ms),
            start_interval: Duration::from_millis(health.start_interval_ms).max(LEAST),
            retries: health.retries.max(1),
        }
    }
}

/// What is thought of one run of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Condition {
    pub state: State,
    pub failing_streak: u32,
    /// At some time of this run.
    pub was_healthy: bool,
    /// When the run began, monotonic.
    pub began: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Passed,
    Failed,
}

impl Condition {
    pub fn at_start(now: Duration) -> Self {
        Self { state: State::Starting, failing_streak: 0, was_healthy: false, began: now }
    }

    /// After a check that ended at `now`.
    #[must_use]
    pub fn step(self, rules: &Rules, now: Duration, outcome: Outcome) -> Self {
        match outcome {
            Outcome::Passed => Self { state: State::Healthy, failing_streak: 0, was_healthy: true, ..self },
            Outcome::Failed if self.is_excused(rules, now) => self,
            Outcome::Failed => {
                let failing_streak = self.failing_streak.saturating_add(1);
                let state = if failing_streak >= rules.retries { State::Unhealthy } else { self.state };
                Self { state, failing_streak, ..self }
            }
        }
    }

    /// When the next check is due, of which the last ended at `now`.
    pub fn next_check(self, rules: &Rules, now: Duration) -> Duration {
        let pause = if self.is_excused(rules, now) { rules.start_interval } else { rules.interval };
        now.saturating_add(pause)
    }

    fn is_excused(self, rules: &Rules, now: Duration) -> bool {
        self.state == State::Starting && now.saturating_sub(self.began) < rules.start_period
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn rules(start_period: u64, retries: u32) -> Rules {
        Rules {
            interval: 30 * SECOND,
            timeout: 5 * SECOND,
            start_period: Duration::from_secs(start_period),
            start_interval: 2 * SECOND,
            retries,
        }
    }

    fn after(rules: &Rules, results: &[(u64, Outcome)]) -> Condition {
        let start = Condition::at_start(Duration::ZERO);
        results
            .iter()
            .fold(start, |condition, (at, outcome)| condition.step(rules, Duration::from_secs(*at), *outcome))
    }

    #[test]
    fn failures_in_a_row_make_it_unhealthy_and_one_success_healthy() {
        use Outcome::{Failed, Passed};
        let rules = rules(10, 3);
        let rows: [(&[_], _, _); 7] = [
            (&[], State::Starting, 0),
            (&[(1, Failed), (5, Failed), (9, Failed)], State::Starting, 0),
            (&[(10, Failed), (11, Failed)], State::Starting, 2),
            (&[(10, Failed), (11, Failed), (12, Failed)], State::Unhealthy, 3),
            (&[(1, Passed), (2, Failed), (3, Failed)], State::Healthy, 2),
            (&[(1, Passed), (2, Failed), (3, Failed), (4, Failed)], State::Unhealthy, 3),
            (&[(10, Failed), (11, Failed), (12, Failed), (13, Passed)], State::Healthy, 0),
        ];
        for (results, state, streak) in rows {
            let condition = after(&rules, results);
            assert_eq!((condition.state, condition.failing_streak), (state, streak), "{results:?}");
        }
    }

    #[test]
    fn the_start_period_has_an_interval_of_its_own_until_it_is_healthy() {
        let rules = rules(10, 3);
        let start = Condition::at_start(SECOND);
        assert_eq!(start.next_check(&rules, SECOND), 3 * SECOND);
        assert_eq!(start.next_check(&rules, 11 * SECOND), 41 * SECOND);
        assert_eq!(start.step(&rules, SECOND, Outcome::Passed).next_check(&rules, SECOND), 31 * SECOND);
    }

    proptest! {
        /// Against a plain reading of all that came: the streak is what has failed since the last success, or since the
        /// start period ended where there was none.
        #[test]
        fn the_state_follows_from_the_results(
            start_period in 0u64..20,
            retries in 1u32..5,
            steps in prop::collection::vec((0u64..8, any::<bool>()), 0..40),
        ) {
            let rules = rules(start_period, retries);
            let mut now = 0;
            let results: Vec<_> = steps
                .into_iter()
                .map(|(pause, passed)| {
                    now += pause;
                    (now, if passed { Outcome::Passed } else { Outcome::Failed })
                })
                .collect();
            let first_pass = results.iter().position(|(_, outcome)| *outcome == Outcome::Passed);
            let mut streak = 0;
            let mut state = State::Starting;
            for (n, (at, outcome)) in results.iter().enumerate() {
                let is_excused = first_pass.is_none_or(|first| n < first)
                    && state == State::Starting
                    && *at < start_period;
                match outcome {
                    Outcome::Passed => (streak, state) = (0, State::Healthy),
                    Outcome::Failed if is_excused => {}
                    Outcome::Failed => streak += 1,
                }
                if streak >= retries {
                    state = State::Unhealthy;
                }
            }
            let condition = after(&rules, &results);
            prop_assert_eq!((condition.state, condition.failing_streak), (state, streak));
            prop_assert_eq!(condition.was_healthy, first_pass.is_some());
            let next = condition.next_check(&rules, Duration::from_secs(now));
            prop_assert!(next > Duration::from_secs(now));
        }
    }
}
