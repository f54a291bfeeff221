//! A blob: bytes, what they are, and the digest that names them.

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// Bytes with the descriptor that others point at them with. Damaged images hold blobs whose descriptor lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    pub media_type: String,
    pub digest: String,
    pub size: u64,
    pub bytes: Vec<u8>,
}

impl Blob {
    pub fn new(media_type: &str, bytes: Vec<u8>) -> Self {
        let (digest, size) = (digest(&bytes), bytes.len() as u64);
        Self { media_type: media_type.to_owned(), digest, size, bytes }
    }

    /// A blob of a JSON document; keys are sorted.
    pub fn json(media_type: &str, document: &Value) -> Self {
        Self::new(media_type, document.to_string().into_bytes())
    }

    pub fn descriptor(&self) -> Value {
        json!({ "mediaType": self.media_type, "digest": self.digest, "size": self.size })
    }

    /// The digest without its algorithm.
    pub fn hex(&self) -> &str {
        self.digest.strip_prefix("sha256:").unwrap_or(&self.digest)
    }
}

/// Returns `sha256:<hex>` of some bytes.
pub fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}
