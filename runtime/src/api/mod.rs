//! THE DOOR: gRPC on one unix socket, translated and nothing else; one file per group of calls; Error -> Status.
//!
//! ```text
//! socket ── serve ── deadline ─┬─ cri::runtime  (one line per call) ── node, pods, containers, exec, stats ─┐
//!                              ├─ cri::images                                                                ├─> pod, image
//!                              └─ standalone    (berth.v1) ── create, lifecycle, logs, streams, images ──────┘
//! ```
//! `exporter` counts the calls and serves the daemon's own metrics. Every call runs in a span of its own (`status::call`), which is also the only place that logs its error.

pub mod cri;
mod deadline;
pub mod exporter;
mod find;
mod lock;
pub mod notify;
pub mod serve;
mod standalone;
pub mod start;
mod status;

use std::{
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use tokio::sync::watch;

use crate::{
    config::Config,
    image,
    pod::{Pods, Rooms},
    streaming::Tickets,
};

/// What the calls are answered from. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Door {
    pods: Pods,
    images: image::Store,
    rooms: Rooms,
    config: Arc<Config>,
    names: standalone::Names,
    tickets: Tickets,
    rates: cri::Rates,
    layers: cri::Layers,
    lists: cri::Lists,
    /// True once the daemon is to end: streams that have no end of their own end then.
    ending: watch::Sender<bool>,
}

impl Door {
    pub fn new(pods: Pods, rooms: Rooms, config: Config, tickets: Tickets) -> Self {
        Self {
            pods,
            images: rooms.images.clone(),
            rooms,
            config: Arc::new(config),
            names: standalone::Names::default(),
            tickets,
            rates: cri::Rates::default(),
            layers: cri::Layers::default(),
            lists: cri::Lists::default(),
            ending: watch::Sender::new(false),
        }
    }

    /// What stands for the file system of writable layers: the images' place where both are on one disk.
    fn writable_layers(&self) -> PathBuf {
        let (root, images) = (&self.config.daemon.root, self.config.image_root());
        let device = |path: &Path| path.metadata().map(|metadata| metadata.dev()).ok();
        if device(root) == device(images) { images.join("images") } else { root.clone() }
    }
}

/// The version of this build, semver as CRI wants it.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Now as CRI counts: nanoseconds since 1970.
fn now() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}
