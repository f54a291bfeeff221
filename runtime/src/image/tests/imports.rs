//! Import and save.

use std::fs;

use serde_json::json;

use super::fixture::{Made, Place, config_of, gzip, tar_of, tar_up, write_directory};
use crate::{Kind, image::digest::Digest};

fn two_layers() -> Made {
    Made::new("two", &[&[("a", "1"), ("b", "1")], &[("b", "2")]])
}

#[tokio::test]
async fn an_oci_layout_is_read_from_a_directory_and_from_every_kind_of_tar() {
    let made = two_layers();
    let tar = tar_up(&made.layout("r.io/app:v1"));
    let sources = [tar.clone(), gzip(&tar), zstd::encode_all(&tar[..], 1).unwrap()];
    for (number, bytes) in sources.iter().enumerate() {
        let place = Place::new().await;
        let file = place.path("x.tar");
        fs::write(&file, bytes).unwrap();
        let images = place.store.import(&file, None).await.unwrap();
        assert_eq!(images[0].id, made.id.to_string(), "{number}");
        assert_eq!((images[0].tags.as_slice(), images[0].size_bytes), (&["r.io/app:v1".to_owned()][..], 3));
        assert_eq!(place.count("tmp"), 0, "{number}");
    }
    let place = Place::new().await;
    let layout = place.path("layout");
    write_directory(&layout, &made.layout("app"));
    let images = place.store.import(&layout, Some("other:v2")).await.unwrap();
    assert_eq!(images[0].tags, ["docker.io/library/other:v2"]);
    let snapshot = place.store.hold(&images[0].id, "holder").unwrap();
    let top = |index: usize, name: &str| fs::read_to_string(snapshot.lowers[index].join(name));
    assert_eq!(
        (top(0, "b").unwrap(), top(1, "b").unwrap(), top(1, "a").unwrap()),
        ("2".into(), "1".into(), "1".into())
    );
    assert!(top(0, "a").is_err());
}

/// What `docker save` wrote before it wrote OCI layouts: equal layers are links to each other.
fn docker_archive(links_to: &str) -> (Vec<u8>, Digest) {
    let layer = tar_of(&[("a", "1")]);
    let other = tar_of(&[("b", "1")]);
    let config = config_of("docker", &[Digest::of(&layer), Digest::of(&other), Digest::of(&layer)]);
    let id = Digest::of(&config);
    let manifest = json!([{
        "Config": format!("{}.json", id.hex()),
        "RepoTags": ["app:v1", "r.io/x:v2"],
        "Layers": ["one/layer.tar", "two/layer.tar", "three/layer.tar"],
    }]);
    let files = [
        ("one/layer.tar".to_owned(), layer),
        ("two/layer.tar".to_owned(), gzip(&other)),
        (format!("{}.json", id.hex()), config),
        ("manifest.json".to_owned(), manifest.to_string().into_bytes()),
    ];
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in &files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        builder.append_data(&mut header, name, &content[..]).unwrap();
    }
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    builder.append_link(&mut header, "three/layer.tar", links_to).unwrap();
    (builder.into_inner().unwrap(), id)
}

#[tokio::test]
async fn a_docker_archive_is_read_with_its_links_and_both_packings() {
    let place = Place::new().await;
    let (bytes, id) = docker_archive("../one/layer.tar");
    fs::write(place.path("x.tar"), gzip(&bytes)).unwrap();
    let images = place.store.import(&place.path("x.tar"), None).await.unwrap();
    assert_eq!(images[0].id, id.to_string());
    assert_eq!(images[0].tags, ["docker.io/library/app:v1", "r.io/x:v2"]);
    // Overlayfs refuses a directory twice.
    assert_eq!(place.store.hold("app:v1", "h").unwrap().lowers.len(), 2);
}

