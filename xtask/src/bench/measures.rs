//! What can be measured: a line for each measure, with what is better and what is wished for.
//!
//! A name may stand for many by its end: `100 pods: daemon RSS` is `daemon RSS`.

use std::fmt;

use super::{statistics::Better, trace::KERNEL};

/// A row of the tables.
#[derive(Debug, Clone)]
pub struct Measure {
    pub name: String,
    pub place: usize,
    pub better: Better,
    pub goals: &'static [Goal],
    pub says: &'static str,
}

/// What ours is to be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Goal {
    /// So much of the best peer's.
    OfBest(f64),
    /// So much of what the machine does with no runtime at all.
    OfFloor(f64),
    AtMost(f64),
}

/// Name, better, goals, what it is.
type Line = (&'static str, Better, &'static [Goal], &'static str);

const LESS: Better = Better::Less;
const MORE: Better = Better::More;

const QUESTIONS: &str = "CPU of a kubelet's questions";

const TABLE: &[Line] = &[
    (
        "pod up",
        LESS,
        &[Goal::OfBest(1.0 / 16.0)],
        "RunPodSandbox, CreateContainer and StartContainer, one at a time; floor: `true` by unshare(1) in five new namespaces",
    ),
    ("RunPodSandbox", LESS, &[], "of it"),
    ("CreateContainer", LESS, &[], "of it"),
    ("StartContainer", LESS, &[], "of it"),
    ("step: take addresses", LESS, &[], "of RunPodSandbox, as `berth explain` tells it"),
    ("step: make namespaces", LESS, &[], "by a shim, with the veth pair"),
    ("step: connect network", LESS, &[], "of CNI; nothing on the built-in bridge"),
    ("step: write files", LESS, &[], "hosts, resolv.conf, records"),
    ("step: hold layers", LESS, &[], "of CreateContainer"),
    ("step: make cgroup", LESS, &[], "in every hierarchy, with limits"),
    (
        "step: launch",
        LESS,
        &[],
        "from the shim's start until init waits: clone3, overlay, mounts, pivot, seccomp",
    ),
    ("step: start", LESS, &[], "of StartContainer: until the exec"),
    (
        KERNEL,
        LESS,
        &[],
        "in system calls of twenty pods' starts, the mean, without sleep that another process ends; traced, which takes time too",
    ),
    (
        "pod down",
        LESS,
        &[Goal::OfBest(1.0 / 12.0)],
        "StopPodSandbox and RemovePodSandbox of a pod with one container",
    ),
    ("StopPodSandbox", LESS, &[], "of it"),
    ("RemovePodSandbox", LESS, &[], "of it"),
    ("container in a pod", LESS, &[], "CreateContainer and StartContainer in a pod that has one"),
    ("StopContainer", LESS, &[], "of one that ends at SIGTERM"),
    ("RemoveContainer", LESS, &[], "of one that has ended"),
    ("ExecSync", LESS, &[Goal::OfBest(1.0 / 5.0)], "of `true`"),
    (
        "CPU of a pod's life",
        LESS,
        &[],
        "all calls above with four execs: daemon, monitors, helpers, containers",
    ),
    ("pods up at once", MORE, &[Goal::OfBest(16.0)], "eight clients, until the last pod runs"),
    ("a pod's start at once", LESS, &[], "of those, each one's"),
    ("pods down at once", MORE, &[], "eight clients, until the last pod is removed"),
    ("all running", LESS, &[], "so many pods by eight clients"),
    ("a pod's start", LESS, &[], "of those, each one's: whether cost grows with number"),
    ("failed starts", LESS, &[], "of those"),
    ("all removed", LESS, &[], "by eight clients"),
    ("daemon RSS", LESS, &[Goal::OfBest(1.0 / 3.0)], "resident memory of the daemon"),
    ("daemon PSS", LESS, &[], "the same, shared pages by part"),
    ("monitors' PSS a pod", LESS, &[Goal::OfBest(0.5)], "of shims or conmons, by the number of pods"),
    ("monitors' private dirty a pod", LESS, &[], "what is theirs alone"),
    (
        "kernel memory a pod",
        LESS,
        &[],
        "what the machine's kernel can't give back (slab, stacks, page tables, per-CPU), by its growth since there were no pods",
    ),
    (
        "restart until listed",
        LESS,
        &[Goal::OfBest(0.1)],
        "from the start of a daemon whose predecessor was killed until all are listed as running",
    ),
    ("CPU of a probe", LESS, &[], "of an ExecSync in each container once a second"),
    ("probe", LESS, &[], "such an ExecSync"),
    (
        QUESTIONS,
        LESS,
        &[Goal::AtMost(1.0)],
        "of a core: daemon, monitors and containers, while it is asked what a kubelet asks of a node where nothing happens",
    ),
    ("a kubelet's second", LESS, &[], "how long its questions of one second take"),
    ("late probes", LESS, &[], "such that could not begin within a second of their time"),
    (
        "a kubelet's probes: all pods running",
        LESS,
        &[],
        "a hundred static pods of a kubelet 1.37, from its start",
    ),
    (
        "a kubelet's probes: CPU",
        LESS,
        &[],
        "of a core: kubelet, daemon, monitors, OCI runtimes and what is probed, with an exec probe a second in each of them",
    ),
    ("a kubelet's probes: CPU but the kubelet's", LESS, &[], "of it what is not the kubelet's own"),
    ("a kubelet's probes: CPU by their number", LESS, &[], "all of it, by how many probes there were"),
    ("a kubelet's probes: failed", LESS, &[], "of those"),
    ("ListContainers", LESS, &[], "until its last byte is read"),
    ("ListContainers and decoded", LESS, &[], "and the client has a struct of each"),
    ("ListPodSandbox", LESS, &[], ""),
    ("ContainerStatus", LESS, &[], ""),
    ("PodSandboxStatus", LESS, &[], ""),
    ("ListContainerStats", LESS, &[], ""),
    ("ListPodSandboxStats", LESS, &[], ""),
    (
        "chatty shim's private dirty",
        LESS,
        &[Goal::AtMost(96.0)],
        "beside a container that writes 1,000 lines a second",
    ),
    (
        "short lines: wall",
        LESS,
        &[Goal::OfFloor(1.1)],
        "lines of 74 bytes, until the last one is in the log; floor: the producer into a drained pipe",
    ),
    ("short lines: CPU", LESS, &[Goal::OfBest(0.5)], "without what the producer alone uses"),
    ("short lines: records", LESS, &[], "lines of the log: those of the producer, if none is split"),
    ("long lines: wall", LESS, &[Goal::OfFloor(1.1)], "lines of 8 KiB"),
    ("long lines: CPU", LESS, &[Goal::OfBest(0.5)], ""),
    ("long lines: records", LESS, &[], ""),
    ("port-forward: open", LESS, &[], "from the call until the first byte is back, over SPDY"),
    ("port-forward: there and back", LESS, &[], "a byte"),
    ("port-forward: throughput", MORE, &[], "echoed: both directions"),
    ("attach: open", LESS, &[], ""),
    ("attach: there and back", LESS, &[], ""),
    ("attach: throughput", MORE, &[], "the container's log gets it as well"),
    (
        "run --rm",
        LESS,
        &[Goal::OfBest(1.0 / 3.0)],
        "`berth run --rm` of `true` beside `podman run --rm`, no network",
    ),
    ("oci", LESS, &[Goal::OfBest(0.5)], "create, start, the end of `true`, delete"),
    ("oci CPU, mean", LESS, &[], "of that"),
    (
        "pull: wall",
        LESS,
        &[Goal::OfBest(0.4)],
        "20 gzip layers, 1 GiB, 42,000 files, from loopback to a fresh ext4; floor: tar -xz of them, one after the other",
    ),
    ("pull: CPU", LESS, &[Goal::OfBest(0.5)], ""),
    ("pull: disk", LESS, &[Goal::OfFloor(1.1)], "used afterwards"),
    ("pull: daemon's peak", LESS, &[], "resident memory"),
    ("pull: again", LESS, &[], "all of it is there"),
    ("pull zstd: wall", LESS, &[], "the same files"),
    ("pull zstd: CPU", LESS, &[], ""),
    ("ten images: wall", LESS, &[Goal::OfBest(0.5)], "small ones, at once"),
    ("ten images: CPU", LESS, &[], ""),
    (
        "unpack alone: wall",
        LESS,
        &[],
        "`berth load` and `podman load` of the same gzip layers; floor: tar -xz of them",
    ),
    ("unpack alone: CPU", LESS, &[], ""),
    ("huge layer: wall", LESS, &[], "one of 5 GiB"),
    ("huge layer: CPU", LESS, &[], ""),
    ("huge layer: daemon's peak", LESS, &[Goal::AtMost(100.0)], "resident memory"),
];

/// The measure by a name; one that the table doesn't know is less for better, and last.
pub fn of(name: &str) -> Measure {
    let base =
        name.split_once(" pods: ").filter(|(number, _)| is_count(number)).map_or(name, |(_, base)| base);
    let base = if base.starts_with(KERNEL) { KERNEL } else { base };
    match TABLE.iter().position(|line| line.0 == base) {
        Some(place) => {
            let (_, better, goals, says) = TABLE[place];
            // Of numbers of pods the goals are about a hundred, a kubelet's about as many as it has.
            let about = if base == QUESTIONS { "110 pods: " } else { "100 pods: " };
            let goals = if base == name || name.starts_with(about) { goals } else { &[] };
            Measure { name: name.to_owned(), place, better, goals, says }
        }
        None => Measure { name: name.to_owned(), place: TABLE.len(), better: LESS, goals: &[], says: "" },
    }
}

fn is_count(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-')
}

impl Goal {
    pub fn is_met(self, ratio: f64, better: Better) -> bool {
        match (self, better) {
            (Self::OfBest(goal) | Self::OfFloor(goal), Better::Less) => ratio <= goal,
            (Self::OfBest(goal) | Self::OfFloor(goal), Better::More) => ratio >= goal,
            (Self::AtMost(_), _) => ratio <= 1.0,
        }
    }
}

impl fmt::Display for Goal {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ratio = |goal: f64| {
            let part = (1.0 / goal).round();
            if goal < 1.0 && (1.0 / part - goal).abs() < 1e-9 {
                format!("1/{part}")
            } else {
                format!("{goal}")
            }
        };
        match self {
            Self::OfBest(goal) => write!(to, "{} of the best peer's", ratio(*goal)),
            Self::OfFloor(goal) => write!(to, "{} of the floor", ratio(*goal)),
            Self::AtMost(goal) => write!(to, "at most {goal}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_of_pods_is_no_part_of_the_name() {
        assert_eq!(of("100 pods: daemon RSS").goals, &[Goal::OfBest(1.0 / 3.0)]);
        assert_eq!(of("500 pods: daemon RSS").goals, &[]);
        assert_eq!(of("500 pods: daemon RSS").place, of("daemon RSS").place);
        assert_eq!(of("110 pods: CPU of a kubelet's questions").goals, &[Goal::AtMost(1.0)]);
        assert_eq!(of("110 pods: daemon RSS").goals, &[]);
        assert_eq!(of("pods down at once").better, MORE);
        assert_eq!(of("what nobody knows").place, TABLE.len());
    }

    #[test]
    fn names_are_there_once() {
        for (at, line) in TABLE.iter().enumerate() {
            assert!(TABLE[at + 1..].iter().all(|other| other.0 != line.0), "{}", line.0);
        }
    }

    #[test]
    fn goals_are_told_as_people_write_them() {
        assert_eq!(Goal::OfBest(1.0 / 16.0).to_string(), "1/16 of the best peer's");
        assert_eq!(Goal::OfBest(0.4).to_string(), "0.4 of the best peer's");
        assert_eq!(Goal::OfBest(16.0).to_string(), "16 of the best peer's");
        assert_eq!(Goal::AtMost(96.0).to_string(), "at most 96");
    }
}
