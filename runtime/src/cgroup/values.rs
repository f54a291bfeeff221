//! Limits as the texts that control files take. Pure.

use crate::{Error, Result};

/// Unlimited, as v1 and v2 write a count that `-1` stands for in CRI and OCI.
pub const MAX: &str = "max";

/// CPU shares (2..=262144, 1024 is usual) as a v2 weight (1..=10000, 100 is usual).
///
/// The quadratic curve in log2 that runc 1.3.2 and crun 1.23 went over to: it meets the least, the usual and the
/// greatest value on both sides, where the older linear one gave a default container a weight of 39 beside host
/// services with 100. <https://github.com/opencontainers/cgroups/pull/20>, <https://github.com/containers/crun/issues/1721>.
pub fn weight(shares: u64) -> u64 {
    match shares {
        ..=2 => 1,
        262_144.. => 10_000,
        _ => {
            let log = (shares as f64).log2();
            let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
            // Without the rounding the last bit of a float makes 101 of 100.
            let weight = 10f64.powf(exponent);
            (weight - 1e-9).ceil() as u64
        }
    }
}

/// The shares that such a weight is given for: the same curve the other way, exact at its three points.
pub fn shares(weight: u64) -> u64 {
    match weight {
        ..=1 => 2,
        10_000.. => 262_144,
        _ => {
            // log^2 + 125 log = c, solved for log.
            let right = 612.0 * ((weight as f64).log10() + 7.0 / 34.0);
            let log = (-125.0 + (125.0f64 * 125.0 + 4.0 * right).sqrt()) / 2.0;
            log.exp2().round() as u64
        }
    }
}

/// A v2 count: negative is unlimited.
pub fn count(value: i64) -> String {
    if value < 0 { MAX.to_owned() } else { value.to_string() }
}

/// `cpu.max` from what is wanted and what the file says now; what isn't wanted stays.
pub fn cpu_max(now: &str, quota_us: Option<i64>, period_us: Option<u64>) -> String {
    let mut words = now.split_whitespace();
    let (quota_now, period_now) = (words.next().unwrap_or(MAX), words.next().unwrap_or("100000"));
    let quota = quota_us.map_or_else(|| quota_now.to_owned(), count);
    let period = period_us.map_or_else(|| period_now.to_owned(), |period| period.to_string());
    format!("{quota} {period}")
}

/// `memory.swap.max` from memory plus swap, which is how CRI and OCI count, and memory alone (`None`: unlimited).
pub fn swap_max(memory_bytes: Option<i64>, memory_swap_bytes: i64) -> Result<String> {
    if memory_swap_bytes < 0 {
        return Ok(MAX.to_owned());
    }
    let cause = match memory_bytes {
        None => "memory plus swap is limited, memory is not",
        Some(memory) if memory_swap_bytes < memory => "memory plus swap is less than memory",
        Some(memory) => return Ok((memory_swap_bytes - memory).to_string()),
    };
    Err(Error::invalid("set swap limit", format!("{memory_swap_bytes} bytes"), cause))
}

/// A v1 byte limit as read: the kernel says "none" with a number just below 2^63, rounded to pages.
pub fn v1_bytes(text: &str) -> Option<u64> {
    const NEAR_ENOUGH: u64 = i64::MAX as u64 - (1 << 20);
    text.trim().parse().ok().filter(|bytes| *bytes < NEAR_ENOUGH)
}

/// A v2 byte limit as read: `max` is none.
pub fn v2_bytes(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// A name in `unified`: one file of the group, and a limit rather than the group's machinery.
pub fn unified_name(name: &str) -> Result<()> {
    let machinery = name.starts_with("cgroup.") && !name.starts_with("cgroup.max.");
    let path = name.is_empty() || name.contains(['/', '\0']) || name.contains("..") || name == ".";
    if path || machinery {
        return Err(Error::invalid(
            "set unified limit",
            format!("{name:?}"),
            "not the name of a limit's file",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_become_weights_along_the_curve() {
        for (shares, expected) in [
            (0, 1),
            (2, 1),
            (1024, 100),
            (2048, 174),
            (512, 59),
            (262_143, 10_000),
            (262_144, 10_000),
            (u64::MAX, 10_000),
        ] {
            assert_eq!(weight(shares), expected, "{shares}");
        }
        let mut last = 0;
        for shares in 0..20_000 {
            assert!(weight(shares) >= last && weight(shares) >= 1);
            last = weight(shares);
        }
    }

    #[test]
    fn cpu_max_keeps_what_is_not_asked_for() {
        let table = [
            ("max 100000", Some(50_000), None, "50000 100000"),
            ("50000 100000", None, Some(200_000), "50000 200000"),
            ("50000 100000", Some(-1), None, "max 100000"),
            ("", Some(1_000), Some(2_000), "1000 2000"),
        ];
        for (now, quota, period, expected) in table {
            assert_eq!(cpu_max(now, quota, period), expected);
        }
    }

    #[test]
    fn swap_is_the_sum_less_memory() {
        assert_eq!(swap_max(Some(100), 300).unwrap(), "200");
        assert_eq!(swap_max(Some(100), 100).unwrap(), "0");
        assert_eq!(swap_max(None, -1).unwrap(), "max");
        assert_eq!(swap_max(Some(100), -1).unwrap(), "max");
        assert!(swap_max(Some(100), 99).is_err());
        assert!(swap_max(None, 300).is_err());
    }

    #[test]
    fn unlimited_reads_as_none() {
        assert_eq!(v1_bytes("9223372036854771712\n"), None);
        assert_eq!(v1_bytes("1048576\n"), Some(1_048_576));
        assert_eq!(v2_bytes("max\n"), None);
        assert_eq!(v2_bytes("4096\n"), Some(4096));
    }

    #[test]
    fn unified_names_stay_in_the_group() {
        for bad in
            ["", ".", "..", "../memory.max", "a/b", "/etc/x", "memory.max\0", "cgroup.procs", "cgroup.kill"]
        {
            assert!(unified_name(bad).is_err(), "{bad:?}");
        }
        for good in ["memory.high", "io.max", "cgroup.max.depth", "hugetlb.2MB.max"] {
            assert!(unified_name(good).is_ok(), "{good}");
        }
    }

    #[test]
    fn a_weight_means_the_shares_it_was_made_from() {
        for (weight_of, expected) in [(1, 2), (100, 1024), (10_000, 262_144)] {
            assert_eq!(shares(weight_of), expected);
        }
        for weight_of in 2..10_000 {
            assert!(weight(shares(weight_of)).abs_diff(weight_of) <= 1 + weight_of / 100, "{weight_of}");
        }
    }
}
