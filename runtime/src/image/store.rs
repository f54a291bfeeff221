//! What the store keeps, on disk and in memory, and how it opens after anything.
//!
//! ```text
//! <root>/images/
//!   names.json        which images there are, their tags and digests; replaced whole, durably
//!   names.json.old    the one before, for the day that it can't be read
//!   reserve           room for removals on a full disk
//!   blobs/<hex>       manifests and configs
//!   layers/<number>/  fs/ unpacked, tape or blob, layer.json, used; short numbers keep overlay options short
//!   holds/<holder>    who uses which layers
//!   partial/          blobs half fetched, for the next pull to go on with; swept at open when old
//!   tmp/              everything else unfinished; swept at open
//! ```
//!
//! A layer is durable before it is renamed out of tmp/ (one syncfs for all of a pull), and an image is named after all its layers are. So
//! whatever is named is whole, and whatever is not named nor held nor leased is garbage. A hold is made durable before an image that
//! it is for goes from the table, and no sooner: until then a container's own record says what it was (see `Store::hold`).
//! Locks: `writer` before `state`; `state` is never held over a system call that waits for the disk.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use super::{
    FsUsage, Image,
    digest::Digest,
    disk::{self, Scratch},
    layers::Busy,
    open,
    pieces::Allowance,
    pull::Pulls,
    tape::{self, Tape},
    used::{self, Used},
};
use crate::{Error, Kind, Result, config};

/// A layer's blob, in its directory.
pub(super) const BLOB: &str = "blob";

/// Where things are.
#[derive(Debug)]
pub(super) struct Places {
    pub(super) root: PathBuf,
    pub(super) blobs: PathBuf,
    pub(super) layers: PathBuf,
    pub(super) holds: PathBuf,
    pub(super) partial: PathBuf,
    pub(super) tmp: PathBuf,
    pub(super) names: PathBuf,
    /// The table before the last change.
    pub(super) old_names: PathBuf,
    pub(super) reserve: PathBuf,
}

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) places: Places,
    pub(super) config: config::Registry,
    pub(super) pulls: Pulls,
    pub(super) pieces: Allowance,
    /// One change of the disk's records at a time.
    writer: Mutex<()>,
    state: RwLock<State>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) images: BTreeMap<Digest, Arc<Entry>>,
    /// By diff id.
    pub(super) layers: HashMap<Digest, Arc<Layer>>,
    pub(super) holds: BTreeMap<String, Hold>,
    /// Whose hold may not be on the disk yet: an image that is named keeps its layers by itself.
    pub(super) unsynced: BTreeSet<String>,
    /// Layers that a pull or a save relies on, and how many do.
    pub(super) leases: HashMap<Digest, usize>,
    /// Layers being made; the channel closes when the maker is through.
    pub(super) claims: HashMap<Digest, Busy>,
    pub(super) next_layer: u64,
}

/// An image in names.json.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Record {
    /// The config's digest.
    pub(super) id: Digest,
    pub(super) manifest: Digest,
    /// Diff ids, lowest first.
    pub(super) layers: Vec<Digest>,
    pub(super) tags: Vec<String>,
    pub(super) digests: Vec<String>,
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) record: Record,
    /// None: something of it was lost; its other layers wait for the next pull.
    pub(super) whole: Option<Image>,
}

/// `layers/<number>/layer.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Layer {
    pub(super) number: u64,
    pub(super) diff_id: Digest,
    pub(super) blob: Digest,
    pub(super) blob_bytes: u64,
    /// Unpacked.
    pub(super) bytes: u64,
    pub(super) inodes: u64,
    /// What is beside the files; None: the blob.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) tape: Option<Tape>,
    /// On the disk; beside the record, since it is known only when that is on the disk.
    #[serde(skip)]
    pub(super) used: OnceLock<Used>,
}

impl Layer {
    /// The name and the bytes of what is beside the files.
    pub(super) fn beside(&self) -> (&'static str, u64) {
        match &self.tape {
            Some(tape) => (tape::NAME, tape.bytes),
            None => (BLOB, self.blob_bytes),
        }
    }

    /// Of its files, and of what is beside them.
    pub(super) fn all_bytes(&self) -> u64 {
        self.bytes + self.beside().1
    }
}

/// `holds/<holder>`.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Hold {
    Layers(HoldRecord),
    /// The file can't be read: who knows which layers it needs? Nothing is collected until it is released.
    Unreadable,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct HoldRecord {
    pub(super) image: Digest,
    pub(super) layers: Vec<Digest>,
}

/// `names.json`.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Names {
    pub(super) version: u32,
    pub(super) images: Vec<Record>,
}

