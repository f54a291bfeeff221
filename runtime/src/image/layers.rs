//! Who makes a layer, who waits for it, who relies on it.
//!
//! ```text
//! claim ── Present: use it
//!       ├─ Busy:    wait until the maker is through, claim again (it may have failed with its credentials)
//!       └─ Mine:    fetch, unpack to scratch/fs while it comes; with the pull's other layers: syncfs, rename to layers/<number>
//! ```
//! A pull syncs once, for all its layers. Where somebody else waits for one of them it syncs at once: so two pulls that
//! wait for each other's layers come to their ends.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use tokio::sync::watch;

use super::{
    apply::Written,
    digest::Digest,
    disk::{self, Scratch},
    store::{BLOB, Inner, Layer},
    tape::{self, Tape},
    unpack::{self, Keep, Unpacked},
    used,
};
use crate::{Error, Kind, Result};

/// A tape of so many bytes is no matter, even where the blob is smaller.
const SMALL_BYTES: u64 = 64 << 10;

/// Keeps layers from being collected.
#[derive(Debug)]
pub(super) struct Lease {
    inner: Arc<Inner>,
    diff_ids: Vec<Digest>,
}

impl Lease {
    pub(super) fn new(inner: &Arc<Inner>, diff_ids: &[Digest]) -> Self {
        let mut state = inner.write();
        for id in diff_ids {
            *state.leases.entry(id.clone()).or_default() += 1;
        }
        drop(state);
        Self { inner: Arc::clone(inner), diff_ids: diff_ids.to_vec() }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut state = self.inner.write();
        for id in &self.diff_ids {
            if let Some(count) = state.leases.get_mut(id) {
                *count -= 1;
                if *count == 0 {
                    state.leases.remove(id);
                }
            }
        }
    }
}

/// What a pull's claims have in common: whether somebody else waits for one of them, so that its layers are not kept back
/// for a sync in common.
#[derive(Debug, Clone)]
pub(super) struct Haste(Arc<watch::Sender<bool>>);

impl Haste {
    pub(super) fn new() -> Self {
        Self(Arc::new(watch::Sender::new(false)))
    }

    pub(super) fn is_called_for(&self) -> bool {
        *self.0.borrow()
    }

    /// Waits until it is.
    pub(super) async fn called_for(&self) {
        // The sender is ours, so this ends only with the call.
        self.0.subscribe().wait_for(|called| *called).await.ok();
    }
}

/// A layer that somebody makes.
#[derive(Debug)]
pub(super) struct Busy {
    through: watch::Receiver<()>,
    haste: Haste,
}

/// The right and duty to make a layer.
#[derive(Debug)]
pub(super) struct Claim {
    inner: Arc<Inner>,
    diff_id: Digest,
    /// Closes with the claim: who waits looks again.
    _through: watch::Sender<()>,
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.inner.write().claims.remove(&self.diff_id);
    }
}

#[derive(Debug)]
pub(super) enum Claimed {
    Present,
    Mine(Claim),
}

/// Claims a layer; waits while somebody else makes it. The caller has a lease on it.
pub(super) async fn claim(inner: &Arc<Inner>, diff_id: &Digest, haste: &Haste) -> Claimed {
    loop {
        let mut busy = {
            let mut state = inner.write();
            if state.layers.contains_key(diff_id) {
                return Claimed::Present;
            }
            match state.claims.get(diff_id) {
                Some(busy) => {
                    busy.haste.0.send_replace(true);
                    busy.through.clone()
                }
                None => {
                    let (through, busy) = watch::channel(());
                    state.claims.insert(diff_id.clone(), Busy { through: busy, haste: haste.clone() });
                    let inner = Arc::clone(inner);
                    return Claimed::Mine(Claim { inner, diff_id: diff_id.clone(), _through: through });
                }
            }
        };
        // An error is what we wait for: nothing is ever sent.
        busy.changed().await.ok();
    }
}

/// Where a layer is made.
#[derive(Debug)]
pub(super) struct Bench {
    claim: Claim,
    scratch: Scratch,
}

/// A layer unpacked and verified, and not durable yet. Dropped, it leaves nothing.
#[derive(Debug)]
pub(super) struct Made {
    claim: Claim,
    scratch: Scratch,
    blob: Digest,
    blob_bytes: u64,
    written: Written,
    tape: Option<Tape>,
}

impl Bench {
    pub(super) fn new(claim: Claim) -> Result<Self> {
        let scratch = claim.inner.scratch()?;
        Ok(Self { claim, scratch })
    }

