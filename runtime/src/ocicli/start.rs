//! `start`: opens the gate at init's socket, and hears from there why the program can't be executed.

use std::{fs, os::fd::AsRawFd};

use berth_launch::v1::{Birth, birth::Outcome};
use prost::Message;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recv, send,
    socket_with,
};

use super::{
    Globals, delete, hooks,
    line::Line,
    notify::Proxy,
    shim,
    state::{Container, START, Status},
};
use crate::{Error, Kind, Result, error::Cause};

pub fn start(globals: &Globals, line: &Line) -> Result<u8> {
    let container = globals.home.find(line.id()?)?;
    match start_it(&container)? {
        // Nobody is kept from the container meanwhile.
        Some(proxy) => proxy.until_ready(&container.state.init).map(|()| 0),
        None => Ok(0),
    }
}

/// Starts a created container, and runs its poststart hooks; gives what its notifications come through.
pub fn start_it(container: &Container) -> Result<Option<Proxy>> {
    let id = container.state.id.as_str();
    let _lock = Container::lock(&container.dir)?;
    match container.status()? {
        Status::Created => {}
        Status::Stopped => return Err(refused(id, "cannot start a container that has stopped")),
        Status::Running | Status::Paused => {
            return Err(refused(id, "cannot start an already running container"));
        }
        Status::Creating => return Err(refused(id, "cannot start a container that is being created")),
    }
    let proxy = Proxy::bind(container)?;
    let outcome = open_gate(container);
    // Whatever came of it, nobody listens there any more.
    fs::remove_file(container.dir.join(START)).ok();
    outcome?;
    let hooked = hooks::poststart(container).inspect_err(|_| {
        // The hook's failure is the one to tell; a container that does not stop is deleted with --force.
        delete::end_init(container).ok();
    });
    hooked.map(|()| proxy)
}

fn refused(id: &str, why: &str) -> Error {
    Error::new(Kind::Precondition, "start container", id).because(Cause(why.into()))
}

fn open_gate(container: &Container) -> Result<()> {
    let failed = |errno: rustix::io::Errno| Error::io("start container", container.state.id.clone(), errno);
    let directory = fs::File::open(&container.dir)
        .map_err(|error| Error::io("open", container.dir.display().to_string(), error))?;
    // Through the directory's descriptor: no root is too long for a socket's address.
    let path = format!("/proc/self/fd/{}/{START}", directory.as_raw_fd());
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .map_err(failed)?;
    connect(&socket, &SocketAddrUnix::new(path).map_err(failed)?).map_err(failed)?;
    send(&socket, b"go", SendFlags::NOSIGNAL).map_err(failed)?;
    let mut bytes = [0u8; 4096];
    let length = loop {
        match recv(&socket, &mut bytes[..], RecvFlags::empty()) {
            Ok((length, _)) => break length,
            Err(rustix::io::Errno::INTR) => {}
            // Killed with our word unread.
            Err(rustix::io::Errno::CONNRESET) => break 0,
            Err(errno) => return Err(failed(errno)),
        }
    };
    match Birth::decode(&bytes[..length]).ok().and_then(|birth| birth.outcome) {
        Some(Outcome::Failure(failure)) => Err(shim::explain(failure)),
        _ => Ok(()),
    }
}
