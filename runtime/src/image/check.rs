//! Verifies all that the store has: its table, each image's documents, each layer.
//!
//! A layer is verified by what it was made of: its tar, which its blob or its tape and files give again, is hashed, unpacked
//! once more and compared with what is there. What is damaged comes from there, where a blob was kept or no file's content
//! has changed.

use std::{collections::HashSet, fs::File, path::Path, sync::Arc};

use tokio::sync::mpsc;

use super::{
    Checked, Finding, Outcome, Repair, compare,
    digest::{Digest, Meter},
    disk::Scratch,
    document::Document,
    install::blocking,
    layers::Lease,
    open, repair,
    store::{BLOB, Entry, Inner, Layer, Names},
    tape::Replay,
    unpack::{self, Keep},
};
use crate::{Error, Kind, Result, error::Cause};

/// How a layer is.
#[derive(Debug)]
pub(super) enum Condition {
    Whole,
    /// Its files are damaged, what it is made of is not: they are in `fresh` as they are to be.
    Files {
        difference: String,
        fresh: Scratch,
        before: File,
    },
    /// What it is made of is damaged, so nobody can say how its files are to be: the blob, or the tape, or the content of
    /// files, which the tape does not have.
    Source {
        cause: String,
    },
}

/// Checks, and tells each finding once it is known and repaired or not.
pub(super) async fn check(
    inner: &Arc<Inner>,
    repair: Repair,
    told: &mpsc::Sender<Finding>,
) -> Result<Checked> {
    let mut checked = Checked::default();
    let here = Arc::clone(inner);
    if let Some(problem) = blocking("check names", move || Ok(names(&here))).await? {
        let object = inner.places.names.display().to_string();
        let outcome = match repair {
            Repair::No => Outcome::Found,
            Repair::Yes => repair::names(inner).await,
        };
        tell(&mut checked, told, Finding { object, problem, outcome }).await?;
    }
    let images: Vec<Arc<Entry>> = inner.read().images.values().cloned().collect();
    for image in &images {
        checked.images += 1;
        let (here, entry) = (Arc::clone(inner), Arc::clone(image));
        if let Some(problem) = blocking("check image", move || Ok(documents(&here, &entry))).await? {
            let outcome = match repair {
                Repair::No => Outcome::Found,
                Repair::Yes => repair::image(inner, &image.record).await,
            };
            let object = image.record.id.to_string();
            tell(&mut checked, told, Finding { object, problem, outcome }).await?;
        }
    }
    let mut layers: Vec<Arc<Layer>> = inner.read().layers.values().cloned().collect();
    layers.sort_by_key(|layer| layer.number);
    for layer in layers {
        // Nobody removes it meanwhile.
        let _lease = Lease::new(inner, std::slice::from_ref(&layer.diff_id));
        if !inner.read().layers.contains_key(&layer.diff_id) {
            continue;
        }
        checked.layers += 1;
        checked.bytes += layer.all_bytes();
        let (here, looked_at) = (Arc::clone(inner), Arc::clone(&layer));
        let condition = blocking("check layer", move || inspect(&here, &looked_at)).await?;
        let problem = match &condition {
            Condition::Whole => continue,
            Condition::Files { difference, .. } => difference.clone(),
            Condition::Source { cause } => format!("what it is made of is damaged: {cause}"),
        };
        let outcome = match repair {
            Repair::No => Outcome::Found,
            Repair::Yes => repair::layer(inner, &layer, condition).await,
        };
        tell(&mut checked, told, Finding { object: layer.diff_id.to_string(), problem, outcome }).await?;
    }
    Ok(checked)
}

async fn tell(checked: &mut Checked, told: &mpsc::Sender<Finding>, finding: Finding) -> Result<()> {
    checked.problems += 1;
    checked.repaired += u64::from(matches!(finding.outcome, Outcome::Repaired(_)));
    let Finding { object, problem, outcome } = &finding;
    tracing::warn!(object, problem, ?outcome, "the store is damaged");
    told.send(finding).await.map_err(|_| {
        Error::new(Kind::Cancelled, "check images", "").because(Cause("nobody listens any more".into()))
    })
}

