//! Starts shims, finds them again, talks to them. Knows plans, not pods.
//!
//! ```text
//! Launcher::container ── memfd with the plan, Birth from stdout ──> berth-shim
//! Shim ──calls──> connection task ──SOCK_SEQPACKET── berth-shim;  replies by `seq`, events to everybody
//! ```

mod adopt;
mod birth;
mod connection;
mod dial;
mod errand;
mod program;

use std::{io, os::fd::OwnedFd, path::Path, sync::Arc, time::Duration};

use berth_launch::v1::{self as launch, birth::Outcome, reply::Result as Answer, request::Call, sent::By};
use prost::Message;
use tokio::sync::broadcast::{self, error::RecvError};

use self::connection::Connection;
pub use self::{
    connection::{ExecEnd, Reserve},
    program::Program,
};
use crate::{Error, Kind, error::Cause};

/// Why a shim did not do what it was asked.
#[derive(Debug)]
pub enum Fault {
    /// It failed at a step; `oci::explain` says what that means.
    Failed(launch::Failure),
    /// It could not be asked.
    Error(Error),
    /// It went before it answered, if it was asked at all: its container ended, or it died.
    Gone,
}

pub type Result<T> = std::result::Result<T, Fault>;

/// A call that takes longer: likewise.
const CALL: Duration = Duration::from_secs(30);
/// Ending a container goes another way where its shim has not answered for so long.
const ENDING: Duration = Duration::from_secs(5);
/// A shim that has not greeted back after so long is stopped, or hangs: whoever starts does not wait for it.
const GREETING: Duration = Duration::from_secs(2);

const CONNECT: &str = "connect to shim";

/// Starts shims from one program.
#[derive(Debug, Clone)]
pub struct Launcher {
    pub program: Program,
    pub settle: Settle,
}

/// Brings a shim to its place beside a container's v2 directory, where it has one. The container has not begun yet.
pub type Settle = fn(group: &str, shim: u32) -> crate::Result<()>;

impl Launcher {
    /// Makes a pod's namespaces. Returns when they are pinned.
    pub async fn sandbox(&self, plan: &launch::SandboxPlan) -> Result<launch::Ready> {
        let outcome = self.born("sandbox", sealed(&plan.encode_to_vec())?, Path::new(&plan.dir), "").await?;
        ready(outcome, &plan.id)
    }

    /// Brings a container to CREATED. The shim's log goes to `<dir>/shim.log`.
    pub async fn container(&self, plan: &launch::ContainerPlan) -> Result<(Shim, launch::Ready)> {
        let dir = Path::new(&plan.dir);
        let bytes = plan.encode_to_vec();
        let copy = dir.join(berth_launch::PLAN);
        let (path, written) = (copy.display().to_string(), bytes.clone());
        let write = move || std::fs::write(&copy, written);
        birth::on_disk("write plan", path, write).await.map_err(Fault::Error)?;
        let group = plan.cgroup.as_ref().map(|cgroup| cgroup.v2.as_str()).unwrap_or_default();
        let outcome = self.born("container", sealed(&bytes)?, dir, group).await?;
        let ready = ready(outcome, &plan.id)?;
        Ok((self.connect(dir).await.map_err(Fault::Error)?, ready))
    }

    /// Finds the shim of `dir` again.
    ///
    /// # Errors
    /// `NotFound` when nobody answers there; `Deadline` when somebody listens and says nothing.
    pub async fn connect(&self, dir: &Path) -> crate::Result<Shim> {
        let shim = open(dir)?;
        let greeted = shim.greet(CALL).await;
        greeted.map(|()| shim).map_err(|fault| unanswered(dir, fault))
    }

    /// Finds the shim of `dir` again, and does not wait for one that is silent.
    ///
    /// # Errors
    /// `NotFound` when nobody answers there.
    pub async fn find(&self, dir: &Path) -> crate::Result<Found> {
        let shim = open(dir)?;
        match shim.greet(GREETING).await {
            Ok(()) => Ok(Found::Answers(shim)),
            Err(Fault::Error(error)) if error.kind == Kind::Deadline => Ok(Found::Silent(shim)),
            Err(fault) => Err(unanswered(dir, fault)),
        }
    }

