//! What of a disk something takes, as du counts: blocks and inodes, what has several names once.
//!
//! ```text
//! layers/<number>/used    what the layer takes, this file as well; written when the layer is whole, measured anew where it is lost
//! ```
//! So what the store takes is a sum, and nobody walks layers for it.

use std::{
    collections::HashSet,
    ffi::OsStr,
    fs::{self, File},
    io,
    iter::Sum,
    ops::AddAssign,
    os::{
        fd::OwnedFd,
        unix::{ffi::OsStrExt, fs::FileExt},
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::{
    fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, openat2, statat},
    io::Errno,
};

use crate::{Error, Kind, Result, error::Cause};

pub(super) const NAME: &str = "used";
/// Two numbers, each as long as any: the file takes as much before as after they are known.
const NOTE_BYTES: usize = 42;
/// Longer paths begin anew at a directory of their own, below what openat2(2) takes.
const LONG: usize = 2048;
/// As good as none: what is walked so is the store's own.
const PATIENCE: Duration = Duration::from_secs(1 << 32);

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Used {
    pub bytes: u64,
    pub inodes: u64,
}

impl AddAssign for Used {
    fn add_assign(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.inodes += other.inodes;
    }
}

impl Sum for Used {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |mut sum, one| {
            sum += one;
            sum
        })
    }
}

impl Used {
    fn of(stat: &Stat) -> Self {
        Self { bytes: u64::try_from(stat.st_blocks).unwrap_or(0) * 512, inodes: 1 }
    }
}

/// Adds up what is below. Who owns it changes it meanwhile and may mean harm: no link is followed, no mount entered.
///
/// # Errors
/// `Deadline` where it takes longer.
pub fn walk(root: &Path, until: Instant) -> Result<Used> {
    let failed = |errno: Errno| Error::io("measure", root.display().to_string(), errno);
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let top = rustix::fs::open(root, flags, Mode::empty()).map_err(failed)?;
    let mut used = Used::default();
    let mut linked = HashSet::new();
    let mut open: Vec<(Arc<OwnedFd>, PathBuf)> = vec![(Arc::new(top), PathBuf::from("."))];
    while let Some((base, below)) = open.pop() {
        let safe = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        let here = match openat2(&*base, &below, flags, Mode::empty(), safe) {
            Ok(here) => Arc::new(here),
            Err(errno) if vanished(errno) => continue,
            Err(errno) => return Err(failed(errno)),
        };
        let long = below.as_os_str().len() > LONG;
        let (base, below) = if long { (here.clone(), PathBuf::from(".")) } else { (base, below) };
        for entry in Dir::read_from(&*here).map_err(failed)? {
            if Instant::now() > until {
                return Err(Error::new(Kind::Deadline, "measure", root.display().to_string())
                    .because(Cause("it has too many files to be walked in time".into())));
            }
            let entry = match entry {
                // A directory that is removed under the reading has no more entries.
                Err(Errno::NOENT) => break,
                entry => entry.map_err(failed)?,
            };
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let stat = match statat(&*here, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                Err(errno) if vanished(errno) => continue,
                Err(errno) => return Err(failed(errno)),
            };
            let directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
            if !directory && stat.st_nlink > 1 && !linked.insert(stat.st_ino) {
                continue;
            }
            used += Used::of(&stat);
            if directory {
                open.push((base.clone(), below.join(OsStr::from_bytes(name.to_bytes()))));
            }
        }
    }
    Ok(used)
}

/// Gone, or replaced by something else, since it was listed.
fn vanished(errno: Errno) -> bool {
    matches!(errno, Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV)
}

/// What is below a directory of the store's own.
pub(super) fn walk_own(root: &Path) -> Result<Used> {
    walk(root, Instant::now() + PATIENCE)
}

/// A directory with all below.
pub(super) fn tree(root: &Path) -> Result<Used> {
    let mut used = walk_own(root)?;
    used += itself(root)?;
    Ok(used)
}

/// A file or a directory alone; absent is nothing.
pub(super) fn itself(path: &Path) -> Result<Used> {
    match rustix::fs::lstat(path) {
        Ok(stat) => Ok(Used::of(&stat)),
        Err(errno) if vanished(errno) => Ok(Used::default()),
        Err(errno) => Err(Error::io("measure", path.display().to_string(), errno)),
    }
}

