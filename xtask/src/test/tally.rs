//! What tests came to: a number, and names with reasons where somebody must look.

use std::fmt;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    pub passed: u64,
    pub failed: Vec<Named>,
    pub skipped: Vec<Named>,
}

/// A test or check, and what there is to say of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    pub name: String,
    pub reason: String,
}

impl Tally {
    /// One failure and nothing else.
    pub fn failure(name: &str, reason: &str) -> Self {
        let mut tally = Self::default();
        tally.fail(name, reason);
        tally
    }

    pub fn fail(&mut self, name: &str, reason: &str) {
        self.failed.push(Named { name: name.into(), reason: reason.into() });
    }

    pub fn skip(&mut self, name: &str, reason: &str) {
        self.skipped.push(Named { name: name.into(), reason: reason.into() });
    }

    pub fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed.extend(other.failed);
        self.skipped.extend(other.skipped);
    }

    /// Prints what was skipped, what failed, and the numbers on the last line.
    pub fn report(&self) {
        println!();
        for (word, list) in [("skipped", &self.skipped), ("FAILED", &self.failed)] {
            list.iter().for_each(|Named { name, reason }| println!("{word}: {name}: {reason}"));
        }
        println!("{self}");
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{} passed, {} failed, {} skipped",
            self.passed,
            self.failed.len(),
            self.skipped.len()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_is_what_others_read() {
        let mut tally = Tally { passed: 3, ..Tally::default() };
        tally.add(Tally::failure("a", "b"));
        tally.skip("vm", "over budget");
        assert_eq!(tally.to_string(), "3 passed, 1 failed, 1 skipped");
    }
}
