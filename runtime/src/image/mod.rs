//! THE SHELF: images from registries and archives, verified, unpacked once, kept as layer directories. Knows no pod.

use std::path::{Path, PathBuf};

use tokio::sync::mpsc;

use crate::{Result, config};

/// The image store of one root directory. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Store {}

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

#[derive(Debug, Clone, Default)]
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

#[derive(Debug, Clone, PartialEq)]
pub struct FsUsage {
    pub mountpoint: PathBuf,
    pub used_bytes: u64,
    pub inodes_used: u64,
}

impl Store {
    /// Opens or makes the store, sweeps what an interrupted pull left.
    pub async fn open(root: &Path, config: &config::Registry) -> Result<Self> {
        todo!("{root:?} {config:?}")
    }
    pub fn list(&self) -> Vec<Image> {
        todo!()
    }
    /// By full or short reference, digest reference, id or an unambiguous prefix of it.
    pub fn find(&self, name: &str) -> Option<Image> {
        todo!("{name}")
    }
    pub async fn pull(&self, request: PullRequest) -> Result<Image> {
        todo!("{request:?}")
    }
    /// Reads an OCI layout directory or a tar (OCI layout or docker-archive; plain, gzip, zstd).
    pub async fn import(&self, source: &Path, name: Option<&str>) -> Result<Vec<Image>> {
        todo!("{source:?} {name:?}")
    }
    /// Writes an OCI layout tar that `docker load` takes too.
    pub async fn save(&self, names: &[String], to: &Path) -> Result<()> {
        todo!("{names:?} {to:?}")
    }
    /// Removes the image with all its tags; absent is success; layers in use stay until let go.
    pub async fn remove(&self, name: &str) -> Result<()> {
        todo!("{name}")
    }
    /// Holds the image's layers for a container (a durable use by `holder`, an id).
    pub fn hold(&self, image_id: &str, holder: &str) -> Result<Snapshot> {
        todo!("{image_id} {holder}")
    }
    /// Lets them go; absent is success.
    pub fn release(&self, holder: &str) -> Result<()> {
        todo!("{holder}")
    }
    pub fn usage(&self) -> Result<FsUsage> {
        todo!()
    }
}
