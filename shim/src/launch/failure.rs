//! How a step of the launch fails: step, errno, object, and words where errno alone would mislead.

use std::{io, path::Path};

use berth_launch::v1::{Failure, Step};

pub type Result<T> = std::result::Result<T, Failure>;

/// Turns an errno into a failure of a step.
pub trait At<T> {
    fn at(self, step: Step, object: impl AsRef<Path>) -> Result<T>;
}

impl<T> At<T> for io::Result<T> {
    fn at(self, step: Step, object: impl AsRef<Path>) -> Result<T> {
        self.map_err(|error| fail(step, object, error.raw_os_error().unwrap_or(0), ""))
    }
}

impl<T> At<T> for rustix::io::Result<T> {
    fn at(self, step: Step, object: impl AsRef<Path>) -> Result<T> {
        self.map_err(|errno| fail(step, object, errno.raw_os_error(), ""))
    }
}

/// A failure's own words, or what its errno says.
pub fn cause(failure: &Failure) -> String {
    match failure.detail.as_str() {
        "" => io::Error::from_raw_os_error(failure.errno).to_string(),
        detail => detail.to_owned(),
    }
}

/// A failure with words of its own.
pub fn fail(step: Step, object: impl AsRef<Path>, errno: i32, detail: &str) -> Failure {
    Failure {
        step: step.into(),
        errno,
        object: object.as_ref().to_string_lossy().into_owned(),
        detail: detail.to_owned(),
    }
}
