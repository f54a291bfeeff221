//! `berth-shim adopt`: takes a container over whose shim was killed. What runs goes on, its output from the byte that
//! nobody had read; its exit status comes from the kernel, which keeps it for the holder of a pidfd.
//!
//! ```text
//! Adopt + descriptors on standard input ── live record ─┬─ Backoff: goes on waiting
//!                                                       ├─ Running, kernel keeps statuses: supervised as an orphan
//!                                                       └─ else: what is left is killed, the exit says why
//! ```

use std::{
    fs,
    io::IoSliceMut,
    mem::MaybeUninit,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::Duration,
};

use berth_launch::{
    fault, needs, restart,
    v1::{
        Adopt, Cgroup, ContainerPlan, Exit, Failure, Live, Ready, Status, Step,
        status::{Held, State},
        stdio::Stdin,
    },
};
use prost::Message;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{Mode, OFlags, open},
    net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg},
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};

use crate::{
    clock, group, kernel,
    launch::{self, Stdio},
    log::{Log, Source},
    record,
    run::{Kin, Run},
    server,
    streams::{Streams, inode},
    supervise::{Stage, Supervisor},
};

/// A killed process that holds on longer is in the kernel's hands.
const PATIENCE: Timespec = Timespec { tv_sec: 5, tv_nsec: 0 };
/// The plan, and one of each kind.
const FDS: usize = 8;

/// The ends that were held in reserve.
type Reserve = Vec<(Held, OwnedFd)>;

/// Takes over. After a failure the container is as it was.
#[inline(never)]
pub fn adopt() -> Result<(Box<Supervisor>, Ready), Failure> {
    let mut reserve = receive()?;
    let plan = crate::read_plan::<ContainerPlan>()?;
    if let Some(lacking) = crate::lacking(plan.version, &plan.needs, &needs::container(&plan)) {
        return Err(refused(Step::Plan, &lacking.features.join(", "), "this shim lacks it"));
    }
    std::env::set_current_dir(&plan.dir).map_err(|error| crate::failed(Step::Socket, &plan.dir, error))?;
    if plan.runtime.is_some() {
        // What its runtime starts from now on is to be our child.
        let us = rustix::process::getpid();
        rustix::process::set_child_subreaper(Some(us))
            .map_err(|errno| crate::failed(Step::Runtime, "subreaper", errno.into()))?;
    }
    let live = read_live()?;
    end_predecessor(&live)?;
    let listener =
        server::bind_here().map_err(|error| crate::failed(Step::Socket, berth_launch::SOCKET, error))?;
    fault::point("adopt.bound");
    let log = plan.log.clone().unwrap_or_default();
    let log = Log::open(&log).map_err(|error| crate::failed(Step::LogOpen, &log.path, error))?;
    let stdin = plan.stdio.unwrap_or_default().stdin();
    let mut streams = Streams::new(log, stdin);
    let group = plan.cgroup.clone().unwrap_or_default();
    // First: an output that has a memory file gets no other.
    streams.resume(staged(&mut reserve));
    streams
        .connect(ends(&live, &group, stdin, &mut reserve))
        .map_err(|errno| crate::failed(Step::Stdio, "pipe", errno.into()))?;
    crate::protect();
    let found = find(&live, &group, reserve);
    let ready = Ready {
        shim_pid: rustix::process::getpid().as_raw_nonzero().get(),
        pid: live.pid,
        pid_start_time: live.pid_start_time,
        ..Ready::default()
    };
    let litter = end_execs(&group);
    let status = live.status.clone().unwrap_or_default();
    let mut supervisor = Supervisor::adopted(plan, listener, streams, &live, litter)
        .map(Box::new)
        .map_err(|errno| crate::failed(Step::Plan, "plan", errno.into()))?;
    match found {
        Found::Stage(stage) => {
            supervisor.stage = *stage;
            supervisor.watch_goes_on(status.health);
        }
        Found::Over(exit) => supervisor.finish(exit),
        Found::Lost(why) => {
            group::kill(&group);
            let exit = lost(&supervisor, &live, &status, why);
            let ran_for = match live.pid {
                0 => Duration::ZERO,
                _ => clock::monotonic().saturating_sub(clock::of_ticks(live.pid_start_time)),
            };
            supervisor.end(exit, ran_for);
        }
    }
    fault::point("adopt.done");
    Ok((supervisor, ready))
}

