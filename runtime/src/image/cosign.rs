//! One signature of cosign's: bytes that a key signed, and what they say. Pure.

use base64::{Engine, engine::general_purpose::STANDARD};
use rustls::pki_types::{SignatureVerificationAlgorithm, SubjectPublicKeyInfoDer, pem::PemObject};
use serde::Deserialize;
use webpki::{RawPublicKeyEntity, ring as algorithms};

use super::digest::Digest;

pub(super) const SIMPLE_SIGNING: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
pub(super) const SIGNATURE_ANNOTATION: &str = "dev.cosignproject.cosign/signature";
/// Of whom the signer's key is; PEM.
pub(super) const CERTIFICATE_ANNOTATION: &str = "dev.sigstore.cosign/certificate";
/// What lies between that and a root; PEM.
pub(super) const CHAIN_ANNOTATION: &str = "dev.sigstore.cosign/chain";
/// Rekor's receipt; JSON.
pub(super) const BUNDLE_ANNOTATION: &str = "dev.sigstore.cosign/bundle";
/// `artifactType` of a signature that is a referrer.
pub(super) const ARTIFACT: &str = "application/vnd.dev.cosign.artifact.sig.v1+json";
const TYPES: [&str; 2] = ["cosign container image signature", "atomic container signature"];

/// What the registry keeps beside an image. None of it is checked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Signature {
    pub(super) payload: Vec<u8>,
    /// As it is written: base64.
    pub(super) signature: String,
    pub(super) certificate: Option<String>,
    pub(super) chain: Option<String>,
    pub(super) bundle: Option<String>,
}

/// A public key that signatures are checked with.
#[derive(Debug, Clone)]
pub(super) struct PublicKey(SubjectPublicKeyInfoDer<'static>);

/// What a key is for, the key says; P-384 signs by SHA-256 where cosign made it.
const ALGORITHMS: [&dyn SignatureVerificationAlgorithm; 5] = [
    algorithms::ECDSA_P256_SHA256,
    algorithms::ECDSA_P384_SHA384,
    algorithms::ECDSA_P384_SHA256,
    algorithms::RSA_PKCS1_2048_8192_SHA256,
    algorithms::ED25519,
];

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
        Self::of(key)
    }

    /// Takes what a certificate holds, in DER.
    pub(super) fn parse_der(der: &[u8]) -> Result<Self, String> {
        Self::of(SubjectPublicKeyInfoDer::from(der.to_vec()))
    }

    fn of(key: SubjectPublicKeyInfoDer<'static>) -> Result<Self, String> {
        RawPublicKeyEntity::try_from(&key).map_err(|error| format!("it is no public key: {error}"))?;
        Ok(Self(key))
    }

    pub(super) fn der(&self) -> &[u8] {
        &self.0
    }

    pub(super) fn has_signed(&self, message: &[u8], signature: &[u8]) -> bool {
        let Ok(key) = RawPublicKeyEntity::try_from(&self.0) else { return false };
        ALGORITHMS.into_iter().any(|algorithm| key.verify_signature(algorithm, message, signature).is_ok())
    }
}

impl Signature {
    pub(super) fn bytes(&self) -> Result<Vec<u8>, String> {
        STANDARD.decode(&self.signature).map_err(|_| "it is not in base64".to_owned())
    }

    /// Which of the keys has signed it.
    pub(super) fn signer<'a>(&self, keys: &'a [PublicKey]) -> Result<&'a PublicKey, String> {
        let signature = self.bytes()?;
        keys.iter()
            .find(|key| key.has_signed(&self.payload, &signature))
            .ok_or_else(|| "it was made by another key, or its payload was changed".to_owned())
    }

    /// What it is for, once one of the keys is seen to have signed it. Nothing of the payload is read before.
    pub(super) fn claim(&self, keys: &[PublicKey]) -> Result<Claim, String> {
        self.signer(keys)?;
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
        Signature { payload, signature, ..Signature::default() }
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

    /// Made by openssl(1), as ring makes no such keys.
    #[test]
    fn a_signature_by_rsa_counts() {
        const KEY: &[u8] = b"-----BEGIN PUBLIC KEY-----
MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEAoLWljKIZ8jYIDgp3C62T
PJs7NpkfFWNTczxj7ZZ6H9MYpRioeG4lQtMcUjZ+12kbvYeVFwB7a63UeUb2Hbyi
3drMpqeO5GM3yDQy9CIF4p1Afbhb34AgWxOCHNXwfH/mtngPJVt8LiGllUh8HYx2
ak8klxyqlKPWM+mdo0zImPeBiczuouFvGTzJweYsUG4YnftOKtuP3F4o8WDjWEcK
j4+tSU+nXSKoKIG+x6lwyEE7oipWJPHMRuC19sZQDR3Jd40kC2/uJNyZypetavtd
/5UIF3bKfdpuKudQdjzwUfzAK0k5kddTONdRG3M4ahHJ1bWUnNv2bct6Byh8aSUO
dQIDAQAB
-----END PUBLIC KEY-----\n";
        const SIGNATURE: &str = "LGdwMZ0Hm72cAEbMSwlDqzpJBL5U1ta21xHQ+xXUmMM7t2EmTE6R5ZwZ7vy29VTE6jT5rd5c9aQiSgLKSVym5neUiN5kbiiztj/E\
        cJjX1F+KL5JV73/Y+AO12LVNauUnOXg0v1+O/+ebDfauUvDmDzWkFsyZ/3g+wRg4uPtFTZvH6X59IywO7iQIBF2u/IG5fVLkD4Q8\
        5hPutQcRs3QLPjC4Cm5tY0/IHLadbp6Eg4No9cFXgZlOM7nWhfao6Oh7OnEvwiPsGh2pSv16c+Rufpqnlfa17X9PSc9qb2VQgtCQ\
        JfyAsBAs8QkuJ7Mm1lD8bjOIIQZwBPNWjeyjs9gm8A==";
        let payload = r#"{"critical":{"identity":{"docker-reference":"r.io/x"},"image":{"docker-manifest-digest":"sha256:6105d6cc76af400325e94d588ce511be5bfdbb73b437dc51eca43917d7a43e3d"},"type":"cosign container image signature"},"optional":null}"#;
        let mut signature =
            Signature { payload: payload.into(), signature: SIGNATURE.into(), ..Signature::default() };
        let key = [PublicKey::parse(KEY).unwrap()];
        assert_eq!(signature.claim(&key).unwrap().digest, Digest::of(b"image"));
        signature.payload.push(b' ');
        assert!(signature.claim(&key).is_err());
    }

    #[test]
    fn what_is_signed_must_be_an_image() {
        let key = KeyPair::generate().unwrap();
        let public = [PublicKey::parse(key.public_key_pem().as_bytes()).unwrap()];
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
        assert!(PublicKey::parse_der(b"key").is_err());
    }
}
