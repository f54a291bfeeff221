//! An OCI image layout, as a directory or a tar.
//!
//! ```text
//!   oci-layout             {"imageLayoutVersion":"1.0.0"}
//!   index.json             one descriptor an image, named by annotations
//!   blobs/sha256/<hex>     manifests, configurations, layers, nested indexes
//! ```

use crate::archive;
use crate::blob::Blob;
use crate::entry::Entry;
use crate::image::{Built, Image};
use crate::layer::{Compression, LongNames};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// What the specification names an image by in a layout.
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// What containerd and docker write for the full name, because many tools hold only the tag in the other.
const FULL_NAME: &str = "io.containerd.image.name";

/// Named images and all their blobs.
#[derive(Debug, Clone, Default)]
pub struct Layout {
    images: Vec<Value>,
    /// By digest without the algorithm.
    blobs: BTreeMap<String, Vec<u8>>,
}

impl Layout {
    pub fn new() -> Self {
        Self::default()
    }

    /// A layout of one image.
    pub fn of(name: &str, image: &Image) -> io::Result<Self> {
        Ok(Self::new().built(name, &image.build()?))
    }

    /// Adds an image under a name such as `localhost/fixture:1`; `skopeo copy oci:DIR:NAME` finds it by that.
    pub fn image(self, name: &str, image: &Image) -> io::Result<Self> {
        Ok(self.built(name, &image.build()?))
    }

    /// Adds an image that is built already, damaged perhaps.
    pub fn built(mut self, name: &str, built: &Built) -> Self {
        self.keep(built);
        self.images.push(named(built.descriptor(), name));
        self
    }

    /// Adds one name for images of several platforms: an index in a blob of its own.
    pub fn multi_platform(mut self, name: &str, images: &[Image]) -> io::Result<Self> {
        let built: Vec<Built> = images.iter().map(Image::build).collect::<io::Result<_>>()?;
        built.iter().for_each(|built| self.keep(built));
        let manifests: Vec<Value> = built.iter().map(Built::descriptor).collect();
        let index = Blob::json(INDEX, &index_of(&manifests));
        self.images.push(named(index.descriptor(), name));
        self.blobs.insert(index.hex().to_owned(), index.bytes);
        Ok(self)
    }

    /// Forgets the blob of a digest: the layout is then incomplete.
    pub fn without_blob(mut self, digest: &str) -> Self {
        self.blobs.remove(digest.strip_prefix("sha256:").unwrap_or(digest));
        self
    }

    /// Writes the layout to a directory, made if it is not there. Existing blobs are written over.
    pub fn write_dir(&self, directory: &Path) -> io::Result<()> {
        for (name, content) in self.files() {
            let path = directory.join(name);
            let parent = path.parent().unwrap_or(directory);
            let written = fs::create_dir_all(parent).and_then(|()| fs::write(&path, content));
            written.map_err(|error| {
                io::Error::new(error.kind(), format!("write {}: {error}", path.display()))
            })?;
        }
        Ok(())
    }

    /// Returns the layout as a tar in one compression.
    pub fn tar(&self, compression: Compression) -> io::Result<Vec<u8>> {
        let mut entries = vec![Entry::directory("blobs", 0o755), Entry::directory("blobs/sha256", 0o755)];
        entries.extend(self.files().into_iter().map(|(name, content)| Entry::file(&name, 0o644, content)));
        entries.sort_by(|left, right| left.path.cmp(&right.path));
        let entries: Vec<&Entry> = entries.iter().collect();
        compression.compress(&archive::write(&entries, LongNames::Pax)?)
    }

    /// Writes the layout to a tar file in one compression.
    pub fn write_tar(&self, path: &Path, compression: Compression) -> io::Result<()> {
        let written = fs::write(path, self.tar(compression)?);
        written.map_err(|error| io::Error::new(error.kind(), format!("write {}: {error}", path.display())))
    }

    fn keep(&mut self, built: &Built) {
        for blob in built.blobs() {
            self.blobs.insert(blob.hex().to_owned(), blob.bytes.clone());
        }
    }

    fn files(&self) -> Vec<(String, Vec<u8>)> {
        let mut files = vec![
            ("oci-layout".to_owned(), json!({ "imageLayoutVersion": "1.0.0" }).to_string().into_bytes()),
            ("index.json".to_owned(), index_of(&self.images).to_string().into_bytes()),
        ];
        files.extend(self.blobs.iter().map(|(hex, bytes)| (format!("blobs/sha256/{hex}"), bytes.clone())));
        files
    }
}

fn index_of(manifests: &[Value]) -> Value {
    json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": manifests })
}

fn named(mut descriptor: Value, name: &str) -> Value {
    descriptor["annotations"] = json!({ REF_NAME: name, FULL_NAME: name });
    descriptor
}
