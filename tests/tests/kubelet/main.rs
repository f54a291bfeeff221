//! A stock kubelet on Berth: `cargo xtask test --only kubelet` (static pods, no cluster), `--only kubelet-vm` (the same
//! with systemd's driver and swap) and `--only cluster`.
//!
//! ```text
//!   xtask: builds Kubernetes; unshare --mount --net --pid ── this program, for one part
//!     world    links, directories and cgroups that only these namespaces have
//!     Node     berthd + kubelet
//!     Cluster  a Node that has joined a control plane of the test's own
//!     Joined   one that has joined etcd and an apiserver alone, on the machine with swap
//!     trials   share the node, side by side; those that restart something come after them, one by one
//! ```

mod attempts;
mod cluster;
mod driver;
mod gates;
mod isolation;
mod kubectl;
mod node;
mod plane;
mod pressure;
mod resources;
mod restarts;
mod services;
mod statics;
mod streams;
mod swapping;
mod volumes;
mod workloads;
mod world;

use std::{env, process::ExitCode, sync::Arc};

use libtest_mimic::{Arguments, Conclusion, Trial};
use serde_json::json;

use cluster::Cluster;
use node::Node;
use swapping::Joined;
use world::Driver;

/// A trial, on the node that all share.
type Test = fn(&Node);
/// One with its name, on what it shares with others.
type Named<T> = (&'static str, fn(&T));

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let part = env::var("BERTH_KUBELET_PART").unwrap_or_default();
    let driver = if part == "systemd" { Driver::Systemd } else { Driver::Cgroupfs };
    if !world::is_our_own(driver) {
        eprintln!(
            "not run: it wants namespaces of its own; run it by `cargo xtask test --only kubelet,kubelet-vm,cluster`"
        );
        return ExitCode::FAILURE;
    }
    let good = match part.as_str() {
        "cluster" => in_cluster(&arguments),
        "systemd" => under_systemd(&arguments),
        _ => alone(&arguments),
    };
    if good.iter().any(Conclusion::has_failed) { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn alone(arguments: &Arguments) -> Vec<Conclusion> {
    let node = Arc::new(Node::alone(Driver::Cgroupfs, json!({})));
    let mut good = vec![
        run(arguments, &node, "kubelet", Together::Yes, &[statics::TRIALS, attempts::TOGETHER].concat()),
        run(
            arguments,
            &node,
            "kubelet",
            Together::No,
            &[restarts::TRIALS, restarts::FAULTS, attempts::ALONE].concat(),
        ),
    ];
    gates::open(&node);
    good.push(run(arguments, &node, "kubelet::gates", Together::Yes, statics::TRIALS));
    good.push(run(arguments, &node, "kubelet::gates", Together::Yes, gates::TRIALS));
    good.push(run(arguments, &node, "kubelet", Together::No, pressure::ON_A_NODE));
    // Dropping looks for leaks, and panics where there are some.
    drop(Arc::into_inner(node).expect("all trials have ended"));
    good
}

/// On a machine that has swap, cgroup v2 and systemd.
fn under_systemd(arguments: &Arguments) -> Vec<Conclusion> {
    let swap = driver::Swap::on();
    let node = Arc::new(Node::alone(Driver::Systemd, driver::swapping()));
    let mut good = vec![
        run(arguments, &node, "kubelet::systemd", Together::Yes, driver::TRIALS),
        run(arguments, &node, "kubelet::systemd", Together::Yes, statics::TRIALS),
        run(arguments, &node, "kubelet::systemd", Together::No, restarts::TRIALS),
    ];
    let node = Arc::into_inner(node).expect("all trials have ended");
    // Minutes there, for nothing if none of them is asked for.
    let asked = |name: &str| {
        arguments.filter.as_ref().is_none_or(|filter| format!("kubelet::systemd::{name}").contains(filter))
    };
    let joined = swapping::TRIALS.iter().any(|(name, _)| asked(name)).then(|| Joined::up(node)).flatten();
    if let Some(joined) = joined.map(Arc::new) {
        good.push(run(arguments, &joined, "kubelet::systemd", Together::Yes, swapping::TRIALS));
        drop(Arc::into_inner(joined).expect("all trials have ended"));
    }
    drop(swap);
    good
}

fn in_cluster(arguments: &Arguments) -> Vec<Conclusion> {
    let cluster = Arc::new(Cluster::up());
    let together = [
        streams::TRIALS,
        workloads::TRIALS,
        volumes::TRIALS,
        isolation::TRIALS,
        resources::TRIALS,
        services::TRIALS,
        pressure::TOGETHER,
    ];
    let mut good = vec![run(arguments, &cluster, "cluster", Together::Yes, &together.concat())];
    good.push(run(arguments, &cluster, "cluster", Together::No, workloads::ALONE));
    good.push(run(arguments, &cluster, "cluster", Together::No, pressure::BY_ITSELF));
    drop(Arc::into_inner(cluster).expect("all trials have ended"));
    good
}

/// Whether trials may run side by side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Together {
    Yes,
    No,
}

fn run<T: Send + Sync + 'static>(
    arguments: &Arguments,
    shared: &Arc<T>,
    part: &str,
    together: Together,
    trials: &[Named<T>],
) -> Conclusion {
    let mut arguments = arguments.clone();
    // They wait more than they work.
    arguments.test_threads = Some(if together == Together::Yes { 8 } else { 1 });
    let trial = |(name, test): &Named<T>| {
        let (shared, test) = (Arc::clone(shared), *test);
        Trial::test(format!("{part}::{name}"), move || {
            test(&shared);
            Ok(())
        })
    };
    libtest_mimic::run(&arguments, trials.iter().map(trial).collect())
}
