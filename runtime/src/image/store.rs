//! What the store keeps, on disk and in memory, and how it opens after anything.
//!
//! ```text
//! <root>/images/
//!   names.json        which images there are, their tags and digests; replaced whole, durably
//!   blobs/<hex>       manifests and configs
//!   layers/<number>/  fs/ unpacked, blob as it came, layer.json; short numbers keep overlay options short
//!   holds/<holder>    who uses which layers
//!   partial/          blobs half fetched, for the next pull to go on with; swept at open when old
//!   tmp/              everything else unfinished; swept at open
//! ```
//!
//! A layer is durable before it is renamed out of tmp/, and an image is named after all its layers are. So
//! whatever is named is whole, and whatever is not named nor held nor leased is garbage.
//! Locks: `writer` before `state`; `state` is never held over a system call that waits for the disk.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::Duration,
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::sync::watch;
use tracing::{info, warn};

use super::{
    FsUsage, Image,
    digest::Digest,
    disk::{self, Scratch},
    document,
    pull::Pulls,
};
use crate::{Error, Kind, Result, config};

/// How long half a blob waits for its pull to be tried again.
const PARTIAL_MAX: Duration = Duration::from_secs(24 * 60 * 60);

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
}

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) places: Places,
    pub(super) config: config::Registry,
    pub(super) pulls: Pulls,
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
    /// Layers that a pull or a save relies on, and how many do.
    pub(super) leases: HashMap<Digest, usize>,
    /// Layers being made; the channel closes when the maker is through.
    pub(super) claims: HashMap<Digest, watch::Receiver<()>>,
    pub(super) next_layer: u64,
    /// Bytes of blobs/.
    documents_bytes: u64,
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

#[derive(Serialize, Deserialize)]
struct Names {
    version: u32,
    images: Vec<Record>,
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
            root,
        };
        let Places { root, blobs, layers, holds, partial, tmp, .. } = &places;
        for directory in [root, blobs, layers, holds, partial, tmp] {
            disk::make_directory(directory)?;
        }
        sweep(&places.tmp)?;
        sweep_partial(&places.partial)?;
        let mut state = State { next_layer: 1, ..State::default() };
        read_layers(&places, &mut state)?;
        read_holds(&places, &mut state)?;
        read_names(&places, &mut state)?;
        let inner = Self {
            places,
            config,
            pulls: Pulls::default(),
            writer: Mutex::new(()),
            state: RwLock::new(state),
        };
        inner.collect()?;
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
        let names = Names { version: 1, images: images.values().map(|entry| entry.record.clone()).collect() };
        let bytes = serde_json::to_vec_pretty(&names)
            .map_err(|error| Error::new(Kind::Internal, "print", "names.json").because(error))?;
        disk::write_durably(&self.places.names, &bytes)?;
        self.write().images = images;
        Ok(())
    }

    /// Removes the layers and blobs that no image names, no holder holds and no pull leases.
    pub(super) fn collect(&self) -> Result<()> {
        let gone = {
            let writer = self.lock();
            let gone = self.forget_unused_layers();
            let mut moved = Vec::new();
            for layer in gone {
                let to = self.places.tmp.join(format!("layer-{}", layer.number));
                match fs::rename(self.layer(&layer), &to) {
                    Ok(()) => moved.push(to),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(Error::io("rename", to.display().to_string(), error)),
                }
                info!(layer = %layer.diff_id, bytes = layer.bytes + layer.blob_bytes, "layer removed");
            }
            self.remove_unused_blobs(&writer)?;
            moved
        };
        // Long work, without the lock: nobody knows these any more.
        gone.iter().try_for_each(|path| disk::remove_tree(path))
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
        let mut bytes = 0;
        for file in fs::read_dir(&self.places.blobs).map_err(fail)? {
            let file = file.map_err(fail)?;
            if used.contains(&*file.file_name().to_string_lossy()) {
                bytes += file.metadata().map_err(fail)?.len();
            } else {
                fs::remove_file(file.path()).map_err(fail)?;
            }
        }
        self.write().documents_bytes = bytes;
        Ok(())
    }

    pub(super) fn add_document_bytes(&self, bytes: u64) {
        self.write().documents_bytes += bytes;
    }

    pub(super) fn usage(&self) -> FsUsage {
        let state = self.read();
        let layers = state.layers.values();
        let (bytes, inodes) = layers.fold((state.documents_bytes, 0), |(bytes, inodes), layer| {
            // The directory, its record and its blob come on top of what was unpacked.
            (bytes + layer.bytes + layer.blob_bytes, inodes + layer.inodes + 3)
        });
        let records = 2 * state.images.len() as u64 + state.holds.len() as u64 + 6;
        FsUsage { mountpoint: self.places.root.clone(), used_bytes: bytes, inodes_used: inodes + records }
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
    ) -> Option<Image> {
        let layers: Option<Vec<&Arc<Layer>>> = record.layers.iter().map(|id| self.layers.get(id)).collect();
        Some(Image {
            id: record.id.to_string(),
            tags: record.tags.clone(),
            digests: record.digests.clone(),
            size_bytes: layers?.iter().map(|layer| layer.bytes).sum(),
            config,
            pinned: false,
        })
    }
}