/// Whether the table on the disk says what the daemon knows.
fn names(inner: &Inner) -> Option<String> {
    let _writer = inner.lock();
    match open::read_json::<Names>(&inner.places.names) {
        Err(_) if inner.read().images.is_empty() && !inner.places.names.exists() => None,
        Err(error) => Some(error.chain()),
        Ok(names) => {
            let state = inner.read();
            let same = names.images.iter().eq(state.images.values().map(|entry| &entry.record));
            (!same).then(|| "it does not say what the daemon knows".into())
        }
    }
}

/// What is wrong with an image's documents, or which layer it lacks.
fn documents(inner: &Inner, entry: &Entry) -> Option<String> {
    let record = &entry.record;
    let manifest = match open::read_blob(&inner.places, &record.manifest) {
        Ok(bytes) => Document::parse(&bytes, &record.manifest.to_string()),
        Err(error) => Err(error),
    };
    match manifest {
        Err(error) => return Some(format!("its manifest is damaged: {}", error.chain())),
        Ok(Document::Manifest(manifest)) if manifest.config.digest == record.id => {}
        Ok(_) => return Some("its manifest is another image's".into()),
    }
    if let Err(error) = open::read_blob(&inner.places, &record.id) {
        return Some(format!("its config is damaged: {}", error.chain()));
    }
    let state = inner.read();
    let known: HashSet<&Digest> = state.layers.keys().collect();
    let missing = record.layers.iter().find(|layer| !known.contains(layer));
    missing.map(|layer| format!("its layer {layer} is missing")).or_else(|| {
        // The daemon came up without one of these, and they are here now.
        entry.whole.is_none().then(|| "it was damaged when the daemon started".into())
    })
}

/// Looks at one layer. Needs room for its files once more.
fn inspect(inner: &Inner, layer: &Layer) -> Result<Condition> {
    let directory = inner.layer(layer);
    if let Err(error) = verify_beside(&directory, layer) {
        return Ok(Condition::Source { cause: error.chain() });
    }
    let fresh = inner.scratch()?;
    let before = File::open(fresh.path())
        .map_err(|error| Error::io("open", fresh.path().display().to_string(), error))?;
    let unpacked = match &layer.tape {
        None => unpack::unpack(&directory.join(BLOB), &layer.diff_id, fresh.path(), u64::MAX, Keep::Blob),
        // Reads the files too: what of them has changed is told here.
        Some(_) => Replay::open(&directory)
            .map_err(|error| {
                Error::new(Kind::Invalid, "replay layer", layer.diff_id.to_string()).because(error)
            })
            .and_then(|tar| unpack::unpack_tar(tar, &layer.diff_id, fresh.path(), Keep::Blob)),
    };
    match unpacked {
        Ok(_) => {}
        // It has its digest: then it never was the layer's, or it is the files that are damaged.
        Err(error) if error.kind == Kind::Invalid => return Ok(Condition::Source { cause: error.chain() }),
        Err(error) => return Err(error),
    }
    let difference = compare::difference(&directory.join("fs"), &fresh.path().join("fs"))
        .map_err(|error| Error::io("compare layer", fresh.path().display().to_string(), error))?;
    Ok(match difference {
        None => Condition::Whole,
        Some(difference) => Condition::Files { difference, fresh, before },
    })
}

/// Whether the tape or the blob is as it was.
fn verify_beside(directory: &Path, layer: &Layer) -> Result<()> {
    let path = directory.join(layer.beside().0);
    let wanted = layer.tape.as_ref().map_or(&layer.blob, |tape| &tape.digest);
    let fail = |error| Error::io("read", path.display().to_string(), error);
    let mut meter = Meter::default();
    meter.read(&mut File::open(&path).map_err(fail)?).map_err(fail)?;
    let (bytes, found) = (meter.bytes, meter.digest());
    if found == *wanted {
        return Ok(());
    }
    let cause = format!("its {bytes} bytes have the digest {found}");
    Err(Error::invalid("verify", path.display().to_string(), cause))
}
