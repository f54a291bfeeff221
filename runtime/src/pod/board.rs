//! What is published: views of pods, and the shims of the containers that have one. Read from memory, at once, by
//! whoever asks; written by the pods' tasks after each change.

use std::{
    collections::HashMap,
    sync::{
        Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicI64, Ordering::Relaxed},
    },
};

use tokio::sync::{broadcast, watch};

use super::{
    ContainerView, PodView, clock,
    events::{self, Event},
};
use crate::{
    id::{ContainerId, PodId},
    launcher::Shim,
};

/// Events that wait for a slow listener; one that is further behind is told that it missed some.
const EVENTS: usize = 1024;

#[derive(Debug)]
pub struct Board {
    published: RwLock<Published>,
    changes: watch::Sender<u64>,
    /// Sent to under the lock, so that their order is that of the views.
    events: broadcast::Sender<Event>,
    /// Of the newest event, see `stamped`.
    last: AtomicI64,
}

#[derive(Debug, Default)]
struct Published {
    pods: HashMap<PodId, Arc<PodView>>,
    homes: HashMap<ContainerId, PodId>,
    shims: HashMap<ContainerId, Shim>,
}

impl Board {
    pub fn new() -> Self {
        Self {
            published: RwLock::default(),
            changes: watch::Sender::new(0),
            events: broadcast::Sender::new(EVENTS),
            last: AtomicI64::new(0),
        }
    }

    pub fn publish(&self, view: PodView) {
        let view = Arc::new(view);
        let mut published = self.write();
        let before = published.pods.get(&view.id).cloned();
        for container in before.iter().flat_map(|before| &before.containers) {
            published.homes.remove(&container.id);
        }
        for container in &view.containers {
            published.homes.insert(container.id.clone(), view.id.clone());
        }
        published.pods.insert(view.id.clone(), Arc::clone(&view));
        self.tell(events::between(before.as_deref(), &view));
        drop(published);
        self.changed();
    }

    pub fn withdraw(&self, pod: &PodId) {
        let mut published = self.write();
        if let Some(view) = published.pods.remove(pod) {
            for container in &view.containers {
                published.homes.remove(&container.id);
                published.shims.remove(&container.id);
            }
            self.tell(events::withdrawn(&view));
        }
        drop(published);
        self.changed();
    }

    pub fn set_shim(&self, container: &ContainerId, shim: Option<Shim>) {
        let mut published = self.write();
        match shim {
            Some(shim) => published.shims.insert(container.clone(), shim),
            None => published.shims.remove(container),
        };
    }

    pub fn shim(&self, container: &ContainerId) -> Option<Shim> {
        self.read().shims.get(container).cloned()
    }

    /// The oldest first.
    pub fn list(&self) -> Vec<Arc<PodView>> {
        let mut all: Vec<_> = self.read().pods.values().cloned().collect();
        all.sort_by(|one, other| (one.created_at, &one.id).cmp(&(other.created_at, &other.id)));
        all
    }

    /// When the last of some was made, unix nanoseconds.
    pub fn newest(&self, is_meant: impl Fn(&PodView) -> bool) -> i64 {
        let published = self.read();
        let meant = published.pods.values().filter(|view| is_meant(view));
        meant.map(|view| view.created_at).max().unwrap_or_default()
    }

    pub fn pod(&self, pod: &PodId) -> Option<Arc<PodView>> {
        self.read().pods.get(pod).cloned()
    }

    /// How many there are.
    pub fn containers(&self) -> usize {
        self.read().homes.len()
    }

    pub fn home(&self, container: &ContainerId) -> Option<PodId> {
        self.read().homes.get(container).cloned()
    }

    pub fn container(&self, container: &ContainerId) -> Option<ContainerView> {
        let published = self.read();
        let pod = published.pods.get(published.homes.get(container)?)?;
        pod.containers.iter().find(|view| view.id == *container).cloned()
    }

    /// What is there, and every change from then on: none is missing between the two, none comes twice.
    pub fn follow(&self) -> (Vec<Event>, broadcast::Receiver<Event>) {
        let published = self.read();
        let changes = self.events.subscribe();
        let mut pods: Vec<_> = published.pods.values().collect();
        pods.sort_by(|one, other| (one.created_at, &one.id).cmp(&(other.created_at, &other.id)));
        (pods.into_iter().flat_map(events::snapshot).map(|event| self.stamped(event)).collect(), changes)
    }

    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    fn tell(&self, events: Vec<Event>) {
        for event in events {
            // Nobody has to listen.
            self.events.send(self.stamped(event)).ok();
        }
    }

    /// The time is a sequence number too: each event has a later one than those before, however fast they come and
    /// whatever is done to the clock. CRI's events have no other field that a client could put them in order by.
    fn stamped(&self, event: Event) -> Event {
        let now = clock::now();
        let before = self.last.fetch_update(Relaxed, Relaxed, |last| Some(now.max(last + 1)));
        // It always updates; both are what stood there before.
        let (Ok(before) | Err(before)) = before;
        Event { at: now.max(before + 1), ..event }
    }

    fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    // A reader or writer that panicked left whole maps behind: each change is one insertion.
    fn read(&self) -> RwLockReadGuard<'_, Published> {
        self.published.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Published> {
        self.published.write().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::broadcast::error::TryRecvError;

    use super::*;
    use crate::pod::{
        ContainerState,
        events::{
            What,
            tests::{container, pod},
        },
    };

    #[test]
    fn a_follower_gets_what_is_there_then_each_change_once() {
        let board = Board::new();
        let there = pod(vec![container(ContainerState::Created, 0)]);
        board.publish(there.clone());
        let (snapshot, mut changes) = board.follow();
        assert_eq!(
            snapshot.iter().map(|event| event.what).collect::<Vec<_>>(),
            [What::Started, What::Created]
        );
        board.publish(there.clone());
        assert_eq!(changes.try_recv().unwrap_err(), TryRecvError::Empty);
        board.withdraw(&there.id);
        board.withdraw(&there.id);
        let subjects = [there.containers[0].id.to_string(), there.id.to_string()];
        for subject in subjects {
            let event = changes.try_recv().unwrap();
            assert_eq!((event.subject, event.what), (subject, What::Deleted));
        }
        assert_eq!(changes.try_recv().unwrap_err(), TryRecvError::Empty);
        assert_eq!(board.follow().0.len(), 0);
    }

    /// Many at once, by several listeners and through several pods: what each hears goes upwards.
    #[test]
    fn every_event_has_a_later_time_than_those_before_it() {
        let board = Board::new();
        let one = pod(vec![container(ContainerState::Running, 5), container(ContainerState::Created, 0)]);
        board.publish(one.clone());
        let (there, mut changes) = board.follow();
        board.publish(pod(vec![container(ContainerState::Exited, 5)]));
        board.withdraw(&one.id);
        let after = std::iter::from_fn(|| changes.try_recv().ok());
        let times: Vec<i64> = there.into_iter().chain(after).map(|event| event.at).collect();
        assert_eq!(times.len(), 3 + 4 + 3);
        assert!(times.is_sorted_by(|one, next| one < next), "{times:?}");
        assert!(times[0] > 0);
    }

    #[test]
    fn one_that_is_too_far_behind_is_told() {
        let board = Board::new();
        let (_, mut changes) = board.follow();
        for _ in 0..EVENTS {
            board.publish(pod(Vec::new()));
        }
        assert!(matches!(changes.try_recv(), Err(TryRecvError::Lagged(_))));
    }
}
