//! Brings one image into the store, wherever its bytes come from: layers in parallel, then one sync, then the name.
//!
//! ```text
//! registry ──chunks──> partial file, digest ──┐ read behind the writer
//!                                             └─> inflate ──> diff id ──> files below tmp/     one such line per layer
//! each layer whole: a pulled one's blob goes, where a tape gives its tar again
//! all layers: syncfs ──> rename to layers/ ──> names.json
//! ```

use std::{
    collections::{BTreeMap, HashSet},
    fs::File,
    io::{self, Read, Write},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use futures_util::{
    StreamExt,
    stream::{self, FuturesUnordered},
};
use oci_spec::image::ImageConfiguration;
use tokio::sync::{mpsc, watch};

use super::{
    Image, Phase, Progress,
    archive::{self, Tree},
    digest::{Digest, Meter},
    disk,
    document::{self, Descriptor, Manifest},
    fetch::Errand,
    growth::{End, Grower, Growth},
    layers::{self, Bench, Claimed, Haste, Lease, Made},
    names::Naming,
    route::Route,
    store::Inner,
    unpack::Keep,
};
use crate::{Error, Kind, Result, error::Cause};

/// Layers fetched and unpacked at a time: more only makes disks seek and registries throttle.
const PARALLEL: usize = 3;

/// An image with its documents read and checked, its layers yet to come.
#[derive(Debug)]
pub(super) struct Offer {
    pub(super) manifest: Vec<u8>,
    pub(super) id: Digest,
    pub(super) config_bytes: Vec<u8>,
    pub(super) config: ImageConfiguration,
    pub(super) diff_ids: Vec<Digest>,
    pub(super) layers: Vec<Descriptor>,
    pub(super) tags: Vec<String>,
    pub(super) digests: Vec<String>,
}

/// Where the layers' blobs are.
#[derive(Debug, Clone)]
pub(super) enum Source {
    Registry(Arc<Route>),
    /// Blobs by their digest's path in the tree.
    Tree(Arc<Tree>),
}

/// Who wants to know how far it is.
#[derive(Debug, Clone, Default)]
pub(super) struct Watchers(Arc<Mutex<Vec<mpsc::Sender<Progress>>>>);

impl Watchers {
    pub(super) fn add(&self, watcher: mpsc::Sender<Progress>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(watcher);
    }

    /// Tells all who keep up. A slow one misses messages: no pull waits for a terminal.
    pub(super) fn tell(&self, progress: &Progress) {
        let mut watchers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        watchers.retain(|watcher| {
            !matches!(watcher.try_send(progress.clone()), Err(mpsc::error::TrySendError::Closed(_)))
        });
    }

    pub(super) fn layer(&self, descriptor: &Descriptor, bytes: u64, phase: Phase) {
        let digest = descriptor.digest.to_string();
        self.tell(&Progress::Layer { digest, bytes, total: descriptor.size, phase });
    }
}

impl Offer {
    /// Checks the documents against each other.
    pub(super) fn new(manifest_bytes: Vec<u8>, manifest: Manifest, config_bytes: Vec<u8>) -> Result<Self> {
        let id = manifest.config.digest;
        if Digest::of(&config_bytes) != id {
            return Err(Error::invalid("read image config", id.to_string(), "it does not have its digest"));
        }
        let (config, diff_ids) =
            document::parse_config(&config_bytes, manifest.layers.len(), &id.to_string())?;
        Ok(Self {
            manifest: manifest_bytes,
            id,
            config_bytes,
            config,
            diff_ids,
            layers: manifest.layers,
            tags: Vec::new(),
            digests: Vec::new(),
        })
    }

    fn documents(&self) -> Vec<(Digest, Vec<u8>)> {
        vec![
            (self.id.clone(), self.config_bytes.clone()),
            (Digest::of(&self.manifest), self.manifest.clone()),
        ]
    }
}

/// Takes the image in. What a failure leaves is collected.
pub(super) async fn install(
    inner: &Arc<Inner>,
    offer: Offer,
    source: Source,
    watchers: &Watchers,
) -> Result<Image> {
    let lease = Lease::new(inner, &offer.diff_ids);
    let installed = take_in(inner, offer, source, watchers).await;
    drop(lease);
    if installed.is_err() {
        let inner = Arc::clone(inner);
        let collected = blocking("collect", move || inner.collect()).await;
        if let Err(error) = collected {
            // The first error is the one to return; this one has nowhere else to go.
            tracing::warn!(error = error.chain(), "layers of a failed pull stay until the next removal");
        }
    }
    installed
}

/// Takes in all images of a directory or an archive.
pub(super) async fn import(inner: &Arc<Inner>, source: PathBuf, name: Option<String>) -> Result<Vec<Image>> {
    let reader = Arc::clone(inner);
    let (tree, offers) =
        blocking("import image", move || archive::read(&reader, &source, name.as_deref())).await?;
    let mut images = Vec::new();
    for offer in offers {
        let source = Source::Tree(Arc::clone(&tree));
        let given = offer.tags.clone();
        let mut image = install(inner, offer, source, &Watchers::default()).await?;
        image.tags.sort_by_key(|tag| !given.contains(tag));
        images.push(image);
    }
    // The spool goes here, and not on this thread.
    blocking("import image", move || {
        drop(tree);
        Ok(())
    })
    .await?;
    Ok(images)
}

/// Refuses what can't fit, before anything is fetched. What fits packed may be too big unpacked: that is told then.
fn find_room(inner: &Inner, offer: &Offer) -> Result<()> {
    let wanted: u64 = {
        let state = inner.read();
        let pairs = offer.layers.iter().zip(&offer.diff_ids);
        let absent: BTreeMap<&Digest, &Descriptor> = pairs
            .filter(|(_, diff_id)| !state.layers.contains_key(diff_id))
            .map(|(descriptor, diff_id)| (diff_id, descriptor))
            .collect();
        absent.values().map(|descriptor| descriptor.size).fold(0, u64::saturating_add)
    };
    let half = disk::content_of(&inner.places.partial)?;
    let (wanted, free) = (wanted.saturating_sub(half), disk::free_bytes(&inner.places.root)?);
    if wanted <= free {
        return Ok(());
    }
    let cause = format!(
        "No space left: its layers come to {wanted} bytes packed, {free} are free, so at least {} are missing",
        wanted - free
    );
    Err(Error::new(Kind::Exhausted, "make room in", inner.places.root.display().to_string())
        .because(Cause(cause))
        .hint("`berth image prune --all` removes images that no container uses"))
}

async fn take_in(inner: &Arc<Inner>, offer: Offer, source: Source, watchers: &Watchers) -> Result<Image> {
    let here = Arc::clone(inner);
    let offer = blocking("make room", move || find_room(&here, &offer).map(|()| offer)).await?;
    for descriptor in &offer.layers {
        watchers.layer(descriptor, 0, Phase::Waiting);
    }
    bring_layers(inner, &offer, &source, watchers).await?;
    let inner = Arc::clone(inner);
    let naming = Naming {
        id: offer.id,
        manifest: offer.manifest,
        config_bytes: offer.config_bytes,
        config: offer.config,
        diff_ids: offer.diff_ids,
        tags: offer.tags,
        digests: offer.digests,
    };
    blocking("name image", move || inner.name_image(naming)).await
}

/// Each layer once, the biggest first: so the last one to end is no big one that began late.
fn in_order(offer: &Offer) -> Vec<(Descriptor, Digest)> {
    let mut seen = HashSet::new();
    let pairs = offer.layers.iter().zip(&offer.diff_ids).filter(|(_, diff_id)| seen.insert(*diff_id));
    let mut pairs: Vec<(Descriptor, Digest)> =
        pairs.map(|(layer, diff_id)| (layer.clone(), diff_id.clone())).collect();
    pairs.sort_by_key(|(layer, _)| std::cmp::Reverse(layer.size));
    pairs
}

/// Brings what is missing, and makes it durable by one sync, unless somebody else waits for a part of it.
async fn bring_layers(inner: &Arc<Inner>, offer: &Offer, source: &Source, watchers: &Watchers) -> Result<()> {
    let here = Arc::clone(inner);
    let before = Arc::new(blocking("open store", move || here.before()).await?);
    let haste = Haste::new();
    // The first failure stops the others, and all are waited for: nothing goes on behind the caller's back.
    let stop = watch::Sender::new(false);
    let stopper = &stop;
    let maker = Maker { inner, source, watchers, haste: &haste };
    let bring = |(descriptor, diff_id): (Descriptor, Digest)| async move {
        let made = maker.bring(&descriptor, &diff_id, stopper.subscribe()).await;
        if made.is_err() {
            stopper.send_replace(true);
        }
        made
    };
    let mut bringing = stream::iter(in_order(offer).into_iter().map(bring)).buffer_unordered(PARALLEL).fuse();
    let (mut made, mut settling, mut failed) = (Vec::new(), FuturesUnordered::new(), None);
    let settle = |made: Vec<Made>, documents: Vec<(Digest, Vec<u8>)>| {
        let (inner, before) = (Arc::clone(inner), Arc::clone(&before));
        blocking("settle layers", move || {
            inner.put_documents(&documents)?;
            inner.settle_all(made, &before)
        })
    };
    loop {
        let waited_for = haste.is_called_for();
        if waited_for && !made.is_empty() {
            settling.push(settle(std::mem::take(&mut made), Vec::new()));
        }
        tokio::select! {
            brought = bringing.next() => match brought {
                Some(Ok(layer)) => made.extend(layer),
                // In the order they ended: the first error is the one that stopped the others.
                Some(Err(error)) => drop(failed.get_or_insert(error)),
                None => break,
            },
            Some(settled) = settling.next(), if !settling.is_empty() => {
                if let Err(error) = settled {
                    stop.send_replace(true);
                    failed.get_or_insert(error);
                }
            }
            () = haste.called_for(), if !waited_for => {}
        }
    }
    if failed.is_none() && !made.is_empty() {
        settling.push(settle(std::mem::take(&mut made), offer.documents()));
    }
    while let Some(settled) = settling.next().await {
        if let Err(error) = settled {
            failed.get_or_insert(error);
        }
    }
    // Removing many files blocks.
    blocking("remove layers", move || {
        drop(made);
        Ok(())
    })
    .await?;
    failed.map_or(Ok(()), Err)
}

/// Makes the layers of one image.
#[derive(Clone, Copy)]
struct Maker<'a> {
    inner: &'a Arc<Inner>,
    source: &'a Source,
    watchers: &'a Watchers,
    haste: &'a Haste,
}

