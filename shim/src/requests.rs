//! What clients ask of a supervised container, one function a call.

use std::{os::fd::OwnedFd, time::Duration};

use berth_launch::{
    fault,
    v1::{
        Attach, Done, Exec, ExecStarted, Exit, Failure, Kill, Reply, Request, Resize, Status, Step, Stop,
        Unsupported, reply::Result as Answer, request::Call, sent::By,
    },
};
use rustix::process::{Signal, pidfd_send_signal};

use crate::{
    attach::{Input, Sink},
    clock, group, kernel, launch,
    run::{ExecRun, Run, exit_code},
    supervise::{Stage, Supervisor},
};

type Outcome = Result<Answer, Failure>;

impl Supervisor {
    /// Answers one request; a descriptor may travel with the answer.
    pub(crate) fn answer(&mut self, request: Request, fds: Vec<OwnedFd>) -> (Reply, Option<OwnedFd>) {
        let seq = request.seq;
        let reply = |result| Reply { seq, result: Some(result) };
        let used = request.call.as_ref().map(berth_launch::needs::request).unwrap_or_default();
        if let Some(lacking) = crate::lacking(berth_launch::VERSION, &request.needs, &used) {
            return (reply(Answer::Unsupported(lacking)), None);
        }
        let mut fd = None;
        let outcome = match request.call {
            Some(Call::Hello(_)) => Ok(Answer::Status(self.status())),
            Some(Call::Start(_)) => self.start().map(Answer::Status),
            Some(Call::Kill(kill)) => self.kill(&kill),
            Some(Call::Stop(stop)) => self.stop(&stop, By::Stop),
            Some(Call::Exec(exec)) => self.exec(&exec, fds).map(|(started, master)| {
                fd = master;
                Answer::ExecStarted(started)
            }),
            Some(Call::ExecKill(kill)) => self.exec_kill(&kill.exec_id, kill.signal),
            Some(Call::Resize(resize)) => self.resize(&resize),
            Some(Call::ReopenLog(_)) => self.reopen_log(),
            Some(Call::Attach(attach)) => self.attach(&attach, fds),
            Some(Call::Shutdown(shutdown)) => self.shut_down(shutdown.by()),
            Some(Call::SetRestart(set)) => {
                self.plan.restart = set.restart;
                done()
            }
            Some(Call::SetDevices(set)) => self.set_devices(&set.device_program),
            None => Ok(Answer::Unsupported(Unsupported { features: vec!["this request".into()] })),
        };
        (reply(outcome.unwrap_or_else(Answer::Failure)), fd)
    }

    fn set_devices(&mut self, program: &[u8]) -> Outcome {
        let group = self.plan.cgroup.as_ref().map(|group| group.v2.as_str()).unwrap_or_default();
        launch::attach_device_program(group, program)?;
        done()
    }

    fn start(&mut self) -> Result<Status, Failure> {
        if !matches!(self.stage, Stage::Created { .. }) {
            return match self.stage {
                // Asked again: it has happened.
                Stage::Running { .. } => Ok(self.status()),
                _ => Err(refused(Step::Exec, "the container has ended")),
            };
        }
        let over = Stage::Over { exit: Exit::default(), recorded: true, leave_by: clock::monotonic() };
        let Stage::Created { run, gate } = std::mem::replace(&mut self.stage, over) else {
            return Err(refused(Step::Exec, "the container is not created"));
        };
        fault::point("shim.opening");
        match gate.open() {
            Ok(()) => {
                fault::point("shim.opened");
                let (started_at, began) = (clock::now(), clock::monotonic());
                let pid = run.pid;
                self.stage = Stage::Running { run: Run { started_at, began, ..run } };
                self.watch_begins();
                if let Some(hooks) = &self.plan.hooks {
                    launch::late_hooks(hooks, launch::Point::Started, pid);
                }
                self.changed();
                Ok(self.status())
            }
            Err(failure) => {
                launch::end(&run.pidfd);
                let exit = Exit { pid: run.pid, ..self.never_ran(exit_code(&failure), &failure) };
                self.stopping = true;
                self.end(exit, Duration::ZERO);
                Err(failure)
            }
        }
    }