impl Inner {
    /// Opens the store: makes directories, sweeps, reads the records, collects what nobody names.
    pub(super) fn open(root: &Path, config: config::Registry) -> Result<Self> {
        let root = root.join("images");
        let places = Places {
            blobs: root.join("blobs"),
            layers: root.join("layers"),
            holds: root.join("holds"),
            partial: root.join("partial"),
            tmp: root.join("tmp"),
            names: root.join("names.json"),
            old_names: root.join("names.json.old"),
            reserve: root.join("reserve"),
            root,
        };
        let Places { root, blobs, layers, holds, partial, tmp, .. } = &places;
        for directory in [root, blobs, layers, holds, partial, tmp] {
            disk::make_directory(directory)?;
        }
        // What is there is not needed before something is to be removed, and may be what keeps the rest from coming up.
        disk::give_back(&places.reserve);
        open::sweep(&places.tmp)?;
        open::sweep_partial(&places.partial)?;
        let mut state = State { next_layer: 1, ..State::default() };
        open::read_layers(&places, &mut state)?;
        open::read_holds(&places, &mut state)?;
        let names = open::read_names(&places, &mut state, &config)?;
        let inner = Self {
            places,
            config,
            pulls: Pulls::default(),
            pieces: Allowance::default(),
            writer: Mutex::new(()),
            state: RwLock::new(state),
        };
        if names == open::Table::Rescued {
            let images = inner.read().images.clone();
            inner.replace_images(&inner.lock(), images)?;
        }
        inner.collect()?;
        inner.reserve_room();
        Ok(inner)
    }

    pub(super) fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, ()> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn scratch(&self) -> Result<Scratch> {
        Scratch::new(&self.places.tmp)
    }

    pub(super) fn blob(&self, digest: &Digest) -> PathBuf {
        self.places.blobs.join(digest.hex())
    }

    /// Where a layer's blob grows. Who makes the layer has it for itself.
    pub(super) fn partial(&self, blob: &Digest, diff_id: &Digest) -> PathBuf {
        self.places.partial.join(format!("{}-{}", blob.hex(), &diff_id.hex()[..16]))
    }

    pub(super) fn layer(&self, layer: &Layer) -> PathBuf {
        self.places.layers.join(layer.number.to_string())
    }

    /// Replaces the images on disk, then in memory. The caller holds the writer's lock.
    pub(super) fn replace_images(
        &self,
        _writer: &MutexGuard<'_, ()>,
        images: BTreeMap<Digest, Arc<Entry>>,
    ) -> Result<()> {
        self.sync_holds(|record| !images.contains_key(&record.image))?;
        let names = Names { version: 1, images: images.values().map(|entry| entry.record.clone()).collect() };
        let bytes = serde_json::to_vec_pretty(&names)
            .map_err(|error| Error::new(Kind::Internal, "print", "names.json").because(error))?;
        // Where this fails the copy is one change older: worse, and no reason to refuse a change.
        disk::keep_before(&self.places.names, &self.places.old_names).ok();
        disk::write_durably(&self.places.names, &bytes)?;
        self.write().images = images;
        Ok(())
    }

    /// Makes the holds durable that are wanted. The caller holds the writer's lock.
    fn sync_holds(&self, wanted: impl Fn(&HoldRecord) -> bool) -> Result<()> {
        let late: Vec<String> = {
            let state = self.read();
            let of = |holder: &&String| match state.holds.get(*holder) {
                Some(Hold::Layers(record)) => wanted(record),
                Some(Hold::Unreadable) | None => false,
            };
            state.unsynced.iter().filter(of).cloned().collect()
        };
        if late.is_empty() {
            return Ok(());
        }
        late.iter().try_for_each(|holder| disk::sync_file(&self.places.holds.join(holder)))?;
        disk::sync_directory(&self.places.holds)?;
        self.write().unsynced.retain(|holder| !late.contains(holder));
        Ok(())
    }

    /// Removes the layers and blobs that no image names, no holder holds and no pull leases.
    pub(super) fn collect(&self) -> Result<()> {
        let gone = {
            let writer = self.lock();
            let gone = self.forget_unused_layers();
            if !gone.is_empty() {
                // A hold that came back would want them.
                disk::sync_directory(&self.places.holds)?;
            }
            let mut moved = Vec::new();
            for layer in gone {
                let to = self.places.tmp.join(format!("layer-{}", layer.number));
                match fs::rename(self.layer(&layer), &to) {
                    Ok(()) => moved.push(to),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(Error::io("rename", to.display().to_string(), error)),
                }
                info!(layer = %layer.diff_id, bytes = layer.all_bytes(), "layer removed");
            }
            self.remove_unused_blobs(&writer)?;
            moved
        };
        // Long work, without the lock: nobody knows these any more.
        gone.iter().try_for_each(|path| disk::remove_tree(path))
    }

