//! Turns a layer's blob into a directory: gzip, zstd or plain by magic, hashed on the way against its diff id.

use std::{
    fs::File,
    io::{self, BufReader, Read},
    path::Path,
};

use super::{
    apply::{self, Applier, Written},
    digest::{Digest, Metered},
    tape::{Tape, Taped},
    tarball::{self, Walk},
};
use crate::{Error, Kind, Result};

const OP: &str = "unpack layer";
const READ_BYTES: usize = 256 << 10;
const MAGIC_BYTES: usize = 4;

/// How a stream is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Packing {
    Plain,
    Gzip,
    Zstd,
}

impl Packing {
    /// By the first bytes of the stream.
    pub(super) fn of(magic: &[u8]) -> Self {
        match magic {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            // A skippable frame, which zstd:chunked begins with in some writers.
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            _ => Self::Plain,
        }
    }
}

/// Opens a stream of any packing for reading.
pub(super) fn unpacked(
    mut stream: impl Read + Send + 'static,
) -> io::Result<(Packing, Box<dyn Read + Send>)> {
    // A stream may begin with a single byte.
    let mut magic = vec![0; MAGIC_BYTES];
    let count = tarball::read_full(&mut stream, &mut magic)?;
    magic.truncate(count);
    let packing = Packing::of(&magic);
    let stream = BufReader::with_capacity(READ_BYTES, io::Cursor::new(magic).chain(stream));
    Ok((
        packing,
        match packing {
            Packing::Plain => Box::new(stream),
            Packing::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(stream)),
            Packing::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(stream)?),
        },
    ))
}

/// Ends what inflates beyond a bound.
struct Bounded<R> {
    inner: R,
    most: u64,
    left: u64,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        match self.left.checked_sub(count as u64) {
            Some(left) => self.left = left,
            None => {
                let cause = format!(
                    "it unpacks to more than registry.layer_max_bytes ({} bytes): it is a bomb, or the bound is too low for it",
                    self.most
                );
                return Err(io::Error::new(io::ErrorKind::InvalidData, cause));
            }
        }
        Ok(count)
    }
}

/// What stays of a layer beside its files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Keep {
    Blob,
    Tape,
}

/// What an unpacking made.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Unpacked {
    pub(super) written: Written,
    /// None where none was asked for, or where one would not give the layer again.
    pub(super) tape: Option<Tape>,
}

/// Unpacks the blob to `directory/fs`, as `unpack_from` does.
pub(super) fn unpack(
    blob: &Path,
    diff_id: &Digest,
    directory: &Path,
    most: u64,
    keep: Keep,
) -> Result<Unpacked> {
    let file = File::open(blob).map_err(|error| Error::io("open", blob.display().to_string(), error))?;
    unpack_from(file, diff_id, directory, most, keep)
}

/// Unpacks a blob to `directory/fs` and checks the diff id; the tar has `most` bytes or fewer. What a failure leaves goes
/// with the directory.
pub(super) fn unpack_from(
    blob: impl Read + Send + 'static,
    diff_id: &Digest,
    directory: &Path,
    most: u64,
    keep: Keep,
) -> Result<Unpacked> {
    let (_, stream) = unpacked(blob).map_err(|error| damaged(diff_id, error))?;
    unpack_tar(Bounded { inner: stream, most, left: most }, diff_id, directory, keep)
}

/// Unpacks a tar, as `unpack_from` does.
pub(super) fn unpack_tar(tar: impl Read, diff_id: &Digest, directory: &Path, keep: Keep) -> Result<Unpacked> {
    let read = |error: io::Error| damaged(diff_id, error);
    let mut applier = Applier::new(directory)?;
    let stream = BufReader::with_capacity(READ_BYTES, Metered::new(tar));
    let stream = match keep {
        Keep::Blob => Taped::off(stream),
        Keep::Tape => Taped::on(stream, directory)
            .map_err(|error| Error::io("make tape in", directory.display().to_string(), error))?,
    };
    let mut walk = Walk::new(stream);
    while let Some(entry) = walk.next().map_err(read)? {
        if let Some(path) = apply::content_of(&entry) {
            walk.stream().expect(&path, entry.size).map_err(read)?;
        }
        applier.apply(&entry, &mut walk.content()).map_err(|error| outer(diff_id, error))?;
    }
    // What follows the archive's end belongs to the diff id too.
    let mut stream = walk.into_inner();
    io::copy(&mut stream, &mut io::sink()).map_err(read)?;
    let (stream, tape) = stream.finish().map_err(read)?;
    let found = stream.into_inner().meter.digest();
    if found != *diff_id {
        return Err(Error::invalid(OP, diff_id.to_string(), format!("the content's diff id is {found}"))
            .hint("the image is broken or was tampered with: build and push it again"));
    }
    let tape = tape.filter(|_| !applier.lost_content);
    let written = applier.finish(directory).map_err(|error| outer(diff_id, error))?;
    Ok(Unpacked { written, tape })
}

fn damaged(diff_id: &Digest, error: io::Error) -> Error {
    match error.raw_os_error() {
        Some(_) => Error::io(OP, diff_id.to_string(), error),
        None => Error::new(Kind::Invalid, OP, diff_id.to_string()).because(error),
    }
}

fn outer(diff_id: &Digest, error: Error) -> Error {
    Error::new(error.kind, OP, diff_id.to_string()).because(error)
}

#[cfg(test)]
mod tests;
