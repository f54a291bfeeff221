//! Whether an image may be pulled: the node's or the namespace's policy, and the list of digests. Fails closed: a policy that
//! can't be read, or asks for what is not checked here, lets nothing through.

use std::path::{Path, PathBuf};

use tracing::info;

use super::{
    cosign::Signature,
    digest::Digest,
    digests::Pins,
    install::blocking,
    policy::{Policy, Requirement, Sigstore},
    reference::Reference,
    registry::Resolved,
    route::Route,
    trust::{Trust, read_text},
};
use crate::{Error, Kind, Result, config, error::Cause};

const OP: &str = "verify image";
/// What the kubelet looks for.
pub(super) const PREFIX: &str = "SignatureValidationFailed: ";

/// The policy that counts for a namespace: its own, else the node's; empty for none.
pub(super) fn policy_of(namespace: Option<&str>, config: &config::Registry) -> PathBuf {
    let own = namespace.filter(|name| is_label(name) && !config.policy_dir.as_os_str().is_empty());
    let own = own.map(|name| config.policy_dir.join(format!("{name}.json")));
    // One that can't be looked at is there: it fails when it is read.
    own.filter(|path| path.try_exists().unwrap_or(true)).unwrap_or_else(|| config.policy.clone())
}

/// What Kubernetes calls a namespace; anything else is none, and no file.
fn is_label(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    !name.is_empty() && name.len() <= 63 && name.bytes().all(plain)
}

/// Checks a manifest before anything that it names is fetched.
pub(super) async fn verify(
    policy: &Path,
    reference: &Reference,
    route: &Route,
    resolved: &Resolved,
    config: &config::Registry,
) -> Result<()> {
    // An index vouches for what it names, so a signature of either will do.
    let mut digests = vec![resolved.digest.clone(), Digest::of(&resolved.bytes)];
    digests.dedup();
    let refuse = |cause: String| {
        Error::new(Kind::Denied, OP, reference.to_string()).because(Cause(format!("{PREFIX}{cause}")))
    };
    if !config.digests.as_os_str().is_empty() {
        let list = config.digests.clone();
        let shown = list.display().to_string();
        let pins = blocking(OP, move || Pins::parse(&read_text(&list)?, &list.display().to_string())).await;
        let pins = pins.map_err(|error| refuse(error.chain()))?;
        if !pins.allow(reference, &digests) {
            return Err(refuse(format!("{shown} does not list {} for it", resolved.digest)));
        }
    }
    if policy.as_os_str().is_empty() {
        return Ok(());
    }
    let (file, shown) = (policy.to_owned(), policy.display().to_string());
    let object = shown.clone();
    let read = blocking(OP, move || Policy::parse(read_text(&file)?.as_bytes(), &object)).await;
    let read = read.map_err(|error| refuse(error.chain()))?;
    let (scope, all) = read.of(reference);
    for requirement in all {
        let refuse = |kind: &str, cause: String| refuse(format!("rule {scope} ({kind}) of {shown}: {cause}"));
        match requirement {
            Requirement::InsecureAcceptAnything {} => {}
            Requirement::Reject {} => {
                return Err(refuse("reject", "images of this scope are refused".into()));
            }
            Requirement::SignedBy(_) => {
                let cause =
                    "signatures of GPG are not checked by this berthd; sign by cosign and use sigstoreSigned";
                return Err(refuse("signedBy", cause.into()));
            }
            Requirement::SigstoreSigned(sigstore) => {
                let by = signed(sigstore, reference, route, &digests).await;
                let digest = by.map_err(|cause| refuse("sigstoreSigned", cause))?;
                info!(image = %reference, %digest, scope, policy = shown, "signature verified");
            }
        }
    }
    Ok(())
}

/// The digest that a signature which the rule takes is for; else why there is none.
async fn signed(
    sigstore: &Sigstore,
    reference: &Reference,
    route: &Route,
    digests: &[Digest],
) -> Result<Digest, String> {
    let rule = sigstore.clone();
    let trust = blocking(OP, move || Trust::read(&rule)).await.map_err(|error| error.chain())?;
    let mut causes: Vec<String> = Vec::new();
    for digest in digests {
        let found = route.signatures(digest).await.map_err(|error| error.chain())?;
        if found.is_empty() {
            causes.push(format!("{digest} has no signature"));
        }
        for signature in found {
            match judge(&signature, &trust, sigstore, reference, digest) {
                Ok(()) => return Ok(digest.clone()),
                Err(cause) if causes.contains(&cause) => {}
                Err(cause) => causes.push(cause),
            }
        }
    }
    Err(causes.join("; "))
}

fn judge(
    signature: &Signature,
    trust: &Trust,
    sigstore: &Sigstore,
    reference: &Reference,
    digest: &Digest,
) -> Result<(), String> {
    let claim =
        trust.claim(signature).map_err(|cause| format!("a signature of {digest} does not count: {cause}"))?;
    if claim.digest != *digest {
        return Err(format!("a signature beside {digest} is for {}", claim.digest));
    }
    if !sigstore.signed_identity.matches(reference, &claim.reference) {
        return Err(format!(
            "it is signed as {:.300?}, which signedIdentity does not take; cosign signs repositories, and \
             {{\"type\": \"matchRepository\"}} takes these",
            claim.reference
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_has_the_policy_of_its_name_or_the_nodes() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("strict.json"), "").unwrap();
        std::fs::write(directory.path().join("escape.json"), "").unwrap();
        let config = config::Registry {
            policy: "/node.json".into(),
            policy_dir: directory.path().join("sub/..").components().collect(),
            ..config::Registry::default()
        };
        let config = config::Registry { policy_dir: directory.path().into(), ..config };
        assert_eq!(policy_of(Some("strict"), &config), directory.path().join("strict.json"));
        for name in [None, Some("lax"), Some(""), Some("../escape"), Some("Strict"), Some("a/b")] {
            assert_eq!(policy_of(name, &config), PathBuf::from("/node.json"), "{name:?}");
        }
        let none = config::Registry { policy_dir: PathBuf::new(), ..config };
        assert_eq!(policy_of(Some("strict"), &none), PathBuf::from("/node.json"));
    }
}
