//! Whether an ended container is started again, and when: a person's by its shim, a kubelet's, where its pod asks for that,
//! by `berthd`. Pure.
//!
//! Delays double from 100 ms to 5 min; a run of 10 s is healthy and starts the count anew.

use std::time::Duration;

use crate::v1::{Restart, restart::Policy};

const FIRST: Duration = Duration::from_millis(100);
/// The longest delay.
pub const LONGEST: Duration = Duration::from_secs(300);
const HEALTHY: Duration = Duration::from_secs(10);

/// What came before: restarts in a row without a healthy run between them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct History {
    pub in_a_row: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    Restart { after: Duration, history: History },
    GiveUp,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    pub exit_code: i32,
    pub ran_for: Duration,
    pub fitness: Fitness,
}

/// What its health checks said of a run, where it was to be started again for their sake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fitness {
    /// Nothing against it.
    Sound,
    /// It was ended for being unhealthy, and had been healthy before.
    Fell,
    /// It was ended for being unhealthy and had never been anything else, however long it ran.
    NeverSound,
}

/// Decides after a run that nobody asked to end.
pub fn decide(restart: &Restart, history: History, run: Run) -> Decision {
    let ill = run.fitness != Fitness::Sound;
    let starts_anew = run.ran_for >= HEALTHY && run.fitness != Fitness::NeverSound;
    let in_a_row = if starts_anew { 0 } else { history.in_a_row };
    let wanted = match restart.policy() {
        Policy::Never => ill,
        Policy::OnFailure => {
            (run.exit_code != 0 || ill) && (restart.max_retries == 0 || in_a_row < restart.max_retries)
        }
        Policy::Always => true,
    };
    match wanted {
        false => Decision::GiveUp,
        true => Decision::Restart {
            after: delay(in_a_row),
            history: History { in_a_row: in_a_row.saturating_add(1) },
        },
    }
}

fn delay(in_a_row: u32) -> Duration {
    FIRST.saturating_mul(2u32.saturating_pow(in_a_row)).min(LONGEST)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn policy(policy: Policy, max_retries: u32) -> Restart {
        Restart { policy: policy.into(), max_retries }
    }

    fn run(exit_code: i32, seconds: u64) -> Run {
        Run { exit_code, ran_for: Duration::from_secs(seconds), fitness: Fitness::Sound }
    }

    #[test]
    fn each_policy_restarts_what_it_says() {
        let none = History::default();
        assert_eq!(decide(&policy(Policy::Never, 0), none, run(1, 0)), Decision::GiveUp);
        assert_eq!(decide(&policy(Policy::OnFailure, 0), none, run(0, 0)), Decision::GiveUp);
        for (restart, code) in [(policy(Policy::OnFailure, 0), 1), (policy(Policy::Always, 0), 0)] {
            let expected = Decision::Restart { after: FIRST, history: History { in_a_row: 1 } };
            assert_eq!(decide(&restart, none, run(code, 0)), expected);
        }
    }

    #[test]
    fn delays_double_up_to_five_minutes_and_a_healthy_run_starts_anew() {
        let always = policy(Policy::Always, 0);
        let mut history = History::default();
        let mut delays = Vec::new();
        for _ in 0..14 {
            let Decision::Restart { after, history: next } = decide(&always, history, run(1, 1)) else {
                panic!("always restarts")
            };
            delays.push(after.as_millis());
            history = next;
        }
        assert_eq!(delays[..5], [100, 200, 400, 800, 1600]);
        assert_eq!(delays[13], 300_000);
        let expected = Decision::Restart { after: FIRST, history: History { in_a_row: 1 } };
        assert_eq!(decide(&always, history, run(1, 10)), expected);
    }

    #[test]
    fn one_that_was_ended_for_being_unhealthy_is_started_again_under_any_policy() {
        let ended = |fitness| Run { fitness, ..run(0, 3600) };
        let before = History { in_a_row: 3 };
        for restart in [policy(Policy::Never, 0), policy(Policy::OnFailure, 5), policy(Policy::Always, 0)] {
            let anew = Decision::Restart { after: FIRST, history: History { in_a_row: 1 } };
            assert_eq!(decide(&restart, before, ended(Fitness::Fell)), anew);
            let on = Decision::Restart { after: 8 * FIRST, history: History { in_a_row: 4 } };
            assert_eq!(decide(&restart, before, ended(Fitness::NeverSound)), on);
        }
        let bounded = policy(Policy::OnFailure, 3);
        assert_eq!(decide(&bounded, before, ended(Fitness::NeverSound)), Decision::GiveUp);
    }

    proptest! {
        #[test]
        fn on_failure_gives_up_after_just_its_retries(max in 1u32..20, codes in 1i32..256) {
            let restart = policy(Policy::OnFailure, max);
            let mut history = History::default();
            let mut restarts = 0;
            while let Decision::Restart { history: next, after } = decide(&restart, history, run(codes, 0)) {
                prop_assert!(after >= FIRST && after <= LONGEST);
                history = next;
                restarts += 1;
                prop_assert!(restarts <= max);
            }
            prop_assert_eq!(restarts, max);
        }
    }
}
