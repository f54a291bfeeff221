//! Who makes a layer, who waits for it, who relies on it.
//!
//! ```text
//! claim ── Present: use it
//!       ├─ Busy:    wait until the maker is through, claim again (it may have failed with its credentials)
//!       └─ Mine:    fetch to scratch/blob, unpack to scratch/fs, syncfs, rename to layers/<number>
//! ```

use std::{fs::File, path::PathBuf, sync::Arc};

use tokio::sync::watch;

use super::{
    digest::Digest,
    disk::{self, Scratch},
    store::{Inner, Layer},
    unpack,
};
use crate::{Error, Kind, Result};

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
pub(super) async fn claim(inner: &Arc<Inner>, diff_id: &Digest) -> Claimed {
    loop {
        let mut busy = {
            let mut state = inner.write();
            if state.layers.contains_key(diff_id) {
                return Claimed::Present;
            }
            match state.claims.get(diff_id) {
                Some(busy) => busy.clone(),
                None => {
                    let (through, busy) = watch::channel(());
                    state.claims.insert(diff_id.clone(), busy);
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
    /// Opened before the first write: syncfs(2) through it reports every write that failed since.
    before: File,
}

impl Bench {
    pub(super) fn new(claim: Claim) -> Result<Self> {
        let scratch = claim.inner.scratch()?;
        let before = File::open(scratch.path())
            .map_err(|error| Error::io("open", scratch.path().display().to_string(), error))?;
        Ok(Self { claim, scratch, before })
    }

    /// Where the blob is to be written.
    pub(super) fn blob(&self) -> PathBuf {
        self.scratch.path().join("blob")
    }

    /// Unpacks the blob, which has the digest and size told, and makes the layer known. Blocks.
    pub(super) fn finish(self, blob: &Digest, blob_bytes: u64) -> Result<Arc<Layer>> {
        let Self { claim, scratch, before } = self;
        let inner = Arc::clone(&claim.inner);
        let written = unpack::unpack(
            &scratch.path().join("blob"),
            &claim.diff_id,
            scratch.path(),
            inner.config.layer_max_bytes,
        )?;
        let layer = inner.settle(scratch, &before, |number| Layer {
            number,
            diff_id: claim.diff_id.clone(),
            blob: blob.clone(),
            blob_bytes,
            bytes: written.bytes,
            inodes: written.inodes,
        })?;
        let wanted = {
            let mut state = inner.write();
            state.layers.insert(claim.diff_id.clone(), Arc::clone(&layer));
            state.leases.contains_key(&claim.diff_id)
        };
        // Who waits looks again, now that the layer can be found.
        drop(claim);
        if !wanted {
            // The pull failed on another layer meanwhile and has collected already.
            inner.collect()?;
        }
        Ok(layer)
    }
}

impl Inner {
    /// Makes an unpacked layer durable under a number of its own. Nobody knows it yet.
    pub(super) fn settle(
        &self,
        scratch: Scratch,
        before: &File,
        layer: impl FnOnce(u64) -> Layer,
    ) -> Result<Arc<Layer>> {
        let number = {
            let mut state = self.write();
            state.next_layer += 1;
            state.next_layer - 1
        };
        let layer = layer(number);
        let record = scratch.path().join("layer.json");
        let json = serde_json::to_vec(&layer)
            .map_err(|error| Error::new(Kind::Internal, "print", "layer.json").because(error))?;
        std::fs::write(&record, json)
            .map_err(|error| Error::io("write", record.display().to_string(), error))?;
        rustix::fs::syncfs(before)
            .map_err(|error| Error::io("sync layer", scratch.path().display().to_string(), error))?;
        scratch.settle(&self.layer(&layer))?;
        disk::sync_directory(&self.places.layers)?;
        Ok(Arc::new(layer))
    }
}
