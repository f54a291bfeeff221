//! What the kernel takes of a pod's start, by a trace of every system call of `berthd` and of the shims that it starts.
//!
//! ```text
//!   tracefs/instances/berth-bench-PID   events of syscalls and of sched_switch, of berthd's threads and their descendants
//!           lines  ──>  Trace::line     from the call until its return, but for sleep that another process ends (state S)
//!           names  ──>  step            mounts, namespaces, files, …
//! ```
//! What the kernel waits for by itself (state D: a grace period, a lock) counts. The trace takes time as well: what it says is
//! how the parts relate. See the kernel's trace/events.rst and trace/ftrace.rst.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{BufRead, BufReader},
    path::PathBuf,
};

use anyhow::{Context, Result};
use rustix::{
    mount::{MountFlags, UnmountFlags, mount, unmount},
    process::Pid,
};
use tempfile::TempDir;

use super::{Group, client::words, contender::Contender, figures::Figures};

/// What a row's name begins with, then [`BERTHD`] or [`SHIMS`], then the step.
pub const KERNEL: &str = "kernel: ";
pub const BERTHD: &str = "berthd, ";
pub const SHIMS: &str = "shims, ";
const PODS: usize = 20;
/// Less is not told.
const LEAST_MS: f64 = 0.005;
const BUFFER_KIB: usize = 32 << 10;

/// Twenty pods, one after the other.
pub fn measure(group: &Group, ours: &Contender, figures: &mut Figures) -> Result<()> {
    let instance = match Instance::new() {
        Ok(instance) => instance,
        Err(error) => {
            figures.miss(format!("no trace of system calls: {error:#}"));
            return Ok(());
        }
    };
    let berthd = ours.pid().context("the daemon does not run")?;
    let mut threads = threads(berthd)?;
    instance.begin(&threads)?;
    let answers = group.client.ask([ours], &words("up", &[0, PODS, 1]));
    instance.end()?;
    // Those that came meanwhile are its own as well.
    threads.extend(self::threads(berthd)?);
    group.client.measure(ours, &words("down", &[1]), "", &mut Figures::default())?;
    if let Some(why) = answers?.into_iter().find_map(|answer| answer.outcome.err()) {
        anyhow::bail!("pods under a trace: {why}");
    }
    let mut trace = Trace::default();
    for line in instance.lines()? {
        trace.line(&line.context("read the trace")?);
    }
    for ((who, step), micros) in trace.by_step(&threads) {
        let ms = micros / 1000.0 / PODS as f64;
        if ms >= LEAST_MS {
            figures.add(&format!("{KERNEL}{who}{step}"), &ours.name, "ms", ms);
        }
    }
    Ok(())
}

fn threads(of: Pid) -> Result<BTreeSet<u32>> {
    let path = format!("/proc/{}/task", of.as_raw_nonzero());
    let entries = fs::read_dir(&path).with_context(|| format!("read {path}"))?;
    Ok(entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
}

/// A trace of our own, beside whatever the machine traces; it goes when this is dropped.
#[derive(Debug)]
struct Instance {
    directory: TempDir,
}

impl Instance {
    fn new() -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("bt-").tempdir().context("make a directory")?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        mount("tracefs", directory.path(), "tracefs", flags, None).context("mount a tracefs")?;
        let instance = Self { directory };
        fs::create_dir(instance.path()).context("make an instance")?;
        instance.put("buffer_size_kb", &BUFFER_KIB.to_string())?;
        instance.put("options/event-fork", "1")?;
        instance.put("events/sched/sched_switch/enable", "1")?;
        instance.put("events/syscalls/enable", "1")?;
        Ok(instance)
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("instances").join(format!("berth-bench-{}", std::process::id()))
    }

    fn put(&self, file: &str, value: &str) -> Result<()> {
        fs::write(self.path().join(file), value).with_context(|| format!("write {value} to {file}"))
    }

    fn begin(&self, threads: &BTreeSet<u32>) -> Result<()> {
        let list: Vec<String> = threads.iter().map(u32::to_string).collect();
        self.put("set_event_pid", &list.join(" "))?;
        self.put("trace", "")?;
        self.put("tracing_on", "1")
    }

    fn end(&self) -> Result<()> {
        self.put("tracing_on", "0")
    }

    fn lines(&self) -> Result<impl Iterator<Item = std::io::Result<String>>> {
        let file = fs::File::open(self.path().join("trace")).context("open the trace")?;
        // Names of programs and files are what people call them.
        let lines = BufReader::new(file).split(b'\n');
        Ok(lines.map(|line| line.map(|line| String::from_utf8_lossy(&line).into_owned())))
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        // It may not have come to an instance.
        if self.path().is_dir()
            && let Err(error) = fs::remove_dir(self.path())
        {
            eprintln!("xtask: remove {}: {error}", self.path().display());
        }
        if let Err(error) = unmount(self.directory.path(), UnmountFlags::DETACH) {
            eprintln!("xtask: unmount {}: {error}", self.directory.path().display());
        }
    }
}