    fn kill(&mut self, kill: &Kill) -> Outcome {
        let signal = signal(kill.signal)?;
        if kill.all && signal == Signal::KILL {
            self.kill_all(By::Kill);
            return done();
        }
        self.note_sent(signal, By::Kill, Duration::ZERO);
        match (&self.stage, kill.all, &self.plan.cgroup) {
            (Stage::Created { .. } | Stage::Running { .. }, true, Some(cgroup)) => {
                group::signal(cgroup, signal);
            }
            (Stage::Created { .. } | Stage::Running { .. }, _, _) if self.by_runtime(signal) => {}
            (Stage::Created { run, .. } | Stage::Running { run }, _, _) => {
                pidfd_send_signal(&run.pidfd, signal).map_err(|errno| Failure {
                    errno: errno.raw_os_error(),
                    ..refused(Step::Stdio, "the signal could not be sent")
                })?;
            }
            (Stage::Ending { .. } | Stage::Backoff { .. } | Stage::Over { .. }, _, _) => {
                return Err(Failure { errno: libc::ESRCH, ..refused(Step::Stdio, "no process runs") });
            }
        }
        done()
    }

    /// Has the OCI runtime send a signal to its init, where there is one and it does.
    fn by_runtime(&self, signal: Signal) -> bool {
        let runtime = self.plan.runtime.as_ref();
        runtime.is_some_and(|runtime| launch::kill(runtime, &self.plan.id, signal).is_ok())
    }

    fn stop(&mut self, stop: &Stop, by: By) -> Outcome {
        self.stopping = true;
        let wanted = [stop.signal, self.plan.stop_signal, Signal::TERM.as_raw().unsigned_abs()];
        let wanted = signal(wanted.into_iter().find(|signal| *signal != 0).unwrap_or(0))?;
        match &self.stage {
            Stage::Created { .. } => self.kill_all(by),
            Stage::Running { .. } if stop.grace_ms == 0 => self.kill_all(by),
            Stage::Running { .. } => self.ask_to_end(wanted, Duration::from_millis(stop.grace_ms), by),
            Stage::Backoff { .. } => {
                let last = self.last_exit.clone().unwrap_or_default();
                self.finish(last);
            }
            Stage::Ending { .. } | Stage::Over { .. } => {}
        }
        if !self.nameless {
            // Whoever takes over knows that it is to end.
            self.record_live();
        }
        done()
    }

    /// The signal now, and when its time is up the kill.
    pub(crate) fn ask_to_end(&mut self, wanted: Signal, grace: Duration, by: By) {
        self.note_sent(wanted, by, grace);
        let Stage::Running { run } = &self.stage else { return };
        if !self.by_runtime(wanted) {
            // Ended in between: the loop sees it next.
            pidfd_send_signal(&run.pidfd, wanted).ok();
        }
        let at = clock::monotonic().saturating_add(grace);
        self.kill_at = Some(self.kill_at.map_or(at, |sooner| sooner.min(at)));
    }

    fn shut_down(&mut self, by: By) -> Outcome {
        // A berthd of before says nothing.
        let by = if by == By::NobodyHere { By::Stop } else { by };
        if by == By::Removed && matches!(self.stage, Stage::Created { .. }) {
            self.streams.log.remove_unused();
        }
        self.stop(&Stop { signal: 0, grace_ms: 0 }, by)?;
        if let Stage::Over { recorded, .. } = &mut self.stage {
            // Whoever ends us knows the exit or does not care.
            *recorded = true;
        }
        done()
    }

