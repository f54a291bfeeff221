//! A layer: entries, the order and the dialect they are written in, and its compression.

use crate::archive;
use crate::entry::{Body, Entry};
use std::io;
use std::io::Write;

/// The changes of one layer.
#[derive(Debug, Clone, Default)]
pub struct Layer {
    entries: Vec<Entry>,
    order: Order,
    long_names: LongNames,
}

/// How names over 100 bytes are written; readers must know both.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LongNames {
    /// Records of POSIX.1-2001 (`path=`, `linkpath=`).
    #[default]
    Pax,
    /// The `././@LongLink` entries of GNU tar.
    Gnu,
}

/// How an archive or a layer is compressed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Compression {
    None,
    #[default]
    Gzip,
    Zstd,
}

#[derive(Debug, Clone, Copy, Default)]
enum Order {
    #[default]
    Sorted,
    AsAdded,
}

impl Layer {
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an entry.
    pub fn with(mut self, entry: Entry) -> Self {
        self.entries.push(entry);
        self
    }

    pub fn directory(self, path: &str, mode: u32) -> Self {
        self.with(Entry::directory(path, mode))
    }

    pub fn file(self, path: &str, mode: u32, content: impl Into<Vec<u8>>) -> Self {
        self.with(Entry::file(path, mode, content))
    }

    pub fn symlink(self, path: &str, target: &str) -> Self {
        self.with(Entry::symlink(path, target))
    }

    pub fn hard_link(self, path: &str, target: &str) -> Self {
        self.with(Entry::hard_link(path, target))
    }

    pub fn whiteout(self, path: &str) -> Self {
        self.with(Entry::whiteout(path))
    }

    pub fn opaque(self, directory: &str) -> Self {
        self.with(Entry::opaque(directory))
    }

    /// Keeps the order of the calls; without, names are sorted and hard links come last.
    pub fn as_added(mut self) -> Self {
        self.order = Order::AsAdded;
        self
    }

    pub fn long_names(mut self, dialect: LongNames) -> Self {
        self.long_names = dialect;
        self
    }

    /// Writes the layer's archive, uncompressed: the bytes that the diff id is the digest of.
    ///
    /// # Errors
    /// InvalidInput for a number or a name that the dialect cannot hold.
    pub fn archive(&self) -> io::Result<Vec<u8>> {
        let entries: Vec<Entry> = self.entries.iter().map(|entry| self.like_its_target(entry)).collect();
        let mut entries: Vec<&Entry> = entries.iter().collect();
        match self.order {
            Order::Sorted => entries.sort_by_key(|entry| (is_hard_link(entry), entry.path.as_str())),
            Order::AsAdded => {}
        }
        archive::write(&entries, self.long_names)
    }

    /// Gives a hard link the mode and owner of the file it links to, as archivers do: some who unpack set
    /// them again for each name.
    fn like_its_target(&self, entry: &Entry) -> Entry {
        let Body::HardLink(target) = &entry.body else {
            return entry.clone();
        };
        match self.entries.iter().find(|other| other.path == *target) {
            Some(file) => Entry { mode: file.mode, uid: file.uid, gid: file.gid, ..entry.clone() },
            None => entry.clone(),
        }
    }
}

impl Compression {
    /// Compresses; the same bytes always give the same bytes.
    pub fn compress(self, bytes: &[u8]) -> io::Result<Vec<u8>> {
        match self {
            Self::None => Ok(bytes.to_vec()),
            Self::Gzip => {
                // The header of GzBuilder's default holds neither a time nor a name.
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                encoder.write_all(bytes)?;
                encoder.finish()
            }
            Self::Zstd => zstd::stream::encode_all(bytes, 3),
        }
    }

    /// The end of a file's name.
    pub fn suffix(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Gzip => ".gz",
            Self::Zstd => ".zst",
        }
    }

    /// The OCI media type of a layer so compressed.
    pub fn layer_media_type(self) -> &'static str {
        match self {
            Self::None => "application/vnd.oci.image.layer.v1.tar",
            Self::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Self::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }
}

fn is_hard_link(entry: &Entry) -> bool {
    matches!(entry.body, Body::HardLink(_))
}
