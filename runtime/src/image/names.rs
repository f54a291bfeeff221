//! Changes of the records: naming images, removing them, holds of containers on layers.

use std::{collections::HashSet, fs, io, path::PathBuf, sync::Arc};

use oci_spec::image::ImageConfiguration;
use tracing::info;

use super::{
    Image, Snapshot,
    digest::Digest,
    disk,
    store::{Entry, Hold, HoldRecord, Inner, Record},
};
use crate::{Error, Kind, Result, error::Cause};

/// An image all of whose layers are in the store, about to be named.
#[derive(Debug)]
pub(super) struct Naming {
    pub(super) id: Digest,
    pub(super) manifest: Vec<u8>,
    pub(super) config_bytes: Vec<u8>,
    pub(super) config: ImageConfiguration,
    pub(super) diff_ids: Vec<Digest>,
    pub(super) tags: Vec<String>,
    pub(super) digests: Vec<String>,
}

impl Inner {
    /// Writes an image's documents down ahead of a sync, which makes them durable with its layers. `name_image` looks after
    /// them again: who collects meanwhile takes them for unused.
    pub(super) fn put_documents(&self, documents: &[(Digest, Vec<u8>)]) -> Result<()> {
        let _writer = self.lock();
        for (digest, bytes) in documents {
            let path = self.blob(digest);
            if !fs::read(&path).is_ok_and(|there| there == *bytes) {
                disk::write(&path, bytes)?;
            }
        }
        Ok(())
    }

    /// Makes the image findable, durably. A tag it takes from another image leaves that one untagged.
    pub(super) fn name_image(&self, naming: Naming) -> Result<Image> {
        let writer = self.lock();
        let manifest = Digest::of(&naming.manifest);
        for (digest, bytes) in [(&naming.id, &naming.config_bytes), (&manifest, &naming.manifest)] {
            let path = self.blob(digest);
            // Same name, same content; except for a damaged one, which is why it is written again.
            if fs::read(&path).is_ok_and(|there| there == *bytes) {
                // Perhaps another pull's that is not through. Costs nothing where it is on the disk.
                disk::sync_file(&path)?;
                continue;
            }
            disk::write_durably(&path, bytes)?;
        }
        disk::sync_directory(&self.places.blobs)?;
        let mut images = self.read().images.clone();
        for (id, entry) in &mut images {
            let taken = |name: &String| naming.tags.contains(name) || naming.digests.contains(name);
            let record = &entry.record;
            if *id != naming.id && record.tags.iter().chain(&record.digests).any(taken) {
                let mut record = record.clone();
                record.tags.retain(|tag| !taken(tag));
                record.digests.retain(|digest| !taken(digest));
                *entry = Arc::new(renamed(entry, record));
            }
        }
        let before = images.get(&naming.id).map(|entry| entry.record.clone());
        let (mut tags, mut digests) = before.map_or_else(Default::default, |r| (r.tags, r.digests));
        add(&mut tags, naming.tags);
        add(&mut digests, naming.digests);
        let record = Record { id: naming.id, manifest, layers: naming.diff_ids, tags, digests };
        let Some(image) = self.read().image(&record, naming.config, &self.config.pinned) else {
            return Err(Error::new(Kind::Internal, "name image", record.id.to_string())
                .because(Cause("a layer went away meanwhile".into()))
                .hint("pull it again"));
        };
        let entry = Entry { record: record.clone(), whole: Some(image.clone()) };
        images.insert(record.id, Arc::new(entry));
        self.replace_images(&writer, images)?;
        Ok(image)
    }

    /// Removes the image with all its names, and its layers unless they are in use. Absent is success. Works on a full
    /// disk.
    pub(super) fn remove_image(&self, name: &str) -> Result<()> {
        let remove = || self.forget_image(name).and_then(|()| self.collect());
        match remove() {
            Err(error) if error.kind == Kind::Exhausted => {
                disk::give_back(&self.places.reserve);
                let again = remove();
                self.reserve_room();
                again
            }
            other => other,
        }
    }

