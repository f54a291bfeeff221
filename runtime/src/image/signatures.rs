//! Finds the signatures of a manifest: under cosign's tag, and among its referrers, by the API or the tag in its place.

use serde::Deserialize;

use super::{
    cosign::{
        ARTIFACT, BUNDLE_ANNOTATION, CERTIFICATE_ANNOTATION, CHAIN_ANNOTATION, SIGNATURE_ANNOTATION,
        SIMPLE_SIGNING, Signature,
    },
    digest::Digest,
    document::{DOCUMENT_MAX_BYTES, Descriptor, Document},
    registry::Session,
};
use crate::{Error, Kind, Result};

/// Of one manifest: whoever may push could add them without end.
const SIGNATURES_MAX: usize = 64;
const REFERRERS_MAX: usize = 64;

/// What of an index of referrers counts here.
#[derive(Deserialize)]
struct Referrers {
    manifests: Vec<Referrer>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Referrer {
    #[serde(default)]
    artifact_type: String,
    #[serde(flatten)]
    descriptor: Descriptor,
}

impl Session {
    /// All signatures that the host has of the manifest; they are not checked.
    pub(super) async fn signatures(&self, digest: &Digest) -> Result<Vec<Signature>> {
        let mut found = Vec::new();
        let tag = format!("manifests/sha256-{}.sig", digest.hex());
        if let Some(manifest) = self.absent_is_none(&tag).await? {
            self.signatures_in(&manifest, &tag, &mut found).await?;
        }
        for referrer in self.referrers(digest).await? {
            let path = format!("manifests/{}", referrer.digest);
            let manifest = self.described(&path, &referrer).await?;
            self.signatures_in(&manifest, &path, &mut found).await?;
        }
        Ok(found)
    }

    /// Manifests of signatures that refer to this one.
    async fn referrers(&self, digest: &Digest) -> Result<Vec<Descriptor>> {
        let index = match self.absent_is_none(&format!("referrers/{digest}")).await? {
            Some(index) => Some(index),
            // A registry without the API has them under a tag.
            None => self.absent_is_none(&format!("manifests/sha256-{}", digest.hex())).await?,
        };
        let Some(index) = index else { return Ok(Vec::new()) };
        let referrers: Referrers = serde_json::from_slice(&index).map_err(|error| {
            Error::new(Kind::Invalid, "read referrers", digest.to_string()).because(error)
        })?;
        let signatures = referrers.manifests.into_iter().filter(|one| one.artifact_type == ARTIFACT);
        Ok(signatures.map(|one| one.descriptor).take(REFERRERS_MAX).collect())
    }

    async fn signatures_in(&self, manifest: &[u8], object: &str, found: &mut Vec<Signature>) -> Result<()> {
        let Document::Manifest(manifest) = Document::parse(manifest, object)? else { return Ok(()) };
        for layer in manifest.layers.iter().filter(|layer| layer.media_type == SIMPLE_SIGNING) {
            let annotation = |key: &str| layer.annotations.as_ref().and_then(|all| all.get(key)).cloned();
            if let Some(signature) = annotation(SIGNATURE_ANNOTATION)
                && found.len() < SIGNATURES_MAX
            {
                let payload = self.described(&format!("blobs/{}", layer.digest), layer).await?;
                found.push(Signature {
                    payload,
                    signature,
                    certificate: annotation(CERTIFICATE_ANNOTATION),
                    chain: annotation(CHAIN_ANNOTATION),
                    bundle: annotation(BUNDLE_ANNOTATION),
                });
            }
        }
        Ok(())
    }

    async fn absent_is_none(&self, path: &str) -> Result<Option<Vec<u8>>> {
        match self.document(path, DOCUMENT_MAX_BYTES).await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind == Kind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}
