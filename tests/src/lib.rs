//! The harness of the privileged integration tests: private daemons, clients, registries, images, leak checks.
//!
//! ```text
//!   Place    names that nobody else has: directory, bridge, subnet, table, cgroup parent
//!   Daemon   a berthd in a place; clients (CRI, berth.v1), the tool; killed, restarted, stopped
//!     drop   removes all it runs, stops it, and fails the test if anything is left (leaks)
//!   oci      `berth oci` with bundles and a root of its own, as a supervisor outside uses it
//!   Registry docker-registry over HTTP or HTTPS, filled by skopeo;  Hostile one that misbehaves on purpose
//!   images   archives of rootfs-fixtures, made once per process;     pods  requests with the usual in them
//! ```
//! Tests drive public doors only. They need root; what a machine lacks is skipped loudly (`skip`).

mod clients;
pub mod cni;
mod daemon;
mod devices;
mod disk;
mod freezer;
mod hostile;
pub mod images;
mod leaks;
mod logs;
pub mod oci;
mod place;
mod pods;
mod poll;
mod programs;
mod registry;
mod sick;
mod skip;
pub mod sockets;
pub mod spdy;
pub mod systemd;
mod tool;
pub mod web;

pub use clients::Answer;
pub use daemon::{Daemon, Options};
pub use devices::block_device;
pub use disk::Disk;
pub use freezer::Freezer;
pub use hostile::{Hostile, Trick};
pub use leaks::{processes_in, processes_naming};
pub use logs::{Line, Stream, lines, read_log};
pub use pods::{Asked, Pod, asked, exec_of, host_network, pod, security};
pub use poll::{BOUND, eventually, until};
pub use programs::program;
pub use registry::{Registry, Transport};
pub use sick::{Mood, Sick};
pub use skip::{required, skip};
pub use tool::{Finished, Tool};
