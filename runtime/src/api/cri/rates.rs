//! usage_nano_cores: how fast processor time went by between two looks at the same thing.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

/// Looks that are closer together than this share a rate: over less, the kernel's counters are too coarse.
const LEAST_NS: i64 = 1_000_000_000;
/// What was not looked at for so long is gone, or its rate would be history.
const FORGOTTEN_NS: i64 = 600 * 1_000_000_000;
/// So many are kept without a sweep.
const FEW: usize = 256;

/// The last sample of each container and pod, shared by all calls. Bounded by what was looked at of late.
#[derive(Debug, Clone, Default)]
pub struct Rates(Arc<Mutex<Seen>>);

#[derive(Debug, Default)]
struct Seen {
    samples: HashMap<String, Sample>,
    sweep_at: usize,
}

#[derive(Debug, Clone, Copy)]
struct Sample {
    at_ns: i64,
    usage_ns: u64,
    nano_cores: Option<u64>,
}

impl Rates {
    /// Nanoseconds of processor per second; `None` at the first look.
    pub fn nano_cores(&self, id: &str, at_ns: i64, usage_ns: u64) -> Option<u64> {
        // A panic leaves whole samples behind.
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = seen.samples.get(id).copied();
        if let Some(before) = before
            && (0..LEAST_NS).contains(&(at_ns - before.at_ns))
        {
            return before.nano_cores;
        }
        let nano_cores = before.and_then(|before| before.rate(at_ns, usage_ns));
        seen.samples.insert(id.to_owned(), Sample { at_ns, usage_ns, nano_cores });
        if seen.samples.len() > seen.sweep_at.max(FEW) {
            seen.samples.retain(|_, sample| at_ns - sample.at_ns < FORGOTTEN_NS);
            seen.sweep_at = seen.samples.len() * 2;
        }
        nano_cores
    }
}

impl Sample {
    /// A counter or clock that went back begins anew.
    fn rate(self, at_ns: i64, usage_ns: u64) -> Option<u64> {
        let elapsed = u64::try_from(at_ns - self.at_ns).ok().filter(|elapsed| *elapsed > 0)?;
        let used = usage_ns.checked_sub(self.usage_ns)?;
        u64::try_from(u128::from(used) * 1_000_000_000 / u128::from(elapsed)).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000_000;

    #[test]
    fn a_rate_needs_two_looks_and_time_between_them() {
        // When in seconds, the counter, the answer.
        let rows = [
            (100, 5_000_000_000, None),
            (102, 6_000_000_000, Some(500_000_000)),
            (102, 9_000_000_000, Some(500_000_000)),
            (104, 10_000_000_000, Some(2_000_000_000)),
            // The counter went back: another container's, or a new group.
            (106, 1_000, None),
            (116, 11_000, Some(1_000)),
            // The clock went back.
            (50, 12_000, None),
            (60, 12_000, Some(0)),
        ];
        let rates = Rates::default();
        for (at, usage, expected) in rows {
            assert_eq!(rates.nano_cores("a", at * SECOND, usage), expected, "at {at}");
        }
        assert_eq!(rates.nano_cores("b", 200 * SECOND, 7), None);
    }

    #[test]
    fn what_nobody_looks_at_any_more_is_forgotten() {
        let rates = Rates::default();
        for number in 0..10_000i64 {
            rates.nano_cores(&number.to_string(), number * SECOND, 1);
        }
        let kept = rates.0.lock().unwrap().samples.len();
        assert!(kept <= 2 * 600 + FEW, "{kept}");
    }
}
