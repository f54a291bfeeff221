//! Frames of SPDY/3.1 as bytes: what a peer sends is parsed, what we send is encoded. Nothing here waits.
//!
//! ```text
//! control  1 version:15 type:16 | flags:8 length:24 | payload        data  0 stream:31 | flags:8 length:24 | payload
//! ```

use std::io;

use super::header::{Deflater, Headers, Inflater};

pub const HEAD_BYTES: usize = 8;
/// Of a control frame. A data frame may be of any size: it is passed on in pieces.
pub const MAX_CONTROL_BYTES: usize = 64 * 1024;

const VERSION: u16 = 3;
const FIN: u8 = 1;
const UNIDIRECTIONAL: u8 = 2;
const INITIAL_WINDOW_SIZE: u32 = 7;

/// RST_STREAM's reasons that we give.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reset {
    ProtocolError = 1,
    InvalidStream = 2,
    Refused = 3,
    Cancel = 5,
}

/// The first eight bytes of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Head {
    Control { kind: u16, flags: u8, length: usize },
    Data { stream: u32, fin: bool, length: usize },
}

/// A control frame of the peer's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Control {
    Open {
        stream: u32,
        fin: bool,
        unidirectional: bool,
        headers: Headers,
    },
    Reply {
        stream: u32,
        fin: bool,
    },
    Reset {
        stream: u32,
    },
    /// The initial window, where it says one.
    Settings {
        initial_window: Option<u32>,
    },
    Ping {
        id: u32,
    },
    GoAway,
    Headers {
        stream: u32,
        fin: bool,
    },
    WindowUpdate {
        stream: u32,
        delta: u32,
    },
    /// A type that came after SPDY/3; such frames are passed over.
    Unknown,
}

impl Head {
    /// # Errors
    /// `InvalidData` for another version, and for a control frame that is too large.
    pub fn parse(bytes: [u8; HEAD_BYTES]) -> io::Result<Self> {
        let [a, b, c, d, flags, e, f, g] = bytes;
        let length = u32::from_be_bytes([0, e, f, g]) as usize;
        if a & 0x80 == 0 {
            let stream = u32::from_be_bytes([a, b, c, d]);
            return match stream {
                0 => Err(invalid("data for stream 0")),
                _ => Ok(Self::Data { stream, fin: flags & FIN != 0, length }),
            };
        }
        let version = u16::from_be_bytes([a & 0x7f, b]);
        if version != VERSION {
            return Err(invalid(format!("a frame of SPDY version {version}")));
        }
        if length > MAX_CONTROL_BYTES {
            return Err(invalid(format!("a control frame of {length} bytes")));
        }
        Ok(Self::Control { kind: u16::from_be_bytes([c, d]), flags, length })
    }
}

impl Control {
    /// # Errors
    /// `InvalidData`: the connection can't go on, its header compression may be out of step.
    pub fn parse(kind: u16, flags: u8, payload: &[u8], inflater: &mut Inflater) -> io::Result<Self> {
        let fin = flags & FIN != 0;
        Ok(match kind {
            1 => {
                let headers = inflater.inflate(payload.get(10..).ok_or_else(short)?)?;
                let unidirectional = flags & UNIDIRECTIONAL != 0;
                Self::Open { stream: stream(payload)?, fin, unidirectional, headers }
            }
            2 => {
                inflater.inflate(payload.get(4..).ok_or_else(short)?)?;
                Self::Reply { stream: stream(payload)?, fin }
            }
            3 => {
                word(payload, 4)?;
                Self::Reset { stream: stream(payload)? }
            }
            4 => Self::Settings { initial_window: initial_window(payload)? },
            6 => Self::Ping { id: word(payload, 0)? },
            7 => Self::GoAway,
            8 => {
                inflater.inflate(payload.get(4..).ok_or_else(short)?)?;
                Self::Headers { stream: stream(payload)?, fin }
            }
            9 => Self::WindowUpdate {
                stream: word(payload, 0)? & 0x7fff_ffff,
                delta: word(payload, 4)? & 0x7fff_ffff,
            },
            _ => Self::Unknown,
        })
    }
}

pub fn reply(stream: u32, deflater: &mut Deflater) -> io::Result<Vec<u8>> {
    let block = deflater.deflate(&Headers::new())?;
    let mut frame = control(2, 4 + block.len());
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(&block);
    Ok(frame)
}

pub fn reset(stream: u32, reason: Reset) -> Vec<u8> {
    words(3, &[stream, reason as u32])
}

pub fn no_settings() -> Vec<u8> {
    words(4, &[0])
}

pub fn ping(id: u32) -> Vec<u8> {
    words(6, &[id])
}

pub fn go_away(last_stream: u32) -> Vec<u8> {
    words(7, &[last_stream, 0])
}

pub fn window_update(stream: u32, delta: u32) -> Vec<u8> {
    words(9, &[stream, delta])
}

/// The head of a data frame; its payload follows.
pub fn data(stream: u32, fin: bool, length: usize) -> [u8; HEAD_BYTES] {
    let [a, b, c, d] = stream.to_be_bytes();
    let [_, e, f, g] = (length as u32).to_be_bytes();
    [a & 0x7f, b, c, d, if fin { FIN } else { 0 }, e, f, g]
}

fn words(kind: u16, words: &[u32]) -> Vec<u8> {
    let mut frame = control(kind, 4 * words.len());
    frame.extend(words.iter().flat_map(|word| word.to_be_bytes()));
    frame
}

fn control(kind: u16, length: usize) -> Vec<u8> {
    let mut frame = Vec::with_capacity(HEAD_BYTES + length);
    frame.extend_from_slice(&(VERSION | 0x8000).to_be_bytes());
    frame.extend_from_slice(&kind.to_be_bytes());
    frame.extend_from_slice(&(length as u32).to_be_bytes());
    frame
}

