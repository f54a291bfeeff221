//! Large images for measuring pulls: layers of many files with pseudo-random text that compresses as programs and
//! libraries do, to a bit more than a third. Written as an OCI layout, layer by layer, in memory that does not grow.
//!
//! ```text
//!   seed -> dictionary of words -> file content -> tar -> diff id
//!                                                   \-> gzip or zstd -> digest -> blobs/sha256/<hex>
//! ```

use crate::layer::Compression;
use crate::{Blob, EPOCH_RFC3339, EPOCH_SECONDS};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use tar::{Builder, EntryType, Header};

/// As docker builds images.
const GZIP_LEVEL: u32 = 6;
const ZSTD_LEVEL: i32 = 3;
const WORDS: usize = 1024;
/// So many files share a directory.
const IN_A_DIRECTORY: usize = 70;

/// What an image is to be. The same shape gives the same bytes.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    pub layers: usize,
    /// In all layers together.
    pub files: usize,
    /// Of all files' content together.
    pub bytes: u64,
    pub seed: u64,
    pub compression: Compression,
}

/// What a layer came to.
#[derive(Debug, Clone)]
struct Written {
    descriptor: Value,
    diff_id: String,
}

/// Writes an image by a name as an OCI layout.
pub fn write(directory: &Path, name: &str, shape: &Shape) -> io::Result<()> {
    let blobs = directory.join("blobs/sha256");
    fs::create_dir_all(&blobs)?;
    let layers = layers(&blobs, shape)?;
    let diff_ids: Vec<&str> = layers.iter().map(|layer| layer.diff_id.as_str()).collect();
    let history: Vec<Value> =
        diff_ids.iter().map(|_| json!({ "created": EPOCH_RFC3339, "created_by": "bulk" })).collect();
    let config = Blob::json(
        "application/vnd.oci.image.config.v1+json",
        &json!({
            "created": EPOCH_RFC3339, "architecture": crate::image::this_architecture(), "os": "linux", "config": {},
            "rootfs": { "type": "layers", "diff_ids": diff_ids }, "history": history,
        }),
    );
    let descriptors: Vec<&Value> = layers.iter().map(|layer| &layer.descriptor).collect();
    let manifest = Blob::json(
        "application/vnd.oci.image.manifest.v1+json",
        &json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": config.descriptor(), "layers": descriptors,
        }),
    );
    for blob in [&config, &manifest] {
        fs::write(blobs.join(blob.hex()), &blob.bytes)?;
    }
    let mut named = manifest.descriptor();
    named["annotations"] =
        json!({ "org.opencontainers.image.ref.name": name, "io.containerd.image.name": name });
    let index = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [named],
    });
    fs::write(directory.join("index.json"), index.to_string())?;
    fs::write(directory.join("oci-layout"), json!({ "imageLayoutVersion": "1.0.0" }).to_string())
}

