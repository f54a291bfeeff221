//! The end of a group: its processes killed, its emptiness seen, its directories removed. All waits are bounded.

use std::{
    collections::BTreeSet,
    io::{self, Read, Seek},
    os::{fd::AsFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};

use super::{Group, file};
use crate::{Error, Kind, Result, error::Cause};

/// How long the killed may take to die: a process in an uninterruptible wait for a disk does when the disk answers.
const KILL_FOR: Duration = Duration::from_secs(5);
/// How long rmdir may say EBUSY: the kernel lets go of the dead a moment after they are gone.
const REMOVE_FOR: Duration = Duration::from_secs(2);
/// Of a directory with none below it: its name and its `.`; each below has a `..` more. As the kernel counts them in cgroups.
const LINKS_OF_A_LEAF: u64 = 2;
/// Pauses between looks double from the first to the last.
const FIRST_PAUSE: Duration = Duration::from_micros(500);
const LAST_PAUSE: Duration = Duration::from_millis(50);

/// Kills every process in the group and below, and returns when they are gone.
///
/// # Errors
/// `Deadline` names those that would not die.
pub fn kill(group: &Group) -> Result<()> {
    let until = Instant::now() + KILL_FOR;
    thaw(group)?;
    if let Some(dir) = group.v2.as_deref().filter(|dir| dir.join("cgroup.kill").exists()) {
        let path = dir.join("cgroup.kill");
        match file::raw_write(&path, "1") {
            Err(error) if file::gone(&error) => {}
            outcome => outcome.map_err(|error| file::explain(&path, "1", error))?,
        }
        wait_for_empty(dir, until)?;
    }
    // Without cgroup.kill, and on hybrid hosts for what is only in a v1 group: it would keep that from being removed.
    let mut pause = Pause::default();
    loop {
        let members = members(group);
        if members.is_empty() {
            return Ok(());
        }
        if Instant::now() >= until {
            return Err(stubborn(group, members.into_iter().map(|(_, pid)| pid).collect()));
        }
        for (dir, pid) in members {
            signal(&dir, pid)?;
        }
        pause.take();
    }
}

/// Whether no process is left in it or below; an absent group is empty.
pub fn is_empty(group: &Group) -> bool {
    if let Some(dir) = &group.v2
        && let Ok(Some(events)) = file::read(&dir.join("cgroup.events"))
    {
        return !populated(&events);
    }
    members(group).is_empty()
}

/// Removes the group and all below it from every hierarchy, going on after a failure.
///
/// # Errors
/// `Precondition` where processes still live in it.
pub fn remove(group: &Group) -> Result<()> {
    let until = Instant::now() + REMOVE_FOR;
    let failures: Vec<Error> =
        group.v2.iter().chain(&group.v1).filter_map(|dir| remove_tree(dir, until).err()).collect();
    let mut failures = failures.into_iter();
    let Some(first) = failures.next() else { return Ok(()) };
    let others: Vec<String> = failures.map(|error| error.object).collect();
    if others.is_empty() { Err(first) } else { Err(first.hint(format!("so did {}", others.join(", ")))) }
}

fn remove_tree(dir: &Path, until: Instant) -> Result<()> {
    let mut pause = Pause::default();
    loop {
        // Again from the start each time: a process that is still there may make groups while we remove them.
        match remove_once(dir) {
            Ok(()) => return Ok(()),
            Err(error) if error.raw_os_error() != Some(libc::EBUSY) => {
                return Err(Error::io("remove group", dir.display().to_string(), error));
            }
            Err(error) if Instant::now() >= until => {
                let living = pids_below(dir);
                return Err(Error::new(Kind::Precondition, "remove group", dir.display().to_string())
                    .because(error)
                    .hint(format!("processes that live in it: {}", listed(&living))));
            }
            Err(_) => pause.take(),
        }
    }
}

fn remove_once(dir: &Path) -> io::Result<()> {
    // Mostly there is nothing below, and the kernel knows.
    match std::fs::remove_dir(dir) {
        Ok(()) => return Ok(()),
        Err(error) if file::gone(&error) => return Ok(()),
        Err(_) => {}
    }
    // Parents come before their children.
    for path in tree(dir).iter().rev() {
        match std::fs::remove_dir(path) {
            Err(error) if !file::gone(&error) => return Err(error),
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}

/// Waits for `populated 0` in cgroup.events; the kernel wakes poll(2) when it changes.
fn wait_for_empty(dir: &Path, until: Instant) -> Result<()> {
    let path = dir.join("cgroup.events");
    let failed = |error: io::Error| Error::io("watch", path.display().to_string(), error);
    let mut events = match std::fs::File::open(&path) {
        Ok(events) => events,
        Err(error) if file::gone(&error) => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    let mut text = String::new();
    loop {
        text.clear();
        match events.rewind().and_then(|()| events.read_to_string(&mut text)) {
            Err(error) if file::gone(&error) => return Ok(()),
            outcome => outcome.map_err(failed)?,
        };
        if !populated(&text) {
            return Ok(());
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(stubborn(&Group { v2: Some(dir.to_owned()), v1: Vec::new() }, pids_below(dir)));
        }
        let timeout = Timespec::try_from(left).ok();
        match poll(&mut [PollFd::from_borrowed_fd(events.as_fd(), PollFlags::PRI)], timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(failed(errno.into())),
        }
    }
}

fn populated(events: &str) -> bool {
    events.lines().any(|line| line == "populated 1")
}

/// A frozen v1 group takes SIGKILL only once it is thawed.
fn thaw(group: &Group) -> Result<()> {
    let Some(dir) = group.v1_with("freezer.state") else { return Ok(()) };
    for dir in tree(dir) {
        let path = dir.join("freezer.state");
        if file::read(&path)?.is_some_and(|state| state.trim() != "THAWED") {
            file::write(&path, "THAWED")?;
        }
    }
    Ok(())
}

/// Who is in the group or below, in any hierarchy, each once with a directory that lists it.
fn members(group: &Group) -> Vec<(PathBuf, i32)> {
    let mut seen = BTreeSet::new();
    let mut members = Vec::new();
    for root in group.v2.iter().chain(&group.v1) {
        for dir in tree(root) {
            for pid in pids(&dir) {
                if seen.insert(pid) {
                    members.push((dir.clone(), pid));
                }
            }
        }
    }
    members
}

/// Kills by pidfd: looking again after it was opened makes sure it is not somebody who got the number since.
fn signal(dir: &Path, pid: i32) -> Result<()> {
    let failed =
        |errno: rustix::io::Errno| Error::io("kill process", format!("{pid} of {}", dir.display()), errno);
    // 0 is a process of another pid namespace: not in our sight, so not ours to kill.
    let Some(number) = Pid::from_raw(pid) else { return Ok(()) };
    let pidfd = match pidfd_open(number, PidfdFlags::empty()) {
        Ok(pidfd) => pidfd,
        Err(rustix::io::Errno::SRCH) => return Ok(()),
        Err(errno) => return Err(failed(errno)),
    };
    if !pids(dir).contains(&pid) {
        return Ok(());
    }
    match pidfd_send_signal(&pidfd, Signal::KILL) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(errno) => Err(failed(errno)),
    }
}

fn pids(dir: &Path) -> Vec<i32> {
    // A group that vanished or can't be read has nobody whom we could name; rmdir says the rest.
    let text = file::read(&dir.join("cgroup.procs")).ok().flatten().unwrap_or_default();
    text.lines().filter_map(|line| line.trim().parse().ok()).collect()
}

fn pids_below(dir: &Path) -> Vec<i32> {
    tree(dir).iter().flat_map(|dir| pids(dir)).collect()
}

/// The directory and all below it, parents first; empty where there is none.
fn tree(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![root.to_owned()];
    while let Some(dir) = open.pop() {
        // Absent, or gone while we walked.
        let Ok(metadata) = std::fs::metadata(&dir) else { continue };
        if metadata.is_dir() && metadata.nlink() == LINKS_OF_A_LEAF {
            found.push(dir);
            continue;
        }
        let Ok(entries) = std::fs::read_dir(&dir) else { continue };
        let directories = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        open.extend(directories.map(|entry| entry.path()));
        found.push(dir);
    }
    found
}

fn stubborn(group: &Group, pids: Vec<i32>) -> Error {
    let object =
        group.v2.iter().chain(&group.v1).next().map_or_else(String::new, |dir| dir.display().to_string());
    Error::new(Kind::Deadline, "kill group", object)
        .because(Cause(format!("still alive {} s after SIGKILL: {}", KILL_FOR.as_secs(), listed(&pids))))
        .hint("a process that waits for a disk or a server dies when that answers; see its /proc/PID/stack")
}

fn listed(pids: &[i32]) -> String {
    const SHOWN: usize = 8;
    let mut text: Vec<String> = pids.iter().take(SHOWN).map(i32::to_string).collect();
    if pids.len() > SHOWN {
        text.push(format!("and {} more", pids.len() - SHOWN));
    }
    if text.is_empty() { "none seen".to_owned() } else { text.join(", ") }
}

/// Growing pauses between looks at what tells nobody when it changes.
struct Pause(Duration);

impl Default for Pause {
    fn default() -> Self {
        Self(FIRST_PAUSE)
    }
}

impl Pause {
    fn take(&mut self) {
        thread::sleep(self.0);
        self.0 = (self.0 * 2).min(LAST_PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_is_all_there_is_below_and_goes_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("group");
        for below in ["a/b/c", "d"] {
            std::fs::create_dir_all(root.join(below)).unwrap();
        }
        let mut found = tree(&root);
        assert_eq!(found[0], root);
        found.sort();
        assert_eq!(found, ["", "a", "a/b", "a/b/c", "d"].map(|below| root.join(below)));
        remove_once(&root).unwrap();
        assert!(!root.exists() && tree(&root).is_empty());
        remove_once(&root).unwrap();
    }
}
