//! Lists of digests: which content a name may stand for. Pure.
//!
//! ```text
//! # a name with a tag, or all tags of a repository; several lines for one name: any of them
//! registry.k8s.io/pause:3.10  sha256:ee63…
//! quay.io/team/app            sha256:01ab…
//! ```

use super::{
    digest::Digest,
    reference::{Reference, Version},
};
use crate::{Error, Result};

/// A list, read.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Pins(Vec<(Reference, Scope, Digest)>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scope {
    Tag,
    Repository,
}

impl Pins {
    /// Reads a list.
    ///
    /// # Errors
    /// With the line that is not understood.
    pub(super) fn parse(text: &str, object: &str) -> Result<Self> {
        let mut pins = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or_default();
            let words: Vec<&str> = line.split_whitespace().collect();
            let wrong = |cause: String| {
                Error::invalid("read list of digests", format!("{object}:{}", number + 1), cause)
            };
            match words[..] {
                [] => {}
                [name, digest] if !name.contains('@') => {
                    let reference = Reference::parse(name, "").map_err(|error| wrong(error.chain()))?;
                    let last = name.rsplit('/').next().unwrap_or(name);
                    let scope = if last.contains(':') { Scope::Tag } else { Scope::Repository };
                    let digest = Digest::parse(digest).map_err(|error| wrong(error.chain()))?;
                    pins.push((reference, scope, digest));
                }
                _ => return Err(wrong("a line is a name, with or without a tag, and a digest".into())),
            }
        }
        Ok(Self(pins))
    }

    /// Whether the name may stand for content with one of these digests. Names that are not listed may.
    pub(super) fn allow(&self, reference: &Reference, found: &[Digest]) -> bool {
        let fits = |(listed, scope, _): &&(Reference, Scope, Digest)| {
            listed.name() == reference.name()
                && match (scope, &reference.version) {
                    // What has a digest was chosen by its content, so it answers to every line of its repository.
                    (Scope::Repository, _) | (Scope::Tag, Version::Digest(_)) => true,
                    (Scope::Tag, version) => listed.version == *version,
                }
        };
        let mut listed = self.0.iter().filter(fits).peekable();
        listed.peek().is_none() || listed.any(|(_, _, digest)| found.contains(digest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listed_names_stand_for_listed_content_only() {
        let (one, two, other) = (Digest::of(b"1"), Digest::of(b"2"), Digest::of(b"3"));
        let text = format!("# ours\nr.io/x:1 {one}\nr.io/x:1 {two} # the next\n\nr.io/all {one}\n");
        let pins = Pins::parse(&text, "list").unwrap();
        let rows = [
            ("r.io/x:1", &one, true),
            ("r.io/x:1", &two, true),
            ("r.io/x:1", &other, false),
            ("r.io/x:2", &other, true),
            ("r.io/all:9", &one, true),
            ("r.io/all:9", &other, false),
            ("r.io/free", &other, true),
        ];
        for (name, digest, expected) in rows {
            let reference = Reference::parse(name, "").unwrap();
            assert_eq!(pins.allow(&reference, std::slice::from_ref(digest)), expected, "{name} {digest}");
        }
        let by_digest = Reference::parse(&format!("r.io/x@{other}"), "").unwrap();
        assert!(!pins.allow(&by_digest, &[other]));
    }

    #[test]
    fn a_bad_line_is_named() {
        let digest = Digest::of(b"1");
        for bad in ["r.io/x", "r.io/x sha256:1", "r.io/x@sha256:1 sha256:1", "a b c", "../x sha256:1"] {
            let error = Pins::parse(&format!("r.io/ok {digest}\n{bad}\n"), "list").unwrap_err();
            assert!(error.chain().contains("list:2"), "{bad}: {}", error.chain());
        }
    }
}
