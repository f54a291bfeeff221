//! Writes images as one tar that is an OCI layout and what `docker load` reads.
//!
//! Layers go out as they came in where their blobs were kept, else as the tars that their tapes give again. What is packed
//! otherwise than the manifest says gets a manifest written anew. The image's id stays in any case.

use std::{
    collections::{BTreeMap, HashSet},
    fs::{self, File, OpenOptions},
    io::{self, BufWriter, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    sync::Arc,
};

use serde_json::json;

use super::{
    archive::media_type,
    digest::{Digest, Metered},
    document::{ANNOTATION_NAME, ANNOTATION_REF_NAME, Descriptor, Document, Manifest, OCI_MANIFEST},
    layers::Lease,
    reference::{Reference, Version},
    store::{BLOB, Inner, Layer, Record},
    tape::Replay,
    unpack::Packing,
};
use crate::{Error, Kind, Result};

const OP: &str = "save image";

/// What goes into the archive.
struct Plan {
    /// Kept until the archive is written.
    _lease: Lease,
    record: Record,
    tags: Vec<String>,
    layers: Vec<Arc<Layer>>,
}

/// Writes the archive; a regular file appears only when whole. Blocks.
pub(super) fn save(inner: &Arc<Inner>, names: &[String], to: &Path) -> Result<()> {
    if names.is_empty() {
        return Err(Error::invalid(OP, to.display().to_string(), "no image is named"));
    }
    let plans = plan(inner, names)?;
    let fail = |error: io::Error| Error::io(OP, to.display().to_string(), error);
    if fs::metadata(to).is_ok_and(|there| !there.is_file()) {
        // A pipe or a terminal: nothing to rename.
        let file = OpenOptions::new().write(true).open(to).map_err(fail)?;
        return write(inner, &plans, file, to).map(drop);
    }
    let mut partial = to.file_name().unwrap_or_default().to_owned();
    partial.push(".partial");
    let partial = to.with_file_name(partial);
    let create = OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(&partial);
    let written = create.map_err(fail).and_then(|file| {
        write(inner, &plans, file, to)?.sync_all().map_err(fail)?;
        fs::rename(&partial, to).map_err(fail)
    });
    if written.is_err() {
        // The first error says why.
        fs::remove_file(&partial).ok();
    }
    written
}

fn plan(inner: &Arc<Inner>, names: &[String]) -> Result<Vec<Plan>> {
    let mut plans: Vec<Plan> = Vec::new();
    for name in names {
        let record = {
            let state = inner.read();
            let entry = state.locate(name, &inner.config.short_name_prefix);
            entry.filter(|entry| entry.whole.is_some()).map(|entry| entry.record.clone())
        };
        let record = record.ok_or_else(|| Error::not_found(OP, name).hint("pull it first"))?;
        let tag = match Reference::parse(name, &inner.config.short_name_prefix) {
            Ok(reference) if matches!(reference.version, Version::Tag(_)) => Some(reference.to_string()),
            _ => None,
        };
        let tag = tag.filter(|tag| record.tags.contains(tag));
        if let Some(known) = plans.iter_mut().find(|plan| plan.record.id == record.id) {
            known.tags.extend(tag.filter(|tag| !known.tags.contains(tag)));
            continue;
        }
        let lease = Lease::new(inner, &record.layers);
        let layers: Option<Vec<_>> = {
            let state = inner.read();
            record.layers.iter().map(|id| state.layers.get(id).cloned()).collect()
        };
        let layers = layers.ok_or_else(|| Error::not_found(OP, name).hint("it was removed meanwhile"))?;
        plans.push(Plan { _lease: lease, record, tags: tag.into_iter().collect(), layers });
    }
    Ok(plans)
}

fn write(inner: &Inner, plans: &[Plan], file: File, to: &Path) -> Result<File> {
    let fail = |error: io::Error| Error::io(OP, to.display().to_string(), error);
    let mut archive = Archive { tar: tar::Builder::new(BufWriter::new(file)), there: HashSet::new() };
    let (mut index, mut saved) = (Vec::new(), Vec::new());
    for plan in plans {
        let manifest = manifest(inner, plan)?;
        let digest = Digest::of(&manifest);
        archive.bytes(&blob_name(&digest), &manifest).map_err(fail)?;
        archive.file(&blob_name(&plan.record.id), &inner.blob(&plan.record.id)).map_err(fail)?;
        for layer in &plan.layers {
            archive.layer(inner, layer)?;
        }
        index.extend(descriptors(&digest, manifest.len(), &plan.tags));
        saved.push(json!({
            "Config": blob_name(&plan.record.id),
            "RepoTags": plan.tags,
            "Layers": plan.layers.iter().map(|layer| blob_name(packed(layer).0)).collect::<Vec<_>>(),
        }));
    }
    let index = json!({
        "schemaVersion": 2, "mediaType": super::document::OCI_INDEX, "manifests": index,
    });
    archive
        .bytes("oci-layout", json!({ "imageLayoutVersion": "1.0.0" }).to_string().as_bytes())
        .map_err(fail)?;
    archive.bytes("index.json", index.to_string().as_bytes()).map_err(fail)?;
    archive.bytes("manifest.json", json!(saved).to_string().as_bytes()).map_err(fail)?;
    let mut buffered = archive.tar.into_inner().map_err(fail)?;
    buffered.flush().map_err(fail)?;
    buffered.into_inner().map_err(|error| fail(error.into_error()))
}

/// The index's entries of one image: one for each name.
fn descriptors(digest: &Digest, size: usize, tags: &[String]) -> Vec<Descriptor> {
    let plain = Descriptor {
        media_type: OCI_MANIFEST.into(),
        digest: digest.clone(),
        size: size as u64,
        platform: None,
        annotations: None,
    };
    if tags.is_empty() {
        return vec![plain];
    }
    let named = |tag: &String| {
        let short = tag.rsplit(':').next().unwrap_or_default().to_owned();
        let annotations = BTreeMap::from([
            (ANNOTATION_NAME.to_owned(), tag.clone()),
            (ANNOTATION_REF_NAME.to_owned(), short),
        ]);
        Descriptor { annotations: Some(annotations), ..plain.clone() }
    };
    tags.iter().map(named).collect()
}

/// The manifest as it came if the blobs are those it names, else one that names ours.
fn manifest(inner: &Inner, plan: &Plan) -> Result<Vec<u8>> {
    let path = inner.blob(&plan.record.manifest);
    let shown = path.display().to_string();
    let bytes = fs::read(&path).map_err(|error| Error::io(OP, &shown, error))?;
    let Document::Manifest(manifest) = Document::parse(&bytes, &shown)? else {
        return Err(Error::new(Kind::Internal, OP, shown));
    };
    let same = manifest.layers.iter().map(|d| &d.digest).eq(plan.layers.iter().map(|layer| packed(layer).0));
    let oci = manifest.media_type.as_deref().is_none_or(|media_type| media_type == OCI_MANIFEST);
    if same && oci {
        return Ok(bytes);
    }
    let config = Descriptor { media_type: super::document::OCI_CONFIG.into(), ..manifest.config };
    let layers = plan.layers.iter().map(|layer| describe(inner, layer)).collect::<Result<_>>()?;
    let manifest = Manifest { schema_version: 2, media_type: Some(OCI_MANIFEST.into()), config, layers };
    serde_json::to_vec(&manifest).map_err(|error| Error::new(Kind::Internal, OP, shown).because(error))
}

fn describe(inner: &Inner, layer: &Layer) -> Result<Descriptor> {
    let packing = match &layer.tape {
        Some(_) => Packing::Plain,
        None => {
            let path = inner.layer(layer).join(BLOB);
            let mut magic = Vec::new();
            let read = File::open(&path).and_then(|file| file.take(4).read_to_end(&mut magic));
            read.map_err(|error| Error::io(OP, path.display().to_string(), error))?;
            Packing::of(&magic)
        }
    };
    let (digest, size) = packed(layer);
    Ok(Descriptor {
        media_type: media_type(packing),
        digest: digest.clone(),
        size,
        platform: None,
        annotations: None,
    })
}

/// The blob that the layer goes out as.
fn packed(layer: &Layer) -> (&Digest, u64) {
    match &layer.tape {
        Some(tape) => (&layer.diff_id, tape.tar_bytes),
        None => (&layer.blob, layer.blob_bytes),
    }
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// A tar in which each name comes once.
struct Archive {
    tar: tar::Builder<BufWriter<File>>,
    there: HashSet<String>,
}

impl Archive {
    fn bytes(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.append(name, bytes.len() as u64, bytes)
    }

    fn file(&mut self, name: &str, path: &Path) -> io::Result<()> {
        let file = File::open(path)?;
        let size = file.metadata()?.len();
        self.append(name, size, file.take(size))
    }

    fn layer(&mut self, inner: &Inner, layer: &Layer) -> Result<()> {
        let (directory, (digest, size)) = (inner.layer(layer), packed(layer));
        let name = blob_name(digest);
        if layer.tape.is_none() {
            let path = directory.join(BLOB);
            return self.file(&name, &path).map_err(|error| Error::io(OP, path.display().to_string(), error));
        }
        if self.there.contains(&name) {
            return Ok(());
        }
        let damaged = |error: io::Error| {
            Error::io(OP, layer.diff_id.to_string(), error)
                .hint("`berth image check --repair` fetches it again")
        };
        let mut tar = Metered::new(Replay::open(&directory).map_err(damaged)?);
        self.append(&name, size, &mut tar).map_err(damaged)?;
        // It is what the tape gives and no more.
        io::copy(&mut tar, &mut io::sink()).map_err(damaged)?;
        let (bytes, found) = (tar.meter.bytes, tar.meter.digest());
        if found == *digest {
            return Ok(());
        }
        let cause = format!("its files and its tape give {bytes} bytes with the digest {found}");
        Err(Error::invalid(OP, layer.diff_id.to_string(), cause)
            .hint("`berth image check --repair` fetches it again"))
    }

    fn append(&mut self, name: &str, size: u64, content: impl Read) -> io::Result<()> {
        if !self.there.insert(name.to_owned()) {
            return Ok(());
        }
        let mut header = tar::Header::new_ustar();
        header.set_size(size);
        header.set_mode(0o644);
        header.set_mtime(0);
        self.tar.append_data(&mut header, name, content)
    }
}
