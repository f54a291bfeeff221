//! WebSocket as its server: the channels of an exec or attach, each message's first byte its channel; and a tunnel that
//! carries SPDY for port-forward.

use std::{future::Future, io, time::Duration};

use futures_util::{SinkExt, StreamExt, stream::SplitSink};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::mpsc,
    time::{sleep, timeout},
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        self, Message,
        protocol::{CloseFrame, Role, WebSocketConfig, frame::coding::CloseCode},
    },
};

use super::{
    channels::{BACKLOG, Channels, Gone, Incoming, Outgoing, Wanted},
    ends::PIECE_BYTES,
    line::{LOOK, Line},
    spdy,
    upgrade::Protocol,
};

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
/// Of v5: the channel that the next byte names is closed.
const CLOSE: u8 = 255;

/// A client sends what it read at once, some 32 KiB; this much of one message is held in memory.
const MAX_MESSAGE_BYTES: usize = 1024 * 1024;
const TUNNEL_BYTES: usize = 64 * 1024;
/// Messages on their way out.
const OUT: usize = 8;
const FAREWELL: Duration = Duration::from_secs(60);
const LINGER: Duration = Duration::from_secs(5);

/// One channel to the client.
#[derive(Debug, Clone)]
pub struct Sender {
    channel: u8,
    out: mpsc::Sender<Message>,
}

impl Sender {
    pub async fn send(&self, mut bytes: Vec<u8>) -> Result<(), Gone> {
        bytes.insert(0, self.channel);
        self.out.send(Message::binary(bytes)).await.map_err(|_| Gone)
    }
}

/// Serves one connection until the handler returns or the client hangs up; then the handler is dropped where it is.
///
/// # Errors
/// What ended it, where that was not its proper end.
pub async fn serve<F: Future<Output = ()>>(
    socket: impl AsyncRead + AsyncWrite + Unpin,
    line: Line,
    protocol: Protocol,
    wanted: Wanted,
    handler: impl FnOnce(Channels) -> F,
) -> io::Result<()> {
    let (sink, mut stream) = accept(socket).await.split();
    let (out, outgoing) = mpsc::channel(OUT);
    let (channels, mut inputs) = channels(&out, wanted);
    // By a first message a client sees that the channels are there.
    let greeting = if wanted.stdout { STDOUT } else { ERROR };
    // The queue is empty yet: there is room.
    out.try_send(Message::binary(vec![greeting])).ok();
    let reading = async {
        while let Some(message) = stream.next().await {
            line.touch();
            match message {
                Ok(Message::Close(_)) => break,
                Ok(message) => inputs.take(protocol, &message.into_data(), &line, &out).await?,
                Err(error) => return closed(error),
            }
        }
        Ok(())
    };
    let writing = write_out(sink, outgoing, &line);
    tokio::pin!(reading, writing);
    {
        let handling = handler(channels);
        tokio::pin!(handling);
        tokio::select! {
            read = &mut reading => return read,
            written = &mut writing => return written,
            () = &mut handling => {}
            () = line.idle() => return Err(io::ErrorKind::TimedOut.into()),
        }
    }
    // The queue may be full: there is room for the last word only while it is written out.
    let farewell = async { tokio::join!(out.send(goodbye()), &mut writing).1 };
    tokio::select! {
        // The client has what it wanted.
        _ = &mut reading => return Ok(()),
        written = farewell => written?,
        () = sleep(FAREWELL) => return Err(io::ErrorKind::TimedOut.into()),
    }
    // Until it answers the close or hangs up; either will do, and its silence, too.
    timeout(LINGER, reading).await.ok();
    Ok(())
}

