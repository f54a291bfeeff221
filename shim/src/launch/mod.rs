//! Launching: a container up to the gate, a process in a running container, a pod's namespaces.
//!
//! ```text
//! parent:  prepare ── clone3 ──────────────── wait ready ─ ... ─ open gate ─ wait for exec or failure
//! child:                └ cgroup, namespaces, mounts, pivot, user ─ CREATED ─┘ └ seccomp, capabilities, execve
//! ```

mod attributes;
mod channel;
mod child;
mod command;
mod credentials;
mod diagnose;
mod exec;
mod failure;
mod hooks;
mod mounts;
mod namespaces;
mod net_devices;
mod overlay;
mod prepare;
mod program;
mod quota;
mod root;
pub mod rootless;
mod runtime;
pub mod sandbox;
pub mod terminal;
mod time;
mod tmpfs;
mod user;
mod users;

use std::{
    fs::File,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use berth_launch::v1::{ContainerPlan, Hooks, NamespaceKind, Ready, Runtime, Step, stdio};
use rustix::{
    event::{PollFd, PollFlags, poll},
    fs::{Mode, OFlags, open},
    pipe::{PipeFlags, pipe_with},
    process::Pid,
};

use self::{
    channel::{Channel, Message_},
    child::Streams,
    failure::{At, Result, fail},
};
pub use self::{
    exec::{Execed, exec, exec_outside},
    failure::cause,
    runtime::{clean, kill},
};
use crate::kernel::{
    self,
    clone::{Parent, Side},
};

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

/// Holds init back until it is opened; dropped closed, init of our own making leaves.
#[derive(Debug)]
pub enum Gate {
    Ours(Channel),
    /// Init waits for the `start` of its runtime, which knows it by this id.
    Runtime(Runtime, String),
}

impl Gate {
    /// Lets init execute its program; the outcome is execve's.
    pub fn open(self) -> Result<()> {
        let init = match self {
            Self::Ours(init) => init,
            Self::Runtime(runtime, id) => return runtime::start(&runtime, &id),
        };
        init.open_gate()?;
        match init.receive()? {
            Message_::Closed => Ok(()),
            Message_::Failure(failure) => Err(failure),
            Message_::Ready(..) => Err(fail(Step::Stdio, "child", 0, "it spoke out of turn")),
        }
    }
}

/// Who keeps a container until its end.
#[derive(Debug)]
pub enum Keeper {
    /// This shim: it opens the gate, and its death is init's.
    Us,
    /// Our parent, or whom that leaves init to. Init waits at this listening socket for its start.
    Outside(OwnedFd),
}

/// Brings a container's init to the gate: namespaces, cgroup, root, mounts, user. Nothing is left after a failure, but
/// an outside keeper has a dead child to reap.
pub fn create(plan: &ContainerPlan, keeper: Keeper) -> Result<Created> {
    if let Some(runtime) = &plan.runtime {
        return runtime::create(plan, runtime);
    }
    let mut prepared = prepare::prepare(plan)?;
    let whose = match keeper {
        Keeper::Us => Parent::Us,
        Keeper::Outside(_) => Parent::Ours,
    };
    let (ours, theirs) = streams(plan)?;
    let (parent, channel) = Channel::pair()?;
    let flags = plan
        .namespaces
        .iter()
        .filter(|namespace| namespace.path.is_empty())
        .filter(|namespace| {
            use NamespaceKind::{Cgroup, Time, User};
            !matches!(namespace.kind(), Cgroup | Time | User)
        })
        .fold(0, |flags, namespace| flags | namespaces::flag(namespace.kind()) as u64);
    // A joined PID namespace is that of our children from now on: entered for this one clone, then left again.
    // With a user namespace the usher does that.
    let joined = prepared
        .joins
        .iter()
        .find(|(_, kind)| *kind == NamespaceKind::Pid)
        .filter(|_| prepared.users.is_none());
    let own = joined.map(|_| own_pid_namespace()).transpose()?;
    if let Some((file, _)) = joined {
        kernel::clone::setns(file.as_fd(), libc::CLONE_NEWPID).at(Step::NamespaceJoin, "pid")?;
    }
    let own_time = time::prepare(plan)?;
    let (pid, pidfd, mut warnings) = match users::clone_init(plan, &mut prepared, flags, whose)? {
        (Side::Child, _) => {
            drop((parent, ours));
            child::run(plan, prepared, theirs, channel, keeper)
        }
        (Side::Parent { pid, pidfd }, warnings) => (pid, pidfd, warnings),
    };
    let (users, devices) = (prepared.users.take(), std::mem::take(&mut prepared.net_devices));
    drop((channel, prepared, keeper));
    if let Some(own) = own {
        kernel::clone::setns(own.as_fd(), libc::CLONE_NEWPID).at(Step::NamespaceJoin, "pid")?;
    }
    time::back(own_time)?;
    let set_up =
        from_outside(plan, pid, &parent, &devices).and_then(|()| set_up(&parent)).and_then(|(ready, tty)| {
            if let Some(streams) = &theirs {
                let owner = match users {
                    Some(_) => users::outer_ids(pid, ready.uid, ready.gid)?,
                    None => (ready.uid, ready.gid),
                };
                users::hand_over(streams, owner)?;
            }
            if let (Some(_), Some(process)) = (&users, &plan.process) {
                warnings.extend(credentials::rlimits(Pid::from_raw(pid), &process.rlimits)?);
            }
            Ok((ready, tty))
        });
    let (ready, tty) = set_up.inspect_err(|_| end(&pidfd))?;
    warnings.extend(ready.warnings);
    Ok(Created {
        pid,
        start_time: start_time(pid),
        pidfd,
        stdio: Stdio { tty, ..ours },
        uid: ready.uid,
        gid: ready.gid,
        groups: ready.groups,
        warnings,
        gate: Gate::Ours(parent),
    })
}

const DIED: &str = "it died before it was set up: killed, or out of memory in its cgroup";

/// Waits for init at its gate, and for its terminal where it has one.
fn set_up(child: &Channel) -> Result<(Ready, Option<OwnedFd>)> {
    match child.receive()? {
        Message_::Ready(ready, tty) => Ok((ready, tty)),
        Message_::Failure(failure) => Err(failure),
        Message_::Closed => Err(fail(Step::Clone, "init", 0, DIED)),
    }
}

/// Does what is the host's to do while init, in its namespaces, waits for it: gives it network devices, runs hooks.
fn from_outside(
    plan: &ContainerPlan,
    pid: i32,
    child: &Channel,
    devices: &[net_devices::Device],
) -> Result<()> {
    if !child::waits(plan) {
        return Ok(());
    }
    match child.receive()? {
        Message_::Ready(..) => {}
        Message_::Failure(failure) => return Err(failure),
        Message_::Closed => return Err(fail(Step::Clone, "init", 0, DIED)),
    }
    net_devices::give(devices, pid)?;
    if let Some(hooks) = &plan.hooks {
        let state = hooks::state(&hooks.creating, pid);
        hooks::run(&hooks.prestart, &state)?;
        hooks::run(&hooks.create_runtime, &state)?;
    }
    child.open_gate()
}

/// Runs the hooks after a start, or after an end; what goes wrong is only said.
pub fn late_hooks(hooks: &Hooks, point: Point, pid: i32) {
    let (list, own) = match point {
        Point::Started => (&hooks.poststart, &hooks.running),
        Point::Ended => (&hooks.poststop, &hooks.stopped),
    };
    for failure in hooks::run_all(list, &hooks::state(hooks::pieces(hooks, own), pid)) {
        crate::complain!("berth-shim: hook {}: {}", failure.object, cause(&failure));
    }
}

/// When a late hook is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    Started,
    Ended,
}

