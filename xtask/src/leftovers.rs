//! What a private berthd leaves when it could not end in order, found by its own names and removed.
//!
//! ```text
//!   processes   whose program lies in the private directory, or that are in the private cgroups
//!   mounts      below the private directory
//!   network     the private bridge, the private nftables tables
//!   cgroups     below the private parent, in every hierarchy
//! ```
//! Each step is taken whatever became of the one before.

use std::{
    ffi::OsStr,
    fs, io,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use rustix::{
    mount::UnmountFlags,
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};

use crate::process;

const PATIENCE: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_millis(20);

/// In the private directory: where the runtime's state is, on a [`crate::tmpfs::Tmpfs`] of this run's, which is none of what is left.
pub const STATE: &str = "state";

/// The names that a private berthd was given.
#[derive(Debug)]
pub struct Names {
    /// Holds its programs, root and state.
    pub directory: PathBuf,
    pub bridge: String,
    pub table: String,
    /// Absolute in each hierarchy: `/berth-demo-…`.
    pub cgroup_parent: String,
}

/// Removes everything and returns, a line each, what should not have been there or could not be removed.
///
/// The bridge, the table and the empty parent cgroups are nobody's fault: a daemon leaves them for the next.
pub fn remove(names: &Names) -> Vec<String> {
    let mut told = Vec::new();
    let parents: Vec<PathBuf> =
        cgroup_mounts().iter().map(|mount| mount.join(names.cgroup_parent.trim_start_matches('/'))).collect();
    // Shims end on their own a moment after their container has gone.
    wait_until(|| processes(names, &parents).is_empty());
    for (pid, program) in processes(names, &parents) {
        told.push(format!("process {} ({program}) was still there", pid.as_raw_nonzero()));
        kill(pid);
    }
    if !wait_until(|| processes(names, &parents).is_empty()) {
        told.push("some of these processes can't be killed".into());
    }
    let state = names.directory.join(STATE);
    for mount in mounts_below(&names.directory).into_iter().filter(|mount| *mount != state) {
        told.push(format!("{} was still mounted", mount.display()));
        if let Err(error) = rustix::mount::unmount(&mount, UnmountFlags::DETACH) {
            told.push(format!("unmount {}: {error}", mount.display()));
        }
    }
    told.extend(network(names));
    for parent in parents.iter().filter(|parent| parent.is_dir()) {
        let mut last = Ok(());
        // A cgroup stays busy for a moment after its last process.
        wait_until(|| {
            last = remove_cgroup(parent);
            last.is_ok()
        });
        if let Err(error) = last {
            told.push(format!("remove {}: {error}", parent.display()));
        }
    }
    told
}

fn network(names: &Names) -> Vec<String> {
    let mut commands = vec![{
        let mut nft = Command::new("nft");
        // Adding it first makes deleting succeed whether it was there or not.
        let gone = ["ip", "ip6"]
            .map(|family| format!("add table {family} {0}; delete table {family} {0};", names.table));
        nft.arg(gone.concat());
        nft
    }];
    if Path::new("/sys/class/net").join(&names.bridge).exists() {
        let mut ip = Command::new("ip");
        ip.args(["link", "delete", &names.bridge]);
        commands.push(ip);
    }
    let failed = commands.iter_mut().filter_map(|command| process::output(command).err());
    failed.map(|error| format!("{error:#}")).collect()
}

/// The processes that run a program whose path is wanted, and that path.
pub fn running(wanted: impl Fn(&Path) -> bool) -> Vec<(Pid, PathBuf)> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let pid = entry.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw);
        // A shim runs its program by a mount that has no place, and so no path: the word it was called by has one.
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let called =
            PathBuf::from(OsStr::from_bytes(line.split(|byte| *byte == 0).next().unwrap_or_default()));
        let program = fs::read_link(entry.path().join("exe")).ok();
        let program = [program, Some(called)].into_iter().flatten().find(|path| wanted(path));
        found.extend(pid.zip(program));
    }
    found
}