impl Maker<'_> {
    /// Makes a layer, unless it is there.
    async fn bring(
        self,
        descriptor: &Descriptor,
        diff_id: &Digest,
        mut stop: watch::Receiver<bool>,
    ) -> Result<Option<Made>> {
        let claimed = tokio::select! {
            biased;
            () = stopped(&mut stop) => return Err(interrupted(descriptor)),
            claimed = layers::claim(self.inner, diff_id, self.haste) => claimed,
        };
        let claim = match claimed {
            Claimed::Present => {
                self.watchers.layer(descriptor, descriptor.size, Phase::Present);
                return Ok(None);
            }
            Claimed::Mine(claim) => claim,
        };
        let bench = blocking("make layer", move || Bench::new(claim)).await?;
        let made = match self.source {
            Source::Registry(route) => {
                let partial = self.inner.partial(&descriptor.digest, diff_id);
                self.pull(route, bench, descriptor, partial, stop).await?
            }
            Source::Tree(tree) => {
                let (tree, descriptor) = (Arc::clone(tree), descriptor.clone());
                blocking("unpack layer", move || {
                    copy_blob(&tree, &descriptor, bench.blob())?;
                    // Where would it be had from again?
                    unpack_whole(bench, &descriptor, Keep::Blob)
                })
                .await?
            }
        };
        self.watchers.layer(descriptor, descriptor.size, Phase::Done);
        Ok(Some(made))
    }

    /// Fetches a layer's blob, and unpacks it while it comes.
    async fn pull(
        self,
        route: &Route,
        bench: Bench,
        descriptor: &Descriptor,
        partial: PathBuf,
        stop: watch::Receiver<bool>,
    ) -> Result<Made> {
        let growth = Arc::new(Growth::default());
        let grower = Grower(Arc::clone(&growth));
        let follower = growth.follow();
        // The bench comes back: what is half unpacked is removed where that may block.
        let keep = self.inner.keep();
        let unpacking = tokio::spawn(blocking("unpack layer", move || {
            let unpacked = bench.unpack(follower, keep);
            Ok((bench, unpacked))
        }));
        let (pieces, watchers) = (&self.inner.pieces, self.watchers);
        let errand = Errand { descriptor, to: &partial, growth: &growth, pieces, watchers, stop };
        let fetched = route.fetch_layer(errand).await;
        if fetched.is_ok() {
            growth.end(End::Whole);
            watchers.layer(descriptor, descriptor.size, Phase::Unpacking);
        }
        drop(grower);
        let through = unpacking.await;
        let descriptor = descriptor.clone();
        blocking("unpack layer", move || {
            let lost = |error| Error::new(Kind::Internal, "unpack layer", "in a task").because(error);
            let (mut bench, unpacked) = through.map_err(lost)??;
            fetched?;
            // What was wrong came anew, so what was made of it counts for nothing.
            let anew = growth.was_spoiled();
            if anew {
                bench = bench.clear()?;
            }
            let to = bench.blob();
            std::fs::rename(&partial, &to)
                .map_err(|error| Error::io("rename", partial.display().to_string(), error))?;
            if anew {
                return unpack_whole(bench, &descriptor, keep);
            }
            bench.done(&descriptor.digest, descriptor.size, unpacked?)
        })
        .await
    }
}

