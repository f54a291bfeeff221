//! The one-shot shim: the plan and a pipe for the answer are descriptors that it inherits, the streams are ours.

use std::{
    fs::File,
    io::{Read, Seek, Write},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    process::Command,
};

use berth_launch::v1::{Birth, Failure, Ready, SetDevices, Step, birth::Outcome};
use prost::Message;
use rustix::{
    fs::{MemfdFlags, OFlags, SealFlags},
    io::FdFlags,
    pipe::{PipeFlags, pipe_with},
    process::{WaitId, WaitIdOptions, waitid},
};

use super::Globals;
use crate::{
    Error, Kind, Result,
    cgroup::{Group, systemd},
    error::Cause,
    oci,
};

const OP: &str = "start shim";

/// The group whose scope a shim has to be in before it can put a process there: one of a user's own systemd, which whoever is
/// outside of it has no right to.
pub fn enters(globals: &Globals, group: &Group) -> Option<PathBuf> {
    let group = group.v2.as_ref().filter(|_| globals.rootless)?;
    systemd::is_users(group).then(|| group.clone())
}

/// Starts `berth-shim MODE` with a plan, and gives what it says when it has left. What it launched is our child. Where there is
/// a scope to be entered the plan comes by a pipe, once the shim is there.
pub fn launch(mode: &str, plan: &impl Message, enters: Option<PathBuf>) -> Result<Ready> {
    let program = program()?;
    let shown = || program.display().to_string();
    let bytes = plan.encode_to_vec();
    let failed = |object: &'static str| move |errno: rustix::io::Errno| Error::io(OP, object, errno);
    let (plan, later) = match enters {
        None => (sealed(&bytes).map_err(|error| Error::io(OP, "plan", error))?, None),
        Some(group) => {
            let (plan, write) = pipe_with(PipeFlags::CLOEXEC).map_err(failed("pipe"))?;
            (plan, Some((group, write)))
        }
    };
    let (answer, theirs) = pipe_with(PipeFlags::CLOEXEC).map_err(failed("pipe"))?;
    for fd in [plan.as_fd(), theirs.as_fd()] {
        rustix::io::fcntl_setfd(fd, FdFlags::empty()).map_err(failed("plan"))?;
    }
    let mut child = Command::new(&program)
        .args([mode, &plan.as_raw_fd().to_string(), &theirs.as_raw_fd().to_string()])
        .env_clear()
        .spawn()
        .map_err(|error| Error::io(OP, shown(), error).hint("berth-shim has to be beside berth"))?;
    // A shim that is gone reads nothing: then nobody does.
    drop(plan);
    if let Some((group, write)) = later {
        let entered = systemd::adopt(&group.to_string_lossy(), child.id());
        let told = entered
            .and_then(|()| File::from(write).write_all(&bytes).map_err(|error| Error::io(OP, "plan", error)));
        if let Err(error) = told {
            // The failure that brought us here is the one to tell.
            child.kill().and_then(|()| child.wait()).ok();
            return Err(error);
        }
    }
    let status = child.wait().map_err(|error| Error::io(OP, shown(), error))?;
    // Not until the end of the pipe: init holds that open too, until it executes its program.
    rustix::fs::fcntl_setfl(&answer, OFlags::NONBLOCK).map_err(|errno| Error::io(OP, "pipe", errno))?;
    let mut bytes = vec![0; berth_launch::PACKET_BYTES];
    let length = match File::from(answer).read(&mut bytes) {
        Ok(length) => length,
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => 0,
        Err(error) => return Err(Error::io("read from shim", shown(), error)),
    };
    let birth = Birth::decode(&bytes[..length]).ok().and_then(|birth| birth.outcome);
    if !matches!(birth, Some(Outcome::Ready(_))) {
        reap();
    }
    match birth {
        Some(Outcome::Ready(ready)) => Ok(ready),
        Some(Outcome::Failure(failure)) => Err(explain(failure)),
        Some(Outcome::Unsupported(lacking)) => Err(Error::new(Kind::Unimplemented, OP, shown())
            .because(Cause(format!("it lacks {}", lacking.features.join(", "))))),
        None => Err(Error::new(Kind::Internal, OP, shown())
            .because(Cause(format!("it left without a word, with {status}")))),
    }
}