    /// `group` is the v2 directory of the container that it looks after.
    async fn born(&self, mode: &'static str, stdin: OwnedFd, dir: &Path, group: &str) -> Result<Outcome> {
        let died = || {
            Fault::Error(
                Error::new(Kind::Internal, "start shim", dir.display().to_string())
                    .because(Cause("it ended without a word".into()))
                    .hint(format!("its log is {}", dir.join("shim.log").display())),
            )
        };
        let program = self.program.executable().await;
        let birth =
            birth::birth(&self.program, &program, mode, stdin, dir, |shim| (self.settle)(group, shim));
        birth.await.map_err(Fault::Error)?.outcome.ok_or_else(died)
    }
}

/// Whom one finds in a shim's directory.
#[derive(Debug)]
pub enum Found {
    Answers(Shim),
    /// Somebody listens and says nothing: stopped, or held up by a disk.
    Silent(Shim),
}

/// The far ends a caller gives to an exec or an attach.
#[derive(Debug, Default)]
pub struct Ends {
    pub stdin: Option<OwnedFd>,
    pub stdout: Option<OwnedFd>,
    pub stderr: Option<OwnedFd>,
}

/// A connection to one container's shim. Cheap to clone; many calls at once.
#[derive(Debug, Clone)]
pub struct Shim(Arc<Connection>);

impl Shim {
    /// Asks it for its status, which `status` tells from then on.
    async fn greet(&self, allowed: Duration) -> Result<()> {
        match self.call(Call::Hello(launch::Hello {}), Ends::default(), allowed).await? {
            (Answer::Status(status), _) => {
                self.0.set_status(status);
                Ok(())
            }
            (other, _) => Err(unexpected(&other)),
        }
    }

    /// Waits until one that was silent speaks, however long that takes; false when it has gone instead.
    pub async fn speaks(&self) -> bool {
        self.greet(Duration::MAX).await.is_ok()
    }

    /// Kills the shim itself with SIGKILL: one that does not answer. Its container is left to a successor.
    ///
    /// # Errors
    /// As of pidfd_open(2) and pidfd_send_signal(2).
    pub fn put_down(&self) -> io::Result<()> {
        self.0.kill_peer()
    }

    /// As the last message said.
    pub fn status(&self) -> launch::Status {
        self.0.status()
    }

    /// What it gave to hold for its successor; afterwards nothing is held.
    pub fn take_reserve(&self) -> Reserve {
        self.0.take_reserve()
    }

    /// Whether both are the same connection.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Whether it has gone, for whatever reason.
    pub fn is_gone(&self) -> bool {
        self.0.is_gone()
    }

    /// Waits until it has gone; false: it has not, after so long.
    pub async fn gone_within(&self, allowed: Duration) -> bool {
        let mut events = self.events();
        let gone = async { while !matches!(events.recv().await, Err(RecvError::Closed)) {} };
        self.is_gone() || tokio::time::timeout(allowed, gone).await.is_ok()
    }

    /// Events from now on; `Err(Closed)` when the shim has gone.
    pub fn events(&self) -> broadcast::Receiver<Arc<launch::Event>> {
        self.0.events()
    }

    /// The end of an exec that is yet to be asked for.
    pub fn exec_end(&self, exec_id: &str) -> ExecEnd {
        self.0.exec_end(exec_id)
    }

    pub async fn start(&self) -> Result<launch::Status> {
        match self.call(Call::Start(launch::Start {}), Ends::default(), CALL).await? {
            (Answer::Status(status), _) => Ok(status),
            (other, _) => Err(unexpected(&other)),
        }
    }

    pub async fn kill(&self, signal: u32, all: bool) -> Result<()> {
        self.done(Call::Kill(launch::Kill { signal, all }), CALL).await
    }

    /// Answers when the signal is sent; the exit comes as an event. A silent shim has the grace time to answer.
    pub async fn stop(&self, signal: u32, grace_ms: u64) -> Result<()> {
        let allowed = Duration::from_millis(grace_ms).clamp(ENDING, CALL);
        self.done(Call::Stop(launch::Stop { signal, grace_ms }), allowed).await
    }

    /// Starts a process; with a tty the master comes back.
    pub async fn exec(
        &self,
        exec: launch::Exec,
        ends: Ends,
    ) -> Result<(launch::ExecStarted, Option<OwnedFd>)> {
        let exec = launch::Exec {
            has_stdin: ends.stdin.is_some(),
            has_stdout: ends.stdout.is_some(),
            has_stderr: ends.stderr.is_some(),
            ..exec
        };
        match self.call(Call::Exec(exec), ends, CALL).await? {
            (Answer::ExecStarted(started), master) => Ok((started, master)),
            (other, _) => Err(unexpected(&other)),
        }
    }