    fn exec(&mut self, exec: &Exec, fds: Vec<OwnedFd>) -> Result<(ExecStarted, Option<OwnedFd>), Failure> {
        let Stage::Running { run } = &self.stage else {
            return Err(refused(Step::NamespaceJoin, "the container is not running"));
        };
        if self.execs.iter().any(|running| running.id == exec.exec_id) {
            return Err(refused(Step::Plan, "an exec with this id is running"));
        }
        let started = launch::exec(&self.plan, std::os::fd::AsFd::as_fd(&run.pidfd), exec, fds)?;
        let kept = started.master.as_ref().and_then(|master| master.try_clone().ok());
        let timeout = Duration::from_millis(exec.timeout_ms);
        self.execs.push(ExecRun {
            id: exec.exec_id.clone(),
            pidfd: started.pidfd,
            master: kept,
            cgroup: started.cgroup,
            deadline: (!timeout.is_zero()).then(|| clock::monotonic().saturating_add(timeout)),
            timed_out: false,
            ended: false,
        });
        Ok((ExecStarted { pid: started.pid }, started.master))
    }

    fn exec_kill(&mut self, id: &str, number: u32) -> Outcome {
        let signal = signal(number)?;
        let exec = self.execs.iter().find(|exec| exec.id == id && !exec.ended);
        let exec =
            exec.ok_or_else(|| Failure { errno: libc::ESRCH, ..refused(Step::Stdio, "no such exec") })?;
        exec.kill(signal);
        done()
    }

    fn resize(&mut self, resize: &Resize) -> Outcome {
        let master = match resize.exec_id.as_str() {
            "" => self.streams.tty.as_ref(),
            id => self.execs.iter().find(|exec| exec.id == id).and_then(|exec| exec.master.as_ref()),
        };
        let master = master.ok_or_else(|| refused(Step::Pty, "it has no terminal"))?;
        launch::terminal::resize(master, resize.rows, resize.columns)
            .map_err(|errno| Failure { errno: errno.raw_os_error(), ..refused(Step::Pty, "") })?;
        done()
    }

    fn reopen_log(&mut self) -> Outcome {
        self.streams.log.reopen().map_err(|error| Failure {
            step: Step::LogOpen.into(),
            errno: error.raw_os_error().unwrap_or(0),
            object: self.plan.log.as_ref().map(|log| log.path.clone()).unwrap_or_default(),
            detail: String::new(),
        })?;
        done()
    }

    fn attach(&mut self, attach: &Attach, fds: Vec<OwnedFd>) -> Outcome {
        if matches!(self.stage, Stage::Over { .. }) {
            return Err(refused(Step::Stdio, "the container has ended"));
        }
        let failed =
            |errno: rustix::io::Errno| Failure { errno: errno.raw_os_error(), ..refused(Step::Stdio, "") };
        let mut fds = fds.into_iter();
        let mut next = |said: bool| match said {
            true => {
                fds.next().map(Some).ok_or_else(|| refused(Step::Stdio, "a stream was said and not sent"))
            }
            false => Ok(None),
        };
        let (stdin, stdout, stderr) =
            (next(attach.has_stdin)?, next(attach.has_stdout)?, next(attach.has_stderr)?);
        let input = stdin.map(Input::new).transpose().map_err(failed)?;
        let out = stdout.map(Sink::new).transpose().map_err(failed)?;
        let err = stderr.map(Sink::new).transpose().map_err(failed)?;
        self.streams.inputs.extend(input);
        self.streams.stdout.sinks.extend(out);
        self.streams.stderr.sinks.extend(err);
        done()
    }
}

fn done() -> Outcome {
    Ok(Answer::Done(Done {}))
}

fn refused(step: Step, detail: &str) -> Failure {
    Failure { step: step.into(), errno: 0, object: "container".into(), detail: detail.into() }
}

fn signal(number: u32) -> Result<Signal, Failure> {
    let invalid =
        || Failure { errno: libc::EINVAL, ..refused(Step::Plan, &format!("{number} is no signal")) };
    let number = i32::try_from(number).map_err(|_| invalid())?;
    kernel::signal::numbered(number).ok_or_else(invalid)
}
