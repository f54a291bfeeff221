//! GetContainerEvents: what exists, then each change, for as long as the client listens and keeps up.

use std::{collections::VecDeque, pin::Pin};

use berth_cri::v1 as cri;
use futures_util::stream::{Stream, unfold};
use tokio::sync::{
    broadcast::{Receiver, error::RecvError},
    watch,
};
use tonic::Status;

use super::view;
use crate::{
    api::Door,
    pod::{Client, Event, What},
};

pub(super) type Events = Pin<Box<dyn Stream<Item = Result<cri::ContainerEventResponse, Status>> + Send>>;

/// A client's place in the sequence.
struct Listener {
    there: VecDeque<Event>,
    changes: Receiver<Event>,
    ending: watch::Receiver<bool>,
    over: bool,
}

impl Door {
    pub(super) fn events(&self) -> Events {
        let (there, changes) = self.pods.follow();
        let listener =
            Listener { there: there.into(), changes, ending: self.ending.subscribe(), over: false };
        Box::pin(unfold(listener, |mut listener| async {
            let told = listener.next().await?;
            Some((told, listener))
        }))
    }
}

impl Listener {
    /// The next of a kubelet's; `None` at the end: the daemon stops, or an error was told.
    async fn next(&mut self) -> Option<Result<cri::ContainerEventResponse, Status>> {
        if self.over {
            return None;
        }
        loop {
            let event = match self.there.pop_front() {
                Some(event) => Ok(event),
                None => tokio::select! {
                    event = self.changes.recv() => event,
                    // An error is the daemon gone: the end as well.
                    _ = self.ending.wait_for(|ending| *ending) => return None,
                },
            };
            match event {
                Ok(event) if event.pod.client == Client::Cri => return Some(Ok(message(&event))),
                Ok(_) => {}
                Err(RecvError::Lagged(missed)) => {
                    self.over = true;
                    return Some(Err(Status::resource_exhausted(format!(
                        "this client read too slowly and missed {missed} events; list what there is, or call again"
                    ))));
                }
                Err(RecvError::Closed) => return None,
            }
        }
    }
}

fn message(event: &Event) -> cri::ContainerEventResponse {
    cri::ContainerEventResponse {
        container_id: event.subject.clone(),
        container_event_type: kind(event.what).into(),
        created_at: event.at,
        pod_sandbox_status: Some(view::pod_status(&event.pod)),
        containers_statuses: event.pod.containers.iter().map(view::container_status).collect(),
    }
}

fn kind(what: What) -> cri::ContainerEventType {
    match what {
        What::Created => cri::ContainerEventType::ContainerCreatedEvent,
        What::Started => cri::ContainerEventType::ContainerStartedEvent,
        What::Stopped => cri::ContainerEventType::ContainerStoppedEvent,
        What::Deleted => cri::ContainerEventType::ContainerDeletedEvent,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::broadcast;
    use tonic::Code;

    use super::*;
    use crate::pod::PodView;

    fn event(what: What, client: Client) -> Event {
        let pod = PodView { client, ..view::tests::pod() };
        Event { subject: pod.containers[0].id.to_string(), what, at: 9, pod: Arc::new(pod) }
    }

    fn listener(there: Vec<Event>, changes: Receiver<Event>, ending: &watch::Sender<bool>) -> Listener {
        Listener { there: there.into(), changes, ending: ending.subscribe(), over: false }
    }

    #[test]
    fn an_event_tells_of_the_whole_pod() {
        use cri::ContainerEventType as Kind;
        let rows = [
            (What::Created, Kind::ContainerCreatedEvent),
            (What::Started, Kind::ContainerStartedEvent),
            (What::Stopped, Kind::ContainerStoppedEvent),
            (What::Deleted, Kind::ContainerDeletedEvent),
        ];
        for (what, expected) in rows {
            let event = event(what, Client::Cri);
            let told = message(&event);
            assert_eq!(told.container_event_type(), expected);
            assert_eq!((told.created_at, &told.container_id), (9, &event.subject));
            assert_eq!(told.pod_sandbox_status.unwrap().id, event.pod.id.to_string());
            assert_eq!(told.containers_statuses[0].id, event.subject);
        }
    }

    #[tokio::test]
    async fn peoples_containers_are_no_news_for_a_kubelet_and_the_daemons_end_ends_it() {
        let (ending, sender) = (watch::Sender::new(false), broadcast::Sender::new(8));
        let there = vec![event(What::Started, Client::Standalone), event(What::Started, Client::Cri)];
        let id = there[1].subject.clone();
        let mut listener = listener(there, sender.subscribe(), &ending);
        assert_eq!(listener.next().await.unwrap().unwrap().container_id, id);
        ending.send_replace(true);
        assert!(listener.next().await.is_none());
    }

    #[tokio::test]
    async fn a_slow_reader_is_told_and_then_it_is_over() {
        let (ending, sender) = (watch::Sender::new(false), broadcast::Sender::new(2));
        let mut listener = listener(Vec::new(), sender.subscribe(), &ending);
        for _ in 0..5 {
            assert!(sender.send(event(What::Started, Client::Cri)).is_ok());
        }
        let status = listener.next().await.unwrap().unwrap_err();
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert!(status.message().contains("missed 3 events"), "{}", status.message());
        assert!(listener.next().await.is_none());
    }
}