    pub async fn exec_kill(&self, exec_id: &str, signal: u32) -> Result<()> {
        self.done(Call::ExecKill(launch::ExecKill { exec_id: exec_id.into(), signal }), CALL).await
    }

    pub async fn resize(&self, exec_id: &str, rows: u32, columns: u32) -> Result<()> {
        self.done(Call::Resize(launch::Resize { exec_id: exec_id.into(), rows, columns }), CALL).await
    }

    pub async fn reopen_log(&self) -> Result<()> {
        self.done(Call::ReopenLog(launch::ReopenLog {}), CALL).await
    }

    pub async fn attach(&self, ends: Ends) -> Result<()> {
        let attach = launch::Attach {
            has_stdin: ends.stdin.is_some(),
            has_stdout: ends.stdout.is_some(),
            has_stderr: ends.stderr.is_some(),
        };
        match self.call(Call::Attach(attach), ends, CALL).await? {
            (Answer::Done(_), _) => Ok(()),
            (other, _) => Err(unexpected(&other)),
        }
    }

    /// Kills all of it, said to be by that; the shim leaves.
    pub async fn shutdown(&self, by: By) -> Result<()> {
        self.done(Call::Shutdown(launch::Shutdown { by: by.into() }), ENDING).await
    }

    async fn done(&self, call: Call, allowed: Duration) -> Result<()> {
        match self.call(call, Ends::default(), allowed).await? {
            (Answer::Done(_), _) => Ok(()),
            (other, _) => Err(unexpected(&other)),
        }
    }

    async fn call(&self, call: Call, ends: Ends, allowed: Duration) -> Result<(Answer, Option<OwnedFd>)> {
        const OP: &str = "ask shim";
        let fds = [ends.stdin, ends.stdout, ends.stderr].into_iter().flatten().collect();
        match tokio::time::timeout(allowed, self.0.call(call, fds)).await {
            Ok(Some((Answer::Failure(failure), _))) => Err(Fault::Failed(failure)),
            Ok(Some((Answer::Unsupported(lacking), _))) => Err(Fault::Error(
                Error::new(Kind::Unimplemented, OP, lacking.features.join(", "))
                    .because(Cause("this container's shim is older than berthd".into()))
                    .hint("restart the container"),
            )),
            Ok(Some(answer)) => Ok(answer),
            Ok(None) => Err(Fault::Gone),
            Err(_) => Err(Fault::Error(
                Error::new(Kind::Deadline, OP, "of the container")
                    .because(Cause(format!("it did not answer for {allowed:?}"))),
            )),
        }
    }
}

/// A connection to whoever listens in a shim's directory; nothing is said yet.
fn open(dir: &Path) -> crate::Result<Shim> {
    let shown = || dir.display().to_string();
    let socket = connection::connect(dir).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            Error::new(Kind::NotFound, CONNECT, shown()).because(error)
        }
        _ => Error::io(CONNECT, shown(), error),
    })?;
    let connection = Connection::open(socket).map_err(|error| Error::io(CONNECT, shown(), error))?;
    Ok(Shim(Arc::new(connection)))
}

fn unanswered(dir: &Path, fault: Fault) -> Error {
    match fault {
        Fault::Error(error) => Error::new(error.kind, CONNECT, dir.display().to_string()).because(error),
        Fault::Gone => {
            Error::not_found(CONNECT, dir.display().to_string()).because(Cause("it has gone".into()))
        }
        Fault::Failed(failure) => {
            Error::new(Kind::Internal, CONNECT, dir.display().to_string()).because(Cause(failure.detail))
        }
    }
}

fn sealed(plan: &[u8]) -> Result<OwnedFd> {
    birth::sealed(plan).map_err(|error| Fault::Error(Error::io("start shim", "plan", error)))
}

fn ready(outcome: Outcome, id: &str) -> Result<launch::Ready> {
    match outcome {
        Outcome::Ready(ready) => Ok(ready),
        Outcome::Failure(failure) => Err(Fault::Failed(failure)),
        Outcome::Unsupported(lacking) => Err(Fault::Error(
            Error::new(Kind::Unimplemented, "start shim", id)
                .because(Cause(format!("berth-shim lacks {}", lacking.features.join(", "))))
                .hint("install berthd and berth-shim of one version"),
        )),
    }
}

fn unexpected(answer: &Answer) -> Fault {
    Fault::Error(Error::new(Kind::Internal, "ask shim", "of the container").because(odd(answer)))
}

fn odd(answer: &Answer) -> Cause {
    Cause(format!("it answered out of turn: {answer:?}"))
}
