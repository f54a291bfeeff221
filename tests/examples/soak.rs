//! Load for a while: 32 clients that make, start, ask, stop and remove containers, and give up or set deadlines as they
//! like; `berthd` and shims are killed meanwhile. Then nothing may be left, every log has to be whole, and what `berthd`
//! holds has to be what it held after its first minutes. Run by `cargo xtask soak --minutes N`.
//!
//! ```text
//! chaos, three fifths: berthd and shims are killed ──> nothing is left
//! steady: shims are killed ── warm ──> measure ── the rest ──> measure again: as before
//! ```

use std::{
    collections::{BTreeMap, HashMap},
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
use berth_tests::{Answer, Asked, Daemon, Line, Options, Pod, asked, lines, until};
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

/// What a pod asks of berthd.
#[derive(Debug, Clone, Copy)]
enum Share {
    Plain,
    Failing,
    Always,
}

/// So often one that fails is started again.
const RETRIES: u8 = 2;

impl Share {
    fn asks(self) -> Option<&'static str> {
        match self {
            Self::Plain => None,
            Self::Failing => Some("on-failure:2"),
            Self::Always => Some("always"),
        }
    }
}

/// The first attempt of a container, with the log that a kubelet would give it.
fn attempt(words: &[&str]) -> Asked {
    asked("c", words).with(|config| config.log_path = "c/0.log".into())
}

