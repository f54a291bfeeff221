//! The contract between `berthd` and `berth-shim`, generated from `launch.proto` (read that: it is the documentation),
//! with the few names both ends share. No logic.
#![allow(missing_debug_implementations)]

/// Package `berth.launch.v1`.
pub mod v1 {
    #![allow(clippy::all)]
    include!(concat!(env!("OUT_DIR"), "/berth.launch.v1.rs"));
}

/// The version of plans and of the records beside them.
pub const VERSION: u32 = 1;
/// The socket's name in a plan's `dir`; reach it through the directory's fd, so that no path is too long.
pub const SOCKET: &str = "s";
/// The exit record's name in a plan's `record_dir`.
pub const EXIT: &str = "exit";
/// The live record's name in a plan's `dir`.
pub const LIVE: &str = "live";
/// Where a plan's `dir` holds the pinned namespaces, one file per kind: `net`, `ipc`, `uts`, `pid`.
pub const PINS: &str = "ns";
/// The largest message on the socket, bytes.
pub const PACKET_BYTES: usize = 64 * 1024;
/// What this build of the shim can do beyond version 1; `needs` is checked against it.
pub const FEATURES: &[&str] = &[];
