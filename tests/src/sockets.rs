//! WebSocket at a streaming URL, by a client of a few lines: Kubernetes' channels, and a tunnel for SPDY.

use std::{
    fmt,
    io::{self, Read, Write},
    net::TcpStream,
    time::Duration,
};

use serde_json::Value;

pub const STDIN: u8 = 0;
pub const STDOUT: u8 = 1;
pub const STDERR: u8 = 2;
pub const ERROR: u8 = 3;
pub const CLOSE: u8 = 255;

/// A connection, plain or in TLS.
pub trait Wire: Read + Write + fmt::Debug {}
impl<S: Read + Write + fmt::Debug> Wire for S {}

/// A client of one WebSocket; the messages that it sends on channels are short.
#[derive(Debug)]
pub struct Socket(Box<dyn Wire>);

/// What goes through one as a stream of bytes.
#[derive(Debug)]
pub struct Tunnel {
    socket: Socket,
    /// Come and not read yet.
    rest: io::Cursor<Vec<u8>>,
}

/// Connects to `host:port`; a read waits no longer than a test may.
pub fn connect(host: &str) -> TcpStream {
    let socket = TcpStream::connect(host).expect("connect to the streaming server");
    socket.set_read_timeout(Some(Duration::from_secs(20))).expect("bound the reads");
    socket
}

/// Host with port, and path with its slash, of a URL.
pub fn parts(url: &str) -> (&str, &str) {
    let (_, rest) = url.split_once("://").expect("a URL has a scheme");
    rest.split_at(rest.find('/').expect("a URL has a path"))
}

/// Asks for another protocol, by these headers, and gives the answer's head, or the status that refused.
///
/// # Errors
/// The HTTP status, where it isn't 101.
pub fn upgrade(wire: &mut dyn Wire, verb: &str, url: &str, headers: &str) -> Result<String, u16> {
    let (host, path) = parts(url);
    let request = format!("{verb} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\n{headers}\r\n");
    wire.write_all(request.as_bytes()).expect("ask");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        wire.read_exact(&mut byte).expect("an answer");
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).expect("a head is text");
    match head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a head has a status") {
        101 => Ok(head),
        refused => Err(refused),
    }
}

impl Socket {
    /// Upgrades a new connection.
    ///
    /// # Errors
    /// The HTTP status that refused.
    pub fn open(url: &str, protocol: &str) -> Result<Self, u16> {
        Self::over(Box::new(connect(parts(url).0)), url, protocol)
    }

    /// The same over a connection that is there.
    ///
    /// # Errors
    /// The HTTP status that refused.
    pub fn over(mut wire: Box<dyn Wire>, url: &str, protocol: &str) -> Result<Self, u16> {
        let headers = format!(
            "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
             Sec-WebSocket-Protocol: {protocol}\r\n"
        );
        let head = upgrade(&mut wire, "GET", url, &headers)?;
        assert!(head.contains(protocol), "{head}");
        Ok(Self(wire))
    }

    /// A message on a channel.
    pub fn send(&mut self, channel: u8, bytes: &[u8]) {
        self.put(&[&[channel], bytes].concat());
    }

    /// A masked binary message whose mask changes nothing.
    fn put(&mut self, bytes: &[u8]) {
        let mut message = vec![0x82];
        match u16::try_from(bytes.len()).expect("messages are short") {
            long @ 126.. => {
                message.push(0x80 | 126);
                message.extend_from_slice(&long.to_be_bytes());
            }
            short => message.push(0x80 | short as u8),
        }
        message.extend_from_slice(&[0; 4]);
        message.extend_from_slice(bytes);
        self.0.write_all(&message).expect("send a message");
    }

    /// The next message; `None` at the close.
    fn get(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut head = [0; 2];
        self.0.read_exact(&mut head)?;
        let length = match head[1] {
            126 => {
                let mut long = [0; 2];
                self.0.read_exact(&mut long)?;
                usize::from(u16::from_be_bytes(long))
            }
            127 => {
                let mut long = [0; 8];
                self.0.read_exact(&mut long)?;
                usize::try_from(u64::from_be_bytes(long)).expect("a length that is one")
            }
            short => usize::from(short),
        };
        let mut bytes = vec![0; length];
        self.0.read_exact(&mut bytes)?;
        match head[0] {
            0x82 => Ok(Some(bytes)),
            0x88 => Ok(None),
            other => panic!("a frame of kind {other:#x}"),
        }
    }

    /// The next message's channel and bytes; `None` at the close.
    pub fn see(&mut self) -> Option<(u8, Vec<u8>)> {
        let mut bytes = self.get().expect("a message or a close")?;
        Some((bytes.remove(0), bytes))
    }

    /// What comes until the close: output, errors, and the status.
    pub fn rest(mut self) -> (String, String, Value) {
        let mut all = [const { Vec::new() }; 4];
        while let Some((channel, bytes)) = self.see() {
            all[usize::from(channel)].extend(bytes);
        }
        let text = |channel: u8| String::from_utf8(all[usize::from(channel)].clone()).expect("text");
        (text(STDOUT), text(STDERR), serde_json::from_str(&text(ERROR)).expect("a status is JSON"))
    }

    pub fn tunnel(self) -> Tunnel {
        Tunnel { socket: self, rest: io::Cursor::default() }
    }
}

impl Read for Tunnel {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.rest.read(buffer)? {
                0 => match self.socket.get()? {
                    Some(bytes) => self.rest = io::Cursor::new(bytes),
                    None => return Ok(0),
                },
                some => return Ok(some),
            }
        }
    }
}

impl Write for Tunnel {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.socket.put(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
