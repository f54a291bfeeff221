//! Load for a while: 32 clients that make, start, ask, stop and remove containers, and give up or set deadlines as they
//! like; `berthd` and shims are killed meanwhile. Then nothing may be left, every log has to be whole, and what `berthd`
//! holds has to be what it held after its first minutes. Run by `cargo xtask soak --minutes N`.
//!
//! ```text
//! chaos, three fifths: berthd and shims are killed ──> nothing is left
//! steady: shims are killed ── warm ──> measure ── the rest ──> measure again: as before
//! ```

mod audit;
mod clients;
mod dice;

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    process::ExitCode,
    sync::{
        Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use berth_tests::{Daemon, Options};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use self::dice::Dice;

const CLIENTS: u64 = 32;
/// What a container writes.
const LINES: usize = 300;

struct World {
    daemon: RwLock<Daemon>,
    /// Containers that run, with their init.
    running: Mutex<BTreeMap<String, i32>>,
    /// Those whose shim was killed, and how often: each time the line that it was reading may lack its beginning.
    orphans: Mutex<HashMap<String, usize>>,
    breaches: Mutex<Vec<String>>,
    refused: Mutex<BTreeMap<String, u64>>,
    ended: AtomicBool,
    cycles: AtomicU64,
    execs: AtomicU64,
    given_up: AtomicU64,
    checked_lines: AtomicU64,
    orphans_lines: AtomicU64,
    torn_lines: AtomicU64,
    attempts: AtomicU64,
    daemon_kills: AtomicU64,
    shim_kills: AtomicU64,
}

fn main() -> ExitCode {
    let minutes =
        std::env::args().nth(1).and_then(|word| word.parse::<f64>().ok()).filter(|minutes| *minutes > 0.0);
    let Some(minutes) = minutes else {
        eprintln!("usage: soak MINUTES");
        return ExitCode::FAILURE;
    };
    let whole = Duration::from_secs_f64(minutes * 60.0);
    let options = Options { over: "[daemon]\nlog_level = \"info\"\n".into(), ..Options::default() };
    let world = World {
        daemon: RwLock::new(Daemon::with_fixture_and(options)),
        running: Mutex::default(),
        orphans: Mutex::default(),
        breaches: Mutex::default(),
        refused: Mutex::default(),
        ended: AtomicBool::new(false),
        cycles: AtomicU64::new(0),
        execs: AtomicU64::new(0),
        given_up: AtomicU64::new(0),
        checked_lines: AtomicU64::new(0),
        orphans_lines: AtomicU64::new(0),
        torn_lines: AtomicU64::new(0),
        attempts: AtomicU64::new(0),
        daemon_kills: AtomicU64::new(0),
        shim_kills: AtomicU64::new(0),
    };
    let began = Instant::now();
    println!("soak: {CLIENTS} clients, {minutes} minutes, load {}", load());
    world.phase("berthd and shims are killed", whole.mul_f64(0.6), true);
    world.nothing_left();
    world.phase("shims are killed, to warm up", whole.mul_f64(0.15), false);
    world.nothing_left();
    let before = world.measure();
    world.phase("shims are killed", whole.mul_f64(0.25), false);
    world.nothing_left();
    let after = world.measure();
    world.compare(before, after);
    let count = |number: &AtomicU64| number.load(Ordering::Relaxed);
    println!(
        "{} cycles, {} execs, {} attempts of berthd's making, {} calls given up or cut by a deadline, {} kills of berthd, \
         {} of shims, {} log lines checked, {} of them of containers whose shim was killed, and of those {} without their \
         beginning, {:.0} s, load {}",
        count(&world.cycles),
        count(&world.execs),
        count(&world.attempts),
        count(&world.given_up),
        count(&world.daemon_kills),
        count(&world.shim_kills),
        count(&world.checked_lines),
        count(&world.orphans_lines),
        count(&world.torn_lines),
        began.elapsed().as_secs_f64(),
        load(),
    );
    for (what, times) in lock(&world.refused).iter() {
        println!("refused {times} times: {what}");
    }
    let breaches = std::mem::take(&mut *lock(&world.breaches));
    breaches.iter().for_each(|breach| println!("BREACH: {breach}"));
    println!("{} breaches", breaches.len());
    if breaches.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

impl World {
    fn phase(&self, name: &str, length: Duration, kills_berthd: bool) {
        println!("{name}, {:.0} s", length.as_secs_f64());
        self.ended.store(false, Ordering::Relaxed);
        let end = Instant::now() + length;
        thread::scope(|scope| {
            for client in 1..=CLIENTS {
                scope.spawn(move || {
                    let mut dice = Dice(client.wrapping_mul(0x9e37_79b9_7f4a_7c15));
                    while !self.ended.load(Ordering::Relaxed) {
                        if self.cycle(client, &mut dice).is_ok() {
                            self.cycles.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                });
            }
            let mut dice = Dice(0x5eed);
            while Instant::now() < end {
                // The moments are what is random here.
                thread::sleep(Duration::from_millis(200 + dice.below(1800)));
                if kills_berthd && dice.one_in(6) {
                    self.kill_berthd();
                } else {
                    self.kill_a_shim(&mut dice);
                }
            }
            self.ended.store(true, Ordering::Relaxed);
        });
    }

    /// In the middle of whatever is under way; those calls fail, and nobody makes others before the next one is up.
    fn kill_berthd(&self) {
        let pid = self.daemon().pid();
        kill(pid, Signal::SIGKILL).expect("kill berthd");
        let mut daemon = self.daemon.write().unwrap_or_else(PoisonError::into_inner);
        daemon.reap();
        daemon.up();
        self.daemon_kills.fetch_add(1, Ordering::Relaxed);
    }

    fn kill_a_shim(&self, dice: &mut Dice) {
        let running = lock(&self.running);
        let Some((id, init)) = running.iter().nth(dice.below(running.len().max(1) as u64) as usize) else {
            return;
        };
        let Some(shim) = shim_of(*init) else { return };
        *lock(&self.orphans).entry(id.clone()).or_default() += 1;
        // It may have gone by itself.
        if kill(Pid::from_raw(shim), Signal::SIGKILL).is_ok() {
            self.shim_kills.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn breach(&self, what: String) {
        println!("BREACH: {what}");
        lock(&self.breaches).push(what);
    }

    fn daemon(&self) -> RwLockReadGuard<'_, Daemon> {
        self.daemon.read().unwrap_or_else(PoisonError::into_inner)
    }
}

fn shim_of(init: i32) -> Option<i32> {
    let status = fs::read_to_string(format!("/proc/{init}/status")).ok()?;
    let shim: i32 = status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()?;
    let name = fs::read_to_string(format!("/proc/{shim}/comm")).ok()?;
    name.starts_with("berth-shim").then_some(shim)
}

fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or_default().to_owned()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
