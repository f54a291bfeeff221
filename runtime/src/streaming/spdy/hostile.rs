//! Whole sessions against clients that keep to no rule: each ends with its client, in time, and none takes the process
//! with it. Cases are drawn with proptest's seeds; what fails is printed and can be drawn again.

use std::time::Duration;

use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{
    frame,
    header::Deflater,
    tests::{echo, wire},
};

/// What a client does next.
#[derive(Debug, Clone)]
pub enum Move {
    Open(u32, Vec<(String, String)>),
    Data(u32, bool, Vec<u8>),
    /// A control frame of any kind, with words for a payload.
    Control(u16, u8, Vec<u32>),
    /// A head that says another length than what follows.
    Lie(u32, u32, Vec<u8>),
    Raw(Vec<u8>),
}

/// What several of them come to on the wire.
pub fn written(moves: &[Move]) -> Vec<u8> {
    let mut deflater = Deflater::new().expect("zlib starts");
    let mut bytes = Vec::new();
    for one in moves {
        match one {
            Move::Open(stream, headers) => bytes.extend(frame::tests::open(*stream, headers, &mut deflater)),
            Move::Data(stream, fin, data) => {
                bytes.extend(frame::data(*stream, *fin, data.len()));
                bytes.extend(data);
            }
            Move::Control(kind, flags, words) => {
                bytes.extend([0x80, 3]);
                bytes.extend(kind.to_be_bytes());
                let length = u32::try_from(words.len() * 4).expect("few words");
                bytes.extend((u32::from(*flags) << 24 | length).to_be_bytes());
                words.iter().for_each(|word| bytes.extend(word.to_be_bytes()));
            }
            Move::Lie(first, length, data) => {
                bytes.extend(first.to_be_bytes());
                bytes.extend(length.to_be_bytes());
                bytes.extend(data);
            }
            Move::Raw(raw) => bytes.extend(raw),
        }
    }
    bytes
}

/// Up to forty moves, most of them nearly right: on few streams, so that they meet.
pub fn moves() -> impl Strategy<Value = Vec<Move>> {
    let stream = prop_oneof![4 => 0u32..6, 1 => any::<u32>()];
    let bytes = || prop::collection::vec(any::<u8>(), 0..300);
    let name = prop_oneof![Just("streamtype".to_owned()), Just("port".to_owned()), "[a-zA-Z:]{0,9}"];
    let headers = prop::collection::vec((name, ".{0,40}"), 0..5);
    let word = prop_oneof![0u32..8, any::<u32>(), Just(u32::MAX), Just(0x7fff_ffff)];
    let control = (0u16..12, any::<u8>(), prop::collection::vec(word, 0..9));
    let one = prop_oneof![
        4 => (stream.clone(), headers).prop_map(|(stream, headers)| Move::Open(stream, headers)),
        4 => (stream, any::<bool>(), bytes()).prop_map(|(stream, fin, bytes)| Move::Data(stream & 0x7fff_ffff, fin, bytes)),
        3 => control.prop_map(|(kind, flags, words)| Move::Control(kind, flags, words)),
        1 => (any::<u32>(), any::<u32>(), bytes()).prop_map(|(first, length, bytes)| Move::Lie(first, length, bytes)),
        1 => bytes().prop_map(Move::Raw),
    ];
    prop::collection::vec(one, 0..40)
}

/// Runs a future on an event loop of its own.
pub fn run<T>(work: impl Future<Output = T>) -> T {
    let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build();
    tokio.expect("start the event loop").block_on(work)
}

/// A session that goes on without its client would hold its exec, and its memory, for ever.
pub const BOUND: Duration = Duration::from_secs(30);

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_session_ends_with_its_client_whatever_that_has_sent(moves in moves()) {
        let sent = written(&moves);
        run(async {
            let (theirs, ours, line) = wire();
            let session = tokio::spawn(super::serve(ours, line, echo));
            let (mut hears, mut says) = theirs.into_split();
            let saying = async {
                // The session may hang up in the middle.
                let written = says.write_all(&sent).await;
                (written, says.shutdown().await)
            };
            // One that does not listen while it speaks may wait for the session, and that for it: it is not gone.
            let mut answer = Vec::new();
            let client = async { tokio::join!(saying, hears.read_to_end(&mut answer)) };
            let ended = tokio::time::timeout(BOUND, async { tokio::join!(client, session) }).await;
            let (_, session) = ended.expect("the session ended");
            // An error is an end; a panic is none.
            session.expect("nothing panicked").ok();
        });
    }
}
