//! systemd as the one who makes groups. It makes a scope, and leaves what is below to us:
//!
//! ```text
//! <slice>/berth-<id>.scope      as long as a process is in it
//!   ├─ container                what plans and records name: limits, devices, init
//!   └─ supervisor               a keeper until there is a shim, then the shim
//! ```
//!
//! A scope without processes is gone, with all that its files have counted: with the shim in it, it is there until the
//! container's end has been told.
//!
//! An ordinary user's is made by that user's own systemd, below its `user@UID.service`.

mod bus;
mod names;
mod user;

use std::{
    io,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use tracing::warn;

use self::bus::Answer;
pub use self::names::{Manager, above, container, scope, slice};
use super::{Group, Hierarchy, Mode, file};
use crate::{Error, Kind, Result, error::Cause};

const OP: &str = "start scope";
/// How long the scope of an earlier container may take to go.
const GOING: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(20);

/// A process of ours that keeps a new scope, until this is dropped.
#[derive(Debug)]
pub struct Scope {
    keeper: Child,
}

impl Drop for Scope {
    fn drop(&mut self) {
        // It reads its standard input to the end, and nothing else.
        drop(self.keeper.stdin.take());
        if let Err(error) = self.keeper.wait() {
            warn!(%error, "a scope's first process is not reaped");
        }
    }
}

/// Has systemd begin the scope of the group at `path`; `None` where that is in none. `shim` is the program that keeps it.
/// Blocks.
///
/// # Errors
/// `Precondition` where this host has no systemd or no cgroup v2 for it, and what systemd refuses.
pub fn begin(hierarchy: &Hierarchy, path: &str, shim: &Path) -> Result<Option<Scope>> {
    let Some(place) = names::place(path) else { return Ok(None) };
    let root = root(hierarchy, place.unit)?;
    let keeper = Command::new(shim)
        .arg("keep")
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .map_err(|error| Error::io(OP, shim.display().to_string(), error))?;
    let scope = Scope { keeper };
    let pid = scope.keeper.id();
    let until = Instant::now() + GOING;
    while bus::start(&place, pid)? == Answer::Exists {
        if (Group { v2: Some(root.join(&place.path[1..])), v1: Vec::new() }).is_empty() {
            // Its processes have ended and systemd is about to notice, or it failed.
            bus::stop(place.manager, place.unit)?;
        }
        if Instant::now() > until {
            return Err(Error::new(Kind::Precondition, OP, place.unit)
                .because(Cause("there is a unit of that name already".into()))
                .hint(match place.manager {
                    Manager::System => format!("if nobody needs it: systemctl stop {}", place.unit),
                    Manager::User => format!("if nobody needs it: systemctl --user stop {}", place.unit),
                }));
        }
        thread::sleep(PAUSE);
    }
    let settled = settle(root, &place, pid);
    if let Err(error) = settled {
        // The failure that brought us here is the one to tell.
        bus::stop(place.manager, place.unit).ok();
        return Err(error);
    }
    Ok(Some(scope))
}

/// Moves the keeper to where it is in nobody's way: a group with processes passes no controllers on.
fn settle(root: &Path, place: &names::Place<'_>, pid: u32) -> Result<()> {
    let scope = root.join(&place.path[1..]);
    if !scope.is_dir() {
        return Err(Error::new(Kind::Internal, OP, place.unit)
            .because(Cause(format!("systemd has not made it at {}", scope.display())))
            .hint("is its cgroup namespace another than ours?"));
    }
    join(&root.join(&place.supervisor()[1..]), pid)
}

/// Moves a container's shim to its scope: `group` is the container's v2 directory. Nothing to do where it is in no scope,
/// or the scope has gone with its container.
///
/// # Errors
/// As of cgroups(7).
pub fn adopt(group: &str, pid: u32) -> Result<()> {
    let Some(place) = names::place(group) else { return Ok(()) };
    if !Path::new(place.path).is_dir() {
        return Ok(());
    }
    match (join(Path::new(&place.supervisor()), pid), place.manager) {
        // Who is in no group of that user's own may not leave the one it is in: systemd sees to it.
        (Err(error), Manager::User) if error.kind == Kind::Denied => {
            bus::attach(&place, &format!("/{}", names::SUPERVISOR), pid)
        }
        (joined, Manager::User | Manager::System) => joined,
    }
}

/// Whether a group is in a scope of a user's own systemd.
pub fn is_users(group: &Path) -> bool {
    group.to_str().and_then(names::place).is_some_and(|place| place.manager == Manager::User)
}

/// The group that the units of a user's own systemd are in. Blocks.
///
/// # Errors
/// `Precondition` where this host has no systemd or no cgroup v2 for it, `Unavailable` where the user has none.
pub fn users_group(hierarchy: &Hierarchy) -> Result<String> {
    root(hierarchy, "of a container")?;
    bus::own_group(Manager::User)
}

fn join(dir: &Path, pid: u32) -> Result<()> {
    match std::fs::create_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(Error::io("make group", dir.display().to_string(), error))
        }
        _ => file::write(&dir.join("cgroup.procs"), &pid.to_string()),
    }
}

/// Ends the scope that a removed group was in, where systemd has not noticed yet that all is over. Blocks.
///
/// # Errors
/// `Unavailable` where systemd can't be asked, `Deadline` where it does not answer.
pub fn end(group: &Group) -> Result<()> {
    let dir = group.v2.as_deref().and_then(Path::to_str).unwrap_or_default();
    match names::place(dir) {
        Some(place) if Path::new(place.path).exists() => bus::stop(place.manager, place.unit),
        _ => Ok(()),
    }
}

/// Whether systemd can make groups here.
///
/// # Errors
/// `Precondition` where it does not run this host, or not on cgroup v2.
pub fn check(hierarchy: &Hierarchy) -> Result<()> {
    root(hierarchy, "of a container").map(drop)
}

/// The root of cgroup v2, where systemd runs the host by it.
fn root<'a>(hierarchy: &'a Hierarchy, unit: &str) -> Result<&'a Path> {
    let refuse = |why: &str| {
        Err(Error::new(Kind::Precondition, OP, unit)
            .because(Cause(why.into()))
            .hint("take the cgroupfs driver: daemon.cgroup_driver = \"cgroupfs\", or no --systemd-cgroup"))
    };
    if !Path::new("/run/systemd/system").is_dir() {
        return refuse("systemd does not run this host: there is no /run/systemd/system");
    }
    match (&hierarchy.roots.v2, hierarchy.mode) {
        (Some(root), Mode::V2) => Ok(root),
        _ => refuse("the systemd driver is for cgroup v2, and this host has v1's controllers"),
    }
}
