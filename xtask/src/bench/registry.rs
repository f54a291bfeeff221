//! A registry on loopback that gives what lies in OCI layouts, by sendfile: as little of the machine as one can take.
//!
//! ```text
//!   GET /v2/                          200
//!   GET /v2/NAME/manifests/REFERENCE  the layout's one manifest, whatever the reference
//!   GET /v2/NAME/blobs/DIGEST         the file, or a range of it
//! ```

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, Result};
use serde_json::Value;

/// Layouts by name. It serves until the program ends.
#[derive(Debug)]
pub struct Registry {
    host: String,
}

/// What a request asks for.
#[derive(Debug, PartialEq, Eq)]
enum Asked<'a> {
    Version,
    Manifest(&'a str),
    Blob(&'a str, &'a str),
    Nothing,
}

/// HEAD is told all but what it asks about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Body {
    Sent,
    LeftOut,
}

/// The first byte of a client that wants TLS.
const TLS_HANDSHAKE: u8 = 22;

/// What is asked of a file: where it begins, and the last byte if it is told.
type Range = Option<(u64, Option<u64>)>;

impl Registry {
    /// Begins to serve these layouts.
    pub fn serve(layouts: BTreeMap<String, PathBuf>) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").context("bind a port")?;
        let host = listener.local_addr().context("find the port")?.to_string();
        let layouts = Arc::new(layouts);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let layouts = layouts.clone();
                // A client that hangs up is its own affair.
                std::thread::spawn(move || talk(&stream, &layouts).ok());
            }
        });
        Ok(Self { host })
    }

    /// `127.0.0.1:PORT`
    pub fn host(&self) -> &str {
        &self.host
    }
}

fn talk(stream: &TcpStream, layouts: &BTreeMap<String, PathBuf>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream);
    // One that tries TLS first goes on without, once it is answered in HTTP.
    if reader.fill_buf()?.first() == Some(&TLS_HANDSHAKE) {
        return (&*stream).write_all(b"HTTP/1.0 400 Bad Request\r\n\r\nhere is no TLS\n");
    }
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if reader.read_line(&mut head)? == 0 {
                return Ok(());
            }
        }
        let mut words = head.split(' ');
        let (verb, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let body = if verb == "HEAD" { Body::LeftOut } else { Body::Sent };
        let layout = |name: &str| layouts.get(name).cloned().ok_or(io::ErrorKind::NotFound);
        let answered = match asked(path) {
            Asked::Version => whole(stream, "application/json", None, b"{}", body),
            Asked::Manifest(name) => layout(name).map_err(io::Error::from).and_then(|layout| {
                let (media_type, digest, bytes) = manifest(&layout)?;
                whole(stream, &media_type, Some(&digest), &bytes, body)
            }),
            Asked::Blob(name, digest) => layout(name)
                .map_err(io::Error::from)
                .and_then(|layout| blob(stream, &layout, digest, range(&head), body)),
            Asked::Nothing => Err(io::ErrorKind::NotFound.into()),
        };
        match answered {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                (&*stream).write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")?;
            }
            other => other?,
        }
    }
}

fn asked(path: &str) -> Asked<'_> {
    let path = path.split('?').next().unwrap_or_default();
    let Some(rest) = path.strip_prefix("/v2/") else { return Asked::Nothing };
    if rest.is_empty() {
        return Asked::Version;
    }
    if let Some((name, _)) = rest.split_once("/manifests/") {
        return Asked::Manifest(name);
    }
    match rest.split_once("/blobs/sha256:") {
        Some((name, hex)) if hex.bytes().all(|byte| byte.is_ascii_hexdigit()) => Asked::Blob(name, hex),
        _ => Asked::Nothing,
    }
}

/// Its one manifest: media type, digest, bytes.
fn manifest(layout: &Path) -> io::Result<(String, String, Vec<u8>)> {
    let index: Value = serde_json::from_slice(&fs::read(layout.join("index.json"))?)?;
    let descriptor = &index["manifests"][0];
    let word = |key: &str| descriptor[key].as_str().unwrap_or_default().to_owned();
    let digest = word("digest");
    let hex = digest.trim_start_matches("sha256:");
    Ok((word("mediaType"), digest.clone(), fs::read(layout.join("blobs/sha256").join(hex))?))
}

