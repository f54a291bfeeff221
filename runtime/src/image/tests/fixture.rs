//! Images made in memory, as documents and blobs, and the ways they lie on a disk.

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    config,
    image::{
        PullRequest, Store,
        digest::Digest,
        document::{ANNOTATION_NAME, DOCKER_INDEX, OCI_INDEX, OCI_MANIFEST, host_architecture},
    },
};

/// An image: its manifest's digest, its id, all blobs by digest.
#[derive(Debug, Clone)]
pub(super) struct Made {
    pub(super) manifest: Digest,
    pub(super) id: Digest,
    pub(super) layers: Vec<Digest>,
    pub(super) blobs: BTreeMap<Digest, Vec<u8>>,
    pub(super) diff_ids: Vec<Digest>,
}

/// A pull without credentials of its own.
pub(super) fn request(reference: &str) -> PullRequest {
    PullRequest {
        reference: reference.to_owned(),
        auth: None,
        plain_http: false,
        namespace: None,
        progress: None,
    }
}

/// Two layers, the first of 20,000 bytes that hardly compress.
pub(super) fn app() -> Made {
    let noise: String =
        (0u32..20_000).map(|n| char::from(33 + (n.wrapping_mul(2_654_435_761) >> 26) as u8)).collect();
    Made::new("app", &[&[("base", &noise)], &[("app", "12345")]])
}

/// A layer of a MiB that is no tar: for pulls that don't come so far.
pub(super) fn noise() -> Vec<u8> {
    vec![7; 1 << 20]
}

pub(super) fn noise_id() -> Digest {
    Digest::of(&noise())
}

/// The path of one of its blobs in a registry.
pub(super) fn blob(digest: &Digest) -> String {
    format!("/v2/app/blobs/{digest}")
}

pub(super) fn tar_of(files: &[(&str, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        builder.append_data(&mut header, name, content.as_bytes()).unwrap();
    }
    builder.into_inner().unwrap()
}

pub(super) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub(super) fn config_of(label: &str, diff_ids: &[Digest]) -> Vec<u8> {
    json!({
        "architecture": host_architecture(), "os": "linux",
        "config": { "Cmd": ["/bin/sh"], "Labels": { "made": label } },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    })
    .to_string()
    .into_bytes()
}

impl Made {
    /// An image of gzipped layers with one file each.
    pub(super) fn new(label: &str, layers: &[&[(&str, &str)]]) -> Self {
        let tars: Vec<_> = layers.iter().map(|files| tar_of(files)).collect();
        let packed = tars.iter().map(|tar| gzip(tar)).collect();
        Self::packed(label, tars.iter().map(|tar| Digest::of(tar)).collect(), packed)
    }

    pub(super) fn packed(label: &str, diff_ids: Vec<Digest>, layers: Vec<Vec<u8>>) -> Self {
        let config = config_of(label, &diff_ids);
        let id = Digest::of(&config);
        let described: Vec<Value> = layers
            .iter()
            .map(|blob| {
                json!({ "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                    "digest": Digest::of(blob), "size": blob.len() })
            })
            .collect();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST,
            "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": id, "size": config.len() },
            "layers": described,
        })
        .to_string()
        .into_bytes();
        let mut blobs = BTreeMap::from([(id.clone(), config), (Digest::of(&manifest), manifest.clone())]);
        let digests = layers.iter().map(|blob| Digest::of(blob)).collect();
        blobs.extend(layers.into_iter().map(|blob| (Digest::of(&blob), blob)));
        Self { manifest: Digest::of(&manifest), id, layers: digests, blobs, diff_ids }
    }

    /// Wraps the manifest in an index with other platforms; gives the index's digest.
    pub(super) fn index(&mut self) -> Digest {
        let size = self.blobs[&self.manifest].len();
        let entry = |digest: &Digest, architecture: &str| {
            json!({ "mediaType": OCI_MANIFEST, "digest": digest, "size": size,
                "platform": { "os": "linux", "architecture": architecture } })
        };
        let index = json!({ "schemaVersion": 2, "mediaType": DOCKER_INDEX, "manifests": [
            entry(&Digest::of(b"other"), "s390x"), entry(&self.manifest, host_architecture()),
        ]});
        let index = index.to_string().into_bytes();
        let digest = Digest::of(&index);
        self.blobs.insert(digest.clone(), index);
        digest
    }

    /// The files of an OCI layout.
    pub(super) fn layout(&self, name: &str) -> Vec<(String, Vec<u8>)> {
        let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [{
            "mediaType": OCI_MANIFEST, "digest": self.manifest, "size": self.blobs[&self.manifest].len(),
            "annotations": { ANNOTATION_NAME: name },
        }]});
        let mut files = vec![
            ("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()),
            ("index.json".to_owned(), index.to_string().into_bytes()),
        ];
        let blobs = self.blobs.iter();
        files.extend(blobs.map(|(digest, blob)| (format!("./blobs/sha256/{}", digest.hex()), blob.clone())));
        files
    }
}

/// A store in a directory of its own.
pub(super) struct Place {
    pub(super) directory: TempDir,
    pub(super) store: Store,
}

impl Place {
    pub(super) async fn new() -> Self {
        Self::with(|_| {}).await
    }

    /// With settings of its own, which may name files below `path`.
    pub(super) async fn with(change: impl FnOnce(&mut config::Registry)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut settings = settings();
        settings.config_path = vec![directory.path().join("certs.d")];
        settings.auth_file = directory.path().join("config.json");
        change(&mut settings);
        let store = Store::open(directory.path(), &settings).await.unwrap();
        Self { directory, store }
    }

    /// Writes a hosts.toml for a registry.
    pub(super) fn hosts(&self, registry: &str, text: &str) {
        let directory = self.path("certs.d").join(registry);
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("hosts.toml"), text).unwrap();
    }

    /// Opens the store anew, as after a restart.
    pub(super) async fn reopen(self) -> Self {
        let Self { directory, store } = self;
        drop(store);
        let store = Store::open(directory.path(), &settings()).await.unwrap();
        Self { directory, store }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(super) async fn import(&self, made: &Made, name: &str) -> crate::image::Image {
        let to = self.path("import.tar");
        fs::write(&to, tar_up(&made.layout(name))).unwrap();
        let mut images = self.store.import(&to, None).await.unwrap();
        assert_eq!(images.len(), 1);
        images.remove(0)
    }

    /// How many entries a directory of the store has.
    pub(super) fn count(&self, name: &str) -> usize {
        fs::read_dir(self.path("images").join(name)).unwrap().count()
    }
}

pub(super) fn settings() -> config::Registry {
    config::Registry {
        stall_seconds: 1,
        config_path: Vec::new(),
        policy_dir: PathBuf::new(),
        ..config::Registry::default()
    }
}

pub(super) fn tar_up(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, &content[..]).unwrap();
    }
    builder.into_inner().unwrap()
}

pub(super) fn write_directory(at: &Path, files: &[(String, Vec<u8>)]) {
    for (name, content) in files {
        let path = at.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
}