/// What there is to take over.
enum Found {
    Stage(Box<Stage>),
    /// Ended, and only its record was not written.
    Over(Exit),
    /// Nothing that could be supervised; why, in words.
    Lost(&'static str),
}

fn find(live: &Live, group: &Cgroup, reserve: Reserve) -> Found {
    let status = live.status.clone().unwrap_or_default();
    match status.state() {
        State::Exited => Found::Over(status.last_exit.unwrap_or_default()),
        State::Backoff => {
            let until = clock::monotonic() + left(live, clock::monotonic());
            Found::Stage(Box::new(Stage::Backoff { until, next_start_at: status.next_start_at }))
        }
        State::Created => Found::Lost("its shim was killed before it was started"),
        State::Running => match kernel::pidfd::keeps_exit_statuses() {
            Ok(true) => match init(live, reserve) {
                Some(pidfd) => {
                    Found::Stage(Box::new(Stage::Running { run: orphan(live, &status, group, pidfd) }))
                }
                None => Found::Lost(
                    "its shim was killed; it ended before another took over, and its exit code is lost",
                ),
            },
            Ok(false) | Err(_) => Found::Lost(
                "its shim was killed, and this kernel (before Linux 6.15) would not tell its exit code; it was ended",
            ),
        },
    }
}

/// Until the next start, by a clock that nobody sets. What a shim of an earlier version wrote has it by the time of day
/// alone, which may have been set meanwhile: that one is started now.
fn left(live: &Live, now: Duration) -> Duration {
    Duration::from_nanos(live.next_start).saturating_sub(now).min(restart::LONGEST)
}

/// Init by its number if that is still its own, else by the descriptor in reserve, which knows also of one that is gone.
fn init(live: &Live, reserve: Reserve) -> Option<OwnedFd> {
    let by_number = Pid::from_raw(live.pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    // Looked at after it is held: from then on the number is nobody else's.
    by_number
        .filter(|_| launch::start_time(live.pid) == live.pid_start_time)
        .or_else(|| reserve.into_iter().find_map(|(held, fd)| (held == Held::Init).then_some(fd)))
}

fn orphan(live: &Live, status: &Status, group: &Cgroup, pidfd: OwnedFd) -> Run {
    // Not by the time of day, which may have been set meanwhile.
    let began = clock::of_ticks(live.pid_start_time);
    Run {
        pid: live.pid,
        pidfd,
        start_time: live.pid_start_time,
        started_at: status.started_at,
        began,
        oom_kills_before: group::oom_kills(group),
        kin: Kin::Orphan,
    }
}

/// The exit of what could not be taken over.
fn lost(supervisor: &Supervisor, live: &Live, status: &Status, why: &str) -> Exit {
    Exit {
        version: berth_launch::VERSION,
        id: supervisor.plan.id.clone(),
        pid: live.pid,
        started_at: status.started_at,
        finished_at: clock::now(),
        exit_code: 137,
        signal: Signal::KILL.as_raw().unsigned_abs(),
        restarts: status.restarts,
        message: why.to_owned(),
        ..Exit::default()
    }
}

/// The ends of the container's streams: from the reserve, else opened anew through a process that still has the pipe.
fn ends(live: &Live, group: &Cgroup, stdin: Stdin, reserve: &mut Reserve) -> Stdio {
    let mut take = |kind: Held, number: u64| {
        let at = reserve.iter().position(|(held, fd)| *held == kind && (number == 0 || inode(fd) == number));
        at.map(|at| reserve.swap_remove(at).1)
    };
    let mut pipe = |kind, number, mode| match number {
        0 => None,
        number => take(kind, number).or_else(|| reopen(group, number, mode)),
    };
    let open = stdin == Stdin::Open;
    Stdio {
        stdin: pipe(Held::Stdin, live.stdin_inode, OFlags::WRONLY).filter(|_| open),
        stdout: pipe(Held::Stdout, live.stdout_inode, OFlags::RDONLY),
        stderr: pipe(Held::Stderr, live.stderr_inode, OFlags::RDONLY),
        tty: take(Held::Terminal, 0),
    }
}

/// What the shim before had read and perhaps not written.
fn staged(reserve: &mut Reserve) -> Vec<(Source, OwnedFd)> {
    let kinds = [(Held::StagedStdout, Source::Stdout), (Held::StagedStderr, Source::Stderr)];
    let find = |(kind, source): (Held, Source)| {
        let held = reserve.extract_if(.., |(held, _)| *held == kind).next().map(|(_, fd)| fd);
        // berthd was killed too, and what it held went with it.
        Some((source, held.or_else(|| crate::stage::Stage::left(source.stage_name()))?))
    };
    kinds.into_iter().filter_map(find).collect()
}

/// Opens a pipe by its other end in a process of the container. `proc_pid_fd(5)`.
fn reopen(group: &Cgroup, number: u64, mode: OFlags) -> Option<OwnedFd> {
    let wanted = PathBuf::from(format!("pipe:[{number}]"));
    group::processes(group).into_iter().find_map(|pid| {
        let listing = fs::read_dir(format!("/proc/{}/fd", pid.as_raw_nonzero())).ok()?;
        let mut paths = listing.flatten().map(|entry| entry.path());
        let path = paths.find(|path| fs::read_link(path).is_ok_and(|target| target == wanted))?;
        open(path, mode | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty()).ok()
    })
}

/// Nobody hears of the end of what a dead shim executed: it is killed. Gives the groups, which go when they are empty.
fn end_execs(group: &Cgroup) -> Vec<PathBuf> {
    let entries = fs::read_dir(Path::new(&group.v2)).into_iter().flatten().flatten();
    let of_execs = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("exec-"));
    // One that is gone holds nobody.
    of_execs.map(|entry| entry.path()).inspect(|path| drop(group::kill_directory(path))).collect()
}

/// The shim before us must not come back to life beside us.
fn end_predecessor(live: &Live) -> Result<(), Failure> {
    let Some(pid) = Pid::from_raw(live.shim_pid) else { return Ok(()) };
    let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) else { return Ok(()) };
    if launch::start_time(live.shim_pid) != live.shim_start_time {
        return Ok(());
    }
    // Dead already is as good.
    pidfd_send_signal(&pidfd, Signal::KILL).ok();
    match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&PATIENCE)) {
        Ok(ended) if ended > 0 => Ok(()),
        Ok(_) | Err(_) => Err(refused(Step::Plan, "the shim before", "it was killed and does not die")),
    }
}

