//! Many clients at one pod at once: who asks for the same gets the same, and whatever the order, each gets an answer that can
//! be and nothing is left.

use std::{
    collections::BTreeMap,
    sync::{Barrier, Mutex},
};

use berth_cri::v1 as cri;
use berth_tests::{Daemon, Pod, asked, pod};
use tonic::Code;

const CLIENTS: usize = 8;

/// All at once: what each of them got.
fn at_once<T: Send>(work: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let start = Barrier::new(CLIENTS);
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| {
                let (start, work) = (&start, &work);
                scope.spawn(move || {
                    start.wait();
                    work(client)
                })
            })
            .collect();
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    })
}

#[test]
fn the_same_call_many_times_at_once_is_done_once() {
    let daemon = Daemon::with_fixture();
    let config = pod("same");
    let pods = at_once(|_| daemon.run_pod(config.clone()).unwrap());
    let first = &pods[0];
    assert!(pods.iter().all(|pod| pod.id == first.id), "{pods:?}");
    let wanted = asked("c", &["sleep", "inf"]);
    let containers = at_once(|_| daemon.create(first, &wanted).unwrap());
    let id = &containers[0];
    assert!(containers.iter().all(|other| other == id), "{containers:?}");
    assert_eq!(daemon.list_containers(cri::ContainerFilter::default()).len(), 1);
    // It starts once: the others are told that it runs.
    let started = at_once(|_| daemon.start_container(id));
    assert_eq!(started.iter().filter(|answer| answer.is_ok()).count(), 1, "{started:?}");
    assert!(
        started
            .iter()
            .flat_map(|answer| answer.as_ref().err())
            .all(|status| status.code() == Code::FailedPrecondition)
    );
    at_once(|_| daemon.stop_container(id, 0).unwrap());
    assert_eq!(daemon.status(id).unwrap().exit_code, 137);
    at_once(|_| daemon.remove_container(id).unwrap());
    at_once(|_| daemon.stop_pod(&first.id).unwrap());
    at_once(|_| daemon.remove_pod(&first.id).unwrap());
    assert_eq!(daemon.list_pods(cri::PodSandboxFilter::default()), []);
}

/// xorshift64*: what is drawn follows from the seed alone.
struct Drawn(u64);

impl Drawn {
    fn below(&mut self, count: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        ((self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize) % count
    }
}

/// What the clients know of one pod: the containers they were given, and how often each was started.
#[derive(Default)]
struct Known(Mutex<BTreeMap<String, u32>>);

impl Known {
    fn one(&self, drawn: &mut Drawn) -> Option<String> {
        let known = self.0.lock().unwrap();
        let at = drawn.below(known.len().max(1));
        known.keys().nth(at).cloned()
    }
}

/// A call's name, and the code and words of its answer.
type Told = (&'static str, Code, String);

fn told(call: &'static str, answer: Result<(), tonic::Status>) -> Told {
    match answer {
        Ok(()) => (call, Code::Ok, String::new()),
        Err(status) => (call, status.code(), status.message().to_owned()),
    }
}

/// One call of those that a client may make at any time.
fn any_call(daemon: &Daemon, pod: &Pod, known: &Known, drawn: &mut Drawn) -> Told {
    let kind = drawn.below(20);
    if kind < 5 {
        let name = format!("c{}", drawn.below(4));
        let created = daemon.create(pod, &asked(&name, &["sleep", "inf"]));
        return told(
            "create",
            created.map(|id| {
                known.0.lock().unwrap().entry(id).or_default();
            }),
        );
    }
    let Some(id) = known.one(drawn) else { return told("none", Ok(())) };
    match kind {
        5..9 => {
            let started = daemon.start_container(&id);
            if started.is_ok() {
                *known.0.lock().unwrap().entry(id).or_default() += 1;
            }
            told("start", started)
        }
        9..11 => told("exec", daemon.exec(&id, &["true"], 20).map(drop)),
        11..13 => told("stop", daemon.stop_container(&id, 0)),
        13..16 => told("remove", daemon.remove_container(&id)),
        16 => told("status", daemon.status(&id).map(drop)),
        17 => {
            let request = cri::ContainerStatsRequest { container_id: id };
            told("stats", daemon.call(daemon.runtime().container_stats(request)).map(drop))
        }
        18 => told("pod status", daemon.pod_status(&pod.id).map(drop)),
        _ => {
            daemon.list_containers(cri::ContainerFilter::default());
            told("list", Ok(()))
        }
    }
}

/// Stops and removals always succeed; what else fails says that the container is not there or not in the state for it.
fn can_be(call: &str, code: Code) -> bool {
    match call {
        "stop" | "remove" | "stop pod" | "list" | "none" => code == Code::Ok,
        "create" | "pod status" => matches!(code, Code::Ok | Code::NotFound | Code::FailedPrecondition),
        "status" => matches!(code, Code::Ok | Code::NotFound),
        _ => matches!(code, Code::Ok | Code::NotFound | Code::FailedPrecondition),
    }
}

#[test]
fn calls_in_any_order_get_answers_that_can_be_and_leave_nothing() {
    let daemon = Daemon::with_fixture();
    let mut started = 0;
    for seed in 1..=4u64 {
        let pod = daemon.plain_pod("any");
        let known = Known::default();
        let answers = at_once(|client| {
            let mut drawn = Drawn(seed << 32 | (client as u64 + 1));
            let mut answers: Vec<_> = (0..40).map(|_| any_call(&daemon, &pod, &known, &mut drawn)).collect();
            // One ends the pod while the others are not done with it.
            if client == 0 {
                answers.push(told("stop pod", daemon.stop_pod(&pod.id)));
            }
            answers
        });
        let wrong: Vec<_> = answers.iter().flatten().filter(|(call, code, _)| !can_be(call, *code)).collect();
        assert!(wrong.is_empty(), "seed {seed}: {wrong:?}");
        let known = known.0.into_inner().unwrap();
        assert!(known.values().all(|starts| *starts <= 1), "started twice, seed {seed}: {known:?}");
        started += known.values().filter(|starts| **starts == 1).count();
        daemon.remove_pod(&pod.id).unwrap();
        assert_eq!(daemon.list_containers(cri::ContainerFilter::default()), []);
    }
    assert!(started > 0, "nothing was tried");
}
