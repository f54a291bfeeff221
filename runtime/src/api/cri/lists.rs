//! The streamed lists: what the unary calls say, in pieces that fit into one gRPC message.

use std::vec::IntoIter;

use futures_util::stream::{Iter, iter};
use prost::Message;
use tonic::Status;

/// A list in pieces, then its end.
pub(super) type Pieces<T> = Iter<IntoIter<Result<T, Status>>>;

/// Of a piece's items. Clients take messages of 4 MiB (gRPC's default); a quarter keeps the first piece early and both
/// sides' buffers small.
const PIECE_BYTES: usize = 1 << 20;
/// Before each item: the field's number and the item's length.
const FRAME_BYTES: usize = 6;

/// Every item once, in order. One that is too large for a piece is a piece of its own: nothing is left out.
pub(super) fn pieces<T: Message, R>(items: Vec<T>, piece: impl Fn(Vec<T>) -> R) -> Pieces<R> {
    let mut done = Vec::new();
    let (mut open, mut bytes) = (Vec::new(), 0usize);
    for item in items {
        let size = item.encoded_len() + FRAME_BYTES;
        if !open.is_empty() && bytes + size > PIECE_BYTES {
            done.push(Ok(piece(std::mem::take(&mut open))));
            bytes = 0;
        }
        bytes += size;
        open.push(item);
    }
    if !open.is_empty() {
        done.push(Ok(piece(open)));
    }
    iter(done)
}

#[cfg(test)]
mod tests {
    use berth_cri::v1 as cri;
    use futures_util::StreamExt;

    use super::*;

    async fn sent(sizes: &[usize]) -> Vec<cri::StreamContainersResponse> {
        let item = |(number, size): (usize, &usize)| cri::Container {
            id: number.to_string(),
            image_ref: "x".repeat(*size),
            ..cri::Container::default()
        };
        let items = sizes.iter().enumerate().map(item).collect();
        let sent = pieces(items, |containers| cri::StreamContainersResponse { containers });
        sent.map(|piece| piece.unwrap()).collect().await
    }

    #[tokio::test]
    async fn every_item_comes_once_and_in_order_in_pieces_that_fit() {
        // Sizes of the items; how many pieces.
        let rows: [(Vec<usize>, usize); 6] = [
            (vec![], 0),
            (vec![0], 1),
            (vec![10; 100], 1),
            (vec![400 << 10; 10], 5),
            (vec![700 << 10, 700 << 10, 10], 2),
            (vec![10, 3 << 20, 10], 3),
        ];
        for (sizes, count) in rows {
            let sent = sent(&sizes).await;
            assert_eq!(sent.len(), count, "{sizes:?}");
            assert!(sent.iter().all(|piece| piece.encoded_len() < 4 << 20));
            let ids: Vec<_> = sent.iter().flat_map(|piece| &piece.containers).map(|one| &one.id).collect();
            let expected: Vec<_> = (0..sizes.len()).map(|number| number.to_string()).collect();
            assert_eq!(ids, expected.iter().collect::<Vec<_>>());
        }
    }
}
