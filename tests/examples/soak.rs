//! Load for a while: 32 clients that make, start, ask, stop and remove containers, and give up or set deadlines as they
//! like; `berthd` and shims are killed meanwhile. Then nothing may be left, every log has to be whole, and what `berthd`
//! holds has to be what it held after its first minutes. Run by `cargo xtask soak --minutes N`.
//!
//! ```text
//! chaos, three fifths: berthd and shims are killed ──> nothing is left
//! steady: shims are killed ── warm ──> measure ── the rest ──> measure again: as before
//! ```

use std::{
    collections::{BTreeMap, HashSet},
    fs,
    path::Path,
    process::ExitCode,
    sync::{
        Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use berth_cri::v1::{self as cri, ContainerState};
use berth_tests::{Answer, Daemon, Line, Options, Pod, asked, lines, until};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tonic::Code;

const CLIENTS: u64 = 32;
/// What a container writes.
const LINES: usize = 300;
/// A call is tried again for so long.
const PATIENCE: Duration = Duration::from_secs(90);
/// So much more may there be at the end than after the first minutes.
const MORE_MEMORY_KIB: u64 = 16 * 1024;
const MORE: u64 = 8;

struct World {
    daemon: RwLock<Daemon>,
    /// Containers that run, with their init.
    running: Mutex<BTreeMap<String, i32>>,
    /// Those whose shim was killed: what they were writing just then may be cut.
    orphans: Mutex<HashSet<String>>,
    breaches: Mutex<Vec<String>>,
    refused: Mutex<BTreeMap<String, u64>>,
    ended: AtomicBool,
    cycles: AtomicU64,
    execs: AtomicU64,
    given_up: AtomicU64,
    checked_lines: AtomicU64,
    daemon_kills: AtomicU64,
    shim_kills: AtomicU64,
}

/// xorshift64*: the same for each client in every run.
struct Dice(u64);

impl Dice {
    fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }

    fn below(&mut self, count: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % count
    }
}

/// A cycle that can't go on, through nobody's fault.
struct Abandoned;

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
        "{} cycles, {} execs, {} calls given up or cut by a deadline, {} kills of berthd, {} of shims, {} log lines \
         checked, {:.0} s, load {}",
        count(&world.cycles),
        count(&world.execs),
        count(&world.given_up),
        count(&world.daemon_kills),
        count(&world.shim_kills),
        count(&world.checked_lines),
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
        lock(&self.orphans).insert(id.clone());
        // It may have gone by itself.
        if kill(Pid::from_raw(shim), Signal::SIGKILL).is_ok() {
            self.shim_kills.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn cycle(&self, client: u64, dice: &mut Dice) -> Result<(), Abandoned> {
        let config = berth_tests::pod(&format!("soak-{client}"));
        let pod = self.insist("run pod", |daemon| daemon.run_pod(config.clone()))?;
        let gone = self.in_pod(&pod, dice);
        self.insist("remove pod", |daemon| daemon.remove_pod(&pod.id))?;
        // A kubelet removes its logs itself.
        fs::remove_dir_all(&pod.config.log_directory).ok();
        gone
    }

    fn in_pod(&self, pod: &Pod, dice: &mut Dice) -> Result<(), Abandoned> {
        let length = LINES.to_string();
        let spam = asked("c", &["spam", &length, "1000"]);
        if dice.one_in(8) {
            let request = cri::CreateContainerRequest {
                pod_sandbox_id: pod.id.clone(),
                config: Some(spam.0.clone()),
                sandbox_config: Some(pod.config.clone()),
            };
            self.hastily(dice, request, |daemon, request| {
                daemon.call(daemon.runtime().create_container(request)).map(drop)
            });
        }
        let id = self.insist("create", |daemon| daemon.create(pod, &spam))?;
        let started = self.insist("start", |daemon| match daemon.start_container(&id) {
            // The call before this one had got as far as that.
            Err(status) if status.code() == Code::FailedPrecondition => daemon.status(&id).map(drop),
            answer => answer,
        });
        if started.is_err() {
            return Err(Abandoned);
        }
        let init = self.init_of(&id);
        lock(&self.running).extend(init.map(|init| (id.clone(), init)));
        for _ in 0..dice.below(3) {
            self.ask(&id, dice);
        }
        let stopped = dice.one_in(2);
        if stopped {
            let grace = dice.below(3) as i64;
            self.insist("stop", |daemon| daemon.stop_container(&id, grace))?;
        }
        let ended = until(PATIENCE, || {
            let status = self.daemon().status(&id).ok()?;
            (status.state() == ContainerState::ContainerExited).then_some(status)
        });
        lock(&self.running).remove(&id);
        let orphan = lock(&self.orphans).contains(&id);
        match ended {
            None => self.breach(format!("container {id} does not end")),
            Some(status) if !stopped && !orphan && status.exit_code != 0 => {
                self.breach(format!("container {id} ended with {}: {}", status.exit_code, status.message));
            }
            Some(_) => self.check_log(&id, &self.daemon().log_path_of(pod, &spam), stopped, orphan),
        }
        self.insist("remove container", |daemon| daemon.remove_container(&id))
    }

    /// The container's process, while it runs.
    fn init_of(&self, id: &str) -> Option<i32> {
        let daemon = self.daemon();
        let request = cri::ContainerStatusRequest { container_id: id.into(), verbose: true };
        let answer = daemon.call(daemon.runtime().container_status(request)).ok()?;
        let info: serde_json::Value = serde_json::from_str(answer.info.get("info")?).ok()?;
        info["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()).filter(|pid| *pid > 0)
    }

    /// Runs something in the container, perhaps without the patience to hear of its end.
    fn ask(&self, id: &str, dice: &mut Dice) {
        let request = |words: &[&str]| cri::ExecSyncRequest {
            container_id: id.into(),
            cmd: words.iter().map(ToString::to_string).collect(),
            timeout: 30,
        };
        if dice.one_in(4) {
            return self.hastily(dice, request(&["sleep", "0.05"]), |daemon, request| {
                daemon.call(daemon.runtime().exec_sync(request)).map(drop)
            });
        }
        let answer = {
            let daemon = self.daemon();
            daemon.call(daemon.runtime().exec_sync(request(&["echo", "here"])))
        };
        match answer {
            Ok(said) if said.exit_code == 0 && *said.stdout == *b"here\n" => {
                self.execs.fetch_add(1, Ordering::Relaxed);
            }
            // Its container may have come to its end, or its shim was killed.
            Ok(said) if said.exit_code != 0 => self.note("exec", &format!("exit code {}", said.exit_code)),
            Ok(said) => self.breach(format!("an exec in {id} said {:?}", said.stdout)),
            Err(status) => self.judge("exec", &status),
        }
    }

    /// Makes a call that ends before its answer, most likely: by its deadline, which the server sees.
    fn hastily<R>(
        &self,
        dice: &mut Dice,
        message: R,
        call: impl FnOnce(&Daemon, tonic::Request<R>) -> Answer<()>,
    ) {
        let mut request = tonic::Request::new(message);
        request.set_timeout(Duration::from_millis(1 + dice.below(20)));
        if call(&self.daemon(), request).is_err() {
            self.given_up.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Makes a call until it succeeds, as a kubelet does. What a kill explains is tried again.
    fn insist<T>(&self, what: &str, call: impl Fn(&Daemon) -> Answer<T>) -> Result<T, Abandoned> {
        let end = Instant::now() + PATIENCE;
        loop {
            let status = match call(&self.daemon()) {
                Ok(answer) => return Ok(answer),
                Err(status) => status,
            };
            self.judge(what, &status);
            if matches!(status.code(), Code::NotFound | Code::FailedPrecondition | Code::AlreadyExists) {
                return Err(Abandoned);
            }
            if Instant::now() > end {
                self.breach(format!("{what} still fails after {PATIENCE:?}: {status}"));
                return Err(Abandoned);
            }
            // Whoever calls again at once gets the same.
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// Counts a refusal. What nothing explains is a breach.
    fn judge(&self, what: &str, status: &tonic::Status) {
        self.note(what, &format!("{:?}", status.code()));
        let told = status.message();
        let by_a_kill =
            ["shim", "transport", "h2 protocol", "connection", "broken pipe", "tcp connect", "ended"];
        let explained = by_a_kill.iter().any(|word| told.to_lowercase().contains(word));
        if matches!(status.code(), Code::Internal | Code::Unknown | Code::DataLoss) && !explained {
            self.breach(format!("{what}: {status}"));
        }
    }

    fn note(&self, what: &str, how: &str) {
        *lock(&self.refused).entry(format!("{what}: {how}")).or_default() += 1;
    }

    /// All lines in their order; fewer where it was stopped; at most one cut and none missing beside it for each killed shim.
    fn check_log(&self, id: &str, path: &Path, stopped: bool, orphan: bool) {
        let text = fs::read(path).unwrap_or_default();
        let all: Vec<Line> = lines(&String::from_utf8_lossy(&text));
        self.checked_lines.fetch_add(all.len() as u64, Ordering::Relaxed);
        if orphan {
            return;
        }
        let in_place =
            |(n, line): (usize, &Line)| line.content.starts_with(&format!("line {n:06} ")) || line.partial;
        let right = (1..).zip(&all).all(in_place);
        if !right || (!stopped && all.len() != LINES) || all.len() > LINES {
            self.breach(format!("the log of {id} has {} lines, in order: {right}", all.len()));
        }
    }

    fn nothing_left(&self) {
        let daemon = self.daemon();
        let mut left = Vec::new();
        until(Duration::from_secs(30), || {
            left = daemon.left_behind();
            left.is_empty().then_some(())
        });
        left.into_iter().for_each(|leak| self.breach(format!("left behind: {leak}")));
        lock(&self.orphans).clear();
    }

    /// What berthd holds, and what is there of its files and in the kernel.
    fn measure(&self) -> BTreeMap<&'static str, u64> {
        let daemon = self.daemon();
        let process = Path::new("/proc").join(daemon.pid().to_string());
        let status = fs::read_to_string(process.join("status")).unwrap_or_default();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
            line.split_whitespace().next().and_then(|number| number.parse().ok()).unwrap_or(0)
        };
        let entries = |path: &Path| fs::read_dir(path).map_or(0, |entries| entries.count() as u64);
        let count = |path: &str| fs::read_to_string(path).map_or(0, |text| text.lines().count() as u64);
        BTreeMap::from([
            ("memory, KiB", field("VmRSS:")),
            ("threads", field("Threads:")),
            ("descriptors", entries(&process.join("fd"))),
            ("files", files(&daemon.root()) + files(&daemon.state())),
            ("cgroups", cgroups()),
            ("mounts", count("/proc/self/mounts")),
            ("links", entries(Path::new("/sys/class/net"))),
        ])
    }

    fn compare(&self, before: BTreeMap<&'static str, u64>, after: BTreeMap<&'static str, u64>) {
        println!("{:12} {:>10} {:>10}", "", "warmed up", "at the end");
        for (what, before) in before {
            let after = after[what];
            println!("{what:12} {before:10} {after:10}");
            // What is the whole machine's, others change as well.
            let allowed = match what {
                "memory, KiB" => before / 10 + MORE_MEMORY_KIB,
                "cgroups" | "mounts" | "links" => u64::MAX - before,
                _ => MORE,
            };
            if after > before + allowed {
                self.breach(format!("{what}: {before} before, {after} after"));
            }
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

fn files(top: &Path) -> u64 {
    let entries = fs::read_dir(top).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            true => 1 + files(&entry.path()),
            false => 1,
        })
        .sum()
}

/// All of this machine's, as the kernel counts them.
fn cgroups() -> u64 {
    let table = fs::read_to_string("/proc/cgroups").unwrap_or_default();
    table
        .lines()
        .skip(1)
        .filter_map(|line| line.split_whitespace().nth(2)?.parse::<u64>().ok())
        .max()
        .unwrap_or(0)
}

fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or_default().to_owned()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