/// Puts a device program on a v2 cgroup, in place of what it has.
pub fn attach_device_program(group: &str, program: &[u8]) -> Result<()> {
    let step = Step::DeviceProgram;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = open(group, flags, Mode::empty()).at(step, group)?;
    kernel::bpf::set_device_program(directory.as_fd(), program).map_err(|error| {
        let detail = match error.raw_os_error() {
            Some(libc::ENOSYS) => "this kernel has no eBPF",
            Some(libc::EINVAL) => "the kernel refuses the program, or has no CONFIG_CGROUP_BPF",
            Some(libc::EPERM) => "it needs CAP_BPF and CAP_NET_ADMIN, or a program from above forbids it",
            _ => "",
        };
        fail(step, group, error.raw_os_error().unwrap_or(0), detail)
    })
}

/// Kills what is of no use, waits until it has ended, and reaps it where it is our child. Of a clone that is our parent's
/// that is the parent's to do, who finds it dead.
pub fn end(pidfd: &OwnedFd) {
    // Gone already is as good.
    rustix::process::pidfd_send_signal(pidfd, rustix::process::Signal::KILL).ok();
    while poll(&mut [PollFd::new(pidfd, PollFlags::IN)], None) == Err(rustix::io::Errno::INTR) {}
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
    let mode = plan.stdio.unwrap_or_default().stdin();
    if mode == stdio::Stdin::Inherit {
        return Ok((Stdio::default(), Some(inherited()?)));
    }
    let (stdin, our_stdin) = match mode {
        stdio::Stdin::None | stdio::Stdin::Inherit => (null()?, None),
        stdio::Stdin::Open | stdio::Stdin::Once => {
            let (read, write) = pipe()?;
            (read, Some(write))
        }
    };
    let ((our_stdout, stdout), (our_stderr, stderr)) = (pipe()?, pipe()?);
    let ours = Stdio { stdin: our_stdin, stdout: Some(our_stdout), stderr: Some(our_stderr), tty: None };
    Ok((ours, Some(Streams { stdin, stdout: both_ways(&stdout)?, stderr: both_ways(&stderr)? })))
}

/// Our own three, for a process whose streams are its caller's.
fn inherited() -> Result<Streams> {
    let again = |stream: BorrowedFd<'_>, name| stream.try_clone_to_owned().at(Step::Stdio, name);
    Ok(Streams {
        stdin: again(rustix::stdio::stdin(), "standard input")?,
        stdout: again(rustix::stdio::stdout(), "standard output")?,
        stderr: again(rustix::stdio::stderr(), "standard error")?,
    })
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
