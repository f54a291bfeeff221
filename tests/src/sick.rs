//! A file system of a test's own, in memory, over /dev/fuse: well, or refusing changes with an errno, or answering nobody,
//! as a server that went away under a hard mount. `fuse(4)`.
//!
//! ```text
//!   /dev/fuse ──requests──> thread ──┬─ Well, Refusing ──> Tree::answer ──> reply
//!                                    └─ Silent ──> kept; answered, in order, once it is well again
//! ```
//! Whoever waits for a silent one waits in the kernel, and SIGKILL does not end that wait. When the test ends, so does the
//! connection, and whoever still waits gets an error.

mod tree;

use std::{
    ffi::CString,
    fs::{self, File, OpenOptions},
    io::{self, PipeWriter, Read, Write},
    os::{fd::AsRawFd, unix::fs::OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    mount::{MountFlags, UnmountFlags, mount, unmount},
};

use self::tree::{Request, Tree};
use crate::skip::skip;

/// More than the largest write with its header.
const REQUEST_BYTES: usize = tree::MAX_WRITE_BYTES + 4096;

const NONBLOCK: i32 = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();

/// How a file system is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mood {
    Well,
    /// Reads are answered, whatever changes something fails with this errno.
    Refusing(i32),
    /// Nothing is answered.
    Silent,
}

/// A file system that is mounted until it is dropped.
#[derive(Debug)]
pub struct Sick {
    target: PathBuf,
    ward: Arc<Mutex<Ward>>,
    quit: Option<PipeWriter>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Ward {
    mood: Mood,
    tree: Tree,
    /// After so many changes it is otherwise.
    turns: Option<(usize, Mood)>,
    /// Unanswered.
    kept: Vec<Request>,
    device: Arc<File>,
}

impl Sick {
    /// Mounts an empty one, well; None, and the test is skipped, where the kernel has no FUSE.
    pub fn mount(test: &str, target: &Path) -> Option<Self> {
        let device = OpenOptions::new().read(true).write(true).custom_flags(NONBLOCK).open("/dev/fuse");
        let device = match device {
            Ok(device) => Arc::new(device),
            Err(error) => {
                skip(test, &format!("no /dev/fuse: {error}"));
                return None;
            }
        };
        fs::create_dir_all(target).expect("make the mount point");
        let data = format!(
            "fd={},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions",
            device.as_raw_fd()
        );
        let data = CString::new(data).expect("no NUL in it");
        if let Err(errno) = mount("berth-tests", target, "fuse", MountFlags::NODEV, data.as_c_str()) {
            skip(test, &format!("fuse can't be mounted: {errno}"));
            return None;
        }
        let (ended, quit) = io::pipe().expect("make a pipe");
        let ward = Ward {
            mood: Mood::Well,
            tree: Tree::default(),
            turns: None,
            kept: Vec::new(),
            device: device.clone(),
        };
        let ward = Arc::new(Mutex::new(ward));
        let nurse = ward.clone();
        let thread = std::thread::spawn(move || {
            let mut bytes = vec![0; REQUEST_BYTES];
            loop {
                let mut fds = [PollFd::new(&*device, PollFlags::IN), PollFd::new(&ended, PollFlags::IN)];
                if poll(&mut fds, None).is_err() || !fds[1].revents().is_empty() {
                    return;
                }
                match (&*device).read(&mut bytes) {
                    Ok(length) => lock(&nurse).hear(Request::parse(&bytes[..length])),
                    Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error()) => {
                        return;
                    }
                    // Interrupted before it was read, or none after all.
                    Err(_) => {}
                }
            }
        });
        Some(Self { target: target.to_owned(), ward, quit: Some(quit), thread: Some(thread) })
    }

    pub fn path(&self) -> &Path {
        &self.target
    }

    /// Refuses every change after so many more.
    pub fn refuses_after(&self, changes: usize, errno: i32) {
        let mut ward = lock(&self.ward);
        ward.mood = Mood::Well;
        ward.turns = Some((changes, Mood::Refusing(errno)));
    }

    pub fn mood(&self) -> Mood {
        lock(&self.ward).mood
    }

    /// Changes how it is. Once well, what it kept is answered.
    pub fn is_now(&self, mood: Mood) {
        let mut ward = lock(&self.ward);
        ward.mood = mood;
        ward.turns = None;
        if mood != Mood::Silent {
            for request in std::mem::take(&mut ward.kept) {
                ward.hear(request);
            }
        }
    }

    /// How many wait for an answer.
    pub fn waiting(&self) -> usize {
        lock(&self.ward).kept.len()
    }
}

impl Ward {
    fn hear(&mut self, request: Request) {
        if self.mood == Mood::Silent && request.wants_answer() {
            self.kept.push(request);
            return;
        }
        if request.changes() {
            match self.turns.take() {
                Some((0, mood)) => self.mood = mood,
                Some((left, mood)) => self.turns = Some((left - 1, mood)),
                None => {}
            }
        }
        let refused = match self.mood {
            Mood::Refusing(errno) if request.changes() => Some(errno),
            Mood::Refusing(_) | Mood::Well | Mood::Silent => None,
        };
        if let Some(reply) = self.tree.answer(&request, refused) {
            // Whoever asked may have given up.
            (&*self.device).write_all(&reply).ok();
        }
    }
}

impl Drop for Sick {
    fn drop(&mut self) {
        drop(self.quit.take());
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
        // The last descriptor: whoever waits is told that the connection is gone.
        let device = File::open("/dev/null").expect("open /dev/null");
        lock(&self.ward).device = Arc::new(device);
        unmount(&self.target, UnmountFlags::DETACH).ok();
    }
}

fn lock(ward: &Mutex<Ward>) -> MutexGuard<'_, Ward> {
    ward.lock().unwrap_or_else(PoisonError::into_inner)
}
