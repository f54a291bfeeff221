//! What must be found where the layered image is unpacked.

use crate::entry::Device;
use crate::layered::{CAP_NET_RAW, long_path};
use rustix::fs::{lgetxattr, major, minor};
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

/// A path of the root, without a slash before it, and what must be there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected {
    pub path: String,
    pub found: Found,
    /// None where an image says nothing: a directory that no entry made.
    pub mode: Option<u32>,
    pub owner: (u32, u32),
    pub xattr: Option<(&'static str, Vec<u8>)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    Absent,
    Directory,
    File(Vec<u8>),
    /// The same inode as another path of the root.
    SameFile(String),
    Symlink(String),
    Device(Device),
    Fifo,
}

impl Expected {
    /// Tells how a root on this machine differs; None if it is as expected. Links are not followed, but
    /// those in the parents of the path are: for roots that a test owns.
    pub fn mismatch(&self, root: &Path) -> Option<String> {
        let path = root.join(&self.path);
        match self.compare(root, &path) {
            Ok(None) => None,
            Ok(Some(difference)) => Some(format!("{}: {difference}", self.path)),
            Err(error) => Some(format!("{}: expected {:?}: {error}", self.path, self.found)),
        }
    }

    fn compare(&self, root: &Path, path: &Path) -> io::Result<Option<String>> {
        let metadata = match fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && self.found == Found::Absent => {
                return Ok(None);
            }
            other => other?,
        };
        let there = match &self.found {
            Found::Absent => false,
            Found::Directory => metadata.is_dir(),
            Found::File(content) => metadata.is_file() && fs::read(path)? == *content,
            Found::SameFile(other) => {
                let other = fs::symlink_metadata(root.join(other))?;
                (other.dev(), other.ino()) == (metadata.dev(), metadata.ino())
            }
            Found::Symlink(target) => metadata.is_symlink() && fs::read_link(path)? == Path::new(target),
            Found::Device(device) => is_device(&metadata, *device),
            Found::Fifo => metadata.file_type().is_fifo(),
        };
        if !there {
            return Ok(Some(format!("expected {:?}, found {:?}", self.found, metadata.file_type())));
        }
        Ok(self.compare_attributes(path, &metadata)?)
    }

    fn compare_attributes(&self, path: &Path, metadata: &fs::Metadata) -> rustix::io::Result<Option<String>> {
        let mode = metadata.mode() & 0o7777;
        if let Some(expected) = self.mode.filter(|expected| *expected != mode) {
            return Ok(Some(format!("expected mode {expected:04o}, found {mode:04o}")));
        }
        let owner = (metadata.uid(), metadata.gid());
        if owner != self.owner {
            return Ok(Some(format!("expected owner {:?}, found {owner:?}", self.owner)));
        }
        let Some((name, expected)) = &self.xattr else {
            return Ok(None);
        };
        let mut value = vec![0_u8; 4096];
        let length = lgetxattr(path, *name, &mut value)?;
        let same = value[..length] == **expected;
        Ok((!same).then(|| format!("expected {name} = {expected:?}, found {:?}", &value[..length])))
    }
}

/// Lists what a container of the layered image must find, and what it must not.
pub fn layered_expectations() -> Vec<Expected> {
    let mut all = base_and_removed();
    all.extend(replaced());
    all.extend(special());
    all.extend(odd_names());
    all
}

fn base_and_removed() -> Vec<Expected> {
    let absent = [
        "srv/gone",
        "srv/gone/a",
        "srv/keep/two",
        "srv/hard/third",
        "srv/dangling",
        "srv/opaque/old",
        "srv/opaque/sub",
        "srv/late/old",
        "srv/recreated/old",
        "srv/never-there",
        // Markers never show.
        "srv/.wh.gone",
        "srv/opaque/.wh..wh..opq",
        "srv/.wh.never-there",
    ];
    let mut all: Vec<Expected> = absent.iter().map(|path| expect(path, Found::Absent)).collect();
    all.extend([
        directory("tmp", 0o1777),
        directory("root", 0o700),
        directory("home/app", 0o750).owner(1000, 1000),
        symlink("bin/info", "fixture"),
        file("srv/keep/one", 0o644, "one\n"),
        directory("srv/opaque", 0o755),
        file("srv/opaque/new", 0o644, "new\n"),
        directory("srv/late", 0o755),
        file("srv/late/new", 0o644, "new\n"),
        directory("srv/recreated", 0o700),
        file("srv/recreated/new", 0o644, "new\n"),
        file("srv/hard/first", 0o640, "linked\n"),
        expect("srv/hard/second", Found::SameFile("srv/hard/first".to_owned())),
        symlink("srv/absolute-link", "/srv/keep/one"),
    ]);
    all
}

