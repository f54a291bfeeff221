//! A big blob in pieces that come at once: registries and what lies between often give each connection only so much.
//!
//! ```text
//!            from ──────────────────────────────> size
//! on disk ───┤ piece │ piece │ piece │ …            put down in order, so that the file is always a beginning
//!              └ each a request of its own; so many at once, and no more than that in memory
//! ```
//! A registry that answers with all of it, or a failure, ends that: the rest comes in one stream, as from any other.

use std::collections::VecDeque;

use futures_util::{StreamExt, stream::FuturesOrdered};
use http::{StatusCode, header};
use reqwest::Response;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio_util::bytes::Bytes;

use super::{
    document::Descriptor,
    fetch::Transfer,
    registry::{Failure, Session, Span},
};
use crate::{Error, Kind};

/// What a request asks for.
const PIECE_BYTES: u64 = 4 << 20;
/// Less than so many pieces come in one stream: the time to a first byte is not worth it.
const WORTH: u64 = 4;
/// On their way beside a layer's first one, and beside those of all layers.
const BESIDE: u32 = 3;
const BESIDE_ALL: usize = 9;

/// How many pieces may be on their way beside each layer's first: it bounds memory. One for a store.
#[derive(Debug)]
pub(super) struct Allowance(Semaphore);

impl Default for Allowance {
    fn default() -> Self {
        Self(Semaphore::new(BESIDE_ALL))
    }
}

impl Allowance {
    /// As many as there are for one layer, perhaps none.
    fn take(&self) -> (usize, Option<SemaphorePermit<'_>>) {
        let taken = (1..=BESIDE).rev().find_map(|count| {
            let permit = self.0.try_acquire_many(count).ok()?;
            Some((count as usize, Some(permit)))
        });
        taken.unwrap_or((0, None))
    }
}

/// What came of a piece, and why no more did.
struct Piece {
    chunks: VecDeque<Bytes>,
    failure: Option<Failure>,
}

/// Whether the rest of a blob is worth it.
pub(super) fn is_worth(left_bytes: u64) -> bool {
    left_bytes >= WORTH * PIECE_BYTES
}

impl Session {
    /// Fetches the rest in pieces. Gives the answer to go on with where the registry sends none.
    pub(super) async fn fetch_pieces(
        &self,
        transfer: &mut Transfer<'_>,
        allowance: &Allowance,
    ) -> Result<Option<Response>, Failure> {
        let descriptor = transfer.descriptor;
        let (mut next, size) = (transfer.bytes, descriptor.size);
        let first = take_span(&mut next, size);
        let path = format!("blobs/{}", descriptor.digest);
        let answer = match self.get(&path, Some(first)).await {
            // Neither an answer with all of it: what some make of a range that they don't know.
            Err(Failure::Lasting(error)) if error.kind == Kind::Internal => {
                let rest = (first.from > 0).then_some(Span { to: None, ..first });
                return self.get(&path, rest).await.map(Some);
            }
            other => other?,
        };
        if !is_piece(&answer, first, descriptor)? {
            return Ok(Some(answer));
        }
        let (beside, _permit) = allowance.take();
        let sink = transfer.sink.clone();
        let (mut coming, mut ready) = (FuturesOrdered::new(), VecDeque::<Piece>::new());
        coming.push_back(self.piece(&path, first, descriptor, Some(answer)));
        loop {
            // What came and is not put down counts: the disk may be slower than the network.
            while coming.len() + ready.len() <= beside && next < size {
                let span = take_span(&mut next, size);
                coming.push_back(self.piece(&path, span, descriptor, None));
            }
            if let Some(piece) = ready.pop_front_if(|piece| piece.chunks.is_empty()) {
                match piece.failure {
                    Some(failure) => return Err(failure),
                    None => continue,
                }
            }
            tokio::select! {
                Some(piece) = coming.next(), if !coming.is_empty() => ready.push_back(piece),
                room = sink.reserve(), if !ready.is_empty() => {
                    let chunk = ready.front_mut().and_then(|piece| piece.chunks.pop_front());
                    let (Ok(room), Some(chunk)) = (room, chunk) else { return Err(transfer.unwritten()) };
                    let bytes = chunk.len();
                    room.send(chunk);
                    transfer.note(bytes);
                }
                // Neither on its way nor to be put down.
                else => return Ok(None),
            }
        }
    }

