//! One call of an OCI runtime: a short process with the streams it passes on, told by its exit and the last line of its
//! log. Terminals come back by a socket, as runc's `--console-socket` says.

use std::{
    ffi::{OsStr, OsString},
    fs,
    io::IoSliceMut,
    mem::MaybeUninit,
    os::{
        fd::{AsFd, OwnedFd},
        unix::process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Command as Program, Stdio},
    time::Duration,
};

use berth_launch::v1::{Failure, Process, Runtime, Step};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketAddrUnix, SocketFlags,
        SocketType, accept_with, bind, listen, recvmsg, socket_with,
    },
    process::{WaitId, WaitIdOptions, waitid},
};

use super::{
    child::Streams,
    end,
    failure::{At, Result, fail},
    null, prepare, terminal,
};
use crate::{
    clock,
    kernel::{
        self,
        clone::{Parent, Side},
    },
};

/// A runtime that takes longer hangs: as long as the daemon waits for a call.
const PATIENCE: Duration = Duration::from_secs(25);
/// More of its last line is not told.
const LINE_BYTES: usize = 1024;
const LOG: &str = "runtime.log";

/// A call that is put together.
#[derive(Debug)]
pub struct Command<'a> {
    runtime: &'a Runtime,
    verb: &'static str,
    args: Vec<OsString>,
    streams: Option<Streams>,
    cgroup: Option<OwnedFd>,
}

impl<'a> Command<'a> {
    pub fn new(runtime: &'a Runtime, verb: &'static str) -> Self {
        Self { runtime, verb, args: Vec::new(), streams: None, cgroup: None }
    }

    pub fn arg(&mut self, arg: impl AsRef<OsStr>) -> &mut Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    pub fn args<const N: usize>(&mut self, args: [&str; N]) -> &mut Self {
        self.args.extend(args.map(OsString::from));
        self
    }

    pub fn console(&mut self, console: Option<&Console>) -> &mut Self {
        if let Some(console) = console {
            self.arg("--console-socket").arg(&console.path);
        }
        self
    }

    /// What the process that it starts gets; else nothing to read, and our log.
    pub fn streams(&mut self, streams: Option<Streams>) -> &mut Self {
        self.streams = streams;
        self
    }

    /// In that v2 group from birth, and so what it starts.
    pub fn within(&mut self, group: Option<&Path>) -> Result<&mut Self> {
        let directory = |group: &Path| {
            prepare::cgroup_v2(&berth_launch::v1::Cgroup {
                v2: group.to_string_lossy().into_owned(),
                ..Default::default()
            })
        };
        self.cgroup = group.map(directory).transpose()?.flatten();
        Ok(self)
    }

    /// Runs it to its end.
    pub fn run(&mut self) -> Result<()> {
        let program = self.runtime.program.as_str();
        // Of a call before this one; there is none in most cases.
        fs::remove_file(LOG).ok();
        let streams = match self.streams.take() {
            Some(streams) => streams,
            None => own_streams()?,
        };
        let cloned = kernel::clone::clone3(0, self.cgroup.as_ref().map(AsFd::as_fd), Parent::Us);
        let pidfd = match cloned.at(Step::Runtime, program)? {
            Side::Child => self.become_program(streams),
            Side::Parent { pidfd, .. } => pidfd,
        };
        drop(streams);
        if !ended_within(&pidfd, PATIENCE) {
            end(&pidfd);
            let detail =
                format!("its `{}` took longer than {} s and was killed", self.verb, PATIENCE.as_secs());
            return Err(fail(Step::Runtime, program, 0, &detail));
        }
        let status =
            waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED).at(Step::Runtime, program)?;
        match status.and_then(|status| status.exit_status()) {
            Some(0) => Ok(()),
            Some(NO_PROGRAM) => Err(fail(Step::Runtime, program, libc::ENOENT, "")),
            code => Err(self.failed(code)),
        }
    }

    fn failed(&self, code: Option<i32>) -> Failure {
        let said = fs::read(LOG).map(|log| last_message(&String::from_utf8_lossy(&log))).unwrap_or_default();
        let how = match code {
            Some(code) => format!("its `{}` ended with {code}", self.verb),
            None => format!("its `{}` was killed", self.verb),
        };
        let detail = if said.is_empty() { how } else { format!("{how}: {said}") };
        fail(Step::Runtime, &self.runtime.program, 0, &detail)
    }

    fn become_program(&self, streams: Streams) -> ! {
        // What we ignore, a container's program would ignore too.
        kernel::signal::reset();
        kernel::exec::setsid();
        let placed = [(&streams.stdin, 0), (&streams.stdout, 1), (&streams.stderr, 2)]
            .into_iter()
            .try_for_each(|(stream, number)| terminal::place(stream, number));
        if placed.is_ok() {
            let mut program = Program::new(&self.runtime.program);
            program.args(&self.runtime.args);
            program.args(["--root", self.runtime.root.as_str(), "--log", LOG, self.verb]).args(&self.args);
            program.env_clear().env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
            let error = program.stdin(Stdio::inherit()).exec();
            if error.kind() == std::io::ErrorKind::NotFound {
                kernel::clone::exit_now(NO_PROGRAM);
            }
        }
        kernel::clone::exit_now(126)
    }
}

