//! Images that try to reach out of their root: while their layers are unpacked, or when a container starts.

use crate::entry::Entry;
use crate::image::Image;
use crate::layer::Layer;
use std::path::Path;

/// The file that most of them try to leave outside of their root, in `/`, in `/tmp` or beside the store.
pub const ESCAPED: &str = "berth-escaped";

/// Returns images that try to write, link or remove outside while being unpacked, or that mislead the mounts
/// of a container. Each may be refused or unpacked without harm, but must leave the host as it was.
pub fn escaping_images() -> Vec<(&'static str, Image)> {
    escaping_images_on(&Image::new())
}

/// The same on top of an image: with the fixture's, their containers have a program to run.
pub fn escaping_images_on(base: &Image) -> Vec<(&'static str, Image)> {
    let mut images = Vec::new();
    for (name, layers) in names().into_iter().chain(links()).chain(whiteouts()).chain(mount_points()) {
        let image = layers.into_iter().fold(base.clone(), |image, layer| image.layer(layer.as_added()));
        images.push((name, image));
    }
    images
}

type Case = (&'static str, Vec<Layer>);

/// Names that lead upwards.
fn names() -> Vec<Case> {
    let write = |path: &str| vec![Layer::new().file(path, 0o644, "escaped\n")];
    vec![
        ("dot-dot", write(&format!("../{ESCAPED}"))),
        ("dot-dot-far", write(&format!("{}tmp/{ESCAPED}", "../".repeat(32)))),
        ("dot-dot-inside", write(&format!("srv/../../../../../../../../../../tmp/{ESCAPED}"))),
        ("dot-dot-only", write("..")),
        ("absolute", write(&format!("/tmp/{ESCAPED}"))),
        ("absolute-twice", write(&format!("//tmp//{ESCAPED}"))),
        ("empty-name", write("")),
    ]
}

/// Links that later entries go through.
fn links() -> Vec<Case> {
    let to = |target: &str| Layer::new().symlink("out", target);
    let inside = format!("out/{ESCAPED}");
    let up = "../".repeat(32);
    vec![
        ("symlink-parent", vec![to("/tmp").file(&inside, 0o644, "escaped\n")]),
        ("symlink-parent-root", vec![to("/").file(&format!("out/tmp/{ESCAPED}"), 0o644, "escaped\n")]),
        ("symlink-parent-relative", vec![to(&format!("{up}tmp")).file(&inside, 0o644, "escaped\n")]),
        ("symlink-parent-lower", vec![to("/tmp"), Layer::new().file(&inside, 0o644, "escaped\n")]),
        ("symlink-parent-directory", vec![to("/tmp").directory(&inside, 0o777)]),
        ("symlink-parent-mode", vec![to("/tmp").directory("out", 0o700)]),
        ("symlink-last", vec![to(&format!("/tmp/{ESCAPED}")).file("out", 0o644, "escaped\n")]),
        (
            "symlink-chain",
            vec![Layer::new().symlink("one", "/tmp").symlink("two", "one").file(
                &format!("two/{ESCAPED}"),
                0o644,
                "x",
            )],
        ),
        ("hard-link-dot-dot", vec![Layer::new().hard_link("stolen", &format!("{up}etc/passwd"))]),
        ("hard-link-absolute", vec![Layer::new().hard_link("stolen", "/etc/hostname")]),
        (
            "hard-link-through-symlink",
            vec![Layer::new().symlink("out", "/etc").hard_link("stolen", "out/hostname")],
        ),
        // A link to a link: writing to the second must not write to what the first points at.
        (
            "hard-link-to-symlink",
            vec![to(&format!("/tmp/{ESCAPED}")).hard_link("second", "out").file(
                "second",
                0o644,
                "escaped\n",
            )],
        ),
    ]
}

/// Whiteouts of what is not the layer's.
fn whiteouts() -> Vec<Case> {
    let link = || Layer::new().symlink("out", "/tmp");
    let mark = |path: &str| vec![Layer::new().directory("srv", 0o755).file(path, 0o644, "")];
    vec![
        ("whiteout-through-symlink", vec![link(), Layer::new().whiteout(&format!("out/{ESCAPED}"))]),
        ("opaque-through-symlink", vec![link(), Layer::new().opaque("out")]),
        ("whiteout-dot-dot", mark("srv/.wh...")),
        ("whiteout-dot", mark("srv/.wh..")),
        ("whiteout-nothing", mark("srv/.wh.")),
        ("whiteout-outside", vec![Layer::new().whiteout(&format!("../{ESCAPED}"))]),
    ]
}

/// Where a container gets its mounts and where its files are looked up.
fn mount_points() -> Vec<Case> {
    let linked =
        |path: &str, target: &str| vec![Layer::new().whiteout(path), Layer::new().symlink(path, target)];
    let etc = || Layer::new().directory("etc", 0o755);
    vec![
        ("dev-symlink", linked("dev", "/tmp")),
        ("dev-symlink-up", linked("dev", "../../../../../../../../tmp")),
        ("proc-symlink", linked("proc", "/tmp")),
        ("sys-symlink", linked("sys", "/tmp")),
        ("etc-symlink", linked("etc", "/tmp")),
        ("dev-file", vec![Layer::new().whiteout("dev"), Layer::new().file("dev", 0o644, "")]),
        ("hosts-symlink", vec![etc().symlink("etc/hosts", &format!("/tmp/{ESCAPED}"))]),
        ("resolv-symlink", vec![etc().symlink("etc/resolv.conf", &format!("/tmp/{ESCAPED}"))]),
        ("passwd-symlink", vec![etc().whiteout("etc/passwd"), etc().symlink("etc/passwd", "/etc/shadow")]),
        // Whoever opens it to look for a user waits for ever.
        ("passwd-fifo", vec![etc().whiteout("etc/passwd"), etc().with(Entry::fifo("etc/passwd", 0o644))]),
        ("passwd-directory", vec![etc().whiteout("etc/passwd"), etc().directory("etc/passwd", 0o755)]),
    ]
}

/// Names what escaping images left outside; empty if all held. `beside` is the directory that holds the
/// store or the root that was tried.
pub fn escaped(beside: &Path) -> Vec<std::path::PathBuf> {
    let places = beside.ancestors().chain([Path::new("/tmp")]);
    places.map(|place| place.join(ESCAPED)).filter(|path| path.symlink_metadata().is_ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case_builds_and_has_its_own_name() {
        let images = escaping_images();
        let mut names: Vec<&str> = images.iter().map(|(name, _)| *name).collect();
        for (name, image) in &images {
            assert!(!image.build().unwrap().layers.is_empty(), "{name}");
        }
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), images.len());
    }

    #[test]
    fn the_link_is_written_before_what_goes_through_it() {
        let (_, image) = escaping_images().into_iter().find(|(name, _)| *name == "symlink-parent").unwrap();
        let archive = &image.build().unwrap().archives[0];
        let mut archive = tar::Archive::new(archive.as_slice());
        let paths: Vec<String> = archive
            .entries()
            .unwrap()
            .map(|entry| String::from_utf8_lossy(&entry.unwrap().path_bytes()).into_owned())
            .collect();
        assert_eq!(paths, ["out".to_owned(), format!("out/{ESCAPED}")]);
    }
}
