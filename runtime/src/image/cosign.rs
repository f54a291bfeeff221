//! One signature of cosign's: bytes that a key signed, and what they say. Pure.

use base64::{Engine, engine::general_purpose::STANDARD};
use rustls::pki_types::{SignatureVerificationAlgorithm, SubjectPublicKeyInfoDer, pem::PemObject};
use serde::Deserialize;
use webpki::{RawPublicKeyEntity, ring as algorithms};

use super::digest::Digest;

pub(super) const SIMPLE_SIGNING: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
pub(super) const SIGNATURE_ANNOTATION: &str = "dev.cosignproject.cosign/signature";
/// `artifactType` of a signature that is a referrer.
pub(super) const ARTIFACT: &str = "application/vnd.dev.cosign.artifact.sig.v1+json";
const TYPES: [&str; 2] = ["cosign container image signature", "atomic container signature"];

/// What the registry keeps beside an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Signature {
    pub(super) payload: Vec<u8>,
    /// As it is written: base64.
    pub(super) signature: String,
}

/// A public key that signatures are checked with.
#[derive(Debug, Clone)]
pub(super) struct PublicKey(SubjectPublicKeyInfoDer<'static>);

/// What a signature is for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Claim {
    pub(super) digest: Digest,
    pub(super) reference: String,
}

impl PublicKey {
    /// Reads PEM (`PUBLIC KEY`).
    pub(super) fn parse(pem: &[u8]) -> Result<Self, String> {
        let key = SubjectPublicKeyInfoDer::from_pem_slice(pem)
            .map_err(|error| format!("it is no public key in PEM: {error}"))?;
        RawPublicKeyEntity::try_from(&key).map_err(|error| format!("it is no public key: {error}"))?;
        Ok(Self(key))
    }

    /// Reads what a policy holds itself: PEM in base64.
    pub(super) fn parse_inline(data: &str) -> Result<Self, String> {
        let pem = STANDARD.decode(data).map_err(|error| format!("it is no base64: {error}"))?;
        Self::parse(&pem)
    }

    fn has_signed(&self, message: &[u8], signature: &[u8]) -> bool {
        // Which of these the key is for, the key says.
        const ALGORITHMS: [&dyn SignatureVerificationAlgorithm; 5] = [
            algorithms::ECDSA_P256_SHA256,
            algorithms::ECDSA_P384_SHA384,
            algorithms::ECDSA_P384_SHA256,
            algorithms::RSA_PKCS1_2048_8192_SHA256,
            algorithms::ED25519,
        ];
        let Ok(key) = RawPublicKeyEntity::try_from(&self.0) else { return false };
        ALGORITHMS.into_iter().any(|algorithm| key.verify_signature(algorithm, message, signature).is_ok())
    }
}

impl Signature {
    /// What it is for, once one of the keys is seen to have signed it. Nothing of the payload is read before.
    pub(super) fn claim(&self, keys: &[PublicKey]) -> Result<Claim, String> {
        let signature = STANDARD.decode(&self.signature).map_err(|_| "it is not in base64".to_owned())?;
        if !keys.iter().any(|key| key.has_signed(&self.payload, &signature)) {
            return Err("it was made by another key, or its payload was changed".into());
        }
        let payload: Payload = serde_json::from_slice(&self.payload)
            .map_err(|error| format!("its payload is not understood: {error}"))?;
        let critical = payload.critical;
        if !TYPES.contains(&critical.kind.as_str()) {
            return Err(format!("it signs {:.80?}, not a container image", critical.kind));
        }
        let digest = Digest::parse(&critical.image.digest).map_err(|error| error.chain())?;
        Ok(Claim { digest, reference: critical.identity.reference })
    }
}

/// Red Hat's simple signing, as cosign writes it.
#[derive(Deserialize)]
struct Payload {
    critical: Critical,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Critical {
    #[serde(rename = "type")]
    kind: String,
    image: SignedImage,
    identity: SignedIdentity,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SignedImage {
    #[serde(rename = "docker-manifest-digest")]
    digest: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SignedIdentity {
    #[serde(rename = "docker-reference")]
    reference: String,
}

#[cfg(test)]
mod tests {
    use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, SigningKey};

    use super::*;

    fn payload(kind: &str, digest: &str) -> Vec<u8> {
        let critical = serde_json::json!({ "identity": { "docker-reference": "r.io/x" },
            "image": { "docker-manifest-digest": digest }, "type": kind });
        serde_json::json!({ "critical": critical, "optional": { "by": "me" } }).to_string().into_bytes()
    }

    fn sign(key: &KeyPair, payload: Vec<u8>) -> Signature {
        let signature = STANDARD.encode(key.sign(&payload).unwrap());
        Signature { payload, signature }
    }

    #[test]
    fn a_signature_counts_under_its_key_only_and_unchanged() {
        let digest = Digest::of(b"image");
        for algorithm in [&PKCS_ECDSA_P256_SHA256, &PKCS_ECDSA_P384_SHA384, &PKCS_ED25519] {
            let key = KeyPair::generate_for(algorithm).unwrap();
            let other = KeyPair::generate_for(algorithm).unwrap();
            let public = |key: &KeyPair| PublicKey::parse(key.public_key_pem().as_bytes()).unwrap();
            let signature = sign(&key, payload(TYPES[0], &digest.to_string()));
            let claim = signature.claim(&[public(&other), public(&key)]).unwrap();
            assert_eq!(claim, Claim { digest: digest.clone(), reference: "r.io/x".into() });
            assert!(signature.claim(&[public(&other)]).unwrap_err().contains("another key"));
            assert!(signature.claim(&[]).is_err());
            let mut changed = signature.clone();
            changed.payload[10] ^= 1;
            assert!(changed.claim(&[public(&key)]).is_err());
            let cut = Signature { signature: signature.signature[..20].to_owned(), ..signature };
            assert!(cut.claim(&[public(&key)]).is_err());
        }
    }

    #[test]
    fn what_is_signed_must_be_an_image() {
        let key = KeyPair::generate().unwrap();
        let inline = STANDARD.encode(key.public_key_pem());
        let public = [PublicKey::parse_inline(&inline).unwrap()];
        let digest = Digest::of(b"image").to_string();
        let rows = [
            (payload("a cheque", &digest), "not a container image"),
            (payload(TYPES[0], "sha256:../x"), "hex digits"),
            (b"hello".to_vec(), "not understood"),
            (br#"{"critical":{"type":"x"}}"#.to_vec(), "not understood"),
        ];
        for (payload, cause) in rows {
            let refused = sign(&key, payload).claim(&public).unwrap_err();
            assert!(refused.contains(cause), "{cause}: {refused}");
        }
    }

    #[test]
    fn a_key_that_is_none_is_told() {
        for bad in ["", "hello", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"] {
            assert!(PublicKey::parse(bad.as_bytes()).unwrap_err().contains("public key"), "{bad}");
        }
        assert!(PublicKey::parse_inline("%").is_err());
    }
}