#[tokio::test]
async fn links_out_of_an_archive_are_refused() {
    for (link, cause) in [
        ("../../etc/passwd", "leads out"),
        ("/etc/passwd", "lacks"),
        ("../missing", "lacks"),
        ("../three/layer.tar", "go round"),
    ] {
        let place = Place::new().await;
        fs::write(place.path("x.tar"), docker_archive(link).0).unwrap();
        let error = place.store.import(&place.path("x.tar"), None).await.unwrap_err();
        assert_eq!(error.kind, Kind::Invalid, "{link}");
        assert!(error.chain().contains(cause), "{link}: {}", error.chain());
        assert_eq!((place.count("tmp"), place.count("layers"), place.count("blobs")), (0, 0, 0), "{link}");
    }
}

#[tokio::test]
async fn broken_archives_are_refused_and_leave_nothing() {
    let made = two_layers();
    let with = |change: &dyn Fn(&mut Made)| {
        let mut made = made.clone();
        change(&mut made);
        tar_up(&made.layout("app"))
    };
    let tar = tar_up(&made.layout("app"));
    let layer = made.layers[1].clone();
    let rows: [(Vec<u8>, &str); 7] = [
        (tar[..520].to_vec(), "cut short"),
        (b"nonsense".to_vec(), "cut short"),
        (tar_up(&[("x".into(), vec![])]), "neither index.json"),
        (tar_up(&[("index.json".to_owned(), b"{}".to_vec())]), "malformed"),
        (with(&|made| made.blobs.get_mut(&layer).unwrap().push(0)), "or more, the manifest says"),
        (with(&|made| made.blobs.get_mut(&layer).unwrap()[12] ^= 1), "its content has the digest"),
        (with(&|made| drop(made.blobs.remove(&layer))), "lacks blobs/sha256"),
    ];
    for (bytes, cause) in rows {
        let place = Place::new().await;
        fs::write(place.path("x.tar"), bytes).unwrap();
        let error = place.store.import(&place.path("x.tar"), None).await.unwrap_err();
        assert!(error.chain().contains(cause), "{cause}: {}", error.chain());
        assert!(place.store.list().is_empty());
        assert_eq!((place.count("tmp"), place.count("layers"), place.count("blobs")), (0, 0, 0), "{cause}");
    }
    let wrong = Made::packed("wrong", vec![Digest::of(b"x")], vec![gzip(&tar_of(&[("a", "")]))]);
    let place = Place::new().await;
    fs::write(place.path("x.tar"), tar_up(&wrong.layout("app"))).unwrap();
    let error = place.store.import(&place.path("x.tar"), None).await.unwrap_err();
    assert!(error.chain().contains("diff id is"), "{}", error.chain());
    assert_eq!((place.count("tmp"), place.count("layers")), (0, 0));
    let error = place.store.import(&place.path("missing"), None).await.unwrap_err();
    assert_eq!(error.kind, Kind::NotFound);
}

#[tokio::test]
async fn what_is_saved_is_the_same_image_when_read_again() {
    let made = two_layers();
    let place = Place::new().await;
    place.import(&made, "app:v1").await;
    place.import(&made, "app:v2").await;
    // The same content packed otherwise: the layers here stay, so the manifest is written anew.
    let plain = Made::packed(
        "plain",
        made.diff_ids.clone(),
        vec![tar_of(&[("a", "1"), ("b", "1")]), tar_of(&[("b", "2")])],
    );
    place.import(&plain, "plain:v1").await;
    assert_eq!(place.count("layers"), 2);
    let out = place.path("out.tar");
    let names = ["app:v1", "app:v2", "plain:v1"].map(str::to_owned);
    place.store.save(&names, &out).await.unwrap();
    assert!(!place.path("out.tar.partial").exists());

    let other = Place::new().await;
    let mut images = other.store.import(&out, None).await.unwrap();
    images.sort_by_key(|image| std::cmp::Reverse(image.tags.len()));
    assert_eq!((&images[0].id, &images[1].id), (&made.id.to_string(), &plain.id.to_string()));
    assert_eq!(images[0].tags, ["docker.io/library/app:v1", "docker.io/library/app:v2"]);
    assert_eq!(images[1].tags, ["docker.io/library/plain:v1"]);

    let error = place.store.save(&["none".to_owned()], &out).await.unwrap_err();
    assert_eq!(error.kind, Kind::NotFound);
}
