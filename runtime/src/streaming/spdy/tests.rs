//! Sessions against a client of our own, which is no cleverer than a kubelet's.

use std::collections::HashMap;

use futures_util::FutureExt;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream, UnixStream},
    sync::mpsc,
};

use super::{
    MAX_STREAMS, Stream,
    frame::{self, Control, HEAD_BYTES, Head},
    header::{Deflater, Inflater},
    reader::WINDOW_BYTES,
};
use crate::streaming::{ends::PIECE_BYTES, line::Line};

/// The client's end of a session.
pub struct Client<S> {
    socket: S,
    deflater: Deflater,
    inflater: Inflater,
    next: u32,
}

/// What a client sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    Control(Control),
    Data { stream: u32, fin: bool, bytes: Vec<u8> },
    End,
}

pub fn data(stream: u32, bytes: &[u8]) -> Seen {
    Seen::Data { stream, fin: false, bytes: bytes.to_vec() }
}

pub fn fin(stream: u32) -> Seen {
    Seen::Data { stream, fin: true, bytes: Vec::new() }
}

/// A socket pair, ours with its line.
pub fn wire() -> (UnixStream, UnixStream, Line) {
    let (theirs, ours) = UnixStream::pair().unwrap();
    let line = Line::of(&ours).unwrap();
    (theirs, ours, line)
}

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    pub fn new(socket: S) -> Self {
        Self { socket, deflater: Deflater::new().unwrap(), inflater: Inflater::new(), next: 1 }
    }

    /// Opens a stream and sees the reply.
    pub async fn open(&mut self, headers: &[(&str, &str)]) -> u32 {
        let stream = self.try_open(headers).await;
        assert_eq!(self.see().await, Seen::Control(Control::Reply { stream, fin: false }));
        stream
    }

    pub async fn try_open(&mut self, headers: &[(&str, &str)]) -> u32 {
        let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let stream = self.next;
        self.next += 2;
        let frame = frame::tests::open(stream, &headers, &mut self.deflater);
        self.send(&frame).await;
        stream
    }

    pub async fn send(&mut self, frame: &[u8]) {
        self.socket.write_all(frame).await.unwrap();
    }

    pub async fn data(&mut self, stream: u32, bytes: &[u8]) {
        self.send(&frame::data(stream, false, bytes.len())).await;
        self.send(bytes).await;
    }

    pub async fn fin(&mut self, stream: u32) {
        self.send(&frame::data(stream, true, 0)).await;
    }

    pub async fn see(&mut self) -> Seen {
        let mut head = [0; HEAD_BYTES];
        if self.socket.read_exact(&mut head).await.is_err() {
            return Seen::End;
        }
        match Head::parse(head).unwrap() {
            Head::Control { kind, flags, length } => {
                let mut payload = vec![0; length];
                self.socket.read_exact(&mut payload).await.unwrap();
                Seen::Control(Control::parse(kind, flags, &payload, &mut self.inflater).unwrap())
            }
            Head::Data { stream, fin, length } => {
                let mut bytes = vec![0; length];
                self.socket.read_exact(&mut bytes).await.unwrap();
                Seen::Data { stream, fin, bytes }
            }
        }
    }
}

/// Sends back what comes on the first stream, and ends.
pub async fn echo(mut streams: mpsc::Receiver<Stream>) {
    let Some(mut stream) = streams.recv().await else { return };
    drop(streams);
    while let Some(piece) = stream.incoming.recv().await {
        stream.sender.send(piece).await.unwrap();
    }
    stream.sender.finish().await;
}

#[tokio::test]
async fn streams_are_answered_and_the_session_ends_in_order() {
    let (theirs, ours, line) = wire();
    let session = tokio::spawn(super::serve(ours, line, echo));
    let mut client = Client::new(theirs);
    let stream = client.open(&[("streamtype", "stdin")]).await;
    client.data(stream, b"hello").await;
    assert_eq!(client.see().await, data(stream, b"hello"));
    client.send(&frame::ping(7)).await;
    assert_eq!(client.see().await, Seen::Control(Control::Ping { id: 7 }));
    let second = client.try_open(&[]).await;
    assert_eq!(client.see().await, Seen::Control(Control::Reply { stream: second, fin: false }));
    assert_eq!(client.see().await, Seen::Control(Control::Reset { stream: second }));
    client.fin(stream).await;
    assert_eq!(client.see().await, fin(stream));
    assert_eq!(client.see().await, Seen::Control(Control::GoAway));
    assert_eq!(client.see().await, Seen::End);
    drop(client);
    session.await.unwrap().unwrap();
}

#[tokio::test]
async fn what_is_still_queued_at_the_end_arrives() {
    let (theirs, ours, line) = wire();
    let (tell, told) = tokio::sync::oneshot::channel();
    let brimful = async move |mut streams: mpsc::Receiver<Stream>| {
        let stream = streams.recv().await.unwrap();
        let mut sent = 0;
        while stream.sender.send(vec![7; PIECE_BYTES]).now_or_never().is_some() {
            sent += PIECE_BYTES;
        }
        tell.send(sent).unwrap();
    };
    let session = tokio::spawn(async move { super::serve(ours, line, brimful).await });
    let mut client = Client::new(theirs);
    let stream = client.open(&[]).await;
    let mut got = 0;
    let last = loop {
        match client.see().await {
            Seen::Data { stream: of, bytes, .. } if of == stream => got += bytes.len(),
            other => break other,
        }
    };
    assert_eq!((got, last), (told.await.unwrap(), Seen::Control(Control::GoAway)));
    assert!(got > 0);
    drop(client);
    session.await.unwrap().unwrap();
}

