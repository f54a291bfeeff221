//! A registry of a hundred lines on loopback, honest or as told: HTTP/1.1 by hand, one request a connection.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{Notify, watch},
    task::JoinHandle,
};

use super::fixture::Made;

/// How a request for a path is answered, instead of honestly. Each counts for one request.
#[derive(Debug, Clone)]
pub(super) enum Fault {
    CutAfter(usize),
    StallAfter(usize),
    /// The status line, and headers behind it if it has several lines.
    Status(&'static str),
    /// A byte at a time, many a second.
    Trickle,
    /// A success without a length that never ends.
    Endless,
    /// The length announced, nothing sent.
    Announce(u64),
    Redirect(String),
    NoRanges,
    Wait(Duration),
    /// Honestly, once this is told.
    Until(Arc<Notify>),
}

#[derive(Debug, Default)]
pub(super) struct Shelf {
    pub(super) answers: HashMap<String, Vec<u8>>,
    pub(super) faults: HashMap<String, VecDeque<Fault>>,
    /// The value of Authorization without which nothing is given, and the challenge.
    pub(super) wants: Option<(String, String)>,
    pub(super) log: Vec<Request>,
    /// Told of each request, once it is in the log.
    heard: watch::Sender<()>,
}

#[derive(Debug, Clone)]
pub(super) struct Request {
    pub(super) path: String,
    /// From where on; and the last one, where it is told.
    pub(super) range: Option<usize>,
    pub(super) range_end: Option<usize>,
    pub(super) authorization: Option<String>,
    /// As it came.
    pub(super) head: String,
    pub(super) body: String,
}

pub(super) struct Server {
    pub(super) address: String,
    pub(super) shelf: Arc<Mutex<Shelf>>,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    pub(super) async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let shelf = Arc::new(Mutex::new(Shelf::default()));
        let shared = Arc::clone(&shelf);
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                // A client that hangs up is its own affair.
                tokio::spawn(serve(stream, Arc::clone(&shared)));
            }
        });
        Self { address, shelf, task }
    }

    /// Offers an image as `app:<tag>`; gives the full reference.
    pub(super) fn offer(&self, made: &Made, tag: &str) -> String {
        let mut shelf = self.shelf.lock().unwrap();
        for (digest, blob) in &made.blobs {
            shelf.answers.insert(format!("/v2/app/blobs/{digest}"), blob.clone());
            shelf.answers.insert(format!("/v2/app/manifests/{digest}"), blob.clone());
        }
        shelf.answers.insert(format!("/v2/app/manifests/{tag}"), made.blobs[&made.manifest].clone());
        format!("{}/app:{tag}", self.address)
    }

    pub(super) fn fault(&self, path: String, faults: &[Fault]) {
        self.shelf.lock().unwrap().faults.insert(path, faults.iter().cloned().collect());
    }

    pub(super) fn asked(&self, path: &str) -> Vec<Request> {
        let shelf = self.shelf.lock().unwrap();
        shelf.log.iter().filter(|request| request.path == path).cloned().collect()
    }

    /// Returns once a path was asked for so often.
    pub(super) async fn was_asked(&self, path: &str, times: usize) {
        let mut heard = self.shelf.lock().unwrap().heard.subscribe();
        while self.asked(path).len() < times {
            heard.changed().await.unwrap();
        }
    }
}