fn number_of(container: &cri::Container) -> u32 {
    container.metadata.as_ref().map_or(0, |metadata| metadata.attempt)
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

    fn cycle(&self, client: u64, dice: &mut Dice) -> Result<(), Abandoned> {
        let mut config = berth_tests::pod(&format!("soak-{client}"));
        let share = match dice.below(8) {
            0 => Share::Failing,
            1 => Share::Always,
            _ => Share::Plain,
        };
        config.annotations.extend(share.asks().map(|ask| ("berth.dev/restart".to_owned(), ask.to_owned())));
        let pod = self.insist("run pod", |daemon| daemon.run_pod(config.clone()))?;
        let gone = match share {
            Share::Plain => self.in_pod(&pod, dice),
            Share::Failing => self.failing(&pod),
            Share::Always => self.always(&pod),
        };
        self.insist("remove pod", |daemon| daemon.remove_pod(&pod.id))?;
        // A kubelet removes its logs itself.
        fs::remove_dir_all(&pod.config.log_directory).ok();
        gone
    }

    /// A container that fails at once is started again twice: each attempt is there once, with its exit code and its log.
    fn failing(&self, pod: &Pod) -> Result<(), Abandoned> {
        let first = attempt(&["exit", "3"]);
        let id = self.insist("create", |daemon| daemon.create(pod, &first))?;
        self.start(&id)?;
        let ended = |attempt: &cri::Container| attempt.state() == ContainerState::ContainerExited;
        let all = until(PATIENCE, || {
            let all = self.attempts_of(pod)?;
            let last = all.iter().find(|attempt| number_of(attempt) == u32::from(RETRIES));
            last.is_some_and(ended).then_some(all)
        });
        let Some(mut all) = all else {
            self.breach(format!("of {id} there are the attempts {:?}", self.attempts_of(pod)));
            return Err(Abandoned);
        };
        all.sort_by_key(number_of);
        self.attempts.fetch_add(u64::from(RETRIES), Ordering::Relaxed);
        let numbers: Vec<u32> = all.iter().map(number_of).collect();
        if numbers != (0..=u32::from(RETRIES)).collect::<Vec<_>>() || !all.iter().all(ended) {
            self.breach(format!("of {id} there are the attempts {numbers:?}"));
        }
        for attempt in all {
            let log = Path::new(&pod.config.log_directory).join(format!("c/{}.log", number_of(&attempt)));
            let status = self.insist("status", |daemon| daemon.status(&attempt.id))?;
            if !log.is_file() || status.exit_code != 3 {
                self.breach(format!(
                    "attempt {} of {id}: {status:?}, log {}",
                    number_of(&attempt),
                    log.is_file()
                ));
            }
        }
        Ok(())
    }

    /// A container that is killed has one more attempt; one that is stopped has none.
    fn always(&self, pod: &Pod) -> Result<(), Abandoned> {
        let first = attempt(&["sleep", "inf"]);
        let id = self.insist("create", |daemon| daemon.create(pod, &first))?;
        self.start(&id)?;
        let Some(init) = until(PATIENCE, || self.init_of(&id)) else { return Err(Abandoned) };
        kill(Pid::from_raw(init), Signal::SIGKILL).ok();
        let next = until(PATIENCE, || {
            let all = self.attempts_of(pod)?;
            let running = |one: &&cri::Container| {
                number_of(one) == 1 && one.state() == ContainerState::ContainerRunning
            };
            all.iter().find(running).map(|one| one.id.clone())
        });
        let Some(next) = next else {
            self.breach(format!("of {id} there are the attempts {:?}", self.attempts_of(pod)));
            return Err(Abandoned);
        };
        self.attempts.fetch_add(1, Ordering::Relaxed);
        self.insist("stop", |daemon| daemon.stop_container(&next, 0))?;
        // By then its pod's task would have begun another.
        self.insist("remove container", |daemon| daemon.remove_container(&id))?;
        match self.attempts_of(pod).map(|all| all.iter().map(number_of).collect::<Vec<_>>()) {
            None => Ok(()),
            Some(numbers) if numbers == [1] => Ok(()),
            Some(numbers) => {
                self.breach(format!("after {next} was stopped there are the attempts {numbers:?}"));
                Ok(())
            }
        }
    }

    /// None while berthd does not answer.
    fn attempts_of(&self, pod: &Pod) -> Option<Vec<cri::Container>> {
        let daemon = self.daemon();
        let filter = Some(cri::ContainerFilter { pod_sandbox_id: pod.id.clone(), ..Default::default() });
        let request = cri::ListContainersRequest { filter };
        daemon.call(daemon.runtime().list_containers(request)).ok().map(|answer| answer.containers)
    }

    fn start(&self, id: &str) -> Result<(), Abandoned> {
        self.insist("start", |daemon| match daemon.start_container(id) {
            // The call before this one had got as far as that.
            Err(status) if status.code() == Code::FailedPrecondition => daemon.status(id).map(drop),
            answer => answer,
        })
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
        self.start(&id)?;
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
        let kills = lock(&self.orphans).get(&id).copied().unwrap_or_default();
        match ended {
            None => self.breach(format!("container {id} does not end")),
            Some(status) if !stopped && kills == 0 && status.exit_code != 0 => {
                self.breach(format!("container {id} ended with {}: {}", status.exit_code, status.message));
            }
            Some(status) => {
                // One that no other shim took over was ended with it.
                let cut = stopped || (kills > 0 && status.exit_code != 0);
                self.check_log(&id, &self.daemon().log_path_of(pod, &spam), cut, kills);
            }
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

    /// All lines in their order, fewer where it was cut off; and for each killed shim at most one that lacks its beginning,
    /// in the place where it would be.
    fn check_log(&self, id: &str, path: &Path, cut: bool, kills: usize) {
        let text = fs::read(path).unwrap_or_default();
        let all: Vec<Line> = lines(&String::from_utf8_lossy(&text));
        self.checked_lines.fetch_add(all.len() as u64, Ordering::Relaxed);
        let numbered = |n: usize| format!("line {n:06} xxxx");
        let wrong: Vec<(usize, &Line)> =
            (1..).zip(&all).filter(|(n, line)| line.content != numbered(*n)).collect();
        let last = all.len();
        let torn = wrong.iter().filter(|(n, line)| {
            // What a stop cut off lacks its end, and there is nothing after it.
            numbered(*n).ends_with(&line.content)
                || (cut && *n == last && numbered(*n).starts_with(&line.content))
        });
        let (torn, ends) = (torn.count(), usize::from(cut));
        if kills > 0 {
            self.orphans_lines.fetch_add(last as u64, Ordering::Relaxed);
            self.torn_lines.fetch_add(torn as u64, Ordering::Relaxed);
        }
        let whole = last == LINES || (cut && last < LINES);
        if torn < wrong.len() || torn > kills + ends || !whole {
            let shown: Vec<_> = wrong.iter().take(3).map(|(n, line)| (n, &line.content)).collect();
            self.breach(format!(
                "the log of {id} has {last} lines, cut off: {cut}, {kills} kills of shims, {} not as written: {shown:?}",
                wrong.len()
            ));
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
        // Threads of file work are let go when they have had nothing to do for ten seconds.
        thread::sleep(Duration::from_secs(15));
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