/// What is right in a directory and no directory, each with its name.
pub(super) fn files(directory: &Path) -> Result<Vec<(String, Used)>> {
    let fail = |error: io::Error| Error::io("measure", directory.display().to_string(), error);
    let (mut found, mut linked) = (Vec::new(), HashSet::new());
    for file in fs::read_dir(directory).map_err(fail)? {
        let file = file.map_err(fail)?;
        let stat = match rustix::fs::lstat(file.path()) {
            Ok(stat) => stat,
            // Complete, and a layer's now.
            Err(errno) if vanished(errno) => continue,
            Err(errno) => return Err(fail(errno.into())),
        };
        let directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        // A table that is being replaced has two names.
        if !directory && (stat.st_nlink < 2 || linked.insert(stat.st_ino)) {
            found.push((file.file_name().to_string_lossy().into_owned(), Used::of(&stat)));
        }
    }
    Ok(found)
}

/// A directory and the files right in it.
pub(super) fn flat(directory: &Path) -> Result<Used> {
    let mut used = itself(directory)?;
    used += files(directory)?.into_iter().map(|(_, used)| used).sum();
    Ok(used)
}

/// What a layer's directory takes, measured and noted there. The disk has all of it by now: file systems that choose blocks
/// late have chosen them.
pub(super) fn note(layer: &Path) -> Result<Used> {
    let path = layer.join(NAME);
    let write = |text: &[u8]| -> io::Result<()> {
        let file = File::options().write(true).create(true).truncate(false).open(&path)?;
        file.write_all_at(text, 0)
    };
    // A blank note takes what the note will take, and says nothing where it stays.
    let room = write(&[b' '; NOTE_BYTES]);
    let used = tree(layer)?;
    let noted = room.and_then(|()| write(print(used).as_bytes()));
    if noted.is_err() {
        // A full disk, say. Half a note is none, and whoever opens the store again measures again.
        fs::remove_file(&path).ok();
        return tree(layer);
    }
    Ok(used)
}

/// What was noted. None: nothing, or nothing that can be read.
pub(super) fn noted(layer: &Path) -> Option<Used> {
    parse(&fs::read(layer.join(NAME)).ok()?)
}

fn print(used: Used) -> String {
    format!("{:>20} {:>20}\n", used.bytes, used.inodes)
}

fn parse(text: &[u8]) -> Option<Used> {
    let text = std::str::from_utf8(text).ok().filter(|text| text.len() == NOTE_BYTES)?;
    let (bytes, inodes) = text.strip_suffix('\n')?.trim_start().split_once(' ')?;
    Some(Used { bytes: bytes.parse().ok()?, inodes: inodes.trim_start().parse().ok()? })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    #[test]
    fn a_layer_is_counted_once_per_inode_and_no_link_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("upper");
        fs::create_dir_all(root.join("a/b")).unwrap();
        assert_eq!(walk(&root, soon()).unwrap().inodes, 2);
        fs::write(root.join("a/b/file"), vec![1u8; 100_000]).unwrap();
        fs::hard_link(root.join("a/b/file"), root.join("again")).unwrap();
        fs::write(dir.path().join("outside"), vec![1u8; 1 << 20]).unwrap();
        symlink(dir.path(), root.join("out")).unwrap();
        let used = walk(&root, soon()).unwrap();
        assert_eq!(used.inodes, 4);
        assert!((100_000..400_000).contains(&used.bytes), "{used:?}");
    }

    #[test]
    fn a_layer_deeper_than_a_path_may_be_is_counted_all_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let name = "d".repeat(200);
        let mut at = rustix::fs::open(dir.path(), OFlags::DIRECTORY, Mode::empty()).unwrap();
        for _ in 0..40 {
            rustix::fs::mkdirat(&at, &name, Mode::RWXU).unwrap();
            at = rustix::fs::openat(&at, &name, OFlags::DIRECTORY, Mode::empty()).unwrap();
        }
        assert_eq!(walk(dir.path(), soon()).unwrap().inodes, 40);
    }

    #[test]
    fn what_takes_too_long_or_is_not_there_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), "x").unwrap();
        let late = walk(dir.path(), Instant::now() - Duration::from_secs(1)).unwrap_err();
        assert_eq!(late.kind, Kind::Deadline);
        assert!(walk(&dir.path().join("absent"), soon()).unwrap_err().chain().contains("No such file"));
    }

    #[test]
    fn a_note_is_read_as_it_was_written_and_nothing_else_is() {
        let most = Used { bytes: u64::MAX, inodes: u64::MAX };
        for used in [Used::default(), Used { bytes: 4096, inodes: 3 }, most] {
            assert_eq!(parse(print(used).as_bytes()), Some(used));
            assert_eq!(print(used).len(), NOTE_BYTES);
        }
        let whole = print(Used { bytes: 4096, inodes: 3 });
        for bad in ["", "4096 3\n", &" ".repeat(NOTE_BYTES), &"\0".repeat(NOTE_BYTES), &whole[1..]] {
            assert_eq!(parse(bad.as_bytes()), None, "{bad:?}");
        }
    }
}
