//! What nobody uses: how much it is, and its removal.

use std::{collections::HashSet, fs, io};

use super::{
    Pruned, Share, Unused,
    digest::Digest,
    store::{Hold, Inner, Record, State},
    used::{self, Used},
};
use crate::{Error, Result};

impl Inner {
    /// Removes unused images, pinned ones excepted, and half downloads that no pull is at.
    pub(super) fn prune(&self, unused: Unused) -> Result<Pruned> {
        let before = self.usage()?.used_bytes;
        let wanted: Vec<Digest> = unused_images(&self.read(), unused).into_iter().collect();
        for id in &wanted {
            self.remove_image(&id.to_string())?;
        }
        let downloads = self.prune_downloads()?;
        let bytes = before.saturating_sub(self.usage()?.used_bytes);
        Ok(Pruned { images: wanted.iter().map(ToString::to_string).collect(), downloads, bytes })
    }

    /// Removes what half downloads left, but not what grows right now.
    fn prune_downloads(&self) -> Result<u64> {
        let fail = |error| Error::io("prune", self.places.partial.display().to_string(), error);
        let mut removed = 0;
        for file in fs::read_dir(&self.places.partial).map_err(fail)? {
            let file = file.map_err(fail)?;
            // A layer is claimed under this lock before its file is opened, so it is held over the unlink: one of a file
            // that nobody has open.
            let state = self.write();
            if !grows(&state, &file.file_name().to_string_lossy()) {
                match fs::remove_file(file.path()) {
                    Ok(()) => removed += 1,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(fail(error)),
                }
            }
        }
        Ok(removed)
    }

    /// What images and what downloads take on the disk, and what of it a pruning of all gives back.
    pub(super) fn shares(&self) -> Result<(Share, Share)> {
        Ok((self.share_of_images()?, self.share_of_downloads()?))
    }

    fn share_of_images(&self) -> Result<Share> {
        let documents = used::files(&self.places.blobs)?;
        let (mut share, layers, going) = {
            let state = self.read();
            let share = Share {
                total: state.images.len() as u64,
                active: held_images(&state).len() as u64,
                ..Share::default()
            };
            let layers: Vec<_> = state.layers.values().cloned().collect();
            (share, layers, Going::new(&state))
        };
        for (name, used) in documents {
            share.bytes += used.bytes;
            share.reclaimable_bytes += if going.documents.contains(&name) { used.bytes } else { 0 };
        }
        for layer in layers {
            let used = self.used_by(&layer)?;
            share.bytes += used.bytes;
            share.reclaimable_bytes += if going.layers.contains(&layer.diff_id) { used.bytes } else { 0 };
        }
        Ok(share)
    }

    /// Blobs half fetched, and what of layers is unpacked and not whole yet.
    fn share_of_downloads(&self) -> Result<Share> {
        let files = used::files(&self.places.partial)?;
        let making = used::walk_own(&self.places.tmp)?;
        let state = self.read();
        let (growing, loose): (Vec<_>, Vec<_>) = files.into_iter().partition(|(name, _)| grows(&state, name));
        let sum = |files: &[(String, Used)]| files.iter().map(|(_, used)| used.bytes).sum::<u64>();
        Ok(Share {
            total: (growing.len() + loose.len()) as u64,
            active: growing.len() as u64,
            bytes: sum(&growing) + sum(&loose) + making.bytes,
            reclaimable_bytes: sum(&loose),
        })
    }
}

/// What goes with the images that nobody uses.
struct Going {
    /// Diff ids.
    layers: HashSet<Digest>,
    /// Names of files.
    documents: HashSet<String>,
}

impl Going {
    fn new(state: &State) -> Self {
        let images = unused_images(state, Unused::Any);
        let records = || state.images.values().map(|entry| &entry.record);
        let kept = || records().filter(|record| !images.contains(&record.id));
        let gone = || records().filter(|record| images.contains(&record.id));
        let held = state.holds.values().filter_map(|hold| match hold {
            Hold::Layers(held) => Some(&held.layers),
            Hold::Unreadable => None,
        });
        let stay: HashSet<&Digest> = kept()
            .flat_map(|record| &record.layers)
            .chain(held.flatten())
            .chain(state.leases.keys())
            .collect();
        let documents = |record: &Record| [record.id.hex().to_owned(), record.manifest.hex().to_owned()];
        let stay_too: HashSet<String> = kept().flat_map(documents).collect();
        let all_stay = state.holds.values().any(|hold| *hold == Hold::Unreadable);
        let layers =
            gone().flat_map(|record| &record.layers).filter(|layer| !all_stay && !stay.contains(layer));
        Self {
            layers: layers.cloned().collect(),
            documents: gone().flat_map(documents).filter(|name| !stay_too.contains(name)).collect(),
        }
    }
}

/// Those that a pruning takes.
fn unused_images(state: &State, unused: Unused) -> HashSet<Digest> {
    let used = held_images(state);
    let images = state.images.values().filter(|entry| {
        let record = &entry.record;
        let pinned = entry.whole.as_ref().is_some_and(|image| image.pinned);
        let loose = unused == Unused::Any || record.tags.is_empty();
        !pinned && loose && !used.contains(&record.id)
    });
    images.map(|entry| entry.record.id.clone()).collect()
}

/// Whether a pull is at the file of that name below partial/.
fn grows(state: &State, name: &str) -> bool {
    state.claims.keys().any(|diff_id| name.ends_with(&diff_id.hex()[..16]))
}

/// Images that containers were made from.
fn held_images(state: &State) -> HashSet<Digest> {
    let records = state.holds.values().filter_map(|hold| match hold {
        Hold::Layers(record) => Some(record.image.clone()),
        Hold::Unreadable => None,
    });
    records.filter(|image| state.images.contains_key(image)).collect()
}
