//! The images, built, written and read back as any other tool would.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::{Path, PathBuf};

use berth_fixtures::damage::{Damage, damaged};
use berth_fixtures::{
    APPLETS, Compression, Entry, Found, Image, Layer, Layout, digest, docker, fixture_image,
    layered_expectations, layered_image,
};
use serde_json::Value;

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_fixture"))
}

const EACH: [Compression; 3] = [Compression::None, Compression::Gzip, Compression::Zstd];

fn small() -> Image {
    Image::new()
        .layer(Layer::new().file("etc/b", 0o644, "b\n").file("etc/a", 0o644, "a\n"))
        .layer(Layer::new().whiteout("etc/a").opaque("srv"))
        .entrypoint(&["/bin/fixture"])
        .env("B", "2")
        .env("A", "1")
        .user("app")
        .volume("/data")
        .exposed_port("80/tcp")
        .label("z", "1")
        .label("a", "2")
}

fn decompressed(bytes: &[u8], compression: Compression) -> Vec<u8> {
    let mut plain = Vec::new();
    match compression {
        Compression::None => plain.extend_from_slice(bytes),
        Compression::Gzip => {
            flate2::read::GzDecoder::new(bytes).read_to_end(&mut plain).unwrap();
        }
        Compression::Zstd => zstd::stream::copy_decode(bytes, &mut plain).unwrap(),
    }
    plain
}

/// Reads a tar into its files by name.
fn files(tar: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in tar::Archive::new(tar).entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = String::from_utf8(entry.path_bytes().into_owned()).unwrap();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        if entry.header().entry_type().is_file() {
            files.insert(name, content);
        }
    }
    files
}

fn json(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap()
}

/// Returns the blob that a descriptor points at, having compared its size and digest.
fn blob<'a>(files: &'a BTreeMap<String, Vec<u8>>, descriptor: &Value) -> Result<&'a [u8], String> {
    let name = descriptor["digest"].as_str().unwrap();
    let hex = name.strip_prefix("sha256:").unwrap();
    let bytes = files.get(&format!("blobs/sha256/{hex}")).ok_or("missing")?;
    if descriptor["size"].as_u64() != Some(bytes.len() as u64) {
        return Err("size".to_owned());
    }
    if digest(bytes) != name {
        return Err("digest".to_owned());
    }
    Ok(bytes)
}

/// Walks an image from its manifest to its layers' archives, checking all it says.
fn walk(
    files: &BTreeMap<String, Vec<u8>>,
    manifest: &Value,
    compression: Compression,
) -> Result<Vec<Vec<u8>>, String> {
    let manifest = json(blob(files, manifest)?);
    let config = json(blob(files, &manifest["config"])?);
    let layers = manifest["layers"].as_array().unwrap();
    let diff_ids = config["rootfs"]["diff_ids"].as_array().unwrap();
    if layers.len() != diff_ids.len() {
        return Err("count".to_owned());
    }
    let mut archives = Vec::new();
    for (layer, diff_id) in layers.iter().zip(diff_ids) {
        assert_eq!(layer["mediaType"], compression.layer_media_type());
        let archive = decompressed(blob(files, layer)?, compression);
        if digest(&archive) != diff_id.as_str().unwrap() {
            return Err("diff id".to_owned());
        }
        archives.push(archive);
    }
    Ok(archives)
}

#[test]
fn two_builds_are_the_same_bytes() {
    for compression in EACH {
        let make =
            || Layout::of("test:1", &small().compression(compression)).unwrap().tar(compression).unwrap();
        assert!(make() == make(), "{compression:?}");
    }
    let turned = Layer::new().file("b", 0o644, "b").file("a", 0o644, "a");
    let straight = Layer::new().file("a", 0o644, "a").file("b", 0o644, "b");
    assert_eq!(turned.archive().unwrap(), straight.archive().unwrap());
    let build = || fixture_image(program()).unwrap().build().unwrap();
    assert_eq!(build().manifest, build().manifest);
}

