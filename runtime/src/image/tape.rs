//! What gives a layer's tar again, byte by byte: all of it but the files' content, which is read where it was unpacked to. So
//! the blob need not stay.
//!
//! ```text
//! tape = zstd( VERSION, then again and again )
//!   raw      1, length u32, bytes              headers, padding, what follows the end
//!   content  2, length u32, path, bytes u64, crc u32
//! ```
//! Numbers are little-endian. The checksum says which file was changed; that the whole is right, says the diff id.

use std::{
    ffi::OsStr,
    fs::File,
    io::{self, BufReader, BufWriter, Read, Write},
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::Path,
};

use flate2::Crc;
use rustix::fs::{Mode, OFlags, ResolveFlags};
use serde::{Deserialize, Serialize};

use super::{
    digest::{Digest, Meter},
    tarball::{broken, read_full},
};

pub(super) const NAME: &str = "tape";
const VERSION: u8 = 1;
const RAW: u8 = 1;
const CONTENT: u8 = 2;
/// Fast: headers repeat themselves.
const LEVEL: i32 = 1;
const RAW_BYTES: usize = 64 << 10;
const PATH_MAX: usize = 4096;

/// A tape, as `layer.json` has it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Tape {
    pub(super) digest: Digest,
    pub(super) bytes: u64,
    /// Of what it gives.
    pub(super) tar_bytes: u64,
}

/// A reader of a tar that tapes what passes.
pub(super) struct Taped<R> {
    inner: R,
    tape: Option<Recorder>,
}

struct Recorder {
    to: zstd::stream::write::Encoder<'static, Hashing>,
    raw: Vec<u8>,
    content: Option<Content>,
    tar_bytes: u64,
}

/// A file's content on its way.
struct Content {
    path: Vec<u8>,
    bytes: u64,
    left: u64,
    crc: Crc,
}

impl<R: Read> Taped<R> {
    /// Tapes nothing.
    pub(super) fn off(inner: R) -> Self {
        Self { inner, tape: None }
    }

    /// Makes a tape in the directory.
    pub(super) fn on(inner: R, directory: &Path) -> io::Result<Self> {
        let to = BufWriter::new(File::create_new(directory.join(NAME))?);
        let mut to = zstd::stream::write::Encoder::new(Hashing { to, meter: Meter::default() }, LEVEL)?;
        to.write_all(&[VERSION])?;
        let raw = Vec::with_capacity(RAW_BYTES);
        Ok(Self { inner, tape: Some(Recorder { to, raw, content: None, tar_bytes: 0 }) })
    }

    /// The next `bytes` are what the file at `path` gets.
    pub(super) fn expect(&mut self, path: &[u8], bytes: u64) -> io::Result<()> {
        if let Some(tape) = self.tape.as_mut().filter(|_| bytes > 0) {
            tape.flush_raw()?;
            tape.content = Some(Content { path: path.to_vec(), bytes, left: bytes, crc: Crc::new() });
        }
        Ok(())
    }

    /// Ends the tape, all of whose stream has been read.
    pub(super) fn finish(self) -> io::Result<(R, Option<Tape>)> {
        Ok((self.inner, self.tape.map(Recorder::finish).transpose()?))
    }
}

impl<R: Read> Read for Taped<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let content = self.tape.as_ref().and_then(|tape| tape.content.as_ref());
        let left = content.map_or(u64::MAX, |content| content.left);
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let count = self.inner.read(&mut buffer[..most])?;
        if let Some(tape) = &mut self.tape {
            tape.note(&buffer[..count])?;
        }
        Ok(count)
    }
}

impl Recorder {
    fn finish(mut self) -> io::Result<Tape> {
        self.flush_raw()?;
        let mut hashing = self.to.finish()?;
        hashing.flush()?;
        let bytes = hashing.meter.bytes;
        Ok(Tape { digest: hashing.meter.digest(), bytes, tar_bytes: self.tar_bytes })
    }

    fn flush_raw(&mut self) -> io::Result<()> {
        if !self.raw.is_empty() {
            self.to.write_all(&[RAW])?;
            self.to.write_all(&length(&self.raw)?)?;
            self.to.write_all(&self.raw)?;
            self.raw.clear();
        }
        Ok(())
    }

    fn note(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.tar_bytes += bytes.len() as u64;
        let Some(content) = &mut self.content else {
            self.raw.extend_from_slice(bytes);
            return if self.raw.len() >= RAW_BYTES { self.flush_raw() } else { Ok(()) };
        };
        content.crc.update(bytes);
        content.left -= bytes.len() as u64;
        let whole = self.content.take_if(|content| content.left == 0);
        let Some(Content { path, bytes, crc, .. }) = whole else { return Ok(()) };
        self.to.write_all(&[CONTENT])?;
        self.to.write_all(&length(&path)?)?;
        self.to.write_all(&path)?;
        self.to.write_all(&bytes.to_le_bytes())?;
        self.to.write_all(&crc.sum().to_le_bytes())
    }
}

