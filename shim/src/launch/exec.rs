//! A process in a running container: clone3 into the cgroup, setns by init's pidfd, no mounts.

use std::{
    fs::File,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use berth_launch::v1::{Cgroup, ContainerPlan, Exec, OutsideExec, Process, Step};
use rustix::fs::{Mode, OFlags, open};

use super::{
    attributes::{self, Labels},
    channel::{Channel, Message_},
    child::{self, Last, Streams},
    credentials, end,
    failure::{At, Result, fail},
    inherited, namespaces, null, prepare, rootless, runtime, terminal, user, users,
};
use crate::kernel::{
    self,
    clone::{Parent, Side},
};

/// A process that runs its program.
#[derive(Debug)]
pub struct Execed {
    pub pid: i32,
    pub pidfd: OwnedFd,
    pub master: Option<OwnedFd>,
    /// Its own v2 cgroup, where it has one: `cgroup.kill` there ends its whole tree. The caller removes it.
    pub cgroup: Option<PathBuf>,
}

/// Starts a process beside init and returns once it has executed its program. `fds` are its streams in order, as far as
/// the request says it has them.
pub fn exec(plan: &ContainerPlan, init: BorrowedFd<'_>, exec: &Exec, fds: Vec<OwnedFd>) -> Result<Execed> {
    if let Some(runtime) = &plan.runtime {
        return runtime::exec(plan, runtime, exec, fds);
    }
    let process = inherit(plan, exec)?;
    let streams = if process.tty { None } else { Some(streams(exec, fds)?) };
    let group = plan.cgroup.clone().unwrap_or_default();
    let own = own_cgroup(plan, exec)?;
    let directory = own.as_deref().map(open_directory).transpose()?;
    let whose = Parent::Us;
    match start(plan, init, exec, Start { process, group, directory, streams, whose, kept: 0 }) {
        Ok(execed) => Ok(Execed { cgroup: own, ..execed }),
        Err(failure) => {
            if let Some(own) = own {
                // The failure is the story; an empty group that stays goes with the container's.
                std::fs::remove_dir(own).ok();
            }
            Err(failure)
        }
    }
}

/// The same for an outside keeper: in the group that it names, with our streams, as our parent's child.
pub fn exec_outside(plan: &OutsideExec, init: BorrowedFd<'_>) -> Result<Execed> {
    let missing = |what| fail(Step::Plan, what, 0, "the plan has none");
    let container = plan.plan.as_ref().ok_or_else(|| missing("container"))?;
    let exec = plan.exec.as_ref().ok_or_else(|| missing("exec"))?;
    let mut process = inherit(container, exec)?;
    let entered = rootless::is_rootless().then(|| rootless::beside(container, init)).transpose()?;
    process.keep_groups = entered.is_some() && users::has_no_setgroups();
    let container = entered.as_ref().unwrap_or(container);
    let streams = if process.tty { None } else { Some(inherited()?) };
    let group = plan.cgroup.clone().unwrap_or_default();
    let directory = prepare::cgroup_v2(&group)?;
    let kept = plan.outside.as_ref().map_or(0, |outside| outside.preserve_fds);
    let whose = Parent::Ours;
    start(container, init, exec, Start { process, group, directory, streams, whose, kept })
}

/// What one manner of exec has other than the next.
struct Start {
    process: Process,
    /// Its v1 directories are entered; of v2 the open directory says where.
    group: Cgroup,
    directory: Option<OwnedFd>,
    /// None: a terminal of its own.
    streams: Option<Streams>,
    whose: Parent,
    kept: u32,
}

fn start(plan: &ContainerPlan, init: BorrowedFd<'_>, exec: &Exec, how: Start) -> Result<Execed> {
    let mut tasks = prepare::cgroup_v1(&how.group)?;
    // Of the joined kinds the PID namespace is for children only; it is taken back after the clone.
    let flags = plan.namespaces.iter().fold(0, |flags, namespace| flags | namespaces::flag(namespace.kind()));
    let own = open("/proc/self/ns/pid", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .at(Step::NamespaceJoin, "/proc/self/ns/pid")?;
    if flags & libc::CLONE_NEWPID != 0 {
        kernel::clone::setns(init, libc::CLONE_NEWPID).at(Step::NamespaceJoin, "pid")?;
    }
    let (parent, channel) = Channel::pair()?;
    let cloned = kernel::clone::clone3(0, how.directory.as_ref().map(AsFd::as_fd), how.whose);
    let (pid, pidfd) = match cloned {
        Ok(Side::Child) => {
            drop(parent);
            let Err(failure) = sequence(how, flags, init, &mut tasks, &channel);
            channel.send_failure(failure);
            kernel::clone::exit_now(1)
        }
        Ok(Side::Parent { pid, pidfd }) => (pid, pidfd),
        Err(error) => return Err(error).at(Step::Clone, &exec.exec_id),
    };
    let Start { streams, whose, .. } = how;
    drop(channel);
    // A one-shot shim clones no more, and an ordinary user's may not go back to where it came from.
    if flags & libc::CLONE_NEWPID != 0 && whose == Parent::Us {
        kernel::clone::setns(own.as_fd(), libc::CLONE_NEWPID).at(Step::NamespaceJoin, "pid")?;
    }
    let outcome = match parent.receive() {
        Ok(Message_::Ready(ready, master)) => {
            let handed = match (&streams, flags & libc::CLONE_NEWUSER) {
                (None, _) => Ok(()),
                (Some(streams), 0) => users::hand_over(streams, (ready.uid, ready.gid)),
                (Some(streams), _) => users::outer_ids(pid, ready.uid, ready.gid)
                    .and_then(|owner| users::hand_over(streams, owner)),
            };
            drop(streams);
            handed.and_then(|()| parent.open_gate()).and_then(|()| match parent.receive()? {
                Message_::Closed => Ok(master),
                Message_::Failure(failure) => Err(failure),
                Message_::Ready(..) => Err(fail(Step::Stdio, &exec.exec_id, 0, "it spoke out of turn")),
            })
        }
        Ok(Message_::Failure(failure)) | Err(failure) => Err(failure),
        Ok(Message_::Closed) => Err(fail(Step::Clone, &exec.exec_id, 0, super::DIED)),
    };
    match outcome {
        Ok(master) => Ok(Execed { pid, pidfd, master, cgroup: None }),
        Err(failure) => {
            end(&pidfd);
            Err(failure)
        }
    }
}

fn sequence(
    how: Start,
    namespaces: i32,
    init: BorrowedFd<'_>,
    tasks: &mut [File],
    channel: &Channel,
) -> Result<std::convert::Infallible> {
    let Start { process, streams, kept, .. } = how;
    let process = &process;
    attributes::first_affinity(process)?;
    child::enter_cgroups(tasks)?;
    if let Some(score) = process.oom_score_adj {
        credentials::oom_score_adj(score)?;
    }
    let labels = Labels::open(process)?;
    let listener = prepare::listener(process)?;
    let pid = if listener.is_some() { child::outer_pid()? } else { 0 };
    let enter = namespaces & !libc::CLONE_NEWPID;
    kernel::clone::setns(init, enter).at(Step::NamespaceJoin, "of init")?;
    if namespaces & libc::CLONE_NEWUSER != 0 {
        users::become_root()?;
    }
    kernel::exec::setsid();
    // setns into a mount namespace sets root and working directory to that namespace's root.
    let root = child::own_root()?;
    let (streams, master) = match streams {
        Some(streams) => (streams, None),
        None => {
            let (streams, master) = terminal::pair(&root, process)?;
            (streams, Some(master))
        }
    };
    let who = user::resolve(&root, process.user.as_ref().unwrap_or(&Default::default()))?;
    // No directory that we hold is the program's way to anywhere.
    drop(root);
    let warnings = credentials::rlimits(None, &process.rlimits)?;
    attributes::scheduling(process, "berth")?;
    child::become_process(process, &who, streams)?;
    channel.send_ready(&who, warnings, master.as_ref().map(AsFd::as_fd));
    drop(master);
    if !channel.wait_for_gate() {
        kernel::clone::exit_now(0);
    }
    child::execute(process, &who, Last { kept, labels, listener, pid })
}

/// What the request leaves open is as init's.
pub fn inherit(plan: &ContainerPlan, exec: &Exec) -> Result<Process> {
    let init = plan.process.as_ref().ok_or_else(|| fail(Step::Plan, "process", 0, "the plan has none"))?;
    let mut process =
        exec.process.clone().ok_or_else(|| fail(Step::Plan, &exec.exec_id, 0, "an exec of nothing"))?;
    process.user = process.user.or_else(|| init.user.clone());
    process.capabilities = process.capabilities.or(init.capabilities);
    // The shim's own score is not for what it runs.
    process.oom_score_adj = process.oom_score_adj.or(init.oom_score_adj);
    Ok(process)
}

pub fn streams(exec: &Exec, fds: Vec<OwnedFd>) -> Result<Streams> {
    let mut fds = fds.into_iter();
    let mut next = |given: bool| match given {
        true => fds
            .next()
            .ok_or_else(|| fail(Step::Stdio, &exec.exec_id, libc::EBADF, "a stream was said and not sent")),
        false => null(),
    };
    Ok(Streams {
        stdin: next(exec.has_stdin)?,
        stdout: next(exec.has_stdout)?,
        stderr: next(exec.has_stderr)?,
    })
}

/// A sub-cgroup of the container's v2 group, whose controllers it does not use: the group may hold processes itself.
pub fn own_cgroup(plan: &ContainerPlan, exec: &Exec) -> Result<Option<PathBuf>> {
    let group = plan.cgroup.as_ref().map(|cgroup| cgroup.v2.as_str()).unwrap_or_default();
    if group.is_empty() {
        return Ok(None);
    }
    let path = Path::new(group).join(format!("exec-{}", exec.exec_id));
    std::fs::create_dir(&path).at(Step::CgroupJoin, &path)?;
    Ok(Some(path))
}

fn open_directory(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    open(path, flags, Mode::empty()).at(Step::CgroupJoin, path)
}