    async fn piece(
        &self,
        path: &str,
        span: Span,
        descriptor: &Descriptor,
        answer: Option<Response>,
    ) -> Piece {
        let mut chunks = VecDeque::new();
        let failure = self.read_piece(path, span, descriptor, answer, &mut chunks).await.err();
        Piece { chunks, failure }
    }

    async fn read_piece(
        &self,
        path: &str,
        span: Span,
        descriptor: &Descriptor,
        answer: Option<Response>,
        chunks: &mut VecDeque<Bytes>,
    ) -> Result<(), Failure> {
        let mut answer = match answer {
            Some(answer) => answer,
            None => self.get(path, Some(span)).await?,
        };
        if !is_piece(&answer, span, descriptor)? {
            return Err(Failure::Passing(self.unavailable("it sends no more pieces".into())));
        }
        let mut left = span.length();
        let mut pace = self.pace();
        while let Some(chunk) = self.chunk(&mut answer, &mut pace).await? {
            if chunk.len() as u64 > left {
                return Err(wrong(descriptor, "the registry sends more of it than it was asked for".into()));
            }
            left -= chunk.len() as u64;
            chunks.push_back(chunk);
        }
        if left == 0 {
            return Ok(());
        }
        let cause = format!("the connection ended {left} bytes before a piece of {}", descriptor.digest);
        Err(Failure::Passing(self.unavailable(cause)))
    }
}

/// The next piece.
fn take_span(next: &mut u64, size: u64) -> Span {
    let from = *next;
    *next = size.min(from + PIECE_BYTES);
    Span { from, to: Some(*next - 1) }
}

/// Whether the answer is just what was asked for; false for all of the blob, or all the rest.
fn is_piece(answer: &Response, span: Span, descriptor: &Descriptor) -> Result<bool, Failure> {
    if answer.status() != StatusCode::PARTIAL_CONTENT {
        return Ok(false);
    }
    let range = answer.headers().get(header::CONTENT_RANGE).and_then(|value| value.to_str().ok());
    let Some((from, to, total)) = range.and_then(content_range) else {
        return Err(wrong(descriptor, "the registry sends a part without saying which".into()));
    };
    if total.is_some_and(|total| total != descriptor.size) {
        let cause = format!(
            "the registry has {} bytes of it, the manifest says {}",
            total.unwrap_or_default(),
            descriptor.size
        );
        return Err(wrong(descriptor, cause));
    }
    if from != span.from {
        let cause = format!("asked for bytes from {}, the registry sends from {from}", span.from);
        return Err(wrong(descriptor, cause));
    }
    Ok(Some(to) <= span.to)
}

/// `bytes 0-99/1234`, the last perhaps an asterisk: RFC 9110, section 14.4.
fn content_range(text: &str) -> Option<(u64, u64, Option<u64>)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (from, to) = range.split_once('-')?;
    let total = if total == "*" { None } else { Some(total.parse().ok()?) };
    Some((from.parse().ok()?, to.parse().ok()?, total))
}

fn wrong(descriptor: &Descriptor, cause: String) -> Failure {
    Failure::Lasting(Error::invalid("verify blob", descriptor.digest.to_string(), cause))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_end_to_end() {
        let (mut next, size) = (5, 5 + 2 * PIECE_BYTES + 7);
        let mut at = next;
        let mut count = 0;
        while next < size {
            let span = take_span(&mut next, size);
            assert_eq!(span.from, at);
            at += span.length();
            count += 1;
        }
        assert_eq!((at, count), (size, 3));
    }

    #[test]
    fn what_a_registry_sends_is_told_by_its_range() {
        assert_eq!(content_range("bytes 0-99/1234"), Some((0, 99, Some(1234))));
        assert_eq!(content_range("bytes 7-8/*"), Some((7, 8, None)));
        for bad in ["", "bytes */9", "bytes 1-2", "items 1-2/3", "bytes x-2/3", "bytes 1-2/x"] {
            assert_eq!(content_range(bad), None, "{bad}");
        }
    }

    #[test]
    fn memory_is_bounded_for_all_layers_together() {
        let allowance = Allowance::default();
        let mut kept = Vec::new();
        let taken: Vec<usize> = (0..5)
            .map(|_| {
                let (count, permit) = allowance.take();
                kept.push(permit);
                count
            })
            .collect();
        assert_eq!(taken, [3, 3, 3, 0, 0]);
        kept.clear();
        assert_eq!(allowance.take().0, 3);
    }
}
