//! Layers whose blobs are gone: what they take, what still gives them again, what is damaged.

use std::{
    fs,
    io::Read,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use tokio::sync::mpsc;

use super::{
    fixture::{Made, Place, app, blob, gzip, request, tar_of},
    server::Server,
};
use crate::image::{
    Finding, Outcome, Repair,
    digest::Digest,
    tape::Replay,
    unpack::{self, Keep},
};

/// A pulled image's layers, lowest first.
async fn pulled(place: &Place, server: &Server, made: &Made) -> Vec<PathBuf> {
    place.store.pull(request(&server.offer(made, "v1"))).await.unwrap();
    let mut lowers = place.store.hold(&made.id.to_string(), "look").unwrap().lowers;
    place.store.release("look").unwrap();
    lowers.reverse();
    lowers.into_iter().map(|fs| fs.parent().unwrap().to_owned()).collect()
}

async fn check(place: &Place, repair: Repair) -> Vec<Finding> {
    let (sender, mut receiver) = mpsc::channel(64);
    place.store.check(repair, sender).await.unwrap();
    std::iter::from_fn(|| receiver.try_recv().ok()).collect()
}

fn asked(server: &Server, made: &Made) -> Vec<usize> {
    made.layers.iter().map(|layer| server.asked(&blob(layer)).len()).collect()
}

/// Bytes of blocks, of all below.
fn taken(path: &Path) -> u64 {
    let metadata = fs::symlink_metadata(path).unwrap();
    let below = match metadata.is_dir() {
        true => fs::read_dir(path).unwrap().map(|entry| taken(&entry.unwrap().path())).sum(),
        false => 0,
    };
    below + metadata.blocks() * 512
}

#[tokio::test]
async fn a_pulled_image_takes_little_more_than_its_files() {
    let (place, server) = (Place::new().await, Server::new().await);
    // Of noise, so that a blob is as big as the files.
    let mut state = 1u64;
    let noise: String = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        char::from(33 + (state >> 58) as u8)
    })
    .take(4 << 20)
    .collect();
    let made = Made::new("big", &[&[("noise", &noise), ("more", &noise)]]);
    let layers = pulled(&place, &server, &made).await;
    assert!(!layers[0].join("blob").exists() && layers[0].join("tape").exists());
    let (all, files) = (taken(&place.path("images/layers")), taken(&layers[0].join("fs")));
    assert!(all * 10 <= files * 11, "{all} for {files}");
    let used = place.store.usage().unwrap().used_bytes;
    assert_eq!(used, super::used::du(&place.path("images")).0);
    let place = place.reopen().await;
    assert_eq!(place.store.usage().unwrap().used_bytes, used);
    assert_eq!(check(&place, Repair::No).await, []);
}

#[tokio::test]
async fn what_is_not_content_is_put_right_without_the_registry() {
    let (place, server, made) = (Place::new().await, Server::new().await, app());
    let layers = pulled(&place, &server, &made).await;
    let before = asked(&server, &made);
    fs::set_permissions(layers[1].join("fs/app"), fs::Permissions::from_mode(0o777)).unwrap();
    fs::write(layers[1].join("fs/strange"), "").unwrap();
    let found = check(&place, Repair::Yes).await;
    assert!(matches!(found[0].outcome, Outcome::Repaired(_)), "{found:?}");
    assert_eq!(check(&place, Repair::No).await, []);
    assert_eq!(asked(&server, &made), before);
    assert_eq!((place.count("tmp"), place.count("layers")), (0, 2));
}

#[tokio::test]
async fn a_damaged_file_is_named_and_its_layer_fetched_again_and_no_other() {
    type Harm = fn(&Path);
    let rows: [(Harm, &str); 5] = [
        (|layer| fs::write(layer.join("fs/app"), "54321").unwrap(), "\"app\": its content is another"),
        (|layer| fs::write(layer.join("fs/app"), "1").unwrap(), "\"app\": it has 1 bytes instead of 5"),
        (|layer| fs::remove_file(layer.join("fs/app")).unwrap(), "\"app\": it is missing"),
        (
            |layer| {
                fs::remove_file(layer.join("fs/app")).unwrap();
                fs::create_dir(layer.join("fs/app")).unwrap();
            },
            "\"app\": it is no file any more",
        ),
        (
            |layer| {
                let mut tape = fs::read(layer.join("tape")).unwrap();
                *tape.last_mut().unwrap() ^= 1;
                fs::write(layer.join("tape"), tape).unwrap();
            },
            "/tape: its ",
        ),
    ];
    for (harm, words) in rows {
        let (place, server, made) = (Place::new().await, Server::new().await, app());
        let layers = pulled(&place, &server, &made).await;
        let before = asked(&server, &made);
        harm(&layers[1]);
        let out = place.path("out.tar");
        let error = place.store.save(&[made.id.to_string()], &out).await.unwrap_err().chain();
        assert!(error.contains("image check --repair"), "{error}");
        assert!(!out.exists() && !place.path("out.tar.partial").exists());
        let found = check(&place, Repair::No).await;
        assert!(found[0].problem.contains(words), "{words}: {found:?}");
        let found = check(&place, Repair::Yes).await;
        assert_eq!(found[0].outcome, Outcome::Repaired("fetched again".into()));
        assert_eq!(asked(&server, &made), [before[0], before[1] + 1]);
        assert_eq!(check(&place, Repair::No).await, []);
        assert_eq!((place.count("tmp"), place.count("layers")), (0, 2));
    }
}