/// Serves SPDY whose bytes travel in binary messages.
///
/// # Errors
/// What ended it, where that was not its proper end.
pub async fn tunnel<F: Future<Output = ()>>(
    socket: impl AsyncRead + AsyncWrite + Unpin,
    line: Line,
    handler: impl FnOnce(mpsc::Receiver<spdy::Stream>) -> F,
) -> io::Result<()> {
    let (mut sink, mut stream) = accept(socket).await.split();
    let (near, far) = tokio::io::duplex(TUNNEL_BYTES);
    let (mut from_spdy, mut to_spdy) = tokio::io::split(near);
    let outward = async move {
        let mut piece = vec![0; PIECE_BYTES];
        loop {
            match from_spdy.read(&mut piece).await? {
                0 => return sink.send(goodbye()).await.map_err(io::Error::other),
                read => sink.send(Message::binary(piece[..read].to_vec())).await.map_err(io::Error::other)?,
            }
        }
    };
    let inward = async move {
        while let Some(Ok(message)) = stream.next().await {
            if message.is_close() || to_spdy.write_all(&message.into_data()).await.is_err() {
                break;
            }
        }
        // The session sees the end; where it has ended itself nobody does.
        to_spdy.shutdown().await.ok();
    };
    let session = async { tokio::try_join!(spdy::serve(far, line, handler), outward).map(|_| ()) };
    tokio::pin!(session, inward);
    tokio::select! {
        ended = &mut session => {
            // As above: the client's answer, its end or its silence.
            timeout(LINGER, inward).await.ok();
            ended
        }
        () = &mut inward => {
            // The client has gone: how the rest ends concerns nobody, but it is given time to.
            timeout(FAREWELL, session).await.ok();
            Ok(())
        }
    }
}

async fn accept<S: AsyncRead + AsyncWrite + Unpin>(socket: S) -> WebSocketStream<S> {
    let config = WebSocketConfig::default()
        .max_message_size(Some(MAX_MESSAGE_BYTES))
        .max_frame_size(Some(MAX_MESSAGE_BYTES))
        .read_buffer_size(PIECE_BYTES)
        .write_buffer_size(PIECE_BYTES)
        .max_write_buffer_size(4 * MAX_MESSAGE_BYTES);
    WebSocketStream::from_raw_socket(socket, Role::Server, Some(config)).await
}

fn goodbye() -> Message {
    Message::Close(Some(CloseFrame { code: CloseCode::Normal, reason: "".into() }))
}

fn closed(error: tungstenite::Error) -> io::Result<()> {
    match error {
        tungstenite::Error::ConnectionClosed | tungstenite::Error::AlreadyClosed => Ok(()),
        // Most clients hang up without a word.
        tungstenite::Error::Protocol(tungstenite::error::ProtocolError::ResetWithoutClosingHandshake) => {
            Ok(())
        }
        other => Err(io::Error::other(other)),
    }
}

/// Where a client's messages go.
struct Inputs {
    stdin: Option<mpsc::Sender<Vec<u8>>>,
    resize: Option<mpsc::Sender<Vec<u8>>>,
}

fn channels(out: &mpsc::Sender<Message>, wanted: Wanted) -> (Channels, Inputs) {
    let outgoing = |channel| Outgoing::WebSocket(Sender { channel, out: out.clone() });
    let incoming =
        |wanted: bool| -> (Option<_>, Option<Incoming>) { wanted.then(|| mpsc::channel(BACKLOG)).unzip() };
    let (stdin, from_stdin) = incoming(wanted.stdin);
    let (resize, from_resize) = incoming(wanted.tty);
    let channels = Channels {
        stdin: from_stdin,
        stdout: wanted.stdout.then(|| outgoing(STDOUT)),
        stderr: wanted.stderr.then(|| outgoing(STDERR)),
        resize: from_resize,
        error: Some(outgoing(ERROR)),
    };
    (channels, Inputs { stdin, resize })
}

