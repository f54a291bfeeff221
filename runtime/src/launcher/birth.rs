//! A shim's birth: what it is to do on its standard input (the plan as a sealed memfd, or whom to take over from), its own
//! log as standard error, one message from its standard output.

use std::{
    fs::File,
    io::{self, Write},
    os::fd::OwnedFd,
    path::Path,
    process::Stdio,
    time::Duration,
};

use berth_launch::{fault, v1::Birth};
use prost::Message;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use tokio::{io::AsyncReadExt, process::Command};

use super::program::{Executable, Program};
use crate::{Error, Kind, Result, error::Cause};

/// A birth that takes longer hangs on a dead disk or network file system.
const BIRTH: Duration = Duration::from_secs(60);

/// Starts `program mode`, by what is executed for it, on `stdin`, brings it to its place, and gives what it says. Whoever stays is reaped by a task of
/// its own.
pub async fn birth(
    program: &Program,
    executable: &Executable,
    mode: &str,
    stdin: OwnedFd,
    dir: &Path,
    settle: impl FnOnce(u32) -> Result<()>,
) -> Result<Birth> {
    const OP: &str = "start shim";
    let shown = || program.path().display().to_string();
    let path = dir.join("shim.log");
    let shown_log = path.display().to_string();
    let open = move || File::options().append(true).create(true).open(&path);
    let log = on_disk("open shim's log", shown_log, open).await?;
    let fault = std::env::var_os(fault::VARIABLE).filter(|_| cfg!(debug_assertions));
    let mut child = Command::new(&executable.path)
        .arg0(program.path())
        .arg(mode)
        .env_clear()
        .envs(fault.map(|fault| (fault::VARIABLE, fault)))
        .stdin(Stdio::from(stdin))
        .stdout(Stdio::piped())
        .stderr(Stdio::from(log))
        .kill_on_drop(false)
        .spawn()
        .map_err(|error| {
            Error::io(OP, shown(), error).hint("berth-shim has to be beside berthd, or named by daemon.shim")
        })?;
    if let Some(Err(error)) = child.id().map(settle) {
        // It has begun nothing that outlives it: init goes with a shim that has not said that it is ready.
        child.kill().await.map_err(|error| Error::io(OP, shown(), error))?;
        return Err(error);
    }
    let mut bytes = Vec::new();
    let read = async {
        match child.stdout.take() {
            Some(mut stdout) => stdout.read_to_end(&mut bytes).await,
            None => Ok(0),
        }
    };
    let read = tokio::time::timeout(BIRTH, read).await;
    if read.is_err() {
        // Nobody waits for it any more: when the disk answers, it is not to go on.
        child.start_kill().map_err(|error| Error::io(OP, shown(), error))?;
    }
    tokio::spawn(async move {
        // Its exit says nothing that its last message, or the exit record, does not.
        child.wait().await.ok();
    });
    let Ok(read) = read else {
        return Err(Error::new(Kind::Deadline, OP, dir.display().to_string())
            .because(Cause(format!("it said nothing for {BIRTH:?}, and was killed")))
            .hint("a volume, a layer or the log is on a disk or a server that does not answer"));
    };
    read.map_err(|error| Error::io("read from shim", shown(), error))?;
    Birth::decode(bytes.as_slice())
        .map_err(|error| Error::new(Kind::Internal, "read from shim", shown()).because(error))
}

/// Does file work beside the async threads, which may hang there without them.
///
/// # Errors
/// `Deadline` where the disk does not answer; what was begun there ends once it does.
pub async fn on_disk<T: Send + 'static>(
    op: &'static str,
    path: String,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::time::timeout(BIRTH, tokio::task::spawn_blocking(work)).await {
        Ok(Ok(done)) => done.map_err(|error| Error::io(op, path, error)),
        Ok(Err(error)) => Err(Error::new(Kind::Internal, op, path).because(error)),
        Err(_) => Err(Error::new(Kind::Deadline, op, path)
            .because(Cause(format!("its disk has not answered for {BIRTH:?}")))
            .hint("look at the disk of daemon.state")),
    }
}

/// A plan as it travels: whoever has it, nobody changes it.
pub fn sealed(bytes: &[u8]) -> io::Result<OwnedFd> {
    let fd = memfd_create("plan", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut file = File::from(fd);
    file.write_all(bytes)?;
    fcntl_add_seals(&file, SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE)?;
    Ok(file.into())
}
