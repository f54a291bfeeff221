//! What changed between two views of a pod, in the words that clients wait for. Pure.

use std::sync::Arc;

use super::{ContainerState, ContainerView, PodState, PodView};

/// One change, with the pod as it is after it; of a pod that is gone, as it was last.
#[derive(Debug, Clone)]
pub struct Event {
    /// Of a container, or of the pod itself.
    pub subject: String,
    pub what: What,
    /// Unix nanoseconds, given by the board: no two events have the same, a later one has a later. 0: not told yet.
    pub at: i64,
    pub pod: Arc<PodView>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    Created,
    Started,
    Stopped,
    Deleted,
}

/// Between what was published and what is; the pod comes up before its containers and goes after them.
pub fn between(before: Option<&PodView>, after: &Arc<PodView>) -> Vec<Event> {
    let mut found = Vec::new();
    let subject = after.id.as_str();
    match before.map(|pod| pod.state) {
        None => found.extend([(subject, What::Created), (subject, of_pod(after.state))]),
        Some(state) if state != after.state => found.push((subject, of_pod(after.state))),
        Some(_) => {}
    }
    let containers = before.map_or(&[][..], |pod| &pod.containers);
    for container in &after.containers {
        let known = containers.iter().find(|one| one.id == container.id);
        found.extend(steps(known, container).into_iter().map(|what| (container.id.as_str(), what)));
    }
    let gone = |one: &&ContainerView| !after.containers.iter().any(|container| container.id == one.id);
    found.extend(containers.iter().filter(gone).map(|one| (one.id.as_str(), What::Deleted)));
    events(found, after)
}

/// A pod that is no longer there, with all in it.
pub fn withdrawn(last: &Arc<PodView>) -> Vec<Event> {
    let containers = last.containers.iter().map(|container| (container.id.as_str(), What::Deleted));
    events(containers.chain([(last.id.as_str(), What::Deleted)]).collect(), last)
}

/// What is there already, for somebody who begins to listen.
pub fn snapshot(pod: &Arc<PodView>) -> Vec<Event> {
    let containers = pod.containers.iter().map(|one| (one.id.as_str(), of_container(one.state)));
    events([(pod.id.as_str(), of_pod(pod.state))].into_iter().chain(containers).collect(), pod)
}

fn events(found: Vec<(&str, What)>, pod: &Arc<PodView>) -> Vec<Event> {
    let event = |(subject, what): (&str, What)| Event {
        subject: subject.to_owned(),
        what,
        at: 0,
        pod: Arc::clone(pod),
    };
    found.into_iter().map(event).collect()
}

/// Views may skip what was short: a container that is seen ended when last seen created has run all the same.
fn steps(before: Option<&ContainerView>, after: &ContainerView) -> Vec<What> {
    let Some(before) = before else {
        return match of_container(after.state) {
            What::Created => vec![What::Created],
            now => vec![What::Created, now],
        };
    };
    let again = before.restarts != after.restarts || before.started_at != after.started_at;
    match (of_container(before.state), of_container(after.state)) {
        (What::Started, What::Started) if again => vec![What::Stopped, What::Started],
        (What::Stopped, What::Stopped) if before.state == ContainerState::Unknown => {
            // Only now it is known how it ended.
            if after.state == before.state { vec![] } else { vec![What::Stopped] }
        }
        (was, is) if was == is => vec![],
        (What::Created, What::Stopped) if after.started_at > 0 => vec![What::Started, What::Stopped],
        (_, is) => vec![is],
    }
}

fn of_pod(state: PodState) -> What {
    match state {
        PodState::Ready => What::Started,
        PodState::NotReady => What::Stopped,
    }
}