impl Inputs {
    async fn take(
        &mut self,
        protocol: Protocol,
        message: &[u8],
        line: &Line,
        out: &mpsc::Sender<Message>,
    ) -> io::Result<()> {
        match message {
            [STDIN, bytes @ ..] => deliver(self.stdin.as_ref(), bytes, line, out).await,
            [RESIZE, bytes @ ..] => deliver(self.resize.as_ref(), bytes, line, out).await,
            [CLOSE, STDIN] if protocol.closes_channels() => {
                self.stdin = None;
                Ok(())
            }
            // Others are ours to send on, or of a later protocol.
            _ => Ok(()),
        }
    }
}

/// Hands bytes to who reads the channel, waiting for room; where nobody reads they are dropped.
async fn deliver(
    to: Option<&mpsc::Sender<Vec<u8>>>,
    bytes: &[u8],
    line: &Line,
    out: &mpsc::Sender<Message>,
) -> io::Result<()> {
    let Some(to) = to.filter(|_| !bytes.is_empty()) else { return Ok(()) };
    loop {
        tokio::select! {
            room = to.reserve() => {
                if let Ok(room) = room {
                    room.send(bytes.to_vec());
                }
                return Ok(());
            }
            () = sleep(LOOK) => {
                if line.hung_up() {
                    return Err(io::ErrorKind::ConnectionAborted.into());
                }
                // An unasked pong is a heartbeat (RFC 6455, 5.5.3). A full queue has enough to send.
                out.try_send(Message::Pong(Default::default())).ok();
            }
        }
    }
}

