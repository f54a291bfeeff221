//! Manifests, indexes and configs of OCI and docker (schema 2), read leniently from hostile bytes. Pure.

use oci_spec::image::ImageConfiguration;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

use super::digest::Digest;
use crate::{Error, Kind, Result};

/// The most a manifest, an index or a config may have.
pub(super) const DOCUMENT_MAX_BYTES: u64 = 8 << 20;
/// Overlayfs stacks no more than this.
const LAYERS_MAX: usize = 500;

pub(super) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(super) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(super) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(super) const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
pub(super) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub(super) const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

pub(super) const ANNOTATION_NAME: &str = "io.containerd.image.name";
pub(super) const ANNOTATION_REF_NAME: &str = "org.opencontainers.image.ref.name";
const ANNOTATION_REFERENCE_TYPE: &str = "vnd.docker.reference.type";

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Descriptor {
    #[serde(default)]
    pub(super) media_type: String,
    pub(super) digest: Digest,
    pub(super) size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) platform: Option<Platform>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) annotations: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Platform {
    #[serde(default)]
    pub(super) architecture: String,
    #[serde(default)]
    pub(super) os: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) variant: Option<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Manifest {
    pub(super) schema_version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) media_type: Option<String>,
    pub(super) config: Descriptor,
    pub(super) layers: Vec<Descriptor>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Index {
    #[serde(default)]
    pub(super) schema_version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) media_type: Option<String>,
    pub(super) manifests: Vec<Descriptor>,
}

#[derive(Debug)]
pub(super) enum Document {
    Manifest(Manifest),
    Index(Index),
}

impl Document {
    /// Tells by the members what it is: content types of registries lie.
    pub(super) fn parse(bytes: &[u8], object: &str) -> Result<Self> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Shape {
            schema_version: Option<u32>,
            manifests: Option<serde::de::IgnoredAny>,
            layers: Option<serde::de::IgnoredAny>,
            config: Option<serde::de::IgnoredAny>,
            fs_layers: Option<serde::de::IgnoredAny>,
        }
        let op = "read manifest";
        let wrong = |error: serde_json::Error| Error::new(Kind::Invalid, op, object).because(error);
        let shape: Shape = serde_json::from_slice(bytes).map_err(wrong)?;
        match (shape.manifests.is_some(), shape.layers.is_some() || shape.config.is_some()) {
            // CVE-2021-41190: the same bytes must not be two things to two readers.
            (true, true) => Err(Error::invalid(op, object, "it is an index and a manifest at once")),
            (true, false) => serde_json::from_slice(bytes).map(Self::Index).map_err(wrong),
            (false, true) => {
                let manifest: Manifest = serde_json::from_slice(bytes).map_err(wrong)?;
                if manifest.layers.len() > LAYERS_MAX {
                    let cause = format!("{} layers; overlayfs takes {LAYERS_MAX}", manifest.layers.len());
                    return Err(Error::invalid(op, object, cause));
                }
                Ok(Self::Manifest(manifest))
            }
            (false, false) if shape.fs_layers.is_some() || shape.schema_version == Some(1) => {
                Err(Error::invalid(op, object, "it is a docker schema 1 manifest")
                    .hint("push the image again with a current tool"))
            }
            (false, false) => Err(Error::invalid(op, object, "it is neither a manifest nor an index")),
        }
    }
}

impl Index {
    /// The manifest for this host.
    pub(super) fn choose(&self, object: &str) -> Result<&Descriptor> {
        let mut fitting: Vec<_> =
            self.manifests.iter().filter_map(|d| rank(d).map(|rank| (rank, d))).collect();
        fitting.sort_by_key(|(rank, _)| *rank);
        if let Some((_, descriptor)) = fitting.first() {
            return Ok(descriptor);
        }
        let mut offered: Vec<String> = self
            .manifests
            .iter()
            .take(32)
            .filter_map(|d| d.platform.as_ref().map(|p| format!("{}/{}", p.os, p.architecture)))
            .collect();
        offered.dedup();
        Err(Error::not_found("choose platform", object)
            .hint(format!("the image is not made for linux/{}, only for {offered:?}", host_architecture())))
    }
}

/// Whether a descriptor of an index is an image for this host, and how well it fits (less is better).
pub(super) fn rank(descriptor: &Descriptor) -> Option<u8> {
    let annotations = descriptor.annotations.iter().flatten();
    if annotations.into_iter().any(|(key, _)| key == ANNOTATION_REFERENCE_TYPE) {
        return None;
    }
    match &descriptor.platform {
        None => Some(2),
        Some(platform) => {
            let fits = platform.os == "linux" && platform.architecture == host_architecture();
            match platform.variant.as_deref() {
                // x86-64-v2 and up may use what the processor does not have; v8 is every arm64.
                None | Some("" | "v1" | "v8") => fits.then_some(0),
                Some(_) => fits.then_some(1),
            }
        }
    }
}