#[test]
fn a_layout_reads_back_with_all_its_digests() {
    for compression in EACH {
        let layout = Layout::of("localhost/small:1", &small().compression(compression)).unwrap();
        let files = files(&decompressed(&layout.tar(compression).unwrap(), compression));
        assert_eq!(json(&files["oci-layout"])["imageLayoutVersion"], "1.0.0");
        let index = json(&files["index.json"]);
        let manifest = &index["manifests"][0];
        assert_eq!(manifest["annotations"]["org.opencontainers.image.ref.name"], "localhost/small:1");
        let archives = walk(&files, manifest, compression).unwrap();
        assert_eq!(names(&archives[0]), ["etc/a", "etc/b"]);
        assert_eq!(names(&archives[1]), ["etc/.wh.a", "srv/.wh..wh..opq"]);
    }
}

fn names(archive: &[u8]) -> Vec<String> {
    let mut archive = tar::Archive::new(archive);
    let name = |entry: tar::Entry<'_, &[u8]>| String::from_utf8(entry.path_bytes().into_owned()).unwrap();
    archive.entries().unwrap().map(|entry| name(entry.unwrap())).collect()
}

#[test]
fn the_configuration_says_what_was_set() {
    let config = json(&small().workdir("/srv").stop_signal("SIGINT").build().unwrap().config.bytes);
    assert_eq!(config["os"], "linux");
    let inner = &config["config"];
    assert_eq!(inner["Env"], serde_json::json!(["B=2", "A=1"]));
    assert_eq!(inner["Volumes"], serde_json::json!({ "/data": {} }));
    assert_eq!(inner["ExposedPorts"], serde_json::json!({ "80/tcp": {} }));
    assert_eq!(inner["Labels"], serde_json::json!({ "a": "2", "z": "1" }));
    assert_eq!(
        (&inner["User"], &inner["WorkingDir"], &inner["StopSignal"]),
        (&"app".into(), &"/srv".into(), &"SIGINT".into())
    );
    assert_eq!(config["history"].as_array().unwrap().len(), 2);
}

#[test]
fn a_directory_holds_what_the_tar_holds() {
    let directory = Scratch::new("layout");
    let layout = Layout::of("test:1", &small()).unwrap();
    layout.write_dir(&directory.0).unwrap();
    for (name, content) in files(&layout.tar(Compression::None).unwrap()) {
        assert_eq!(std::fs::read(directory.0.join(&name)).unwrap(), content, "{name}");
    }
}

#[test]
fn an_index_holds_each_platform() {
    let other = small().platform("linux", "s390x").label("platform", "other");
    let layout = Layout::new().multi_platform("test:1", &[other, small()]).unwrap();
    let files = files(&layout.tar(Compression::None).unwrap());
    let outer = json(&files["index.json"]);
    let index = json(blob(&files, &outer["manifests"][0]).unwrap());
    let manifests = index["manifests"].as_array().unwrap();
    assert_eq!(manifests[0]["platform"]["architecture"], "s390x");
    for manifest in manifests {
        walk(&files, manifest, Compression::Gzip).unwrap();
    }
}

#[test]
fn a_docker_archive_reads_back() {
    for compression in EACH {
        let image = small();
        let archive = docker::archive(&[("test:1", &image), ("other:2", &image)], compression).unwrap();
        let files = files(&decompressed(&archive, compression));
        let manifests = json(&files["manifest.json"]);
        assert_eq!(manifests[1]["RepoTags"], serde_json::json!(["other:2"]));
        let manifest = &manifests[0];
        let config = &files[manifest["Config"].as_str().unwrap()];
        assert_eq!(format!("{}.json", &digest(config)[7..]), manifest["Config"].as_str().unwrap());
        let diff_ids = json(config)["rootfs"]["diff_ids"].clone();
        let layers = manifest["Layers"].as_array().unwrap();
        assert_eq!(layers.len(), 2);
        for (layer, diff_id) in layers.iter().zip(diff_ids.as_array().unwrap()) {
            assert_eq!(digest(&files[layer.as_str().unwrap()]), diff_id.as_str().unwrap());
        }
    }
}

