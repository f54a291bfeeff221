//! One health check as a process: a command beside init, or a child of ours that goes into the container's network and
//! connects. Whatever hangs is the process, never the shim.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    os::fd::{BorrowedFd, OwnedFd},
    path::PathBuf,
    time::Duration,
};

use berth_launch::v1::{ContainerPlan, Exec, Failure, HttpCheck, Step, TcpCheck, health::Check};
use rustix::{
    io::Errno,
    pipe::{PipeFlags, pipe_with},
    process::{Signal, pidfd_send_signal, set_parent_process_death_signal},
};

use crate::{
    group,
    kernel::{
        self,
        clone::{Parent, Side, clone3, exit_now, setns},
    },
    launch,
};

/// So much of what a check writes is kept.
const OUTPUT_BYTES: usize = 4096;
/// A status line is not longer.
const STATUS_BYTES: usize = 1024;

/// A check under way.
#[derive(Debug)]
pub struct Probe {
    pub pidfd: OwnedFd,
    cgroup: Option<PathBuf>,
    /// None once all is read.
    pub output: Option<OwnedFd>,
    pub said: Vec<u8>,
    /// Unix nanoseconds.
    pub started_at: i64,
    pub deadline: Duration,
    /// Its time was up, and that has been told: it only has to end yet.
    pub told: bool,
}

impl Probe {
    /// Begins a check. `plan` is the whole one: the supervisor keeps no command.
    pub fn begin(
        plan: &ContainerPlan,
        init: BorrowedFd<'_>,
        started_at: i64,
        deadline: Duration,
    ) -> Result<Self, Failure> {
        let failed = |errno: Errno| crate::failed(Step::Stdio, "pipe", errno.into());
        let (output, theirs) = pipe_with(PipeFlags::CLOEXEC).map_err(failed)?;
        rustix::io::ioctl_fionbio(&output, true).map_err(failed)?;
        let check = plan.health.as_ref().and_then(|health| health.check.as_ref());
        let (pidfd, cgroup) = match check {
            Some(Check::Command(process)) => {
                let exec = Exec {
                    // The time makes it another's than that of a check before.
                    exec_id: format!("health-{started_at:x}"),
                    process: Some(process.clone()),
                    has_stdout: true,
                    has_stderr: true,
                    ..Exec::default()
                };
                let again = theirs.try_clone().map_err(|error| crate::failed(Step::Stdio, "pipe", error))?;
                let execed = launch::exec(plan, init, &exec, vec![theirs, again])?;
                (execed.pidfd, execed.cgroup)
            }
            Some(Check::Http(http)) => (beside(init, theirs, |output| ask(http, output))?, None),
            Some(Check::Tcp(tcp)) => (beside(init, theirs, |output| knock(tcp, output))?, None),
            None => {
                return Err(Failure {
                    step: Step::Plan.into(),
                    object: "health".into(),
                    detail: "the plan says no check".into(),
                    ..Failure::default()
                });
            }
        };
        let said = Vec::new();
        Ok(Self { pidfd, cgroup, output: Some(output), said, started_at, deadline, told: false })
    }

    /// Ends it with all that it has started.
    pub fn kill(&self) {
        if let Some(cgroup) = &self.cgroup {
            // Where there is no such file, the one below is all that can be done.
            group::kill_directory(cgroup).ok();
        }
        // Ended in between is as good.
        pidfd_send_signal(&self.pidfd, Signal::KILL).ok();
    }