/// GOARCH of this host.
pub(super) fn host_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Reads a config and checks it against its manifest and this host; gives it and its diff ids.
pub(super) fn parse_config(
    bytes: &[u8],
    layers: usize,
    object: &str,
) -> Result<(ImageConfiguration, Vec<Digest>)> {
    let op = "read image config";
    let config: ImageConfiguration = serde_json::from_slice(bytes).map_err(|error| {
        Error::new(Kind::Invalid, op, object).because(error).hint("is it a container image at all?")
    })?;
    let diff_ids =
        config.rootfs().diff_ids().iter().map(|id| Digest::parse(id)).collect::<Result<Vec<_>>>()?;
    if diff_ids.len() != layers {
        let cause = format!("it has {} diff ids and the manifest {layers} layers", diff_ids.len());
        return Err(Error::invalid(op, object, cause));
    }
    let (os, architecture) = (config.os().to_string(), config.architecture().to_string());
    let fits = |value: &str, host: &str| value.is_empty() || value == host;
    if !fits(&os, "linux") || !fits(&architecture, host_architecture()) {
        return Err(Error::not_found("choose platform", object).hint(format!(
            "the image is made for {os}/{architecture}, this host is linux/{}",
            host_architecture()
        )));
    }
    Ok((config, diff_ids))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(os: &str, architecture: &str, variant: Option<&str>, size: u64) -> serde_json::Value {
        serde_json::json!({
            "mediaType": OCI_MANIFEST, "digest": Digest::of(b"x"), "size": size,
            "platform": { "os": os, "architecture": architecture, "variant": variant },
        })
    }

    fn index(entries: &[serde_json::Value]) -> Index {
        let bytes =
            serde_json::to_vec(&serde_json::json!({ "schemaVersion": 2, "manifests": entries })).unwrap();
        match Document::parse(&bytes, "x").unwrap() {
            Document::Index(index) => index,
            Document::Manifest(_) => panic!("an index"),
        }
    }

    #[test]
    fn the_hosts_platform_is_chosen() {
        let host = host_architecture();
        let all = [
            entry("windows", host, None, 1),
            entry("linux", "s390x", None, 2),
            entry("linux", host, Some("v3"), 3),
            entry("linux", host, None, 4),
        ];
        assert_eq!(index(&all).choose("x").unwrap().size, 4);
        assert_eq!(index(&all[..3]).choose("x").unwrap().size, 3);
        let error = index(&all[..2]).choose("x").unwrap_err();
        assert_eq!(error.kind, Kind::NotFound);
        assert!(error.chain().contains("linux/s390x"), "{}", error.chain());
    }

    #[test]
    fn attestations_are_no_images() {
        let mut attestation = entry("linux", host_architecture(), None, 1);
        attestation["annotations"] = serde_json::json!({ ANNOTATION_REFERENCE_TYPE: "attestation-manifest" });
        assert!(index(&[attestation]).choose("x").is_err());
    }

    #[test]
    fn hostile_documents_are_refused() {
        let d = Digest::of(b"x");
        let many: Vec<_> = (0..501).map(|_| serde_json::json!({ "digest": d, "size": 1 })).collect();
        let descriptor = serde_json::json!({ "digest": d, "size": 1 });
        let rows = [
            (serde_json::json!({}), "neither"),
            (serde_json::json!([]), "invalid"),
            (serde_json::json!({ "schemaVersion": 1, "fsLayers": [] }), "schema 1"),
            (serde_json::json!({ "manifests": [], "layers": [] }), "at once"),
            (serde_json::json!({ "schemaVersion": 2, "config": descriptor, "layers": many }), "501 layers"),
            (
                serde_json::json!({ "schemaVersion": 2, "config": { "digest": "sha256:../x", "size": 1 }, "layers": [] }),
                "hex digits",
            ),
            (
                serde_json::json!({ "schemaVersion": 2, "config": { "digest": d, "size": -1 }, "layers": [] }),
                "invalid value",
            ),
        ];
        for (document, cause) in rows {
            let error = Document::parse(document.to_string().as_bytes(), "x").unwrap_err();
            assert!(error.chain().contains(cause), "{document}: {}", error.chain());
        }
    }

    #[test]
    fn a_config_must_fit_its_manifest_and_the_host() {
        let config = |architecture: &str, ids: Vec<Digest>| {
            serde_json::json!({ "os": "linux", "architecture": architecture,
                "rootfs": { "type": "layers", "diff_ids": ids } })
            .to_string()
        };
        let id = Digest::of(b"x");
        let good = config(host_architecture(), vec![id.clone()]);
        assert_eq!(parse_config(good.as_bytes(), 1, "x").unwrap().1, std::slice::from_ref(&id));
        assert!(parse_config(good.as_bytes(), 2, "x").is_err());
        assert_eq!(
            parse_config(config("riscv64", vec![id]).as_bytes(), 1, "x").unwrap_err().kind,
            Kind::NotFound
        );
        assert!(parse_config(b"{\"helm\": 1}", 0, "x").unwrap_err().chain().contains("container image"));
    }
}
