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

use std::{
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use berth_launch::v1::{self as launch, birth::Outcome, reply::Result as Answer, request::Call};
use prost::Message;
use tokio::sync::broadcast;

use self::connection::Connection;
pub use self::connection::Reserve;
use crate::{Error, Kind, error::Cause};

/// Why a shim did not do what it was asked.
#[derive(Debug)]
pub enum Fault {
    /// It failed at a step; `oci::explain` says what that means.
    Failed(launch::Failure),
    /// It could not be asked.
    Error(Error),
}

pub type Result<T> = std::result::Result<T, Fault>;

/// A birth that takes longer hangs on a dead disk or network file system.
const BIRTH: Duration = Duration::from_secs(60);
/// A call that takes longer: likewise.
const CALL: Duration = Duration::from_secs(30);

/// Starts shims from one program.
#[derive(Debug, Clone)]
pub struct Launcher {
    pub program: PathBuf,
}

impl Launcher {
    /// Makes a pod's namespaces. Returns when they are pinned.
    pub async fn sandbox(&self, plan: &launch::SandboxPlan) -> Result<launch::Ready> {
        let outcome = self.born("sandbox", sealed(&plan.encode_to_vec())?, Path::new(&plan.dir)).await?;
        ready(outcome, &plan.id)
    }

    /// Brings a container to CREATED. The shim's log goes to `<dir>/shim.log`.
    pub async fn container(&self, plan: &launch::ContainerPlan) -> Result<(Shim, launch::Ready)> {
        let dir = Path::new(&plan.dir);
        let bytes = plan.encode_to_vec();
        let copy = dir.join(berth_launch::PLAN);
        std::fs::write(&copy, &bytes)
            .map_err(|error| Fault::Error(Error::io("write plan", copy.display().to_string(), error)))?;
        let outcome = self.born("container", sealed(&bytes)?, dir).await?;
        let ready = ready(outcome, &plan.id)?;
        Ok((self.connect(dir).await.map_err(Fault::Error)?, ready))
    }

    /// Finds the shim of `dir` again.
    ///
    /// # Errors
    /// `NotFound` when nobody answers there.
    pub async fn connect(&self, dir: &Path) -> crate::Result<Shim> {
        const OP: &str = "connect to shim";
        let shown = || dir.display().to_string();
        let socket = connection::connect(dir).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                Error::new(Kind::NotFound, OP, shown()).because(error)
            }
            _ => Error::io(OP, shown(), error),
        })?;
        let connection = Connection::open(socket).map_err(|error| Error::io(OP, shown(), error))?;
        let shim = Shim(Arc::new(connection));
        match shim.call(Call::Hello(launch::Hello {}), Ends::default(), CALL).await {
            Ok((Answer::Status(status), _)) => {
                shim.0.set_status(status);
                Ok(shim)
            }
            Ok((other, _)) => Err(Error::new(Kind::Internal, OP, shown()).because(odd(&other))),
            Err(Fault::Error(error)) => Err(Error::new(Kind::NotFound, OP, shown()).because(error)),
            Err(Fault::Failed(failure)) => {
                Err(Error::new(Kind::Internal, OP, shown()).because(Cause(failure.detail)))
            }
        }
    }

    async fn born(&self, mode: &'static str, stdin: OwnedFd, dir: &Path) -> Result<Outcome> {
        let died = || {
            Fault::Error(
                Error::new(Kind::Internal, "start shim", dir.display().to_string())
                    .because(Cause("it ended without a word".into()))
                    .hint(format!("its log is {}", dir.join("shim.log").display())),
            )
        };
        let birth = birth::birth(&self.program, mode, stdin, dir);
        match tokio::time::timeout(BIRTH, birth).await {
            Ok(Ok(birth)) => birth.outcome.ok_or_else(died),
            Ok(Err(error)) => Err(Fault::Error(error)),
            Err(_) => Err(Fault::Error(
                Error::new(Kind::Deadline, "start shim", dir.display().to_string())
                    .because(Cause(format!("it said nothing for {BIRTH:?}"))),
            )),
        }
    }
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
    /// As the last message said.
    pub fn status(&self) -> launch::Status {
        self.0.status()
    }

    /// What it gave to hold for its successor; afterwards nothing is held.
    pub fn take_reserve(&self) -> Reserve {
        self.0.take_reserve()
    }

    /// Whether it has gone, for whatever reason.
    pub fn is_gone(&self) -> bool {
        self.0.is_gone()
    }

    /// Events from now on; `Err(Closed)` when the shim has gone.
    pub fn events(&self) -> broadcast::Receiver<launch::Event> {
        self.0.events()
    }

    pub async fn start(&self) -> Result<launch::Status> {
        match self.call(Call::Start(launch::Start {}), Ends::default(), CALL).await? {
            (Answer::Status(status), _) => Ok(status),
            (other, _) => Err(unexpected(&other)),
        }
    }

    pub async fn kill(&self, signal: u32, all: bool) -> Result<()> {
        self.done(Call::Kill(launch::Kill { signal, all })).await
    }

    /// Answers when the signal is sent; the exit comes as an event.
    pub async fn stop(&self, signal: u32, grace_ms: u64) -> Result<()> {
        self.done(Call::Stop(launch::Stop { signal, grace_ms })).await
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
        self.done(Call::ExecKill(launch::ExecKill { exec_id: exec_id.into(), signal })).await
    }

    pub async fn resize(&self, exec_id: &str, rows: u32, columns: u32) -> Result<()> {
        self.done(Call::Resize(launch::Resize { exec_id: exec_id.into(), rows, columns })).await
    }

    pub async fn reopen_log(&self) -> Result<()> {
        self.done(Call::ReopenLog(launch::ReopenLog {})).await
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

    /// Kills all of it; the shim leaves.
    pub async fn shutdown(&self) -> Result<()> {
        self.done(Call::Shutdown(launch::Shutdown {})).await
    }

    async fn done(&self, call: Call) -> Result<()> {
        match self.call(call, Ends::default(), CALL).await? {
            (Answer::Done(_), _) => Ok(()),
            (other, _) => Err(unexpected(&other)),
        }
    }

    async fn call(&self, call: Call, ends: Ends, allowed: Duration) -> Result<(Answer, Option<OwnedFd>)> {
        const OP: &str = "ask shim";
        let fds = [ends.stdin, ends.stdout, ends.stderr].into_iter().flatten().collect();
        let gone = || {
            Fault::Error(
                Error::new(Kind::Unavailable, OP, "of the container")
                    .because(Cause("it has gone: the container ended".into())),
            )
        };
        match tokio::time::timeout(allowed, self.0.call(call, fds)).await {
            Ok(Some((Answer::Failure(failure), _))) => Err(Fault::Failed(failure)),
            Ok(Some((Answer::Unsupported(lacking), _))) => Err(Fault::Error(
                Error::new(Kind::Unimplemented, OP, lacking.features.join(", "))
                    .because(Cause("this container's shim is older than berthd".into()))
                    .hint("restart the container"),
            )),
            Ok(Some(answer)) => Ok(answer),
            Ok(None) => Err(gone()),
            Err(_) => Err(Fault::Error(
                Error::new(Kind::Deadline, OP, "of the container")
                    .because(Cause(format!("it did not answer for {allowed:?}"))),
            )),
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
