//! What may be sent: a window per stream and one for the connection, draft 3.1, 2.6.8.
//!
//! The Go library that kubelets and crictl speak SPDY with (spdystream) knows no windows: it never gives any back, and
//! leaves the holding back to TCP. So windows are counted from the start, and kept to once the peer has spoken of them.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

/// What a peer allows at first when it says nothing.
pub const INITIAL_BYTES: i64 = 64 * 1024;

#[derive(Debug)]
pub struct Flow {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug)]
struct State {
    kept: bool,
    initial: i64,
    connection: i64,
    streams: HashMap<u32, Stream>,
}

#[derive(Debug)]
struct Stream {
    window: i64,
    theirs: Half,
    ours: Half,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Half {
    Open,
    Closed,
}

impl Flow {
    pub fn new() -> Self {
        let state =
            State { kept: false, initial: INITIAL_BYTES, connection: INITIAL_BYTES, streams: HashMap::new() };
        Self { state: Mutex::new(state), changed: Notify::new() }
    }

    /// Takes a stream in; false where there are `most` already.
    pub fn open(&self, stream: u32, most: usize) -> bool {
        let mut state = self.state();
        if state.streams.len() >= most {
            return false;
        }
        let window = state.initial;
        state.streams.insert(stream, Stream { window, theirs: Half::Open, ours: Half::Open });
        true
    }

    /// The peer sends no more on it.
    pub fn theirs_closed(&self, stream: u32) {
        self.close(stream, |stream| stream.theirs = Half::Closed);
    }

    /// We send no more on it.
    pub fn ours_closed(&self, stream: u32) {
        self.close(stream, |stream| stream.ours = Half::Closed);
    }

    fn close(&self, id: u32, half: impl FnOnce(&mut Stream)) {
        let mut state = self.state();
        let Some(stream) = state.streams.get_mut(&id) else { return };
        half(stream);
        if (stream.theirs, stream.ours) == (Half::Closed, Half::Closed) {
            state.streams.remove(&id);
            drop(state);
            self.changed.notify_waiters();
        }
    }

    /// Forgets a stream that was reset: who sends on it learns so.
    pub fn reset(&self, stream: u32) {
        self.state().streams.remove(&stream);
        self.changed.notify_waiters();
    }

    /// The peer's new initial window; it holds for open streams as well.
    pub fn initial(&self, window: u32) {
        let mut state = self.state();
        let delta = i64::from(window) - state.initial;
        state.initial = i64::from(window);
        state.kept = true;
        for stream in state.streams.values_mut() {
            stream.window = stream.window.saturating_add(delta);
        }
        drop(state);
        self.changed.notify_waiters();
    }

    /// The peer takes so much more; stream 0 is the connection.
    pub fn more(&self, stream: u32, delta: u32) {
        let mut state = self.state();
        state.kept = true;
        let window = match stream {
            0 => Some(&mut state.connection),
            _ => state.streams.get_mut(&stream).map(|stream| &mut stream.window),
        };
        if let Some(window) = window {
            *window = window.saturating_add(i64::from(delta));
        }
        drop(state);
        self.changed.notify_waiters();
    }

    /// Waits until something may be sent and takes of it, at most `wanted`; `None` once the stream is gone.
    pub async fn take(&self, stream: u32, wanted: usize) -> Option<usize> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // From here on no change is missed.
            changed.as_mut().enable();
            let taken = self.state().take(stream, wanted);
            if taken != Some(0) {
                return taken;
            }
            changed.await;
        }
    }

    /// Waits until the stream is reset, or closed by both.
    pub async fn gone(&self, stream: u32) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if !self.state().streams.contains_key(&stream) {
                return;
            }
            changed.await;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Numbers that are changed one by one: none can be left half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn take(&mut self, id: u32, wanted: usize) -> Option<usize> {
        let stream = self.streams.get_mut(&id)?;
        let wanted = i64::try_from(wanted).unwrap_or(i64::MAX);
        let granted = match self.kept {
            true => wanted.min(stream.window).min(self.connection).max(0),
            false => wanted,
        };
        stream.window = stream.window.saturating_sub(granted);
        self.connection = self.connection.saturating_sub(granted);
        usize::try_from(granted).ok()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test]
    async fn who_never_speaks_of_windows_is_not_held_to_them() {
        let flow = Flow::new();
        assert!(flow.open(1, 1));
        for _ in 0..100 {
            assert_eq!(flow.take(1, 32 * 1024).await, Some(32 * 1024));
        }
    }

    #[tokio::test]
    async fn who_does_is_sent_no_more_than_it_takes() {
        let flow = Arc::new(Flow::new());
        flow.initial(10);
        assert!(flow.open(1, 2) && flow.open(3, 2) && !flow.open(5, 2));
        assert_eq!(flow.take(1, 7).await, Some(7));
        assert_eq!(flow.take(1, 7).await, Some(3));
        let waiting = tokio::spawn({
            let flow = flow.clone();
            async move { flow.take(1, 7).await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        flow.more(1, 4);
        assert_eq!(waiting.await.unwrap(), Some(4));
        // The other has a window of its own, and a smaller initial one may leave it below nothing.
        assert_eq!(flow.take(3, 99).await, Some(10));
        flow.initial(5);
        flow.more(3, 4);
        assert_eq!(flow.state().streams[&3].window, -1);
    }

    #[tokio::test]
    async fn a_stream_that_is_reset_wakes_who_waits_and_its_place_is_free() {
        let flow = Arc::new(Flow::new());
        flow.initial(0);
        assert!(flow.open(1, 1));
        let waiting = tokio::spawn({
            let flow = flow.clone();
            async move { (flow.take(1, 1).await, flow.gone(1).await) }
        });
        tokio::task::yield_now().await;
        flow.reset(1);
        assert_eq!(waiting.await.unwrap(), (None, ()));
        assert!(flow.open(3, 1));
        flow.ours_closed(3);
        assert!(!flow.open(5, 1), "the peer may still send");
        flow.theirs_closed(3);
        assert!(flow.open(5, 1));
    }
}
