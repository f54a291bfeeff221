//! Rekor's receipt of a signature: that its log has it, and since when. Pure.
//!
//! As cosign keeps it: `SignedEntryTimestamp` is the log's signature of `Payload` as canonical JSON (RFC 8785), and the payload's
//! body a `hashedrekord` 0.0.1.

use std::time::Duration;

use base64::{Engine, engine::general_purpose::STANDARD};
use rustls::pki_types::UnixTime;
use serde::{Deserialize, Serialize};

use super::{cosign::PublicKey, digest::Digest};

const KIND: &str = "hashedrekord";
const VERSION: &str = "0.0.1";
const ALGORITHM: &str = "sha256";

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub(super) struct Receipt {
    signed_entry_timestamp: String,
    payload: Payload,
}

/// Its members are in the order that canonical JSON has them in, so that serde_json writes that.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Payload {
    body: String,
    #[serde(rename = "integratedTime")]
    integrated_time: u64,
    #[serde(rename = "logID")]
    log_id: String,
    #[serde(rename = "logIndex")]
    log_index: u64,
}

#[derive(Deserialize)]
struct Body {
    kind: String,
    #[serde(rename = "apiVersion")]
    version: String,
    spec: Spec,
}

#[derive(Deserialize)]
struct Spec {
    data: Data,
    signature: Signed,
}

#[derive(Deserialize)]
struct Data {
    hash: Hash,
}

#[derive(Deserialize)]
struct Hash {
    algorithm: String,
    value: String,
}

#[derive(Deserialize)]
struct Signed {
    content: String,
    #[serde(rename = "publicKey")]
    public_key: Content,
}

#[derive(Deserialize)]
struct Content {
    content: String,
}

/// A signature as a log has it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry<'a> {
    /// The signer's key or certificate, in DER.
    pub(super) by: &'a [u8],
    pub(super) signature: &'a [u8],
    pub(super) payload: &'a [u8],
}

impl Receipt {
    /// # Errors
    /// Where it is not what cosign writes.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        serde_json::from_str(text).map_err(|error| format!("Rekor's receipt is not understood: {error}"))
    }

    /// When the log took the entry in, once one of the keys is seen to have signed that. Nothing of the body is read before.
    pub(super) fn vouches(&self, logs: &[PublicKey], entry: &Entry<'_>) -> Result<UnixTime, String> {
        let wrong = |what: &str| format!("Rekor's receipt {what}");
        let canonical = serde_json::to_vec(&self.payload).map_err(|error| error.to_string())?;
        let stamp = STANDARD.decode(&self.signed_entry_timestamp).map_err(|_| wrong("is not in base64"))?;
        if !logs.iter().any(|log| log.has_signed(&canonical, &stamp)) {
            return Err(wrong("was made by another log, or changed"));
        }
        let body = STANDARD.decode(&self.payload.body).map_err(|_| wrong("has no body in base64"))?;
        let body: Body = serde_json::from_slice(&body)
            .map_err(|error| format!("what Rekor's receipt is of is not understood: {error}"))?;
        if body.kind != KIND || body.version != VERSION || body.spec.data.hash.algorithm != ALGORITHM {
            return Err(wrong(&format!(
                "is of a {:.40} {:.40}, not of a {KIND} {VERSION}",
                body.kind, body.version
            )));
        }
        let signed = body.spec.signature;
        if STANDARD.decode(&signed.content).ok().as_deref() != Some(entry.signature) {
            return Err(wrong("is of another signature"));
        }
        if body.spec.data.hash.value != Digest::of(entry.payload).hex() {
            return Err(wrong("is of another payload"));
        }
        if STANDARD.decode(&signed.public_key.content).ok().and_then(|pem| der(&pem)).as_deref()
            != Some(entry.by)
        {
            return Err(wrong("is of another signer"));
        }
        Ok(UnixTime::since_unix_epoch(Duration::from_secs(self.payload.integrated_time)))
    }
}

/// What the only section of a PEM file holds, whatever it is called.
fn der(pem: &[u8]) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(pem).ok()?.trim();
    let (begin, rest) = text.strip_prefix("-----BEGIN ")?.split_once("-----")?;
    let inner = rest.strip_suffix("-----")?.strip_suffix(begin)?.strip_suffix("-----END ")?;
    STANDARD.decode(inner.split_ascii_whitespace().collect::<String>()).ok()
}

