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
    /// Base64 of a PEM file, as all data here.
    key_data: Option<String>,
    key_datas: Option<Vec<String>>,
    fulcio: Option<Fulcio>,
    pki: Option<Pki>,
    rekor_public_key_path: Option<PathBuf>,
    rekor_public_key_paths: Option<Vec<PathBuf>>,
    rekor_public_key_data: Option<String>,
    rekor_public_key_datas: Option<Vec<String>>,
    #[serde(default)]
    pub(super) signed_identity: Identity,
}

/// Certificates that a Fulcio gave to whom an OpenID provider knows, for minutes: Rekor says when they were used.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Fulcio {
    ca_path: Option<PathBuf>,
    ca_data: Option<String>,
    #[serde(rename = "oidcIssuer", default)]
    pub(super) oidc_issuer: String,
    #[serde(default)]
    pub(super) subject_email: String,
}

/// Certificates of an authority of one's own.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Pki {
    ca_roots_path: Option<PathBuf>,
    ca_roots_data: Option<String>,
    ca_intermediates_path: Option<PathBuf>,
    ca_intermediates_data: Option<String>,
    #[serde(default)]
    pub(super) subject_email: String,
    #[serde(default)]
    pub(super) subject_hostname: String,
}

/// Where keys or certificates are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Source {
    File(PathBuf),
    Inline(String),
}

/// Who may have signed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Signers<'a> {
    Keys(Vec<Source>),
    Fulcio(&'a Fulcio),
    Pki(&'a Pki),
}

/// What a policy gives as one file, several, or itself.
fn sources(
    path: Option<&PathBuf>,
    paths: Option<&Vec<PathBuf>>,
    data: Option<&String>,
    datas: Option<&Vec<String>>,
) -> Vec<Source> {
    let files = path.into_iter().chain(paths.into_iter().flatten()).cloned().map(Source::File);
    files.chain(data.into_iter().chain(datas.into_iter().flatten()).cloned().map(Source::Inline)).collect()
}

impl Sigstore {
    pub(super) fn signers(&self) -> Signers<'_> {
        match (&self.fulcio, &self.pki) {
            (Some(fulcio), _) => Signers::Fulcio(fulcio),
            (None, Some(pki)) => Signers::Pki(pki),
            (None, None) => Signers::Keys(sources(
                self.key_path.as_ref(),
                self.key_paths.as_ref(),
                self.key_data.as_ref(),
                self.key_datas.as_ref(),
            )),
        }
    }

    /// Keys of Rekor's logs, one of which must know the signature; empty where none has to.
    pub(super) fn logs(&self) -> Vec<Source> {
        sources(
            self.rekor_public_key_path.as_ref(),
            self.rekor_public_key_paths.as_ref(),
            self.rekor_public_key_data.as_ref(),
            self.rekor_public_key_datas.as_ref(),
        )
    }

    fn check(&self) -> Result<(), &'static str> {
        let count = |given: &[bool]| given.iter().filter(|given| **given).count();
        let signers = [
            self.key_path.is_some(),
            self.key_paths.is_some(),
            self.key_data.is_some(),
            self.key_datas.is_some(),
            self.fulcio.is_some(),
            self.pki.is_some(),
        ];
        if count(&signers) != 1 {
            return Err(
                "sigstoreSigned takes exactly one of keyPath, keyPaths, keyData, keyDatas, fulcio, pki",
            );
        }
        let logs = [
            self.rekor_public_key_path.is_some(),
            self.rekor_public_key_paths.is_some(),
            self.rekor_public_key_data.is_some(),
            self.rekor_public_key_datas.is_some(),
        ];
        if count(&logs) > 1 {
            return Err("sigstoreSigned takes at most one of rekorPublicKeyPath, rekorPublicKeyPaths, \
                        rekorPublicKeyData, rekorPublicKeyDatas");
        }
        let empty = [&self.key_paths, &self.rekor_public_key_paths].into_iter().flatten().any(Vec::is_empty)
            || [&self.key_datas, &self.rekor_public_key_datas].into_iter().flatten().any(Vec::is_empty);
        if empty {
            return Err("sigstoreSigned has an empty list of keys");
        }
        match self.signers() {
            Signers::Fulcio(_) if count(&logs) == 0 => Err(
                "fulcio takes a rekorPublicKey too: its certificates are for minutes, and Rekor says when",
            ),
            Signers::Fulcio(fulcio) => fulcio.check(),
            // As the others have it.
            Signers::Pki(_) if count(&logs) > 0 => Err("pki takes no rekorPublicKey"),
            Signers::Pki(pki) => pki.check(),
            Signers::Keys(_) => Ok(()),
        }
    }
}