fn length(bytes: &[u8]) -> io::Result<[u8; 4]> {
    Ok(u32::try_from(bytes.len()).map_err(|_| broken("a record is too long"))?.to_le_bytes())
}

/// A writer that meters what is written through it.
struct Hashing {
    to: BufWriter<File>,
    meter: Meter,
}

impl Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.to.write(bytes)?;
        self.meter.update(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// Reads a layer's tar from its tape and its files.
pub(super) struct Replay {
    tape: zstd::stream::read::Decoder<'static, BufReader<File>>,
    root: OwnedFd,
    part: Part,
}

enum Part {
    Raw { left: u64 },
    File(Box<Open>),
    End,
}

struct Open {
    shown: String,
    file: File,
    left: u64,
    crc: Crc,
    expected: u32,
}

impl Replay {
    /// Of the layer in the directory, whose tape is whole.
    pub(super) fn open(directory: &Path) -> io::Result<Self> {
        let mut tape = zstd::stream::read::Decoder::new(File::open(directory.join(NAME))?)?;
        let mut version = [0];
        tape.read_exact(&mut version)?;
        if version != [VERSION] {
            return Err(broken(&format!(
                "its tape has the version {}; this berthd reads {VERSION}",
                version[0]
            )));
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let root = rustix::fs::open(directory.join("fs"), flags, Mode::empty())
            .map_err(|error| broken(&format!("its files can't be opened: {error}")))?;
        Ok(Self { tape, root, part: Part::Raw { left: 0 } })
    }

    fn next(&mut self) -> io::Result<Part> {
        let mut tag = [0];
        if read_full(&mut self.tape, &mut tag)? == 0 {
            return Ok(Part::End);
        }
        match tag[0] {
            RAW => Ok(Part::Raw { left: u64::from(self.number()?) }),
            CONTENT => {
                let mut path = vec![0; (self.number()? as usize).min(PATH_MAX)];
                self.tape.read_exact(&mut path)?;
                let mut bytes = [0; 8];
                self.tape.read_exact(&mut bytes)?;
                let (left, expected) = (u64::from_le_bytes(bytes), self.number()?);
                let shown = format!("{:.600?}", String::from_utf8_lossy(&path));
                let file =
                    open_file(&self.root, &path, left).map_err(|why| broken(&format!("{shown}: {why}")))?;
                Ok(Part::File(Box::new(Open { shown, file, left, crc: Crc::new(), expected })))
            }
            other => Err(broken(&format!("its tape has a record of the unknown kind {other}"))),
        }
    }

    fn number(&mut self) -> io::Result<u32> {
        let mut bytes = [0; 4];
        self.tape.read_exact(&mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }
}

impl Read for Replay {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match &mut self.part {
                Part::End => return Ok(0),
                Part::Raw { left: 0 } => {}
                Part::Raw { left } => {
                    let most = usize::try_from(*left).unwrap_or(usize::MAX).min(buffer.len());
                    let count = self.tape.read(&mut buffer[..most])?;
                    if count == 0 && most > 0 {
                        return Err(broken("its tape is cut"));
                    }
                    *left -= count as u64;
                    return Ok(count);
                }
                Part::File(open) if open.left > 0 => return open.read(buffer),
                Part::File(_) => {}
            }
            self.part = self.next()?;
        }
    }
}

impl Read for Open {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let wrong = |why: &str| broken(&format!("{}: {why}", self.shown));
        let count = self
            .file
            .read(&mut buffer[..most])
            .map_err(|error| wrong(&format!("it can't be read: {error}")))?;
        if count == 0 && most > 0 {
            return Err(wrong("it was cut"));
        }
        self.crc.update(&buffer[..count]);
        self.left -= count as u64;
        if self.left == 0 && self.crc.sum() != self.expected {
            return Err(wrong("its content is another"));
        }
        Ok(count)
    }
}

/// Opens a file of the layer, by the way that it was written by. It may be anything by now.
fn open_file(root: &OwnedFd, path: &[u8], bytes: u64) -> Result<File, String> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let opened = loop {
        match rustix::fs::openat2(root, OsStr::from_bytes(path), flags, Mode::empty(), resolve) {
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            other => break other,
        }
    };
    let file = File::from(opened.map_err(|error| match error {
        rustix::io::Errno::NOENT => "it is missing".to_owned(),
        other => format!("it can't be opened: {other}"),
    })?);
    let metadata = file.metadata().map_err(|error| format!("it can't be looked at: {error}"))?;
    if !metadata.is_file() {
        return Err("it is no file any more".into());
    }
    match metadata.len() {
        length if length == bytes => Ok(file),
        length => Err(format!("it has {length} bytes instead of {bytes}")),
    }
}
