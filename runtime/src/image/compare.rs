//! Whether two trees are the same: names, kinds, modes, owners, attributes, times of files, content. Both may be hostile:
//! no link is followed, and depth costs neither stack nor descriptors.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ffi::{CString, OsStr, OsString},
    fs::File,
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::ffi::{OsStrExt, OsStringExt},
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::{
    fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, openat, openat2, readlinkat, statat},
    io::Errno,
};

/// Longer paths begin anew at a directory of their own, below what openat2(2) takes.
const LONG: usize = 2048;
const READ_BYTES: usize = 256 << 10;

/// What is walked: the same directory in both trees.
struct Pair {
    left: Arc<OwnedFd>,
    right: Arc<OwnedFd>,
    below: PathBuf,
    /// From the top, for people.
    shown: PathBuf,
}

/// The first difference, in words that call the left one the layer's; None where there is none.
///
/// # Errors
/// Where the right tree can't be read. That the left one can't is a difference.
pub(super) fn difference(left: &Path, right: &Path) -> io::Result<Option<String>> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let open = |path: &Path| rustix::fs::open(path, flags, Mode::empty());
    let top = match open(left) {
        Ok(top) => Arc::new(top),
        Err(error) => return Ok(Some(format!("its files can't be opened: {error}"))),
    };
    let here = PathBuf::from(".");
    let mut open =
        vec![Pair { left: top, right: Arc::new(open(right)?), below: here, shown: PathBuf::new() }];
    let mut linked = HashMap::new();
    while let Some(pair) = open.pop() {
        if let Some(difference) = pair.compare(&mut open, &mut linked)? {
            return Ok(Some(difference));
        }
    }
    Ok(None)
}

impl Pair {
    fn compare(&self, open: &mut Vec<Pair>, linked: &mut HashMap<u64, u64>) -> io::Result<Option<String>> {
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let safe = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        let enter = |base: &OwnedFd| openat2(base, &self.below, flags, Mode::empty(), safe);
        let right = Arc::new(enter(&self.right)?);
        let left = match enter(&self.left) {
            Ok(left) => Arc::new(left),
            Err(error) => return Ok(Some(self.unreadable("", &error.into()))),
        };
        let wanted = names_in(&right)?;
        let there = match names_in(&left) {
            Ok(there) => there,
            Err(error) => return Ok(Some(self.unreadable("", &error))),
        };
        if let Some(name) = wanted.difference(&there).next() {
            return Ok(Some(format!("{} is missing", self.name(name))));
        }
        if let Some(name) = there.difference(&wanted).next() {
            return Ok(Some(format!("{} is not of the layer", self.name(name))));
        }
        for name in &wanted {
            let (is, of) = (Entry { parent: &left, name }, Entry { parent: &right, name });
            match is.differs(&of, linked) {
                Ok(None) => {}
                Ok(Some(what)) => return Ok(Some(format!("{}: {what}", self.name(name)))),
                Err(Unread::Left(error)) => {
                    return Ok(Some(self.unreadable(&name.to_string_lossy(), &error)));
                }
                Err(Unread::Right(error)) => return Err(error),
            }
            if of.kind()? == FileType::Directory {
                let long = self.below.as_os_str().len() > LONG;
                let (l, r) = if long { (&left, &right) } else { (&self.left, &self.right) };
                let below = if long { PathBuf::from(".") } else { self.below.clone() };
                open.push(Pair {
                    left: Arc::clone(l),
                    right: Arc::clone(r),
                    below: below.join(name),
                    shown: if self.shown.as_os_str().len() > LONG {
                        PathBuf::from("…")
                    } else {
                        self.shown.clone()
                    }
                    .join(name),
                });
            }
        }
        Ok(None)
    }

    fn name(&self, name: &OsStr) -> String {
        format!("{:.600?}", self.shown.join(name).to_string_lossy())
    }

    fn unreadable(&self, name: &str, error: &io::Error) -> String {
        format!("{} can't be read: {error}", self.name(OsStr::new(name)))
    }
}

fn names_in(directory: &OwnedFd) -> io::Result<BTreeSet<OsString>> {
    let mut names = BTreeSet::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if !matches!(name, b"." | b"..") {
            names.insert(OsString::from_vec(name.to_vec()));
        }
    }
    Ok(names)
}

