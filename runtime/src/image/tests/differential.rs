//! An odd layer unpacked here and by umoci: the same, file by file.

use std::{fs, io::Write, path::Path, process::Command};

use serde_json::json;

use super::fixture::{Made, Place, gzip, tar_up, write_directory};
use crate::image::{compare, digest::Digest, document::OCI_MANIFEST};

/// Entries as tools write them, and as none does.
fn odd() -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut put =
        |pax: &[(&str, &[u8])], name: &str, kind, link: &str, content: &[u8], who: (u32, u64, u64)| {
            builder.append_pax_extensions(pax.iter().copied()).unwrap();
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(kind);
            header.set_mode(who.0);
            header.set_uid(who.1);
            header.set_gid(who.2);
            header.set_mtime(1_234_567);
            header.set_size(content.len() as u64);
            if !link.is_empty() {
                header.set_link_name(link).unwrap();
            }
            if kind == tar::EntryType::Char {
                header.set_device_major(1).unwrap();
                header.set_device_minor(3).unwrap();
            }
            builder.append_data(&mut header, name, content).unwrap();
        };
    use tar::EntryType as E;
    let long = format!("dir/{}/{}", "d".repeat(120), "f".repeat(200));
    let parent = long.rsplit_once('/').unwrap().0.to_owned();
    put(&[], "dir/", E::Directory, "", b"", (0o2775, 1, 2));
    put(&[], "dir/su", E::Regular, "", b"su", (0o6755, 70_000, 80_000));
    put(&[], "dir/hard", E::Link, "dir/su", b"", (0o6755, 70_000, 80_000));
    put(&[("mtime", b"12.123456789")], "dir/nanos", E::Regular, "", b"n", (0o600, 0, 0));
    put(&[("SCHILY.xattr.user.note", b"a\nb")], "dir/noted", E::Regular, "", b"x", (0o644, 0, 0));
    put(&[], "dangling", E::Symlink, "../../nowhere", b"", (0o777, 5, 6));
    put(&[], "null", E::Char, "", b"", (0o666, 0, 0));
    put(&[], "pipe", E::Fifo, "", b"", (0o640, 3, 3));
    put(&[], "empty", E::Regular, "", b"", (0, 0, 0));
    put(&[], &parent, E::Directory, "", b"", (0o700, 0, 0));
    put(&[], &long, E::Regular, "", b"long", (0o644, 0, 0));
    put(&[], "twice", E::Regular, "", b"first", (0o600, 1, 1));
    put(&[], "twice", E::Regular, "", b"second", (0o644, 2, 2));
    put(&[], "Twice", E::Regular, "", b"case", (0o644, 2, 2));
    put(&[], "changes", E::Regular, "", b"file", (0o644, 0, 0));
    put(&[], "changes", E::Symlink, "dir", b"", (0o777, 0, 0));
    put(&[], "big", E::Regular, "", &vec![7; 300_000], (0o644, 0, 0));
    builder.into_inner().unwrap()
}

fn skip(test: &str, reason: &str) {
    let line = format!("skipped: {test}: {reason}\n");
    eprint!("{line}");
    if let Some(path) = std::env::var_os("BERTH_SKIPS") {
        fs::File::options().append(true).create(true).open(path).unwrap().write_all(line.as_bytes()).unwrap();
    }
}

fn no_umoci(test: &str) -> bool {
    let absent = Command::new("umoci").arg("--version").output().is_err();
    if absent {
        skip(test, "umoci is not installed");
    }
    absent
}

/// Writes the image as a layout for umoci, which knows it by `<directory>:v1`.
fn write_layout(made: &Made, to: &Path) {
    let mut files = made.layout("odd:v1");
    let index = json!({ "schemaVersion": 2, "manifests": [{
        "mediaType": OCI_MANIFEST, "digest": made.manifest, "size": made.blobs[&made.manifest].len(),
        "annotations": { "org.opencontainers.image.ref.name": "v1" },
    }]});
    files.iter_mut().find(|(name, _)| name == "index.json").unwrap().1 = index.to_string().into_bytes();
    write_directory(to, &files);
}

fn umoci(words: &[&str]) {
    let done = Command::new("umoci").args(words).output().unwrap();
    assert!(done.status.success(), "{words:?}: {}", String::from_utf8_lossy(&done.stderr));
}

#[tokio::test]
async fn an_odd_layer_is_unpacked_as_umoci_does() {
    if no_umoci("an_odd_layer_is_unpacked_as_umoci_does") {
        return;
    }
    let tar = odd();
    let made = Made::packed("odd", vec![Digest::of(&tar)], vec![gzip(&tar)]);
    let place = Place::new().await;
    write_layout(&made, &place.path("layout"));
    let image = format!("{}:v1", place.path("layout").display());
    let theirs = place.path("theirs");
    umoci(&["raw", "unpack", "--image", &image, theirs.to_str().unwrap()]);
    fs::write(place.path("odd.tar"), tar_up(&made.layout("odd:v1"))).unwrap();
    let images = place.store.import(&place.path("odd.tar"), None).await.unwrap();
    let ours = place.store.hold(&images[0].id, "look").unwrap().lowers.remove(0);
    assert_eq!(compare::difference(&ours, &theirs).unwrap(), None);
}

/// `umoci insert` leaves an archive's end out, and the padding of its last file.
#[tokio::test]
async fn a_layer_that_umoci_inserted_is_taken() {
    if no_umoci("a_layer_that_umoci_inserted_is_taken") {
        return;
    }
    let place = Place::new().await;
    write_layout(&Made::new("base", &[&[("base", "base")]]), &place.path("layout"));
    fs::write(place.path("file"), "of no round size").unwrap();
    let image = format!("{}:v1", place.path("layout").display());
    umoci(&["insert", "--image", &image, place.path("file").to_str().unwrap(), "/put/here"]);
    let images = place.store.import(&place.path("layout"), Some("inserted:v1")).await.unwrap();
    let top = place.store.hold(&images[0].id, "look").unwrap().lowers.remove(0);
    assert_eq!(fs::read_to_string(top.join("put/here")).unwrap(), "of no round size");
}
