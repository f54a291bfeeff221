//! How much of a container's output goes into its log in a second: whole lines, and what is more is dropped and counted.
//! Pure.

use std::time::Duration;

use crate::log::Source;

const SECOND: Duration = Duration::from_secs(1);

/// What is dropped and not told yet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Dropped {
    pub lines: u64,
    pub bytes: u64,
}

/// What becomes of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Kept,
    Dropped,
}

#[derive(Debug)]
pub struct Rate {
    pub bytes: u64,
    /// When the present second began.
    since: Duration,
    used: u64,
    /// Of the line of each stream that is not at its end yet.
    stdout: Option<Fate>,
    stderr: Option<Fate>,
    dropped: Dropped,
}

impl Rate {
    /// None for 0 bytes a second, which is no limit.
    pub fn of(bytes: u64) -> Option<Box<Self>> {
        let new = |bytes| Self {
            bytes,
            since: Duration::ZERO,
            used: 0,
            stdout: None,
            stderr: None,
            dropped: Dropped::default(),
        };
        (bytes != 0).then(|| Box::new(new(bytes)))
    }

    /// Whether a record is to be written. A line has one fate in all its records; one that is longer than the limit comes
    /// through if it is the first of a second.
    pub fn admits(&mut self, source: Source, ends_line: bool, length: u64, now: Duration) -> bool {
        if now.saturating_sub(self.since) >= SECOND {
            (self.since, self.used) = (now, 0);
        }
        let fits = self.used == 0 || self.used.saturating_add(length) <= self.bytes;
        let line = match source {
            Source::Stdout => &mut self.stdout,
            Source::Stderr => &mut self.stderr,
        };
        let fate = line.unwrap_or(if fits { Fate::Kept } else { Fate::Dropped });
        *line = (!ends_line).then_some(fate);
        match fate {
            Fate::Kept => self.used = self.used.saturating_add(length),
            Fate::Dropped => {
                self.dropped.bytes += length;
                self.dropped.lines += u64::from(ends_line);
            }
        }
        fate == Fate::Kept
    }

    /// The stream has ended within a line: what comes next is another.
    pub fn cut(&mut self, source: Source) {
        let line = match source {
            Source::Stdout => &mut self.stdout,
            Source::Stderr => &mut self.stderr,
        };
        if line.take() == Some(Fate::Dropped) {
            self.dropped.lines += 1;
        }
    }

    /// When what was dropped is to be told, if any was: once a second.
    pub fn due(&self) -> Option<Duration> {
        (self.dropped != Dropped::default()).then_some(self.since + SECOND)
    }

    /// What is to be told, once.
    pub fn take(&mut self) -> Dropped {
        std::mem::take(&mut self.dropped)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn what_is_over_the_limit_is_dropped_until_the_next_second() {
        let mut rate = Rate::of(100).unwrap();
        let at = 5 * SECOND;
        assert!(rate.admits(Source::Stdout, true, 60, at));
        assert!(rate.admits(Source::Stderr, true, 40, at));
        assert_eq!(rate.due(), None);
        assert!(!rate.admits(Source::Stdout, true, 1, at + 999 * MS));
        assert_eq!(rate.due(), Some(at + SECOND));
        assert!(rate.admits(Source::Stdout, true, 500, at + SECOND));
        assert_eq!(rate.take(), Dropped { lines: 1, bytes: 1 });
        assert_eq!(rate.due(), None);
        assert!(Rate::of(0).is_none());
    }

    #[test]
    fn a_line_is_kept_or_dropped_whole() {
        let mut rate = Rate::of(100).unwrap();
        assert!(rate.admits(Source::Stdout, false, 90, SECOND));
        assert!(!rate.admits(Source::Stderr, false, 90, SECOND));
        assert!(rate.admits(Source::Stdout, false, 90, SECOND));
        assert!(!rate.admits(Source::Stderr, true, 1, 3 * SECOND));
        assert!(rate.admits(Source::Stdout, true, 90, 3 * SECOND));
        assert_eq!(rate.take(), Dropped { lines: 1, bytes: 91 });
        rate.admits(Source::Stdout, true, 100, 4 * SECOND);
        assert!(!rate.admits(Source::Stdout, false, 7, 4 * SECOND));
        rate.cut(Source::Stdout);
        assert_eq!(rate.take(), Dropped { lines: 1, bytes: 7 });
        assert!(rate.admits(Source::Stdout, false, 7, 5 * SECOND));
    }

    proptest! {
        #[test]
        fn no_second_has_more_than_the_limit_and_nothing_goes_uncounted(
            limit in 1u64..1000,
            lines in prop::collection::vec((1u64..300, 0u32..400), 1..200),
        ) {
            let mut rate = Rate::of(limit).unwrap();
            let (mut now, mut kept, mut dropped) = (7 * SECOND, Vec::new(), Dropped::default());
            for (length, pause) in &lines {
                now += *pause * MS;
                match rate.admits(Source::Stdout, true, *length, now) {
                    true => kept.push((rate.since, *length)),
                    false => dropped = Dropped { lines: dropped.lines + 1, bytes: dropped.bytes + length },
                }
            }
            for (since, _) in &kept {
                let second: Vec<u64> = kept.iter().filter(|(at, _)| at == since).map(|(_, length)| *length).collect();
                prop_assert!(second.len() == 1 || second.iter().sum::<u64>() <= limit);
            }
            prop_assert_eq!(rate.take(), dropped);
            prop_assert_eq!(kept.len() as u64 + dropped.lines, lines.len() as u64);
        }
    }
}
