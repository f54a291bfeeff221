//! Makes pods on the built-in bridge and removes them, round after round, by several clients at once, and looks at what is
//! left. Needs root and the programs: `cargo build --workspace --bins`, then
//! `cargo run -p berth-tests --example churn -- [PODS] [ROUNDS] [CLIENTS]`, of 200, 20 and 8.

use std::{
    process::ExitCode,
    sync::atomic::{AtomicU32, Ordering},
    time::Instant,
};

use berth_tests::{Daemon, eventually};

fn main() -> ExitCode {
    let numbers: Option<Vec<u32>> = std::env::args().skip(1).map(|word| word.parse().ok()).collect();
    let Some(numbers) = numbers.filter(|numbers| numbers.len() <= 3) else {
        eprintln!("usage: churn [PODS] [ROUNDS] [CLIENTS]");
        return ExitCode::FAILURE;
    };
    let number = |at: usize, usual: u32| numbers.get(at).copied().unwrap_or(usual);
    let (pods, rounds, clients) = (number(0, 200), number(1, 20), number(2, 8));
    let daemon = Daemon::start();
    let mut families = 0;
    let began = Instant::now();
    for round in 0..rounds {
        let next = AtomicU32::new(0);
        let made = across(clients, || {
            let mut made = Vec::new();
            loop {
                let pod = next.fetch_add(1, Ordering::Relaxed);
                if pod >= pods {
                    return made;
                }
                made.push(daemon.plain_pod(&format!("churn-{round}-{pod}")));
            }
        });
        if let Some(pod) = made.first() {
            let network = daemon.pod_status(&pod.id).ok().and_then(|status| status.network);
            families = network.map_or(0, |network| 1 + network.additional_ips.len());
        }
        let left = std::sync::Mutex::new(made);
        across(clients, || {
            loop {
                let pod = left.lock().map(|mut left| left.pop());
                let Ok(Some(pod)) = pod else { return Vec::<()>::new() };
                if let Err(status) = daemon.remove_pod(&pod.id) {
                    panic!("remove pod: {status}");
                }
            }
        });
    }
    let took = began.elapsed();
    let began = Instant::now();
    eventually("nothing to be left", || daemon.left_behind().is_empty().then_some(()));
    let waited = began.elapsed();
    println!(
        "{pods} pods with {families} addresses each, made and removed {rounds} times by {clients} clients: {:.1} s; \
         nothing left {:.0} ms later",
        took.as_secs_f64(),
        waited.as_secs_f64() * 1000.0
    );
    ExitCode::SUCCESS
}

/// What each of so many threads gives, together.
fn across<T: Send>(count: u32, work: impl Fn() -> Vec<T> + Sync) -> Vec<T> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..count).map(|_| scope.spawn(&work)).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("a client did its part")).collect()
    })
}
