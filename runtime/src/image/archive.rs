//! Imports: an OCI layout directory, or a tar of one, or what `docker save` writes.
//!
//! A tar is spooled to tmp/ under numbers; its names only live in a map, so none of them ever is a path.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{self, Read},
    os::fd::OwnedFd,
    path::Path,
    sync::Arc,
};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use serde::Deserialize;

use super::{
    digest::{Digest, Meter},
    disk::Scratch,
    document::{
        self, ANNOTATION_NAME, ANNOTATION_REF_NAME, DOCUMENT_MAX_BYTES, Descriptor, Document, Index,
        Manifest, OCI_CONFIG, OCI_LAYER, OCI_MANIFEST,
    },
    install::Offer,
    reference::{Reference, Version},
    store::Inner,
    tarball::{Kind as EntryKind, Walk},
    unpack::{self, Packing},
};
use crate::{Error, Kind, Result};

const OP: &str = "import image";
const FILES_MAX: usize = 100_000;
const LINKS_MAX: usize = 8;
const INDEX_DEPTH_MAX: u32 = 3;
const IMAGES_MAX: usize = 1000;

/// Named files, in a directory or spooled from a tar.
#[derive(Debug)]
pub(super) struct Tree {
    files: Files,
    /// Docker's layers by their digest: they don't lie under it.
    layers: BTreeMap<Digest, String>,
    source: String,
}

#[derive(Debug)]
enum Files {
    Directory(OwnedFd),
    Spool { scratch: Scratch, names: BTreeMap<String, Spooled> },
}

#[derive(Debug)]
enum Spooled {
    File(u64),
    /// `docker save` of old links equal layers to each other.
    Link(String),
}

/// One entry of docker's manifest.json.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// Reads all images of the source. Blocks.
pub(super) fn read(inner: &Arc<Inner>, source: &Path, name: Option<&str>) -> Result<(Arc<Tree>, Vec<Offer>)> {
    let mut tree = open(inner, source)?;
    let prefix = &inner.config.short_name_prefix;
    let mut offers = if tree.has("index.json")? {
        read_layout(&tree, prefix)?
    } else if tree.has("manifest.json")? {
        read_saved(&mut tree, prefix)?
    } else {
        return Err(tree.wrong("it has neither index.json (OCI layout) nor manifest.json (docker save)"));
    };
    if let Some(name) = name {
        let reference = Reference::parse(name, prefix)?;
        let [offer] = offers.as_mut_slice() else {
            return Err(tree
                .wrong("it has several images, so one name does not fit")
                .hint("leave the name out"));
        };
        if let Version::Digest(_) = reference.version {
            return Err(Error::invalid(OP, name, "an imported image is named by a tag, not by a digest"));
        }
        offer.tags = vec![reference.to_string()];
    }
    Ok((Arc::new(tree), offers))
}

fn open(inner: &Inner, source: &Path) -> Result<Tree> {
    let shown = source.display().to_string();
    let fail = |error: io::Error| {
        let kind = if error.kind() == io::ErrorKind::NotFound { Kind::NotFound } else { Kind::Internal };
        Error::new(kind, OP, &shown).because(error)
    };
    let file = File::open(source).map_err(fail)?;
    let files = if file.metadata().map_err(fail)?.is_dir() {
        Files::Directory(file.into())
    } else {
        spool(inner, file, &shown)?
    };
    Ok(Tree { files, layers: BTreeMap::new(), source: shown })
}

fn spool(inner: &Inner, file: File, shown: &str) -> Result<Files> {
    let read = |error: io::Error| match error.raw_os_error() {
        Some(_) => Error::io(OP, shown, error),
        None => Error::new(Kind::Invalid, OP, shown).because(error),
    };
    let (_, stream) = unpack::unpacked(file).map_err(read)?;
    let scratch = inner.scratch()?;
    let mut names = BTreeMap::new();
    let mut walk = Walk::new(stream);
    let mut number = 0;
    while let Some(entry) = walk.next().map_err(read)? {
        let Ok(path) = String::from_utf8(entry.path.clone()) else {
            return Err(Error::invalid(OP, shown, "it has a file whose name is not UTF-8"));
        };
        let spooled = match entry.kind {
            EntryKind::File => {
                number += 1;
                let to = scratch.path().join(number.to_string());
                let write = |error| Error::io("spool", to.display().to_string(), error);
                let mut file = File::create_new(&to).map_err(write)?;
                copy(&mut walk.content(), &mut file, read, write)?;
                Spooled::File(number)
            }
            EntryKind::Symlink | EntryKind::HardLink => {
                let target = String::from_utf8_lossy(&entry.link).into_owned();
                let from = if entry.kind == EntryKind::Symlink { path.as_str() } else { "" };
                Spooled::Link(beside(from, &target).ok_or_else(|| leads_out(shown, &path))?)
            }
            EntryKind::Directory => continue,
            EntryKind::Fifo | EntryKind::Character { .. } | EntryKind::Block { .. } => {
                return Err(Error::invalid(
                    OP,
                    shown,
                    format!("{path:.200?} is a device, which no archive has"),
                ));
            }
        };
        let name = beside("", &path).ok_or_else(|| leads_out(shown, &path))?;
        names.insert(name, spooled);
        if names.len() > FILES_MAX {
            return Err(Error::invalid(OP, shown, format!("it has more than {FILES_MAX} files")));
        }
    }
    Ok(Files::Spool { scratch, names })
}

