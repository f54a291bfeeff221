//! The one error of the daemon: what was done, to what, why it went wrong, what to do about it.
//!
//! `Display` says operation, object and remedy, never the source: whoever prints, prints the whole chain
//! (`Error::chain`). `Kind` is what callers act on; `api` maps it to a gRPC code.

use std::{error::Error as StdError, fmt};

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What a caller can act on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The input can't be right, whoever tries.
    Invalid,
    NotFound,
    AlreadyExists,
    /// The object is in a state that does not allow it.
    Precondition,
    /// No space, no memory, a bound reached.
    Exhausted,
    Deadline,
    Cancelled,
    /// Something outside is away: a registry, a plugin. Trying again may help.
    Unavailable,
    Denied,
    /// A later version does it.
    Unimplemented,
    /// The rest: the kernel or the disk said no.
    Internal,
}

/// A failure that explains itself.
#[derive(Debug)]
pub struct Error {
    pub kind: Kind,
    /// A verb phrase: "pull image", "mount overlay".
    pub op: &'static str,
    /// What it was done to: an id, a path, a reference.
    pub object: String,
    /// What to do about it, where we know.
    pub hint: Option<String>,
    pub source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    pub fn new(kind: Kind, op: &'static str, object: impl Into<String>) -> Self {
        Self { kind, op, object: object.into(), hint: None, source: None }
    }

    pub fn invalid(op: &'static str, object: impl Into<String>, cause: impl Into<String>) -> Self {
        Self::new(Kind::Invalid, op, object).because(Cause(cause.into()))
    }

    pub fn not_found(op: &'static str, object: impl Into<String>) -> Self {
        Self::new(Kind::NotFound, op, object).because(Cause("not found".into()))
    }

    /// An I/O failure; ENOSPC and its kin become `Exhausted`.
    pub fn io(op: &'static str, object: impl Into<String>, source: impl Into<std::io::Error>) -> Self {
        let source = source.into();
        let kind = match source.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => Kind::Exhausted,
            _ => Kind::Internal,
        };
        Self::new(kind, op, object).because(source)
    }

    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The whole story in one line: `op object: cause: cause of the cause; hint`.
    pub fn chain(&self) -> String {
        let mut text = format!("{} {}", self.op, self.object);
        let mut source = self.source();
        let mut hints: Vec<&str> = self.hint.as_deref().into_iter().collect();
        while let Some(cause) = source {
            if let Some(inner) = cause.downcast_ref::<Error>() {
                text.push_str(&format!(": {} {}", inner.op, inner.object));
                hints.extend(inner.hint.as_deref());
            } else {
                // Some libraries' errors print their causes themselves.
                let said = cause.to_string();
                if !text.ends_with(&said) {
                    text.push_str(&format!(": {said}"));
                }
            }
            source = cause.source();
        }
        for hint in hints {
            text.push_str("; ");
            text.push_str(hint);
        }
        text
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.op, self.object)?;
        match &self.hint {
            Some(hint) => write!(f, "; {hint}"),
            None => Ok(()),
        }
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn StdError + 'static))
    }
}

/// A cause that is only words.
#[derive(Debug)]
pub struct Cause(pub String);

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl StdError for Cause {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_that_its_effect_has_told_already_is_not_told_again() {
        let inner = Error::new(Kind::Internal, "do", "it").because(Cause("a: b".into()));
        assert_eq!(inner.chain(), "do it: a: b");
        let told = Error::new(Kind::Internal, "see", "it").because(Outer);
        assert_eq!(told.chain(), "see it: outer: inner");
    }

    #[derive(Debug)]
    struct Outer;
    impl fmt::Display for Outer {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("outer: inner")
        }
    }
    impl StdError for Outer {
        fn source(&self) -> Option<&(dyn StdError + 'static)> {
            static INNER: std::sync::LazyLock<Cause> = std::sync::LazyLock::new(|| Cause("inner".into()));
            Some(&*INNER)
        }
    }

    #[test]
    fn chain_names_every_cause_once_and_ends_with_the_remedies() {
        let inner =
            Error::io("open", "/x", std::io::Error::from_raw_os_error(libc::ENOSPC)).hint("free some space");
        assert_eq!(inner.kind, Kind::Exhausted);
        let outer = Error::new(Kind::Internal, "unpack layer", "sha256:ab").because(inner);
        assert_eq!(
            outer.chain(),
            "unpack layer sha256:ab: open /x: No space left on device (os error 28); free some space"
        );
    }
}
