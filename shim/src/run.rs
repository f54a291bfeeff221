//! The processes under supervision: a run of the container's init, an exec, and how they end.

use std::{
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    time::Duration,
};

use berth_launch::v1::{ContainerPlan, Failure, Health, Process, Runtime, Step, health};
use prost::Message;
use rustix::process::{Signal, WaitId, WaitIdOptions, WaitIdStatus, pidfd_send_signal, waitid};

use crate::{
    clock, group, kernel,
    launch::{self, Created, Gate},
    streams::Streams,
};

/// One run of the container's init.
#[derive(Debug)]
pub struct Run {
    pub pid: i32,
    pub pidfd: OwnedFd,
    pub start_time: u64,
    /// Unix nanoseconds; 0: not yet.
    pub started_at: i64,
    pub began: Duration,
    pub oom_kills_before: u64,
    pub kin: Kin,
}

/// Whose child a run's init is: by that its end is learned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kin {
    Child,
    /// Of a shim that was killed; who reaps it now tells us nothing.
    Orphan,
}

#[derive(Debug)]
pub struct ExecRun {
    pub id: String,
    pub pidfd: OwnedFd,
    pub master: Option<OwnedFd>,
    pub cgroup: Option<PathBuf>,
    pub deadline: Option<Duration>,
    pub timed_out: bool,
    /// Reaped and told; leaves the list at the end of the round.
    pub ended: bool,
}

impl ExecRun {
    /// KILL ends its whole tree; any other signal is its own.
    pub fn kill(&self, signal: Signal) {
        if let (Signal::KILL, Some(cgroup)) = (signal, &self.cgroup) {
            // Where there is no such file, the one below is all that can be done.
            group::kill_directory(cgroup).ok();
        }
        // Ended in between is as good.
        pidfd_send_signal(&self.pidfd, signal).ok();
    }
}

/// The plan without what only a launch needs: that is in the memfd on standard input for the next one. Decoded anew, so
/// that what stays lies together and not between the pages that the launch has used.
pub fn slim(plan: ContainerPlan) -> rustix::io::Result<ContainerPlan> {
    let process = plan.process.map(|process| Process {
        user: process.user,
        capabilities: process.capabilities,
        oom_score_adj: process.oom_score_adj,
        ..Process::default()
    });
    // A command is read anew for each check.
    let health = plan.health.map(|health| match health.check {
        Some(health::Check::Command(_)) => Health { check: None, ..health },
        Some(health::Check::Http(_) | health::Check::Tcp(_)) | None => health,
    });
    // Its document is on disk.
    let runtime = plan.runtime.map(|runtime| Runtime { document: Vec::new(), ..runtime });
    let bytes = ContainerPlan {
        process,
        runtime,
        health,
        rootfs: None,
        mounts: Vec::new(),
        devices: Vec::new(),
        symlinks: Vec::new(),
        masked_paths: Vec::new(),
        readonly_paths: Vec::new(),
        sysctls: Vec::new(),
        ..plan
    }
    .encode_to_vec();
    kernel::memory::give_back();
    // What was encoded a moment ago can be decoded.
    ContainerPlan::decode(bytes.as_slice()).map_err(|_| rustix::io::Errno::INVAL)
}

/// A created container's parts in their places.
pub fn taken(
    plan: &ContainerPlan,
    streams: &mut Streams,
    created: Created,
) -> rustix::io::Result<(Run, Gate)> {
    if let Err(errno) = streams.connect(created.stdio) {
        launch::end(&created.pidfd);
        return Err(errno);
    }
    let run = Run {
        pid: created.pid,
        pidfd: created.pidfd,
        start_time: created.start_time,
        started_at: 0,
        began: clock::monotonic(),
        oom_kills_before: plan.cgroup.as_ref().map_or(0, group::oom_kills),
        kin: Kin::Child,
    };
    Ok((run, created.gate))
}

/// What a shell would say of a program that could not be run.
pub fn exit_code(failure: &Failure) -> i32 {
    match (failure.step(), failure.errno) {
        (Step::Exec, libc::ENOENT) => 127,
        (Step::Exec, _) => 126,
        _ => 128,
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    pub code: i32,
    pub signal: u32,
}

impl Ended {
    /// Nobody can tell.
    pub const UNKNOWN: Self = Self { code: 255, signal: 0 };
}

pub fn reap(pidfd: &OwnedFd) -> Option<Ended> {
    let how = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
    waitid(WaitId::PidFd(pidfd.as_fd()), how).ok().flatten().map(|status| ended(&status))
}

/// How an orphan has ended, once its pidfd says that it has: it waits to be reaped and `/proc` shows its status, or was,
/// and the kernel keeps it for the holder of the pidfd.
pub fn orphan_ended(run: &Run) -> Option<Ended> {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", run.pid)).ok();
    let stat = stat.filter(|_| launch::start_time(run.pid) == run.start_time);
    // proc_pid_stat(5): the exit status is the last field.
    let shown = stat.and_then(|stat| stat.split_whitespace().next_back()?.parse().ok());
    shown.or_else(|| kernel::pidfd::exit_status(run.pidfd.as_fd())).map(|status: i32| match status & 0x7f {
        0 => Ended { code: status >> 8 & 0xff, signal: 0 },
        signal => Ended { code: 128 + signal, signal: signal.unsigned_abs() },
    })
}

fn ended(status: &WaitIdStatus) -> Ended {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => Ended { code, signal: 0 },
        (None, Some(signal)) => Ended { code: 128 + signal, signal: signal.unsigned_abs() },
        (None, None) => Ended { code: 255, signal: 0 },
    }
}
