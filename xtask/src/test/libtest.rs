//! Reads what libtest prints with `--show-output`, line by line, into a tally.
//!
//! ```text
//!   test a::b ... ok | FAILED | ignored, why
//!   successes:                      what passing tests wrote: read for skips, not shown
//!   ---- a::b stdout ----
//!   skipped: a::b: no nft here      or without the name, which is then the section's; or `skipped a::b: ...`
//!   failures: ...                   shown
//!   test result: ok. 5 passed; 0 failed; 1 ignored; ...
//! ```

use std::collections::BTreeSet;

use super::tally::Tally;

/// Takes lines in, and tells of each whether a person wants to see it.
#[derive(Debug, Default)]
pub struct Reader {
    /// The program whose tests these are, in front of their names.
    suite: String,
    section: Section,
    tally: Tally,
    /// Told by tests that libtest counted as passed.
    skipped_of_passed: u64,
    /// Every skip as it was told.
    told: BTreeSet<String>,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum Section {
    #[default]
    Plain,
    /// Within `successes:`, and whose output it is.
    Successes(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Show {
    Yes,
    No,
}

impl Reader {
    pub fn line(&mut self, line: &str) -> Show {
        if let Some(suite) = suite(line) {
            self.suite = suite;
        } else if line == "successes:" {
            self.section = Section::Successes(String::new());
        } else if line == "failures:" {
            self.section = Section::Plain;
        } else if let Some(result) = line.strip_prefix("test result: ") {
            self.section = Section::Plain;
            self.tally.passed += count(result, "passed");
        } else if let Some(skip) = told_skip(line) {
            self.skip(skip);
        } else if let Section::Successes(test) = &mut self.section {
            if let Some(name) = line.strip_prefix("---- ").and_then(|rest| rest.strip_suffix(" stdout ----"))
            {
                *test = name.to_owned();
            }
        } else if let Some((name, outcome)) =
            line.strip_prefix("test ").and_then(|rest| rest.rsplit_once(" ... "))
        {
            // Some runners pad names.
            self.outcome(name.trim_end(), outcome);
        }
        if self.section == Section::Plain { Show::Yes } else { Show::No }
    }

    /// Takes a line of the file for skips. What tests also wrote to their output is known already.
    pub fn file_line(&mut self, line: &str) {
        if let Some(skip) = told_skip(line).filter(|skip| !self.told.contains(*skip)) {
            self.suite.clear();
            self.skip(skip);
        }
    }

    /// What it all came to.
    pub fn tally(mut self) -> Tally {
        self.tally.passed = self.tally.passed.saturating_sub(self.skipped_of_passed);
        self.tally
    }

    fn outcome(&mut self, name: &str, outcome: &str) {
        let name = self.full(name);
        if outcome == "FAILED" {
            self.tally.fail(&name, "see its output above");
        } else if let Some(why) = outcome.strip_prefix("ignored") {
            let why = why.trim_start_matches(", ");
            self.tally.skip(&name, if why.is_empty() { "marked as ignored" } else { why });
        }
    }

    fn skip(&mut self, told: &str) {
        self.told.insert(told.to_owned());
        let section = match &self.section {
            Section::Successes(test) if !test.is_empty() => Some(self.full(test)),
            Section::Successes(_) | Section::Plain => None,
        };
        // A name is one word; a reason without a name may well hold a colon.
        let (name, reason) = match told.split_once(": ").filter(|(name, _)| !name.contains(' ')) {
            Some((name, reason)) => (section.unwrap_or_else(|| self.full(name)), reason),
            None => (section.unwrap_or_else(|| self.full("a test")), told),
        };
        // A test may say it once for each thing it leaves out.
        if !self.tally.skipped.iter().any(|known| known.name == name) {
            self.tally.skip(&name, reason);
            self.skipped_of_passed += 1;
        }
    }

    fn full(&self, name: &str) -> String {
        let known = self.suite.is_empty() || name.starts_with(&format!("{}: ", self.suite));
        if known { name.to_owned() } else { format!("{}::{name}", self.suite) }
    }
}

/// `skipped: NAME: reason`, `SKIPPED: reason` or `skipped NAME: reason`.
fn told_skip(line: &str) -> Option<&str> {
    let named = |rest: &&str| rest.split_once(": ").is_some_and(|(name, _)| !name.contains(' '));
    line.strip_prefix("skipped: ")
        .or_else(|| line.strip_prefix("SKIPPED: "))
        .or_else(|| line.strip_prefix("skipped ").filter(named))
}

/// Cargo's line before a program's tests: `Running unittests src/lib.rs (target/…/deps/berth-0123456789abcdef)`.
fn suite(line: &str) -> Option<String> {
    let path = line.trim_start().strip_prefix("Running ")?.strip_suffix(')')?.rsplit_once('(')?.1;
    let file = path.rsplit('/').next()?;
    Some(file.rsplit_once('-').map_or(file, |(name, _)| name).to_owned())
}

fn count(result: &str, word: &str) -> u64 {
    let parts = result.split([';', '.']).map(str::trim);
    let number =
        parts.filter_map(|part| part.strip_suffix(word)).find_map(|number| number.trim().parse().ok());
    number.unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> (Tally, String) {
        let mut reader = Reader::default();
        let shown: Vec<&str> = text.lines().filter(|line| reader.line(line) == Show::Yes).collect();
        (reader.tally(), shown.join("\n"))
    }

    #[test]
    fn passes_failures_and_ignored_ones_are_counted_by_name() {
        let (tally, shown) = read(
            "
     Running tests/cri.rs (target/t/debug/deps/cri-0123456789abcdef)
running 4 tests
test a::good ... ok
test a::bad ... FAILED
test a::later ... ignored, no kernel here
test a::fine ... ok

failures:

---- a::bad stdout ----
it was bad

failures:
    a::bad

test result: FAILED. 2 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.5s
",
        );
        assert_eq!(tally.to_string(), "2 passed, 1 failed, 1 skipped");
        assert_eq!(
            (tally.failed[0].name.as_str(), tally.skipped[0].reason.as_str()),
            ("cri::a::bad", "no kernel here")
        );
        assert!(shown.contains("it was bad"), "{shown}");
    }

    #[test]
    fn the_file_repeats_what_the_output_said() {
        let mut reader = Reader::default();
        for line in [
            "     Running t (t/a-01)",
            "skipped b: c",
            "     Running t (t/d-01)",
            "test result: ok. 3 passed;",
        ] {
            reader.line(line);
        }
        for line in ["skipped b: c", "skipped e: f"] {
            reader.file_line(line);
        }
        let tally = reader.tally();
        assert_eq!(tally.to_string(), "1 passed, 0 failed, 2 skipped");
        assert_eq!(tally.skipped[1].name, "e");
    }

    #[test]
    fn a_skip_that_passed_counts_as_skipped_once() {
        let (tally, shown) = read(
            "test net::one ... ok
test net::two ... ok

successes:

---- net::one stdout ----
SKIPPED: needs root: EPERM
much output

---- net::two stdout ----
skipped net::two: no nft

successes:
    net::one
    net::two

test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s
skipped: net::two: no nft
test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s
",
        );
        assert_eq!(tally.to_string(), "1 passed, 0 failed, 2 skipped");
        assert_eq!(tally.skipped[0].name, "net::one");
        assert_eq!(tally.skipped[0].reason, "needs root: EPERM");
        assert!(!shown.contains("much output"), "{shown}");
    }
}
