//! Who a rule of a policy takes signatures of, read from its files; and whether they made one.

use std::path::Path;

use base64::{Engine, engine::general_purpose::STANDARD};
use rustls::pki_types::UnixTime;

use super::{
    certificate::{Authority, Subject, certificates},
    cosign::{Claim, PublicKey, Signature},
    policy::{Signers, Sigstore, Source},
    rekor::{Entry, Receipt},
};
use crate::{Error, Result};

const INLINE: &str = "data in the policy";

/// A `sigstoreSigned` rule with all that it names.
#[derive(Debug)]
pub(super) struct Trust {
    by: By,
    /// One of these logs must know the signature; empty where none has to.
    logs: Vec<PublicKey>,
}

#[derive(Debug)]
enum By {
    Keys(Vec<PublicKey>),
    /// Whom it gave a certificate.
    Authority(Authority),
}

impl Trust {
    /// Reads the keys and certificates of a rule.
    ///
    /// # Errors
    /// Where one can't be read, or is none.
    pub(super) fn read(rule: &Sigstore) -> Result<Self> {
        let by = match rule.signers() {
            Signers::Keys(sources) => By::Keys(public_keys(&sources)?),
            Signers::Fulcio(fulcio) => By::Authority(Authority::new(
                parsed(&fulcio.roots(), "read certificates", certificates)?.concat(),
                Vec::new(),
                Subject {
                    issuer: Some(fulcio.oidc_issuer.clone()),
                    email: Some(fulcio.subject_email.clone()),
                    hostname: None,
                },
            )?),
            Signers::Pki(pki) => {
                let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
                By::Authority(Authority::new(
                    parsed(&pki.roots(), "read certificates", certificates)?.concat(),
                    parsed(&pki.intermediates(), "read certificates", certificates)?.concat(),
                    Subject {
                        issuer: None,
                        email: given(&pki.subject_email),
                        hostname: given(&pki.subject_hostname),
                    },
                )?)
            }
        };
        Ok(Self { by, logs: public_keys(&rule.logs())? })
    }

    /// What a signature is for, once it is seen to be one that the rule takes.
    pub(super) fn claim(&self, signature: &Signature) -> Result<Claim, String> {
        match &self.by {
            By::Keys(keys) => {
                let signer = signature.signer(keys)?;
                if !self.logs.is_empty() {
                    self.logged(signature, signer.der())?;
                }
                signature.claim(std::slice::from_ref(signer))
            }
            By::Authority(authority) => {
                let pem = signature.certificate.as_deref().ok_or("it comes with no certificate")?;
                let mut leaf = certificates(pem.as_bytes())?;
                let leaf = if leaf.len() == 1 {
                    leaf.remove(0)
                } else {
                    return Err("it comes with several certificates".into());
                };
                let chain = signature.chain.as_deref().map(|pem| certificates(pem.as_bytes()));
                let at = if self.logs.is_empty() { UnixTime::now() } else { self.logged(signature, &leaf)? };
                let key = authority.key_of(&leaf, &chain.transpose()?.unwrap_or_default(), at)?;
                signature.claim(&[key])
            }
        }
    }

    /// When one of the logs took the signature in; `by` is the signer's key or certificate, in DER.
    fn logged(&self, signature: &Signature, by: &[u8]) -> Result<UnixTime, String> {
        let bundle = signature.bundle.as_deref().ok_or("it comes with no receipt of Rekor's")?;
        let entry = Entry { by, signature: &signature.bytes()?, payload: &signature.payload };
        Receipt::parse(bundle)?.vouches(&self.logs, &entry)
    }
}

fn public_keys(sources: &[Source]) -> Result<Vec<PublicKey>> {
    parsed(sources, "read key", PublicKey::parse)
}

fn parsed<T>(
    sources: &[Source],
    op: &'static str,
    parse: impl Fn(&[u8]) -> Result<T, String>,
) -> Result<Vec<T>> {
    let one = |source: &Source| {
        let (object, text) = match source {
            Source::File(path) => (path.display().to_string(), Ok(read_text(path)?.into_bytes())),
            Source::Inline(data) => (INLINE.to_owned(), STANDARD.decode(data)),
        };
        let text = text.map_err(|error| format!("it is no base64: {error}"));
        text.and_then(|text| parse(&text)).map_err(|cause| Error::invalid(op, object, cause))
    };
    sources.iter().map(one).collect()
}

pub(super) fn read_text(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).map_err(|error| Error::io("read", path.display().to_string(), error))
}