fn read_live() -> Result<Live, Failure> {
    let bytes =
        fs::read(berth_launch::LIVE).map_err(|error| crate::failed(Step::Plan, berth_launch::LIVE, error))?;
    let live = Live::decode(bytes.as_slice())
        .map_err(|error| refused(Step::Plan, berth_launch::LIVE, &error.to_string()))?;
    match live.boot_id == record::boot_id() && live.version == berth_launch::VERSION {
        true => Ok(live),
        false => Err(refused(Step::Plan, berth_launch::LIVE, "it is of another boot or version")),
    }
}

/// Takes the message and its descriptors; the plan becomes standard input.
fn receive() -> Result<Reserve, Failure> {
    let io = |errno: rustix::io::Errno| crate::failed(Step::Plan, "standard input", errno.into());
    let mut buffer = [0u8; 64];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut room = [IoSliceMut::new(&mut buffer)];
    let message =
        recvmsg(rustix::stdio::stdin(), &mut room, &mut ancillary, RecvFlags::CMSG_CLOEXEC).map_err(io)?;
    let mut fds = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            fds.extend(received);
        }
    }
    let adopt = Adopt::decode(&buffer[..message.bytes])
        .map_err(|error| refused(Step::Plan, "standard input", &error.to_string()))?;
    let mut fds = fds.into_iter();
    let plan = fds.next().ok_or_else(|| refused(Step::Plan, "standard input", "no plan came with it"))?;
    rustix::stdio::dup2_stdin(&plan).map_err(io)?;
    Ok(adopt.held().zip(fds).collect())
}

fn refused(step: Step, object: &str, detail: &str) -> Failure {
    Failure { step: step.into(), errno: 0, object: object.into(), detail: detail.into() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_next_start_is_neither_early_nor_late(next_start in any::<u64>(), now in any::<u64>()) {
            let live = Live { next_start, ..Live::default() };
            let left = left(&live, Duration::from_nanos(now)).as_nanos();
            prop_assert_eq!(left, u128::from(next_start.saturating_sub(now)).min(restart::LONGEST.as_nanos()));
        }
    }
}
