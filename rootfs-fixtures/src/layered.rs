//! The image that holds everything a layer can, and what a container must find of it.
//!
//! ```text
//!   5  replace   files by directories, directories by files, modes; hide what was never there
//!   4  remove    whiteouts, opaque directories (marker after and before), removed and made anew
//!   3  dialect   GNU long names, `./` before names, directories that no entry makes
//!   2  content   links, attributes, owners, setuid, devices, odd and long names
//!   1  fixture   the program and a system's directories
//! ```

mod expected;

pub use expected::{Expected, Found, layered_expectations};

use crate::entry::{Device, Entry};
use crate::image::Image;
use crate::layer::{Layer, LongNames};
use crate::program::fixture_layer;
use std::io;
use std::path::Path;

/// A file capability as the kernel keeps it (version 2): cap_net_raw, permitted and effective.
pub(crate) const CAP_NET_RAW: [u8; 20] = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// Builds the image of five layers that [`layered_expectations`] describes.
///
/// # Errors
/// The program cannot be read.
pub fn layered_image(program: &Path) -> io::Result<Image> {
    Ok(Image::new()
        .layer(fixture_layer(program)?)
        .layer(content())
        .layer(dialect())
        .layer(remove())
        .layer(replace())
        .entrypoint(&["/bin/fixture"])
        .cmd(&["info"])
        .env("PATH", "/bin")
        .env("LAYERED", "yes")
        .workdir("/srv/keep")
        .stop_signal("SIGUSR1")
        .volume("/srv/volume")
        .exposed_port("8080/tcp")
        .label("berth.test", "layered"))
}

fn content() -> Layer {
    special(odd_names(ordinary()))
}

/// What later layers keep, remove and replace.
fn ordinary() -> Layer {
    let directories =
        ["keep", "gone", "gone/deep", "opaque", "opaque/sub", "late", "recreated", "dir-to-file", "hard"];
    directories
        .iter()
        .fold(Layer::new(), |layer, name| layer.directory(&format!("srv/{name}"), 0o755))
        .file("srv/keep/one", 0o644, "one\n")
        .file("srv/keep/two", 0o644, "two\n")
        .file("srv/gone/a", 0o644, "a\n")
        .file("srv/gone/deep/b", 0o644, "b\n")
        .file("srv/opaque/old", 0o644, "old\n")
        .file("srv/opaque/sub/old", 0o644, "old\n")
        .file("srv/late/old", 0o644, "old\n")
        .file("srv/recreated/old", 0o644, "old\n")
        .file("srv/replaced", 0o644, "before\n")
        .file("srv/dir-to-file/inside", 0o644, "inside\n")
        .file("srv/file-to-dir", 0o644, "a file\n")
        .file("srv/link-to-file-target", 0o644, "target\n")
        .symlink("srv/link-to-file", "link-to-file-target")
        .file("srv/hard/first", 0o640, "linked\n")
        .hard_link("srv/hard/second", "srv/hard/first")
        .hard_link("srv/hard/third", "srv/hard/first")
        .symlink("srv/absolute-link", "/srv/keep/one")
        .symlink("srv/dangling", "nowhere/at/all")
}

/// Owners, modes, attributes and nodes.
fn special(layer: Layer) -> Layer {
    layer
        .with(Entry::file("srv/owned", 0o600, "mine\n").owner(1000, 2000))
        .with(Entry::directory("srv/owned-dir", 0o750).owner(1001, 1001))
        .with(Entry::symlink("srv/owned-link", "owned").owner(1000, 1000))
        .with(Entry::file("srv/setuid", 0o4755, "setuid\n"))
        // An owner given after the mode clears these bits, unless the one who unpacks takes care.
        .with(Entry::file("srv/setuid-owned", 0o6755, "setuid\n").owner(1000, 1000))
        .with(Entry::directory("srv/setgid", 0o2775).owner(0, 2000))
        .directory("srv/sticky", 0o1777)
        .with(Entry::file("srv/attributes", 0o644, "x\n").xattr("user.berth", *b"value\0with\nall"))
        .with(Entry::directory("srv/attributes-dir", 0o755).xattr("user.berth", *b"directory"))
        .with(Entry::file("srv/ping", 0o755, "ping\n").xattr("security.capability", CAP_NET_RAW))
        .directory("srv/nodes", 0o755)
        .with(Entry::device("srv/nodes/null", 0o666, Device::Char { major: 1, minor: 3 }))
        .with(Entry::device("srv/nodes/loop", 0o660, Device::Block { major: 7, minor: 300 }).owner(0, 6))
        .with(Entry::fifo("srv/nodes/fifo", 0o620))
        // Read-only for their own owner: unpacking must not open them a second time for writing.
        .file("srv/read-only", 0o444, "read\n")
        .directory("srv/closed", 0o000)
        .file("srv/closed/inside", 0o000, "closed\n")
}

