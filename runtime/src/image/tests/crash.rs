//! The store is stopped at every write, rename, link, unlink and sync of an import, a hold and a removal: what is found then is whole
//! or absent, and the retry works. strace(1) kills; in the second test the power goes with it: an ext4 of its own is looked at
//! as its device has it, without anything that the kernel had not written yet.

use std::{
    collections::BTreeSet,
    fs,
    io::Write,
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string,
    fsmount, fsopen,
};
use tokio::sync::mpsc;

use super::{
    fixture::{Made, settings, tar_up},
    used::du,
};
use crate::image::{Repair, Store};

const ROOT: &str = "BERTH_CRASH_ROOT";
/// Who uses the old image, from between the import and the removal.
const HOLDER: &str = "c1";
const CHILD: &str = "image::tests::crash::the_child_that_is_killed";
/// What changes what is on the disk, and what makes it stay.
const CALLS: [&str; 18] = [
    "write",
    "pwrite64",
    "ftruncate",
    "fallocate",
    "mkdir",
    "mkdirat",
    "rename",
    "renameat",
    "renameat2",
    "link",
    "linkat",
    "unlink",
    "unlinkat",
    "rmdir",
    "fsync",
    "fdatasync",
    "syncfs",
    "utimensat",
];
/// strace counts by thread and call: the store's thread begins with so many writes of its own, so that it is the first to
/// come to a number, and not the one that prints.
const HEAD_START: usize = 40;
const CALLS_MAX: usize = 500;

fn old() -> Made {
    Made::new("old", &[&[("base", "base")], &[("old", "old")]])
}

fn new() -> Made {
    Made::new("new", &[&[("base", "base")], &[("new", "new")]])
}

/// Does nothing unless it is started by the test below.
#[test]
fn the_child_that_is_killed() {
    let Some(root) = std::env::var_os(ROOT) else { return };
    let root = Path::new(&root);
    let runtime = tokio::runtime::Builder::new_current_thread().max_blocking_threads(1).enable_all().build();
    runtime.unwrap().block_on(async {
        tokio::task::spawn_blocking(|| {
            let mut null = fs::File::options().write(true).open("/dev/null").unwrap();
            for _ in 0..HEAD_START {
                null.write_all(b"x").unwrap();
            }
        })
        .await
        .unwrap();
        let store = Store::open(root, &settings()).await.unwrap();
        store.import(&root.join("new.tar"), None).await.unwrap();
        store.hold(&old().id.to_string(), HOLDER).unwrap();
        store.remove(&old().id.to_string()).await.unwrap();
    });
}

/// Whether the child was killed; else it made fewer calls of the kind.
fn killed_at(call: &str, number: usize, root: &Path) -> bool {
    let status = Command::new("strace")
        .args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={call}")])
        .args(["-e", &format!("inject={call}:signal=SIGKILL:when={number}")])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", CHILD, "--test-threads=1"])
        .env(ROOT, root)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    !status.success()
}

fn skip(test: &str, reason: &str) {
    let line = format!("skipped: {test}: {reason}\n");
    eprint!("{line}");
    if let Some(path) = std::env::var_os("BERTH_SKIPS") {
        fs::File::options().append(true).create(true).open(path).unwrap().write_all(line.as_bytes()).unwrap();
    }
}

/// Why the tests can't be run here.
fn hindrance() -> Option<&'static str> {
    let tried = Command::new("strace").args(["-f", "-o", "/dev/null", "true"]).stderr(Stdio::null()).status();
    (!tried.is_ok_and(|status| status.success())).then_some("strace is not installed, or may not trace")
}

#[tokio::test]
async fn a_store_killed_at_any_call_is_whole() {
    if let Some(reason) = hindrance() {
        return skip("a_store_killed_at_any_call_is_whole", reason);
    }
    let mut kills = Kills::default();
    for call in CALLS {
        for number in first(call).. {
            let place = tempfile::tempdir().unwrap();
            prepare(place.path()).await;
            let killed = killed_at(call, number, place.path());
            let state = look(place.path(), &format!("{call} {number}")).await;
            if !kills.counted(killed, number, state) {
                break;
            }
        }
    }
    kills.end();
}

#[tokio::test]
async fn a_store_whose_power_is_cut_at_any_call_is_whole() {
    const TEST: &str = "a_store_whose_power_is_cut_at_any_call_is_whole";
    if let Some(reason) = hindrance() {
        return skip(TEST, reason);
    }
    let place = tempfile::tempdir().unwrap();
    let (clean, used, cut) =
        (place.path().join("clean"), place.path().join("used"), place.path().join("cut"));
    let Some(disk) = Disk::made(&clean) else { return skip(TEST, "no ext4 can be made and mounted here") };
    prepare(&disk.root()).await;
    drop(disk);
    let mut kills = Kills::default();
    for call in CALLS {
        for number in first(call).. {
            fs::copy(&clean, &used).unwrap();
            let disk = Disk::mounted(&used).unwrap();
            let killed = killed_at(call, number, &disk.root());
            // Nothing writes any more, and what would do so by itself has 300 s.
            fs::copy(&used, &cut).unwrap();
            drop(disk);
            let disk = Disk::mounted(&cut).unwrap();
            let state = look(&disk.root(), &format!("{call} {number}")).await;
            if !kills.counted(killed, number, state) {
                break;
            }
        }
    }
    kills.end();
}

