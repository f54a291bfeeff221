//! The time: of day for records and log lines, monotonic for deadlines.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Unix nanoseconds.
pub fn now() -> i64 {
    let time = clock_gettime(ClockId::Realtime);
    time.tv_sec * 1_000_000_000 + time.tv_nsec
}

/// Since boot; never goes back.
pub fn monotonic() -> Duration {
    let time = clock_gettime(ClockId::Monotonic);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// The same of an instant in ticks since boot, as processes' start times are. `proc_pid_stat(5)`.
pub fn of_ticks(ticks: u64) -> Duration {
    let time = clock_gettime(ClockId::Boottime);
    let now = Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0));
    let at =
        Duration::from_millis(ticks.saturating_mul(1000) / rustix::param::clock_ticks_per_second().max(1));
    monotonic().saturating_sub(now.saturating_sub(at))
}

/// Writes `2026-11-24T01:02:03.000000004Z`: RFC 3339 with all nine digits, so that lines sort as text.
pub fn rfc3339(unix_nanos: i64, into: &mut Vec<u8>) {
    let (seconds, nanos) = (unix_nanos.div_euclid(1_000_000_000), unix_nanos.rem_euclid(1_000_000_000));
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let (year, month, day) = date(days);
    digits(into, year, 4);
    into.push(b'-');
    digits(into, month, 2);
    into.push(b'-');
    digits(into, day, 2);
    into.push(b'T');
    digits(into, second / 3600, 2);
    into.push(b':');
    digits(into, second / 60 % 60, 2);
    into.push(b':');
    digits(into, second % 60, 2);
    into.push(b'.');
    digits(into, nanos, 9);
    into.push(b'Z');
}

fn digits(into: &mut Vec<u8>, number: i64, width: u32) {
    for place in (0..width).rev() {
        into.push(b'0' + (number / 10i64.pow(place) % 10) as u8);
    }
}

/// Days since 1970-01-01 as a date of the Gregorian calendar. Years are counted from March, so that the leap day is the
/// last of its year; 146,097 days are 400 years.
fn date(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_start_was_a_while_ago() {
        let began = of_ticks(crate::launch::start_time(rustix::process::getpid().as_raw_nonzero().get()));
        assert!(began <= monotonic() && began > Duration::ZERO, "{began:?}");
        assert!(monotonic() - of_ticks(0) >= Duration::from_secs(1), "the machine was up before us");
    }

    #[test]
    fn instants_are_written_as_rfc_3339_of_one_width() {
        let rows = [
            (0, "1970-01-01T00:00:00.000000000Z"),
            (951_782_400_000_000_001, "2000-02-29T00:00:00.000000001Z"),
            (1_709_251_199_999_999_999, "2024-02-29T23:59:59.999999999Z"),
            (1_709_251_200_000_000_000, "2024-03-01T00:00:00.000000000Z"),
            (4_102_444_799_000_000_000, "2099-12-31T23:59:59.000000000Z"),
        ];
        for (nanos, expected) in rows {
            let mut text = Vec::new();
            rfc3339(nanos, &mut text);
            assert_eq!(String::from_utf8(text).unwrap(), expected);
        }
    }
}