/// Removes what an interrupted pull, import or removal left.
fn sweep(tmp: &Path) -> Result<()> {
    let fail = |error| Error::io("sweep", tmp.display().to_string(), error);
    for file in fs::read_dir(tmp).map_err(fail)? {
        let file = file.map_err(fail)?;
        if file.file_type().map_err(fail)?.is_dir() {
            disk::remove_tree(&file.path())?;
        } else {
            fs::remove_file(file.path()).map_err(fail)?;
        }
        let path = file.path();
        info!(path = %path.display(), reason = "an image pull, import or removal was interrupted", "swept");
    }
    Ok(())
}

/// Removes what nobody has come back for.
fn sweep_partial(partial: &Path) -> Result<()> {
    let fail = |error| Error::io("sweep", partial.display().to_string(), error);
    for file in fs::read_dir(partial).map_err(fail)? {
        let file = file.map_err(fail)?;
        let metadata = file.metadata().map_err(fail)?;
        // A clock that was set back makes nothing old.
        let age = metadata.modified().map_err(fail)?.elapsed().unwrap_or_default();
        if age > PARTIAL_MAX {
            fs::remove_file(file.path()).map_err(fail)?;
            let (path, bytes) = (file.path(), metadata.len());
            info!(path = %path.display(), bytes, reason = "a pull broke off and was not tried again", "swept");
        }
    }
    Ok(())
}

fn read_layers(places: &Places, state: &mut State) -> Result<()> {
    let fail = |error| Error::io("read", places.layers.display().to_string(), error);
    for directory in fs::read_dir(&places.layers).map_err(fail)? {
        let path = directory.map_err(fail)?.path();
        let number =
            path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse::<u64>().ok());
        state.next_layer = state.next_layer.max(number.map_or(0, |number| number.saturating_add(1)));
        let layer = read_json::<Layer>(&path.join("layer.json"));
        match (layer, number) {
            (Ok(layer), Some(number))
                if layer.number == number
                    && path.join("fs").is_dir()
                    && !state.layers.contains_key(&layer.diff_id) =>
            {
                state.layers.insert(layer.diff_id.clone(), Arc::new(layer));
            }
            (layer, _) => {
                let error =
                    layer.err().map_or("it is incomplete or there twice".to_owned(), |error| error.chain());
                warn!(path = %path.display(), error, "layer dropped, to be fetched again");
                let to = places.tmp.join(path.file_name().unwrap_or_default());
                fs::rename(&path, &to).map_err(fail)?;
                sweep(&places.tmp)?;
            }
        }
    }
    Ok(())
}

fn read_holds(places: &Places, state: &mut State) -> Result<()> {
    let fail = |error| Error::io("read", places.holds.display().to_string(), error);
    for file in fs::read_dir(&places.holds).map_err(fail)? {
        let path = file.map_err(fail)?.path();
        let holder = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if holder.ends_with(".new") {
            // Never renamed: the hold never was.
            fs::remove_file(&path).map_err(fail)?;
            continue;
        }
        let hold = match read_json::<HoldRecord>(&path) {
            Ok(record) => Hold::Layers(record),
            Err(error) => {
                let error = error.chain();
                warn!(holder, error, "unreadable hold: no layer is removed until it is released");
                Hold::Unreadable
            }
        };
        state.holds.insert(holder, hold);
    }
    Ok(())
}

fn read_names(places: &Places, state: &mut State) -> Result<()> {
    let names = match fs::exists(&places.names) {
        Ok(false) => return Ok(()),
        Ok(true) => read_json::<Names>(&places.names).map_err(|error| {
            error.hint("move the file away to start with no images; they can be pulled again")
        })?,
        Err(error) => return Err(Error::io("read", places.names.display().to_string(), error)),
    };
    if names.version != 1 {
        let cause = format!("its version is {}; this berthd reads 1", names.version);
        return Err(Error::new(Kind::Precondition, "read", places.names.display().to_string())
            .because(crate::error::Cause(cause)));
    }
    for record in names.images {
        let read = read_blob(places, &record.id)
            .and_then(|bytes| document::parse_config(&bytes, record.layers.len(), &record.id.to_string()));
        // Saving needs the manifest too.
        let read = read_blob(places, &record.manifest).and(read);
        let whole = match read {
            Ok((config, _)) => {
                let image = state.image(&record, config);
                if image.is_none() {
                    warn!(image = %record.id, "image is missing a layer: pull it again");
                }
                image
            }
            Err(error) => {
                warn!(image = %record.id, error = error.chain(), "image is damaged: pull it again");
                None
            }
        };
        state.images.insert(record.id.clone(), Arc::new(Entry { record, whole }));
    }
    Ok(())
}

fn read_blob(places: &Places, digest: &Digest) -> Result<Vec<u8>> {
    let path = places.blobs.join(digest.hex());
    let bytes = fs::read(&path).map_err(|error| Error::io("read", path.display().to_string(), error))?;
    if Digest::of(&bytes) == *digest {
        Ok(bytes)
    } else {
        Err(Error::new(Kind::Internal, "read", path.display().to_string())
            .because(crate::error::Cause("its content does not have its digest".into())))
    }
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let bytes = fs::read(path).map_err(|error| Error::io("read", path.display().to_string(), error))?;
    serde_json::from_slice(&bytes)
        .map_err(|error| Error::new(Kind::Internal, "read", path.display().to_string()).because(error))
}
