//! THE SHELF: images from registries and archives, verified, unpacked once, kept as layer directories. Knows no pod.

mod apply;
mod archive;
mod auth;
mod beneath;
mod certificate;
mod check;
mod client;
mod compare;
mod cosign;
mod digest;
mod digests;
mod disk;
mod document;
mod fetch;
mod growth;
mod hosts;
mod install;
mod keyring;
mod layers;
mod names;
mod open;
mod pace;
mod pieces;
mod pinned;
mod policy;
mod prune;
mod pull;
mod reference;
mod registry;
mod rekor;
mod remedy;
mod repair;
mod route;
mod save;
mod signatures;
mod store;
mod tape;
mod tarball;
#[cfg(test)]
mod tests;
mod told;
mod tries;
mod trust;
mod unpack;
mod used;
mod verify;

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio::sync::mpsc;

pub use self::used::{Used, walk};
use self::{install::blocking, store::Inner};
use crate::{Error, Result, config};

/// The image store of one root directory. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

/// An image as the store keeps it.
#[derive(Debug, Clone)]
pub struct Image {
    /// `sha256:<hex>` of the config blob; what CRI calls Image.id and image_ref.
    pub id: String,
    /// Full references with a tag.
    pub tags: Vec<String>,
    /// `repo@sha256:…` as pulled.
    pub digests: Vec<String>,
    /// Bytes of the layers, unpacked.
    pub size_bytes: u64,
    pub config: oci_spec::image::ImageConfiguration,
    pub pinned: bool,
}

/// Credentials of one pull. Debug says only whose they are.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Auth {
    pub username: String,
    pub password: String,
    /// `user:password` in base64, docker's form.
    pub auth: String,
    pub identity_token: String,
    pub registry_token: String,
    pub server_address: String,
}

#[derive(Debug, Clone)]
pub struct PullRequest {
    pub reference: String,
    pub auth: Option<Auth>,
    pub plain_http: bool,
    /// Of the pod that the image is for: whose policy counts.
    pub namespace: Option<String>,
    pub progress: Option<mpsc::Sender<Progress>>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Progress {
    Resolved { digest: String },
    Layer { digest: String, bytes: u64, total: u64, phase: Phase },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    Waiting,
    Fetching,
    Unpacking,
    Done,
    Present,
}

/// What an overlay of an image is made of; holds the layers against removal until let go.
#[derive(Debug)]
pub struct Snapshot {
    /// Topmost first, short absolute paths.
    pub lowers: Vec<PathBuf>,
}

/// Which unused images a pruning takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unused {
    /// Those without a tag.
    Untagged,
    Any,
}

/// What a pruning took.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Pruned {
    /// Ids.
    pub images: Vec<String>,
    /// Half downloads that no pull was at.
    pub downloads: u64,
    pub bytes: u64,
}

/// What there is of something, and how much of it could go.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Share {
    pub total: u64,
    /// In use.
    pub active: u64,
    pub bytes: u64,
    pub reclaimable_bytes: u64,
}

/// What a check does about what it finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repair {
    No,
    Yes,
}

/// One thing that is not as it is to be.
#[derive(Debug, Clone, PartialEq)]
pub struct Finding {
    /// A layer's, manifest's or image's digest, or a file.
    pub object: String,
    pub problem: String,
    pub outcome: Outcome,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    Found,
    /// And how.
    Repaired(String),
    /// And why not.
    Unrepaired(String),
}

/// What a check looked at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Checked {
    pub images: u64,
    pub layers: u64,
    /// Of the layers' blobs and files.
    pub bytes: u64,
    pub problems: u64,
    pub repaired: u64,
}

#[derive(Debug, Clone, PartialEq)]
pub struct FsUsage {
    pub mountpoint: PathBuf,
    pub used_bytes: u64,
    pub inodes_used: u64,
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Auth")
            .field("username", &self.username)
            .field("server_address", &self.server_address)
            .finish_non_exhaustive()
    }
}

impl Store {
    /// Opens or makes the store, sweeps what an interrupted pull left.
    pub async fn open(root: &Path, config: &config::Registry) -> Result<Self> {
        let (root, config) = (root.to_owned(), config.clone());
        let inner = blocking("open image store", move || Inner::open(&root, config)).await?;
        Ok(Self { inner: Arc::new(inner) })
    }

    pub fn list(&self) -> Vec<Image> {
        self.inner.read().images.values().filter_map(|entry| entry.whole.clone()).collect()
    }

