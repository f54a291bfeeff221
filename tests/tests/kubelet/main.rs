//! A stock kubelet on Berth: `cargo xtask test --only kubelet` (static pods, no cluster).
//!
//! ```text
//!   xtask: builds Kubernetes; unshare --mount --net --pid ── this program
//!     world   links, directories and cgroups that only these namespaces have
//!     Node    berthd + kubelet
//!     trials  share the node, side by side; those that restart something come after them, one by one
//! ```

mod kubectl;
mod node;
mod restarts;
mod statics;
mod world;

use std::{process::ExitCode, sync::Arc};

use libtest_mimic::{Arguments, Conclusion, Trial};

use node::Node;

/// A trial, on the node that all share.
type Test = fn(&Node);

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    if !world::is_our_own() {
        eprintln!("not run: it wants namespaces of its own; run it by `cargo xtask test --only kubelet`");
        return ExitCode::FAILURE;
    }
    let node = Arc::new(Node::up());
    let good = [
        run(&arguments, &node, Together::Yes, statics::TRIALS),
        run(&arguments, &node, Together::No, restarts::TRIALS),
    ];
    // Dropping looks for leaks, and panics where there are some.
    drop(Arc::into_inner(node).expect("all trials have ended"));
    if good.iter().any(Conclusion::has_failed) { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// Whether trials may run side by side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Together {
    Yes,
    No,
}

fn run(arguments: &Arguments, node: &Arc<Node>, together: Together, trials: &[(&str, Test)]) -> Conclusion {
    let mut arguments = arguments.clone();
    // They wait more than they work.
    arguments.test_threads = Some(if together == Together::Yes { 8 } else { 1 });
    let trial = |(name, test): &(&str, Test)| {
        let (node, test) = (Arc::clone(node), *test);
        Trial::test(format!("kubelet::{name}"), move || {
            test(&node);
            Ok(())
        })
    };
    libtest_mimic::run(&arguments, trials.iter().map(trial).collect())
}