fn whole(
    mut stream: &TcpStream,
    media_type: &str,
    digest: Option<&str>,
    bytes: &[u8],
    body: Body,
) -> io::Result<()> {
    let digest = digest.map(|digest| format!("Docker-Content-Digest: {digest}\r\n")).unwrap_or_default();
    let length = bytes.len();
    let head = format!(
        "HTTP/1.1 200 OK\r\nDocker-Distribution-Api-Version: registry/2.0\r\nContent-Type: {media_type}\r\n\
         {digest}Content-Length: {length}\r\n\r\n"
    );
    stream.write_all(head.as_bytes())?;
    if body == Body::Sent { stream.write_all(bytes) } else { Ok(()) }
}

fn blob(mut stream: &TcpStream, layout: &Path, hex: &str, range: Range, body: Body) -> io::Result<()> {
    let mut file = File::open(layout.join("blobs/sha256").join(hex))?;
    let length = file.metadata()?.len();
    let (first, last) = match range {
        Some((first, last)) if first < length => (first, last.unwrap_or(length - 1).min(length - 1)),
        Some(_) => {
            return stream.write_all(b"HTTP/1.1 416 Range Not Satisfiable\r\nContent-Length: 0\r\n\r\n");
        }
        None => (0, length.saturating_sub(1)),
    };
    let count = if length == 0 { 0 } else { last + 1 - first };
    let status = match range {
        Some(_) => format!("206 Partial Content\r\nContent-Range: bytes {first}-{last}/{length}"),
        None => "200 OK".to_owned(),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nAccept-Ranges: bytes\r\nContent-Type: application/octet-stream\r\n\
         Docker-Content-Digest: sha256:{hex}\r\nContent-Length: {count}\r\n\r\n"
    );
    stream.write_all(head.as_bytes())?;
    if body == Body::LeftOut {
        return Ok(());
    }
    file.seek(SeekFrom::Start(first))?;
    // From a file to a socket: by sendfile(2).
    io::copy(&mut file.take(count), &mut stream).map(drop)
}

/// Reads `Range: bytes=FIRST-[LAST]`.
fn range(head: &str) -> Range {
    let lines = head.lines().filter_map(|line| line.split_once(':'));
    let (_, value) = lines.into_iter().find(|(name, _)| name.eq_ignore_ascii_case("range"))?;
    let (first, last) = value.trim().strip_prefix("bytes=")?.split_once('-')?;
    Some((first.parse().ok()?, last.parse().ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_understood() {
        assert_eq!(asked("/v2/"), Asked::Version);
        assert_eq!(asked("/v2/a/b/manifests/latest?ns=x"), Asked::Manifest("a/b"));
        assert_eq!(asked("/v2/a/blobs/sha256:0aF"), Asked::Blob("a", "0aF"));
        assert_eq!(asked("/v2/a/blobs/sha256:../x"), Asked::Nothing);
        assert_eq!(asked("/else"), Asked::Nothing);
        assert_eq!(range("GET / HTTP/1.1\r\nrange: bytes=5-\r\n\r\n"), Some((5, None)));
        assert_eq!(range("GET / HTTP/1.1\r\nRange: bytes=5-9\r\n\r\n"), Some((5, Some(9))));
        assert_eq!(range("GET / HTTP/1.1\r\nHost: a\r\n\r\n"), None);
    }

    fn get(host: &str, rest: &str) -> String {
        let mut stream = TcpStream::connect(host).unwrap();
        stream.write_all(format!("GET {rest}\r\n\r\n").as_bytes()).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    #[test]
    fn manifests_and_parts_of_blobs_are_given() {
        let layout = tempfile::tempdir().unwrap();
        let image = berth_fixtures::Image::new();
        berth_fixtures::Layout::of("a", &image).unwrap().write_dir(layout.path()).unwrap();
        fs::write(layout.path().join("blobs/sha256/abc"), "0123456789").unwrap();
        let registry = Registry::serve([("a".to_owned(), layout.path().to_owned())].into()).unwrap();
        assert!(get(registry.host(), "/v2/a/manifests/1 HTTP/1.1").contains("\"schemaVersion\":2"));
        assert!(get(registry.host(), "/v2/b/manifests/1 HTTP/1.1").starts_with("HTTP/1.1 404"));
        let part = get(registry.host(), "/v2/a/blobs/sha256:abc HTTP/1.1\r\nRange: bytes=2-4");
        assert!(part.starts_with("HTTP/1.1 206") && part.ends_with("\r\n\r\n234"), "{part}");
    }
}