#[test]
fn each_damage_is_what_its_name_says() {
    let image = small().compression(Compression::None);
    let expected = |damage| match damage {
        Damage::Truncated | Damage::TooLong => "size",
        Damage::WrongDigest => "digest",
        Damage::MissingBlob => "missing",
        Damage::WrongDiffId | Damage::CutStream | Damage::NotAnArchive => "diff id",
        Damage::MissingDiffId => "count",
    };
    for damage in Damage::ALL {
        let layout = damaged("test:1", &image, damage).unwrap();
        let files = files(&layout.tar(Compression::None).unwrap());
        let manifest = json(&files["index.json"])["manifests"][0].clone();
        assert_eq!(walk(&files, &manifest, Compression::None).unwrap_err(), expected(damage), "{damage:?}");
    }
    assert!(damaged("test:1", &Image::new(), Damage::Truncated).is_err());
}

#[test]
fn the_fixture_has_a_link_for_each_applet_and_its_users() {
    let built = fixture_image(program()).unwrap().build().unwrap();
    let found: BTreeSet<String> = names(&built.archives[0]).into_iter().collect();
    for applet in APPLETS {
        assert!(found.contains(&format!("bin/{applet}")), "{applet}");
    }
    let files = files(&built.archives[0]);
    assert_eq!(files["bin/fixture"], std::fs::read(program()).unwrap());
    assert!(String::from_utf8_lossy(&files["etc/passwd"]).contains("\napp:x:1000:1000:"));
}

#[test]
fn a_hard_link_has_the_mode_of_its_file_and_comes_after_it() {
    let file = Entry::file("z", 0o4711, "z").owner(5, 6);
    let archive = Layer::new().hard_link("a", "z").with(file).archive().unwrap();
    assert_eq!(names(&archive), ["z", "a"]);
    let mut archive = tar::Archive::new(archive.as_slice());
    let link = archive.entries().unwrap().nth(1).unwrap().unwrap();
    assert_eq!((link.header().mode().unwrap(), link.header().uid().unwrap()), (0o4711, 5));
}

/// Puts the layers on top of each other in memory, by the rules of the image specification, and compares:
/// the expectations must not be those of one implementation.
#[test]
fn the_expectations_are_those_of_the_layers() {
    let built = layered_image(program()).unwrap().build().unwrap();
    let mut root: BTreeMap<String, Seen> = BTreeMap::new();
    for archive in &built.archives {
        root = lay_over(root, archive);
    }
    for expected in layered_expectations() {
        let seen = root.get(&expected.path);
        let Found::Absent = expected.found else {
            let seen = seen.unwrap_or_else(|| panic!("{} is not there", expected.path));
            assert!(seen.is(&expected.found), "{}: {:?} {:?}", expected.path, seen.kind, expected.found);
            assert!(expected.mode.is_none_or(|mode| mode == seen.mode), "{}: {:o}", expected.path, seen.mode);
            assert_eq!(expected.owner, seen.owner, "{}", expected.path);
            continue;
        };
        assert!(seen.is_none(), "{} is there", expected.path);
    }
}

#[derive(Debug)]
struct Seen {
    kind: tar::EntryType,
    mode: u32,
    owner: (u32, u32),
    link: String,
    content: Vec<u8>,
}

