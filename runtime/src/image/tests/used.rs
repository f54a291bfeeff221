//! What the store says that it takes, beside du(1): after all that changes it, and over trees that are odd.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::Command,
};

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tar::EntryType;

use super::{
    fixture::{Made, Place, app, blob, gzip, request, settings, tar_up},
    server::{Fault, Server},
};
use crate::image::{FsUsage, PullRequest, Store, Unused, digest::Digest};

/// Bytes and inodes of all below, as du counts them.
pub(super) fn du(path: &Path) -> (u64, u64) {
    let count = |flag: &str| -> u64 {
        let run = Command::new("du").args(["--summarize", flag]).arg(path).output().unwrap();
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
        String::from_utf8_lossy(&run.stdout).split_whitespace().next().unwrap().parse().unwrap()
    };
    (count("--block-size=1"), count("--inodes"))
}

fn told(usage: &FsUsage) -> (u64, u64) {
    (usage.used_bytes, usage.inodes_used)
}

fn is_exact(place: &Place, when: &str) {
    assert_eq!(told(&place.store.usage().unwrap()), du(&place.path("images")), "{when}");
}

/// Many small files, so that directories grow; names that need blocks of their own; files of several names, with holes, with
/// attributes that find no room in an inode; devices; what is replaced.
fn odd() -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut put = |pax: &[(&str, &[u8])], name: &str, kind: EntryType, link: &str, content: &[u8]| {
        builder.append_pax_extensions(pax.iter().copied()).unwrap();
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o755);
        header.set_uid(1);
        header.set_gid(2);
        header.set_size(content.len() as u64);
        if !link.is_empty() {
            header.set_link_name(link).unwrap();
        }
        builder.append_data(&mut header, name, content).unwrap();
    };
    use EntryType as E;
    put(&[], "many/", E::Directory, "", b"");
    for number in 0..3000 {
        put(&[], &format!("many/{number}-{}", "n".repeat(60)), E::Regular, "", &vec![1; number % 5]);
    }
    put(&[], "zeros", E::Regular, "", &vec![0; 300_001]);
    put(&[], "one", E::Regular, "", &vec![3; 70_000]);
    for name in ["two", "many/three"] {
        put(&[], name, E::Link, "one", b"");
    }
    put(&[("SCHILY.xattr.user.long", &[b'x'; 3000])], "noted", E::Regular, "", b"x");
    put(&[("SCHILY.xattr.user.long", &[b'x'; 3000])], "noted-directory/", E::Directory, "", b"");
    put(&[("linkpath", "t/".repeat(200).as_bytes())], "far", E::Symlink, "t", b"");
    put(&[], "near", E::Symlink, "t", b"");
    put(&[], "pipe", E::Fifo, "", b"");
    put(&[], "null", E::Char, "", b"");
    put(&[], "lower/.wh.gone", E::Regular, "", b"");
    put(&[], "twice", E::Regular, "", &vec![1; 50_000]);
    put(&[], "twice", E::Regular, "", b"less");
    put(&[], "tree/with/much", E::Regular, "", &vec![1; 50_000]);
    put(&[], "tree", E::Symlink, "near", b"");
    put(&[], &format!("{}end", "d/".repeat(500)), E::Regular, "", b"deep");
    builder.into_inner().unwrap()
}

fn odd_image() -> Made {
    let tar = odd();
    Made::packed("odd", vec![Digest::of(&tar)], vec![gzip(&tar)])
}

