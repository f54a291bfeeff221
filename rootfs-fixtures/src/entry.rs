//! One entry of a layer: a path, what is there, and whose it is.
//!
//! Paths are written to the archive as they are given: that is how hostile images are made.

/// An entry of a layer's archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub path: String,
    pub body: Body,
    pub mode: u32,
    pub uid: u64,
    pub gid: u64,
    /// Names such as `user.berth`, with their values.
    pub xattrs: Vec<(String, Vec<u8>)>,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    Directory,
    File(Vec<u8>),
    Symlink(String),
    /// The target is a path of the archive, not relative to the entry.
    HardLink(String),
    Device(Device),
    Fifo,
}

/// A device node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    Char { major: u32, minor: u32 },
    Block { major: u32, minor: u32 },
}

impl Entry {
    pub fn directory(path: &str, mode: u32) -> Self {
        Self::new(path, Body::Directory, mode)
    }

    pub fn file(path: &str, mode: u32, content: impl Into<Vec<u8>>) -> Self {
        Self::new(path, Body::File(content.into()), mode)
    }

    pub fn symlink(path: &str, target: &str) -> Self {
        Self::new(path, Body::Symlink(target.to_owned()), 0o777)
    }

    pub fn hard_link(path: &str, target: &str) -> Self {
        Self::new(path, Body::HardLink(target.to_owned()), 0o644)
    }

    pub fn device(path: &str, mode: u32, device: Device) -> Self {
        Self::new(path, Body::Device(device), mode)
    }

    pub fn fifo(path: &str, mode: u32) -> Self {
        Self::new(path, Body::Fifo, mode)
    }

    /// Removes what lower layers have at a path.
    pub fn whiteout(path: &str) -> Self {
        Self::file(&beside(path, ".wh."), 0o644, Vec::new())
    }

    /// Hides all that lower layers have in a directory; `""` is the root.
    pub fn opaque(directory: &str) -> Self {
        let directory = directory.trim_end_matches('/');
        let slash = if directory.is_empty() { "" } else { "/" };
        Self::file(&format!("{directory}{slash}.wh..wh..opq"), 0o644, Vec::new())
    }

    /// Gives the entry to a user and a group; without, it is root's.
    pub fn owner(mut self, uid: u64, gid: u64) -> Self {
        (self.uid, self.gid) = (uid, gid);
        self
    }

    pub fn xattr(mut self, name: &str, value: impl Into<Vec<u8>>) -> Self {
        self.xattrs.push((name.to_owned(), value.into()));
        self
    }

    fn new(path: &str, body: Body, mode: u32) -> Self {
        Self { path: path.to_owned(), body, mode, uid: 0, gid: 0, xattrs: Vec::new() }
    }
}

/// Puts a prefix before the last name of a path.
fn beside(path: &str, prefix: &str) -> String {
    let path = path.trim_end_matches('/');
    match path.rsplit_once('/') {
        Some((parent, name)) => format!("{parent}/{prefix}{name}"),
        None => format!("{prefix}{path}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whiteouts_stand_beside_what_they_remove() {
        assert_eq!(Entry::whiteout("etc/old/").path, "etc/.wh.old");
        assert_eq!(Entry::whiteout("top").path, ".wh.top");
    }

    #[test]
    fn opaque_markers_stand_in_their_directory() {
        assert_eq!(Entry::opaque("srv/data/").path, "srv/data/.wh..wh..opq");
        assert_eq!(Entry::opaque("").path, ".wh..wh..opq");
    }
}
