//! One container's life after its birth: one thread, one poll loop, nothing in it blocks for long.
//!
//! ```text
//! Created ──Start──> Running ──init ends──> Ending ──output drained, cgroup empty──> decide ─┬─> Over, leave
//!    └──Stop, Shutdown──────────────────────^  ^──────────── starts again <── Backoff <──────┘
//! ```

use std::{os::fd::OwnedFd, path::PathBuf, time::Duration};

use berth_launch::{
    restart::{self, Decision, History},
    v1::{
        ContainerPlan, Event, ExecExited, Exit, Failure, Live, NamespaceKind, Sent, event,
        reply::Result as Answer, sent::By,
    },
};
use rustix::process::{Signal, pidfd_send_signal};

use crate::{
    attach::Sink,
    clock, denied, group, kernel,
    launch::{self, Created, Gate},
    oom, record,
    report::nanos,
    run::{Ended, ExecRun, Kin, Run, exit_code, orphan_ended, reap, slim, taken},
    server::{self, Client, Incoming},
    streams::Streams,
    wait::Wake,
    watch::Watch,
};

/// Output that a process of another namespace holds open is not waited for longer.
const DRAIN: Duration = Duration::from_secs(2);
/// Processes that don't die of SIGKILL are not waited for longer.
const EMPTY: Duration = Duration::from_secs(10);
/// The last words to clients and to those attached.
const FAREWELL: Duration = Duration::from_secs(5);
const LOST: &str = "its exit code was lost: the shim that had started it was killed";

#[derive(Debug)]
pub struct Supervisor {
    pub(crate) plan: ContainerPlan,
    pub(crate) listener: OwnedFd,
    pub(crate) clients: Vec<Client>,
    pub(crate) streams: Streams,
    pub(crate) stage: Stage,
    pub(crate) execs: Vec<ExecRun>,
    /// Cgroups of ended execs in which something still runs.
    pub(crate) litter: Vec<PathBuf>,
    /// Of a container that has a health check.
    pub(crate) watch: Option<Box<Watch>>,
    pub(crate) history: History,
    pub(crate) restarts: u32,
    pub(crate) last_exit: Option<Exit>,
    /// Somebody asked for the end: nothing is restarted.
    pub(crate) stopping: bool,
    pub(crate) kill_at: Option<Duration>,
    /// What we have sent to init in this run.
    pub(crate) sent: Vec<Sent>,
    pub(crate) boot_id: String,
    /// Socket and live record are gone.
    pub(crate) nameless: bool,
    /// A call was answered, for which memory was needed.
    pub(crate) served: bool,
}

#[derive(Debug)]
pub(crate) enum Stage {
    Created {
        run: Run,
        gate: Gate,
    },
    Running {
        run: Run,
    },
    /// Init has ended; its output and the rest of its cgroup may not have.
    Ending {
        exit: Exit,
        ran_for: Duration,
        since: Duration,
        look_again: Duration,
    },
    Backoff {
        until: Duration,
        next_start_at: i64,
    },
    Over {
        exit: Exit,
        recorded: bool,
        leave_by: Duration,
    },
}

impl Supervisor {
    pub fn new(
        plan: ContainerPlan,
        listener: OwnedFd,
        mut streams: Streams,
        created: Created,
    ) -> rustix::io::Result<Self> {
        let (run, gate) = taken(&plan, &mut streams, created)?;
        Self::of(plan, listener, streams, Stage::Created { run, gate })
    }

    /// Goes on where a shim that was killed was, as far as its live record says; its stage is the caller's to find.
    pub fn adopted(
        plan: ContainerPlan,
        listener: OwnedFd,
        streams: Streams,
        live: &Live,
        litter: Vec<PathBuf>,
    ) -> rustix::io::Result<Self> {
        let over = Stage::Over { exit: Exit::default(), recorded: true, leave_by: clock::monotonic() };
        let status = live.status.clone().unwrap_or_default();
        Ok(Self {
            restarts: status.restarts,
            last_exit: status.last_exit,
            stopping: live.stopping,
            kill_at: (live.kill_at != 0).then(|| Duration::from_nanos(live.kill_at)),
            history: History { in_a_row: live.in_a_row },
            sent: live.sent.clone(),
            litter,
            ..Self::of(plan, listener, streams, over)?
        })
    }

