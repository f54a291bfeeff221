//! Numbers as people read them. Pure.

/// How long a span is, in its largest unit: "5 seconds", "About a minute", "3 weeks".
pub(super) fn span(nanoseconds: i64) -> String {
    let seconds = nanoseconds.max(0) / 1_000_000_000;
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    let days = hours / 24;
    match (seconds, minutes, hours, days) {
        (0, ..) => "Less than a second".into(),
        (1, ..) => "1 second".into(),
        (_, 0, ..) => format!("{seconds} seconds"),
        (_, 1, ..) => "About a minute".into(),
        (_, _, 0, _) => format!("{minutes} minutes"),
        (_, _, 1, _) => "About an hour".into(),
        (_, _, _, 0 | 1) => format!("{hours} hours"),
        (_, _, _, 2..=13) => format!("{days} days"),
        (_, _, _, 14..=59) => format!("{} weeks", days / 7),
        (_, _, _, 60..=729) => format!("{} months", days / 30),
        _ => format!("{} years", days / 365),
    }
}

/// In units of 1000, as disks and networks are sold: "12.3MB".
pub(super) fn decimal_bytes(bytes: u64) -> String {
    scaled(bytes, 1000.0, &["B", "kB", "MB", "GB", "TB", "PB", "EB"])
}

/// In units of 1024, as memory is: "12.3MiB".
pub(super) fn binary_bytes(bytes: u64) -> String {
    scaled(bytes, 1024.0, &["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"])
}

fn scaled(bytes: u64, base: f64, units: &[&str]) -> String {
    let (mut value, mut unit) = (bytes as f64, 0);
    while value >= base && unit + 1 < units.len() {
        value /= base;
        unit += 1;
    }
    let decimals = match (unit, value) {
        (0, _) => 0,
        (_, value) if value < 10.0 => 2,
        (_, value) if value < 100.0 => 1,
        _ => 0,
    };
    format!("{value:.decimals$}{}", units[unit])
}

/// The first twelve digits of an id, without the name of its hash.
pub(super) fn short_id(id: &str) -> &str {
    let id = id.strip_prefix("sha256:").unwrap_or(id);
    id.get(..12).unwrap_or(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_is_told_in_its_largest_unit() {
        let rows = [
            (-5, "Less than a second"),
            (0, "Less than a second"),
            (1, "1 second"),
            (59, "59 seconds"),
            (60, "About a minute"),
            (150, "2 minutes"),
            (3600, "About an hour"),
            (36 * 3600, "36 hours"),
            (50 * 3600, "2 days"),
            (20 * 86400, "2 weeks"),
            (90 * 86400, "3 months"),
            (800 * 86400, "2 years"),
        ];
        for (seconds, expected) in rows {
            assert_eq!(span(seconds * 1_000_000_000), expected, "{seconds}");
        }
    }

    #[test]
    fn sizes_have_three_digits() {
        assert_eq!(decimal_bytes(0), "0B");
        assert_eq!(decimal_bytes(999), "999B");
        assert_eq!(decimal_bytes(1_234_567), "1.23MB");
        assert_eq!(decimal_bytes(12_345_678), "12.3MB");
        assert_eq!(binary_bytes(64 << 20), "64.0MiB");
        assert_eq!(binary_bytes(1 << 30), "1.00GiB");
        assert_eq!(decimal_bytes(u64::MAX), "18.4EB");
    }

    #[test]
    fn an_id_is_shortened_wherever_it_is_long_enough() {
        assert_eq!(short_id("sha256:0123456789abcdef"), "0123456789ab");
        assert_eq!(short_id("0123"), "0123");
    }
}
