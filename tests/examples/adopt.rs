//! Runs containers, kills berthd, and tells how long its successor takes until it answers, with all of them in its list.
//! Needs root and the programs: `cargo build --workspace --bins`, then
//! `cargo run -p berth-tests --example adopt -- [CONTAINERS] [IN_A_POD] [ROUNDS]`, of 500, 2 and 5.

use std::{process::ExitCode, sync::atomic::AtomicU32, sync::atomic::Ordering, time::Instant};

use berth_cri::v1 as cri;
use berth_tests::{Daemon, asked, pod};

/// Who make the containers.
const CLIENTS: u32 = 4;

fn main() -> ExitCode {
    let numbers: Option<Vec<u32>> = std::env::args().skip(1).map(|word| word.parse().ok()).collect();
    let Some(numbers) = numbers.filter(|numbers| numbers.len() <= 3) else {
        eprintln!("usage: adopt [CONTAINERS] [IN_A_POD] [ROUNDS]");
        return ExitCode::FAILURE;
    };
    let number = |at: usize, usual: u32| numbers.get(at).copied().unwrap_or(usual).max(1);
    let (containers, in_a_pod, rounds) = (number(0, 500), number(1, 2), number(2, 5));
    let mut daemon = Daemon::with_fixture();
    let next = AtomicU32::new(0);
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                while next.load(Ordering::Relaxed) < containers {
                    let first = next.fetch_add(in_a_pod, Ordering::Relaxed);
                    let those = first.min(containers)..(first + in_a_pod).min(containers);
                    if !those.is_empty() {
                        let made = daemon.run_pod(pod(&format!("adopt-{first}")));
                        let made = made.unwrap_or_else(|status| panic!("run a pod: {status}"));
                        for each in those {
                            let launched =
                                daemon.launch(&made, &asked(&format!("c{each}"), &["sleep", "inf"]));
                            launched.unwrap_or_else(|status| panic!("launch a container: {status}"));
                        }
                    }
                }
            });
        }
    });
    println!("{containers} containers, {in_a_pod} in a pod, run");
    for _ in 0..rounds {
        daemon.kill9();
        let began = Instant::now();
        daemon.up();
        let answered = began.elapsed();
        let running = cri::ContainerStateValue { state: cri::ContainerState::ContainerRunning.into() };
        let filter = cri::ContainerFilter { state: Some(running), ..Default::default() };
        let listed = daemon.list_containers(filter).len();
        let ms = |took: std::time::Duration| took.as_secs_f64() * 1000.0;
        let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let load = load.split(' ').next().unwrap_or_default().to_owned();
        println!(
            "answers after {:.0} ms, {listed} in the list after {:.0} ms (load {load})",
            ms(answered),
            ms(began.elapsed())
        );
    }
    ExitCode::SUCCESS
}
