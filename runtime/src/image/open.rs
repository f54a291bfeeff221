//! How the store comes up after anything: what is unfinished is swept, what is damaged is told and kept aside, and nothing
//! is wiped.

use std::{
    fs, io,
    path::Path,
    sync::{Arc, OnceLock},
    time::{Duration, SystemTime},
};

use serde::de::DeserializeOwned;
use tracing::{error, info, warn};

use super::{
    digest::Digest,
    disk,
    document::{self, Document},
    store::{Entry, Hold, HoldRecord, Layer, Names, Places, Record, State},
    used,
};
use crate::{Error, Kind, Result, config};

/// How long half a blob waits for its pull to be tried again.
const PARTIAL_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// How the table of images was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Table {
    Read,
    /// Damaged: what stands in memory is to be written.
    Rescued,
}

/// Removes what an interrupted pull, import or removal left.
pub(super) fn sweep(tmp: &Path) -> Result<()> {
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
pub(super) fn sweep_partial(partial: &Path) -> Result<()> {
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

pub(super) fn read_layers(places: &Places, state: &mut State) -> Result<()> {
    let fail = |error| Error::io("read", places.layers.display().to_string(), error);
    let mut found = Vec::new();
    for directory in fs::read_dir(&places.layers).map_err(fail)? {
        let path = directory.map_err(fail)?.path();
        let number =
            path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse::<u64>().ok());
        found.push((number, path));
    }
    // The newest first: a repair that was cut short leaves the damaged one beside it.
    found.sort_by_key(|(number, _)| std::cmp::Reverse(*number));
    for (number, path) in found {
        state.next_layer = state.next_layer.max(number.map_or(0, |number| number.saturating_add(1)));
        let layer = read_json::<Layer>(&path.join("layer.json"));
        match (layer, number) {
            (Ok(layer), Some(number))
                if layer.number == number
                    && path.join("fs").is_dir()
                    && has_what_is_beside(&path, &layer)
                    && !state.layers.contains_key(&layer.diff_id) =>
            {
                let used = used::noted(&path).map(OnceLock::from).unwrap_or_default();
                state.layers.insert(layer.diff_id.clone(), Arc::new(Layer { used, ..layer }));
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

fn has_what_is_beside(directory: &Path, layer: &Layer) -> bool {
    let (name, bytes) = layer.beside();
    fs::metadata(directory.join(name)).is_ok_and(|file| file.len() == bytes)
}

pub(super) fn read_holds(places: &Places, state: &mut State) -> Result<()> {
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
        // Who knows whether the berthd before this one had a reason to.
        state.unsynced.insert(holder.clone());
        state.holds.insert(holder, hold);
    }
    Ok(())
}

/// Reads which images there are. A table that can't be read is put aside, and what the store has is named anew.
pub(super) fn read_names(places: &Places, state: &mut State, config: &config::Registry) -> Result<Table> {
    let lost = || fs::exists(&places.old_names).unwrap_or_default();
    let (records, table) = match fs::exists(&places.names) {
        Ok(false) if !lost() => return Ok(Table::Read),
        Ok(false) => (rescue(places, state, "it is gone")?, Table::Rescued),
        Ok(true) => match read_json::<Names>(&places.names) {
            Ok(names) => (of_this_version(names, &places.names)?, Table::Read),
            Err(error) => (rescue(places, state, &error.chain())?, Table::Rescued),
        },
        Err(error) => return Err(Error::io("read", places.names.display().to_string(), error)),
    };
    for record in records {
        let read = read_blob(places, &record.id)
            .and_then(|bytes| document::parse_config(&bytes, record.layers.len(), &record.id.to_string()));
        // Saving needs the manifest too.
        let read = read_blob(places, &record.manifest).and(read);
        let whole = match read {
            Ok((config_of_image, _)) => {
                let image = state.image(&record, config_of_image, &config.pinned);
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
    Ok(table)
}

fn of_this_version(names: Names, path: &Path) -> Result<Vec<Record>> {
    if names.version != 1 {
        let cause = format!("its version is {}; this berthd reads 1", names.version);
        return Err(Error::new(Kind::Precondition, "read", path.display().to_string())
            .because(crate::error::Cause(cause)));
    }
    Ok(names.images)
}

/// Puts the damaged table aside. Names come from the one before; images that it does not know are found by their
/// documents, and have no tags.
fn rescue(places: &Places, state: &State, why: &str) -> Result<Vec<Record>> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let aside = places.root.join(format!("names.json.damaged-{now}"));
    match fs::rename(&places.names, &aside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(Error::io("put aside", places.names.display().to_string(), error));
        }
        _ => disk::sync_directory(&places.root)?,
    }
    let old =
        read_json::<Names>(&places.old_names).and_then(|names| of_this_version(names, &places.old_names));
    let mut records = old.unwrap_or_default();
    // Documents go with their image: one without was removed by the change that the old table does not have.
    records.retain(|record| read_blob(places, &record.id).is_ok());
    let named = records.len();
    for record in by_documents(places, state)? {
        if !records.iter().any(|known| known.id == record.id) {
            records.push(record);
        }
    }
    let untagged = records.len() - named;
    error!(
        path = %aside.display(), error = why, named, untagged,
        "the table of images was damaged and is kept aside; images without a tag get theirs by a pull"
    );
    Ok(records)
}

/// The images that the store's manifests, configs and layers make.
fn by_documents(places: &Places, state: &State) -> Result<Vec<Record>> {
    let fail = |error| Error::io("read", places.blobs.display().to_string(), error);
    let mut records = Vec::new();
    for file in fs::read_dir(&places.blobs).map_err(fail)? {
        let name = file.map_err(fail)?.file_name();
        let Ok(manifest) = Digest::parse(&format!("sha256:{}", name.to_string_lossy())) else { continue };
        let Ok(bytes) = read_blob(places, &manifest) else { continue };
        let Ok(Document::Manifest(document)) = Document::parse(&bytes, "") else { continue };
        let id = document.config.digest;
        let Ok(config) = read_blob(places, &id) else { continue };
        let Ok((_, layers)) = document::parse_config(&config, document.layers.len(), "") else { continue };
        if layers.iter().all(|layer| state.layers.contains_key(layer)) {
            records.push(Record { id, manifest, layers, tags: Vec::new(), digests: Vec::new() });
        }
    }
    Ok(records)
}

pub(super) fn read_blob(places: &Places, digest: &Digest) -> Result<Vec<u8>> {
    let path = places.blobs.join(digest.hex());
    let bytes = fs::read(&path).map_err(|error| Error::io("read", path.display().to_string(), error))?;
    if Digest::of(&bytes) == *digest {
        Ok(bytes)
    } else {
        Err(Error::new(Kind::Internal, "read", path.display().to_string())
            .because(crate::error::Cause("its content does not have its digest".into())))
    }
}

pub(super) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let bytes = fs::read(path).map_err(|error| Error::io("read", path.display().to_string(), error))?;
    serde_json::from_slice(&bytes)
        .map_err(|error| Error::new(Kind::Internal, "read", path.display().to_string()).because(error))
}
