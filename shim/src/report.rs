//! What others learn of a container: its status by the socket, its records on disk.

use std::path::Path;

use berth_launch::v1::{Event, Exit, Live, Status, event, status};

use crate::{
    launch, record,
    supervise::{Stage, Supervisor},
};

impl Supervisor {
    pub(crate) fn changed(&mut self) {
        self.record_live();
        let status = self.status();
        self.tell(&Event { event: Some(event::Event::Changed(status)) });
    }

    pub(crate) fn tell(&mut self, event: &Event) {
        for client in &mut self.clients {
            client.gone |= !client.event(event);
        }
    }

    /// Whoever looks from now on finds the exit record; whoever starts the container again finds the place free.
    pub(crate) fn let_go_of_name(&mut self) {
        if !std::mem::replace(&mut self.nameless, true) {
            // A file that stays is swept with its directory.
            std::fs::remove_file(berth_launch::LIVE).ok();
            std::fs::remove_file(berth_launch::SOCKET).ok();
        }
    }

    pub(crate) fn record_exit(&self, exit: &Exit) -> bool {
        let written = record::write_exit(Path::new(&self.plan.record_dir), exit);
        if let Err(error) = &written {
            eprintln!("berth-shim: write exit record in {}: {error}", self.plan.record_dir);
        }
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
        };
        if let Err(error) = record::write_live(Path::new("."), &live) {
            eprintln!("berth-shim: write live record in {}: {error}", self.plan.dir);
        }
    }

    pub(crate) fn status(&self) -> Status {
        let mut status = Status {
            shim_pid: rustix::process::getpid().as_raw_nonzero().get(),
            restarts: self.restarts,
            last_exit: self.last_exit.clone(),
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