impl Seen {
    fn is(&self, found: &Found) -> bool {
        match found {
            Found::Absent => false,
            Found::Directory => self.kind.is_dir(),
            Found::File(content) => self.kind.is_file() && self.content == *content,
            Found::SameFile(target) => self.kind.is_hard_link() && self.link == *target,
            Found::Symlink(target) => self.kind.is_symlink() && self.link == *target,
            Found::Device(berth_fixtures::Device::Char { .. }) => self.kind.is_character_special(),
            Found::Device(berth_fixtures::Device::Block { .. }) => self.kind.is_block_special(),
            Found::Fifo => self.kind.is_fifo(),
        }
    }
}

fn lay_over(mut root: BTreeMap<String, Seen>, archive: &[u8]) -> BTreeMap<String, Seen> {
    let mut upper = BTreeMap::new();
    for entry in tar::Archive::new(archive).entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = String::from_utf8(entry.path_bytes().into_owned()).unwrap();
        let path = path.trim_start_matches("./").trim_end_matches('/').to_owned();
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", &path));
        if name == ".wh..wh..opq" {
            root.retain(|below, _| !below.starts_with(&format!("{parent}/")));
        } else if let Some(removed) = name.strip_prefix(".wh.") {
            remove(&mut root, &format!("{parent}/{removed}"));
        } else {
            upper.insert(path, seen(&mut entry));
        }
    }
    for (path, seen) in upper {
        if !seen.kind.is_dir() {
            remove(&mut root, &path);
        }
        for (place, _) in path.match_indices('/') {
            root.entry(path[..place].to_owned()).or_insert_with(implied);
        }
        root.insert(path, seen);
    }
    root
}

fn remove(root: &mut BTreeMap<String, Seen>, path: &str) {
    root.retain(|below, _| below != path && !below.starts_with(&format!("{path}/")));
}

fn implied() -> Seen {
    Seen {
        kind: tar::EntryType::Directory,
        mode: 0o755,
        owner: (0, 0),
        link: String::new(),
        content: Vec::new(),
    }
}

fn seen(entry: &mut tar::Entry<'_, &[u8]>) -> Seen {
    let mut content = Vec::new();
    entry.read_to_end(&mut content).unwrap();
    let header = entry.header();
    let owner = (header.uid().unwrap() as u32, header.gid().unwrap() as u32);
    let (kind, mode) = (header.entry_type(), header.mode().unwrap());
    let link = entry.link_name_bytes().map(|name| String::from_utf8(name.into_owned()).unwrap());
    Seen { kind, mode, owner, link: link.unwrap_or_default(), content }
}

#[test]
fn the_built_program_is_found() {
    let found = berth_fixtures::program_path().unwrap();
    assert_eq!(std::fs::canonicalize(found).unwrap(), std::fs::canonicalize(program()).unwrap());
}

#[test]
fn busybox_has_a_shell_or_its_package_is_named() {
    match berth_fixtures::busybox_image() {
        Ok(image) => {
            let found = names(&image.build().unwrap().archives[0]);
            let place = |name: &str| found.iter().position(|found| found == name).unwrap();
            assert!(place("bin/busybox") < place("bin/sh"));
        }
        Err(error) => assert!(error.to_string().contains("busybox-static"), "{error}"),
    }
}

#[test]
fn a_root_that_differs_is_told_of() {
    let directory = Scratch::new("mismatch");
    let all = layered_expectations();
    let differ = |path: &str| {
        let expected = all.iter().find(|expected| expected.path == path).unwrap();
        expected.mismatch(&directory.0)
    };
    assert_eq!(differ("srv/gone"), None);
    assert!(differ("srv/absolute-link").unwrap().starts_with("srv/absolute-link: "));
    std::fs::create_dir_all(directory.0.join("srv/gone")).unwrap();
    assert!(differ("srv/gone").unwrap().contains("expected Absent"));
    std::os::unix::fs::symlink("/elsewhere", directory.0.join("srv/absolute-link")).unwrap();
    assert!(differ("srv/absolute-link").unwrap().contains("/srv/keep/one"));
}

/// A directory that goes with the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A test that failed may have left nothing to remove.
        std::fs::remove_dir_all(&self.0).ok();
    }
}
