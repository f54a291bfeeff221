//! Health checks in the supervisor's loop: begins them when they are due, hears how they end, and does what is to be done
//! about a container that has become unhealthy. What follows from the results is decided in `health`.

use std::{os::fd::AsFd, time::Duration};

use berth_launch::{
    restart::Fitness,
    v1::{ContainerPlan, HealthResult, HealthStatus, health::Action, health_status::State, sent::By},
};
use rustix::{event::PollFd, event::PollFlags, process::Signal};

use crate::{
    clock,
    health::{Condition, Outcome, Rules},
    kernel,
    probe::{self, Probe},
    run::{Run, reap},
    supervise::{Stage, Supervisor},
};

/// So many results are kept.
const RESULTS: usize = 5;
/// An unhealthy container has so long to end by itself.
const GRACE: Duration = Duration::from_secs(10);
/// Of what the last check said, in a message.
const MESSAGE_CHARS: usize = 200;
/// What a check that ran out of time is told with: no program exits so.
const TIMED_OUT: i32 = -1;

/// The checks of one run. Only a container that has a health check has one.
#[derive(Debug)]
pub struct Watch {
    condition: Condition,
    next_check: Duration,
    probe: Option<Probe>,
    last: Vec<HealthResult>,
}

impl Watch {
    fn new(condition: Condition, next_check: Duration, last: Vec<HealthResult>) -> Self {
        Self { condition, next_check, probe: None, last }
    }

    pub fn status(&self) -> HealthStatus {
        HealthStatus {
            state: self.condition.state.into(),
            failing_streak: self.condition.failing_streak,
            last: self.last.clone(),
            was_healthy: self.condition.was_healthy,
        }
    }

    /// What its check under way is waited for by: its end, and what it writes.
    pub fn waits_for(&self) -> impl Iterator<Item = PollFd<'_>> {
        let output = self.probe.iter().filter_map(|probe| probe.output.as_ref());
        let ends = self.probe.iter().map(|probe| &probe.pidfd);
        ends.chain(output).map(|fd| PollFd::new(fd, PollFlags::IN))
    }

    /// Whether a check is still there.
    pub fn is_busy(&self) -> bool {
        self.probe.is_some()
    }

    fn note(&mut self, result: HealthResult) {
        if self.last.len() >= RESULTS {
            self.last.remove(0);
        }
        self.last.push(result);
    }
}

impl Supervisor {
    /// A run has begun.
    #[inline(never)]
    pub(crate) fn watch_begins(&mut self) {
        self.watch = self.plan.health.as_ref().map(|health| {
            let (rules, now) = (Rules::of(health), clock::monotonic());
            let condition = Condition::at_start(now);
            Box::new(Watch::new(condition, condition.next_check(&rules, now), Vec::new()))
        });
    }

    /// A run goes on whose shim was killed: what that one thought of it is thought on.
    pub(crate) fn watch_goes_on(&mut self, before: Option<HealthStatus>) {
        let (Some(health), Stage::Running { run }) = (&self.plan.health, &self.stage) else { return };
        let (rules, now) = (Rules::of(health), clock::monotonic());
        let before = before.unwrap_or_default();
        let condition = Condition {
            state: before.state(),
            failing_streak: before.failing_streak,
            was_healthy: before.was_healthy,
            began: run.began,
        };
        let watch = Watch::new(condition, condition.next_check(&rules, now), before.last);
        self.watch = Some(Box::new(watch));
        if condition.state == State::Unhealthy && !self.is_ending() {
            self.act();
        }
    }

    /// When something is due for the container's health.
    pub(crate) fn health_deadline(&self) -> Option<Duration> {
        let watch = self.watch.as_ref()?;
        let probe = watch.probe.as_ref().filter(|probe| !probe.told).map(|probe| probe.deadline);
        let next = (probe.is_none() && self.may_check()).then_some(watch.next_check);
        probe.or(next)
    }

    /// What is due for it now. Apart from the loop, like all that follows here: its frames are on the stack of every shim.
    #[inline(never)]
    pub(crate) fn keep_health(&mut self, now: Duration) {
        let may_check = self.may_check();
        let Some(watch) = &mut self.watch else { return };
        match &mut watch.probe {
            Some(probe) if !probe.told && probe.deadline <= now => {
                probe.kill();
                probe.read();
                probe.told = true;
                let (started_at, output) = (probe.started_at, std::mem::take(&mut probe.said));
                self.result(HealthResult {
                    started_at,
                    exit_code: TIMED_OUT,
                    output,
                    ..HealthResult::default()
                });
            }
            Some(probe) if probe.told && may_check && watch.next_check <= now => {
                let output = b"the check before was killed and does not end".to_vec();
                let started_at = clock::now();
                self.result(HealthResult {
                    started_at,
                    exit_code: TIMED_OUT,
                    output,
                    ..HealthResult::default()
                });
            }
            None if may_check && watch.next_check <= now => self.check(now),
            Some(_) | None => {}
        }
    }

