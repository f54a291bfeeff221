//! Writes one layer's entries below one directory, as overlayfs wants them.
//!
//! The layer is hostile: `..`, absolute names, `/dev` as a symlink to the host's. Every parent is opened by
//! openat2 with RESOLVE_IN_ROOT below the layer's own directory, and the last component is never followed, so
//! nothing outside is ever reached; only this thread writes there.
//!
//! ```text
//! .wh.X         -> X as a character device 0:0, overlayfs' whiteout
//! .wh..wh..opq  -> trusted.overlay.opaque=y on its directory
//! the same path again in the layer -> the last one stays; what was there moves to the trash
//! ```

use std::{
    ffi::OsStr,
    fs::File,
    io::{self, BufReader, BufWriter, Read, Write},
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Uid},
    io::Errno,
};

use super::{
    beneath::{self, Spot, clean, id, kind_at, lsetxattr, open_in, set_opaque, split, times_of},
    tarball::{self, Entry, Kind},
};
use crate::{Error, Result};

const OP: &str = "unpack layer entry";
const COPY_BYTES: usize = 128 << 10;
const WHITEOUT: &[u8] = b".wh.";

/// A layer being written.
#[derive(Debug)]
pub(super) struct Applier {
    root: OwnedFd,
    /// For messages.
    place: PathBuf,
    /// Where replaced directories go, on the same file system.
    trash: OwnedFd,
    trashed: u64,
    /// Directory times, on disk: set at the end, since every file made changes them.
    times: BufWriter<File>,
    /// The parent of the last entry: archives come directory by directory.
    last_parent: Option<(Vec<u8>, OwnedFd)>,
    buffer: Vec<u8>,
    pub(super) written: Written,
    /// An entry took the place of one before it that had content, or that others were reached by: so what the layer was made
    /// of can't be read from its files.
    pub(super) lost_content: bool,
    dropped_xattrs: u64,
}

/// The path of the file that gets the entry's content; None where nothing does.
pub(super) fn content_of(entry: &Entry) -> Option<Vec<u8>> {
    let path = clean(&entry.path).ok().filter(|_| entry.kind == Kind::File)?;
    split(&path).filter(|spot| !spot.name.starts_with(WHITEOUT))?;
    Some(path)
}

/// What a layer takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Written {
    pub(super) bytes: u64,
    pub(super) inodes: u64,
}

impl Applier {
    /// Makes `fs`, `trash` and `times` in the directory, and writes to `fs`.
    pub(super) fn new(directory: &Path) -> Result<Self> {
        let place = directory.join("fs");
        let make = |path: &Path, mode: u32| -> Result<OwnedFd> {
            let fail = |error: Errno| Error::io("make directory", path.display().to_string(), error);
            rustix::fs::mkdir(path, Mode::from_raw_mode(0o700)).map_err(fail)?;
            rustix::fs::chmod(path, Mode::from_raw_mode(mode)).map_err(fail)?;
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            rustix::fs::open(path, flags, Mode::empty()).map_err(fail)
        };
        let times = directory.join("times");
        let file = File::create_new(&times).map_err(|e| Error::io("make", times.display().to_string(), e))?;
        Ok(Self {
            root: make(&place, 0o755)?,
            trash: make(&directory.join("trash"), 0o700)?,
            place,
            trashed: 0,
            times: BufWriter::new(file),
            last_parent: None,
            buffer: vec![0; COPY_BYTES],
            written: Written { bytes: 0, inodes: 1 },
            lost_content: false,
            dropped_xattrs: 0,
        })
    }

    /// Writes one entry; `content` is read for files.
    pub(super) fn apply(&mut self, entry: &Entry, content: &mut impl Read) -> Result<()> {
        self.place_entry(entry, content).map_err(|error| self.explain(&entry.path, error))
    }