    fn forget_image(&self, name: &str) -> Result<()> {
        let writer = self.lock();
        let (mut images, found) = {
            let state = self.read();
            let found = state.locate(name, &self.config.short_name_prefix).map(|e| e.record.id.clone());
            (state.images.clone(), found)
        };
        let Some(id) = found else { return Ok(()) };
        images.remove(&id);
        self.replace_images(&writer, images)?;
        info!(image = %id, "image removed");
        Ok(())
    }

    /// Records that the holder uses the image's layers. Again for the same image is success. Not synced: as long as the image is
    /// named it keeps its layers, and before it goes from the table `replace_images` syncs this.
    pub(super) fn hold_image(&self, image_id: &str, holder: &str) -> Result<Snapshot> {
        let op = "hold image";
        let path = self.hold_path(op, holder)?;
        let _writer = self.lock();
        let record = {
            let state = self.read();
            let entry = state.locate(image_id, &self.config.short_name_prefix);
            let entry = entry.ok_or_else(|| Error::not_found(op, image_id).hint("pull it first"))?;
            if entry.whole.is_none() {
                return Err(Error::new(Kind::NotFound, op, image_id)
                    .because(Cause("a part of it was lost from the disk".into()))
                    .hint("pull it again"));
            }
            let record = HoldRecord { image: entry.record.id.clone(), layers: entry.record.layers.clone() };
            match state.holds.get(holder) {
                // Torn by a power cut, and written again by who knows what it was.
                None | Some(Hold::Unreadable) => record,
                Some(Hold::Layers(held)) if *held == record => return Ok(self.snapshot(&state, &record)),
                Some(Hold::Layers(_)) => {
                    return Err(Error::new(Kind::AlreadyExists, op, image_id)
                        .because(Cause(format!("{holder} holds another image")))
                        .hint("release it first"));
                }
            }
        };
        let bytes = serde_json::to_vec(&record)
            .map_err(|error| Error::new(Kind::Internal, "print hold", holder).because(error))?;
        disk::write(&path, &bytes)?;
        let mut state = self.write();
        state.unsynced.insert(holder.to_owned());
        state.holds.insert(holder.to_owned(), Hold::Layers(record.clone()));
        Ok(self.snapshot(&state, &record))
    }

    /// Ends the use; layers of removed images go with their last user. Absent is success.
    pub(super) fn release_hold(&self, holder: &str) -> Result<()> {
        let path = self.hold_path("release image", holder)?;
        {
            let _writer = self.lock();
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::io("release image", path.display().to_string(), error));
                }
                _ => {}
            }
            let mut state = self.write();
            state.unsynced.remove(holder);
            if state.holds.remove(holder).is_none() {
                return Ok(());
            }
        }
        self.collect()
    }

    /// The layers' directories, topmost first.
    fn snapshot(&self, state: &super::store::State, record: &HoldRecord) -> Snapshot {
        // Overlayfs refuses a directory twice. What a lower one adds, its upper twin adds already.
        let mut seen = HashSet::new();
        let topmost = record.layers.iter().rev().filter(|id| seen.insert(*id));
        let lowers = topmost.filter_map(|id| state.layers.get(id)).map(|layer| self.layer(layer).join("fs"));
        Snapshot { lowers: lowers.collect() }
    }

    fn hold_path(&self, op: &'static str, holder: &str) -> Result<PathBuf> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        if holder.is_empty() || holder.len() > 200 || !holder.bytes().all(plain) {
            return Err(Error::invalid(op, format!("{holder:.220?}"), "a holder is an id: A-Z a-z 0-9 - _"));
        }
        Ok(self.places.holds.join(holder))
    }
}

/// The entry under other names.
fn renamed(entry: &Entry, record: Record) -> Entry {
    let whole = entry.whole.clone().map(|image| Image {
        tags: record.tags.clone(),
        digests: record.digests.clone(),
        ..image
    });
    Entry { record, whole }
}

fn add(names: &mut Vec<String>, more: Vec<String>) {
    for name in more {
        if !names.contains(&name) {
            names.push(name);
        }
    }
}