/// Calls under way, and what those that returned took.
#[derive(Debug, Default)]
struct Trace {
    open: BTreeMap<u32, Call>,
    /// Microseconds by thread and step.
    took: BTreeMap<(u32, &'static str), f64>,
}

#[derive(Debug)]
struct Call {
    name: String,
    since: f64,
    /// When it began to sleep for somebody else's doing.
    asleep: Option<f64>,
    slept: f64,
}

impl Trace {
    /// `NAME-TID [CPU] FLAGS SECONDS: EVENT`.
    fn line(&mut self, line: &str) {
        self.event(line);
    }

    fn event(&mut self, line: &str) -> Option<()> {
        let (task, rest) = line.split_once(" [")?;
        let tid: u32 = task.trim_end().rsplit_once('-')?.1.parse().ok()?;
        let (head, event) = rest.split_once(": ")?;
        let micros = head.rsplit_once(' ')?.1.parse::<f64>().ok()? * 1e6;
        if let Some(switch) = event.strip_prefix("sched_switch: ") {
            let (previous, next) = switch.split_once(" ==> ")?;
            if previous.ends_with("prev_state=S")
                && let Some(call) = self.open.get_mut(&tid)
            {
                call.asleep = Some(micros);
            }
            let next = next.rsplit_once(" next_pid=")?.1.split(' ').next()?.parse().ok()?;
            let call: &mut Call = self.open.get_mut(&next)?;
            call.slept += micros - call.asleep.take()?;
            return None;
        }
        let call = event.strip_prefix("sys_")?;
        if let Some((name, _)) = call.split_once(" -> ").filter(|(name, _)| !name.contains('(')) {
            let call = self.open.remove(&tid).filter(|call| call.name == name)?;
            // Not every switch back is told.
            let slept = call.slept + call.asleep.map_or(0.0, |since| micros - since);
            *self.took.entry((tid, step(name))).or_default() += micros - call.since - slept;
        } else {
            let name = call.split_once('(')?.0.to_owned();
            self.open.insert(tid, Call { name, since: micros, asleep: None, slept: 0.0 });
        }
        None
    }