#[tokio::test]
async fn what_the_store_takes_is_what_du_counts_whatever_is_done() {
    let (place, server, made) = (Place::new().await, Server::new().await, odd_image());
    is_exact(&place, "when it is empty");
    let empty = place.store.usage().unwrap();
    assert_eq!(empty.mountpoint, place.path("images"));

    place.store.pull(request(&server.offer(&made, "v1"))).await.unwrap();
    is_exact(&place, "after a pull");
    let pulled = place.store.usage().unwrap();
    assert!(pulled.inodes_used > empty.inodes_used + 3500, "{pulled:?}");
    let place = place.reopen().await;
    is_exact(&place, "after a restart");
    assert_eq!(place.store.usage().unwrap(), pulled);

    place.import(&app(), "moving:v1").await;
    place.import(&Made::new("other", &[&[("base", "base")], &[("more", "more")]]), "moving:v1").await;
    is_exact(&place, "after imports, which keep their blobs");
    for holder in ["c1", "c2"] {
        place.store.hold("moving:v1", holder).unwrap();
    }
    is_exact(&place, "with containers");
    let half = fs::File::create(place.path("images/partial/half")).unwrap();
    half.set_len(1 << 20).unwrap();
    (&half).write_all(&[1; 5000]).unwrap();
    is_exact(&place, "with half a download that has a hole");
    place.store.remove(&made.id.to_string()).await.unwrap();
    is_exact(&place, "after a removal");
    place.store.remove("moving:v1").await.unwrap();
    place.store.release("c1").unwrap();
    is_exact(&place, "where a container holds what was removed");
    place.store.release("c2").unwrap();
    place.store.prune(Unused::Any).await.unwrap();
    is_exact(&place, "after a pruning");
    // The table before the last change is there now.
    let old_table = (du(&place.path("images/names.json.old")).0 + du(&place.path("images/names.json")).0, 2);
    let usage = place.store.usage().unwrap();
    assert_eq!(told(&usage), (empty.used_bytes + old_table.0, empty.inodes_used + old_table.1));
}

#[tokio::test]
async fn blobs_that_are_kept_count() {
    let (place, server) = (Place::with(|settings| settings.keep_blobs = true).await, Server::new().await);
    place.store.pull(request(&server.offer(&odd_image(), "v1"))).await.unwrap();
    is_exact(&place, "with a blob beside the files");
}

#[tokio::test]
async fn a_pull_in_its_midst_and_what_it_leaves_are_counted() {
    let place = Place::with(|settings| settings.stall_seconds = 60).await;
    let (server, made) = (Server::new().await, odd_image());
    let reference = server.offer(&made, "v1");
    let path = blob(&made.layers[0]);
    let go_on = std::sync::Arc::new(tokio::sync::Notify::new());
    // Some of it is unpacked when the rest does not come.
    server.fault(path.clone(), &[Fault::CutAfter(20_000), Fault::Until(go_on.clone())]);
    let store = place.store.clone();
    let asked: PullRequest = request(&reference);
    let pull = tokio::spawn(async move { store.pull(asked).await });
    server.was_asked(&path, 2).await;
    // What has come is unpacked meanwhile.
    let tmp = place.path("images/tmp");
    tokio::task::spawn_blocking(move || grows_to(&tmp, 500)).await.unwrap();
    let on_the_way = || {
        let below = |path: PathBuf| du(&path).0 - own_blocks(&path);
        ["partial", "tmp"].map(|name| below(place.path("images").join(name))).iter().sum::<u64>()
    };
    loop {
        let before = (du(&place.path("images")), on_the_way());
        let usage = place.store.usage().unwrap();
        let (_, downloads) = place.store.shares().await.unwrap();
        // Only between two equal looks nothing was unpacked.
        if before == (du(&place.path("images")), on_the_way()) {
            assert_eq!((told(&usage), downloads.bytes), before);
            assert_eq!((downloads.total, downloads.active, downloads.reclaimable_bytes), (1, 1, 0));
            break;
        }
    }
    go_on.notify_one();
    pull.await.unwrap().unwrap();
    is_exact(&place, "after it");
}