    fn of(
        plan: ContainerPlan,
        listener: OwnedFd,
        streams: Streams,
        stage: Stage,
    ) -> rustix::io::Result<Self> {
        let plan = slim(plan)?;
        Ok(Self {
            restarts: u32::try_from(plan.started_runs).unwrap_or(u32::MAX),
            plan,
            listener,
            clients: Vec::new(),
            streams,
            stage,
            execs: Vec::new(),
            litter: Vec::new(),
            watch: None,
            history: History::default(),
            last_exit: None,
            stopping: false,
            kill_at: None,
            sent: Vec::new(),
            boot_id: record::boot_id(),
            nameless: false,
            served: true,
        })
    }

    /// Lives until the container has ended for good and all is told.
    pub fn run(mut self: Box<Self>) {
        self.record_live();
        loop {
            let ready = self.wait();
            for wake in ready {
                self.wake(wake);
            }
            self.keep_time();
            self.look();
            self.clients.retain_mut(Client::flush);
            if std::mem::take(&mut self.served) {
                kernel::memory::give_back();
            }
            if self.may_leave() {
                break;
            }
        }
        self.let_go_of_name();
    }

    fn wake(&mut self, wake: Wake) {
        match wake {
            Wake::Listener => self.clients.extend(server::accept(&self.listener)),
            Wake::Client(n) => {
                self.serve(n);
                self.served = true;
            }
            Wake::Output(source) => {
                self.streams.pump(source);
                if self.streams.has_moved() {
                    self.changed();
                }
            }
            Wake::Input => self.streams.take_input(),
            Wake::Sinks => self.streams.flush_sinks(),
            Wake::Init => self.init_ended(),
            Wake::Exec(n) => self.exec_ended(n),
            Wake::Check => self.hear_check(),
        }
    }

    fn serve(&mut self, n: usize) {
        loop {
            let incoming = match self.clients.get_mut(n) {
                Some(client) => client.receive(),
                None => return,
            };
            match incoming {
                Incoming::Nothing => return,
                Incoming::Gone => {
                    // Not removed here: the indices of this round's other clients hold until its end.
                    self.clients[n].gone = true;
                    return;
                }
                Incoming::Request(request, fds) => {
                    let hello = matches!(request.call, Some(berth_launch::v1::request::Call::Hello(_)));
                    let (mut reply, fd) = self.answer(*request, fds);
                    let mut fds = Vec::from_iter(fd);
                    if hello && let Some(Answer::Status(status)) = &mut reply.result {
                        fds = self.in_reserve(status);
                    }
                    let client = &mut self.clients[n];
                    client.events |= hello;
                    client.gone |= !client.reply(reply, fds);
                }
            }
        }
    }

    /// What is due by the clock.
    fn keep_time(&mut self) {
        let now = clock::monotonic();
        self.clients.retain(|client| !client.gone);
        if self.streams.sinks().any(|sink| sink.is_waiting() && sink.gives_up_at() <= now) {
            self.streams.flush_sinks();
        }
        self.streams.keep_time(now);
        if self.kill_at.is_some_and(|at| at <= now) {
            self.kill_at = None;
            self.kill_all(By::GraceOver);
        }
        for exec in self.execs.iter_mut().filter(|exec| exec.deadline.is_some_and(|at| at <= now)) {
            exec.deadline = None;
            exec.timed_out = true;
            exec.kill(Signal::KILL);
        }
        self.keep_health(now);
        if let Stage::Backoff { until, .. } = self.stage
            && until <= now
        {
            self.start_again();
        }
    }

