//! Debian's docker-registry on loopback, filled by skopeo.

use std::{
    fs,
    net::{TcpListener, TcpStream},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use berth_fixtures::{Image, Layout};

use crate::{
    poll::{BOUND, until},
    skip::required,
};

/// A registry that runs. Killed when dropped, its storage with it.
#[derive(Debug)]
pub struct Registry {
    child: Child,
    dir: tempfile::TempDir,
    port: u16,
    transport: Transport,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    Http,
    /// With a certificate of its own making.
    Https,
    /// HTTP for joe with the password secret, and nobody else.
    Private,
}

/// joe:secret by bcrypt, cheaply.
const USERS: &str = "joe:$2b$04$rvLAzFQv.oWwwLzvfVs/Te.4ySirEluF7PzylnA287f.rOMhfKt3u\n";

impl Registry {
    /// Starts one; None, and the test is skipped, where docker-registry or skopeo is not installed.
    pub fn start(test: &str, transport: Transport) -> Option<Self> {
        if !required(test, &["docker-registry", "skopeo"]) {
            return None;
        }
        let dir = tempfile::Builder::new().prefix("btr-").tempdir().expect("make a directory");
        if transport == Transport::Https {
            write_certificate(dir.path());
        }
        // Another may take the port between the two: then the registry ends at once, and is tried again.
        (0..5)
            .find_map(|_| {
                let port = TcpListener::bind("127.0.0.1:0")
                    .and_then(|socket| socket.local_addr())
                    .expect("a port")
                    .port();
                let child = spawn(dir.path(), port, transport);
                up(child, port).map(|child| (child, port))
            })
            .map(|(child, port)| Self { child, dir, port, transport })
            .or_else(|| panic!("docker-registry does not come up"))
    }

    /// `127.0.0.1:PORT`
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The reference of an image here: `127.0.0.1:PORT/NAME`.
    pub fn reference(&self, name: &str) -> String {
        format!("{}/{name}", self.host())
    }

    /// What its certificate is checked with.
    pub fn ca_file(&self) -> PathBuf {
        self.dir.path().join("certificate.pem")
    }

    /// Where the registry keeps its blobs, for tests that damage them.
    pub fn storage(&self) -> PathBuf {
        self.dir.path().join("storage")
    }

    /// Pushes an image as `NAME:TAG` and returns its manifest's digest.
    pub fn push(&self, name: &str, image: &Image) -> String {
        let source = self.dir.path().join("push");
        let built = image.build().expect("the image can be built");
        let digest = built.manifest.digest.clone();
        Layout::new().built("pushed", &built).write_dir(&source).expect("write the layout");
        let mut skopeo = Command::new("skopeo");
        skopeo.args([
            "--insecure-policy",
            "copy",
            "--quiet",
            "--preserve-digests",
            "--dest-tls-verify=false",
        ]);
        if self.transport == Transport::Private {
            skopeo.args(["--dest-creds", "joe:secret"]);
        }
        skopeo.arg(format!("oci:{}:pushed", source.display()));
        skopeo.arg(format!("docker://{}", self.reference(name)));
        let output = skopeo.output().expect("run skopeo");
        assert!(output.status.success(), "skopeo: {}", String::from_utf8_lossy(&output.stderr));
        fs::remove_dir_all(&source).expect("remove the layout");
        digest
    }

    /// Changes one byte of a blob on the registry's disk.
    pub fn damage(&self, digest: &str) {
        let hex = digest.trim_start_matches("sha256:");
        let blob =
            self.storage().join("docker/registry/v2/blobs/sha256").join(&hex[..2]).join(hex).join("data");
        let mut bytes = fs::read(&blob).expect("read the blob");
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0xff;
        fs::write(&blob, bytes).expect("write the blob");
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // It may have ended; either way it is not there afterwards.
        self.child.kill().ok();
        self.child.wait().ok();
        if std::thread::panicking() {
            let log = fs::read(self.dir.path().join("log")).unwrap_or_default();
            let log = String::from_utf8_lossy(&log);
            let lines: Vec<&str> = log.lines().collect();
            let last = &lines[lines.len().saturating_sub(10)..];
            eprintln!("---- {:?} registry's log, the end ----\n{}\n----", self.transport, last.join("\n"));
        }
    }
}

fn spawn(dir: &Path, port: u16, transport: Transport) -> Child {
    let storage = dir.join("storage");
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&storage).expect("make the storage");
    let tls = match transport {
        Transport::Http => String::new(),
        Transport::Private => {
            let users = dir.join("users");
            fs::write(&users, USERS).expect("write the registry's users");
            format!("auth:\n  htpasswd:\n    realm: test\n    path: {}\n", users.display())
        }
        Transport::Https => format!(
            "  tls:\n    certificate: {}\n    key: {}\n",
            dir.join("certificate.pem").display(),
            dir.join("key.pem").display()
        ),
    };
    let config = format!(
        "version: 0.1\nlog:\n  level: info\n  accesslog:\n    disabled: false\nstorage:\n  filesystem:\n    rootdirectory: {}\n  delete:\n    enabled: true\nhttp:\n  addr: 127.0.0.1:{port}\n{tls}",
        storage.display(),
    );
    let path = dir.join("config.yml");
    fs::write(&path, config).expect("write the registry's configuration");
    let log = fs::File::create(dir.join("log")).expect("make the registry's log");
    Command::new("docker-registry")
        .arg("serve")
        .arg(&path)
        // No trace exporter, no variable of somebody's own registry.
        .env("OTEL_TRACES_EXPORTER", "none")
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("share the log"))
        .stderr(log)
        .spawn()
        .expect("start docker-registry")
}

fn up(mut child: Child, port: u16) -> Option<Child> {
    let answers = until(BOUND, || {
        if child.try_wait().expect("look at the registry").is_some() {
            return Some(false);
        }
        TcpStream::connect(("127.0.0.1", port)).is_ok().then_some(true)
    });
    if answers == Some(true) {
        return Some(child);
    }
    child.kill().ok();
    child.wait().ok();
    None
}

fn write_certificate(dir: &Path) {
    let names = ["127.0.0.1".to_owned(), "localhost".to_owned()];
    let made = rcgen::generate_simple_self_signed(names).expect("make a certificate");
    fs::write(dir.join("certificate.pem"), made.cert.pem()).expect("write the certificate");
    fs::write(dir.join("key.pem"), made.signing_key.serialize_pem()).expect("write the key");
}
