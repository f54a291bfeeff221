//! WebSocket sessions against clients that keep to no rule, in the manner of `spdy::hostile`.

use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{Protocol, Wanted, serve, tunnel};
use crate::streaming::{
    channels::Channels,
    spdy::{
        hostile::{BOUND, moves, run, written},
        tests::{echo, wire},
    },
};

/// One frame, RFC 6455, 5.2, right or wrong.
#[derive(Debug, Clone)]
struct Frame {
    /// FIN, the reserved bits and the opcode.
    first: u8,
    masked: bool,
    /// What it says of its length, where that is a lie.
    claimed: Option<u64>,
    payload: Vec<u8>,
}

impl Frame {
    fn write(&self, to: &mut Vec<u8>) {
        let mask = if self.masked { 0x80 } else { 0 };
        to.push(self.first);
        match self.claimed.unwrap_or(self.payload.len() as u64) {
            length @ ..126 => to.push(mask | length as u8),
            length @ 126..65536 => {
                to.push(mask | 126);
                to.extend((length as u16).to_be_bytes());
            }
            length => {
                to.push(mask | 127);
                to.extend(length.to_be_bytes());
            }
        }
        if self.masked {
            // A mask of zeros leaves the payload as it is.
            to.extend([0; 4]);
        }
        to.extend(&self.payload);
    }
}

fn frames() -> impl Strategy<Value = Vec<u8>> {
    let payload = prop::collection::vec(prop_oneof![0u8..6, any::<u8>()], 0..300);
    let first = prop_oneof![6 => Just(0x82u8), 2 => 0x80u8..0x8b, 1 => any::<u8>()];
    let claimed =
        prop_oneof![9 => Just(None), 1 => any::<u64>().prop_map(Some), 1 => (0u64..4_000_000).prop_map(Some)];
    let frame = (first, prop::bool::weighted(0.9), claimed, payload)
        .prop_map(|(first, masked, claimed, payload)| Frame { first, masked, claimed, payload });
    prop::collection::vec(frame, 0..30).prop_map(|frames| {
        let mut bytes = Vec::new();
        frames.iter().for_each(|frame| frame.write(&mut bytes));
        bytes
    })
}

/// Sends its input back until that ends.
async fn talk(mut channels: Channels) {
    let (stdin, stdout) = (channels.stdin.take(), channels.stdout.take());
    let (Some(mut stdin), Some(stdout)) = (stdin, stdout) else { return };
    while let Some(piece) = stdin.recv().await {
        if stdout.send(piece).await.is_err() {
            return;
        }
    }
}

/// Sends all of it, hangs up, and sees the session end.
fn survive(sent: &[u8], how: How) {
    const WANTED: Wanted = Wanted { stdin: true, stdout: true, stderr: true, tty: true };
    run(async {
        let (mut theirs, ours, line) = wire();
        let session = match how {
            How::Channels(protocol) => tokio::spawn(serve(ours, line, protocol, WANTED, talk)),
            How::Tunnel => tokio::spawn(tunnel(ours, line, echo)),
        };
        let client = async {
            // The session may hang up in the middle.
            let written = theirs.write_all(sent).await;
            let closed = theirs.shutdown().await;
            let mut answer = Vec::new();
            let read = theirs.read_to_end(&mut answer).await;
            (written, closed, read)
        };
        let ended = tokio::time::timeout(BOUND, async { tokio::join!(client, session) }).await;
        let (_, session) = ended.expect("the session ended");
        // An error is an end; a panic is none.
        session.expect("nothing panicked").ok();
    });
}

enum How {
    Channels(Protocol),
    Tunnel,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn channels_end_with_their_client_whatever_that_has_sent(sent in frames(), is_v5: bool) {
        survive(&sent, How::Channels(if is_v5 { Protocol::V5 } else { Protocol::V4 }));
    }

    #[test]
    fn a_tunnel_ends_with_its_client_whatever_spdy_that_has_sent(moves in moves(), piece in 1usize..200) {
        let mut sent = Vec::new();
        for piece in written(&moves).chunks(piece) {
            Frame { first: 0x82, masked: true, claimed: None, payload: piece.to_vec() }.write(&mut sent);
        }
        survive(&sent, How::Tunnel);
    }
}