fn stream(payload: &[u8]) -> io::Result<u32> {
    match word(payload, 0)? & 0x7fff_ffff {
        0 => Err(invalid("a frame for stream 0")),
        stream => Ok(stream),
    }
}

fn initial_window(payload: &[u8]) -> io::Result<Option<u32>> {
    let count = word(payload, 0)? as usize;
    let entries = payload.get(4..).and_then(|rest| rest.get(..count.checked_mul(8)?)).ok_or_else(short)?;
    for entry in entries.chunks_exact(8) {
        // Its first byte has the flags.
        if word(entry, 0)? & 0xff_ffff == INITIAL_WINDOW_SIZE {
            return word(entry, 4).map(|window| Some(window & 0x7fff_ffff));
        }
    }
    Ok(None)
}

fn word(payload: &[u8], at: usize) -> io::Result<u32> {
    let bytes = payload.get(at..).and_then(|rest| rest.first_chunk::<4>()).ok_or_else(short)?;
    Ok(u32::from_be_bytes(*bytes))
}

fn short() -> io::Error {
    invalid("a control frame cut short")
}

fn invalid(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

#[cfg(test)]
pub mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A SYN_STREAM as a client sends it.
    pub fn open(stream: u32, headers: &Headers, deflater: &mut Deflater) -> Vec<u8> {
        let block = deflater.deflate(headers).unwrap();
        let mut frame = control(1, 10 + block.len());
        frame.extend_from_slice(&stream.to_be_bytes());
        frame.extend_from_slice(&[0; 6]);
        frame.extend_from_slice(&block);
        frame
    }

    pub fn settings(entries: &[u32]) -> Vec<u8> {
        let mut all = vec![entries.len() as u32 / 2];
        all.extend_from_slice(entries);
        words(4, &all)
    }

    fn parsed(frame: &[u8]) -> Control {
        let head = Head::parse(*frame.first_chunk().unwrap()).unwrap();
        let Head::Control { kind, flags, length } = head else { panic!("{head:?}") };
        assert_eq!(length, frame.len() - HEAD_BYTES);
        Control::parse(kind, flags, &frame[HEAD_BYTES..], &mut Inflater::new()).unwrap()
    }

    #[test]
    fn each_frame_is_read_as_it_was_written() {
        let deflater = || Deflater::new().unwrap();
        let headers = vec![("streamtype".to_owned(), "stdin".to_owned())];
        let rows = [
            (
                open(1, &headers, &mut deflater()),
                Control::Open { stream: 1, fin: false, unidirectional: false, headers },
            ),
            (reply(3, &mut deflater()).unwrap(), Control::Reply { stream: 3, fin: false }),
            (reset(5, Reset::Refused), Control::Reset { stream: 5 }),
            (settings(&[4, 100, 0x0100_0007, 1234]), Control::Settings { initial_window: Some(1234) }),
            (settings(&[4, 100]), Control::Settings { initial_window: None }),
            (no_settings(), Control::Settings { initial_window: None }),
            (ping(7), Control::Ping { id: 7 }),
            (go_away(9), Control::GoAway),
            (window_update(0, 99), Control::WindowUpdate { stream: 0, delta: 99 }),
            (words(77, &[1]), Control::Unknown),
        ];
        for (frame, expected) in rows {
            assert_eq!(parsed(&frame), expected);
        }
    }

    #[test]
    fn bytes_on_the_wire_are_those_of_the_draft() {
        assert_eq!(ping(1), [0x80, 3, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1]);
        assert_eq!(reset(2, Reset::Cancel), [0x80, 3, 0, 3, 0, 0, 0, 8, 0, 0, 0, 2, 0, 0, 0, 5]);
        assert_eq!(go_away(3), [0x80, 3, 0, 7, 0, 0, 0, 8, 0, 0, 0, 3, 0, 0, 0, 0]);
        assert_eq!(data(0x0102_0304, true, 0x01_0203), [1, 2, 3, 4, 1, 1, 2, 3]);
        let head = Head::Data { stream: 0x0102_0304, fin: true, length: 0x01_0203 };
        assert_eq!(Head::parse([1, 2, 3, 4, 1, 1, 2, 3]).unwrap(), head);
    }

    #[test]
    fn broken_frames_are_refused() {
        let heads: [[u8; 8]; 3] = [
            [0x80, 2, 0, 6, 0, 0, 0, 4], // SPDY/2
            [0x80, 3, 0, 1, 0, 1, 0, 1], // 64 KiB and a byte
            [0, 0, 0, 0, 0, 0, 0, 1],    // data for stream 0
        ];
        for head in heads {
            assert_eq!(Head::parse(head).unwrap_err().kind(), io::ErrorKind::InvalidData, "{head:x?}");
        }
        let payloads: [(u16, &[u8]); 6] = [
            (1, &[0; 9]),
            (1, &[0; 40]),
            (3, &[0, 0, 0, 1]),
            (4, &[0, 0, 0, 9, 0, 0]),
            (4, &[0xff; 4]),
            (9, &[0; 7]),
        ];
        for (kind, payload) in payloads {
            let refused = Control::parse(kind, 0, payload, &mut Inflater::new()).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::InvalidData, "{kind} {payload:x?}");
        }
    }

    proptest! {
        #[test]
        fn no_frame_makes_it_panic(kind in 0u16..12, flags: u8, payload in prop::collection::vec(any::<u8>(), 0..200)) {
            Control::parse(kind, flags, &payload, &mut Inflater::new()).ok();
        }
    }
}