    /// Takes room for removals, so that they work on a full disk too.
    pub(super) fn reserve_room(&self) {
        if let Err(error) = disk::reserve(&self.places.reserve) {
            warn!(error = error.chain(), "no room is kept for removals on a full disk");
        }
    }

    fn forget_unused_layers(&self) -> Vec<Arc<Layer>> {
        let mut state = self.write();
        if state.holds.values().any(|hold| *hold == Hold::Unreadable) {
            return Vec::new();
        }
        let mut used: BTreeSet<Digest> = state.leases.keys().cloned().collect();
        used.extend(state.images.values().flat_map(|entry| entry.record.layers.iter().cloned()));
        for hold in state.holds.values() {
            if let Hold::Layers(record) = hold {
                used.extend(record.layers.iter().cloned());
            }
        }
        let unused: Vec<Digest> = state.layers.keys().filter(|id| !used.contains(id)).cloned().collect();
        unused.iter().filter_map(|id| state.layers.remove(id)).collect()
    }

    fn remove_unused_blobs(&self, _writer: &MutexGuard<'_, ()>) -> Result<()> {
        let fail = |error| Error::io("collect", self.places.blobs.display().to_string(), error);
        let used: BTreeSet<String> = {
            let state = self.read();
            let records = state.images.values().map(|entry| &entry.record);
            records
                .flat_map(|record| [record.id.hex().to_owned(), record.manifest.hex().to_owned()])
                .collect()
        };
        for file in fs::read_dir(&self.places.blobs).map_err(fail)? {
            let file = file.map_err(fail)?;
            if !used.contains(&*file.file_name().to_string_lossy()) {
                fs::remove_file(file.path()).map_err(fail)?;
            }
        }
        Ok(())
    }

    /// What the store takes, as du counts: the few files beside the layers are looked at, of layers is known what they take,
    /// and what is on its way or goes is walked.
    pub(super) fn usage(&self) -> Result<FsUsage> {
        let Places { root, blobs, layers, holds, partial, tmp, .. } = &self.places;
        let mut used = used::itself(layers)?;
        for directory in [root, blobs, holds, partial] {
            used += used::flat(directory)?;
        }
        used += used::tree(tmp)?;
        let known: Vec<Arc<Layer>> = self.read().layers.values().cloned().collect();
        for layer in known {
            used += self.used_by(&layer)?;
        }
        Ok(FsUsage { mountpoint: root.clone(), used_bytes: used.bytes, inodes_used: used.inodes })
    }

    /// What a layer takes. Walks one that an older berthd made, or whose note was lost, once.
    pub(super) fn used_by(&self, layer: &Layer) -> Result<Used> {
        if let Some(used) = layer.used.get() {
            return Ok(*used);
        }
        match used::note(&self.layer(layer)) {
            Ok(used) => Ok(*layer.used.get_or_init(|| used)),
            // Removed meanwhile.
            Err(_) if !self.layer(layer).exists() => Ok(Used::default()),
            Err(error) => Err(error),
        }
    }
}

impl State {
    /// Finds an image by reference, id or the beginning of an id.
    pub(super) fn locate(&self, name: &str, prefix: &str) -> Option<&Arc<Entry>> {
        if let Ok(reference) = super::reference::Reference::parse(name, prefix) {
            let full = reference.to_string();
            let named = |entry: &&Arc<Entry>| {
                entry.record.tags.contains(&full) || entry.record.digests.contains(&full)
            };
            if let Some(entry) = self.images.values().find(named) {
                return Some(entry);
            }
        }
        let hex = name.strip_prefix("sha256:").unwrap_or(name);
        if hex.is_empty() || !hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
            return None;
        }
        let mut begin = self.images.values().filter(|entry| entry.record.id.hex().starts_with(hex));
        match (begin.next(), begin.next()) {
            (Some(only), None) => Some(only),
            _ => None,
        }
    }

    /// What CRI is told about a record, if all of it is there.
    pub(super) fn image(
        &self,
        record: &Record,
        config: oci_spec::image::ImageConfiguration,
        pinned: &[String],
    ) -> Option<Image> {
        let layers: Option<Vec<&Arc<Layer>>> = record.layers.iter().map(|id| self.layers.get(id)).collect();
        Some(Image {
            id: record.id.to_string(),
            tags: record.tags.clone(),
            digests: record.digests.clone(),
            size_bytes: layers?.iter().map(|layer| layer.bytes).sum(),
            config,
            pinned: record.tags.iter().any(|tag| super::pinned::is_pinned(tag, pinned)),
        })
    }
}
