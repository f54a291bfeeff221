//! Images that arrive broken: what a bad disk, a bad network or a bad registry makes of them.

use crate::blob::{Blob, digest};
use crate::image::{Built, Image};
use crate::layout::Layout;
use serde_json::Value;
use std::io;

/// How an image is broken. All but the last four keep the manifest as it was: the descriptors lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Damage {
    /// The last layer's blob ends half way.
    Truncated,
    /// One byte of the last layer's blob is another; the length is right.
    WrongDigest,
    /// The last layer's blob goes on after its length.
    TooLong,
    /// The last layer's blob is not there.
    MissingBlob,
    /// The configuration names another archive for the last layer.
    WrongDiffId,
    /// The configuration names one layer less than the manifest.
    MissingDiffId,
    /// The last layer's compressed stream ends half way, with a digest that is right.
    CutStream,
    /// The last layer is a text, compressed, with a digest that is right.
    NotAnArchive,
}

impl Damage {
    pub const ALL: [Self; 8] = [
        Self::Truncated,
        Self::WrongDigest,
        Self::TooLong,
        Self::MissingBlob,
        Self::WrongDiffId,
        Self::MissingDiffId,
        Self::CutStream,
        Self::NotAnArchive,
    ];
}

/// Makes a layout of an image and breaks it.
///
/// # Errors
/// InvalidInput for an image without layers: all damage is done to the last one.
pub fn damaged(name: &str, image: &Image, damage: Damage) -> io::Result<Layout> {
    let mut built = image.build()?;
    let Some(last) = built.layers.len().checked_sub(1) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the image has no layer to damage"));
    };
    let bytes = &mut built.layers[last].bytes;
    match damage {
        Damage::Truncated => bytes.truncate(bytes.len() / 2),
        Damage::WrongDigest => {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 0xff;
        }
        Damage::TooLong => bytes.extend_from_slice(b"and more"),
        Damage::MissingBlob => {
            let digest = built.layers[last].digest.clone();
            return Ok(Layout::new().built(name, &built).without_blob(&digest));
        }
        Damage::WrongDiffId => change_diff_ids(&mut built, |ids| ids[last] = digest(b"another").into()),
        Damage::MissingDiffId => change_diff_ids(&mut built, |ids| ids.truncate(last)),
        Damage::CutStream => {
            let half = bytes[..bytes.len() / 2].to_vec();
            replace(&mut built.layers[last], half);
        }
        Damage::NotAnArchive => {
            let text = image.compressed(b"this is not an archive\n")?;
            replace(&mut built.layers[last], text);
        }
    }
    built.seal();
    Ok(Layout::new().built(name, &built))
}

fn replace(layer: &mut Blob, bytes: Vec<u8>) {
    *layer = Blob::new(&layer.media_type, bytes);
}

fn change_diff_ids(built: &mut Built, change: impl FnOnce(&mut Vec<Value>)) {
    let mut document: Value =
        serde_json::from_slice(&built.config.bytes).expect("the configuration was written by this crate");
    if let Some(Value::Array(ids)) = document.pointer_mut("/rootfs/diff_ids") {
        change(ids);
    }
    built.config = Blob::json(&built.config.media_type, &document);
}
