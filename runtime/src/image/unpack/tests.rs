//! Hostile and odd layers, made in memory, unpacked for real. As root.

use std::{
    fs,
    io::Write,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::PathBuf,
};

use tempfile::TempDir;

use super::*;
use crate::image::digest::Digest;

/// A tar under construction, with names no tool would write.
struct Layer(Vec<u8>);

impl Layer {
    fn new() -> Self {
        Self(Vec::new())
    }

    fn entry(self, name: &str, kind: u8, link: &str, content: &[u8]) -> Self {
        self.owned(name, kind, link, content, (0o644, 0, 0))
    }

    fn owned(mut self, name: &str, kind: u8, link: &str, content: &[u8], who: (u32, u64, u64)) -> Self {
        let mut header = tar::Header::new_gnu();
        let gnu = header.as_gnu_mut().unwrap();
        gnu.name[..name.len()].copy_from_slice(name.as_bytes());
        gnu.linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(tar::EntryType::new(kind));
        header.set_size(content.len() as u64);
        header.set_mode(who.0);
        header.set_uid(who.1);
        header.set_gid(who.2);
        header.set_mtime(1_000_000);
        if matches!(kind, b'3' | b'4') {
            header.set_device_major(1).unwrap();
            header.set_device_minor(3).unwrap();
        }
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn file(self, name: &str, content: &str) -> Self {
        self.entry(name, b'0', "", content.as_bytes())
    }

    fn directory(self, name: &str) -> Self {
        self.owned(name, b'5', "", b"", (0o755, 0, 0))
    }

    fn symlink(self, name: &str, to: &str) -> Self {
        self.entry(name, b'2', to, b"")
    }

    fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut body = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut length = rest + 1;
            while length != rest + length.to_string().len() {
                length = rest + length.to_string().len();
            }
            body.extend_from_slice(format!("{length} {key}=").as_bytes());
            body.extend_from_slice(value);
            body.push(b'\n');
        }
        self.entry("pax", b'x', "", &body)
    }

    fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

/// A layer unpacked, beside a victim that must stay as it is.
struct Unpacked {
    place: TempDir,
    result: Result<Written>,
}

impl Unpacked {
    fn fs(&self, name: &str) -> PathBuf {
        self.place.path().join("layer/fs").join(name)
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.fs(name)).unwrap()
    }

    fn error(&self) -> String {
        self.result.as_ref().unwrap_err().chain()
    }

    fn xattr(&self, name: &str, key: &str) -> Option<Vec<u8>> {
        let mut buffer = vec![0; 256];
        let length = rustix::fs::lgetxattr(self.fs(name), key, &mut buffer[..]).ok()?;
        buffer.truncate(length);
        Some(buffer)
    }
}

fn unpack_blob(blob: &[u8], diff_id: &Digest) -> Unpacked {
    let place = tempfile::tempdir().unwrap();
    let directory = place.path().join("layer");
    fs::create_dir(&directory).unwrap();
    fs::write(place.path().join("victim"), "untouched").unwrap();
    fs::write(directory.join("blob"), blob).unwrap();
    let result = unpack(&directory.join("blob"), diff_id, &directory, 1 << 30, Keep::Blob)
        .map(|unpacked| unpacked.written);
    Unpacked { place, result }
}