#[tokio::test]
async fn what_is_saved_without_blobs_is_the_same_image_and_with_them_the_same_manifest() {
    let (server, made) = (Server::new().await, app());
    for keep in [true, false] {
        let place = Place::with(|settings| settings.keep_blobs = keep).await;
        pulled(&place, &server, &made).await;
        let out = place.path("out.tar");
        place.store.save(&[made.id.to_string()], &out).await.unwrap();
        let other = Place::new().await;
        let images = other.store.import(&out, Some("app:v1")).await.unwrap();
        assert_eq!(images[0].id, made.id.to_string());
        let same = other.path("images/blobs").join(made.manifest.hex()).exists();
        assert_eq!(same, keep);
        assert_eq!(check(&other, Repair::No).await, []);
        // And once more: a loaded archive's layers go out as they came in.
        let again = other.path("again.tar");
        other.store.save(&[made.id.to_string()], &again).await.unwrap();
        let layers = |path: &Path| {
            let mut archive = tar::Archive::new(fs::File::open(path).unwrap());
            let names = archive.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().into_owned());
            let names: Vec<PathBuf> = names.collect();
            made.diff_ids.iter().filter(|id| names.iter().any(|name| name.ends_with(id.hex()))).count()
        };
        let plain = if keep { 0 } else { 2 };
        assert_eq!((layers(&out), layers(&again)), (plain, plain));
    }
}

/// Unpacks with a tape; gives what that gives.
fn replayed(tar: &[u8]) -> Option<Vec<u8>> {
    let place = tempfile::tempdir().unwrap();
    let directory = place.path();
    fs::write(directory.join("blob"), gzip(tar)).unwrap();
    let unpacked =
        unpack::unpack(&directory.join("blob"), &Digest::of(tar), directory, 1 << 30, Keep::Tape).unwrap();
    let tape = unpacked.tape?;
    let mut again = Vec::new();
    Replay::open(directory).unwrap().read_to_end(&mut again).unwrap();
    assert_eq!(again.len() as u64, tape.tar_bytes);
    assert_eq!(Digest::of(&fs::read(directory.join("tape")).unwrap()), tape.digest);
    Some(again)
}

#[test]
fn a_tape_gives_the_tar_again_or_there_is_none() {
    let add = |files: &[(&str, tar::EntryType, &str, &[u8])]| {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, kind, link, content) in files {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(*kind);
            header.set_mode(0o644);
            header.set_size(content.len() as u64);
            if !link.is_empty() {
                header.set_link_name(link).unwrap();
            }
            builder.append_data(&mut header, name, *content).unwrap();
        }
        builder.into_inner().unwrap()
    };
    use tar::EntryType::{Directory, Link, Regular, Symlink};
    let long = "n".repeat(200);
    let plain = add(&[
        ("dir", Directory, "", b""),
        ("dir/file", Regular, "", &[7; 100_000]),
        ("dir/block", Regular, "", &[8; 512]),
        ("dir/empty", Regular, "", b""),
        ("dir/.wh.gone", Regular, "", b"a whiteout with content"),
        ("dir/hard", Link, "dir/file", b""),
        ("link", Symlink, "dir", b""),
        ("link/through", Regular, "", b"by a symlink"),
        (&long, Regular, "", b"long"),
    ]);
    assert_eq!(replayed(&plain).as_ref(), Some(&plain));
    // What follows the end, and an end that was left out.
    let trailing = [&plain[..], b"what follows"].concat();
    assert_eq!(replayed(&trailing), Some(trailing.clone()));
    let open = tar_of(&[("a", "1")])[..513].to_vec();
    assert_eq!(replayed(&open), Some(open.clone()));
    // A whiteout has no content that could be lost.
    let hidden = add(&[(".wh.x", Regular, "", b""), ("x", Regular, "", b"x")]);
    assert_eq!(replayed(&hidden).as_ref(), Some(&hidden));
    for lost in [
        add(&[("twice", Regular, "", b"1"), ("twice", Regular, "", b"2")]),
        add(&[("d/file", Regular, "", b"1"), ("d", Regular, "", b"2")]),
        add(&[
            ("d", Directory, "", b""),
            ("l", Symlink, "d", b""),
            ("l/f", Regular, "", b"1"),
            ("l", Directory, "", b""),
        ]),
    ] {
        assert_eq!(replayed(&lost), None);
    }
}

/// A layer of which no tape can be made is there as before.
#[tokio::test]
async fn a_layer_that_writes_a_file_twice_keeps_its_blob() {
    let (place, server) = (Place::new().await, Server::new().await);
    let tar = tar_of(&[("twice", "1"), ("twice", "22")]);
    let made = Made::packed("twice", vec![Digest::of(&tar)], vec![gzip(&tar)]);
    let layers = pulled(&place, &server, &made).await;
    assert!(layers[0].join("blob").exists() && !layers[0].join("tape").exists());
    let before = asked(&server, &made);
    fs::write(layers[0].join("fs/twice"), "xx").unwrap();
    assert!(matches!(check(&place, Repair::Yes).await[0].outcome, Outcome::Repaired(_)));
    assert_eq!(asked(&server, &made), before);
    let place = place.reopen().await;
    place.store.save(&[made.id.to_string()], &place.path("out.tar")).await.unwrap();
    assert_eq!(check(&place, Repair::No).await, []);
}
