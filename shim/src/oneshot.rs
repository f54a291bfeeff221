//! The one-shot mode, for `berth oci`: a container's init, or one more process of it, for a supervisor outside, and then
//! nothing of ours stays. The plan and the pipe for the answer are inherited descriptors, the standard streams are the
//! program's; see `Outside` in `launch.proto`.

use std::{
    fs::File,
    io::{IoSlice, Read, Write},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    process::ExitCode,
};

use berth_launch::needs;
use berth_launch::v1::{
    Birth, ContainerPlan, Failure, Outside, OutsideExec, Ready, SetDevices, Step, birth::Outcome,
};
use prost::Message;
use rustix::{
    fs::Mode,
    net::{
        AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags,
        SocketType,
    },
    process::{Pid, PidfdFlags, pidfd_open},
};

use crate::{
    failed, kernel, lacking,
    launch::{self, Created, Keeper},
};

/// `berth-shim oneshot PLAN ANSWER`.
#[inline(never)]
pub fn create() -> ExitCode {
    answer(|plan: ContainerPlan| match lacking(plan.version, &plan.needs, &needs::container(&plan)) {
        Some(unsupported) => Outcome::Unsupported(unsupported),
        None => outcome(init(&plan)),
    })
}

/// `berth-shim oneshot-exec PLAN ANSWER`.
#[inline(never)]
pub fn exec() -> ExitCode {
    answer(|plan: OutsideExec| match lacking(plan.version, &plan.needs, &of_exec(&plan)) {
        Some(unsupported) => Outcome::Unsupported(unsupported),
        None => outcome(beside(&plan)),
    })
}

/// `berth-shim signal PIDFD NUMBER`, for the numbers that `berth oci` can't send itself.
#[inline(never)]
pub fn signal() -> ExitCode {
    let mut numbers = std::env::args().skip(2).map(|word| word.parse::<i32>().ok());
    let process = numbers.next().flatten().and_then(|number| kernel::exec::inherited(number).ok());
    let wanted = numbers.next().flatten().and_then(kernel::signal::numbered);
    let (Some(process), Some(wanted)) = (process, wanted) else {
        crate::complain!("berth-shim: signal takes the descriptor of a process and the number of a signal");
        return ExitCode::from(2);
    };
    match rustix::process::pidfd_send_signal(&process, wanted) {
        // Gone already is as good.
        Ok(()) | Err(rustix::io::Errno::SRCH) => ExitCode::SUCCESS,
        Err(errno) => {
            crate::complain!("berth-shim: send signal {}: {errno}", wanted.as_raw());
            ExitCode::FAILURE
        }
    }
}

/// `berth-shim devices PROGRAM GROUP`: other device rules for a container that runs.
#[inline(never)]
pub fn devices() -> ExitCode {
    let mut words = std::env::args().skip(2);
    let program = words.next().and_then(|word| word.parse::<i32>().ok()).map(kernel::exec::inherited);
    let (Some(Ok(program)), Some(group)) = (program, words.next()) else {
        crate::complain!("berth-shim: devices takes the descriptor of a program and a cgroup's directory");
        return ExitCode::from(2);
    };
    let set = read::<SetDevices>(program)
        .and_then(|set| launch::attach_device_program(&group, &set.device_program));
    match set {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            crate::complain!("{}", launch::cause(&failure));
            ExitCode::FAILURE
        }
    }
}

fn of_exec(plan: &OutsideExec) -> Vec<String> {
    let process = plan.exec.as_ref().and_then(|exec| exec.process.as_ref());
    process.map(needs::process).unwrap_or_default()
}

