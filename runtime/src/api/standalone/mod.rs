//! berth.v1: the containers that a person runs, images from files, the daemon. On the same socket as CRI.
//!
//! ```text
//! containers (the table) ─┬─ create ── translate, name ──┐
//!                         ├─ lifecycle ── leave, signal ─┤
//!                         ├─ logs ── tail ── line        ├─> pod
//!                         ├─ attach, exec ── ends        │
//!                         └─ list, stats ────────────────┘
//! images ── spool ─> image        networks ─> net        daemon ── doctor, explain
//! ```
//! A standalone container is a hidden pod with one container; both come and go together.

mod attach;
mod containers;
mod create;
mod daemon;
mod doctor;
mod exec;
mod explain;
mod images;
mod leave;
mod lifecycle;
mod line;
mod list;
mod logs;
mod name;
mod networks;
mod signal;
mod spool;
mod stats;
mod tail;
mod translate;

use std::pin::Pin;

use futures_util::Stream;
use tonic::{Response, Status};

pub(super) use self::name::Names;
use super::Door;

type Answer<T> = Result<Response<T>, Status>;
/// What a call that streams answers with.
type Flow<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// So many messages of a stream wait for a slow client; then what feeds the stream waits.
const BACKLOG: usize = 16;

/// Carries on what an earlier daemon left: containers to be removed at their end, files of cut transfers.
pub(super) async fn resume(door: &Door) {
    spool::sweep(&door.config.daemon.root).await;
    leave::resume(door);
}
