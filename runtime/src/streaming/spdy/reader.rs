//! The reading half of a session: sorts what the client sends to the streams.

use std::{collections::HashMap, io, sync::Arc};

use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader, ReadHalf},
    sync::mpsc,
    time::sleep,
};

use super::{
    MAX_STREAMS, Out, Sender, Stream,
    flow::{self, Flow},
    frame::{Control, HEAD_BYTES, Head, Reset},
    header::{Headers, Inflater},
};
use crate::streaming::{
    channels::BACKLOG,
    ends::PIECE_BYTES,
    line::{LOOK, Line},
};

/// Read at once: a frame of a client's is 32 KiB and its head, and should make one piece.
const BUFFER_BYTES: usize = 2 * PIECE_BYTES;
/// A window that has been used by half grows to this: few frames give back what bulk has taken. What the client may
/// send ahead waits in its socket, not in memory of ours.
pub const WINDOW_BYTES: u32 = 512 * 1024;

#[derive(Debug)]
pub struct Reader<S> {
    socket: BufReader<ReadHalf<S>>,
    line: Line,
    inflater: Inflater,
    flow: Arc<Flow>,
    out: mpsc::Sender<Out>,
    opened: mpsc::Sender<Stream>,
    inputs: HashMap<u32, Input>,
    /// The connection's.
    window: Window,
    last: u32,
}

#[derive(Debug)]
struct Input {
    sender: mpsc::Sender<Vec<u8>>,
    window: Window,
}

/// What the client may send, and what of it was taken since some was given back.
#[derive(Debug)]
struct Window {
    bytes: u32,
    taken: u32,
}

impl Window {
    fn new() -> Self {
        Self { bytes: flow::INITIAL_BYTES as u32, taken: 0 }
    }

    /// What is to be given back now that so much more was taken.
    fn take(&mut self, bytes: u32) -> Option<u32> {
        self.taken += bytes;
        if self.taken < self.bytes / 2 {
            return None;
        }
        let grown = WINDOW_BYTES - std::mem::replace(&mut self.bytes, WINDOW_BYTES);
        Some(std::mem::take(&mut self.taken) + grown)
    }
}

impl<S: AsyncRead> Reader<S> {
    pub fn new(
        socket: ReadHalf<S>,
        line: Line,
        out: mpsc::Sender<Out>,
        opened: mpsc::Sender<Stream>,
    ) -> Self {
        Self {
            socket: BufReader::with_capacity(BUFFER_BYTES, socket),
            line,
            inflater: Inflater::new(),
            flow: Arc::new(Flow::new()),
            out,
            opened,
            inputs: HashMap::new(),
            window: Window::new(),
            last: 0,
        }
    }

    /// Until the client hangs up.
    pub async fn run(&mut self) -> io::Result<()> {
        loop {
            let mut head = [0; HEAD_BYTES];
            match self.socket.read_exact(&mut head).await {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                Err(error) => return Err(error),
            }
            self.line.touch();
            match Head::parse(head)? {
                Head::Data { stream, fin, length } => self.data(stream, fin, length).await?,
                Head::Control { kind, flags, length } => {
                    let mut payload = vec![0; length];
                    self.socket.read_exact(&mut payload).await?;
                    let control = Control::parse(kind, flags, &payload, &mut self.inflater)?;
                    self.control(control).await?;
                }
            }
        }
    }

    async fn control(&mut self, control: Control) -> io::Result<()> {
        match control {
            Control::Open { stream, fin, unidirectional, headers } => {
                self.open(stream, headers, unidirectional).await?;
                if fin {
                    self.ended(stream);
                }
            }
            Control::Headers { stream, fin: true } => self.ended(stream),
            Control::Reset { stream } => {
                self.inputs.remove(&stream);
                self.flow.reset(stream);
            }
            Control::Settings { initial_window: Some(window) } => self.flow.initial(window),
            // Even ones would be answers to ours, and we ask none.
            Control::Ping { id } if id % 2 == 1 => send(&self.out, Out::Ping(id)).await?,
            Control::WindowUpdate { stream, delta } => self.flow.more(stream, delta),
            Control::Headers { .. }
            | Control::Settings { .. }
            | Control::Ping { .. }
            // It opens no more; what is open goes on.
            | Control::GoAway
            | Control::Reply { .. }
            | Control::Unknown => {}
        }
        Ok(())
    }

    async fn open(&mut self, stream: u32, headers: Headers, unidirectional: bool) -> io::Result<()> {
        // A client's are odd and grow.
        if stream.is_multiple_of(2) || stream <= self.last || unidirectional {
            return send(&self.out, Out::Reset(stream, Reset::ProtocolError)).await;
        }
        self.last = stream;
        if !self.flow.open(stream, MAX_STREAMS) {
            return send(&self.out, Out::Reset(stream, Reset::Refused)).await;
        }
        let (sender, incoming) = mpsc::channel(BACKLOG);
        send(&self.out, Out::Reply(stream)).await?;
        let ours = Sender { stream, out: self.out.clone(), flow: self.flow.clone() };
        let opened = Stream { id: stream, headers, incoming, sender: ours };
        match self.opened.send(opened).await {
            Ok(()) => {
                self.inputs.insert(stream, Input { sender, window: Window::new() });
                Ok(())
            }
            // The handler wants no more of them.
            Err(refused) => {
                refused.0.refuse().await;
                Ok(())
            }
        }
    }

    async fn data(&mut self, stream: u32, fin: bool, length: usize) -> io::Result<()> {
        if stream > self.last {
            send(&self.out, Out::Reset(stream, Reset::InvalidStream)).await?;
        }
        let mut left = length;
        while left > 0 {
            let come = self.socket.fill_buf().await?;
            let piece = come[..come.len().min(left).min(PIECE_BYTES)].to_vec();
            let read = piece.len();
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.socket.consume(read);
            left -= read;
            self.line.touch();
            self.deliver(stream, piece).await?;
            self.give_back(stream, read as u32).await?;
        }
        if fin {
            self.ended(stream);
        }
        Ok(())
    }

    /// Hands bytes to who reads the stream, waiting for room; where nobody reads they are dropped.
    async fn deliver(&mut self, stream: u32, piece: Vec<u8>) -> io::Result<()> {
        let Some(input) = self.inputs.get(&stream) else { return Ok(()) };
        loop {
            tokio::select! {
                room = input.sender.reserve() => {
                    if let Ok(room) = room {
                        room.send(piece);
                    }
                    return Ok(());
                }
                () = sleep(LOOK) => {
                    if self.line.hung_up() {
                        return Err(io::ErrorKind::ConnectionAborted.into());
                    }
                    // A full queue has enough to send.
                    self.out.try_send(Out::Heartbeat).ok();
                }
            }
        }
    }

    /// Lets the client send as much again as was taken, now and then.
    async fn give_back(&mut self, stream: u32, bytes: u32) -> io::Result<()> {
        if let Some(delta) = self.window.take(bytes) {
            send(&self.out, Out::WindowUpdate(0, delta)).await?;
        }
        let window = self.inputs.get_mut(&stream).map(|input| &mut input.window);
        if let Some(delta) = window.and_then(|window| window.take(bytes)) {
            send(&self.out, Out::WindowUpdate(stream, delta)).await?;
        }
        Ok(())
    }

    fn ended(&mut self, stream: u32) {
        self.inputs.remove(&stream);
        self.flow.theirs_closed(stream);
    }
}

async fn send(to: &mpsc::Sender<Out>, out: Out) -> io::Result<()> {
    to.send(out).await.map_err(|_| io::ErrorKind::BrokenPipe.into())
}