async fn write_out<S: AsyncRead + AsyncWrite + Unpin>(
    mut sink: SplitSink<WebSocketStream<S>, Message>,
    mut outgoing: mpsc::Receiver<Message>,
    line: &Line,
) -> io::Result<()> {
    while let Some(message) = outgoing.recv().await {
        line.touch();
        let last = message.is_close();
        sink.send(message).await.map_err(io::Error::other)?;
        if last {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod hostile;

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use tokio::net::UnixStream;

    use super::*;
    use crate::streaming::spdy::tests::{Client, Seen, data, echo, fin, wire};

    const WANTED: Wanted = Wanted { stdin: true, stdout: true, stderr: false, tty: true };

    async fn client(socket: UnixStream) -> WebSocketStream<UnixStream> {
        WebSocketStream::from_raw_socket(socket, Role::Client, None).await
    }

    /// Sends input back as output, then the last size and a status.
    async fn talk(mut channels: Channels) {
        let (mut stdin, stdout) = (channels.stdin.take().unwrap(), channels.stdout.take().unwrap());
        while let Some(piece) = stdin.recv().await {
            stdout.send(piece).await.unwrap();
        }
        let size = channels.resize.take().unwrap().recv().await.unwrap();
        channels.error.take().unwrap().send(size).await.unwrap();
    }

    #[tokio::test]
    async fn channels_are_the_first_byte_and_v5_can_close_one() {
        let (theirs, ours, line) = wire();
        let session = tokio::spawn(serve(ours, line, Protocol::V5, WANTED, talk));
        let mut client = client(theirs).await;
        let see = async |client: &mut WebSocketStream<_>| client.next().await.unwrap().unwrap();
        assert_eq!(see(&mut client).await, Message::binary(vec![STDOUT]));
        client.send(Message::binary(b"\x00hello".to_vec())).await.unwrap();
        assert_eq!(see(&mut client).await, Message::binary(b"\x01hello".to_vec()));
        client.send(Message::Ping("x".into())).await.unwrap();
        assert_eq!(see(&mut client).await, Message::Pong("x".into()));
        // Of an unknown channel, and an empty one: passed over.
        for odd in [&b"\x09odd"[..], &[], &[0]] {
            client.send(Message::binary(odd.to_vec())).await.unwrap();
        }
        client.send(Message::binary(b"\x04size".to_vec())).await.unwrap();
        client.send(Message::binary(vec![CLOSE, STDIN])).await.unwrap();
        assert_eq!(see(&mut client).await, Message::binary(b"\x03size".to_vec()));
        assert_eq!(see(&mut client).await, goodbye());
        assert!(client.next().await.is_none_or(|last| last.is_err()));
        session.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn what_is_still_queued_at_the_end_arrives() {
        let (theirs, ours, line) = wire();
        let (tell, told) = tokio::sync::oneshot::channel();
        let brimful = async move |mut channels: Channels| {
            let stdout = channels.stdout.take().unwrap();
            let mut sent = 0;
            while stdout.send(vec![7; PIECE_BYTES]).now_or_never().is_some() {
                sent += PIECE_BYTES;
            }
            tell.send(sent).unwrap();
        };
        let session = tokio::spawn(async move { serve(ours, line, Protocol::V5, WANTED, brimful).await });
        let mut client = client(theirs).await;
        assert_eq!(client.next().await.unwrap().unwrap(), Message::binary(vec![STDOUT]));
        let mut got = 0;
        let last = loop {
            match client.next().await.unwrap().unwrap() {
                Message::Binary(bytes) => got += bytes.len() - 1,
                other => break other,
            }
        };
        assert_eq!((got, last), (told.await.unwrap(), goodbye()));
        assert!(got > 0);
        drop(client);
        session.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn before_v5_nothing_closes_a_channel_and_a_client_that_goes_ends_it_all() {
        let (theirs, ours, line) = wire();
        let session = tokio::spawn(serve(ours, line, Protocol::V4, WANTED, talk));
        let mut client = client(theirs).await;
        client.send(Message::binary(vec![CLOSE, STDIN])).await.unwrap();
        client.send(Message::binary(b"\x00still".to_vec())).await.unwrap();
        assert_eq!(client.next().await.unwrap().unwrap().into_data()[..], [STDOUT]);
        assert_eq!(client.next().await.unwrap().unwrap().into_data()[..], *b"\x01still");
        drop(client);
        session.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_message_that_is_too_large_ends_the_session() {
        let (theirs, ours, line) = wire();
        let session = tokio::spawn(serve(ours, line, Protocol::V5, WANTED, talk));
        let mut client = client(theirs).await;
        // The server may hang up before it is all written.
        client.send(Message::binary(vec![0; MAX_MESSAGE_BYTES + 1])).await.ok();
        assert!(session.await.unwrap().unwrap_err().to_string().contains("too long"));
    }

    #[tokio::test]
    async fn spdy_goes_through_a_tunnel() {
        let (theirs, ours, line) = wire();
        let session = tokio::spawn(tunnel(ours, line, echo));
        let (near, far) = tokio::io::duplex(TUNNEL_BYTES);
        let (mut sink, mut stream) = client(theirs).await.split();
        let (mut read, mut write) = tokio::io::split(far);
        let inward = tokio::spawn(async move {
            while let Some(Ok(Message::Binary(bytes))) = stream.next().await {
                write.write_all(&bytes).await.unwrap();
            }
            write.shutdown().await.unwrap();
        });
        let outward = tokio::spawn(async move {
            let mut piece = vec![0; 1000];
            while let Ok(taken @ 1..) = read.read(&mut piece).await {
                sink.send(Message::binary(piece[..taken].to_vec())).await.unwrap();
            }
        });
        let mut client = Client::new(near);
        let stream = client.open(&[("streamtype", "data")]).await;
        client.data(stream, &[7; 3000]).await;
        let mut got = 0;
        while got < 3000 {
            let Seen::Data { bytes, .. } = client.see().await else { panic!("no data") };
            got += bytes.len();
        }
        client.data(stream, b"end").await;
        assert_eq!(client.see().await, data(stream, b"end"));
        client.fin(stream).await;
        assert_eq!(client.see().await, fin(stream));
        assert!(matches!(client.see().await, Seen::Control(_)));
        assert_eq!(client.see().await, Seen::End);
        drop(client);
        inward.await.unwrap();
        outward.await.unwrap();
        session.await.unwrap().unwrap();
    }
}
