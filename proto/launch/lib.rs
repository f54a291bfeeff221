//! The contract between `berthd` and `berth-shim`, generated from `launch.proto` (read that: it is the documentation),
//! with what both ends share: a few names, `needs`, which finds the features that a plan uses, `restart`
//! and `oom` and `denied`, which read the kernel's log.
#![allow(missing_debug_implementations)]

pub mod denied;
pub mod fault;
pub mod needs;
pub mod oom;
pub mod restart;

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
/// The mark in a plan's `dir` that berthd kills the container by its cgroup.
pub const KILLED: &str = "killed";
/// Output on its way into the log, in a plan's `dir` where that is in memory: what outlives the shim and berthd.
pub const STAGED_STDOUT: &str = "stdout";
pub const STAGED_STDERR: &str = "stderr";
/// The name of a plan's copy in its `dir`, for a shim that takes over.
pub const PLAN: &str = "plan";
/// Where a plan's `dir` holds the pinned namespaces, one file per kind: `net`, `ipc`, `uts`, `pid`.
pub const PINS: &str = "ns";
/// The largest message on the socket, bytes.
pub const PACKET_BYTES: usize = 64 * 1024;
/// What this build of the shim can do beyond version 1; `needs` is checked against it.
pub const FEATURES: &[&str] = &[
    needs::USERS,
    needs::MOUNT_IDS,
    needs::TIME,
    needs::DOMAINNAME,
    needs::HOOKS,
    needs::IMAGES,
    needs::OVERLAY_LABEL,
    needs::RECURSIVE,
    needs::DEVICE_PROGRAM,
    needs::SCHEDULER,
    needs::IO_PRIORITY,
    needs::AFFINITY,
    needs::PERSONALITY,
    needs::MEMORY_POLICY,
    needs::KEYRING,
    needs::SECCOMP_LISTENER,
    needs::LABELS,
    needs::APPARMOR_STACKED,
    needs::RESCTRL,
    needs::COPY_UP,
    needs::NET_DEVICES,
    needs::MAP_HELPERS,
    needs::RUNTIME,
    needs::HEALTH,
    needs::RUNTIME_ARGS,
    needs::LOG_RATE,
    needs::LAYER_QUOTA,
];