/// The processes that can only be ours.
fn processes(names: &Names, parents: &[PathBuf]) -> Vec<(Pid, String)> {
    let here = running(|path| path.starts_with(&names.directory));
    let mut found: Vec<(Pid, String)> =
        here.into_iter().map(|(pid, program)| (pid, program.display().to_string())).collect();
    let mut cgroups: Vec<PathBuf> = parents.to_vec();
    while let Some(cgroup) = cgroups.pop() {
        let pids = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
        let pids = pids.lines().filter_map(|line| line.parse().ok()).filter_map(Pid::from_raw);
        found.extend(pids.map(|pid| (pid, cgroup.display().to_string())));
        cgroups.extend(directories(&cgroup));
    }
    found.sort_by_key(|(pid, _)| pid.as_raw_nonzero());
    found.dedup_by_key(|(pid, _)| *pid);
    found
}

fn kill(pid: Pid) {
    // Gone already is what we want; anything else shows when it is looked for again.
    pidfd_open(pid, PidfdFlags::empty()).and_then(|pidfd| pidfd_send_signal(pidfd, Signal::KILL)).ok();
}

fn remove_cgroup(cgroup: &Path) -> io::Result<()> {
    for child in directories(cgroup) {
        remove_cgroup(&child)?;
    }
    match fs::remove_dir(cgroup) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn directories(path: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

/// Tries until it is so or patience is at its end.
fn wait_until(mut so: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + PATIENCE;
    loop {
        if so() {
            return true;
        }
        if Instant::now() > end {
            return false;
        }
        std::thread::sleep(PAUSE);
    }
}

fn mounts_below(directory: &Path) -> Vec<PathBuf> {
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    // Later ones may lie upon earlier ones.
    let below = mount_points(&mountinfo, |_| true).into_iter().filter(|point| point.starts_with(directory));
    below.rev().collect()
}

pub fn cgroup_mounts() -> Vec<PathBuf> {
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    mount_points(&mountinfo, |kind| matches!(kind, "cgroup" | "cgroup2"))
}

/// Reads mountinfo: the mount points of the file systems that are wanted. See proc_pid_mountinfo(5).
fn mount_points(mountinfo: &str, wanted: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let point = |line: &str| {
        let (mount, file_system) = line.split_once(" - ")?;
        wanted(file_system.split(' ').next()?)
            .then(|| PathBuf::from(unescaped(mount.split(' ').nth(4).unwrap_or("/"))))
    };
    mountinfo.lines().filter_map(point).collect()
}

/// Spaces and the like are written in octal.
fn unescaped(text: &str) -> String {
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_read_with_their_spaces() {
        let text = "22 1 0:20 / /sys/fs/cgroup/my\\040dir rw,nosuid shared:9 - cgroup cgroup rw,cpu\n\
                    23 1 0:21 / /proc rw - proc proc rw\n";
        assert_eq!(mount_points(text, |kind| kind == "cgroup"), [PathBuf::from("/sys/fs/cgroup/my dir")]);
        assert_eq!(mount_points(text, |_| true).len(), 2);
    }

    #[test]
    fn a_process_is_found_by_its_program_and_killed() {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("sleep");
        // By a process of its own: a file that this one wrote may still be open for writing in a child that another test
        // is about to start, and then it can't be executed.
        assert!(Command::new("cp").arg("/bin/sleep").arg(&program).status().unwrap().success());
        let mut child = Command::new(&program).arg("1000").spawn().unwrap();
        let names = Names {
            directory: directory.path().canonicalize().unwrap(),
            bridge: "none".into(),
            table: "none".into(),
            cgroup_parent: "/none".into(),
        };
        // Spawning returns once the new program runs.
        let found = processes(&names, &[]);
        found.iter().for_each(|(pid, _)| kill(*pid));
        let status = child.wait().unwrap();
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(!status.success());
    }
}