    /// The sums, most first, of who has these threads and of all others.
    fn by_step(&self, threads: &BTreeSet<u32>) -> Vec<((&'static str, &'static str), f64)> {
        let mut sums: BTreeMap<(&str, &str), f64> = BTreeMap::new();
        for ((tid, step), micros) in &self.took {
            let who = if threads.contains(tid) { BERTHD } else { SHIMS };
            *sums.entry((who, step)).or_default() += micros;
        }
        let mut sums: Vec<_> = sums.into_iter().collect();
        sums.sort_by(|one, other| other.1.total_cmp(&one.1));
        sums
    }
}

/// What a system call is a part of.
fn step(name: &str) -> &'static str {
    match name {
        "clone" | "clone3" | "fork" | "vfork" | "execve" | "execveat" | "wait4" | "waitid" => "processes",
        "unshare" | "setns" => "namespaces",
        "fsopen" | "fsconfig" | "fsmount" => "file systems: overlay, proc, tmpfs",
        "mount" | "umount" | "open_tree" | "open_tree_attr" | "move_mount" | "mount_setattr"
        | "pivot_root" => "mounts",
        "seccomp" | "prctl" | "capset" | "setgroups" | "setresuid" | "setresgid" => "credentials, seccomp",
        "mmap" | "munmap" | "mprotect" | "mremap" | "madvise" | "brk" | "memfd_create" => "memory",
        "write" | "pwrite64" | "writev" => "writes: cgroups, records, words",
        "mkdir" | "mkdirat" | "rmdir" | "unlink" | "unlinkat" | "rename" | "renameat" | "renameat2" => {
            "directories"
        }
        _ if name.contains("sock") || name.starts_with("send") || name.starts_with("recv") => {
            "sockets: netlink, words"
        }
        "bind" | "connect" | "accept4" | "shutdown" => "sockets: netlink, words",
        _ if name.contains("stat") || name.contains("open") || name.contains("read") => "files",
        "close" | "close_range" | "dup" | "dup3" | "fcntl" | "getdents64" | "lseek" | "flock"
        | "ftruncate" => "files",
        _ => "others",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINES: &str = "# tracer: nop\n\
        \x20         berthd-70      [001] .....   10.000100: sys_openat(dfd: 9, filename: 1, flags: 0, mode: 0)\n\
        \x20         berthd-70      [001] .....   10.000130: sys_openat -> 0x3\n\
        \x20     tokio-rt-w-71      [000] .....   10.000200: sys_epoll_wait(epfd: 3)\n\
        \x20     tokio-rt-w-71      [000] d..2.   10.000210: sched_switch: prev_comm=tokio prev_pid=71 prev_prio=120 prev_state=S ==> next_comm=swapper/0 next_pid=0 next_prio=120\n\
        \x20         <idle>-0       [000] d..2.   10.005210: sched_switch: prev_comm=swapper/0 prev_pid=0 prev_prio=120 prev_state=R ==> next_comm=tokio next_pid=71 next_prio=120\n\
        \x20     tokio-rt-w-71      [000] .....   10.005215: sys_epoll_wait -> 0x1\n\
        \x20     tokio-rt-w-71      [000] .....   10.005300: sys_futex(uaddr: 1)\n\
        \x20     tokio-rt-w-71      [000] d..2.   10.005305: sched_switch: prev_comm=tokio prev_pid=71 prev_prio=120 prev_state=S ==> next_comm=swapper/0 next_pid=0 next_prio=120\n\
        \x20     tokio-rt-w-71      [000] .....   10.009000: sys_futex -> 0x0\n\
        \x20      my-shim 1-80      [000] .....   11.000000: sys_unshare(unshare_flags: 40000000)\n\
        \x20      my-shim 1-80      [000] d..2.   11.000010: sched_switch: prev_comm=a prev_pid=80 prev_prio=120 prev_state=D ==> next_comm=b next_pid=70 next_prio=120\n\
        \x20      my-shim 1-80      [000] .....   11.001000: sys_unshare -> 0x0\n\
        \x20      my-shim 1-81      [000] .....   12.000000: sys_clone3 -> 0x0\n";

    #[test]
    fn a_call_takes_until_its_return_but_for_sleep_that_others_end() {
        let mut trace = Trace::default();
        LINES.lines().for_each(|line| trace.line(line));
        let sums = trace.by_step(&BTreeSet::from([70, 71]));
        let rounded: Vec<_> = sums.into_iter().map(|(what, micros)| (what, micros.round())).collect();
        assert_eq!(
            rounded,
            [((SHIMS, "namespaces"), 1000.0), ((BERTHD, "files"), 30.0), ((BERTHD, "others"), 20.0)]
        );
    }

    #[test]
    fn what_is_no_line_of_a_trace_is_left_out() {
        let mut trace = Trace::default();
        for line in
            ["", "a", "a-1 [000] x: sys_", "a-b [000] ..... 1.0: sys_open(", "a-1 [0] . 1.0: sys_open -> 0x0"]
        {
            trace.line(line);
        }
        assert!(trace.took.is_empty());
    }
}
