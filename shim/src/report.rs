//! What others learn of a container: its status by the socket, its records on disk.

use std::{os::fd::OwnedFd, path::Path, time::Duration};

use berth_launch::{
    fault,
    v1::{
        Event, Exit, Failure, Live, Status, event,
        status::{self, Held},
    },
};

use crate::{
    clock, launch, record,
    streams::inode,
    supervise::{Stage, Supervisor},
};

impl Supervisor {
    pub(crate) fn changed(&mut self) {
        self.record_live();
        for n in 0..self.clients.len() {
            let mut status = self.status();
            let held = self.in_reserve(&mut status);
            let client = &mut self.clients[n];
            let event = Event { event: Some(event::Event::Changed(status)) };
            client.gone |= !client.event(&event, held);
        }
    }

    /// Copies of what must outlive this shim, and their kinds in the status that they travel with.
    pub(crate) fn in_reserve(&self, status: &mut Status) -> Vec<OwnedFd> {
        let (Stage::Created { run, .. } | Stage::Running { run }) = &self.stage else { return Vec::new() };
        let init = run.pidfd.try_clone().ok().map(|fd| (Held::Init, fd));
        // In the order in which they were invented: a berthd of before knows the first of them only.
        let all = self.streams.held().into_iter().chain(init).chain(self.streams.staged());
        let (kinds, fds): (Vec<_>, Vec<_>) = all.unzip();
        status.held = kinds.into_iter().map(i32::from).collect();
        fds
    }

    pub(crate) fn tell(&mut self, event: &Event) {
        for client in &mut self.clients {
            client.gone |= !client.event(event, Vec::new());
        }
    }

    /// Whoever looks from now on finds the exit record; whoever starts the container again finds the place free.
    pub(crate) fn let_go_of_name(&mut self) {
        if !std::mem::replace(&mut self.nameless, true) {
            // A file that stays is swept with its directory.
            std::fs::remove_file(berth_launch::LIVE).ok();
            std::fs::remove_file(berth_launch::SOCKET).ok();
            std::fs::remove_file(berth_launch::STAGED_STDOUT).ok();
            std::fs::remove_file(berth_launch::STAGED_STDERR).ok();
        }
    }

    /// The exit of a run whose program never began.
    pub(crate) fn never_ran(&self, exit_code: i32, failure: &Failure) -> Exit {
        let cause = launch::cause(failure);
        Exit {
            version: berth_launch::VERSION,
            id: self.plan.id.clone(),
            finished_at: clock::now(),
            exit_code,
            restarts: self.restarts,
            message: format!("{}: {cause}", failure.object),
            lost_log_bytes: self.streams.log.lost_bytes(),
            ..Exit::default()
        }
    }

    pub(crate) fn record_exit(&self, exit: &Exit) -> bool {
        fault::point("shim.ending");
        let written = record::write_exit(Path::new(&self.plan.record_dir), exit);
        if let Err(error) = &written {
            crate::complain!("berth-shim: write exit record in {}: {error}", self.plan.record_dir);
        }
        fault::point("shim.ended");
        written.is_ok()
    }

    pub(crate) fn record_live(&self) {
        let (pid, pid_start_time) = match &self.stage {
            Stage::Created { run, .. } | Stage::Running { run } => (run.pid, run.start_time),
            Stage::Ending { .. } | Stage::Backoff { .. } | Stage::Over { .. } => (0, 0),
        };
        let shim_pid = rustix::process::getpid().as_raw_nonzero().get();
        let live = Live {
            version: berth_launch::VERSION,
            shim_pid,
            shim_start_time: launch::start_time(shim_pid),
            pid,
            pid_start_time,
            boot_id: self.boot_id.clone(),
            status: Some(self.status()),
            stdin_inode: self.streams.stdin.as_ref().map_or(0, inode),
            stdout_inode: self.streams.stdout.fd.as_ref().map_or(0, inode),
            stderr_inode: self.streams.stderr.fd.as_ref().map_or(0, inode),
            stopping: self.stopping,
            kill_at: self.kill_at.map_or(0, nanos),
            next_start: match &self.stage {
                Stage::Backoff { until, .. } => nanos(*until),
                Stage::Created { .. } | Stage::Running { .. } | Stage::Ending { .. } | Stage::Over { .. } => {
                    0
                }
            },
            in_a_row: self.history.in_a_row,
            sent: self.sent.clone(),
        };
        if let Err(error) = record::write_live(Path::new("."), &live) {
            crate::complain!("berth-shim: write live record in {}: {error}", self.plan.dir);
        }
    }

    pub(crate) fn status(&self) -> Status {
        let mut status = Status {
            shim_pid: rustix::process::getpid().as_raw_nonzero().get(),
            restarts: self.restarts,
            last_exit: self.last_exit.clone(),
            health: self.watch.as_ref().map(|watch| watch.status()),
            ..Status::default()
        };
        match &self.stage {
            Stage::Created { run, .. } | Stage::Running { run } => {
                let created = matches!(self.stage, Stage::Created { .. });
                let state = if created { status::State::Created } else { status::State::Running };
                status.set_state(state);
                status.pid = run.pid;
                status.pid_start_time = run.start_time;
                status.started_at = run.started_at;
            }
            Stage::Ending { exit, .. } => {
                status.set_state(status::State::Running);
                status.started_at = exit.started_at;
            }
            Stage::Backoff { next_start_at, .. } => {
                status.set_state(status::State::Backoff);
                status.next_start_at = *next_start_at;
            }
            Stage::Over { exit, .. } => {
                status.set_state(status::State::Exited);
                status.started_at = exit.started_at;
                status.last_exit = Some(exit.clone());
            }
        }
        status
    }
}

pub(crate) fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