    /// Kills every process of the container.
    pub(crate) fn kill_all(&mut self, by: By) {
        let grace = if by == By::GraceOver { self.grace() } else { Duration::ZERO };
        self.note_sent(Signal::KILL, by, grace);
        if let Stage::Created { run, .. } | Stage::Running { run } = &self.stage {
            // Ended in between is as good.
            pidfd_send_signal(&run.pidfd, Signal::KILL).ok();
        }
        if let Some(cgroup) = &self.plan.cgroup {
            group::kill(cgroup);
        }
    }

    fn init_ended(&mut self) {
        let (Stage::Created { run, .. } | Stage::Running { run }) = &self.stage else { return };
        let (ended, message) = match (run.kin, reap(&run.pidfd)) {
            (Kin::Child, None) => return,
            (Kin::Child, Some(ended)) => (ended, self.verdict()),
            (Kin::Orphan, _) => match orphan_ended(run) {
                Some(ended) => (ended, self.verdict()),
                None => (Ended::UNKNOWN, LOST.to_owned()),
            },
        };
        let victim = oom::victim(&self.plan, run.oom_kills_before);
        let sent = (ended.signal != 0).then(|| self.sender(ended.signal));
        let denied = sent.and_then(|sent| denied::look(&self.plan, run, sent));
        let killed = victim.as_ref().is_some_and(|victim| victim.explains(run.pid, self.stopping));
        let exit = Exit {
            version: berth_launch::VERSION,
            id: self.plan.id.clone(),
            pid: run.pid,
            started_at: run.started_at,
            finished_at: clock::now(),
            exit_code: ended.code,
            signal: ended.signal,
            oom_killed: killed && ended.code != 0,
            restarts: self.restarts,
            message: oom::or_told(message, victim),
            lost_log_bytes: self.streams.log.lost_bytes(),
            sent,
            denied,
            ..Exit::default()
        };
        let ran_for = clock::monotonic().saturating_sub(run.began);
        self.end(exit, ran_for);
    }

    /// Init is gone. With a PID namespace of its own the kernel has killed the rest; else we do.
    pub(crate) fn end(&mut self, exit: Exit, ran_for: Duration) {
        let own = |namespace: &berth_launch::v1::Namespace| {
            namespace.kind() == NamespaceKind::Pid && namespace.path.is_empty()
        };
        if !self.plan.namespaces.iter().any(own)
            && let Some(cgroup) = &self.plan.cgroup
        {
            group::kill(cgroup);
        }
        let now = clock::monotonic();
        let exit = Exit { ran_for: nanos(ran_for), ended: nanos(now), ..exit };
        self.kill_at = None;
        self.watch_ends();
        self.stage = Stage::Ending { exit, ran_for, since: now, look_again: now };
    }

    /// Moves on where what was waited for has come about.
    fn look(&mut self) {
        let now = clock::monotonic();
        let Stage::Ending { since, look_again, .. } = &mut self.stage else { return };
        let waited = now.saturating_sub(*since);
        if !self.streams.ended() && waited >= DRAIN {
            self.streams.close();
        }
        let empty = self.plan.cgroup.as_ref().is_none_or(group::is_empty);
        let checked = self.watch.as_ref().is_none_or(|watch| !watch.is_busy());
        let done = self.streams.ended() && self.execs.is_empty() && checked && empty;
        if !done && waited < EMPTY {
            // Nothing tells of an emptied v1 group: look again soon, less and less often.
            *look_again = now + (waited / 4).clamp(Duration::from_micros(500), Duration::from_millis(50));
            return;
        }
        self.streams.close();
        let over = Stage::Over { exit: Exit::default(), recorded: true, leave_by: now };
        if let Stage::Ending { mut exit, ran_for, .. } = std::mem::replace(&mut self.stage, over) {
            exit.lost_log_bytes = self.streams.log.lost_bytes();
            self.decide(exit, ran_for);
        }
    }

