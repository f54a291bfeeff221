//! A registry that misbehaves on purpose, on loopback: one image, plain HTTP, a thread per connection.

use std::{
    io::{self, BufRead, BufReader, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread,
    time::Duration,
};

use berth_fixtures::{Blob, Built, Image};

/// What it does wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trick {
    /// Nothing: to see that the rest of it works.
    None,
    /// Sends half of a layer and then no byte more, with the connection open.
    Stall,
    /// Closes the connection half way through a layer: always.
    Cut,
    /// The same, but only the first time; ranges are served.
    CutOnce,
    /// Sends a manifest without end.
    EndlessManifest,
    /// Sends a layer's blob without end: more than the manifest says.
    EndlessLayer,
    /// Answers every blob with another's content.
    WrongBlob,
    /// Fails with 500.
    Broken,
    /// Says that all is elsewhere, and elsewhere that it is here.
    RedirectLoop,
    /// Is a web page, not a registry.
    WebPage,
}

/// Serves until it is dropped.
#[derive(Debug)]
pub struct Hostile {
    port: u16,
    ended: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

struct Shelf {
    trick: Trick,
    built: Built,
    cuts: AtomicU32,
    ended: Arc<AtomicBool>,
}

/// Enough to fill any buffer that should not grow.
const ENDLESS_BYTES: usize = 256 << 20;

impl Hostile {
    pub fn start(trick: Trick, image: &Image) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("listen on loopback");
        let port = listener.local_addr().expect("it is bound").port();
        let ended = Arc::new(AtomicBool::new(false));
        let built = image.build().expect("the image can be built");
        let shelf = Arc::new(Shelf { trick, built, cuts: AtomicU32::new(0), ended: ended.clone() });
        let thread = thread::spawn(move || {
            for stream in listener.incoming() {
                if shelf.ended.load(Ordering::SeqCst) {
                    break;
                }
                let (Ok(stream), shelf) = (stream, shelf.clone()) else { continue };
                // A client that goes away is what most of them do.
                thread::spawn(move || shelf.talk(&stream).ok());
            }
        });
        Self { port, ended, thread: Some(thread) }
    }

    /// `127.0.0.1:PORT/image:1`
    pub fn reference(&self) -> String {
        format!("127.0.0.1:{}/image:1", self.port)
    }
}

impl Drop for Hostile {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        // Wakes the one who accepts; nothing else matters about this connection.
        TcpStream::connect(("127.0.0.1", self.port)).ok();
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

struct Request {
    method: String,
    path: String,
    /// The first byte asked for.
    from: usize,
}

impl Shelf {
    fn talk(&self, stream: &TcpStream) -> io::Result<()> {
        let mut reader = BufReader::new(stream.try_clone()?);
        while let Some(request) = read(&mut reader)? {
            self.answer(stream, &request)?;
        }
        Ok(())
    }

    fn answer(&self, stream: &TcpStream, request: &Request) -> io::Result<()> {
        match self.trick {
            Trick::Broken => return reply(stream, "500 Internal Server Error", "text/plain", b"broken\n"),
            Trick::WebPage => return reply(stream, "200 OK", "text/html", b"<html>Welcome</html>\n"),
            Trick::RedirectLoop => {
                let head = format!(
                    "HTTP/1.1 307 Temporary Redirect\r\nLocation: {}\r\nContent-Length: 0\r\n\r\n",
                    request.path
                );
                return (&*stream).write_all(head.as_bytes());
            }
            _ => {}
        }
        if request.path.trim_end_matches('/') == "/v2" {
            return reply(stream, "200 OK", "application/json", b"{}");
        }
        let Some((kind, name)) = request.path.rsplit_once('/') else {
            return reply(stream, "404 Not Found", "text/plain", b"");
        };
        if kind.ends_with("/manifests") {
            return self.manifest(stream, request);
        }
        let found = self.built.blobs().find(|blob| blob.digest == name);
        match found {
            Some(blob) if kind.ends_with("/blobs") => self.blob(stream, request, blob),
            _ => {
                reply(stream, "404 Not Found", "application/json", br#"{"errors":[{"code":"BLOB_UNKNOWN"}]}"#)
            }
        }
    }

    fn manifest(&self, mut stream: &TcpStream, request: &Request) -> io::Result<()> {
        let manifest = &self.built.manifest;
        let endless = self.trick == Trick::EndlessManifest;
        let length = if endless { ENDLESS_BYTES } else { manifest.bytes.len() };
        let digest =
            if endless { String::new() } else { format!("Docker-Content-Digest: {}\r\n", manifest.digest) };
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: {}\r\n{digest}Content-Length: {length}\r\n\r\n",
            manifest.media_type
        );
        stream.write_all(head.as_bytes())?;
        match request.method.as_str() {
            "HEAD" => Ok(()),
            _ if endless => endlessly(stream, ENDLESS_BYTES),
            _ => stream.write_all(&manifest.bytes),
        }
    }