    /// Sets the directories' times and clears up.
    pub(super) fn finish(mut self, directory: &Path) -> Result<Written> {
        let path = directory.join("times");
        let fail =
            |error: io::Error| Error::io("set times of directories", path.display().to_string(), error);
        self.times.flush().map_err(fail)?;
        self.set_directory_times(&path).map_err(fail)?;
        std::fs::remove_file(&path).map_err(fail)?;
        super::disk::remove_tree(&directory.join("trash"))?;
        if self.dropped_xattrs > 0 {
            tracing::warn!(op = "unpack", count = self.dropped_xattrs, "extended attributes left out");
        }
        Ok(self.written)
    }

    fn place_entry(&mut self, entry: &Entry, content: &mut impl Read) -> io::Result<()> {
        let path = clean(&entry.path)?;
        let Some(spot) = split(&path) else {
            // "./": the root itself.
            return match entry.kind {
                Kind::Directory => self.dress_root(entry),
                _ => Err(tarball::broken("the layer's root is no directory")),
            };
        };
        if let Some(hidden) = spot.name.strip_prefix(WHITEOUT) {
            return self.whiteout(&spot, hidden);
        }
        let parent = self.parent(spot.parent)?;
        let made = match entry.kind {
            Kind::HardLink => self.hard_link(entry, &parent, &spot, &path),
            Kind::Directory => self.directory(entry, &parent, &spot, &path),
            Kind::File => self.file(entry, &parent, &spot, content),
            Kind::Symlink | Kind::Fifo | Kind::Character { .. } | Kind::Block { .. } => {
                self.special(entry, &parent, &spot)
            }
        };
        self.last_parent.get_or_insert((spot.parent.to_vec(), parent));
        made
    }

    fn directory(&mut self, entry: &Entry, parent: &OwnedFd, spot: &Spot<'_>, path: &[u8]) -> io::Result<()> {
        let name = OsStr::from_bytes(spot.name);
        if kind_at(parent, name)? != Some(FileType::Directory) {
            self.make_directory(parent, spot.name)?;
        }
        self.dress(entry, parent, name)?;
        self.note_times(entry, path)
    }

    fn file(
        &mut self,
        entry: &Entry,
        parent: &OwnedFd,
        spot: &Spot<'_>,
        content: &mut impl Read,
    ) -> io::Result<()> {
        let name = OsStr::from_bytes(spot.name);
        let mut file = self.create(parent, name, entry.mode)?;
        self.written.inodes += 1;
        let mut left = entry.size;
        loop {
            let count = tarball::read_full(content, &mut self.buffer)?;
            file.write_all(&self.buffer[..count]).map_err(|error| no_room(error, left, entry.size))?;
            left = left.saturating_sub(count as u64);
            self.written.bytes += count as u64;
            if count < self.buffer.len() {
                break;
            }
        }
        self.dress_file(entry, parent, name, &file)
    }