    /// Where the blob is to be.
    pub(super) fn blob(&self) -> PathBuf {
        self.scratch.path().join(BLOB)
    }

    /// Unpacks the blob. Blocks, as long as the stream does.
    pub(super) fn unpack(&self, blob: impl Read + Send + 'static, keep: Keep) -> Result<Unpacked> {
        let most = self.claim.inner.config.layer_max_bytes;
        unpack::unpack_from(blob, &self.claim.diff_id, self.scratch.path(), most, keep)
    }

    /// Throws away what was unpacked, for another try. Blocks.
    pub(super) fn clear(self) -> Result<Self> {
        let Self { claim, scratch } = self;
        drop(scratch);
        Self::new(claim)
    }

    /// The layer, whose blob has the digest and size told.
    pub(super) fn done(self, blob: &Digest, blob_bytes: u64, unpacked: Unpacked) -> Result<Made> {
        let Self { claim, scratch } = self;
        let Unpacked { written, tape } = unpacked;
        let tape = keep_one(scratch.path(), tape, blob_bytes)?;
        Ok(Made { claim, scratch, blob: blob.clone(), blob_bytes, written, tape })
    }
}

/// Keeps the tape and removes the blob, or the other way round where there is no tape, or it is the bigger one.
pub(super) fn keep_one(directory: &Path, tape: Option<Tape>, blob_bytes: u64) -> Result<Option<Tape>> {
    let tape = tape.filter(|tape| tape.bytes <= blob_bytes.max(SMALL_BYTES));
    let gone = directory.join(if tape.is_some() { BLOB } else { tape::NAME });
    match std::fs::remove_file(&gone) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io("remove", gone.display().to_string(), error))
        }
        _ => Ok(tape),
    }
}

impl Inner {
    /// What is to stay beside the files of a layer that a registry has.
    pub(super) fn keep(&self) -> Keep {
        match self.config.keep_blobs {
            true => Keep::Blob,
            false => Keep::Tape,
        }
    }

    /// What is written from now on, and could not be, is told by a sync through this.
    pub(super) fn before(&self) -> Result<File> {
        let path = &self.places.tmp;
        File::open(path).map_err(|error| Error::io("open", path.display().to_string(), error))
    }

    /// Makes layers durable by one sync, and known. `before` was opened before the first write. Blocks.
    pub(super) fn settle_all(&self, made: Vec<Made>, before: &File) -> Result<()> {
        let (mut claims, mut layers) = (Vec::new(), Vec::new());
        for Made { claim, scratch, blob, blob_bytes, written, tape } in made {
            let layer = Layer {
                number: self.next_number(),
                diff_id: claim.diff_id.clone(),
                blob,
                blob_bytes,
                bytes: written.bytes,
                inodes: written.inodes,
                tape,
                used: OnceLock::new(),
            };
            claims.push(claim);
            layers.push((scratch, layer));
        }
        let settled = self.settle(layers, before)?;
        let mut state = self.write();
        state.layers.extend(settled.into_iter().map(|layer| (layer.diff_id.clone(), layer)));
        drop(state);
        // Who waits looks again, now that the layers can be found.
        drop(claims);
        Ok(())
    }

    pub(super) fn next_number(&self) -> u64 {
        let mut state = self.write();
        state.next_layer += 1;
        state.next_layer - 1
    }

    /// Makes unpacked layers durable under their numbers. Nobody knows them yet.
    pub(super) fn settle(&self, layers: Vec<(Scratch, Layer)>, before: &File) -> Result<Vec<Arc<Layer>>> {
        for (scratch, layer) in &layers {
            let record = scratch.path().join("layer.json");
            let json = serde_json::to_vec(layer)
                .map_err(|error| Error::new(Kind::Internal, "print", "layer.json").because(error))?;
            std::fs::write(&record, json)
                .map_err(|error| Error::io("write", record.display().to_string(), error))?;
        }
        rustix::fs::syncfs(before)
            .map_err(|error| Error::io("sync layers", self.places.tmp.display().to_string(), error))?;
        let mut settled = Vec::new();
        for (scratch, layer) in layers {
            let layer = Layer { used: OnceLock::from(used::note(scratch.path())?), ..layer };
            scratch.settle(&self.layer(&layer))?;
            settled.push(Arc::new(layer));
        }
        disk::sync_directory(&self.places.layers)?;
        Ok(settled)
    }
}