async fn serve(mut stream: TcpStream, shelf: Arc<Mutex<Shelf>>) -> Option<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
        // A TLS handshake: hang up, as a plain server does.
        if head[0] == 0x16 {
            return None;
        }
    }
    let mut request = parse(&String::from_utf8_lossy(&head));
    let length = header(&request.head, "content-length").map_or(0, |length| length.parse().unwrap());
    let mut sent = vec![0; length];
    stream.read_exact(&mut sent).await.ok()?;
    request.body = String::from_utf8(sent).unwrap();
    let (fault, body, wants) = {
        let mut shelf = shelf.lock().unwrap();
        shelf.log.push(request.clone());
        shelf.heard.send_replace(());
        let fault = shelf.faults.get_mut(&request.path).and_then(VecDeque::pop_front);
        let body = shelf.answers.get(request.path.split('?').next().unwrap()).cloned();
        (fault, body, shelf.wants.clone())
    };
    if let Some((wanted, challenge)) = wants
        && request.path.starts_with("/v2/")
        && request.authorization.as_deref() != Some(&wanted)
    {
        let head = format!(
            "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: {challenge}\r\nContent-Length: 0\r\n\r\n"
        );
        return stream.write_all(head.as_bytes()).await.ok();
    }
    match fault {
        Some(Fault::Status(status)) => {
            let head = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            stream.write_all(head.as_bytes()).await.ok()
        }
        Some(Fault::Redirect(to)) => {
            let head = format!("HTTP/1.1 307 Go\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n");
            stream.write_all(head.as_bytes()).await.ok()
        }
        Some(Fault::Endless) => {
            stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{\"x\":\"").await.ok()?;
            loop {
                stream.write_all(&[b'a'; 65536]).await.ok()?;
            }
        }
        Some(Fault::Announce(length)) => {
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
            stream.write_all(head.as_bytes()).await.ok()
        }
        Some(Fault::Wait(time)) => {
            tokio::time::sleep(time).await;
            answer(&mut stream, &request, body, None).await
        }
        Some(Fault::Until(told)) => {
            told.notified().await;
            answer(&mut stream, &request, body, None).await
        }
        other => answer(&mut stream, &request, body, other).await,
    }
}

async fn answer(
    stream: &mut TcpStream,
    request: &Request,
    body: Option<Vec<u8>>,
    fault: Option<Fault>,
) -> Option<()> {
    let Some(body) = body else {
        let text = r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#;
        let head = format!("HTTP/1.1 404 Not Found\r\nContent-Length: {}\r\n\r\n{text}", text.len());
        return stream.write_all(head.as_bytes()).await.ok();
    };
    let asked = request.range.filter(|_| !matches!(fault, Some(Fault::NoRanges)));
    let from = asked.unwrap_or(0);
    let last = request.range_end.filter(|_| asked.is_some()).unwrap_or(body.len() - 1);
    let status = if asked.is_some() { "206 Partial Content" } else { "200 OK" };
    let range = format!("Content-Range: bytes {from}-{last}/{}\r\n", body.len());
    let rest = &body[from..=last];
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n{}\r\n",
        rest.len(),
        if asked.is_some() { range.as_str() } else { "" },
    );
    stream.write_all(head.as_bytes()).await.ok()?;
    match fault {
        Some(Fault::CutAfter(count)) => stream.write_all(&rest[..count]).await.ok()?,
        Some(Fault::StallAfter(count)) => {
            stream.write_all(&rest[..count]).await.ok()?;
            stream.flush().await.ok()?;
            tokio::time::sleep(Duration::from_secs(60)).await;
        }
        Some(Fault::Trickle) => {
            for byte in rest {
                stream.write_all(std::slice::from_ref(byte)).await.ok()?;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        _ => stream.write_all(rest).await.ok()?,
    }
    stream.shutdown().await.ok()
}

fn header(head: &str, name: &str) -> Option<String> {
    let mut lines = head.lines().filter_map(|line| line.split_once(": "));
    lines.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_owned())
}

fn parse(head: &str) -> Request {
    let range = header(head, "range").map(|range| range["bytes=".len()..].to_owned());
    let (from, to) = range.as_deref().and_then(|range| range.split_once('-')).unzip();
    let range = from.map(|from| from.parse().unwrap());
    let range_end = to.filter(|to| !to.is_empty()).map(|to| to.parse().unwrap());
    let path = head.split(' ').nth(1).unwrap().to_owned();
    let authorization = header(head, "authorization");
    Request { path, range, range_end, authorization, head: head.to_owned(), body: String::new() }
}
