//! An image: what its configuration says and its layers; built, the blobs of it.

use crate::EPOCH_RFC3339;
use crate::blob::{Blob, digest};
use crate::layer::{Compression, Layer};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::io;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";

/// An image to be built. Without a platform it is for the machine that builds it.
#[derive(Debug, Clone)]
pub struct Image {
    layers: Vec<Layer>,
    compression: Compression,
    os: String,
    architecture: String,
    config: Map<String, Value>,
    labels: BTreeMap<String, String>,
}

/// The blobs of an image, and the digests of its layers' archives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Built {
    pub manifest: Blob,
    pub config: Blob,
    pub layers: Vec<Blob>,
    /// Uncompressed, in the order of the layers.
    pub archives: Vec<Vec<u8>>,
    pub os: String,
    pub architecture: String,
}

impl Default for Image {
    fn default() -> Self {
        Self::new()
    }
}

impl Image {
    pub fn new() -> Self {
        Self {
            layers: Vec::new(),
            compression: Compression::default(),
            os: "linux".to_owned(),
            architecture: this_architecture().to_owned(),
            config: Map::new(),
            labels: BTreeMap::new(),
        }
    }

    /// Puts a layer on top.
    pub fn layer(mut self, layer: Layer) -> Self {
        self.layers.push(layer);
        self
    }

    /// Sets how all layers are compressed.
    pub fn compression(mut self, compression: Compression) -> Self {
        self.compression = compression;
        self
    }

    /// Sets the platform, in Go's words: `linux`, `arm64`.
    pub fn platform(mut self, os: &str, architecture: &str) -> Self {
        (self.os, self.architecture) = (os.to_owned(), architecture.to_owned());
        self
    }

    pub fn entrypoint(self, words: &[&str]) -> Self {
        self.set("Entrypoint", json!(words))
    }

    pub fn cmd(self, words: &[&str]) -> Self {
        self.set("Cmd", json!(words))
    }

    /// Sets a variable; the order of the calls is kept.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        let list = self.config.entry("Env").or_insert_with(|| json!([]));
        if let Value::Array(list) = list {
            list.push(Value::String(format!("{name}={value}")));
        }
        self
    }

    /// Sets the user as the configuration holds it: `app`, `1000`, `app:staff`, `1000:1000`.
    pub fn user(self, user: &str) -> Self {
        self.set("User", json!(user))
    }

    pub fn workdir(self, path: &str) -> Self {
        self.set("WorkingDir", json!(path))
    }

    pub fn stop_signal(self, signal: &str) -> Self {
        self.set("StopSignal", json!(signal))
    }

    /// docker's HEALTHCHECK, its test as the configuration holds it: `CMD` and words, `CMD-SHELL` and a line, `NONE`.
    pub fn healthcheck(self, test: &[&str]) -> Self {
        self.set("Healthcheck", json!({ "Test": test }))
    }

    pub fn label(mut self, name: &str, value: &str) -> Self {
        self.labels.insert(name.to_owned(), value.to_owned());
        self
    }

    pub fn volume(self, path: &str) -> Self {
        self.member("Volumes", path)
    }

    /// Names a port: `80/tcp`.
    pub fn exposed_port(self, port: &str) -> Self {
        self.member("ExposedPorts", port)
    }

    /// Builds all blobs.
    pub fn build(&self) -> io::Result<Built> {
        let archives: Vec<Vec<u8>> = self.layers.iter().map(Layer::archive).collect::<io::Result<_>>()?;
        let media_type = self.compression.layer_media_type();
        let compress = |archive: &Vec<u8>| Ok(Blob::new(media_type, self.compression.compress(archive)?));
        let layers: Vec<Blob> = archives.iter().map(compress).collect::<io::Result<_>>()?;
        let diff_ids: Vec<String> = archives.iter().map(|archive| digest(archive)).collect();
        let config = Blob::json(CONFIG, &self.document(&diff_ids));
        let manifest = manifest_of(&config, &layers);
        Ok(Built {
            manifest,
            config,
            layers,
            archives,
            os: self.os.clone(),
            architecture: self.architecture.clone(),
        })
    }

    /// Compresses some bytes as this image's layers are.
    pub(crate) fn compressed(&self, bytes: &[u8]) -> io::Result<Vec<u8>> {
        self.compression.compress(bytes)
    }

    fn document(&self, diff_ids: &[String]) -> Value {
        let mut config = self.config.clone();
        if !self.labels.is_empty() {
            config.insert("Labels".to_owned(), json!(self.labels));
        }
        let history: Vec<Value> = (1..=diff_ids.len())
            .map(|number| json!({ "created": EPOCH_RFC3339, "created_by": format!("layer {number}") }))
            .collect();
        json!({
            "created": EPOCH_RFC3339,
            "architecture": self.architecture,
            "os": self.os,
            "config": config,
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
            "history": history,
        })
    }

    fn set(mut self, key: &str, value: Value) -> Self {
        self.config.insert(key.to_owned(), value);
        self
    }

    /// Adds to one of the sets that the configuration writes as objects of empty objects.
    fn member(mut self, key: &str, name: &str) -> Self {
        let set = self.config.entry(key).or_insert_with(|| json!({}));
        if let Value::Object(set) = set {
            set.insert(name.to_owned(), json!({}));
        }
        self
    }
}

impl Built {
    /// All blobs, the manifest last.
    pub fn blobs(&self) -> impl Iterator<Item = &Blob> {
        self.layers.iter().chain([&self.config, &self.manifest])
    }

    /// The manifest's descriptor with its platform, as an index lists it.
    pub fn descriptor(&self) -> Value {
        let mut descriptor = self.manifest.descriptor();
        descriptor["platform"] = json!({ "os": self.os, "architecture": self.architecture });
        descriptor
    }

    /// Writes the manifest anew after the configuration or a layer changed.
    pub(crate) fn seal(&mut self) {
        self.manifest = manifest_of(&self.config, &self.layers);
    }
}

fn manifest_of(config: &Blob, layers: &[Blob]) -> Blob {
    let layers: Vec<Value> = layers.iter().map(Blob::descriptor).collect();
    let document = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": config.descriptor(),
        "layers": layers,
    });
    Blob::json(MANIFEST, &document)
}

/// This machine's architecture in Go's words.
pub(crate) fn this_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        other => other,
    }
}