fn unpack_layer(layer: Layer) -> Unpacked {
    let tar = layer.end();
    unpack_blob(&tar, &Digest::of(&tar))
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn layers_that_lead_out_are_refused_or_kept_inside() {
    let outside = "/tmp/berth-test-escape-must-not-exist";
    let inner = &outside[1..];
    let rows: [(&str, Layer, Option<&str>); 12] = [
        ("dots", Layer::new().file("../victim", "x"), Some("\"..\"")),
        ("inner dots", Layer::new().directory("a").file("a/../../victim", "x"), Some("\"..\"")),
        ("absolute", Layer::new().file(outside, "x"), None),
        (
            "absolute parent",
            Layer::new().symlink("l", "/tmp").directory("tmp").file(&inner.replacen("tmp", "l", 1), "x"),
            None,
        ),
        ("climbing parent", Layer::new().symlink("l", "../../..").file(&format!("l/{inner}"), "x"), None),
        ("dev", Layer::new().symlink("dev", "/dev").file("dev/berth-test", "x"), Some("go round")),
        ("proc", Layer::new().symlink("p", "/proc/self/root").file("p/x", "x"), Some("leads nowhere")),
        (
            "looping parent",
            Layer::new().symlink("a", "b").symlink("b", "a").file("a/x", "x"),
            Some("go round"),
        ),
        ("file as parent", Layer::new().file("a", "").file("a/b", "x"), Some("no directory")),
        ("hard link out", Layer::new().entry("l", b'1', "../victim", b""), Some("\"..\"")),
        ("hard link to the host", Layer::new().entry("l", b'1', "/etc/passwd", b""), Some("does not hold")),
        (
            "hard link through",
            Layer::new().symlink("e", "/etc").entry("l", b'1', "e/passwd", b""),
            Some("does not hold"),
        ),
    ];
    for (name, layer, refused) in rows {
        let unpacked = unpack_layer(layer);
        match refused {
            Some(cause) => {
                assert_eq!(unpacked.result.as_ref().unwrap_err().kind, Kind::Invalid, "{name}");
                assert!(unpacked.error().contains(cause), "{name}: {}", unpacked.error());
            }
            None => {
                unpacked.result.as_ref().unwrap();
                assert_eq!(unpacked.text(inner), "x", "{name}");
            }
        }
        assert!(!PathBuf::from(outside).exists(), "{name}");
        assert!(!PathBuf::from("/dev/berth-test").exists(), "{name}");
        assert_eq!(fs::read_to_string(unpacked.place.path().join("victim")).unwrap(), "untouched", "{name}");
    }
}

#[test]
fn a_symlink_is_replaced_and_never_written_through() {
    let place = tempfile::tempdir().unwrap();
    let target = place.path().join("t");
    fs::write(&target, "untouched").unwrap();
    let link = target.to_str().unwrap();
    let unpacked =
        unpack_layer(Layer::new().symlink("f", link).file("f", "new").symlink("d", link).directory("d"));
    unpacked.result.as_ref().unwrap();
    assert_eq!(unpacked.text("f"), "new");
    assert!(fs::symlink_metadata(unpacked.fs("d")).unwrap().is_dir());
    assert_eq!(fs::read_to_string(target).unwrap(), "untouched");
}

#[test]
fn malformed_entries_are_refused() {
    let rows = [
        (Layer::new().entry("x", b'S', "", b""), "sparse"),
        (Layer::new().pax(&[("GNU.sparse.major", b"1")]).file("x", ""), "sparse"),
        (Layer::new().entry("x", b'Z', "", b""), "unknown type"),
        (Layer::new().file(".wh.", ""), "whiteout without a name"),
        (Layer::new().file(".wh...", ""), "whiteout without a name"),
        (Layer::new().file("a/.wh..", ""), "whiteout without a name"),
        (Layer::new().symlink(".", "/etc"), "root is no directory"),
        (Layer::new().symlink("x", ""), "without a target"),
        (Layer::new().pax(&[("path", b"a\0b")]).file("x", ""), "NUL"),
        (Layer::new().pax(&[("path", &[b'a'; 300])]).file("x", ""), "longer than a file system"),
        (Layer::new().pax(&[("path", &[b'/'; 5000])]).file("x", ""), "4095"),
        (Layer::new().pax(&[("uid", b"4294967295")]).file("x", ""), "out of range"),
        (Layer::new().directory("d").entry("l", b'1', "d", b""), "hard link to a directory"),
        (Layer::new().entry("l", b'1', "absent", b""), "does not hold"),
        (Layer::new().entry("l", b'1', "../victim", b""), "may lead out"),
        (Layer::new().pax(&[("size", b"-1")]).file("x", "12345"), "number is malformed"),
        (Layer::new().pax(&[("size", b"9999")]).file("x", "12345"), "cut short"),
    ];
    for (layer, cause) in rows {
        let unpacked = unpack_layer(layer);
        assert!(unpacked.error().contains(cause), "{cause}: {}", unpacked.error());
        assert_eq!(unpacked.result.unwrap_err().kind, Kind::Invalid, "{cause}");
    }
}

#[test]
fn odd_entries_are_taken_as_they_are() {
    let unpacked = unpack_layer(
        Layer::new()
            .file("readme", "small")
            .file("README", "large")
            .pax(&[("mtime", b"-1.5")])
            .file("before", "1970")
            .pax(&[("size", b"3")])
            .file("sized", "abc")
            .file("changes", "file")
            .directory("changes")
            .file("changes/inner", "x"),
    );
    unpacked.result.as_ref().unwrap();
    assert_eq!((unpacked.text("readme"), unpacked.text("README")), ("small".into(), "large".into()));
    let before = fs::symlink_metadata(unpacked.fs("before")).unwrap();
    assert_eq!((before.mtime(), before.mtime_nsec()), (-2, 500_000_000));
    assert_eq!((unpacked.text("sized"), unpacked.text("changes/inner")), ("abc".into(), "x".into()));
}

#[test]
fn attributes_that_no_file_system_takes_are_refused_in_words() {
    for (key, value) in
        [("SCHILY.xattr.user.big", vec![b'x'; 70_000]), ("SCHILY.xattr.nonsense", b"x".to_vec())]
    {
        let unpacked = unpack_layer(Layer::new().pax(&[(key, &value)]).file("x", ""));
        if unpacked.result.is_err() {
            assert!(unpacked.error().contains('x'), "{}", unpacked.error());
        }
        assert_eq!(fs::read_to_string(unpacked.place.path().join("victim")).unwrap(), "untouched");
    }
}

#[test]
fn whiteouts_become_what_overlayfs_reads() {
    let unpacked = unpack_layer(
        Layer::new()
            .directory("a")
            .file("a/.wh.gone", "")
            .file("b/.wh..wh..opq", "")
            .file("b/new", "n")
            .file(".wh..wh.plnk", "")
            .file("kept", "k")
            .file(".wh.kept", "")
            .directory("dir")
            .file("dir/x", "x")
            .file(".wh.dir", "")
            .file(".wh.later", "")
            .file("later/x", "x")
            .file(".wh.file", "")
            .file("file", "f"),
    );
    unpacked.result.as_ref().unwrap();
    let gone = fs::symlink_metadata(unpacked.fs("a/gone")).unwrap();
    assert!(gone.file_type().is_char_device());
    assert_eq!(gone.rdev(), 0);
    let opaque = |name: &str| unpacked.xattr(name, "trusted.overlay.opaque");
    assert_eq!(opaque("b"), Some(b"y".to_vec()));
    assert_eq!(opaque("a"), None);
    assert_eq!(opaque("dir"), Some(b"y".to_vec()));
    assert_eq!(opaque("later"), Some(b"y".to_vec()));
    assert_eq!((unpacked.text("kept"), unpacked.text("file")), ("k".into(), "f".into()));
    assert_eq!((unpacked.text("dir/x"), unpacked.text("later/x")), ("x".into(), "x".into()));
    assert!(!unpacked.fs(".wh..wh.plnk").exists());
}

#[test]
fn the_last_of_equal_paths_stays() {
    let unpacked = unpack_layer(
        Layer::new()
            .file("a", "1")
            .file("./a", "2")
            .directory("d")
            .file("d/x", "x")
            .directory("d/")
            .directory("r")
            .file("r/x", "x")
            .file("r", "file")
            .file("f", "file")
            .directory("f"),
    );
    unpacked.result.as_ref().unwrap();
    assert_eq!(
        (unpacked.text("a"), unpacked.text("d/x"), unpacked.text("r")),
        ("2".into(), "x".into(), "file".into())
    );
    assert!(unpacked.fs("f").is_dir());
    assert_eq!(unpacked.xattr("f", "trusted.overlay.opaque"), Some(b"y".to_vec()));
    let mut left: Vec<_> =
        fs::read_dir(unpacked.place.path().join("layer")).unwrap().map(|e| e.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["blob", "fs"]);
}

#[test]
fn owners_modes_times_devices_links_and_attributes_are_kept() {
    let unpacked = unpack_layer(
        Layer::new()
            .owned("./", b'5', "", b"", (0o711, 3, 4))
            .owned("tmp/", b'5', "", b"", (0o1777, 0, 0))
            .pax(&[
                ("SCHILY.xattr.user.note", b"a\nb"),
                ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
                ("mtime", b"12.5"),
            ])
            .owned("tmp/su", b'0', "", b"su", (0o4755, 70000, 80000))
            .entry("tmp/hard", b'1', "tmp/su", b"")
            .owned("null", b'3', "", b"", (0o666, 0, 0))
            .owned("disk", b'4', "", b"", (0o660, 0, 6))
            .owned("pipe", b'6', "", b"", (0o600, 1, 1))
            .owned("link", b'2', "../../etc/passwd", b"", (0o777, 5, 6)),
    );
    let written = *unpacked.result.as_ref().unwrap();
    assert_eq!(written, Written { bytes: 2, inodes: 7 });
    let stat = |name: &str| fs::symlink_metadata(unpacked.fs(name)).unwrap();
    let (root, tmp, su) = (stat(""), stat("tmp"), stat("tmp/su"));
    assert_eq!((root.mode() & 0o7777, root.uid(), root.gid(), root.mtime()), (0o711, 3, 4, 1_000_000));
    assert_eq!((tmp.mode() & 0o7777, tmp.mtime()), (0o1777, 1_000_000));
    assert_eq!((su.mode() & 0o7777, su.uid(), su.gid()), (0o4755, 70000, 80000));
    assert_eq!((su.mtime(), su.mtime_nsec(), su.nlink()), (12, 500_000_000, 2));
    assert_eq!(stat("tmp/hard").ino(), su.ino());
    assert_eq!(unpacked.xattr("tmp/su", "user.note"), Some(b"a\nb".to_vec()));
    assert_eq!(unpacked.xattr("tmp/su", "trusted.overlay.redirect"), None);
    assert!(stat("null").file_type().is_char_device() && stat("null").rdev() == rustix::fs::makedev(1, 3));
    assert!(stat("disk").file_type().is_block_device() && stat("disk").mode() & 0o777 == 0o660);
    assert!(stat("pipe").file_type().is_fifo());
    assert_eq!(fs::read_link(unpacked.fs("link")).unwrap(), PathBuf::from("../../etc/passwd"));
    assert_eq!((stat("link").uid(), stat("link").gid(), stat("link").mtime()), (5, 6, 1_000_000));
}

#[test]
fn every_packing_is_read_and_damage_is_told() {
    let tar = Layer::new().file("a", &"content ".repeat(5000)).end();
    let id = Digest::of(&tar);
    let zipped = gzip(&tar);
    let zstd = zstd::encode_all(&tar[..], 1).unwrap();
    let two_members = [gzip(&tar[..700]), gzip(&tar[700..])].concat();
    for blob in [&tar, &zipped, &zstd, &two_members] {
        unpack_blob(blob, &id).result.unwrap();
    }
    let garbage = [&zipped[..], b"garbage"].concat();
    let bad: [(&[u8], &str); 6] = [
        (&zipped[..zipped.len() - 20], "unpack layer"),
        (&zstd[..zstd.len() - 20], "unpack layer"),
        (&tar[..1000], "cut short"),
        (&tar[..tar.len() - 512], "diff id is"),
        (&garbage, "unpack layer"),
        (b"not a tar at all, and not packed either", "cut short"),
    ];
    for (blob, cause) in bad {
        let unpacked = unpack_blob(blob, &id);
        assert!(unpacked.error().contains(cause), "{cause}: {}", unpacked.error());
        assert_eq!(unpacked.result.unwrap_err().kind, Kind::Invalid, "{cause}");
    }
    let unpacked = unpack_blob(&zipped, &Digest::of(b"other"));
    assert!(unpacked.error().contains("diff id is"), "{}", unpacked.error());
    // What follows the archive's end counts for the diff id.
    let trailing = [&tar[..], &[0; 4096]].concat();
    unpack_blob(&gzip(&trailing), &Digest::of(&trailing)).result.unwrap();
    unpack_blob(&[], &Digest::of(b"")).result.unwrap();
}

#[test]
fn a_bomb_of_a_long_name_costs_no_memory() {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::GNULongName);
    header.set_size(10 << 30);
    header.set_cksum();
    let mut tar = header.as_bytes().to_vec();
    tar.resize(1 << 20, b'a');
    let unpacked = unpack_blob(&gzip(&tar), &Digest::of(&tar));
    assert!(unpacked.error().contains("header extension of 10737418240 bytes"), "{}", unpacked.error());
}

/// A file system of its own, mounted nowhere: it goes with the descriptor.
fn small_disk(size: &str) -> std::os::fd::OwnedFd {
    use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};
    let context = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
    rustix::mount::fsconfig_set_string(&context, "size", size).unwrap();
    rustix::mount::fsconfig_create(&context).unwrap();
    rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).unwrap()
}

#[test]
fn a_full_disk_is_exhausted_and_names_the_path() {
    use std::os::fd::AsRawFd;
    let disk = small_disk("256k");
    let directory = PathBuf::from(format!("/proc/self/fd/{}", disk.as_raw_fd())).join("layer");
    fs::create_dir(&directory).unwrap();
    let tar = Layer::new().file("big", &"x".repeat(1 << 20)).end();
    fs::write(directory.join("blob"), gzip(&tar)).unwrap();
    let error =
        unpack(&directory.join("blob"), &Digest::of(&tar), &directory, 1 << 30, Keep::Blob).unwrap_err();
    assert_eq!(error.kind, Kind::Exhausted);
    let place = directory.join("fs/big").display().to_string();
    assert!(error.chain().contains(&place) && error.chain().contains("No space left"), "{}", error.chain());
}
