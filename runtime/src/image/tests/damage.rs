//! Damage on the disk: found, told, repaired; full disks; what is not used.

use std::{fs, path::Path};

use tokio::sync::mpsc;

use super::{
    fixture::{Made, Place, app, blob, request, settings, tar_up},
    server::Server,
};
use crate::{
    Kind,
    image::{Checked, Finding, Outcome, Repair, Store, Unused},
};

async fn check(store: &Store, repair: Repair) -> (Checked, Vec<Finding>) {
    let (sender, mut receiver) = mpsc::channel(64);
    let checked = store.check(repair, sender).await.unwrap();
    let mut found = Vec::new();
    while let Ok(finding) = receiver.try_recv() {
        found.push(finding);
    }
    assert_eq!(checked.problems, found.len() as u64);
    (checked, found)
}

/// A store that keeps blobs.
async fn keeping() -> Place {
    Place::with(|settings| settings.keep_blobs = true).await
}

/// A pulled image and the directories of its layers, lowest first.
async fn pulled(place: &Place, server: &Server, made: &Made) -> Vec<std::path::PathBuf> {
    let reference = server.offer(made, "v1");
    place.store.pull(request(&reference)).await.unwrap();
    let mut lowers = place.store.hold(&reference, "look").unwrap().lowers;
    place.store.release("look").unwrap();
    lowers.reverse();
    lowers.into_iter().map(|fs| fs.parent().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn what_is_whole_has_no_findings_and_leaves_nothing_behind() {
    let (place, server, made) = (Place::new().await, Server::new().await, app());
    pulled(&place, &server, &made).await;
    let (checked, found) = check(&place.store, Repair::No).await;
    assert_eq!((checked.images, checked.layers, found.len()), (1, 2, 0));
    assert_eq!((place.count("tmp"), place.count("layers")), (0, 2));
    let empty = Place::new().await;
    assert_eq!(check(&empty.store, Repair::No).await, (Checked::default(), Vec::new()));
}

#[tokio::test]
async fn damaged_files_come_again_from_a_kept_blob_without_the_registry() {
    let (place, server, made) = (keeping().await, Server::new().await, app());
    let layers = pulled(&place, &server, &made).await;
    fs::write(layers[1].join("fs/app"), "54321").unwrap();
    let asked = server.shelf.lock().unwrap().log.len();
    let (_, found) = check(&place.store, Repair::No).await;
    assert_eq!((&found[0].object, &found[0].outcome), (&made.diff_ids[1].to_string(), &Outcome::Found));
    assert!(found[0].problem.contains("\"app\": "), "{found:?}");

    // A layer that a container stands on is not taken from under it.
    place.store.hold(&made.id.to_string(), "c1").unwrap();
    let (checked, found) = check(&place.store, Repair::Yes).await;
    assert_eq!((checked.problems, checked.repaired), (1, 0));
    let Outcome::Unrepaired(why) = &found[0].outcome else { panic!("{found:?}") };
    assert!(why.contains("containers use it: c1"), "{why}");
    place.store.release("c1").unwrap();

    let (checked, _) = check(&place.store, Repair::Yes).await;
    assert_eq!((checked.problems, checked.repaired), (1, 1));
    assert_eq!(server.shelf.lock().unwrap().log.len(), asked, "the registry is not asked");
    let (checked, _) = check(&place.store, Repair::No).await;
    assert_eq!(checked.problems, 0);
    let place = place.reopen().await;
    let lowers = place.store.hold(&made.id.to_string(), "c1").unwrap().lowers;
    assert_eq!(fs::read_to_string(lowers[0].join("app")).unwrap(), "12345");
    assert_eq!((place.count("tmp"), place.count("layers")), (0, 2));
}

#[tokio::test]
async fn a_damaged_blob_is_fetched_again_and_only_that() {
    let (place, server, made) = (keeping().await, Server::new().await, app());
    let layers = pulled(&place, &server, &made).await;
    let mut bytes = fs::read(layers[0].join("blob")).unwrap();
    bytes[100] ^= 1;
    fs::write(layers[0].join("blob"), bytes).unwrap();
    let before: Vec<usize> = made.layers.iter().map(|layer| server.asked(&blob(layer)).len()).collect();
    let (checked, found) = check(&place.store, Repair::Yes).await;
    assert_eq!((checked.problems, checked.repaired), (1, 1), "{found:?}");
    let after: Vec<usize> = made.layers.iter().map(|layer| server.asked(&blob(layer)).len()).collect();
    assert_eq!(after, [before[0] + 1, before[1]]);
    assert_eq!(check(&place.store, Repair::No).await.0.problems, 0);
}

#[tokio::test]
async fn damaged_documents_and_lost_layers_are_fetched_again() {
    let (place, server, made) = (Place::new().await, Server::new().await, app());
    let layers = pulled(&place, &server, &made).await;
    fs::write(place.path("images/blobs").join(made.manifest.hex()), "{").unwrap();
    fs::remove_dir_all(&layers[1]).unwrap();
    let place = place.reopen().await;
    assert!(place.store.list().is_empty());
    let (checked, found) = check(&place.store, Repair::Yes).await;
    assert_eq!((checked.problems, checked.repaired), (1, 1), "{found:?}");
    assert_eq!(place.store.list().len(), 1);
    assert_eq!(check(&place.store, Repair::No).await.0.problems, 0);
}

#[tokio::test]
async fn what_no_registry_has_stays_and_says_so() {
    let place = Place::new().await;
    let made = app();
    let image = place.import(&made, "app").await;
    fs::write(place.path("images/blobs").join(made.id.hex()), "{").unwrap();
    let (checked, found) = check(&place.store, Repair::Yes).await;
    assert_eq!((checked.problems, checked.repaired), (1, 0));
    let Outcome::Unrepaired(why) = &found[0].outcome else { panic!("{found:?}") };
    assert!(why.contains("load it again"), "{why}");
    assert!(place.store.find(&image.id).is_some());
}

#[tokio::test]
async fn a_table_that_changed_on_the_disk_is_written_anew() {
    let place = Place::new().await;
    place.import(&app(), "app").await;
    fs::write(place.path("images/names.json"), "garbage").unwrap();
    let (checked, found) = check(&place.store, Repair::Yes).await;
    assert_eq!((checked.problems, checked.repaired), (1, 1), "{found:?}");
    assert_eq!(check(&place.store, Repair::No).await.0.problems, 0);
}

/// Names of the files in the store's directory that begin so.
fn beginning(place: &Place, name: &str) -> Vec<String> {
    let files = fs::read_dir(place.path("images")).unwrap();
    let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
    names.filter(|file| file.starts_with(name)).collect()
}

#[tokio::test]
async fn a_damaged_table_is_kept_aside_and_no_image_is_lost() {
    let place = Place::new().await;
    let first = place.import(&app(), "app:v1").await;
    let second = place.import(&Made::new("other", &[&[("x", "x")]]), "other:v1").await;
    fs::write(place.path("images/names.json"), "{ \"version\": 1, \"ima").unwrap();
    let place = place.reopen().await;
    // The table before the last change had the first one's name.
    assert_eq!(place.store.find("app:v1").map(|image| image.id), Some(first.id.clone()));
    assert!(place.store.find(&second.id).unwrap().tags.is_empty());
    let aside = beginning(&place, "names.json.damaged-");
    assert_eq!(aside.len(), 1);
    assert_eq!(fs::read_to_string(place.path("images").join(&aside[0])).unwrap(), "{ \"version\": 1, \"ima");
    assert_eq!(place.count("layers"), 3);
    // The next start finds a whole table.
    let place = place.reopen().await;
    assert_eq!((place.store.list().len(), beginning(&place, "names.json.damaged-").len()), (2, 1));

    // Both tables gone: the images stay all the same, without names.
    fs::write(place.path("images/names.json.old"), "").unwrap();
    fs::write(place.path("images/names.json"), "").unwrap();
    let place = place.reopen().await;
    assert_eq!(place.store.list().len(), 2);
    assert!(place.store.list().iter().all(|image| image.tags.is_empty()));
    // A newer berthd's is not damaged.
    fs::write(place.path("images/names.json"), r#"{"version":9,"images":[]}"#).unwrap();
    let error = Store::open(place.directory.path(), &settings()).await.unwrap_err();
    assert_eq!(error.kind, Kind::Precondition);
}

/// A file system of its own, mounted nowhere: it goes with the descriptor.
fn small_disk(size: &str) -> std::os::fd::OwnedFd {
    use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};
    let context = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
    rustix::mount::fsconfig_set_string(&context, "size", size).unwrap();
    rustix::mount::fsconfig_create(&context).unwrap();
    rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).unwrap()
}

fn fill(path: &Path) {
    use std::io::Write;
    let mut file = fs::File::create(path).unwrap();
    while file.write_all(&[1; 4096]).is_ok() {}
}

#[tokio::test]
async fn an_image_can_be_removed_from_a_full_disk_and_one_that_cannot_fit_is_refused_with_what_is_missing() {
    use std::os::fd::AsRawFd;
    let disk = small_disk("4m");
    let root = Path::new("/proc/self/fd").join(disk.as_raw_fd().to_string());
    let store = Store::open(&root, &settings()).await.unwrap();
    let directory = tempfile::tempdir().unwrap();
    let archive = directory.path().join("app.tar");
    fs::write(&archive, tar_up(&app().layout("app"))).unwrap();
    store.import(&archive, None).await.unwrap();
    fill(&root.join("filler"));

    let server = Server::new().await;
    let big = Made::packed("big", vec![super::fixture::noise_id()], vec![super::fixture::noise()]);
    let error = store.pull(request(&server.offer(&big, "v1"))).await.unwrap_err();
    assert_eq!(error.kind, Kind::Exhausted, "{}", error.chain());
    let told = error.chain();
    let place = root.join("images").display().to_string();
    assert!(told.contains(&place) && told.contains("are missing") && told.contains("prune"), "{told}");
    assert!(server.asked(&blob(&big.layers[0])).is_empty(), "nothing is fetched for nothing");

    store.remove("app").await.unwrap();
    assert!(store.list().is_empty());
    assert_eq!(fs::read_dir(root.join("images/layers")).unwrap().count(), 0);
}

#[tokio::test]
async fn pruning_takes_what_nobody_uses_and_leaves_what_is_pinned() {
    let place = Place::with(|settings| settings.pinned = vec!["docker.io/library/pinned:*".into()]).await;
    let used = place.import(&app(), "app:v1").await;
    place.import(&Made::new("pinned", &[&[("p", "p")]]), "pinned:v1").await;
    let old = place.import(&Made::new("old", &[&[("o", "o")]]), "moving:v1").await;
    let new = place.import(&Made::new("new", &[&[("n", "n")]]), "moving:v1").await;
    fs::write(place.path("images/partial/half"), "1234").unwrap();
    place.store.hold("app:v1", "c1").unwrap();
    assert!(place.store.find("pinned:v1").unwrap().pinned && !used.pinned);
    let (images, downloads) = place.store.shares().await.unwrap();
    assert_eq!((images.total, images.active), (4, 1));
    assert_eq!((downloads.total, downloads.active), (1, 0));
    assert!(images.reclaimable_bytes > 0 && images.reclaimable_bytes < images.bytes);

    let before = place.store.usage().unwrap().used_bytes;
    let pruned = place.store.prune(Unused::Untagged).await.unwrap();
    assert_eq!((pruned.images, pruned.downloads), (vec![old.id], 1));
    assert_eq!(pruned.bytes, before - place.store.usage().unwrap().used_bytes);
    let pruned = place.store.prune(Unused::Any).await.unwrap();
    assert_eq!(pruned.images, [new.id]);
    let mut left: Vec<String> = place.store.list().into_iter().flat_map(|image| image.tags).collect();
    left.sort();
    assert_eq!(left, ["docker.io/library/app:v1", "docker.io/library/pinned:v1"]);
}