    fn blob(&self, mut stream: &TcpStream, request: &Request, blob: &Blob) -> io::Result<()> {
        let layer = self.built.layers.contains(blob);
        let from = request.from.min(blob.bytes.len());
        let rest = &blob.bytes[from..];
        let endless = layer && self.trick == Trick::EndlessLayer;
        let length = if endless { ENDLESS_BYTES } else { rest.len() };
        let status = if from == 0 {
            "200 OK".to_owned()
        } else {
            let total = blob.bytes.len();
            format!("206 Partial Content\r\nContent-Range: bytes {from}-{}/{total}", total - 1)
        };
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Type: application/octet-stream\r\nContent-Length: {length}\r\n\r\n"
        );
        stream.write_all(head.as_bytes())?;
        if request.method == "HEAD" {
            return Ok(());
        }
        let half = &rest[..rest.len() / 2];
        match self.trick {
            Trick::Stall if layer => {
                stream.write_all(half)?;
                while !self.ended.load(Ordering::SeqCst) {
                    // The silence is the trick.
                    thread::sleep(Duration::from_millis(50));
                }
                Ok(())
            }
            Trick::Cut if layer => cut(stream, half),
            Trick::CutOnce if layer && self.cuts.fetch_add(1, Ordering::SeqCst) == 0 => cut(stream, half),
            Trick::EndlessLayer if layer => {
                stream.write_all(rest)?;
                endlessly(stream, ENDLESS_BYTES - rest.len())
            }
            Trick::WrongBlob => stream.write_all(&vec![b'x'; rest.len()]),
            _ => stream.write_all(rest),
        }
    }
}

fn cut(mut stream: &TcpStream, half: &[u8]) -> io::Result<()> {
    stream.write_all(half)?;
    stream.shutdown(Shutdown::Both)
}

fn endlessly(mut stream: &TcpStream, bytes: usize) -> io::Result<()> {
    let piece = [b' '; 64 * 1024];
    let mut left = bytes;
    while left > 0 {
        let now = left.min(piece.len());
        stream.write_all(&piece[..now])?;
        left -= now;
    }
    Ok(())
}

fn reply(mut stream: &TcpStream, status: &str, kind: &str, body: &[u8]) -> io::Result<()> {
    let head = format!("HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all(head.as_bytes())?;
    stream.write_all(body)
}

/// Reads one request's head; None at the end of the connection.
fn read(reader: &mut impl BufRead) -> io::Result<Option<Request>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace();
    let method = words.next().unwrap_or_default().to_owned();
    let path = words.next().unwrap_or_default().to_owned();
    let mut from = 0;
    loop {
        let mut header = String::new();
        if reader.read_line(&mut header)? == 0 || header.trim().is_empty() {
            return Ok(Some(Request { method, path, from }));
        }
        let header = header.to_ascii_lowercase();
        if let Some(range) = header.strip_prefix("range:") {
            let first = range.trim().trim_start_matches("bytes=").split('-').next();
            from = first.and_then(|digits| digits.parse().ok()).unwrap_or(0);
        }
    }
}