/// Returns once so many files are in directories of this one, at whatever depth: it looks whenever one was made.
fn grows_to(top: &Path, files: usize) {
    let watched = inotify::init(CreateFlags::CLOEXEC).unwrap();
    let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
    let mut told = inotify::Reader::new(&watched, &mut buffer);
    loop {
        let mut directories = vec![top.to_owned()];
        let mut found = 0;
        while let Some(directory) = directories.pop() {
            // Before it is read: what comes between the two is told. One that has gone has nothing to tell.
            inotify::add_watch(&watched, &directory, WatchFlags::CREATE | WatchFlags::MOVED_TO).ok();
            for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
                found += 1;
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    directories.push(entry.path());
                }
            }
        }
        if found >= files {
            return;
        }
        told.next().unwrap();
        while !told.is_buffer_empty() {
            told.next().unwrap();
        }
    }
}

fn own_blocks(path: &Path) -> u64 {
    std::os::unix::fs::MetadataExt::blocks(&fs::symlink_metadata(path).unwrap()) * 512
}

#[tokio::test]
async fn layers_are_not_walked_unless_their_note_is_lost() {
    let place = Place::new().await;
    place.import(&odd_image(), "odd:v1").await;
    let before = place.store.usage().unwrap();
    let layer = place.path("images/layers/1");
    // Nobody does so; who walked would find it.
    fs::write(layer.join("fs/strange"), [1; 10_000]).unwrap();
    assert_eq!(place.store.usage().unwrap(), before);
    let place = place.reopen().await;
    assert_eq!(place.store.usage().unwrap(), before);
    fs::remove_file(layer.join("fs/strange")).unwrap();

    for torn in [&b""[..], &[0; 42], b"          1"] {
        fs::write(layer.join("used"), torn).unwrap();
        let store = Store::open(place.directory.path(), &settings()).await.unwrap();
        assert_eq!(store.usage().unwrap(), before, "{torn:?}");
        assert_ne!(fs::read(layer.join("used")).unwrap(), torn);
    }
    // As an older berthd leaves it.
    fs::remove_file(layer.join("used")).unwrap();
    let place = place.reopen().await;
    is_exact(&place, "after an upgrade");
    assert!(layer.join("used").exists());
}

#[tokio::test]
async fn what_a_pruning_gives_back_is_what_was_said_to_be_reclaimable() {
    let place = Place::with(|settings| settings.pinned = vec!["docker.io/library/pinned:*".into()]).await;
    place.import(&app(), "app:v1").await;
    place.import(&odd_image(), "odd:v1").await;
    // Of the pinned image's two layers one is the pruned one's too.
    let shared: &[(&str, &str)] = &[("base", "base")];
    place.import(&Made::new("pinned", &[shared, &[("p", "p")]]), "pinned:v1").await;
    place.import(&Made::new("loose", &[shared, &[("l", "l")]]), "loose:v1").await;
    place.store.hold("app:v1", "c1").unwrap();
    fs::write(place.path("images/partial/half"), [0; 10_000]).unwrap();
    let (images, downloads) = place.store.shares().await.unwrap();
    let part =
        |name: &str| du(&place.path("images").join(name)).0 - own_blocks(&place.path("images").join(name));
    assert_eq!(images.bytes, part("layers") + part("blobs"));
    assert_eq!(downloads.bytes, part("partial"));
    let pruned = place.store.prune(Unused::Any).await.unwrap();
    assert_eq!(pruned.bytes, images.reclaimable_bytes + downloads.reclaimable_bytes);
    let (images, downloads) = place.store.shares().await.unwrap();
    assert_eq!((images.total, images.reclaimable_bytes, downloads.bytes), (2, 0, 0));
    is_exact(&place, "after it");
}

#[tokio::test]
async fn an_archive_that_is_refused_leaves_nothing_that_counts() {
    let place = Place::new().await;
    let before = told(&place.store.usage().unwrap());
    let mut made = odd_image();
    let layer = made.layers[0].clone();
    made.blobs.get_mut(&layer).unwrap().truncate(30_000);
    fs::write(place.path("x.tar"), tar_up(&made.layout("x"))).unwrap();
    place.store.import(&place.path("x.tar"), None).await.unwrap_err();
    assert_eq!(told(&place.store.usage().unwrap()), before);
    is_exact(&place, "after a refusal");
}