#[cfg(test)]
pub(super) mod tests {
    use rcgen::{KeyPair, SigningKey};
    use serde_json::{Value, json};

    use super::*;

    /// What a log with this key answers to a signature.
    pub(in crate::image) fn receipt(log: &KeyPair, body: &Value, at: u64) -> Value {
        let body = STANDARD.encode(body.to_string());
        let canonical = format!(r#"{{"body":"{body}","integratedTime":{at},"logID":"c0d2","logIndex":7}}"#);
        json!({ "SignedEntryTimestamp": STANDARD.encode(log.sign(canonical.as_bytes()).unwrap()),
            "Payload": { "logIndex": 7, "logID": "c0d2", "body": body, "integratedTime": at } })
    }

    pub(in crate::image) fn body(by_pem: &str, signature: &[u8], payload: &[u8]) -> Value {
        json!({ "apiVersion": VERSION, "kind": KIND, "spec": {
            "data": { "hash": { "algorithm": ALGORITHM, "value": Digest::of(payload).hex() } },
            "signature": { "content": STANDARD.encode(signature),
                "publicKey": { "content": STANDARD.encode(by_pem) } } } })
    }

    #[test]
    fn a_receipt_counts_for_its_signature_under_its_log_only() {
        let (log, other, signer) =
            (KeyPair::generate().unwrap(), KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let public = |key: &KeyPair| PublicKey::parse(key.public_key_pem().as_bytes()).unwrap();
        let by = public(&signer);
        let entry = Entry { by: by.der(), signature: b"signature", payload: b"payload" };
        let good = body(&signer.public_key_pem(), b"signature", b"payload");
        let logs = [public(&other), public(&log)];
        let asked = |receipt: &Value, entry: &Entry<'_>| {
            Receipt::parse(&receipt.to_string()).and_then(|receipt| receipt.vouches(&logs, entry))
        };
        let at = asked(&receipt(&log, &good, 1_700_000_000), &entry).unwrap();
        assert_eq!(at.as_secs(), 1_700_000_000);

        let stranger = KeyPair::generate().unwrap();
        let mut later = receipt(&log, &good, 5);
        later["Payload"]["integratedTime"] = 6.into();
        let changed = |pointer: &str, value: &str| {
            let mut body = good.clone();
            *body.pointer_mut(pointer).unwrap() = value.into();
            receipt(&log, &body, 5)
        };
        let rows = [
            (receipt(&stranger, &good, 5), entry, "another log"),
            (later, entry, "another log"),
            (receipt(&log, &good, 5), Entry { signature: b"s", ..entry }, "another signature"),
            (receipt(&log, &good, 5), Entry { payload: b"p", ..entry }, "another payload"),
            (receipt(&log, &good, 5), Entry { by: b"k", ..entry }, "another signer"),
            (receipt(&log, &json!({}), 5), entry, "not understood"),
            (changed("/kind", "rfc3161"), entry, "is of a rfc3161"),
            (changed("/apiVersion", "9"), entry, "is of a hashedrekord 9"),
            (changed("/spec/data/hash/algorithm", "md5"), entry, "not of a"),
            (changed("/spec/signature/publicKey/content", "%"), entry, "another signer"),
            (json!({}), entry, "not understood"),
            (json!({ "SignedEntryTimestamp": "", "Payload": {}, "more": 1 }), entry, "not understood"),
        ];
        for (receipt, entry, cause) in rows {
            let told = asked(&receipt, &entry).unwrap_err();
            assert!(told.contains(cause), "{cause}: {told}");
        }
    }

    #[test]
    fn only_one_whole_section_is_taken_of_pem() {
        assert_eq!(der(b"-----BEGIN X-----\naGVs\nbG8=\n-----END X-----\n").unwrap(), b"hello");
        for bad in [
            "",
            "-----BEGIN X-----\naGk=\n-----END Y-----",
            "-----BEGIN X-----\n%\n-----END X-----",
            "-----BEGIN X-----\naGk=\n-----END X-----\n-----BEGIN X-----\naGk=\n-----END X-----",
        ] {
            assert_eq!(der(bad.as_bytes()), None, "{bad}");
        }
    }
}
