//! A SPDY/3.1 session as its server: the client opens streams, we answer and talk on them.
//!
//! ```text
//! socket ──> reader ──Stream──> handler          reader ──bytes of a stream──> its Incoming (bounded)
//!   ^──── writer <──Out── handler's Senders, reader (replies, pings, windows)
//! ```
//! A stream whose bytes nobody takes holds the whole connection back, for clients know no windows (see `flow`): memory
//! is bounded so, and nothing is lost. All of a session is one future: dropped, all of it ends.

mod dictionary;
mod flow;
mod frame;
mod header;
#[cfg(test)]
pub mod hostile;
mod reader;
#[cfg(test)]
pub mod tests;

use std::{future::Future, io, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, BufWriter, WriteHalf},
    sync::mpsc,
    time::{sleep, timeout},
};
use tokio_util::bytes::Buf;

use self::{
    flow::Flow,
    frame::Reset,
    header::{Deflater, Headers},
    reader::Reader,
};
use super::{channels::Gone, ends::PIECE_BYTES, line::Line};

/// Of a session; a forwarded connection has two.
const MAX_STREAMS: usize = 256;
/// Frames on their way out, at most a piece each.
const OUT: usize = 8;
/// What is still to be sent when all is said may take so long.
const FAREWELL: Duration = Duration::from_secs(60);
/// So long the client may take to hang up after it.
const LINGER: Duration = Duration::from_secs(5);

/// A stream that the client has opened.
#[derive(Debug)]
pub struct Stream {
    pub id: u32,
    headers: Headers,
    /// Ends when the client closes its half.
    pub incoming: mpsc::Receiver<Vec<u8>>,
    pub sender: Sender,
}

/// Our half of a stream.
#[derive(Debug, Clone)]
pub struct Sender {
    stream: u32,
    out: mpsc::Sender<Out>,
    flow: Arc<Flow>,
}

#[derive(Debug)]
enum Out {
    Reply(u32),
    Reset(u32, Reset),
    Ping(u32),
    WindowUpdate(u32, u32),
    Data(u32, Vec<u8>),
    Fin(u32),
    GoAway(u32),
    /// Says nothing, and asks for no answer.
    Heartbeat,
}

impl Stream {
    pub fn header(&self, name: &str) -> Option<&str> {
        header::value(&self.headers, name)
    }

    /// Tells the client that nobody talks on it.
    pub async fn refuse(self) {
        self.sender.reset(Reset::Refused).await;
    }
}

impl Sender {
    /// Sends all of it at the client's pace.
    pub async fn send(&self, mut bytes: Vec<u8>) -> Result<(), Gone> {
        while !bytes.is_empty() {
            let wanted = bytes.len().min(PIECE_BYTES);
            let granted = self.flow.take(self.stream, wanted).await.ok_or(Gone)?;
            let rest = bytes.split_off(granted);
            self.out.send(Out::Data(self.stream, bytes)).await.map_err(|_| Gone)?;
            bytes = rest;
        }
        Ok(())
    }

    /// Says that nothing more comes.
    pub async fn finish(&self) {
        // A session that has ended needs no end of a stream.
        self.out.send(Out::Fin(self.stream)).await.ok();
        self.flow.ours_closed(self.stream);
    }

    /// Resolves when the client has reset the stream, or both have closed it.
    pub async fn gone(&self) {
        self.flow.gone(self.stream).await;
    }

    /// Gives the stream up; the client may not send on it any more.
    pub async fn cancel(&self) {
        self.reset(Reset::Cancel).await;
    }

    async fn reset(&self, reason: Reset) {
        self.flow.reset(self.stream);
        self.out.send(Out::Reset(self.stream, reason)).await.ok();
    }
}

/// Serves one connection until the handler returns or the client hangs up; then the handler is dropped where it is.
///
/// # Errors
/// What ended it, where that was not its proper end.
pub async fn serve<F: Future<Output = ()>>(
    socket: impl AsyncRead + AsyncWrite + Unpin,
    line: Line,
    handler: impl FnOnce(mpsc::Receiver<Stream>) -> F,
) -> io::Result<()> {
    let (read, write) = tokio::io::split(socket);
    let (out, outgoing) = mpsc::channel(OUT);
    let (opened, streams) = mpsc::channel(1);
    let mut reader = Reader::new(read, line.clone(), out.clone(), opened);
    let reading = reader.run();
    let writing = write_out(write, outgoing, &line);
    tokio::pin!(reading, writing);
    {
        let handling = handler(streams);
        tokio::pin!(handling);
        tokio::select! {
            read = &mut reading => return read,
            written = &mut writing => return written,
            () = &mut handling => {}
            () = line.idle() => return Err(io::ErrorKind::TimedOut.into()),
        }
    }
    // The queue may be full: there is room for the last word only while it is written out.
    let farewell = async { tokio::join!(out.send(Out::GoAway(0)), &mut writing).1 };
    tokio::select! {
        // The client has what it wanted.
        _ = &mut reading => return Ok(()),
        written = farewell => written?,
        () = sleep(FAREWELL) => return Err(io::ErrorKind::TimedOut.into()),
    }
    // Closed with something unread, the kernel would reset the connection and the client could miss the last of it.
    // Either outcome will do.
    timeout(LINGER, reading).await.ok();
    Ok(())
}

async fn write_out(
    socket: WriteHalf<impl AsyncWrite + Unpin>,
    mut outgoing: mpsc::Receiver<Out>,
    line: &Line,
) -> io::Result<()> {
    let mut socket = BufWriter::new(socket);
    let mut deflater = Deflater::new()?;
    loop {
        let next = match outgoing.try_recv() {
            Ok(next) => Some(next),
            Err(_) => {
                socket.flush().await?;
                outgoing.recv().await
            }
        };
        line.touch();
        match next {
            Some(Out::Data(stream, bytes)) => {
                // In one write: by a head alone the client would be woken in vain.
                let head = frame::data(stream, false, bytes.len());
                socket.write_all_buf(&mut Buf::chain(&head[..], &bytes[..])).await?;
            }
            Some(Out::Fin(stream)) => socket.write_all(&frame::data(stream, true, 0)).await?,
            Some(Out::Reply(stream)) => socket.write_all(&frame::reply(stream, &mut deflater)?).await?,
            Some(Out::Reset(stream, reason)) => socket.write_all(&frame::reset(stream, reason)).await?,
            Some(Out::Heartbeat) => socket.write_all(&frame::no_settings()).await?,
            Some(Out::Ping(id)) => socket.write_all(&frame::ping(id)).await?,
            Some(Out::WindowUpdate(stream, delta)) => {
                socket.write_all(&frame::window_update(stream, delta)).await?;
            }
            Some(Out::GoAway(last)) => {
                socket.write_all(&frame::go_away(last)).await?;
                return socket.shutdown().await;
            }
            None => return socket.shutdown().await,
        }
    }
}
