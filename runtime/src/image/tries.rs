//! Every try at one request, so that the error of the last tells of all. Pure.

use super::registry::Failure;
use crate::{Error, error::Cause};

const PREFIX: &str = "RegistryUnavailable: ";

/// Different ones in one message.
const TOLD_MAX: usize = 6;

/// What went wrong, and how often in a row.
#[derive(Debug, Default)]
pub(super) struct Tries(Vec<(String, u32)>);

impl Tries {
    pub(super) fn note(&mut self, failure: &Failure) {
        let cause = cause(failure.error());
        match self.0.last_mut() {
            Some((last, times)) if *last == cause => *times += 1,
            _ => self.0.push((cause, 1)),
        }
    }

    /// The last failure, which was noted too, with those before it.
    pub(super) fn error(self, failure: Failure) -> Error {
        let error = Error::from(failure);
        let tries: u32 = self.0.iter().map(|(_, times)| times).sum();
        if tries < 2 {
            return error;
        }
        // A registry that cuts again and again says something else each time.
        let first = self.0.len().saturating_sub(TOLD_MAX);
        let others: u32 = self.0[..first].iter().map(|(_, times)| times).sum();
        let told: Vec<String> = self.0[first..]
            .iter()
            .map(|(cause, times)| match times {
                1 => cause.clone(),
                times => format!("{cause} ({times} times)"),
            })
            .collect();
        let prefix = if error.source.as_ref().is_some_and(|cause| cause.to_string().starts_with(PREFIX)) {
            PREFIX
        } else {
            ""
        };
        let others = if others > 0 { format!("{others} others, then ") } else { String::new() };
        let text = format!("{prefix}tried {tries} times: {others}{}", told.join(", then "));
        Error { source: None, ..error }.because(Cause(text))
    }
}

fn cause(error: &Error) -> String {
    let text = error.source.as_ref().map(ToString::to_string).unwrap_or_default();
    text.strip_prefix(PREFIX).unwrap_or(&text).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Kind;

    fn failure(cause: &str) -> Failure {
        let error = Error::new(Kind::Unavailable, "ask registry", "r.io");
        Failure::Passing(error.because(Cause(format!("{PREFIX}{cause}"))).hint("wait"))
    }

    #[test]
    fn all_tries_are_told_and_equal_ones_are_counted() {
        let mut tries = Tries::default();
        for cause in ["500 Oops", "500 Oops", "stalled", "500 Oops"] {
            tries.note(&failure(cause));
        }
        let error = tries.error(failure("500 Oops"));
        assert_eq!(
            error.chain(),
            "ask registry r.io: RegistryUnavailable: tried 4 times: 500 Oops (2 times), then stalled, then 500 Oops; wait"
        );
    }

    #[test]
    fn a_single_try_is_told_as_it_is() {
        let mut tries = Tries::default();
        tries.note(&failure("refused"));
        let chain = tries.error(failure("refused")).chain();
        assert_eq!(chain, "ask registry r.io: RegistryUnavailable: refused; wait");
    }
}