    /// By full or short reference, digest reference, id or an unambiguous prefix of it.
    pub fn find(&self, name: &str) -> Option<Image> {
        self.inner.read().locate(name, &self.inner.config.short_name_prefix)?.whole.clone()
    }

    /// An image's configuration as it came, with what the OCI's schema has no place for. Blocks.
    ///
    /// # Errors
    /// `NotFound` for an id that is none.
    pub fn configuration(&self, id: &str) -> Result<Vec<u8>> {
        let path = self.inner.blob(&digest::Digest::parse(id)?);
        std::fs::read(&path)
            .map_err(|error| Error::io("read image config", path.display().to_string(), error))
    }

    /// Pulls the image. Equal requests share one pull; dropping the future leaves it running.
    ///
    /// # Errors
    /// `Unavailable` (its cause begins with `RegistryUnavailable: `), `NotFound`, `Denied`, `Invalid` for broken
    /// content, `Exhausted` for a full disk.
    pub async fn pull(&self, request: PullRequest) -> Result<Image> {
        pull::pull(&self.inner, request).await
    }

    /// Reads an OCI layout directory or a tar (OCI layout or docker-archive; plain, gzip, zstd). The names that it gives
    /// come first among an image's tags.
    pub async fn import(&self, source: &Path, name: Option<&str>) -> Result<Vec<Image>> {
        let (inner, source, name) = (Arc::clone(&self.inner), source.to_owned(), name.map(str::to_owned));
        // A task of its own, so that a caller who leaves does not leave half an import.
        let import = tokio::spawn(async move { install::import(&inner, source, name).await });
        import.await.unwrap_or_else(|error| {
            Err(crate::Error::new(crate::Kind::Internal, "import image", "in a task").because(error))
        })
    }

    /// Writes an OCI layout tar that `docker load` takes too.
    pub async fn save(&self, names: &[String], to: &Path) -> Result<()> {
        let (inner, names, to) = (Arc::clone(&self.inner), names.to_vec(), to.to_owned());
        blocking("save image", move || save::save(&inner, &names, &to)).await
    }

    /// Removes the image with all its tags; absent is success; layers in use stay until let go.
    pub async fn remove(&self, name: &str) -> Result<()> {
        let (inner, name) = (Arc::clone(&self.inner), name.to_owned());
        blocking("remove image", move || inner.remove_image(&name)).await
    }

    /// Verifies tables, documents and layers; with `Repair::Yes` fetches what is damaged again. What is found is told as it
    /// is found. Ends early where nobody listens.
    pub async fn check(&self, repair: Repair, told: mpsc::Sender<Finding>) -> Result<Checked> {
        check::check(&self.inner, repair, &told).await
    }

    /// Removes images that nobody uses, pinned ones excepted, and half downloads.
    pub async fn prune(&self, unused: Unused) -> Result<Pruned> {
        let inner = Arc::clone(&self.inner);
        blocking("prune images", move || inner.prune(unused)).await
    }

    /// What images and downloads take on the disk.
    pub async fn shares(&self) -> Result<(Share, Share)> {
        let inner = Arc::clone(&self.inner);
        blocking("measure images", move || inner.shares()).await
    }

    /// Holds the image's layers for a container (by `holder`, an id). Blocks.
    ///
    /// On the disk at the latest when the image is removed: a power cut before that may take the hold and leave the image. So who
    /// starts anew holds again what it finds that it uses, see [`Self::is_held`].
    pub fn hold(&self, image_id: &str, holder: &str) -> Result<Snapshot> {
        self.inner.hold_image(image_id, holder)
    }

    /// Lets them go; absent is success. Blocks, for long if these were the last of a removed image.
    pub fn release(&self, holder: &str) -> Result<()> {
        self.inner.release_hold(holder)
    }

    /// Whether a holder has its layers, by a record that can be read.
    pub fn is_held(&self, holder: &str) -> bool {
        matches!(self.inner.read().holds.get(holder), Some(store::Hold::Layers(_)))
    }

    /// Who holds layers.
    pub fn holders(&self) -> Vec<String> {
        self.inner.read().holds.keys().cloned().collect()
    }

    /// What the store takes, all that is in its directory, as du counts. Blocks, for a moment: layers are not walked.
    pub fn usage(&self) -> Result<FsUsage> {
        self.inner.usage()
    }
}
