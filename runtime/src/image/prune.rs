//! What nobody uses: how much it is, and its removal.

use std::{collections::HashSet, fs, io};

use super::{
    Pruned, Share, Unused,
    digest::Digest,
    disk,
    store::{Hold, Inner, State},
};
use crate::{Error, Result};

impl Inner {
    /// Removes unused images, pinned ones excepted, and half downloads that no pull is at.
    pub(super) fn prune(&self, unused: Unused) -> Result<Pruned> {
        let before = self.usage()?.used_bytes;
        let wanted: Vec<Digest> = {
            let state = self.read();
            let used = held_images(&state);
            let images = state.images.values().filter(|entry| {
                let record = &entry.record;
                let pinned = entry.whole.as_ref().is_some_and(|image| image.pinned);
                let loose = unused == Unused::Any || record.tags.is_empty();
                !pinned && loose && !used.contains(&record.id)
            });
            images.map(|entry| entry.record.id.clone()).collect()
        };
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
            let name = file.file_name().to_string_lossy().into_owned();
            // A layer is claimed under this lock before its file is opened, so it is held over the unlink: one of a file
            // that nobody has open.
            let state = self.write();
            let grows = state.claims.keys().any(|diff_id| name.ends_with(&diff_id.hex()[..16]));
            if !grows {
                match fs::remove_file(file.path()) {
                    Ok(()) => removed += 1,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(fail(error)),
                }
            }
        }
        Ok(removed)
    }

    /// What images and what half downloads take.
    pub(super) fn shares(&self) -> Result<(Share, Share)> {
        let (_, files) = disk::files_in(&self.places.partial)?;
        let (bytes, _) = self.unfinished()?;
        let state = self.read();
        let used = held_images(&state);
        let held: HashSet<&Digest> = state
            .holds
            .values()
            .filter_map(|hold| match hold {
                Hold::Layers(record) => Some(&record.layers),
                Hold::Unreadable => None,
            })
            .flatten()
            .collect();
        let all_held = state.holds.values().any(|hold| *hold == Hold::Unreadable);
        let mut images = Share {
            total: state.images.len() as u64,
            active: used.len() as u64,
            bytes: state.documents_bytes,
            reclaimable_bytes: 0,
        };
        for layer in state.layers.values() {
            let bytes = layer.all_bytes();
            images.bytes += bytes;
            if !all_held && !held.contains(&layer.diff_id) {
                images.reclaimable_bytes += bytes;
            }
        }
        let active = (state.claims.len() as u64).min(files);
        let reclaimable_bytes = if state.claims.is_empty() { bytes } else { 0 };
        Ok((images, Share { total: files, active, bytes, reclaimable_bytes }))
    }
}

/// Images that containers were made from.
fn held_images(state: &State) -> HashSet<Digest> {
    let records = state.holds.values().filter_map(|hold| match hold {
        Hold::Layers(record) => Some(record.image.clone()),
        Hold::Unreadable => None,
    });
    records.filter(|image| state.images.contains_key(image)).collect()
}
