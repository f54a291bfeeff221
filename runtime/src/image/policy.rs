//! Which images may be pulled: policy.json as containers-policy.json(5) has it. Pure; what the rules of a policy ask for is
//! checked in `verify`.
//!
//! ```text
//! docker.io/library/busybox:1 -> docker.io/library/busybox -> docker.io/library -> docker.io -> *.io -> "" -> default
//! ```
//! The first scope that the policy has counts, and of its requirements all.

mod identity;

use std::{collections::BTreeMap, path::PathBuf};

use serde::{Deserialize, de::IgnoredAny};

pub(super) use self::identity::Identity;
use super::reference::Reference;
use crate::{Error, Kind, Result};

const OP: &str = "read policy";

/// One policy.json.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Policy {
    default: Vec<Requirement>,
    /// By transport and scope; ours is `docker`.
    #[serde(default)]
    transports: BTreeMap<String, BTreeMap<String, Vec<Requirement>>>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase", deny_unknown_fields)]
pub(super) enum Requirement {
    InsecureAcceptAnything {},
    Reject {},
    SignedBy(SignedBy),
    SigstoreSigned(Box<Sigstore>),
}

/// GPG's; read so that other rules of the same file can be gone by.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct SignedBy {
    #[serde(default)]
    key_type: Ignored,
    #[serde(default)]
    key_path: Ignored,
    #[serde(default)]
    key_paths: Ignored,
    #[serde(default)]
    key_data: Ignored,
    #[serde(default)]
    signed_identity: Option<Identity>,
}

/// A member that only has to be allowed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Ignored;

impl<'de> Deserialize<'de> for Ignored {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        IgnoredAny::deserialize(deserializer).map(|_| Self)
    }
}

/// Signatures of cosign's.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Sigstore {
    key_path: Option<PathBuf>,
    key_paths: Option<Vec<PathBuf>>,
    /// Base64 of a PEM file.
    key_data: Option<String>,
    key_datas: Option<Vec<String>>,
    fulcio: Option<serde_json::Value>,
    pki: Option<serde_json::Value>,
    rekor_public_key_path: Option<serde_json::Value>,
    rekor_public_key_paths: Option<serde_json::Value>,
    rekor_public_key_data: Option<serde_json::Value>,
    rekor_public_key_datas: Option<serde_json::Value>,
    #[serde(default)]
    pub(super) signed_identity: Identity,
}

/// Where a public key is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Key {
    File(PathBuf),
    Inline(String),
}

impl Sigstore {
    pub(super) fn keys(&self) -> Vec<Key> {
        let files = self.key_path.iter().chain(self.key_paths.iter().flatten());
        let inline = self.key_data.iter().chain(self.key_datas.iter().flatten());
        files.cloned().map(Key::File).chain(inline.cloned().map(Key::Inline)).collect()
    }

    /// A member that asks for more than a key can say: an image must not pass because we don't look.
    pub(super) fn beyond_us(&self) -> Option<&'static str> {
        [
            (&self.fulcio, "fulcio"),
            (&self.pki, "pki"),
            (&self.rekor_public_key_path, "rekorPublicKeyPath"),
            (&self.rekor_public_key_paths, "rekorPublicKeyPaths"),
            (&self.rekor_public_key_data, "rekorPublicKeyData"),
            (&self.rekor_public_key_datas, "rekorPublicKeyDatas"),
        ]
        .into_iter()
        .find_map(|(member, name)| member.is_some().then_some(name))
    }

    fn check(&self) -> Result<(), &'static str> {
        let sources = [
            self.key_path.is_some(),
            self.key_paths.is_some(),
            self.key_data.is_some(),
            self.key_datas.is_some(),
            self.fulcio.is_some(),
            self.pki.is_some(),
        ];
        if sources.into_iter().filter(|given| *given).count() != 1 {
            return Err(
                "sigstoreSigned takes exactly one of keyPath, keyPaths, keyData, keyDatas, fulcio, pki",
            );
        }
        let empty = self.key_paths.as_ref().is_some_and(Vec::is_empty)
            || self.key_datas.as_ref().is_some_and(Vec::is_empty);
        if empty { Err("sigstoreSigned has an empty list of keys") } else { Ok(()) }
    }
}

impl Policy {
    /// Reads a policy.
    ///
    /// # Errors
    /// Where anything in it is not understood: what is passed over might have been what protects.
    pub(super) fn parse(bytes: &[u8], object: &str) -> Result<Self> {
        let policy: Self = serde_json::from_slice(bytes)
            .map_err(|error| Error::new(Kind::Invalid, OP, object).because(error))?;
        let scopes = policy.transports.iter().flat_map(|(transport, scopes)| {
            scopes.iter().map(move |(scope, all)| (format!("{transport}:{scope}"), all))
        });
        for (scope, all) in scopes.chain([("default".to_owned(), &policy.default)]) {
            let wrong = |cause: &str| Error::invalid(OP, object, format!("{scope}: {cause}"));
            if all.is_empty() {
                return Err(wrong("the list of requirements is empty"));
            }
            for requirement in all {
                if let Requirement::SigstoreSigned(sigstore) = requirement {
                    sigstore.check().map_err(wrong)?;
                }
            }
        }
        Ok(policy)
    }

