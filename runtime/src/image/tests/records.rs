//! Names, holds, removal, and what is there after a crash.

use std::fs;

use super::fixture::{Made, Place};
use crate::Kind;

fn app() -> Made {
    Made::new("app", &[&[("base", "base")], &[("app", "12345")]])
}

#[tokio::test]
async fn an_image_is_found_by_every_name_it_has() {
    let place = Place::new().await;
    let made = app();
    let image = place.import(&made, "app:v1").await;
    place.import(&Made::new("other", &[&[("x", "x")]]), "other").await;
    let hex = made.id.hex();
    for name in ["app:v1", "docker.io/library/app:v1", &image.id, hex, &hex[..12]] {
        assert_eq!(place.store.find(name).map(|image| image.id), Some(image.id.clone()), "{name}");
    }
    for name in ["", "app", "app:v2", "sha256:", "../x", "zz"] {
        assert!(place.store.find(name).is_none(), "{name}");
    }
    assert_eq!(place.store.list().len(), 2);
    assert_eq!(place.store.find("app:v1").unwrap().size_bytes, 9);
}

#[tokio::test]
async fn a_tag_that_moves_leaves_the_old_image_untagged() {
    let place = Place::new().await;
    let old = place.import(&app(), "app").await;
    let new = place.import(&Made::new("new", &[&[("base", "base")]]), "app").await;
    assert_eq!(place.store.find("app").unwrap().id, new.id);
    assert!(place.store.find(&old.id).unwrap().tags.is_empty());
    let place = place.reopen().await;
    assert_eq!(place.store.find("app").unwrap().id, new.id);
    assert!(place.store.find(&old.id).unwrap().tags.is_empty());
    // They share the base.
    assert_eq!(place.count("layers"), 2);
    place.store.remove(&old.id).await.unwrap();
    assert_eq!((place.count("layers"), place.count("blobs")), (1, 2));
}

#[tokio::test]
async fn held_layers_outlive_their_image_and_a_restart() {
    let place = Place::new().await;
    let image = place.import(&app(), "app").await;
    let held = place.store.hold("app", "c1").unwrap();
    assert_eq!(place.store.hold(&image.id, "c1").unwrap().lowers, held.lowers);
    place.store.hold(&image.id, "c2").unwrap();
    place.store.remove("app").await.unwrap();
    place.store.remove("app").await.unwrap();
    assert!(place.store.list().is_empty());
    assert_eq!(place.store.hold(&image.id, "c3").unwrap_err().kind, Kind::NotFound);
    let place = place.reopen().await;
    assert_eq!(fs::read_to_string(held.lowers[0].join("app")).unwrap(), "12345");
    place.store.release("c1").unwrap();
    assert_eq!(place.count("layers"), 2);
    place.store.release("c2").unwrap();
    place.store.release("c2").unwrap();
    assert_eq!(
        (place.count("layers"), place.count("blobs"), place.count("holds"), place.count("tmp")),
        (0, 0, 0, 0)
    );
}

#[tokio::test]
async fn holders_are_ids_and_hold_one_image() {
    let place = Place::new().await;
    place.import(&app(), "app").await;
    place.import(&Made::new("other", &[&[("x", "x")]]), "other").await;
    for bad in ["", "..", "a/b", "x.new", &"a".repeat(300)] {
        assert_eq!(place.store.hold("app", bad).unwrap_err().kind, Kind::Invalid, "{bad}");
    }
    place.store.hold("app", "c1").unwrap();
    assert_eq!(place.store.hold("other", "c1").unwrap_err().kind, Kind::AlreadyExists);
}

#[tokio::test]
async fn removals_at_once_all_succeed() {
    let place = Place::new().await;
    place.import(&app(), "app").await;
    let removals = (0..8).map(|_| place.store.remove("app"));
    for removed in futures_util::future::join_all(removals).await {
        removed.unwrap();
    }
    assert_eq!((place.count("layers"), place.count("tmp")), (0, 0));
}

#[tokio::test]
async fn a_crash_leaves_only_what_the_next_opening_sweeps() {
    let place = Place::new().await;
    let image = place.import(&app(), "app").await;
    let images = place.path("images");
    // An interrupted pull, one whose layers were not named yet, a hold and names half written, a blob too many.
    fs::create_dir_all(images.join("tmp/77/fs/deep")).unwrap();
    fs::write(images.join("tmp/77/blob"), "half").unwrap();
    fs::create_dir_all(images.join("layers/50/fs")).unwrap();
    fs::create_dir_all(images.join("layers/torn/fs")).unwrap();
    fs::write(images.join("layers/50/layer.json"), "{").unwrap();
    fs::write(images.join("holds/c9.new"), "{").unwrap();
    fs::write(images.join("names.json.new"), "{").unwrap();
    fs::write(images.join("blobs").join("f".repeat(64)), "x").unwrap();
    let place = place.reopen().await;
    assert_eq!(place.store.find("app").unwrap().id, image.id);
    let counts = (place.count("tmp"), place.count("layers"), place.count("holds"), place.count("blobs"));
    assert_eq!(counts, (0, 2, 0, 2));
    // A number is never used twice.
    place.import(&Made::new("more", &[&[("more", "m")]]), "more").await;
    assert!(images.join("layers/51/fs/more").exists());
}

#[tokio::test]
async fn a_lost_layer_is_fetched_again_and_only_that() {
    let place = Place::new().await;
    let made = app();
    place.import(&made, "app").await;
    let lowers = place.store.hold("app", "c1").unwrap().lowers;
    place.store.release("c1").unwrap();
    fs::remove_file(lowers[0].parent().unwrap().join("layer.json")).unwrap();
    let place = place.reopen().await;
    assert!(place.store.find("app").is_none());
    assert_eq!(place.store.hold(&made.id.to_string(), "c1").unwrap_err().kind, Kind::NotFound);
    assert_eq!(place.count("layers"), 1);
    // An archive with that layer only is enough: the other one is here.
    let mut part = made.clone();
    part.blobs.remove(&made.layers[0]);
    place.import(&part, "app").await;
    let again = place.store.hold("app", "c1").unwrap().lowers;
    assert_eq!(again[1], lowers[1]);
    assert_ne!(again[0], lowers[0]);
}

#[tokio::test]
async fn an_unreadable_hold_stops_removal() {
    let place = Place::new().await;
    place.import(&app(), "app").await;
    fs::write(place.path("images/holds/c1"), "{").unwrap();
    let place = place.reopen().await;
    place.store.remove("app").await.unwrap();
    assert_eq!(place.count("layers"), 2);
    place.store.release("c1").unwrap();
    assert_eq!(place.count("layers"), 0);
}

#[tokio::test]
async fn a_torn_hold_is_written_again_by_its_holder() {
    let place = Place::new().await;
    let image = place.import(&app(), "app").await;
    fs::write(place.path("images/holds/c1"), "").unwrap();
    let place = place.reopen().await;
    assert!(!place.store.is_held("c1"));
    place.store.hold(&image.id, "c1").unwrap();
    assert!(place.store.is_held("c1"));
    let place = place.reopen().await;
    place.store.remove("app").await.unwrap();
    assert!(place.store.is_held("c1") && place.count("layers") == 2);
    place.store.release("c1").unwrap();
    assert!(!place.store.is_held("c1") && place.count("layers") == 0);
}
