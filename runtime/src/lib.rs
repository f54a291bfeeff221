//! Berth: the daemon `berthd` and the tool `berth`. The rooms and the arrows between them are drawn in
//! docs/ARCHITECTURE.md; tests/rooms.rs holds them.

pub mod api;
pub mod cgroup;
pub mod config;
pub mod ctl;
pub mod error;
pub mod host;
pub mod id;
pub mod image;
pub mod launcher;
pub mod net;
pub mod oci;
pub mod ocicli;
pub mod pod;
pub mod streaming;

pub use error::{Error, Kind, Result};
