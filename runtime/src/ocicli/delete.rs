//! `delete`: what a container has left goes, its directory last.

use std::{fs, io::ErrorKind, os::fd::AsFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{
    Globals, groups, hooks,
    line::Line,
    rdt,
    state::{Container, Status},
};
use crate::{Error, Kind, Result, error::Cause};

pub fn delete(globals: &Globals, line: &Line) -> Result<u8> {
    let (id, forced) = (line.id()?, line.has("force"));
    let container = match globals.home.find(id) {
        Err(error) if error.kind == Kind::NotFound => {
            // A create that was killed in the middle has left a directory that no state is in.
            let dir = globals.home.directory(id)?;
            if dir.exists() {
                remove_directory(&dir)?;
                return Ok(0);
            }
            return if forced { Ok(0) } else { Err(error) };
        }
        other => other?,
    };
    let status = container.status()?;
    if matches!(status, Status::Running | Status::Paused) && !forced {
        let why = format!("cannot delete container {id} that is not stopped: {}", status.word());
        return Err(Error::new(Kind::Precondition, "delete container", id)
            .because(Cause(why))
            .hint("kill it, or use --force"));
    }
    remove(globals, &container)?;
    Ok(0)
}

/// Ends what may still run and removes all there is.
pub fn remove(globals: &Globals, container: &Container) -> Result<()> {
    let _lock = Container::lock(&container.dir)?;
    let group = container.state.group();
    end_init(container)?;
    // The rest: processes that outlive an init without a PID namespace of its own.
    let mut failures: Vec<Error> = Vec::new();
    failures.extend(groups::remove(&group).err());
    failures.extend(rdt::remove(&container.state.resctrl_ours).err());
    failures
        .extend(container.spec().and_then(|spec| hooks::poststop(globals, &spec, &container.state)).err());
    if failures.is_empty() {
        failures.extend(remove_directory(&container.dir).err());
    }
    match failures.into_iter().next() {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

/// Kills init and waits until it has ended.
pub fn end_init(container: &Container) -> Result<()> {
    let Some(init) = container.state.init.handle()? else { return Ok(()) };
    if groups::is_frozen(&container.state.group())? {
        groups::thaw(&container.state.group())?;
    }
    // Gone already is as good.
    rustix::process::pidfd_send_signal(&init, rustix::process::Signal::KILL).ok();
    let timeout = Timespec { tv_sec: 10, tv_nsec: 0 };
    match poll(&mut [PollFd::from_borrowed_fd(init.as_fd(), PollFlags::IN)], Some(&timeout)) {
        Ok(0) => Err(Error::new(Kind::Deadline, "delete container", container.state.id.clone())
            .because(Cause("its init does not die of SIGKILL".into()))),
        Ok(_) => Ok(()),
        Err(errno) => Err(Error::io("wait for", container.state.id.clone(), errno)),
    }
}

fn remove_directory(dir: &std::path::Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(Error::io("remove", dir.display().to_string(), error))
        }
        _ => Ok(()),
    }
}