/// All layers, by as many threads as there are processors.
fn layers(blobs: &Path, shape: &Shape) -> io::Result<Vec<Written>> {
    let words = dictionary(shape.seed);
    let next = AtomicUsize::new(0);
    let done: Mutex<Vec<(usize, io::Result<Written>)>> = Mutex::new(Vec::new());
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..threads.min(shape.layers) {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= shape.layers {
                        break;
                    }
                    let written = layer(blobs, shape, number, &words);
                    done.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push((number, written));
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    done.sort_by_key(|(number, _)| *number);
    done.into_iter().map(|(_, written)| written).collect()
}

fn layer(blobs: &Path, shape: &Shape, number: usize, words: &[Vec<u8>]) -> io::Result<Written> {
    let unfinished = blobs.join(format!(".layer-{number}"));
    let file = Hashed::new(BufWriter::with_capacity(1 << 20, File::create(&unfinished)?));
    let (diff_id, file) = match shape.compression {
        Compression::None => {
            let archived = archive(Hashed::new(file), shape, number, words)?;
            (archived.digest(), archived.inner)
        }
        Compression::Gzip => {
            let encoder = flate2::write::GzEncoder::new(file, flate2::Compression::new(GZIP_LEVEL));
            let archived = archive(Hashed::new(encoder), shape, number, words)?;
            (archived.digest(), archived.inner.finish()?)
        }
        Compression::Zstd => {
            let encoder = zstd::stream::write::Encoder::new(file, ZSTD_LEVEL)?;
            let archived = archive(Hashed::new(encoder), shape, number, words)?;
            (archived.digest(), archived.inner.finish()?)
        }
    };
    let (digest, size) = (file.digest(), file.bytes);
    file.inner.into_inner().map_err(io::IntoInnerError::into_error)?;
    let hex = digest.trim_start_matches("sha256:");
    fs::rename(&unfinished, blobs.join(hex))?;
    let descriptor =
        json!({ "mediaType": shape.compression.layer_media_type(), "digest": digest, "size": size });
    Ok(Written { descriptor, diff_id })
}

fn archive<W: Write>(
    to: Hashed<W>,
    shape: &Shape,
    number: usize,
    words: &[Vec<u8>],
) -> io::Result<Hashed<W>> {
    let mut random = Random::new(shape.seed ^ (number as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let mut builder = Builder::new(to);
    let lengths = lengths(&mut random, shape, number);
    for (index, length) in lengths.iter().enumerate() {
        let directory = format!("usr/lib/layer{number:02}/part{:03}/", index / IN_A_DIRECTORY);
        if index % IN_A_DIRECTORY == 0 {
            append(&mut builder, &directory, EntryType::Directory, 0o755, 0, io::empty())?;
        }
        let text = Text { random: Random::new(random.next()), words, word: (0, 0) };
        let path = format!("{directory}file{index:05}.so");
        append(&mut builder, &path, EntryType::Regular, 0o644, *length, text.take(*length))?;
    }
    builder.into_inner()
}

fn append<W: Write>(
    builder: &mut Builder<W>,
    path: &str,
    kind: EntryType,
    mode: u32,
    length: u64,
    content: impl Read,
) -> io::Result<()> {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_path(path)?;
    header.set_mode(mode);
    header.set_mtime(EPOCH_SECONDS);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(length);
    header.set_cksum();
    builder.append(&header, content)
}

/// The lengths of a layer's files: most are small, a few hold most of the bytes.
fn lengths(random: &mut Random, shape: &Shape, number: usize) -> Vec<u64> {
    let of = |total: u64| {
        let (each, rest) = (total / shape.layers as u64, total % shape.layers as u64);
        each + u64::from((number as u64) < rest)
    };
    let (files, bytes) = (of(shape.files as u64), of(shape.bytes));
    let weights: Vec<u64> = (0..files).map(|_| 1 << (random.next() % 9)).collect();
    let sum: u64 = weights.iter().sum::<u64>().max(1);
    let mut lengths: Vec<u64> = weights.iter().map(|weight| bytes * weight / sum).collect();
    let missing = bytes - lengths.iter().sum::<u64>();
    if let Some(last) = lengths.last_mut() {
        *last += missing;
    }
    lengths
}

fn dictionary(seed: u64) -> Vec<Vec<u8>> {
    let mut random = Random::new(seed);
    let word = |random: &mut Random| {
        let length = 3 + random.next() % 8;
        (0..length).map(|_| (random.next() >> 32) as u8).collect()
    };
    (0..WORDS).map(|_| word(&mut random)).collect()
}

/// Words of the dictionary without end.
struct Text<'a> {
    random: Random,
    words: &'a [Vec<u8>],
    /// Which one is under way, and how much of it has been given.
    word: (usize, usize),
}

impl Read for Text<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut given = 0;
        while given < buffer.len() {
            let (index, from) = self.word;
            let rest = &self.words[index][from..];
            let now = rest.len().min(buffer.len() - given);
            buffer[given..given + now].copy_from_slice(&rest[..now]);
            given += now;
            self.word = (index, from + now);
            if now == rest.len() {
                // Some words are far more frequent than others, as in programs.
                let (one, other) = (self.random.next() as usize, self.random.next() as usize);
                self.word = ((one % WORDS).min(other % WORDS), 0);
            }
        }
        Ok(given)
    }
}

/// xorshift64*: fast, and the same everywhere.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x2545_f491_4f6c_dd1d) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 8
    }
}

/// Counts and hashes what is written through it.
struct Hashed<W> {
    inner: W,
    hash: Sha256,
    bytes: u64,
}

impl<W> Hashed<W> {
    fn new(inner: W) -> Self {
        Self { inner, hash: Sha256::new(), bytes: 0 }
    }

    fn digest(&self) -> String {
        format!("sha256:{}", hex::encode(self.hash.clone().finalize()))
    }
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hash.update(&bytes[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small(compression: Compression) -> Shape {
        Shape { layers: 3, files: 200, bytes: 3 << 20, seed: 7, compression }
    }

    #[test]
    fn an_image_has_its_files_and_bytes_and_is_the_same_again() {
        for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
            let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            for directory in [&one, &other] {
                write(directory.path(), "a", &small(compression)).unwrap();
            }
            let read = |directory: &tempfile::TempDir| fs::read(directory.path().join("index.json")).unwrap();
            assert_eq!(read(&one), read(&other));
            let blobs = fs::read_dir(one.path().join("blobs/sha256")).unwrap();
            assert_eq!(blobs.count(), 5, "three layers, a configuration, a manifest");
        }
    }

    #[test]
    fn a_layer_has_its_share_and_compresses_to_a_bit_more_than_a_third() {
        let shape = small(Compression::Gzip);
        let words = dictionary(shape.seed);
        let mut bytes = 0;
        let mut files = 0;
        let (mut plain, mut packed) = (0, 0);
        for number in 0..shape.layers {
            let archived = archive(Hashed::new(Vec::new()), &shape, number, &words).unwrap().inner;
            for entry in tar::Archive::new(archived.as_slice()).entries().unwrap() {
                let entry = entry.unwrap();
                files += usize::from(entry.header().entry_type() == EntryType::Regular);
                bytes += entry.size();
            }
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(GZIP_LEVEL));
            encoder.write_all(&archived).unwrap();
            plain += archived.len();
            packed += encoder.finish().unwrap().len();
        }
        assert_eq!((files, bytes), (shape.files, shape.bytes));
        let ratio = packed as f64 / plain as f64;
        assert!((0.30..0.42).contains(&ratio), "{ratio}");
    }
}
