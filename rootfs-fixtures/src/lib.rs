//! The images that tests and the demo use, made from this repository alone.
//!
//! ```text
//!   Entry -> Layer --+                       +-> write_dir     OCI layout directory
//!   Entry -> Layer --+-> Image -> Built -> Layout -> write_tar  OCI layout tar, plain or compressed
//!                    |                 \
//!            config -+                  +-> docker::write_archive
//! ```
//! The same input gives the same bytes: times are fixed and names are sorted. Nothing here touches the host
//! but the paths it is told to write.

pub mod bulk;
pub mod damage;
pub mod docker;

mod archive;
mod blob;
mod busybox;
mod entry;
mod escape;
mod image;
mod layer;
mod layered;
mod layout;
mod program;

pub use blob::{Blob, digest};
pub use busybox::busybox_image;
pub use entry::{Body, Device, Entry};
pub use escape::{ESCAPED, escaped, escaping_images, escaping_images_on};
pub use image::{Built, Image};
pub use layer::{Compression, Layer, LongNames};
pub use layered::{Expected, Found, layered_expectations, layered_image};
pub use layout::Layout;
pub use program::{APPLETS, fixture_image, program_path, scratch_image};

/// The time of every file and image: 2024-01-01T00:00:00Z.
pub const EPOCH_SECONDS: u64 = 1_704_067_200;
/// The same in the form that image configurations use.
pub const EPOCH_RFC3339: &str = "2024-01-01T00:00:00Z";