fn copy(
    from: &mut impl Read,
    to: &mut File,
    read: impl Fn(io::Error) -> Error,
    write: impl Fn(io::Error) -> Error,
) -> Result<()> {
    let mut buffer = vec![0; 128 << 10];
    loop {
        let count = from.read(&mut buffer).map_err(&read)?;
        if count == 0 {
            return Ok(());
        }
        io::Write::write_all(to, &buffer[..count]).map_err(&write)?;
    }
}

fn leads_out(shown: &str, path: &str) -> Error {
    Error::invalid(OP, shown, format!("{path:.200?} leads out of the archive"))
}

/// The name a relative target means beside a file; None where it climbs out.
fn beside(file: &str, target: &str) -> Option<String> {
    let mut parts: Vec<&str> = file.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            other => parts.push(other),
        }
    }
    parts.retain(|part| !part.is_empty() && *part != ".");
    Some(parts.join("/"))
}

impl Tree {
    /// Opens a layer's blob.
    pub(super) fn open_blob(&self, digest: &Digest) -> Result<File> {
        match self.layers.get(digest) {
            Some(name) => self.open(name),
            None => self.open(&blob_name(digest)),
        }
    }

    fn open(&self, name: &str) -> Result<File> {
        self.find(name)?.ok_or_else(|| self.wrong(format!("it lacks {name:.200}")))
    }

    fn find(&self, name: &str) -> Result<Option<File>> {
        let fail = |error: io::Error| Error::io(OP, format!("{}: {name:.200}", self.source), error);
        let file = match &self.files {
            Files::Directory(directory) => {
                let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
                let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
                match rustix::fs::openat2(directory, name, flags, Mode::empty(), resolve) {
                    Ok(fd) => File::from(fd),
                    Err(rustix::io::Errno::NOENT) => return Ok(None),
                    Err(error) => return Err(fail(error.into())),
                }
            }
            Files::Spool { scratch, names } => {
                let Some(mut name) = beside("", name) else { return Err(leads_out(&self.source, name)) };
                let mut links = 0;
                loop {
                    match names.get(&name) {
                        None => return Ok(None),
                        Some(Spooled::File(number)) => {
                            break File::open(scratch.path().join(number.to_string())).map_err(fail)?;
                        }
                        Some(Spooled::Link(to)) if links < LINKS_MAX => {
                            links += 1;
                            name.clone_from(to);
                        }
                        Some(Spooled::Link(_)) => return Err(self.wrong("its links go round")),
                    }
                }
            }
        };
        if file.metadata().map_err(fail)?.is_file() {
            Ok(Some(file))
        } else {
            Err(self.wrong(format!("{name:.200} is no regular file")))
        }
    }

    fn has(&self, name: &str) -> Result<bool> {
        Ok(self.find(name)?.is_some())
    }

    /// Reads a document, bounded.
    fn document(&self, name: &str) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let read = self.open(name)?.take(DOCUMENT_MAX_BYTES + 1).read_to_end(&mut bytes);
        read.map_err(|error| Error::io(OP, format!("{}: {name:.200}", self.source), error))?;
        if bytes.len() as u64 > DOCUMENT_MAX_BYTES {
            return Err(self.wrong(format!("{name:.200} has more than {} MiB", DOCUMENT_MAX_BYTES >> 20)));
        }
        Ok(bytes)
    }

    fn addressed(&self, descriptor: &Descriptor) -> Result<Vec<u8>> {
        let bytes = self.document(&blob_name(&descriptor.digest))?;
        if Digest::of(&bytes) == descriptor.digest {
            Ok(bytes)
        } else {
            Err(self.wrong(format!("the content of {} does not have this digest", descriptor.digest)))
        }
    }

    fn wrong(&self, cause: impl Into<String>) -> Error {
        Error::invalid(OP, &self.source, cause)
    }

    fn json<T: serde::de::DeserializeOwned>(&self, name: &str) -> Result<T> {
        serde_json::from_slice(&self.document(name)?)
            .map_err(|error| self.wrong(format!("{name} is malformed: {error}")))
    }
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn read_layout(tree: &Tree, prefix: &str) -> Result<Vec<Offer>> {
    let index: Index = tree.json("index.json")?;
    if index.manifests.len() > IMAGES_MAX {
        return Err(tree.wrong(format!("its index has more than {IMAGES_MAX} entries")));
    }
    let mut offers: Vec<Offer> = Vec::new();
    let mut elsewhere = None;
    for descriptor in &index.manifests {
        if document::rank(descriptor).is_none() {
            continue;
        }
        let offer = match offer(tree, descriptor) {
            Ok(offer) => offer,
            // One image of many may be for other hosts only.
            Err(error) if error.kind == Kind::NotFound => {
                elsewhere = Some(error);
                continue;
            }
            Err(error) => return Err(error),
        };
        let tags = names_in(descriptor, prefix)?;
        match offers.iter_mut().find(|known| known.id == offer.id) {
            Some(known) => known.tags.extend(tags),
            None => offers.push(Offer { tags, ..offer }),
        }
    }
    if offers.is_empty() {
        return Err(elsewhere.unwrap_or_else(|| tree.wrong("its index has no image for this host")));
    }
    if tree.has("manifest.json")? {
        add_repo_tags(&mut offers, &tree.json::<Vec<Saved>>("manifest.json")?, prefix)?;
    }
    Ok(offers)
}