fn odd_names(layer: Layer) -> Layer {
    let names = [" leading space", "-dash", ".hidden", "new\nline", "not.wh.one", "ünïcode", "back\\slash"];
    let layer = names.iter().fold(layer.directory("srv/names", 0o755), |layer, name| {
        layer.file(&format!("srv/names/{name}"), 0o644, "odd\n")
    });
    let sizes = [0, 1, 511, 512, 513, 70_000];
    let layer = sizes.iter().fold(layer.directory("srv/sizes", 0o755), |layer, size| {
        layer.file(&format!("srv/sizes/{size}"), 0o644, vec![b'x'; *size])
    });
    long_names(layer, "pax")
}

/// A name of 200 bytes, a path of over 600, and a link whose target is as long.
fn long_names(layer: Layer, dialect: &str) -> Layer {
    let (deep, file) = long_path(dialect);
    let parents = parents(&deep).into_iter().fold(layer, |layer, path| layer.directory(&path, 0o755));
    parents
        .file(&file, 0o644, "long\n")
        .symlink(&format!("srv/{dialect}-long-link"), &format!("/{file}"))
        .hard_link(&format!("srv/{dialect}-long-hard"), &file)
}

/// The deepest directory and the file in it.
pub(crate) fn long_path(dialect: &str) -> (String, String) {
    let deep = format!("srv/{dialect}/{}/{}", "d".repeat(200), "e".repeat(200));
    let file = format!("{deep}/{}", "f".repeat(200));
    (deep, file)
}

/// All directories of a path below srv, the path among them.
fn parents(path: &str) -> Vec<String> {
    let ends = path.match_indices('/').map(|(place, _)| place).skip(1).chain([path.len()]);
    ends.map(|end| path[..end].to_owned()).collect()
}

fn dialect() -> Layer {
    long_names(Layer::new(), "gnu")
        .directory("./srv/dotted", 0o711)
        .file("./srv/dotted/file", 0o644, "dotted\n")
        .file("srv/implied/by/file", 0o644, "implied\n")
        .long_names(LongNames::Gnu)
        .as_added()
}

fn remove() -> Layer {
    Layer::new()
        .whiteout("srv/gone")
        .whiteout("srv/keep/two")
        .whiteout("srv/hard/third")
        .whiteout("srv/dangling")
        // The marker concerns lower layers only, wherever it stands.
        .opaque("srv/opaque")
        .file("srv/opaque/new", 0o644, "new\n")
        .directory("srv/late", 0o755)
        .file("srv/late/new", 0o644, "new\n")
        .opaque("srv/late")
        .directory("srv/recreated", 0o700)
        .file("srv/recreated/new", 0o644, "new\n")
        .whiteout("srv/recreated")
        .as_added()
}

fn replace() -> Layer {
    Layer::new()
        .directory("srv/keep", 0o700)
        .file("srv/replaced", 0o600, "after\n")
        .file("srv/dir-to-file", 0o644, "now a file\n")
        .directory("srv/file-to-dir", 0o755)
        .file("srv/file-to-dir/inside", 0o644, "now a directory\n")
        .file("srv/link-to-file", 0o644, "no link any more\n")
        .whiteout("srv/never-there")
}
