//! Whether a signature is for the image that was asked for, and not for another that is signed too. Pure.

use serde::Deserialize;

use crate::image::reference::{Reference, Version};

/// `signedIdentity` of a policy.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase", rename_all_fields = "camelCase", deny_unknown_fields)]
pub(in crate::image) enum Identity {
    MatchExact {},
    /// The tag must be the same; a digest says itself what it is, so the repository is enough.
    #[default]
    #[serde(rename = "matchRepoDigestOrExact")]
    RepoDigestOrExact,
    MatchRepository {},
    ExactReference {
        docker_reference: String,
    },
    ExactRepository {
        docker_repository: String,
    },
    #[serde(rename = "remapIdentity")]
    Remap {
        prefix: String,
        signed_prefix: String,
    },
}

/// A reference as a signature has it: perhaps without a version.
#[derive(Debug, PartialEq)]
struct Signed {
    name: String,
    version: Option<Version>,
}

impl Signed {
    fn parse(text: &str) -> Option<Self> {
        let whole = Reference::parse(text, "docker.io/library/").ok()?;
        let last = text.rsplit('/').next().unwrap_or(text);
        let version = last.contains([':', '@']).then(|| whole.version.clone());
        Some(Self { name: whole.name(), version })
    }
}

impl Identity {
    /// `signed` is what the signature says it is for.
    pub(in crate::image) fn matches(&self, image: &Reference, signed: &str) -> bool {
        let Some(signed) = Signed::parse(signed) else { return false };
        match self {
            Self::MatchExact {} => signed == of(image),
            Self::RepoDigestOrExact => repo_digest_or_exact(&of(image), &signed),
            Self::MatchRepository {} => signed.name == image.name(),
            Self::ExactReference { docker_reference } => {
                signed.version.is_some() && Signed::parse(docker_reference).as_ref() == Some(&signed)
            }
            Self::ExactRepository { docker_repository } => {
                let wanted = Signed::parse(docker_repository);
                wanted.is_some_and(|wanted| wanted.version.is_none() && wanted.name == signed.name)
            }
            Self::Remap { prefix, signed_prefix } => {
                let name = image.name();
                let name = match name.strip_prefix(prefix.as_str()) {
                    Some(rest) if rest.is_empty() || rest.starts_with('/') => {
                        format!("{signed_prefix}{rest}")
                    }
                    _ => name,
                };
                repo_digest_or_exact(&Signed { name, version: Some(image.version.clone()) }, &signed)
            }
        }
    }
}

fn of(image: &Reference) -> Signed {
    Signed { name: image.name(), version: Some(image.version.clone()) }
}

fn repo_digest_or_exact(image: &Signed, signed: &Signed) -> bool {
    match (&image.version, &signed.version) {
        (_, None) | (None, _) => false,
        (Some(Version::Tag(_)), Some(_)) => image == signed,
        (Some(Version::Digest(_)), Some(_)) => image.name == signed.name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_accepts_what_it_documents_and_no_more() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let by_digest = format!("r.io/team/x@{digest}");
        let read = |text: &str| -> Identity { serde_json::from_str(text).unwrap() };
        let exact = read(r#"{"type":"matchExact"}"#);
        let usual = Identity::default();
        assert_eq!(usual, read(r#"{"type":"matchRepoDigestOrExact"}"#));
        let repository = read(r#"{"type":"matchRepository"}"#);
        let one = read(r#"{"type":"exactReference","dockerReference":"r.io/team/x:9"}"#);
        let of_one = read(r#"{"type":"exactRepository","dockerRepository":"r.io/team/x"}"#);
        let remap = read(r#"{"type":"remapIdentity","prefix":"mirror.io/r","signedPrefix":"r.io"}"#);
        let rows: [(&Identity, &str, &str, bool); 20] = [
            (&exact, "r.io/team/x:1", "r.io/team/x:1", true),
            (&exact, "r.io/team/x:1", "r.io/team/x:2", false),
            (&exact, "r.io/team/x:1", "r.io/team/x", false),
            (&exact, &by_digest, "r.io/team/x:1", false),
            (&usual, "r.io/team/x:1", "r.io/team/x:1", true),
            (&usual, "r.io/team/x:1", "r.io/team/x", false),
            (&usual, &by_digest, "r.io/team/x:1", true),
            (&usual, &by_digest, "r.io/team/x", false),
            (&usual, &by_digest, "r.io/team/y:1", false),
            (&usual, "busybox", "docker.io/library/busybox:latest", true),
            (&repository, "r.io/team/x:1", "r.io/team/x", true),
            (&repository, "r.io/team/x:1", "r.io/team/xx", false),
            (&one, "other.io/y:1", "r.io/team/x:9", true),
            (&one, "r.io/team/x:9", "r.io/team/x:8", false),
            (&of_one, "other.io/y:1", "r.io/team/x:8", true),
            (&of_one, "other.io/y:1", "r.io/team/y:8", false),
            (&remap, "mirror.io/r/team/x:1", "r.io/team/x:1", true),
            (&remap, "mirror.io/rr/team/x:1", "r.io/team/x:1", false),
            (&remap, "r.io/team/x:1", "r.io/team/x:1", true),
            (&repository, "r.io/team/x:1", "../..", false),
        ];
        for (identity, image, signed, expected) in rows {
            let image = Reference::parse(image, "docker.io/library/").unwrap();
            assert_eq!(identity.matches(&image, signed), expected, "{identity:?} {image} {signed}");
        }
        for bad in
            [r#"{"type":"matchAll"}"#, r#"{"type":"exactReference"}"#, r#"{"type":"matchExact","x":1}"#]
        {
            assert!(serde_json::from_str::<Identity>(bad).is_err(), "{bad}");
        }
    }
}