fn replaced() -> Vec<Expected> {
    vec![
        directory("srv/keep", 0o700),
        file("srv/replaced", 0o600, "after\n"),
        file("srv/dir-to-file", 0o644, "now a file\n"),
        directory("srv/file-to-dir", 0o755),
        file("srv/file-to-dir/inside", 0o644, "now a directory\n"),
        file("srv/link-to-file", 0o644, "no link any more\n"),
        file("srv/link-to-file-target", 0o644, "target\n"),
        directory("srv/dotted", 0o711),
        file("srv/dotted/file", 0o644, "dotted\n"),
        expect("srv/implied/by", Found::Directory),
        file("srv/implied/by/file", 0o644, "implied\n"),
    ]
}

fn special() -> Vec<Expected> {
    let device = |path, mode, device| expect(path, Found::Device(device)).mode(mode);
    vec![
        file("srv/owned", 0o600, "mine\n").owner(1000, 2000),
        directory("srv/owned-dir", 0o750).owner(1001, 1001),
        symlink("srv/owned-link", "owned").owner(1000, 1000),
        file("srv/setuid", 0o4755, "setuid\n"),
        file("srv/setuid-owned", 0o6755, "setuid\n").owner(1000, 1000),
        directory("srv/setgid", 0o2775).owner(0, 2000),
        directory("srv/sticky", 0o1777),
        file("srv/attributes", 0o644, "x\n").xattr("user.berth", b"value\0with\nall"),
        directory("srv/attributes-dir", 0o755).xattr("user.berth", b"directory"),
        file("srv/ping", 0o755, "ping\n").xattr("security.capability", &CAP_NET_RAW),
        device("srv/nodes/null", 0o666, Device::Char { major: 1, minor: 3 }),
        device("srv/nodes/loop", 0o660, Device::Block { major: 7, minor: 300 }).owner(0, 6),
        expect("srv/nodes/fifo", Found::Fifo).mode(0o620),
        file("srv/read-only", 0o444, "read\n"),
        directory("srv/closed", 0o000),
        file("srv/closed/inside", 0o000, "closed\n"),
    ]
}

fn odd_names() -> Vec<Expected> {
    let names = [" leading space", "-dash", ".hidden", "new\nline", "not.wh.one", "ünïcode", "back\\slash"];
    let mut all: Vec<Expected> =
        names.iter().map(|name| file(&format!("srv/names/{name}"), 0o644, "odd\n")).collect();
    for size in [0, 1, 511, 512, 513, 70_000] {
        all.push(file(&format!("srv/sizes/{size}"), 0o644, vec![b'x'; size]));
    }
    for dialect in ["pax", "gnu"] {
        let (deep, path) = long_path(dialect);
        all.push(directory(&deep, 0o755));
        all.push(file(&path, 0o644, "long\n"));
        all.push(symlink(&format!("srv/{dialect}-long-link"), &format!("/{path}")));
        all.push(expect(&format!("srv/{dialect}-long-hard"), Found::SameFile(path)));
    }
    all
}

fn expect(path: &str, found: Found) -> Expected {
    Expected { path: path.to_owned(), found, mode: None, owner: (0, 0), xattr: None }
}

fn file(path: &str, mode: u32, content: impl Into<Vec<u8>>) -> Expected {
    expect(path, Found::File(content.into())).mode(mode)
}

fn directory(path: &str, mode: u32) -> Expected {
    expect(path, Found::Directory).mode(mode)
}

fn symlink(path: &str, target: &str) -> Expected {
    expect(path, Found::Symlink(target.to_owned()))
}

impl Expected {
    fn mode(mut self, mode: u32) -> Self {
        self.mode = Some(mode);
        self
    }

    fn owner(mut self, uid: u32, gid: u32) -> Self {
        self.owner = (uid, gid);
        self
    }

    fn xattr(mut self, name: &'static str, value: &[u8]) -> Self {
        self.xattr = Some((name, value.to_vec()));
        self
    }
}

fn is_device(metadata: &fs::Metadata, device: Device) -> bool {
    let numbers = (major(metadata.rdev()), minor(metadata.rdev()));
    match device {
        Device::Char { major, minor } => metadata.file_type().is_char_device() && numbers == (major, minor),
        Device::Block { major, minor } => metadata.file_type().is_block_device() && numbers == (major, minor),
    }
}