fn of_container(state: ContainerState) -> What {
    match state {
        ContainerState::Created => What::Created,
        ContainerState::Running => What::Started,
        ContainerState::Backoff | ContainerState::Exited | ContainerState::Unknown => What::Stopped,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::{
        id::{ContainerId, PodId},
        pod::Client,
    };

    pub fn pod(containers: Vec<ContainerView>) -> PodView {
        PodView {
            id: PodId::random(),
            client: Client::Cri,
            config: Arc::default(),
            handler: String::new(),
            state: PodState::Ready,
            created_at: 1,
            ips: Vec::new(),
            netns: None,
            overhead: None,
            resources: None,
            containers,
        }
    }

    pub fn container(state: ContainerState, started_at: i64) -> ContainerView {
        ContainerView {
            env: Arc::default(),
            id: ContainerId::random(),
            pod: PodId::random(),
            client: Client::Cri,
            config: Arc::default(),
            standalone: None,
            document: Default::default(),
            spec: Default::default(),
            image_id: String::new(),
            volume_images: Vec::new(),
            state,
            created_at: 1,
            started_at,
            finished_at: 0,
            exit_code: 0,
            reason: String::new(),
            message: String::new(),
            oom_killed: false,
            restarts: 0,
            pid: 0,
            uid: 0,
            gid: 0,
            groups: Vec::new(),
            log: None,
            cgroup_path: String::new(),
            upper: "/upper".into(),
            runtime: String::new(),
            health_check: None,
            health: None,
        }
    }

    #[test]
    fn a_containers_steps_follow_from_two_views() {
        use ContainerState::{Backoff, Created, Exited, Running, Unknown};
        use What::{Started, Stopped};
        // State and start, before and after.
        let rows = [
            (None, (Created, 0), vec![What::Created]),
            (None, (Running, 5), vec![What::Created, Started]),
            (None, (Exited, 5), vec![What::Created, Stopped]),
            (Some((Created, 0)), (Created, 0), vec![]),
            (Some((Created, 0)), (Running, 5), vec![Started]),
            (Some((Created, 0)), (Exited, 5), vec![Started, Stopped]),
            (Some((Created, 0)), (Exited, 0), vec![Stopped]),
            (Some((Running, 5)), (Running, 5), vec![]),
            (Some((Running, 5)), (Running, 6), vec![Stopped, Started]),
            (Some((Running, 5)), (Backoff, 5), vec![Stopped]),
            (Some((Backoff, 5)), (Running, 6), vec![Started]),
            (Some((Backoff, 5)), (Exited, 5), vec![]),
            (Some((Running, 5)), (Unknown, 0), vec![Stopped]),
            (Some((Unknown, 0)), (Unknown, 0), vec![]),
            (Some((Unknown, 0)), (Exited, 5), vec![Stopped]),
            (Some((Unknown, 0)), (Running, 5), vec![Started]),
        ];
        for (before, after, expected) in rows {
            let told =
                steps(before.map(|(state, at)| container(state, at)).as_ref(), &container(after.0, after.1));
            assert_eq!(told, expected, "{before:?} -> {after:?}");
        }
    }

    #[test]
    fn a_pod_comes_before_its_containers_and_goes_after_them() {
        let (first, second) = (container(ContainerState::Running, 1), container(ContainerState::Created, 0));
        let told = |events: Vec<Event>| -> Vec<(String, What)> {
            events.into_iter().map(|event| (event.subject, event.what)).collect()
        };
        let one = Arc::new(pod(vec![first.clone()]));
        let (id, a, b) = (one.id.to_string(), first.id.to_string(), second.id.to_string());
        let row = |id: &String, what| (id.clone(), what);
        let new = told(between(None, &one));
        let expected = [
            row(&id, What::Created),
            row(&id, What::Started),
            row(&a, What::Created),
            row(&a, What::Started),
        ];
        assert_eq!(new, expected);
        assert_eq!(told(snapshot(&one)), [row(&id, What::Started), row(&a, What::Started)]);

        let other = Arc::new(PodView { containers: vec![second], ..(*one).clone() });
        assert_eq!(told(between(Some(&one), &other)), [row(&b, What::Created), row(&a, What::Deleted)]);
        let stopped = Arc::new(PodView { state: PodState::NotReady, ..(*other).clone() });
        assert_eq!(told(between(Some(&other), &stopped)), [row(&id, What::Stopped)]);
        assert_eq!(told(withdrawn(&stopped)), [row(&b, What::Deleted), row(&id, What::Deleted)]);
    }
}
