//! What samples come to. Pure: no clock, no machine.

/// Samples in a few numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Summary {
    pub count: usize,
    pub min: f64,
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub max: f64,
    /// How far the middle half lies apart, as a part of the median; NaN where that is nothing.
    pub spread: f64,
}

/// Summarizes samples in any order; those that are no numbers count for nothing.
pub fn summary(samples: &[f64]) -> Option<Summary> {
    let mut sorted: Vec<f64> = samples.iter().copied().filter(|sample| sample.is_finite()).collect();
    sorted.sort_by(f64::total_cmp);
    let (min, max) = (*sorted.first()?, *sorted.last()?);
    let p50 = percentile(&sorted, 50);
    Some(Summary {
        count: sorted.len(),
        min,
        p50,
        p90: percentile(&sorted, 90),
        p99: percentile(&sorted, 99),
        max,
        spread: if p50 == 0.0 {
            f64::NAN
        } else {
            (percentile(&sorted, 75) - percentile(&sorted, 25)) / p50.abs()
        },
    })
}

/// The nearest rank of sorted samples, of which there is one at least.
fn percentile(sorted: &[f64], percent: usize) -> f64 {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted[rank - 1]
}

/// Whether less or more of it is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Better {
    Less,
    More,
}

/// The best of several, by name; None among none.
pub fn best<'a>(better: Better, of: impl IntoIterator<Item = (&'a str, f64)>) -> Option<(&'a str, f64)> {
    let numbers = of.into_iter().filter(|(_, value)| value.is_finite());
    match better {
        Better::Less => numbers.min_by(|one, other| one.1.total_cmp(&other.1)),
        Better::More => numbers.max_by(|one, other| one.1.total_cmp(&other.1)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn percentiles_are_nearest_ranks() {
        let samples: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        let summary = summary(&samples).unwrap();
        assert_eq!((summary.p50, summary.p90, summary.p99), (50.0, 90.0, 99.0));
        assert_eq!((summary.min, summary.max, summary.count), (1.0, 100.0, 100));
        assert_eq!(summary.spread, 1.0);
    }

    #[test]
    fn what_is_no_number_counts_for_nothing() {
        assert_eq!(summary(&[f64::NAN, f64::INFINITY]), None);
        assert_eq!(summary(&[f64::NAN, 3.0]).unwrap().count, 1);
        assert_eq!(best(Better::Less, [("a", f64::NAN)]), None);
    }

    proptest! {
        #[test]
        fn a_summary_is_ordered_and_made_of_samples(samples in prop::collection::vec(-1e9..1e9f64, 1..300)) {
            let summary = summary(&samples).unwrap();
            let order = [summary.min, summary.p50, summary.p90, summary.p99, summary.max];
            prop_assert!(order.windows(2).all(|pair| pair[0] <= pair[1]));
            prop_assert!(order.iter().all(|one| samples.contains(one)));
            let at_most = samples.iter().filter(|sample| **sample <= summary.p50).count();
            prop_assert!(at_most * 2 >= samples.len());
            let at_least = samples.iter().filter(|sample| **sample >= summary.p50).count();
            prop_assert!(at_least * 2 >= samples.len());
        }

        #[test]
        fn the_order_of_samples_changes_nothing(mut samples in prop::collection::vec(1.0..1e6f64, 1..100)) {
            let one = summary(&samples);
            samples.reverse();
            prop_assert_eq!(one, summary(&samples));
        }

        #[test]
        fn nobody_is_better_than_the_best(values in prop::collection::vec(0.0..1e6f64, 1..20)) {
            let named = || values.iter().map(|value| ("x", *value));
            let less = best(Better::Less, named()).unwrap().1;
            let more = best(Better::More, named()).unwrap().1;
            prop_assert!(values.iter().all(|value| less <= *value && *value <= more));
        }
    }
}