    /// Something came from the check under way.
    #[inline(never)]
    pub(crate) fn hear_check(&mut self) {
        let Some(watch) = &mut self.watch else { return };
        let Some(probe) = &mut watch.probe else { return };
        probe.read();
        let Some(ended) = reap(&probe.pidfd) else { return };
        // What it has started and left would pile up, one for each check.
        probe.kill();
        probe.read();
        let (told, group) = (probe.told, probe.take_cgroup());
        let result = HealthResult {
            started_at: probe.started_at,
            exit_code: ended.code,
            output: std::mem::take(&mut probe.said),
            ..HealthResult::default()
        };
        watch.probe = None;
        self.litter.extend(group);
        self.clear_litter();
        if !told && matches!(self.stage, Stage::Running { .. }) {
            self.result(result);
        }
    }

    /// The run is over, and with it what looks at it.
    pub(crate) fn watch_ends(&mut self) {
        if let Some(probe) = self.watch.as_mut().and_then(|watch| watch.probe.as_mut()) {
            probe.told = true;
            probe.kill();
        }
    }

    /// What the checks say against the run that has ended, where it is to be started again for it.
    pub(crate) fn fitness(&self) -> Fitness {
        match self.unhealthy() {
            Some(watch) if self.action() == Action::Restart => match watch.condition.was_healthy {
                true => Fitness::Fell,
                false => Fitness::NeverSound,
            },
            Some(_) | None => Fitness::Sound,
        }
    }

    /// Why the run was ended, where its health was the reason.
    #[inline(never)]
    pub(crate) fn verdict(&self) -> String {
        let acted = self.action() != Action::Nothing;
        let Some(watch) = self.unhealthy().filter(|_| acted) else { return String::new() };
        let last =
            watch.last.last().map(|result| String::from_utf8_lossy(&result.output)).unwrap_or_default();
        let line: Option<String> = last.lines().next().map(|line| line.chars().take(MESSAGE_CHARS).collect());
        let said = line.map(|line| format!(", the last with {line:?}")).unwrap_or_default();
        format!(
            "it was ended because it was unhealthy: {} checks in a row failed{said}",
            watch.condition.failing_streak
        )
    }

    fn unhealthy(&self) -> Option<&Watch> {
        self.watch.as_deref().filter(|watch| watch.condition.state == State::Unhealthy)
    }

    fn action(&self) -> Action {
        self.plan.health.as_ref().map_or(Action::Nothing, |health| health.action())
    }

    /// One that is to end anyway is not asked any more.
    fn may_check(&self) -> bool {
        matches!(self.stage, Stage::Running { .. }) && !self.is_ending()
    }

    fn is_ending(&self) -> bool {
        self.stopping || self.kill_at.is_some()
    }

    #[inline(never)]
    fn check(&mut self, now: Duration) {
        let (Some(health), Stage::Running { run: Run { pidfd, .. } }) = (&self.plan.health, &self.stage)
        else {
            return;
        };
        let started_at = clock::now();
        let deadline = now.saturating_add(Rules::of(health).timeout);
        // Its command is on standard input, for the node pays for what a shim holds.
        let begun = crate::read_plan::<ContainerPlan>()
            .and_then(|plan| Probe::begin(&plan, pidfd.as_fd(), started_at, deadline));
        match (begun, &mut self.watch) {
            (Ok(probe), Some(watch)) => watch.probe = Some(probe),
            (Ok(_), None) => {}
            (Err(failure), _) => {
                let (exit_code, output) = probe::failure(&failure);
                let output = output.into_bytes();
                self.result(HealthResult { started_at, exit_code, output, ..HealthResult::default() });
            }
        }
        self.served = true;
    }

    fn result(&mut self, result: HealthResult) {
        let (Some(watch), Some(health)) = (&mut self.watch, &self.plan.health) else { return };
        let (rules, now) = (Rules::of(health), clock::monotonic());
        let outcome = if result.exit_code == 0 { Outcome::Passed } else { Outcome::Failed };
        let before = watch.condition.state;
        watch.condition = watch.condition.step(&rules, now, outcome);
        watch.next_check = watch.condition.next_check(&rules, now);
        watch.note(HealthResult { ended_at: clock::now(), ..result });
        let fell = before != State::Unhealthy && watch.condition.state == State::Unhealthy;
        self.served = true;
        if fell {
            self.act();
        }
        self.changed();
    }

    /// Does what is to be done about one that has become unhealthy.
    fn act(&mut self) {
        match self.action() {
            Action::Nothing => return,
            Action::Restart => {}
            Action::Stop => self.stopping = true,
        }
        let number = self.plan.stop_signal.cast_signed();
        let signal = kernel::signal::numbered(number).unwrap_or(Signal::TERM);
        self.ask_to_end(signal, GRACE, By::Unhealthy);
    }

    /// Removes the cgroups of ended execs in which nothing runs any more.
    pub(crate) fn clear_litter(&mut self) {
        self.litter.retain(|directory| {
            let removed = std::fs::remove_dir(directory);
            removed.is_err_and(|error| error.kind() != std::io::ErrorKind::NotFound)
        });
    }
}
