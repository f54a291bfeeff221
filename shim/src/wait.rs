//! What the supervisor's loop waits for: whoever may speak, and the next thing that is due.

use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::{
    attach::Sink,
    clock,
    log::Source,
    supervise::{Stage, Supervisor},
};

/// What poll(2) woke us for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Wake {
    Listener,
    Client(usize),
    Output(Source),
    Input,
    Sinks,
    Init,
    Exec(usize),
    Check,
}

impl Supervisor {
    pub(crate) fn wait(&self) -> Vec<Wake> {
        let mut fds = vec![(Wake::Listener, PollFd::new(&self.listener, PollFlags::IN))];
        for (n, client) in self.clients.iter().enumerate() {
            let flags = if client.has_queue() { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
            fds.push((Wake::Client(n), PollFd::new(&client.socket, flags)));
        }
        let outputs = [
            (Source::Stdout, self.streams.stdout.fd.as_ref().or(self.streams.tty.as_ref())),
            (Source::Stderr, self.streams.stderr.fd.as_ref()),
        ];
        for (source, fd) in outputs {
            if let Some(fd) = fd.filter(|_| self.streams.may_read(source)) {
                fds.push((Wake::Output(source), PollFd::new(fd, PollFlags::IN)));
            }
        }
        for sink in self.streams.sinks() {
            let flags = if sink.is_waiting() { PollFlags::OUT } else { PollFlags::empty() };
            fds.push((Wake::Sinks, PollFd::new(&sink.fd, flags)));
        }
        if self.streams.input_waits() {
            let to = self.streams.stdin.as_ref().or(self.streams.tty.as_ref());
            fds.extend(to.map(|fd| (Wake::Input, PollFd::new(fd, PollFlags::OUT))));
        } else {
            let inputs = &self.streams.inputs;
            fds.extend(inputs.iter().map(|from| (Wake::Input, PollFd::new(&from.fd, PollFlags::IN))));
        }
        if let Stage::Created { run, .. } | Stage::Running { run } = &self.stage {
            fds.push((Wake::Init, PollFd::new(&run.pidfd, PollFlags::IN)));
        }
        for (n, exec) in self.execs.iter().enumerate() {
            fds.push((Wake::Exec(n), PollFd::new(&exec.pidfd, PollFlags::IN)));
        }
        if let Some(watch) = &self.watch {
            fds.extend(watch.waits_for().map(|fd| (Wake::Check, fd)));
        }
        let (wakes, mut fds): (Vec<_>, Vec<_>) = fds.into_iter().unzip();
        let timeout = self.next_deadline().map(|at| {
            let left = at.saturating_sub(clock::monotonic());
            Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() }
        });
        match poll(&mut fds, timeout.as_ref()) {
            Ok(0) | Err(_) => Vec::new(),
            Ok(_) => {
                let ready = fds.iter().map(|fd| !fd.revents().is_empty());
                wakes.into_iter().zip(ready).filter(|(_, ready)| *ready).map(|(wake, _)| wake).collect()
            }
        }
    }

    fn next_deadline(&self) -> Option<Duration> {
        let stage = match &self.stage {
            Stage::Created { .. } | Stage::Running { .. } => None,
            Stage::Ending { look_again, .. } => Some(*look_again),
            Stage::Backoff { until, .. } => Some(*until),
            Stage::Over { leave_by, .. } => Some(*leave_by),
        };
        let sinks = self.streams.sinks().filter(|sink| sink.is_waiting()).map(Sink::gives_up_at);
        let execs = self.execs.iter().filter_map(|exec| exec.deadline);
        let due = self.kill_at.into_iter().chain(self.health_deadline()).chain(self.streams.due());
        let all = stage.into_iter().chain(due);
        all.chain(sinks).chain(execs).min()
    }
}