/// What our own child says of a program that is not there; runtimes don't.
const NO_PROGRAM: i32 = 127;

fn own_streams() -> Result<Streams> {
    let log = || rustix::stdio::stderr().try_clone_to_owned().at(Step::Stdio, "standard error");
    Ok(Streams { stdin: null()?, stdout: log()?, stderr: log()? })
}

fn ended_within(pidfd: &OwnedFd, within: Duration) -> bool {
    let deadline = clock::monotonic().saturating_add(within);
    loop {
        let left = deadline.saturating_sub(clock::monotonic());
        if left.is_zero() {
            return false;
        }
        let timeout = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
        if poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&timeout)).is_ok_and(|ready| ready > 0) {
            return true;
        }
    }
}

/// The message of a log's last line: what follows `msg=` where it is logrus's, else the line.
fn last_message(log: &str) -> String {
    let line = log.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
    let message = match line.split_once("msg=") {
        Some((_, message)) => message.trim().trim_matches('"').replace("\\\"", "\""),
        None => line.trim().to_owned(),
    };
    message.chars().take(LINE_BYTES).collect()
}

/// A socket on which a runtime sends the terminal that it has made.
#[derive(Debug)]
pub struct Console {
    socket: OwnedFd,
    path: PathBuf,
    size: (u32, u32),
}

impl Console {
    /// For a process with a terminal.
    pub fn of(process: &Process) -> Result<Option<Self>> {
        if !process.tty {
            return Ok(None);
        }
        // Relative: no directory is too deep for it.
        let path = PathBuf::from("console");
        // One that a call before this one has left.
        fs::remove_file(&path).ok();
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
            .and_then(|socket| {
                bind(&socket, &SocketAddrUnix::new(&path)?)?;
                listen(&socket, 1)?;
                Ok(socket)
            })
            .at(Step::Pty, &path)?;
        Ok(Some(Self { socket, path, size: (process.rows, process.columns) }))
    }

    /// Takes the terminal; the runtime has ended, so it is there or never comes.
    pub fn receive(self) -> Result<OwnedFd> {
        let none = || fail(Step::Pty, &self.path, 0, "the runtime has sent no terminal");
        let waiting = Timespec { tv_sec: 5, tv_nsec: 0 };
        if !poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], Some(&waiting)).is_ok_and(|ready| ready > 0)
        {
            return Err(none());
        }
        let sender = accept_with(&self.socket, SocketFlags::CLOEXEC).at(Step::Pty, &self.path)?;
        let mut name = [0u8; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        recvmsg(&sender, &mut [IoSliceMut::new(&mut name)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)
            .at(Step::Pty, &self.path)?;
        let sent = ancillary.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        let master = sent.ok_or_else(none)?;
        if self.size.0 != 0 && self.size.1 != 0 {
            terminal::resize(&master, self.size.0, self.size.1).at(Step::Pty, &self.path)?;
        }
        Ok(master)
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        // It goes with the directory where it can't be removed now.
        fs::remove_file(&self.path).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runtimes_last_word_is_told_however_it_logs() {
        let logrus = "time=\"x\" level=warning msg=\"one\"\ntime=\"x\" level=error msg=\"exec: \\\"nope\\\": not found\"\n";
        assert_eq!(last_message(logrus), "exec: \"nope\": not found");
        assert_eq!(last_message("cannot open\n\n"), "cannot open");
        assert_eq!(last_message(""), "");
    }
}