    /// Makes a file, with the mode if it is an ordinary one and the umask has nothing against it.
    fn create(&mut self, parent: &OwnedFd, name: &OsStr, mode: u32) -> io::Result<File> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = || rustix::fs::openat(parent, name, flags, Mode::from_raw_mode(mode & 0o777));
        Ok(File::from(match open() {
            Err(Errno::EXIST) => {
                self.clear(parent, name)?;
                open()?
            }
            other => other?,
        }))
    }

    /// As `dress`, and asks for no change of what is right already: each costs more than the look at all of them.
    fn dress_file(&mut self, entry: &Entry, parent: &OwnedFd, name: &OsStr, file: &File) -> io::Result<()> {
        let (owner, group) = (id(entry.uid)?, id(entry.gid)?);
        let is = rustix::fs::fstat(file)?;
        if (is.st_uid, is.st_gid) != (owner, group) {
            rustix::fs::fchown(file, Some(Uid::from_raw(owner)), Some(Gid::from_raw(group)))?;
        }
        if is.st_mode & 0o7777 != entry.mode {
            rustix::fs::fchmod(file, Mode::from_raw_mode(entry.mode))?;
        }
        for (key, value) in &entry.xattrs {
            self.set_xattr(parent, name, key, value)?;
        }
        rustix::fs::futimens(file, &times_of(entry.mtime_seconds, entry.mtime_nanos))?;
        Ok(())
    }

    fn special(&mut self, entry: &Entry, parent: &OwnedFd, spot: &Spot<'_>) -> io::Result<()> {
        let name = OsStr::from_bytes(spot.name);
        self.clear(parent, name)?;
        let node = |kind, major, minor| {
            let device = rustix::fs::makedev(major, minor);
            rustix::fs::mknodat(parent, name, kind, Mode::from_raw_mode(0o600), device)
        };
        match entry.kind {
            Kind::Symlink if entry.link.is_empty() => {
                return Err(tarball::broken("a symlink without a target"));
            }
            Kind::Symlink => rustix::fs::symlinkat(OsStr::from_bytes(&entry.link), parent, name)?,
            Kind::Fifo => node(FileType::Fifo, 0, 0)?,
            Kind::Character { major, minor } => node(FileType::CharacterDevice, major, minor)?,
            Kind::Block { major, minor } => node(FileType::BlockDevice, major, minor)?,
            Kind::File | Kind::Directory | Kind::HardLink => unreachable!("placed by their own functions"),
        }
        self.written.inodes += 1;
        self.dress(entry, parent, name)
    }

    /// Links to a file that this layer holds already.
    fn hard_link(&mut self, entry: &Entry, parent: &OwnedFd, spot: &Spot<'_>, path: &[u8]) -> io::Result<()> {
        let target = clean(&entry.link)?;
        if target == path {
            return Ok(());
        }
        let shown = String::from_utf8_lossy(&entry.link).into_owned();
        let missing =
            || tarball::broken(&format!("a hard link to {shown:?}, which this layer does not hold"));
        let Some(to) = split(&target) else { return Err(missing()) };
        let directory = match self.open(to.parent) {
            Ok(directory) => directory,
            Err(Errno::NOENT | Errno::NOTDIR) => return Err(missing()),
            Err(error) => return Err(error.into()),
        };
        match kind_at(&directory, OsStr::from_bytes(to.name))? {
            None => return Err(missing()),
            Some(FileType::Directory) => return Err(tarball::broken("a hard link to a directory")),
            Some(_) => {}
        }
        let name = OsStr::from_bytes(spot.name);
        self.clear(parent, name)?;
        rustix::fs::linkat(&directory, OsStr::from_bytes(to.name), parent, name, AtFlags::empty()).map_err(
            // Two names of one file through a symlinked parent: clearing the one took the other.
            |error| if error == Errno::NOENT { missing() } else { error.into() },
        )
    }

    fn whiteout(&mut self, spot: &Spot<'_>, hidden: &[u8]) -> io::Result<()> {
        if hidden == b".wh..opq" {
            let directory = self.parent(spot.parent)?;
            set_opaque(&directory)?;
            self.last_parent = Some((spot.parent.to_vec(), directory));
            return Ok(());
        }
        // Bookkeeping of aufs, no content.
        if hidden.starts_with(b".wh.") {
            return Ok(());
        }
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(tarball::broken("a whiteout without a name"));
        }
        let parent = self.parent(spot.parent)?;
        let name = OsStr::from_bytes(hidden);
        match kind_at(&parent, name)? {
            None => {
                let mode = Mode::from_raw_mode(0);
                rustix::fs::mknodat(&parent, name, FileType::CharacterDevice, mode, 0)?;
                self.written.inodes += 1;
            }
            // A whiteout hides what lower layers have; what this one has stays, cut off from them.
            Some(FileType::Directory) => set_opaque(&self.open_at(&parent, hidden)?)?,
            Some(_) => {}
        }
        self.last_parent = Some((spot.parent.to_vec(), parent));
        Ok(())
    }

    /// Opens the directory an entry goes to, making what the archive left out.
    fn parent(&mut self, path: &[u8]) -> io::Result<OwnedFd> {
        if let Some((last, fd)) = self.last_parent.take()
            && last == path
        {
            return Ok(fd);
        }
        match self.open(path) {
            Ok(fd) => return Ok(fd),
            // A whiteout in the way, perhaps: see below.
            Err(Errno::NOENT | Errno::NOTDIR) => {}
            Err(error) => return Err(error.into()),
        }
        let mut end = 0;
        let mut at = self.open(b"")?;
        for component in path.split(|byte| *byte == b'/') {
            end = (end + 1 + component.len()).min(path.len() + 1);
            let so_far = &path[..end - 1];
            at = match self.open(so_far) {
                Ok(fd) => fd,
                Err(Errno::NOENT | Errno::NOTDIR) => {
                    let name = OsStr::from_bytes(component);
                    match kind_at(&at, name)? {
                        None => self.make_directory(&at, component)?,
                        Some(FileType::CharacterDevice) if beneath::is_whiteout(&at, name)? => {
                            self.make_directory(&at, component)?;
                        }
                        Some(FileType::Symlink) => {
                            return Err(tarball::broken(
                                "a parent directory is a symlink that leads nowhere",
                            ));
                        }
                        Some(_) => return Err(tarball::broken("a parent directory is no directory")),
                    }
                    self.open_at(&at, component)?
                }
                Err(error) => return Err(error.into()),
            };
        }
        Ok(at)
    }

    /// Makes a directory; in place of anything else of this layer it hides what lower layers have there.
    fn make_directory(&mut self, parent: &OwnedFd, name: &[u8]) -> io::Result<()> {
        let replaces = self.clear(parent, OsStr::from_bytes(name))?;
        rustix::fs::mkdirat(parent, OsStr::from_bytes(name), Mode::from_raw_mode(0o700))?;
        // The umask is not ours to rely on.
        let mode = Mode::from_raw_mode(0o755);
        rustix::fs::chmodat(parent, OsStr::from_bytes(name), mode, AtFlags::empty())?;
        self.written.inodes += 1;
        match replaces {
            Replaced::Something => set_opaque(&self.open_at(parent, name)?),
            Replaced::Nothing => Ok(()),
        }
    }

    /// Takes away what an earlier entry of this layer left under the name.
    fn clear(&mut self, parent: &OwnedFd, name: &OsStr) -> io::Result<Replaced> {
        let kind = match kind_at(parent, name)? {
            None => return Ok(Replaced::Nothing),
            Some(kind) => kind,
        };
        if kind == FileType::Directory {
            self.trashed += 1;
            rustix::fs::renameat(parent, name, &self.trash, self.trashed.to_string())?;
        } else {
            rustix::fs::unlinkat(parent, name, AtFlags::empty())?;
        }
        self.lost_content |= matches!(kind, FileType::RegularFile | FileType::Directory | FileType::Symlink);
        self.last_parent = None;
        Ok(Replaced::Something)
    }

    fn open(&self, path: &[u8]) -> rustix::io::Result<OwnedFd> {
        let path = if path.is_empty() { &b"."[..] } else { path };
        open_in(&self.root, path, ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)
    }

    /// Opens a directory that is right there, no symlink.
    fn open_at(&self, parent: &OwnedFd, name: &[u8]) -> rustix::io::Result<OwnedFd> {
        open_in(parent, name, ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS)
    }

    fn dress_root(&mut self, entry: &Entry) -> io::Result<()> {
        let root = self.open(b"")?;
        self.dress(entry, &root, OsStr::new("."))?;
        self.note_times(entry, b"")
    }

    /// Owner, mode, attributes, times: in this order, for a change of owner takes setuid and capabilities away.
    fn dress(&mut self, entry: &Entry, parent: &OwnedFd, name: &OsStr) -> io::Result<()> {
        let (owner, group) = (id(entry.uid)?, id(entry.gid)?);
        let (owner, group) = (Some(Uid::from_raw(owner)), Some(Gid::from_raw(group)));
        rustix::fs::chownat(parent, name, owner, group, AtFlags::SYMLINK_NOFOLLOW)?;
        if entry.kind != Kind::Symlink {
            rustix::fs::chmodat(parent, name, Mode::from_raw_mode(entry.mode), AtFlags::empty())?;
        }
        for (key, value) in &entry.xattrs {
            self.set_xattr(parent, name, key, value)?;
        }
        rustix::fs::utimensat(
            parent,
            name,
            &times_of(entry.mtime_seconds, entry.mtime_nanos),
            AtFlags::SYMLINK_NOFOLLOW,
        )?;
        Ok(())
    }

    fn set_xattr(&mut self, parent: &OwnedFd, name: &OsStr, key: &[u8], value: &[u8]) -> io::Result<()> {
        // An image must not speak overlayfs' own language: redirects, whiteouts, metacopies.
        if key.starts_with(b"trusted.overlay.") || key.starts_with(b"user.overlay.") {
            self.dropped_xattrs += 1;
            return Ok(());
        }
        match lsetxattr(parent, name, key, value) {
            // Not every file system has every namespace, and user.* is for files and directories only.
            Err(Errno::NOTSUP) => self.dropped_xattrs += 1,
            Err(Errno::PERM) if key.starts_with(b"user.") => self.dropped_xattrs += 1,
            other => other?,
        }
        Ok(())
    }

    fn note_times(&mut self, entry: &Entry, path: &[u8]) -> io::Result<()> {
        let length = u32::try_from(path.len()).map_err(|_| tarball::broken("a path is too long"))?;
        self.times.write_all(&length.to_le_bytes())?;
        self.times.write_all(path)?;
        self.times.write_all(&entry.mtime_seconds.to_le_bytes())?;
        self.times.write_all(&entry.mtime_nanos.to_le_bytes())
    }

    fn set_directory_times(&self, path: &Path) -> io::Result<()> {
        let mut notes = BufReader::new(File::open(path)?);
        loop {
            let mut length = [0; 4];
            if tarball::read_full(&mut notes, &mut length)? < length.len() {
                return Ok(());
            }
            let mut path = vec![0; u32::from_le_bytes(length) as usize];
            notes.read_exact(&mut path)?;
            let (mut seconds, mut nanos) = ([0; 8], [0; 4]);
            notes.read_exact(&mut seconds)?;
            notes.read_exact(&mut nanos)?;
            let times = times_of(i64::from_le_bytes(seconds), u32::from_le_bytes(nanos));
            match self.open(&path) {
                Ok(fd) => rustix::fs::utimensat(&fd, ".", &times, AtFlags::SYMLINK_NOFOLLOW)?,
                // A later entry took the directory's place.
                Err(Errno::NOENT | Errno::NOTDIR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn explain(&self, path: &[u8], error: io::Error) -> Error {
        let shown = String::from_utf8_lossy(&path[..path.len().min(512)]);
        match error.kind() {
            io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
                Error::new(crate::Kind::Invalid, OP, format!("{shown:?}")).because(error)
            }
            io::ErrorKind::InvalidFilename => {
                Error::invalid(OP, format!("{shown:?}"), "a name is longer than a file system takes")
            }
            _ if error.raw_os_error() == Some(libc::ELOOP) => {
                Error::invalid(OP, format!("{shown:?}"), "the symlinks of its parents go round")
            }
            _ => Error::io(OP, format!("{}/{shown}", self.place.display()), error),
        }
    }
}

/// Says how much of a file a full disk did not take.
fn no_room(error: io::Error, missing: u64, size: u64) -> io::Error {
    if error.kind() != io::ErrorKind::StorageFull && error.kind() != io::ErrorKind::QuotaExceeded {
        return error;
    }
    io::Error::new(error.kind(), format!("{missing} of its {size} bytes found no room: {error}"))
}

/// Whether something had to go first.
enum Replaced {
    Nothing,
    Something,
}
