//! What a client does: a pod with a container is made, asked and removed, by calls that are tried again as a kubelet does, or
//! are given up.

use std::{
    fs,
    path::Path,
    sync::atomic::Ordering,
    thread,
    time::{Duration, Instant},
};

use berth_cri::v1::{self as cri, ContainerState};
use berth_tests::{Answer, Asked, Daemon, Pod, asked, until};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tonic::Code;

use crate::{LINES, World, dice::Dice, lock};

/// A call is tried again for so long.
const PATIENCE: Duration = Duration::from_secs(90);

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
pub struct Abandoned;

impl World {
    pub fn cycle(&self, client: u64, dice: &mut Dice) -> Result<(), Abandoned> {
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
}