    fn decide(&mut self, exit: Exit, ran_for: Duration) {
        self.last_exit = Some(exit.clone());
        let run = restart::Run { exit_code: exit.exit_code, ran_for, fitness: self.fitness() };
        let policy = self.plan.restart.unwrap_or_default();
        match restart::decide(&policy, self.history, run) {
            Decision::Restart { after, history } if !self.stopping && exit.started_at != 0 => {
                self.history = history;
                self.stage = Stage::Backoff {
                    until: clock::monotonic() + after,
                    next_start_at: clock::now().saturating_add(after.as_nanos() as i64),
                };
                self.changed();
            }
            Decision::Restart { .. } | Decision::GiveUp => self.finish(exit),
        }
    }

    /// The final word: the record first, then those who listen.
    pub(crate) fn finish(&mut self, exit: Exit) {
        let exit = Exit { asked: self.stopping, ..exit };
        let recorded = self.record_exit(&exit);
        if recorded {
            self.let_go_of_name();
        }
        // A hook may take its time, and may hang: the exit is safe by now.
        if let Some(hooks) = &self.plan.hooks {
            launch::late_hooks(hooks, launch::Point::Ended, exit.pid);
        }
        launch::clean(&self.plan);
        self.last_exit = Some(exit.clone());
        self.tell(&Event { event: Some(event::Event::Exited(exit.clone())) });
        self.stage = Stage::Over { exit, recorded, leave_by: clock::monotonic() + FAREWELL };
        if !recorded {
            // Elsewhere there may be room: whoever takes over writes it.
            self.record_live();
        }
    }

    fn start_again(&mut self) {
        self.restarts = self.restarts.saturating_add(1);
        self.sent = Vec::new();
        let started = crate::read_plan::<ContainerPlan>()
            .and_then(|plan| launch::create(&plan, launch::Keeper::Us))
            .and_then(|created| {
                let failed = |errno: rustix::io::Errno| Failure {
                    step: berth_launch::v1::Step::Stdio.into(),
                    errno: errno.raw_os_error(),
                    ..Failure::default()
                };
                taken(&self.plan, &mut self.streams, created).map_err(failed)
            })
            .and_then(|(run, gate)| gate.open().map(|()| run));
        match started {
            Ok(run) => {
                let (started_at, began) = (clock::now(), clock::monotonic());
                self.stage = Stage::Running { run: Run { started_at, began, ..run } };
                self.watch_begins();
                self.changed();
            }
            Err(failure) => {
                self.watch = None;
                let now = clock::now();
                let exit = Exit {
                    started_at: now,
                    finished_at: now,
                    ..self.never_ran(exit_code(&failure), &failure)
                };
                self.end(exit, Duration::ZERO);
            }
        }
    }

    fn exec_ended(&mut self, n: usize) {
        let Some(ended) = self.execs.get(n).and_then(|exec| reap(&exec.pidfd)) else { return };
        // Not removed from the list here: later indices of this round would shift.
        let exec = &mut self.execs[n];
        let told = ExecExited {
            exec_id: std::mem::take(&mut exec.id),
            exit_code: ended.code,
            timed_out: exec.timed_out,
        };
        self.litter.extend(exec.cgroup.take());
        exec.ended = true;
        self.clear_litter();
        self.tell(&Event { event: Some(event::Event::ExecExited(told)) });
    }

    fn may_leave(&mut self) -> bool {
        self.execs.retain(|exec| !exec.ended);
        let now = clock::monotonic();
        let quiet =
            !self.clients.iter().any(Client::has_queue) && !self.streams.sinks().any(Sink::is_waiting);
        let Stage::Over { exit, recorded, leave_by } = &self.stage else { return false };
        if !recorded && now >= *leave_by {
            // A full disk: the code is in nobody's hands but ours. We stay until it is written, or we are shut down.
            let exit = exit.clone();
            let recorded = self.record_exit(&exit);
            self.stage = Stage::Over { exit, recorded, leave_by: now + FAREWELL };
            return false;
        }
        *recorded && (quiet || now >= *leave_by)
    }
}