impl Fulcio {
    pub(super) fn roots(&self) -> Vec<Source> {
        sources(self.ca_path.as_ref(), None, self.ca_data.as_ref(), None)
    }

    fn check(&self) -> Result<(), &'static str> {
        if self.roots().len() != 1 {
            return Err("fulcio takes exactly one of caPath, caData");
        }
        if self.oidc_issuer.is_empty() || self.subject_email.is_empty() {
            return Err("fulcio takes oidcIssuer and subjectEmail: else anybody could have signed");
        }
        Ok(())
    }
}

impl Pki {
    pub(super) fn roots(&self) -> Vec<Source> {
        sources(self.ca_roots_path.as_ref(), None, self.ca_roots_data.as_ref(), None)
    }

    pub(super) fn intermediates(&self) -> Vec<Source> {
        sources(self.ca_intermediates_path.as_ref(), None, self.ca_intermediates_data.as_ref(), None)
    }

    fn check(&self) -> Result<(), &'static str> {
        if self.roots().len() != 1 {
            return Err("pki takes exactly one of caRootsPath, caRootsData");
        }
        if self.intermediates().len() > 1 {
            return Err("pki takes at most one of caIntermediatesPath, caIntermediatesData");
        }
        if self.subject_email.is_empty() && self.subject_hostname.is_empty() {
            return Err(
                "pki takes subjectEmail or subjectHostname: else whoever has a certificate could sign",
            );
        }
        Ok(())
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
    fn a_rule_names_who_signs_and_the_logs_that_know_it() {
        let read = |text: &str| -> Sigstore { serde_json::from_str(text).unwrap() };
        let keys = read(r#"{"keyPaths":["/a","/b"],"rekorPublicKeyDatas":["x"]}"#);
        keys.check().unwrap();
        assert_eq!(keys.signers(), Signers::Keys(vec![Source::File("/a".into()), Source::File("/b".into())]));
        assert_eq!(keys.logs(), [Source::Inline("x".into())]);
        let fulcio = r#""fulcio":{"caPath":"/ca","oidcIssuer":"https://i","subjectEmail":"a@b"}"#;
        let rows = [
            (format!(r#"{{{fulcio},"rekorPublicKeyPath":"/r"}}"#), ""),
            (format!("{{{fulcio}}}"), "Rekor says when"),
            (format!(r#"{{{fulcio},"rekorPublicKeyPath":"/r","rekorPublicKeyData":""}}"#), "at most one of"),
            (r#"{"keyPath":"/k","rekorPublicKeyPaths":[]}"#.into(), "empty list"),
            (r#"{"fulcio":{"oidcIssuer":"i","subjectEmail":"a"},"rekorPublicKeyPath":"/r"}"#.into(), "caPath"),
            (r#"{"fulcio":{"caPath":"/c","oidcIssuer":"i"},"rekorPublicKeyPath":"/r"}"#.into(), "subjectEmail"),
            (r#"{"pki":{"caRootsPath":"/c","subjectHostname":"h"}}"#.into(), ""),
            (r#"{"pki":{"caRootsPath":"/c"}}"#.into(), "subjectHostname"),
            (r#"{"pki":{"subjectEmail":"a"}}"#.into(), "caRootsPath"),
            (r#"{"pki":{"caRootsPath":"/c","subjectEmail":"a"},"rekorPublicKeyPath":"/r"}"#.into(), "no rekor"),
            (
                r#"{"pki":{"caRootsData":"","caIntermediatesPath":"/i","caIntermediatesData":"","subjectEmail":"a"}}"#
                    .into(),
                "caIntermediatesPath",
            ),
        ];
        for (text, cause) in rows {
            match read(&text).check() {
                Ok(()) => assert_eq!(cause, "", "{text}"),
                Err(told) => assert!(!cause.is_empty() && told.contains(cause), "{text}: {told}"),
            }
        }
        let gpg = r#"{"default":[{"type":"signedBy","keyType":"GPGKeys","keyPath":"/k",
            "signedIdentity":{"type":"matchExact"}}]}"#;
        Policy::parse(gpg.as_bytes(), "x").unwrap();
    }
}
