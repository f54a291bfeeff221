//! Image references as docker writes them: `[host[:port]/]path[:tag][@sha256:…]`. Pure.

use std::fmt;

use super::digest::Digest;
use crate::{Error, Result};

const OP: &str = "parse image reference";
/// Docker's bound on the name without tag and digest.
const NAME_MAX: usize = 255;

/// A full reference: never without a registry, never without a tag or a digest.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Reference {
    /// `docker.io`, `localhost:5000`.
    pub(super) registry: String,
    /// `library/busybox`.
    pub(super) repository: String,
    pub(super) version: Version,
}

/// What is asked of the repository. A digest makes the tag beside it a comment.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Version {
    Tag(String),
    Digest(Digest),
}

impl Reference {
    /// Parses a full or short reference; `prefix` completes a short one.
    ///
    /// # Errors
    /// `Invalid` with the cause.
    pub(super) fn parse(text: &str, prefix: &str) -> Result<Self> {
        let wrong = |cause: &str| Error::invalid(OP, format!("{text:.300?}"), cause);
        if text.is_empty() {
            return Err(wrong("it is empty"));
        }
        if text.len() > 1024 {
            return Err(wrong("it is longer than 1024 bytes"));
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(Digest::parse(digest).map_err(|e| wrong(&e.chain()))?)),
            None => (text, None),
        };
        let (name, tag) = split_tag(rest);
        if let Some(tag) = tag {
            check_tag(tag).map_err(|cause| wrong(&cause))?;
        }
        let bare_id = name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
        if bare_id {
            return Err(wrong("64 hex digits are an image id, not a name"));
        }
        let (registry, repository) = complete(name, prefix).map_err(|cause| wrong(&cause))?;
        check_registry(&registry).map_err(|cause| wrong(&cause))?;
        check_repository(&repository).map_err(|cause| wrong(&cause))?;
        if registry.len() + repository.len() + 1 > NAME_MAX {
            return Err(wrong("the name is longer than 255 bytes"));
        }
        let version = match digest {
            Some(digest) => Version::Digest(digest),
            None => Version::Tag(tag.unwrap_or("latest").to_owned()),
        };
        Ok(Self { registry, repository, version })
    }

    /// Registry and repository: `docker.io/library/busybox`.
    pub(super) fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    pub(super) fn with_digest(&self, digest: &Digest) -> String {
        format!("{}@{digest}", self.name())
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.version {
            Version::Tag(tag) => write!(f, "{}/{}:{tag}", self.registry, self.repository),
            Version::Digest(digest) => write!(f, "{}/{}@{digest}", self.registry, self.repository),
        }
    }
}

/// A colon after the last slash starts the tag; one before it is a port.
fn split_tag(text: &str) -> (&str, Option<&str>) {
    match text.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (text, None),
    }
}

fn complete(name: &str, prefix: &str) -> Result<(String, String), String> {
    if let Some((first, rest)) = name.split_once('/')
        && is_registry(first)
    {
        let registry = match first {
            "index.docker.io" | "registry-1.docker.io" => "docker.io",
            other => other,
        };
        // Docker's own short form with the registry spelled out.
        let repository = match (registry, rest.contains('/')) {
            ("docker.io", false) => format!("library/{rest}"),
            _ => rest.to_owned(),
        };
        return Ok((registry.to_owned(), repository));
    }
    // `library/` is the place of names without an owner; `owner/name` goes beside it, as at docker's.
    let prefix = if name.contains('/') { prefix.strip_suffix("library/").unwrap_or(prefix) } else { prefix };
    let slash = if prefix.ends_with('/') { "" } else { "/" };
    match format!("{prefix}{slash}{name}").split_once('/') {
        Some((registry, rest)) if is_registry(registry) => Ok((registry.to_owned(), rest.to_owned())),
        _ => Err(format!(
            "the configured registry.short_name_prefix {prefix:?} does not start with a registry"
        )),
    }
}

/// Docker's rule for telling `host/name` from `owner/name`.
fn is_registry(first: &str) -> bool {
    first == "localhost" || first.contains(['.', ':', '[']) || first.bytes().any(|b| b.is_ascii_uppercase())
}

fn check_registry(registry: &str) -> Result<(), String> {
    let wrong = || Err(format!("{registry:?} is not a registry: host[:port]"));
    let (host, port) = match registry.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (registry, None),
    };
    if let Some(port) = port
        && (port.is_empty() || !port.bytes().all(|b| b.is_ascii_digit()) || port.parse::<u16>().is_err())
    {
        return wrong();
    }
    if let Some(address) = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        return if address.parse::<std::net::Ipv6Addr>().is_ok() { Ok(()) } else { wrong() };
    }
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    if host.split('.').all(label) { Ok(()) } else { wrong() }
}

