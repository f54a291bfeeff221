//! The container's cgroup as the shim needs it: who is in it, kill them all, what the OOM killer did. `cgroups(7)`.

use std::{fs, io, path::Path};

use berth_launch::v1::Cgroup;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// Kills every process of the group, and of those below it.
pub fn kill(cgroup: &Cgroup) {
    if kill_directory(Path::new(&cgroup.v2)).is_ok() {
        return;
    }
    signal(cgroup, Signal::KILL);
}

/// Kills a v2 directory's whole tree at once, Linux 5.14.
pub fn kill_directory(directory: &Path) -> io::Result<()> {
    fs::write(directory.join("cgroup.kill"), "1")
}

/// Sends a signal to each process of the group, by pidfd so that no stranger with a reused number gets it.
pub fn signal(cgroup: &Cgroup, signal: Signal) {
    for pid in processes(cgroup) {
        if let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty())
            // Still ours, now that its number is held.
            && processes(cgroup).contains(&pid)
        {
            // Ended in between: nothing to signal.
            pidfd_send_signal(&pidfd, signal).ok();
        }
    }
}

pub fn is_empty(cgroup: &Cgroup) -> bool {
    processes(cgroup).is_empty()
}

/// The processes of the group and of those below it, as this PID namespace counts.
pub fn processes(cgroup: &Cgroup) -> Vec<Pid> {
    let mut found = Vec::new();
    match (cgroup.v2.is_empty(), cgroup.v1.first()) {
        (false, _) => collect(Path::new(&cgroup.v2), &mut found),
        (true, Some(directory)) => collect(Path::new(directory), &mut found),
        (true, None) => {}
    }
    found
}

fn collect(directory: &Path, found: &mut Vec<Pid>) {
    // A group that is gone holds nobody.
    let listing = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    found.extend(listing.lines().filter_map(|line| line.parse().ok()).filter_map(Pid::from_raw));
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect(&entry.path(), found);
        }
    }
}

/// How many processes the OOM killer has ended in the group so far.
pub fn oom_kills(cgroup: &Cgroup) -> u64 {
    let v1 = cgroup.v1.iter().map(|directory| (directory, "memory.oom_control"));
    let v2 = std::iter::once((&cgroup.v2, "memory.events"));
    v1.chain(v2)
        .filter(|(directory, _)| !directory.is_empty())
        .filter_map(|(directory, file)| fs::read_to_string(Path::new(directory).join(file)).ok())
        .filter_map(|text| counter(&text))
        .max()
        .unwrap_or(0)
}

fn counter(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("oom_kill "))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oom_counter_is_read_from_both_kinds_of_file() {
        assert_eq!(counter("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"), Some(3));
        assert_eq!(counter("low 0\nhigh 0\nmax 9\noom 2\noom_kill 1\noom_group_kill 0\n"), Some(1));
        assert_eq!(counter("oom_kill_disable 0\n"), None);
    }
}
