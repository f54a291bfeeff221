//! Puts right what a check found: from what the store has, else from the registry, and only what is damaged.

use std::{
    fs, io,
    path::PathBuf,
    sync::{Arc, OnceLock},
};

use tokio::sync::watch;
use tracing::info;

use super::{
    Outcome, PullRequest,
    check::Condition,
    disk::{self, Scratch},
    document::{Descriptor, OCI_LAYER},
    fetch::Errand,
    install::{Watchers, blocking},
    layers, pull,
    reference::Reference,
    route::Route,
    store::{BLOB, Hold, Inner, Layer, Record},
    tape::Tape,
    unpack,
};
use crate::{Error, Kind, Result, error::Cause};

const OP: &str = "repair layer";

/// Writes the table anew.
pub(super) async fn names(inner: &Arc<Inner>) -> Outcome {
    let inner = Arc::clone(inner);
    let written = blocking("write names", move || {
        let images = inner.read().images.clone();
        inner.replace_images(&inner.lock(), images)
    });
    outcome(written.await.map(|()| "written anew"))
}

/// Fetches an image's documents and missing layers again.
pub(super) async fn image(inner: &Arc<Inner>, record: &Record) -> Outcome {
    let Some(reference) = record.digests.first() else { return from_nowhere() };
    let request = PullRequest {
        reference: reference.clone(),
        auth: None,
        plain_http: false,
        progress: None,
        namespace: None,
    };
    let pulled = pull::pull(inner, request).await;
    outcome(pulled.and_then(|image| {
        match image.id == record.id.to_string() {
            true => Ok("what was damaged is fetched again"),
            // An index that chooses another one for this machine now.
            false => Err(Error::new(Kind::NotFound, "repair image", record.id.to_string())
                .because(Cause(format!("{reference} is another image here")))),
        }
    }))
}

/// Replaces a layer's files, from what is there where that is whole.
pub(super) async fn layer(inner: &Arc<Inner>, layer: &Arc<Layer>, condition: Condition) -> Outcome {
    let (here, old) = (Arc::clone(inner), Arc::clone(layer));
    match condition {
        Condition::Whole => Outcome::Repaired("it is whole".into()),
        Condition::Files { fresh, before, .. } => {
            let replaced = blocking(OP, move || {
                let name = old.beside().0;
                let beside = here.layer(&old).join(name);
                fs::hard_link(&beside, fresh.path().join(name))
                    .map_err(|error| Error::io("link", beside.display().to_string(), error))?;
                here.replace(&old, old.tape.clone(), fresh, &before)
            });
            outcome(replaced.await.map(|()| "unpacked again from what was there"))
        }
        Condition::Source { .. } => {
            let reference = inner.read().images.values().find_map(|entry| {
                let has = entry.record.layers.contains(&old.diff_id);
                entry.record.digests.first().filter(|_| has).cloned()
            });
            let Some(reference) = reference else { return from_nowhere() };
            outcome(fetch(inner, layer, &reference).await.map(|()| "fetched again"))
        }
    }
}

fn outcome(done: Result<&'static str>) -> Outcome {
    match done {
        Ok(how) => Outcome::Repaired(how.into()),
        Err(error) => Outcome::Unrepaired(error.chain()),
    }
}

fn from_nowhere() -> Outcome {
    Outcome::Unrepaired("no registry is known to have it: remove the image and load it again".into())
}

async fn fetch(inner: &Arc<Inner>, layer: &Arc<Layer>, reference: &str) -> Result<()> {
    let parsed = Reference::parse(reference, &inner.config.short_name_prefix)?;
    let request = PullRequest {
        reference: reference.to_owned(),
        auth: None,
        plain_http: false,
        progress: None,
        namespace: None,
    };
    let route = Route::new(&parsed, &request, &inner.config).await?;
    let descriptor = Descriptor {
        media_type: OCI_LAYER.into(),
        digest: layer.blob.clone(),
        size: layer.blob_bytes,
        platform: None,
        annotations: None,
    };
    let partial = inner.partial(&layer.blob, &layer.diff_id);
    let stop = watch::Sender::new(false);
    let (growth, watchers) = (Arc::default(), Watchers::default());
    let errand = Errand {
        descriptor: &descriptor,
        to: &partial,
        growth: &growth,
        pieces: &inner.pieces,
        watchers: &watchers,
        stop: stop.subscribe(),
    };
    route.fetch_layer(errand).await?;
    let (inner, layer) = (Arc::clone(inner), Arc::clone(layer));
    blocking(OP, move || {
        let fresh = inner.scratch()?;
        let before = fs::File::open(fresh.path())
            .map_err(|error| Error::io("open", fresh.path().display().to_string(), error))?;
        let blob = fresh.path().join(BLOB);
        fs::rename(&partial, &blob)
            .map_err(|error| Error::io("rename", partial.display().to_string(), error))?;
        let most = inner.config.layer_max_bytes;
        let unpacked = unpack::unpack(&blob, &layer.diff_id, fresh.path(), most, inner.keep())?;
        let tape = layers::keep_one(fresh.path(), unpacked.tape, layer.blob_bytes)?;
        inner.replace(&layer, tape, fresh, &before)
    })
    .await
}

impl Inner {
    /// Puts the fresh layer in the place of the old one, under a number of its own. A crash between leaves both, and the
    /// newer one counts.
    fn replace(&self, old: &Layer, tape: Option<Tape>, fresh: Scratch, before: &fs::File) -> Result<()> {
        self.unheld(old)?;
        let layer = Layer { number: self.next_number(), tape, used: OnceLock::new(), ..old.clone() };
        let settled = self.settle(vec![(fresh, layer)], before)?;
        let Some(settled) = settled.first().cloned() else {
            return Err(Error::new(Kind::Internal, OP, old.diff_id.to_string()));
        };
        let gone: PathBuf = {
            // Holds are made under this lock: none begins between the look and the change.
            let _writer = self.lock();
            if let Err(error) = self.unheld(old) {
                disk::remove_tree(&self.layer(&settled))?;
                return Err(error);
            }
            self.write().layers.insert(old.diff_id.clone(), Arc::clone(&settled));
            let to = self.places.tmp.join(format!("layer-{}", old.number));
            match fs::rename(self.layer(old), &to) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(Error::io("rename", to.display().to_string(), error)),
            }
            to
        };
        info!(layer = %old.diff_id, path = %self.layer(&settled).display(), "layer replaced");
        disk::remove_tree(&gone)
    }

    /// A container's overlay is made of the very directory.
    fn unheld(&self, layer: &Layer) -> Result<()> {
        let state = self.read();
        let holders = state.holds.iter().filter(|(_, hold)| match hold {
            Hold::Layers(record) => record.layers.contains(&layer.diff_id),
            Hold::Unreadable => true,
        });
        let holders: Vec<&str> = holders.map(|(holder, _)| holder.as_str()).take(3).collect();
        if holders.is_empty() {
            return Ok(());
        }
        Err(Error::new(Kind::Precondition, OP, layer.diff_id.to_string())
            .because(Cause(format!("containers use it: {}", holders.join(", "))))
            .hint("remove them and repair again"))
    }
}
