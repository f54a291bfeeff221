//! The archive that `docker save` writes: layers uncompressed, and a manifest.json of its own form.
//!
//! ```text
//!   manifest.json          [{"Config": …, "RepoTags": […], "Layers": […]}]
//!   <config hex>.json
//!   <diff id hex>.tar      a layer each; written once if two images share it
//! ```

use crate::archive as tar_archive;
use crate::blob::digest;
use crate::entry::Entry;
use crate::image::{Built, Image};
use crate::layer::{Compression, LongNames};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

/// Returns a docker archive of named images in one compression.
pub fn archive(images: &[(&str, &Image)], compression: Compression) -> io::Result<Vec<u8>> {
    let mut files: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    let mut manifests: Vec<Value> = Vec::new();
    for (name, image) in images {
        let built = image.build()?;
        manifests.push(add(&mut files, name, built));
    }
    files.insert("manifest.json".to_owned(), Value::Array(manifests).to_string().into_bytes());
    let entries: Vec<Entry> =
        files.into_iter().map(|(name, content)| Entry::file(&name, 0o644, content)).collect();
    let entries: Vec<&Entry> = entries.iter().collect();
    compression.compress(&tar_archive::write(&entries, LongNames::Pax)?)
}

/// Writes a docker archive of named images to a file.
pub fn write_archive(path: &Path, images: &[(&str, &Image)], compression: Compression) -> io::Result<()> {
    let written = fs::write(path, archive(images, compression)?);
    written.map_err(|error| io::Error::new(error.kind(), format!("write {}: {error}", path.display())))
}

fn add(files: &mut BTreeMap<String, Vec<u8>>, name: &str, built: Built) -> Value {
    let config = format!("{}.json", built.config.hex());
    let mut layers = Vec::new();
    for archive in built.archives {
        let hex = digest(&archive).trim_start_matches("sha256:").to_owned();
        let file = format!("{hex}.tar");
        files.insert(file.clone(), archive);
        layers.push(file);
    }
    files.insert(config.clone(), built.config.bytes);
    json!({ "Config": config, "RepoTags": [name], "Layers": layers })
}
