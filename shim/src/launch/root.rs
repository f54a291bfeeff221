//! A container's root directory, in which every path is resolved as the container would: `..` and symbolic links,
//! absolute ones too, stay below it, and /proc's magic links lead nowhere. Image content is hostile input.

use std::{
    ffi::OsStr,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Component, Path},
};

use rustix::{
    fs::{Mode, OFlags, ResolveFlags, mkdirat, openat, openat2},
    io::Errno,
};

/// An open root. `openat2(2)`, Linux 5.6.
#[derive(Debug)]
pub struct Root {
    fd: OwnedFd,
}

/// As often as runc. A `..`, of a link in an image too, that meets a rename or a mount anywhere on the machine is refused for
/// now: `openat2(2)`, EAGAIN.
const TRIES: u32 = 128;
const RESOLVE: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);

impl Root {
    pub fn new(fd: OwnedFd) -> Self {
        Self { fd }
    }

    /// Opens a path below the root.
    pub fn open(&self, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        self.resolve(path, flags, RESOLVE)
    }

    /// Opens a path of which no part may be a symbolic link: where /proc and /sys go.
    pub fn open_plain(&self, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        self.resolve(path, flags, RESOLVE.union(ResolveFlags::NO_SYMLINKS))
    }

    fn resolve(&self, path: &Path, flags: OFlags, how: ResolveFlags) -> rustix::io::Result<OwnedFd> {
        let open = || openat2(&self.fd, relative(path), flags | OFlags::CLOEXEC, Mode::empty(), how);
        (1..TRIES).map(|_| open()).find(|opened| !matches!(opened, Err(Errno::AGAIN))).unwrap_or_else(open)
    }

    /// Opens a directory, making what is missing of it with mode 0755.
    pub fn make_directories(&self, path: &Path) -> rustix::io::Result<OwnedFd> {
        let open = || self.open(path, OFlags::PATH | OFlags::DIRECTORY);
        let mut above = path.components();
        // Most is there: looked for from the end, each that is there takes one call.
        let last = match (open(), above.next_back()) {
            (Err(Errno::NOENT), Some(last)) => last,
            (opened, _) => return opened,
        };
        let above = self.make_directories(above.as_path())?;
        if let Component::Normal(name) = last {
            // A dangling link has the name already: EXIST, and the second open says why.
            match mkdirat(&above, name, Mode::from(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno),
            }
        }
        open()
    }

    /// Opens a file of any kind, making an empty one, and the directories above it, where it is missing.
    pub fn make_file(&self, path: &Path) -> rustix::io::Result<OwnedFd> {
        match self.open(path, OFlags::PATH) {
            Err(Errno::NOENT) => {}
            other => return other,
        }
        let (parent, name) = split(path)?;
        let parent = self.make_directories(parent)?;
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::WRONLY;
        match openat(&parent, name, flags, Mode::from(0o644)) {
            Ok(_) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno),
        }
        self.open(path, OFlags::PATH)
    }
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The directory and the name of a path; `EINVAL` where it has no name.
pub fn split(path: &Path) -> rustix::io::Result<(&Path, &OsStr)> {
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => Ok((parent, name)),
        _ => Err(Errno::INVAL),
    }
}

/// A path from the plan's bytes.
pub fn path(bytes: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(bytes))
}

fn relative(path: &Path) -> &Path {
    // openat2 takes "/" as the root itself under RESOLVE_IN_ROOT; an empty path it refuses.
    if path.as_os_str().is_empty() { Path::new(".") } else { path }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        sync::atomic::{AtomicBool, Ordering},
        thread,
    };

    use super::*;

    #[test]
    fn what_is_missing_is_made_where_the_container_would_see_it() {
        let top = tempfile::tempdir().unwrap();
        let top = top.path();
        fs::create_dir_all(top.join("root/there")).unwrap();
        std::os::unix::fs::symlink("/elsewhere", top.join("root/dangling")).unwrap();
        std::os::unix::fs::symlink("/there", top.join("root/link")).unwrap();
        fs::write(top.join("root/file"), "").unwrap();
        let root = Root::new(fs::File::open(top.join("root")).unwrap().into());
        let make = |path: &str| root.make_directories(Path::new(path)).map(drop);
        for path in ["/", "", "there", "/there/a/b", "new/../new/c", "/link/d", "../../outside/e"] {
            assert_eq!(make(path), Ok(()), "{path}");
        }
        for path in ["there/a/b", "new/c", "there/d", "outside/e"] {
            assert!(top.join("root").join(path).is_dir(), "{path}");
        }
        assert_eq!(make("dangling/f"), Err(Errno::NOENT));
        assert_eq!(make("file/g"), Err(Errno::NOTDIR));
        assert!(!top.join("outside").exists() && !top.join("root/elsewhere").exists());
    }

    #[test]
    fn ways_up_are_found_while_others_rename() {
        let top = tempfile::tempdir().unwrap();
        let top = top.path();
        fs::create_dir_all(top.join("in/side")).unwrap();
        fs::create_dir_all(top.join("one")).unwrap();
        let root = fs::File::open(top.join("in")).unwrap();
        let root = Root::new(root.into());
        let over = AtomicBool::new(false);
        let found = thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    for (from, to) in [("one", "two"), ("two", "one")] {
                        fs::rename(top.join(from), top.join(to)).unwrap();
                    }
                }
            });
            let up = Path::new("side/../side/../side/../side");
            let found: rustix::io::Result<Vec<_>> =
                (0..5000).map(|_| root.open(up, OFlags::PATH).map(drop)).collect();
            over.store(true, Ordering::Relaxed);
            found
        });
        assert_eq!(found.map(|all| all.len()), Ok(5000));
    }
}