/// Which of the two could not be read.
enum Unread {
    Left(io::Error),
    Right(io::Error),
}

struct Entry<'a> {
    parent: &'a OwnedFd,
    name: &'a OsStr,
}

impl Entry<'_> {
    fn differs(&self, of: &Self, linked: &mut HashMap<u64, u64>) -> Result<Option<String>, Unread> {
        let left = |error: Errno| Unread::Left(error.into());
        let right = |error: Errno| Unread::Right(error.into());
        let (is, wanted) = (self.stat().map_err(left)?, of.stat().map_err(right)?);
        if let Some(what) = told_apart(&is, &wanted) {
            return Ok(Some(what));
        }
        if self.attributes().map_err(Unread::Left)? != of.attributes().map_err(Unread::Right)? {
            return Ok(Some("its extended attributes are others".into()));
        }
        match FileType::from_raw_mode(wanted.st_mode) {
            FileType::Symlink => {
                let (is, wanted) = (self.target().map_err(left)?, of.target().map_err(right)?);
                Ok((is != wanted).then(|| "it leads elsewhere".into()))
            }
            FileType::RegularFile => {
                if wanted.st_nlink > 1 {
                    match linked.insert(wanted.st_ino, is.st_ino) {
                        Some(before) if before == is.st_ino => return Ok(None),
                        Some(_) => return Ok(Some("it is no hard link any more".into())),
                        None => {}
                    }
                }
                self.content_differs(of)
            }
            _ => Ok(None),
        }
    }

    fn content_differs(&self, of: &Self) -> Result<Option<String>, Unread> {
        let open = |entry: &Self| {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            openat(entry.parent, entry.name, flags, Mode::empty()).map(File::from)
        };
        let mut is = open(self).map_err(|error| Unread::Left(error.into()))?;
        let mut wanted = open(of).map_err(|error| Unread::Right(error.into()))?;
        let (mut one, mut other) = (vec![0; READ_BYTES], vec![0; READ_BYTES]);
        loop {
            let count = super::tarball::read_full(&mut wanted, &mut other).map_err(Unread::Right)?;
            let there = super::tarball::read_full(&mut is, &mut one).map_err(Unread::Left)?;
            if one[..there] != other[..count] {
                return Ok(Some("its content is another".into()));
            }
            if count < other.len() {
                return Ok(None);
            }
        }
    }

    fn stat(&self) -> rustix::io::Result<Stat> {
        statat(self.parent, self.name, AtFlags::SYMLINK_NOFOLLOW)
    }

    fn kind(&self) -> rustix::io::Result<FileType> {
        Ok(FileType::from_raw_mode(self.stat()?.st_mode))
    }

    fn target(&self) -> rustix::io::Result<CString> {
        readlinkat(self.parent, self.name, Vec::new())
    }

    /// Without SELinux' label, which is the host's.
    fn attributes(&self) -> io::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
        let path = Path::new("/proc/self/fd").join(self.parent.as_raw_fd().to_string()).join(self.name);
        let mut list = vec![0; 64 << 10];
        let length = match rustix::fs::llistxattr(&path, &mut list[..]) {
            Err(Errno::NOTSUP) => 0,
            other => other?,
        };
        let mut found = BTreeMap::new();
        for key in list[..length].split(|byte| *byte == 0).filter(|key| !key.is_empty()) {
            if key != b"security.selinux" {
                let mut value = vec![0; 64 << 10];
                let length = rustix::fs::lgetxattr(&path, OsStr::from_bytes(key), &mut value[..])?;
                value.truncate(length);
                found.insert(key.to_vec(), value);
            }
        }
        Ok(found)
    }
}