#[tokio::test]
async fn megabytes_flow_both_ways_without_windows() {
    const BYTES: usize = 8 * 1024 * 1024;
    let (theirs, ours, line) = wire();
    let session = tokio::spawn(super::serve(ours, line, echo));
    let mut client = Client::new(theirs);
    let stream = client.open(&[]).await;
    // As a Go client does: one sends while another receives.
    let (read, mut write) = client.socket.into_split();
    let sending = tokio::spawn(async move {
        for chunk in vec![7; BYTES].chunks(1024 * 1024) {
            write.write_all(&frame::data(stream, false, chunk.len())).await.unwrap();
            write.write_all(chunk).await.unwrap();
        }
        write.write_all(&frame::data(stream, true, 0)).await.unwrap();
        write
    });
    let mut client = Client::new(tokio::io::join(read, tokio::io::sink()));
    let (mut got, mut windows) = (0, HashMap::new());
    loop {
        match client.see().await {
            Seen::Data { fin: true, .. } => break,
            Seen::Data { bytes, .. } => got += bytes.len(),
            Seen::Control(Control::WindowUpdate { stream, delta }) => {
                *windows.entry(stream).or_default() += delta as usize;
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(got, BYTES);
    // A client that keeps to windows could have sent all of it as well.
    for stream in [0, stream] {
        let given: usize = windows[&stream];
        assert!((BYTES - 64 * 1024..=BYTES + WINDOW_BYTES as usize).contains(&given), "{stream}: {given}");
    }
    drop((client, sending.await.unwrap()));
    session.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_client_with_windows_is_sent_no_more_than_it_takes() {
    let (theirs, ours, line) = wire();
    let session = tokio::spawn(super::serve(ours, line, echo));
    let mut client = Client::new(theirs);
    client.send(&frame::tests::settings(&[7, 4])).await;
    let stream = client.open(&[]).await;
    client.data(stream, b"123456789").await;
    assert_eq!(client.see().await, data(stream, b"1234"));
    client.send(&frame::ping(1)).await;
    assert_eq!(client.see().await, Seen::Control(Control::Ping { id: 1 }));
    client.send(&frame::window_update(stream, 100)).await;
    assert_eq!(client.see().await, data(stream, b"56789"));
    client.fin(stream).await;
    assert_eq!(client.see().await, fin(stream));
    drop(client);
    session.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_client_that_goes_takes_the_handler_with_it_though_nobody_reads_its_input() {
    struct Dropped(Option<tokio::sync::oneshot::Sender<()>>);
    impl Drop for Dropped {
        fn drop(&mut self) {
            self.0.take().unwrap().send(()).unwrap();
        }
    }
    for unread in [0, 16 * 1024 * 1024 - 1] {
        // TCP: the kernel can't deliver the end of one who left unsent bytes behind.
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let theirs = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let ours = listener.accept().await.unwrap().0;
        let line = Line::of(&ours).unwrap();
        let (sender, dropped) = tokio::sync::oneshot::channel();
        let session = tokio::spawn(super::serve(ours, line, |mut streams| async move {
            let _watched = Dropped(Some(sender));
            let _stream = streams.recv().await;
            std::future::pending::<()>().await;
        }));
        let mut client = Client::new(theirs);
        let stream = client.open(&[]).await;
        client.send(&frame::data(stream, false, unread)).await;
        // More than fits: the write hangs, and is given up with the client.
        let all = vec![0; unread];
        let write = client.send(&all);
        tokio::time::timeout(std::time::Duration::from_millis(50), write).await.ok();
        drop(client);
        dropped.await.unwrap();
        session.await.unwrap().ok();
    }
}

#[tokio::test]
async fn streams_that_can_not_be_are_reset() {
    let (theirs, ours, line) = wire();
    let session = tokio::spawn(super::serve(ours, line, |mut streams| async move {
        let mut kept = Vec::new();
        while let Some(stream) = streams.recv().await {
            kept.push(stream);
        }
    }));
    let mut client = Client::new(theirs);
    let reset = |stream| Seen::Control(Control::Reset { stream });
    for _ in 0..MAX_STREAMS {
        client.open(&[]).await;
    }
    let many = client.try_open(&[]).await;
    assert_eq!(client.see().await, reset(many));
    // An even one, one again, and bytes for one that never was.
    client.next = many + 1;
    client.try_open(&[]).await;
    assert_eq!(client.see().await, reset(many + 1));
    client.next = 1;
    client.try_open(&[]).await;
    assert_eq!(client.see().await, reset(1));
    client.data(9999, b"lost").await;
    assert_eq!(client.see().await, reset(9999));
    // One that the client gives up makes room.
    client.send(&frame::reset(3, frame::Reset::Cancel)).await;
    client.next = many + 2;
    client.open(&[]).await;
    drop(client);
    session.await.unwrap().unwrap();
}

#[tokio::test]
async fn noise_ends_the_session_with_an_error() {
    let noise: [&[u8]; 3] = [b"GET / HTTP/1.1\r\n\r\n", &[0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff], &[0xff; 64]];
    for bytes in noise {
        let (theirs, ours, line) = wire();
        let session = tokio::spawn(super::serve(ours, line, echo));
        let mut client = Client::new(theirs);
        client.send(bytes).await;
        let ended = match bytes[0] {
            // Data of a stream that never was, and cut short.
            b'G' => {
                drop(client);
                session.await.unwrap().unwrap_err().kind()
            }
            _ => session.await.unwrap().unwrap_err().kind(),
        };
        assert!(
            matches!(ended, std::io::ErrorKind::InvalidData | std::io::ErrorKind::UnexpectedEof),
            "{ended}"
        );
    }
}

pub fn reset(stream: u32) -> Control {
    Control::Reset { stream }
}