    /// The scope that counts for an image, and what it asks for.
    pub(super) fn of(&self, reference: &Reference) -> (String, &[Requirement]) {
        if let Some(docker) = self.transports.get("docker") {
            for scope in scopes(reference) {
                if let Some(all) = docker.get(&scope) {
                    return (format!("docker:{scope}"), all);
                }
            }
        }
        ("default".to_owned(), &self.default)
    }
}

/// From the narrowest to the widest.
fn scopes(reference: &Reference) -> Vec<String> {
    let mut scopes = vec![reference.to_string()];
    let name = reference.name();
    let mut rest = name.as_str();
    loop {
        scopes.push(rest.to_owned());
        match rest.rsplit_once('/') {
            Some((above, _)) => rest = above,
            None => break,
        }
    }
    // As the others have it: a scope with a star has no port.
    let mut host = reference.registry.split(':').next().unwrap_or_default();
    while let Some((_, domain)) = host.split_once('.') {
        scopes.push(format!("*.{domain}"));
        host = domain;
    }
    scopes.push(String::new());
    scopes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reference(text: &str) -> Reference {
        Reference::parse(text, "docker.io/library/").unwrap()
    }

    #[test]
    fn the_narrowest_scope_counts() {
        let text = r#"{ "default": [{"type":"reject"}], "transports": { "docker": {
            "": [{"type":"insecureAcceptAnything"}],
            "docker.io/library/busybox:1": [{"type":"reject"}],
            "docker.io/library": [{"type":"reject"}],
            "registry.example.com:5000/team": [{"type":"reject"}],
            "*.example.com": [{"type":"reject"}] },
            "docker-daemon": { "": [{"type":"insecureAcceptAnything"}] } } }"#;
        let policy = Policy::parse(text.as_bytes(), "x").unwrap();
        for (image, scope) in [
            ("busybox:1", "docker:docker.io/library/busybox:1"),
            ("busybox:2", "docker:docker.io/library"),
            ("owner/x", "docker:"),
            ("registry.example.com:5000/team/x", "docker:registry.example.com:5000/team"),
            ("registry.example.com:5000/teams/x", "docker:*.example.com"),
            ("a.b.example.com/x", "docker:*.example.com"),
            ("example.com/x", "docker:"),
        ] {
            assert_eq!(policy.of(&reference(image)).0, scope, "{image}");
        }
        let bare = Policy::parse(br#"{"default":[{"type":"reject"}]}"#, "x").unwrap();
        assert_eq!(bare.of(&reference("x")), ("default".into(), &[Requirement::Reject {}][..]));
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        let rows = [
            (r#"{}"#, "missing field `default`"),
            (r#"{"default":[]}"#, "default: the list of requirements is empty"),
            (r#"{"default":[{"type":"reject"}],"more":1}"#, "unknown field `more`"),
            (r#"{"default":[{"type":"acceptAll"}]}"#, "unknown variant `acceptAll`"),
            (r#"{"default":[{"type":"reject","unless":1}]}"#, "unknown field `unless`"),
            (r#"{"default":[{"type":"sigstoreSigned"}]}"#, "exactly one of"),
            (r#"{"default":[{"type":"sigstoreSigned","keyPath":"/k","keyData":""}]}"#, "exactly one of"),
            (r#"{"default":[{"type":"sigstoreSigned","keyPaths":[]}]}"#, "empty list"),
            (r#"{"default":[{"type":"sigstoreSigned","keyPath":"/k","key":1}]}"#, "unknown field `key`"),
            (
                r#"{"default":[{"type":"reject"}],"transports":{"docker":{"r.io":[]}}}"#,
                "docker:r.io: the list",
            ),
        ];
        for (text, cause) in rows {
            let error = Policy::parse(text.as_bytes(), "policy.json").unwrap_err();
            assert!(error.chain().contains(cause), "{text}: {}", error.chain());
        }
    }

    #[test]
    fn what_asks_for_more_than_keys_is_named() {
        let read = |text: &str| -> Sigstore { serde_json::from_str(text).unwrap() };
        assert_eq!(read(r#"{"fulcio":{}}"#).beyond_us(), Some("fulcio"));
        assert_eq!(
            read(r#"{"keyPath":"/k","rekorPublicKeyData":"x"}"#).beyond_us(),
            Some("rekorPublicKeyData")
        );
        let keys = read(r#"{"keyPaths":["/a","/b"]}"#);
        assert_eq!(keys.beyond_us(), None);
        assert_eq!(keys.keys(), [Key::File("/a".into()), Key::File("/b".into())]);
        let gpg = r#"{"default":[{"type":"signedBy","keyType":"GPGKeys","keyPath":"/k",
            "signedIdentity":{"type":"matchExact"}}]}"#;
        Policy::parse(gpg.as_bytes(), "x").unwrap();
    }
}