/// Has the shim send a signal that has no name: only there is the kernel asked for what no safe call has.
pub fn signal(process: BorrowedFd<'_>, number: u32) -> Result<()> {
    let failed = |error: std::io::Error| Error::io("send signal", number.to_string(), error);
    rustix::io::fcntl_setfd(process, FdFlags::empty()).map_err(|errno| failed(errno.into()))?;
    let words = ["signal".to_owned(), process.as_raw_fd().to_string(), number.to_string()];
    let output = Command::new(program()?).args(words).env_clear().output().map_err(failed)?;
    match output.status.success() {
        true => Ok(()),
        false => Err(Error::new(Kind::Internal, "send signal", number.to_string())
            .because(Cause(String::from_utf8_lossy(&output.stderr).trim().to_owned()))),
    }
}

/// Has the shim attach a device program in place of what a v2 group has: only there is the kernel asked for what no safe
/// call has.
pub fn set_devices(group: &Path, device_program: &[u8]) -> Result<()> {
    let failed = |error: std::io::Error| Error::io(OP, "device program", error);
    let plan = SetDevices { device_program: device_program.to_vec() };
    let plan = sealed(&plan.encode_to_vec()).map_err(failed)?;
    rustix::io::fcntl_setfd(&plan, FdFlags::empty()).map_err(|errno| failed(errno.into()))?;
    let mut command = Command::new(program()?);
    command.args(["devices", &plan.as_raw_fd().to_string()]).arg(group).env_clear();
    let output = command.output().map_err(failed)?;
    match output.status.success() {
        true => Ok(()),
        false => Err(Error::new(Kind::Precondition, "load device rules of", group.display().to_string())
            .because(Cause(String::from_utf8_lossy(&output.stderr).trim().to_owned()))),
    }
}

/// Says what a failure means, with the words that supervisors look for to tell one that is the program's: podman makes exit
/// codes 126 and 127 of them.
pub fn explain(failure: Failure) -> Error {
    let words = match (failure.step(), failure.errno) {
        (Step::Exec, libc::ENOENT) if !failure.object.contains('/') => "executable file not found in $PATH",
        (Step::Exec | Step::Workdir, libc::ENOENT) => "no such file or directory",
        (Step::Exec | Step::Workdir, libc::EACCES) => "permission denied",
        _ => "",
    };
    // Without a detail the errno's own words are said, which are these.
    let detail = match failure.detail.as_str() {
        detail if detail.is_empty() || words.is_empty() => detail.to_owned(),
        detail => format!("{words}: {detail}"),
    };
    oci::explain(&Failure { detail, ..failure })
}

/// Reaps our children that have ended: else a process that could not be launched, or is taken back, would be left to
/// whoever is the parent of what we leave.
pub fn reap() {
    while matches!(waitid(WaitId::All, WaitIdOptions::EXITED | WaitIdOptions::NOHANG), Ok(Some(_))) {}
}

/// Beside this program.
pub fn program() -> Result<PathBuf> {
    let own = std::env::current_exe().map_err(|error| Error::io("find", "our own program", error))?;
    Ok(own.with_file_name("berth-shim"))
}

fn sealed(bytes: &[u8]) -> std::io::Result<OwnedFd> {
    let fd = rustix::fs::memfd_create("plan", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut file = File::from(fd);
    file.write_all(bytes)?;
    file.rewind()?;
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    rustix::fs::fcntl_add_seals(&file, seals)?;
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_cannot_be_run_is_told_in_the_words_that_are_looked_for() {
        let told = |step: Step, errno, object: &str, detail: &str| {
            explain(Failure { step: step.into(), errno, object: object.into(), detail: detail.into() })
                .chain()
        };
        let lost = told(Step::Exec, libc::ENOENT, "nope", "there is no such program in PATH");
        assert!(lost.contains("executable file not found in $PATH: there is no such program"), "{lost}");
        let lost = told(Step::Exec, libc::ENOENT, "/nope", "");
        assert!(lost.to_lowercase().contains("no such file or directory"), "{lost}");
        let denied = told(Step::Exec, libc::EACCES, "/x", "it may not be executed");
        assert!(denied.contains("permission denied"), "{denied}");
        assert!(!told(Step::Hook, libc::ENOENT, "/x", "gone").contains("no such file"));
    }
}