fn first(call: &str) -> usize {
    if call == "write" { HEAD_START + 1 } else { 1 }
}

/// Which images were there, the old one and the new one, after each kill.
#[derive(Default)]
struct Kills {
    states: BTreeSet<(bool, bool)>,
    count: usize,
}

impl Kills {
    /// Whether there may be more calls of the kind.
    fn counted(&mut self, killed: bool, number: usize, state: (bool, bool)) -> bool {
        assert!(number < CALLS_MAX, "the child never comes to its end");
        if killed {
            self.states.insert(state);
            self.count += 1;
        }
        killed
    }

    fn end(self) {
        eprintln!("killed at {} calls", self.count);
        assert!(self.count > 40, "only {} calls were seen", self.count);
        assert_eq!(self.states.len(), 3, "before, between and after: {:?}", self.states);
    }
}

/// A store with the old image, and the archive of the new one.
async fn prepare(root: &Path) {
    let (old, new) = (old(), new());
    let store = Store::open(root, &settings()).await.unwrap();
    fs::write(root.join("old.tar"), tar_up(&old.layout("app:v1"))).unwrap();
    fs::write(root.join("new.tar"), tar_up(&new.layout("app:v1"))).unwrap();
    store.import(&root.join("old.tar"), None).await.unwrap();
}

/// Which images are there, the old one and the new one, each of them whole.
async fn look(root: &Path, at: &str) -> (bool, bool) {
    let (old, new) = (old(), new());
    let store = Store::open(root, &settings()).await.unwrap_or_else(|e| panic!("{at}: {}", e.chain()));
    let (sender, _receiver) = mpsc::channel(64);
    let checked = store.check(Repair::No, sender).await.unwrap();
    assert_eq!(checked.problems, 0, "after {at}");
    let usage = store.usage().unwrap();
    assert_eq!((usage.used_bytes, usage.inodes_used), du(&root.join("images")), "after {at}");
    let there = |made: &Made| store.find(&made.id.to_string()).is_some();
    let state = (there(&old), there(&new));
    // The tag moves with the image, in one step, and the old image goes only after that.
    let expected = match state {
        (true, false) => old.id.to_string(),
        (true | false, true) => new.id.to_string(),
        (false, false) => panic!("no image after {at}"),
    };
    assert_eq!(store.find("app:v1").map(|image| image.id), Some(expected), "after {at}");
    assert_eq!(fs::read_dir(root.join("images/tmp")).unwrap().count(), 0, "after {at}");
    store.import(&root.join("new.tar"), None).await.unwrap();
    // What is held is there when its image is not; of an image that is there who uses it holds it again, torn or lost.
    match there(&old) {
        true => drop(store.hold(&old.id.to_string(), HOLDER).unwrap()),
        false => assert!(store.is_held(HOLDER), "after {at}"),
    }
    store.remove(&old.id.to_string()).await.unwrap();
    let layers = || fs::read_dir(root.join("images/layers")).unwrap().count();
    assert_eq!((layers(), store.list().len()), (3, 1), "after {at}");
    store.release(HOLDER).unwrap();
    assert_eq!((layers(), store.list().len()), (2, 1), "after {at}");
    state
}

/// An ext4 in a file, mounted without a place for as long as this lives.
struct Disk {
    mount: OwnedFd,
}

impl Disk {
    const BYTES: u64 = 24 << 20;

    fn made(image: &Path) -> Option<Self> {
        fs::File::create(image).unwrap().set_len(Self::BYTES).unwrap();
        let made = Command::new("mkfs.ext4").args(["-q", "-b", "1024", "-J", "size=1"]).arg(image).status();
        if made.is_ok_and(|status| status.success()) { Self::mounted(image).ok() } else { None }
    }

    fn mounted(image: &Path) -> std::io::Result<Self> {
        let attached = Command::new("losetup").args(["--find", "--show"]).arg(image).output()?;
        let device = String::from_utf8_lossy(&attached.stdout).trim().to_owned();
        if device.is_empty() {
            return Err(std::io::Error::other(String::from_utf8_lossy(&attached.stderr).into_owned()));
        }
        let mount = Self::mount(&device);
        // It goes with the mount, whatever ends this process.
        Command::new("losetup").args(["--detach", &device]).status()?;
        Ok(Self { mount: mount? })
    }

    /// Nothing is written before it is asked for: not by time, and not since a rename looks as if it were meant so.
    fn mount(device: &str) -> std::io::Result<OwnedFd> {
        let context = fsopen("ext4", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_set_string(&context, "source", device)?;
        fsconfig_set_string(&context, "commit", "300")?;
        fsconfig_set_flag(&context, "noauto_da_alloc")?;
        fsconfig_create(&context)?;
        Ok(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?)
    }

    /// For other processes too.
    fn root(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.mount.as_raw_fd()).into()
    }
}
