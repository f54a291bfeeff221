//! SPDY/3.1 as kubelets and crictl speak it (draft-mbelshe-httpbis-spdy-00 with 3.1's windows): a client that waits for
//! each thing in turn. Like the Go library's it knows no windows.

use std::collections::{BTreeMap, BTreeSet};

use flate2::{Compress, Compression, FlushCompress};
use serde_json::Value;

use crate::sockets::{Wire, connect, parts, upgrade};

// A table of the draft's, checked there by its Adler-32: written down once for both ends.
#[path = "../../runtime/src/streaming/spdy/dictionary.rs"]
mod dictionary;

const OPEN: u16 = 1;
const REPLY: u16 = 2;
const RESET: u16 = 3;
const PING: u16 = 6;
const FIN: u8 = 1;

/// A session, and what has come on its streams.
#[derive(Debug)]
pub struct Spdy {
    wire: Box<dyn Wire>,
    deflate: Compress,
    next: u32,
    come: BTreeMap<u32, Vec<u8>>,
    ended: BTreeSet<u32>,
    reset: BTreeSet<u32>,
    replied: BTreeSet<u32>,
}

impl Spdy {
    /// Upgrades a new connection, as for `X-Stream-Protocol-Version: protocol`.
    ///
    /// # Errors
    /// The HTTP status that refused.
    pub fn open(url: &str, protocol: &str) -> Result<Self, u16> {
        let mut wire = connect(parts(url).0);
        let headers = format!("Upgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: {protocol}\r\n");
        let head = upgrade(&mut wire, "POST", url, &headers)?;
        assert!(head.contains(protocol), "{head}");
        Ok(Self::over(Box::new(wire)))
    }

    /// A session over what carries it already.
    pub fn over(wire: Box<dyn Wire>) -> Self {
        let mut deflate = Compress::new(Compression::fast(), true);
        deflate.set_dictionary(&dictionary::DICTIONARY).expect("prime zlib");
        Self {
            wire,
            deflate,
            next: 1,
            come: BTreeMap::new(),
            ended: BTreeSet::new(),
            reset: BTreeSet::new(),
            replied: BTreeSet::new(),
        }
    }

    /// Opens a stream and waits until it is taken.
    pub fn stream(&mut self, headers: &[(&str, &str)]) -> u32 {
        let stream = self.next;
        self.next += 2;
        let mut block = (headers.len() as u32).to_be_bytes().to_vec();
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            block.extend_from_slice(&(text.len() as u32).to_be_bytes());
            block.extend_from_slice(text.as_bytes());
        }
        let mut small = Vec::with_capacity(block.len() + 256);
        self.deflate.compress_vec(&block, &mut small, FlushCompress::Sync).expect("deflate the headers");
        assert!(small.len() < small.capacity(), "the flush is complete");
        let mut payload = stream.to_be_bytes().to_vec();
        // No other stream that it belongs to, no priority.
        payload.extend_from_slice(&[0; 6]);
        payload.extend(small);
        self.control(OPEN, &payload);
        self.until(|session| session.replied.contains(&stream) || session.reset.contains(&stream));
        stream
    }

    /// One of the streams of an exec or an attach.
    pub fn of_type(&mut self, kind: &str) -> u32 {
        self.stream(&[("streamtype", kind)])
    }

    /// The two streams of a forwarded connection: what goes wrong, and the bytes.
    pub fn forward(&mut self, port: u16, id: &str) -> (u32, u32) {
        let port = port.to_string();
        let headers = |kind| [("streamtype", kind), ("port", port.as_str()), ("requestid", id)];
        (self.stream(&headers("error")), self.stream(&headers("data")))
    }

    pub fn send(&mut self, stream: u32, bytes: &[u8], last: bool) {
        let length = u32::try_from(bytes.len()).expect("frames are short").to_be_bytes();
        let mut frame = stream.to_be_bytes().to_vec();
        frame.push(if last { FIN } else { 0 });
        frame.extend_from_slice(&length[1..]);
        frame.extend_from_slice(bytes);
        self.wire.write_all(&frame).expect("send data");
    }

    /// Waits until so much has come on a stream and takes it.
    pub fn take(&mut self, stream: u32, count: usize) -> Vec<u8> {
        self.until(|session| session.come.get(&stream).is_some_and(|come| come.len() >= count));
        self.come.get_mut(&stream).expect("it has come").drain(..count).collect()
    }

    /// What comes on a stream until its end.
    pub fn rest(&mut self, stream: u32) -> Vec<u8> {
        self.until(|session| session.ended.contains(&stream));
        self.come.remove(&stream).unwrap_or_default()
    }

    /// The same as text.
    pub fn text(&mut self, stream: u32) -> String {
        String::from_utf8(self.rest(stream)).expect("text")
    }

    /// The status that an error stream ends with; nothing is success before version 4.
    pub fn status(&mut self, stream: u32) -> Value {
        serde_json::from_slice(&self.rest(stream)).expect("a status is JSON")
    }

    fn until(&mut self, done: impl Fn(&Self) -> bool) {
        while !done(self) {
            self.frame();
        }
    }

    /// Takes in one frame.
    fn frame(&mut self) {
        let mut head = [0; 8];
        self.wire.read_exact(&mut head).expect("a frame");
        let [a, b, c, d, flags, e, f, g] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, e, f, g]) as usize];
        self.wire.read_exact(&mut payload).expect("a whole frame");
        let stream = |bytes: &[u8]| {
            u32::from_be_bytes(bytes[..4].try_into().expect("four bytes are four bytes")) & 0x7fff_ffff
        };
        if a & 0x80 == 0 {
            let stream = stream(&[a, b, c, d]);
            self.come.entry(stream).or_default().extend(payload);
            if flags & FIN != 0 {
                self.ended.insert(stream);
            }
            return;
        }
        assert_eq!((a, b), (0x80, 3), "SPDY version 3");
        match u16::from_be_bytes([c, d]) {
            REPLY => drop(self.replied.insert(stream(&payload))),
            RESET => drop(self.reset.insert(stream(&payload))),
            PING => self.control(PING, &payload),
            // Settings, windows, and a farewell that says nothing of streams.
            4 | 7 | 9 => {}
            other => panic!("a control frame of type {other}"),
        }
    }

    fn control(&mut self, kind: u16, payload: &[u8]) {
        let length = u32::try_from(payload.len()).expect("frames are short").to_be_bytes();
        let mut frame = vec![0x80, 3];
        frame.extend_from_slice(&kind.to_be_bytes());
        frame.push(0);
        frame.extend_from_slice(&length[1..]);
        frame.extend_from_slice(payload);
        self.wire.write_all(&frame).expect("send a control frame");
    }
}
