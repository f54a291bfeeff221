//! Why `berth` did not do it: one line for the person, one code for the script.
//!
//! Exit codes: the container's own for run, exec, attach and wait; 125 where berth itself failed. Where a program
//! could not be started the code is docker's: 127 not found, 126 not executable. The daemon tells which in words:
//! only errors of Start and Exec are read so, by the kernel's name for the cause.

use std::{error::Error as _, io};

use tonic::{Code, Status};

pub(super) type Result<T, E = Failure> = std::result::Result<T, E>;

/// berth itself failed.
pub(super) const FAILED: u8 = 125;
const NOT_EXECUTABLE: u8 = 126;
const NOT_FOUND: u8 = 127;

#[derive(Debug)]
pub(super) struct Failure {
    pub code: u8,
    /// Empty: there is nothing to say.
    pub text: String,
}

impl Failure {
    pub(super) fn new(text: impl Into<String>) -> Self {
        Self { code: FAILED, text: text.into() }
    }

    /// Whoever read our output has enough of it.
    pub(super) fn nobody_reads() -> Self {
        Self { code: 0, text: String::new() }
    }

    pub(super) fn io(what: &str, error: &io::Error) -> Self {
        Self::new(format!("{what}: {error}"))
    }

    /// The answer to Start or Exec, which may be about the program.
    pub(super) fn of_program(status: &Status) -> Self {
        let failure = Self::from(status);
        Self { code: program_code(&failure.text), ..failure }
    }
}

/// Whether it was the program that could not be executed, and if so whether it, or what it needs to run, is absent.
fn program_code(text: &str) -> u8 {
    const ABSENT: [&str; 4] = ["no such program", "no such file or directory", "is missing", "line ending"];
    let text = text.to_lowercase();
    match text.split_once("execute ") {
        None => FAILED,
        Some((_, cause)) if ABSENT.iter().any(|word| cause.contains(word)) => NOT_FOUND,
        Some(_) => NOT_EXECUTABLE,
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        Self::from(&status)
    }
}

impl From<&Status> for Failure {
    fn from(status: &Status) -> Self {
        let message = status.message();
        // A source is there only where no daemon said it: the connection did.
        if let Some(cause) = status.source() {
            return Self::new(format!(
                "the connection to the daemon broke: {}; containers run on, ask again once it is back",
                deepest(cause)
            ));
        }
        Self::new(match (status.code(), message) {
            (Code::Unimplemented, "") => "whoever answers at the socket does not speak berth.v1; is it \
                                          berthd, and as new as this berth?"
                .into(),
            (code, "") => format!("the daemon answered {code:?} without a word"),
            (_, message) => message.to_owned(),
        })
    }
}

fn deepest<'a>(mut error: &'a (dyn std::error::Error + 'static)) -> &'a (dyn std::error::Error + 'static) {
    while let Some(cause) = error.source() {
        error = cause;
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_cannot_start_has_dockers_codes() {
        let rows = [
            ("execute nosuch: there is no such program in PATH (/bin)", 127),
            ("execute /bin/nosuch: No such file or directory (os error 2)", 127),
            ("execute /a.sh: its interpreter /bin/bash is missing; use an image that has it", 127),
            ("execute /a.sh: it has no exec permission bit; chmod +x it", 126),
            ("execute /a: it is built for aarch64, this machine is x86_64", 126),
            ("execute /etc: it is a directory", 126),
            ("find image nosuch: not found", 125),
            ("enter working directory /x: No such file or directory (os error 2)", 125),
        ];
        for (text, expected) in rows {
            assert_eq!(Failure::of_program(&Status::internal(text)).code, expected, "{text}");
        }
    }

    #[test]
    fn other_failures_are_berths_own_whatever_their_words() {
        let status = Status::not_found("find image x: not found; `berth pull x` fetches it");
        let failure = Failure::from(status);
        assert_eq!(
            (failure.code, failure.text.as_str()),
            (125, "find image x: not found; `berth pull x` fetches it")
        );
        assert!(Failure::from(Status::unimplemented("")).text.contains("is it berthd"));
    }
}
