//! The streams of an exec or an attach, whichever protocol carries them, and what flows between them and the ends of
//! a process.

use std::time::Duration;

use serde::Deserialize;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::{
    ends::{End, Left},
    spdy, websocket,
};
use crate::Result;

/// Pieces that may wait for who reads a stream.
pub const BACKLOG: usize = 2;

/// The client has gone, or closed this stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gone;

/// Pieces that a client sends on one stream; ends when it closes it.
pub type Incoming = mpsc::Receiver<Vec<u8>>;

/// A stream to the client.
#[derive(Debug, Clone)]
pub enum Outgoing {
    Spdy(spdy::Sender),
    WebSocket(websocket::Sender),
}

impl Outgoing {
    pub async fn send(&self, bytes: Vec<u8>) -> Result<(), Gone> {
        match self {
            Self::Spdy(sender) => sender.send(bytes).await,
            Self::WebSocket(sender) => sender.send(bytes).await,
        }
    }

    pub async fn finish(&self) {
        match self {
            Self::Spdy(sender) => sender.finish().await,
            // A channel ends with the connection.
            Self::WebSocket(_) => {}
        }
    }
}

/// What the client opened of what it asked for.
#[derive(Debug)]
pub struct Channels {
    pub stdin: Option<Incoming>,
    pub stdout: Option<Outgoing>,
    pub stderr: Option<Outgoing>,
    pub resize: Option<Incoming>,
    pub error: Option<Outgoing>,
}

/// Which of its streams a client asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub tty: bool,
}

/// A terminal's new size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct Size {
    #[serde(rename = "Width")]
    pub columns: u16,
    #[serde(rename = "Height")]
    pub rows: u16,
}

/// Copies what a process writes until its end, and then what of it is still there. A client that closed the stream is
/// sent no more; the process may write on.
pub async fn copy_out(
    end: Option<&End>,
    to: Option<&Outgoing>,
    ended: &CancellationToken,
    patience: Duration,
) {
    let Some(end) = end else { return };
    let mut listener = to;
    let mut open = true;
    while open {
        tokio::select! {
            biased;
            () = ended.cancelled() => break,
            piece = end.read() => open = pass_on(piece, &mut listener).await,
        }
    }
    let mut left = Left::patient(patience);
    while open && let Some(piece) = end.rest(&mut left).await {
        open = pass_on(Ok(piece), &mut listener).await;
    }
    if let Some(to) = to {
        to.finish().await;
    }
}

/// False at the end.
async fn pass_on(piece: Result<Vec<u8>>, listener: &mut Option<&Outgoing>) -> bool {
    let piece = match piece {
        Ok(piece) => piece,
        Err(error) => {
            debug!(error = error.chain(), "output cut short");
            return false;
        }
    };
    if piece.is_empty() {
        return false;
    }
    if let Some(to) = *listener
        && to.send(piece).await == Err(Gone)
    {
        *listener = None;
    }
    true
}

/// Copies what the client types. Returns at its end, or when nobody reads any more.
pub async fn copy_in(mut from: Incoming, end: &End) {
    while let Some(piece) = from.recv().await {
        if let Err(error) = end.write(&piece).await {
            debug!(error = error.chain(), "nobody reads the input");
            return;
        }
    }
}

/// The sizes in a stream of JSON documents, which may come in any pieces.
#[derive(Debug, Default)]
pub struct Sizes(Vec<u8>);

impl Sizes {
    const MOST_BYTES: usize = 1024;

    /// The last size that is whole with this piece.
    pub fn push(&mut self, piece: &[u8]) -> Option<Size> {
        self.0.extend_from_slice(piece);
        let mut sizes = serde_json::Deserializer::from_slice(&self.0).into_iter::<Size>();
        let (mut last, mut done) = (None, 0);
        let broken = loop {
            match sizes.next() {
                Some(Ok(size)) => (last, done) = (Some(size), sizes.byte_offset()),
                Some(Err(error)) => break !error.is_eof(),
                None => break false,
            }
        };
        self.0.drain(..done);
        if broken || self.0.len() > Self::MOST_BYTES {
            self.0.clear();
        }
        last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_come_in_any_pieces() {
        let size = |columns, rows| Some(Size { columns, rows });
        let rows: [(&[&str], &[Option<Size>]); 5] = [
            (&[r#"{"Width":80,"Height":24}"#], &[size(80, 24)]),
            (&["{\"Width\":80,", "\"Height\":24}\n", ""], &[None, size(80, 24), None]),
            (&["{\"Width\":1,\"Height\":2}\n{\"Width\":3,\"Height\":4}\n{"], &[size(3, 4)]),
            (&["nonsense", r#"{"Width":1,"Height":2}"#], &[None, size(1, 2)]),
            (&[r#"{"Width":99999,"Height":2}"#, r#"{"Width":1,"Height":2}"#], &[None, size(1, 2)]),
        ];
        for (pieces, expected) in rows {
            let mut sizes = Sizes::default();
            let got: Vec<_> = pieces.iter().map(|piece| sizes.push(piece.as_bytes())).collect();
            assert_eq!(got, expected, "{pieces:?}");
        }
        let mut endless = Sizes::default();
        for _ in 0..100 {
            assert_eq!(endless.push(&[b' '; 100]), None);
        }
        assert!(endless.0.len() <= Sizes::MOST_BYTES);
    }
}
