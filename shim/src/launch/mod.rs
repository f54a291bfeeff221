//! Launching: a container up to the gate, a process in a running container, a pod's namespaces.
//!
//! ```text
//! parent:  prepare ── clone3 ──────────────── wait ready ─ ... ─ open gate ─ wait for exec or failure
//! child:                └ cgroup, namespaces, mounts, pivot, user ─ CREATED ─┘ └ seccomp, capabilities, execve
//! ```

mod channel;
mod child;
mod credentials;
mod diagnose;
mod exec;
mod failure;
mod mounts;
mod namespaces;
mod prepare;
mod program;
mod root;
pub mod sandbox;
pub mod terminal;
mod user;

use std::{
    fs::File,
    os::fd::{AsFd, OwnedFd},
};

use berth_launch::v1::{ContainerPlan, NamespaceKind, Step, stdio};
use rustix::{
    fs::{Mode, OFlags, open},
    pipe::{PipeFlags, pipe_with},
};

pub use self::exec::{Execed, exec};
use self::{
    channel::{Channel, Message_},
    child::Streams,
    failure::{At, Result, fail},
};
use crate::kernel::{self, clone::Side};

/// A container at the gate.
#[derive(Debug)]
pub struct Created {
    pub pid: i32,
    pub pidfd: OwnedFd,
    pub start_time: u64,
    pub stdio: Stdio,
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    pub warnings: Vec<String>,
    pub gate: Gate,
}

/// The shim's ends of the container's streams.
#[derive(Debug, Default)]
pub struct Stdio {
    pub stdin: Option<OwnedFd>,
    pub stdout: Option<OwnedFd>,
    pub stderr: Option<OwnedFd>,
    /// The pty master, instead of the three.
    pub tty: Option<OwnedFd>,
}

/// Holds init back until it is opened; dropped closed, init leaves.
#[derive(Debug)]
pub struct Gate(Channel);

impl Gate {
    /// Lets init execute its program; the outcome is execve's.
    pub fn open(self) -> Result<()> {
        self.0.open_gate()?;
        match self.0.receive()? {
            Message_::Closed => Ok(()),
            Message_::Failure(failure) => Err(failure),
            Message_::Ready(..) => Err(fail(Step::Stdio, "child", 0, "it spoke out of turn")),
        }
    }
}

/// Brings a container's init to the gate: namespaces, cgroup, root, mounts, user. Nothing is left after a failure.
pub fn create(plan: &ContainerPlan) -> Result<Created> {
    let prepared = prepare::prepare(plan)?;
    let (ours, theirs) = streams(plan)?;
    let (parent, channel) = Channel::pair()?;
    let flags = plan
        .namespaces
        .iter()
        .filter(|namespace| namespace.path.is_empty() && namespace.kind() != NamespaceKind::Cgroup)
        .fold(0, |flags, namespace| flags | namespaces::flag(namespace.kind()) as u64);
    // A joined PID namespace is that of our children from now on: entered for this one clone, then left again.
    let joined = prepared.joins.iter().find(|(_, kind)| *kind == NamespaceKind::Pid);
    let own = joined.map(|_| own_pid_namespace()).transpose()?;
    if let Some((file, _)) = joined {
        kernel::clone::setns(file.as_fd(), libc::CLONE_NEWPID).at(Step::NamespaceJoin, "pid")?;
    }
    let cloned = kernel::clone::clone3(flags, prepared.cgroup_v2.as_ref().map(AsFd::as_fd));
    let (pid, pidfd) = match cloned {
        Ok(Side::Child) => {
            drop((parent, ours));
            child::run(plan, prepared, theirs, channel)
        }
        Ok(Side::Parent { pid, pidfd }) => (pid, pidfd),
        Err(error) => return Err(error).at(Step::Clone, "init"),
    };
    drop((channel, theirs, prepared));
    if let Some(own) = own {
        kernel::clone::setns(own.as_fd(), libc::CLONE_NEWPID).at(Step::NamespaceJoin, "pid")?;
    }
    match parent.receive() {
        Ok(Message_::Ready(ready, tty)) => Ok(Created {
            pid,
            start_time: start_time(pid),
            pidfd,
            stdio: Stdio { tty, ..ours },
            uid: ready.uid,
            gid: ready.gid,
            groups: ready.groups,
            warnings: ready.warnings,
            gate: Gate(parent),
        }),
        other => {
            end(&pidfd);
            Err(match other {
                Ok(Message_::Failure(failure)) | Err(failure) => failure,
                Ok(_) => fail(
                    Step::Clone,
                    "init",
                    0,
                    "it died before it was set up: killed, or out of memory in its cgroup",
                ),
            })
        }
    }
}

/// Kills and reaps a child that is of no use.
pub fn end(pidfd: &OwnedFd) {
    // Gone already is as good.
    rustix::process::pidfd_send_signal(pidfd, rustix::process::Signal::KILL).ok();
    let how = rustix::process::WaitIdOptions::EXITED;
    rustix::process::waitid(rustix::process::WaitId::PidFd(pidfd.as_fd()), how).ok();
}

/// When a process started, in clock ticks since boot: with its pid it names the process for ever. `proc_pid_stat(5)`.
pub fn start_time(pid: i32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The second field is the program's name and may hold anything: count from its closing parenthesis.
    let fields = stat.rsplit_once(')').map(|(_, rest)| rest).unwrap_or_default();
    fields.split_whitespace().nth(19).and_then(|field| field.parse().ok()).unwrap_or(0)
}

fn own_pid_namespace() -> Result<OwnedFd> {
    let path = "/proc/self/ns/pid";
    open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).at(Step::NamespaceJoin, path)
}

/// The shim's ends and the child's; none of the child's with a tty, whose pair it makes in its own devpts.
fn streams(plan: &ContainerPlan) -> Result<(Stdio, Option<Streams>)> {
    if plan.process.as_ref().is_some_and(|process| process.tty) {
        return Ok((Stdio::default(), None));
    }
    let (stdin, our_stdin) = match plan.stdio.unwrap_or_default().stdin() {
        stdio::Stdin::None => (null()?, None),
        stdio::Stdin::Open | stdio::Stdin::Once => {
            let (read, write) = pipe()?;
            (read, Some(write))
        }
    };
    let ((our_stdout, stdout), (our_stderr, stderr)) = (pipe()?, pipe()?);
    let ours = Stdio { stdin: our_stdin, stdout: Some(our_stdout), stderr: Some(our_stderr), tty: None };
    Ok((ours, Some(Streams { stdin, stdout: both_ways(&stdout)?, stderr: both_ways(&stderr)? })))
}

fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    pipe_with(PipeFlags::CLOEXEC).at(Step::Stdio, "pipe")
}

pub fn null() -> Result<OwnedFd> {
    File::options().read(true).write(true).open("/dev/null").at(Step::Stdio, "/dev/null").map(OwnedFd::from)
}

/// A pipe's end opened to read and write: its holder is a reader too, so a dead shim is no SIGPIPE. `fifo(7)`.
fn both_ways(end: &OwnedFd) -> Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(end));
    open(&path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).at(Step::Stdio, path)
}