/// Unpacks the blob that lies on the bench.
fn unpack_whole(bench: Bench, descriptor: &Descriptor, keep: Keep) -> Result<Made> {
    let path = bench.blob();
    let blob = File::open(&path).map_err(|error| Error::io("open", path.display().to_string(), error))?;
    let unpacked = bench.unpack(blob, keep)?;
    bench.done(&descriptor.digest, descriptor.size, unpacked)
}

/// Waits until another layer of the image fails.
pub(super) async fn stopped(stop: &mut watch::Receiver<bool>) {
    // The sender outlives all layers, so this ends only with the stop.
    stop.wait_for(|stop| *stop).await.ok();
}

pub(super) fn interrupted(descriptor: &Descriptor) -> Error {
    Error::new(Kind::Cancelled, "fetch layer", descriptor.digest.to_string())
}

fn copy_blob(tree: &Tree, descriptor: &Descriptor, to: PathBuf) -> Result<()> {
    let object = descriptor.digest.to_string();
    let mut from = tree.open_blob(&descriptor.digest)?;
    let fail = |error: io::Error| Error::io("copy layer", to.display().to_string(), error);
    let mut file = File::create_new(&to).map_err(fail)?;
    let mut meter = Meter::default();
    let mut buffer = vec![0; 256 << 10];
    loop {
        let count = from.read(&mut buffer).map_err(|error| Error::io("read layer", &object, error))?;
        if count == 0 {
            break;
        }
        meter.update(&buffer[..count]);
        file.write_all(&buffer[..count]).map_err(fail)?;
        if meter.bytes > descriptor.size {
            break;
        }
    }
    check(meter, descriptor)
}

/// Whether what came is what the manifest says.
pub(super) fn check(meter: Meter, descriptor: &Descriptor) -> Result<()> {
    let object = descriptor.digest.to_string();
    if meter.bytes != descriptor.size {
        let more = if meter.bytes > descriptor.size { " or more" } else { "" };
        let cause = format!("it has {} bytes{more}, the manifest says {}", meter.bytes, descriptor.size);
        return Err(Error::invalid("verify blob", object, cause));
    }
    let found = meter.digest();
    if found != descriptor.digest {
        let cause = format!("its content has the digest {found}");
        return Err(Error::invalid("verify blob", object, cause)
            .hint("something between here and the registry changes content"));
    }
    Ok(())
}

/// Runs file work where it may block.
pub(super) async fn blocking<T: Send + 'static>(
    op: &'static str,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(Error::new(Kind::Internal, op, "in a worker thread").because(error)))
}