/// By what stat(2) says. A directory's size is its file system's affair, and its time may be that of the unpacking.
fn told_apart(is: &Stat, wanted: &Stat) -> Option<String> {
    let octal = |stat: &Stat| format!("mode {:o}", stat.st_mode);
    if is.st_mode != wanted.st_mode {
        return Some(format!("it has {} instead of {}", octal(is), octal(wanted)));
    }
    if (is.st_uid, is.st_gid) != (wanted.st_uid, wanted.st_gid) {
        let (uid, gid) = (wanted.st_uid, wanted.st_gid);
        return Some(format!("it belongs to {}:{} instead of {uid}:{gid}", is.st_uid, is.st_gid));
    }
    if FileType::from_raw_mode(wanted.st_mode) == FileType::Directory {
        return None;
    }
    if is.st_size != wanted.st_size {
        return Some(format!("it has {} bytes instead of {}", is.st_size, wanted.st_size));
    }
    if is.st_rdev != wanted.st_rdev || is.st_nlink != wanted.st_nlink {
        return Some("it is another device, or has other names".into());
    }
    let time = |stat: &Stat| (stat.st_mtime, stat.st_mtime_nsec);
    (time(is) != time(wanted)).then(|| "it was changed at another time".into())
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt, os::unix::fs::symlink};

    use super::*;

    fn tree(at: &Path) {
        fs::create_dir_all(at.join("a/b")).unwrap();
        fs::write(at.join("a/b/file"), "content").unwrap();
        fs::write(at.join("a/other"), "content").unwrap();
        fs::hard_link(at.join("a/other"), at.join("a/twin")).unwrap();
        symlink("a/b", at.join("link")).unwrap();
        let time = fs::FileTimes::new().set_modified(std::time::UNIX_EPOCH);
        for file in ["a/b/file", "a/other"] {
            File::options().write(true).open(at.join(file)).unwrap().set_times(time).unwrap();
        }
        let link = rustix::fs::Timespec { tv_sec: 0, tv_nsec: 0 };
        let times = rustix::fs::Timestamps { last_access: link, last_modification: link };
        rustix::fs::utimensat(rustix::fs::CWD, at.join("link"), &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }

    #[test]
    fn every_kind_of_difference_is_told_with_its_path() {
        type Change = fn(&Path);
        let rewrite = |path: &Path, content: &str| {
            let time = fs::metadata(path).unwrap().modified().unwrap();
            fs::write(path, content).unwrap();
            let file = File::options().write(true).open(path).unwrap();
            file.set_times(fs::FileTimes::new().set_modified(time)).unwrap();
        };
        let rows: [(Change, Option<&str>); 9] = [
            (|_| {}, None),
            (|at| fs::remove_file(at.join("a/b/file")).unwrap(), Some("\"a/b/file\" is missing")),
            (|at| fs::write(at.join("new"), "").unwrap(), Some("\"new\" is not of the layer")),
            (|at| fs::write(at.join("a/b/file"), "more content").unwrap(), Some("12 bytes instead of 7")),
            (|at| fs::write(at.join("a/b/file"), "content").unwrap(), Some("changed at another time")),
            (
                |at| fs::set_permissions(at.join("a"), fs::Permissions::from_mode(0o40700)).unwrap(),
                Some("\"a\": it has mode 40700"),
            ),
            (
                |at| {
                    fs::remove_file(at.join("link")).unwrap();
                    symlink("a/x", at.join("link")).unwrap();
                },
                Some("\"link\": "),
            ),
            (
                |at| {
                    fs::remove_dir_all(at.join("a/b")).unwrap();
                    fs::write(at.join("a/b"), "").unwrap();
                },
                Some("\"a/b\": it has mode"),
            ),
            (
                |at| std::os::unix::fs::chown(at.join("a/b/file"), Some(7), None).unwrap(),
                Some("it belongs to 7:0 instead of 0:0"),
            ),
        ];
        for (change, expected) in rows {
            let dir = tempfile::tempdir().unwrap();
            let (left, right) = (dir.path().join("left"), dir.path().join("right"));
            tree(&left);
            tree(&right);
            change(&left);
            let found = difference(&left, &right).unwrap();
            match expected {
                None => assert_eq!(found, None),
                Some(words) => assert!(found.as_deref().unwrap_or("").contains(words), "{words}: {found:?}"),
            }
        }
        let dir = tempfile::tempdir().unwrap();
        let (left, right) = (dir.path().join("left"), dir.path().join("right"));
        tree(&left);
        tree(&right);
        rewrite(&left.join("a/b/file"), "CONTENT");
        let found = difference(&left, &right).unwrap().unwrap();
        assert_eq!(found, "\"a/b/file\": its content is another");
    }

    #[test]
    fn a_layer_that_is_not_there_differs_and_a_comparison_that_is_not_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let absent = dir.path().join("absent");
        assert!(difference(&absent, dir.path()).unwrap().unwrap().contains("can't be opened"));
        assert!(difference(dir.path(), &absent).is_err());
    }
}