fn check_repository(repository: &str) -> Result<(), String> {
    for component in repository.split('/') {
        if component.is_empty() {
            return Err("the name has an empty component".into());
        }
        if component.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(format!("{component:?}: a repository name is lower case"));
        }
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let bytes = component.as_bytes();
        let ends = plain(bytes[0]) && plain(bytes[bytes.len() - 1]);
        let separators = component.split(|c: char| c.is_ascii_alphanumeric()).all(|separator| {
            matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|byte| byte == b'-')
        });
        if !ends || !separators {
            return Err(format!(
                "{component:?}: a component is lower-case letters and digits, parted by one of . _ __ or dashes"
            ));
        }
    }
    Ok(())
}

fn check_tag(tag: &str) -> Result<(), String> {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let fits = tag.len() <= 128
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-');
    if fits { Ok(()) } else { Err(format!("{tag:.140?} is not a tag: up to 128 of A-Z a-z 0-9 _ . -")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PREFIX: &str = "docker.io/library/";

    #[test]
    fn references_are_completed_as_docker_does() {
        let hex = "a".repeat(64);
        let digest = format!("sha256:{hex}");
        let rows = [
            ("busybox", "docker.io/library/busybox:latest".to_owned()),
            ("busybox:1.36", "docker.io/library/busybox:1.36".to_owned()),
            ("owner/app", "docker.io/owner/app:latest".to_owned()),
            ("docker.io/busybox", "docker.io/library/busybox:latest".to_owned()),
            ("index.docker.io/library/busybox", "docker.io/library/busybox:latest".to_owned()),
            ("localhost/app", "localhost/app:latest".to_owned()),
            ("localhost:5000/app:v1", "localhost:5000/app:v1".to_owned()),
            ("127.0.0.1:5000/a/b/c", "127.0.0.1:5000/a/b/c:latest".to_owned()),
            ("[::1]:5000/app", "[::1]:5000/app:latest".to_owned()),
            ("quay.io/a/b__c.d--e:T_1.2-3", "quay.io/a/b__c.d--e:T_1.2-3".to_owned()),
            (&format!("busybox@{digest}"), format!("docker.io/library/busybox@{digest}")),
            (&format!("r.io/x:tag@{digest}"), format!("r.io/x@{digest}")),
            ("UPPER/x", "UPPER/x:latest".to_owned()),
        ];
        for (text, full) in rows {
            assert_eq!(Reference::parse(text, PREFIX).unwrap().to_string(), full, "{text}");
        }
    }

    #[test]
    fn a_short_name_gets_the_configured_prefix() {
        let at = |text| Reference::parse(text, "registry.corp:5000/mirror/").unwrap().to_string();
        assert_eq!(at("busybox"), "registry.corp:5000/mirror/busybox:latest");
        assert_eq!(at("team/app:1"), "registry.corp:5000/mirror/team/app:1");
        assert_eq!(at("quay.io/x:1"), "quay.io/x:1");
    }

    #[test]
    fn hostile_references_are_refused_with_a_cause() {
        let id = "b".repeat(64);
        let (long_tag, long_name) = (format!("x:{}", "a".repeat(129)), "a".repeat(300));
        let huge = "a".repeat(5000);
        let rows = [
            ("", "empty"),
            (" busybox", "component"),
            ("busybox:", "not a tag"),
            ("busybox:-x", "not a tag"),
            ("Busybox", "lower case"),
            ("a//b", "empty component"),
            ("/a", "empty component"),
            ("a/", "empty component"),
            ("../../etc/passwd", "not a registry"),
            ("a/../b", "component"),
            ("localhost/../b", "component"),
            ("a/.b", "component"),
            ("a..b", "component"),
            ("a___b", "component"),
            ("localhost:99999/x", "not a registry"),
            ("localhost:/x", "not a registry"),
            ("-a.io/x", "not a registry"),
            ("user:pass@evil.io/x", "digest"),
            ("r.io/x@sha256:abc", "hex digits"),
            ("r.io/x@sha512:abc", "only sha256"),
            ("r.io/x\0y", "component"),
            ("r.io/x\ny", "component"),
            ("r.io/é", "component"),
            ("[::g]/x", "not a registry"),
            (&id, "image id"),
            (&long_tag, "not a tag"),
            (&long_name, "longer than 255"),
            (&huge, "longer than 1024"),
        ];
        for (text, cause) in rows {
            let error = Reference::parse(text, PREFIX).unwrap_err();
            assert_eq!(error.kind, crate::Kind::Invalid, "{text}");
            assert!(error.chain().contains(cause), "{text}: {}", error.chain());
        }
    }
}
