//! The lists: what exists, as bytes that are made once for each change of a pod and not for each call.
//!
//! A kubelet asks for all pods and all containers every second (KEP-3386 names it as the cost of its loop), and next to
//! nothing has changed by then. So the rows of each published view are kept beside the view that they were made from,
//! and are good for as long as that view is the one on the board.

use std::{
    collections::HashMap,
    fmt,
    mem::take,
    sync::{Arc, Mutex, PoisonError},
    vec::IntoIter,
};

use berth_cri::Items;
use futures_util::stream::{Iter, iter};
use prost::{Message, bytes::Bytes};
use tonic::Status;

use super::view;
use crate::{id::PodId, pod::PodView};

/// A list in pieces, then its end.
pub(super) type Pieces<T> = Iter<IntoIter<Result<T, Status>>>;

/// Of a piece's items. Clients take messages of 4 MiB (gRPC's default); a quarter keeps the first piece early and both
/// sides' buffers small.
const PIECE_BYTES: usize = 1 << 20;
/// Before each item: the field's number and the item's length.
const FRAME_BYTES: usize = 6;

/// Cheap to clone.
#[derive(Clone, Default)]
pub struct Lists(Arc<Mutex<HashMap<PodId, Arc<Rows>>>>);

/// One pod's.
pub(super) struct Rows {
    /// Held, so that no later view can have its address.
    pub(super) view: Arc<PodView>,
    /// An encoded `PodSandbox`.
    pub(super) pod: Bytes,
    /// Each an encoded `Container`, in the view's order.
    pub(super) containers: Vec<Bytes>,
}

impl fmt::Debug for Lists {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Lists")
    }
}

impl Rows {
    fn of(view: &Arc<PodView>) -> Self {
        let encoded = |container| Bytes::from(view::container(container).encode_to_vec());
        Self {
            pod: Bytes::from(view::pod(view).encode_to_vec()),
            containers: view.containers.iter().map(encoded).collect(),
            view: Arc::clone(view),
        }
    }
}

impl Lists {
    /// The rows of these views, which are all that there are, in their order; those of other views are let go.
    pub(super) fn rows(&self, listed: &[Arc<PodView>]) -> Vec<Arc<Rows>> {
        // Whoever panicked left a whole map of rows that are looked at before they are used.
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut before = take(&mut *kept);
        let rows = listed.iter().map(|view| {
            let known = before.remove(&view.id).filter(|rows| Arc::ptr_eq(&rows.view, view));
            known.unwrap_or_else(|| Arc::new(Rows::of(view)))
        });
        let rows: Vec<_> = rows.collect();
        kept.extend(rows.iter().map(|rows| (rows.view.id.clone(), Arc::clone(rows))));
        rows
    }
}

/// Every item once, in order. One that is too large for a piece is a piece of its own: nothing is left out.
pub(super) fn pieces<T: Message, R>(items: Vec<T>, piece: impl Fn(Vec<T>) -> R) -> Pieces<R> {
    split(items, Message::encoded_len, piece)
}

/// The same of a list whose items are bytes already.
pub(super) fn parts(list: Items) -> Pieces<Items> {
    split(list.items, Bytes::len, |items| Items { items })
}

fn split<T, R>(items: Vec<T>, bytes_of: impl Fn(&T) -> usize, piece: impl Fn(Vec<T>) -> R) -> Pieces<R> {
    let mut done = Vec::new();
    let (mut open, mut bytes) = (Vec::new(), 0usize);
    for item in items {
        let size = bytes_of(&item) + FRAME_BYTES;
        if !open.is_empty() && bytes + size > PIECE_BYTES {
            done.push(Ok(piece(take(&mut open))));
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
    use crate::pod::PodState;

    async fn sent(sizes: &[usize]) -> Vec<cri::StreamContainersResponse> {
        let item = |(number, size): (usize, &usize)| cri::Container {
            id: number.to_string(),
            image_ref: "x".repeat(*size),
            ..cri::Container::default()
        };
        let items: Vec<_> = sizes.iter().enumerate().map(item).collect();
        let encoded = Items { items: items.iter().map(|item| item.encode_to_vec().into()).collect() };
        let sent = pieces(items, |containers| cri::StreamContainersResponse { containers });
        let sent: Vec<_> = sent.map(|piece| piece.unwrap()).collect().await;
        // The same bytes, whichever way.
        let parts: Vec<_> = parts(encoded).map(|part| part.unwrap().encode_to_vec()).collect().await;
        assert_eq!(parts, sent.iter().map(Message::encode_to_vec).collect::<Vec<_>>());
        sent
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

    #[test]
    fn a_row_is_made_once_for_each_view_and_says_what_the_view_says() {
        let lists = Lists::default();
        let (one, other) = (Arc::new(view::tests::pod()), Arc::new(view::tests::pod()));
        let first = lists.rows(&[Arc::clone(&one), Arc::clone(&other)]);
        assert_eq!(cri::PodSandbox::decode(first[0].pod.clone()).unwrap(), view::pod(&one));
        let containers: Vec<_> =
            first[0].containers.iter().map(|row| cri::Container::decode(row.clone()).unwrap()).collect();
        assert_eq!(containers, one.containers.iter().map(view::container).collect::<Vec<_>>());
        // One has changed, the other has not.
        let ended = Arc::new(PodView { state: PodState::NotReady, ..PodView::clone(&one) });
        let second = lists.rows(&[Arc::clone(&ended), Arc::clone(&other)]);
        assert_eq!(cri::PodSandbox::decode(second[0].pod.clone()).unwrap(), view::pod(&ended));
        assert!(Arc::ptr_eq(&first[1], &second[1]));
        // Of what is gone nothing is kept.
        drop((first, second));
        assert_eq!(lists.rows(&[]).len(), 0);
        assert_eq!((Arc::strong_count(&one), Arc::strong_count(&ended)), (1, 1));
    }
}