/// Docker writes both; older ones put the names only into theirs.
fn add_repo_tags(offers: &mut [Offer], saved: &[Saved], prefix: &str) -> Result<()> {
    for saved in saved {
        let Some(offer) = offers.iter_mut().find(|offer| blob_name(&offer.id) == saved.config) else {
            continue;
        };
        for tag in saved.repo_tags.iter().flatten() {
            let tag = Reference::parse(tag, prefix)?.to_string();
            if !offer.tags.contains(&tag) {
                offer.tags.push(tag);
            }
        }
    }
    Ok(())
}

fn offer(tree: &Tree, descriptor: &Descriptor) -> Result<Offer> {
    let mut bytes = tree.addressed(descriptor)?;
    for _ in 0..=INDEX_DEPTH_MAX {
        match Document::parse(&bytes, &tree.source)? {
            Document::Manifest(manifest) => {
                let config = tree.addressed(&manifest.config)?;
                return Offer::new(bytes, manifest, config);
            }
            Document::Index(index) => bytes = tree.addressed(index.choose(&tree.source)?)?,
        }
    }
    Err(tree.wrong("indexes within indexes, too deep"))
}

/// The names an index gives: containerd's is full, OCI's may be a bare tag, which names nothing.
fn names_in(descriptor: &Descriptor, prefix: &str) -> Result<Vec<String>> {
    let find = |key: &str| descriptor.annotations.as_ref().and_then(|all| all.get(key));
    let name = find(ANNOTATION_NAME).or(find(ANNOTATION_REF_NAME).filter(|name| name.contains(['/', ':'])));
    let Some(name) = name else { return Ok(Vec::new()) };
    let reference = Reference::parse(name, prefix)?;
    Ok(match reference.version {
        Version::Tag(_) => vec![reference.to_string()],
        Version::Digest(_) => Vec::new(),
    })
}

/// docker save's form of old: layers are tars under any name, so their digests are made here.
fn read_saved(tree: &mut Tree, prefix: &str) -> Result<Vec<Offer>> {
    let all: Vec<Saved> = tree.json("manifest.json")?;
    if all.is_empty() || all.len() > IMAGES_MAX {
        return Err(tree.wrong(format!("its manifest.json has {} images", all.len())));
    }
    let mut offers = Vec::new();
    for saved in all {
        let config = tree.document(&saved.config)?;
        let mut layers = Vec::new();
        for name in &saved.layers {
            let descriptor = describe(tree, name)?;
            tree.layers.insert(descriptor.digest.clone(), name.clone());
            layers.push(descriptor);
        }
        let manifest = Manifest {
            schema_version: 2,
            media_type: Some(OCI_MANIFEST.into()),
            config: Descriptor {
                media_type: OCI_CONFIG.into(),
                digest: Digest::of(&config),
                size: config.len() as u64,
                platform: None,
                annotations: None,
            },
            layers,
        };
        let bytes = serde_json::to_vec(&manifest)
            .map_err(|error| Error::new(Kind::Internal, OP, &tree.source).because(error))?;
        let tags: BTreeSet<String> = saved
            .repo_tags
            .iter()
            .flatten()
            .map(|tag| Reference::parse(tag, prefix).map(|reference| reference.to_string()))
            .collect::<Result<_>>()?;
        offers.push(Offer { tags: tags.into_iter().collect(), ..Offer::new(bytes, manifest, config)? });
    }
    Ok(offers)
}

fn describe(tree: &Tree, name: &str) -> Result<Descriptor> {
    let mut file = tree.open(name)?;
    let mut meter = Meter::default();
    let mut buffer = vec![0; 256 << 10];
    let mut magic = Vec::new();
    loop {
        let count = file.read(&mut buffer).map_err(|error| Error::io(OP, &tree.source, error))?;
        if count == 0 {
            break;
        }
        if magic.is_empty() {
            magic = buffer[..count.min(4)].to_vec();
        }
        meter.update(&buffer[..count]);
    }
    let size = meter.bytes;
    let media_type = media_type(Packing::of(&magic));
    Ok(Descriptor { media_type, digest: meter.digest(), size, platform: None, annotations: None })
}

/// OCI's media type of a layer.
pub(super) fn media_type(packing: Packing) -> String {
    match packing {
        Packing::Plain => OCI_LAYER.to_owned(),
        Packing::Gzip => format!("{OCI_LAYER}+gzip"),
        Packing::Zstd => format!("{OCI_LAYER}+zstd"),
    }
}