fn answer<P: Message + Default>(launch: impl FnOnce(P) -> Outcome) -> ExitCode {
    let mut numbers = std::env::args().skip(2).map(|word| word.parse().ok().map(kernel::exec::inherited));
    let (Some(Some(Ok(plan))), Some(Some(Ok(answer)))) = (numbers.next(), numbers.next()) else {
        crate::complain!("berth-shim: started by `berth oci`, with the descriptors of a plan and of a pipe");
        return ExitCode::from(2);
    };
    let outcome = match read(plan) {
        Ok(plan) => launch(plan),
        Err(failure) => Outcome::Failure(failure),
    };
    let bytes = Birth { outcome: Some(outcome) }.encode_to_vec();
    match File::from(answer).write_all(&bytes) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn outcome(result: Result<Ready, Failure>) -> Outcome {
    match result {
        Ok(ready) => Outcome::Ready(ready),
        Err(failure) => Outcome::Failure(failure),
    }
}

fn read<P: Message + Default>(plan: OwnedFd) -> Result<P, Failure> {
    let mut bytes = Vec::new();
    File::from(plan).read_to_end(&mut bytes).map_err(|error| failed(Step::Plan, "plan", error))?;
    P::decode(bytes.as_slice()).map_err(|error| Failure {
        step: Step::Plan.into(),
        errno: 0,
        object: "plan".into(),
        detail: error.to_string(),
    })
}

/// Init, set up and waiting at its start socket.
fn init(plan: &ContainerPlan) -> Result<Ready, Failure> {
    let none = Outside::default();
    let outside = plan.outside.as_ref().unwrap_or(&none);
    let console = console(outside)?;
    std::env::set_current_dir(&plan.dir).map_err(|error| failed(Step::Socket, &plan.dir, error))?;
    let socket =
        listen(&outside.start_socket).map_err(|error| failed(Step::Socket, &outside.start_socket, error))?;
    let entered = launch::rootless::is_rootless().then(|| launch::rootless::enter(plan)).transpose();
    let created =
        entered.and_then(|entered| launch::create(entered.as_ref().unwrap_or(plan), Keeper::Outside(socket)));
    let sent = created.and_then(|created| {
        let sent = send_terminal(console, created.stdio.tty.as_ref());
        // With nobody at its terminal it would wait for ever.
        sent.inspect_err(|_| launch::end(&created.pidfd))?;
        Ok(ready(created))
    });
    // A failure leaves nothing; the socket's name is all that there is of us.
    sent.inspect_err(|_| {
        std::fs::remove_file(&outside.start_socket).ok();
    })
}

fn ready(created: Created) -> Ready {
    Ready {
        shim_pid: 0,
        pid: created.pid,
        pid_start_time: created.start_time,
        uid: created.uid,
        gid: created.gid,
        groups: created.groups,
        warnings: created.warnings,
    }
}

/// A process beside init, executed already.
fn beside(plan: &OutsideExec) -> Result<Ready, Failure> {
    let none = Outside::default();
    let console = console(plan.outside.as_ref().unwrap_or(&none))?;
    let gone = || Failure {
        step: Step::NamespaceJoin.into(),
        errno: libc::ESRCH,
        object: "init".into(),
        detail: "the container's init is gone".into(),
    };
    let pid = Pid::from_raw(plan.pid).ok_or_else(gone)?;
    let init = pidfd_open(pid, PidfdFlags::empty()).map_err(|_| gone())?;
    // Held now: a start time that is right stays right.
    if launch::start_time(plan.pid) != plan.pid_start_time {
        return Err(gone());
    }
    let execed = launch::exec_outside(plan, init.as_fd())?;
    send_terminal(console, execed.master.as_ref()).inspect_err(|_| launch::end(&execed.pidfd))?;
    Ok(Ready { pid: execed.pid, pid_start_time: launch::start_time(execed.pid), ..Ready::default() })
}

fn listen(name: &str) -> std::io::Result<OwnedFd> {
    let kind = SocketType::SEQPACKET;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
    // Who may start the container is who may enter its directory; umask is the caller's and says nothing of that.
    let umask = rustix::process::umask(Mode::from(0o077));
    let bound = rustix::net::bind(&socket, &SocketAddrUnix::new(name)?);
    rustix::process::umask(umask);
    bound?;
    rustix::net::listen(&socket, 8)?;
    Ok(socket)
}

/// Connects to where the terminal is wanted, before anything is made.
fn console(outside: &Outside) -> Result<Option<OwnedFd>, Failure> {
    let path = outside.console_socket.as_str();
    if path.is_empty() {
        return Ok(None);
    }
    connect(Path::new(path)).map(Some).map_err(|error| failed(Step::Pty, path, error))
}

fn connect(path: &Path) -> std::io::Result<OwnedFd> {
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

/// Sends the pty master, with the name that peers send, to whoever holds the terminal from now on.
fn send_terminal(console: Option<OwnedFd>, master: Option<&OwnedFd>) -> Result<(), Failure> {
    let (Some(console), Some(master)) = (console, master) else { return Ok(()) };
    let fds: [BorrowedFd<'_>; 1] = [master.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    rustix::net::sendmsg(&console, &[IoSlice::new(b"/dev/ptmx")], &mut ancillary, SendFlags::NOSIGNAL)
        .map_err(|errno| failed(Step::Pty, "console socket", errno.into()))?;
    Ok(())
}