    /// Takes what it has written by now.
    pub fn read(&mut self) {
        let mut buffer = [0; 1024];
        while let Some(output) = &self.output {
            match rustix::io::read(output, &mut buffer) {
                Ok(0) => self.output = None,
                Ok(length) => {
                    let room = OUTPUT_BYTES.saturating_sub(self.said.len());
                    self.said.extend_from_slice(&buffer[..length.min(room)]);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(_) => self.output = None,
            }
        }
    }

    /// What it leaves: its cgroup, where it has one.
    pub fn take_cgroup(&mut self) -> Option<PathBuf> {
        self.cgroup.take()
    }
}

/// Does something in the container's network, in a child of ours that ends with us and holds nothing else of ours.
fn beside(
    init: BorrowedFd<'_>,
    output: OwnedFd,
    work: impl FnOnce(&mut dyn Write) -> io::Result<bool>,
) -> Result<OwnedFd, Failure> {
    match clone3(0, None, Parent::Us) {
        Ok(Side::Child) => {
            // A dead shim's check is nobody's. Where that is refused it ends by itself.
            set_parent_process_death_signal(Some(Signal::KILL)).ok();
            let entered =
                setns(init, libc::CLONE_NEWNET).and_then(|()| Ok(rustix::stdio::dup2_stdout(&output)?));
            // Copies of clients' sockets and of streams would hide their ends from those who wait for them.
            kernel::exec::close_from(3);
            let mut said = io::stdout();
            let passed = entered.and_then(|()| work(&mut said));
            if let Err(error) = &passed {
                // Nobody reads it any more where this fails.
                writeln!(said, "{error}").ok();
            }
            said.flush().ok();
            exit_now(if passed.unwrap_or(false) { 0 } else { 1 })
        }
        Ok(Side::Parent { pidfd, .. }) => Ok(pidfd),
        Err(error) => Err(crate::failed(Step::Clone, "health check", error)),
    }
}

/// Whether the container answers GET with a status from 200 to 399. RFC 9112, section 4; as HTTP/1.0, to which no server
/// sends an interim answer.
fn ask(check: &HttpCheck, said: &mut dyn Write) -> io::Result<bool> {
    let mut stream = connect(&check.host, check.port)?;
    let host = match check.host.as_str() {
        "" => "localhost".to_owned(),
        v6 if v6.contains(':') => format!("[{v6}]"),
        v4 => v4.to_owned(),
    };
    let HttpCheck { port, path, .. } = check;
    write!(
        stream,
        "GET {path} HTTP/1.0\r\nHost: {host}:{port}\r\nUser-Agent: berth-health\r\nConnection: close\r\n\r\n"
    )?;
    let line = first_line(&mut stream.take(STATUS_BYTES as u64))?;
    said.write_all(line.trim_ascii_end())?;
    let status = status(&line).ok_or_else(|| io::Error::other("the answer is no HTTP"))?;
    Ok((200..400).contains(&status))
}

/// Reads up to the first newline.
fn first_line(from: &mut impl Read) -> io::Result<Vec<u8>> {
    let (mut line, mut buffer) = (Vec::new(), [0; 256]);
    loop {
        let length = from.read(&mut buffer)?;
        let end = buffer[..length].iter().position(|byte| *byte == b'\n');
        line.extend_from_slice(&buffer[..end.unwrap_or(length)]);
        if length == 0 || end.is_some() {
            return Ok(line);
        }
    }
}

/// The number in `HTTP/1.1 200 OK`.
fn status(line: &[u8]) -> Option<u16> {
    let text = std::str::from_utf8(line).ok()?.strip_prefix("HTTP/")?;
    let number = text.split(' ').nth(1)?.trim_ascii_end();
    (number.len() == 3).then(|| number.parse().ok()).flatten()
}

fn knock(check: &TcpCheck, _: &mut dyn Write) -> io::Result<bool> {
    connect(&check.host, check.port).map(|_| true)
}

/// At the address; without one at 127.0.0.1, else at ::1: the first failure is then the one to tell.
fn connect(host: &str, port: u32) -> io::Result<TcpStream> {
    let port = u16::try_from(port).map_err(io::Error::other)?;
    let at = |ip: IpAddr| {
        let to = SocketAddr::new(ip, port);
        TcpStream::connect(to).map_err(|error| io::Error::other(format!("connect to {to}: {error}")))
    };
    match host {
        "" => {
            at(Ipv4Addr::LOCALHOST.into()).or_else(|first| at(Ipv6Addr::LOCALHOST.into()).map_err(|_| first))
        }
        host => at(host.parse().map_err(io::Error::other)?),
    }
}

/// Where a failure to begin a check is told like one's end.
pub fn failure(failure: &Failure) -> (i32, String) {
    (crate::run::exit_code(failure), format!("{}: {}", failure.object, launch::cause(failure)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_read_from_what_servers_say_and_from_nothing_else() {
        let rows: [(&[u8], _); 8] = [
            (b"HTTP/1.1 200 OK\r", Some(200)),
            (b"HTTP/1.0 404", Some(404)),
            (b"HTTP/2 503 x", Some(503)),
            (b"HTTP/1.1 2000 OK", None),
            (b"HTTP/1.1", None),
            (b"SSH-2.0-OpenSSH", None),
            (b"\xff\xff", None),
            (b"", None),
        ];
        for (line, expected) in rows {
            assert_eq!(status(line), expected, "{}", String::from_utf8_lossy(line));
        }
    }

    #[test]
    fn a_line_is_read_up_to_its_end_and_not_beyond_what_is_allowed() {
        let line = first_line(&mut &b"HTTP/1.1 200 OK\r\nServer: x\r\n\r\n"[..]).unwrap();
        assert_eq!(line, b"HTTP/1.1 200 OK\r");
        let endless = first_line(&mut io::repeat(b'x').take(STATUS_BYTES as u64)).unwrap();
        assert_eq!(endless.len(), STATUS_BYTES);
    }
}
