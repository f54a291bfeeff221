//! The store is killed at every write, rename, link, unlink and sync of an import and a removal: what is found then is whole
//! or absent, and the retry works. strace(1) kills; what was not synced is still there afterwards, as no power was cut.

use std::{
    collections::BTreeSet,
    fs,
    io::Write,
    path::Path,
    process::{Command, Stdio},
};

use tokio::sync::mpsc;

use super::fixture::{Made, settings, tar_up};
use crate::image::{Repair, Store};

const ROOT: &str = "BERTH_CRASH_ROOT";
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

fn skip(reason: &str) {
    let line = format!("skipped: a_store_killed_at_any_call_is_whole: {reason}\n");
    eprint!("{line}");
    if let Some(path) = std::env::var_os("BERTH_SKIPS") {
        fs::File::options().append(true).create(true).open(path).unwrap().write_all(line.as_bytes()).unwrap();
    }
}

#[tokio::test]
async fn a_store_killed_at_any_call_is_whole() {
    let tried = Command::new("strace").args(["-f", "-o", "/dev/null", "true"]).stderr(Stdio::null()).status();
    if !tried.is_ok_and(|status| status.success()) {
        return skip("strace is not installed, or may not trace");
    }
    let (mut states, mut kills) = (BTreeSet::new(), 0);
    for call in CALLS {
        let first = if call == "write" { HEAD_START + 1 } else { 1 };
        for number in first.. {
            assert!(number < CALLS_MAX, "the child never comes to its end");
            let (killed, state) = kill_and_look(call, number).await;
            if !killed {
                break;
            }
            states.insert(state);
            kills += 1;
        }
    }
    eprintln!("killed at {kills} calls");
    assert!(kills > 40, "only {kills} calls were seen");
    assert_eq!(states.len(), 3, "before, between and after: {states:?}");
}

/// Kills at one call, and finds which images are there: the old one, the new one.
async fn kill_and_look(call: &str, number: usize) -> (bool, (bool, bool)) {
    let (old, new) = (old(), new());
    let place = tempfile::tempdir().unwrap();
    let root = place.path();
    let store = Store::open(root, &settings()).await.unwrap();
    fs::write(root.join("old.tar"), tar_up(&old.layout("app:v1"))).unwrap();
    fs::write(root.join("new.tar"), tar_up(&new.layout("app:v1"))).unwrap();
    store.import(&root.join("old.tar"), None).await.unwrap();
    drop(store);
    let killed = killed_at(call, number, root);

    let at = format!("{call} {number}");
    let store = Store::open(root, &settings()).await.unwrap_or_else(|e| panic!("{at}: {}", e.chain()));
    let (sender, _receiver) = mpsc::channel(64);
    let checked = store.check(Repair::No, sender).await.unwrap();
    assert_eq!(checked.problems, 0, "after {at}");
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
    store.remove(&old.id.to_string()).await.unwrap();
    let layers = fs::read_dir(root.join("images/layers")).unwrap().count();
    assert_eq!((layers, store.list().len()), (2, 1), "after {at}");
    (killed, state)
}
