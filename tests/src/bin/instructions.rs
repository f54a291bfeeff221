//! Counts the instructions of a launch outside the kernel, one by one: `instructions PID`.
//!
//! Follows whatever the process PID starts, lets its own threads run on, and steps through the others until one executes
//! a container's program. Says `ready` once it follows; at the end of its standard input, how many there were, and ends. (callgrind
//! knows no clone3(2), and counters of the processor are not to be had in most virtual machines.) `ptrace(2)`.

use std::{
    collections::{HashMap, HashSet},
    fs, io,
    path::Path,
    process::{Command, ExitCode, Stdio},
};

use nix::{
    errno::Errno,
    sys::{
        ptrace::{self, Options},
        signal::Signal,
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};
use rustix::{
    process::setpriority_process,
    thread::{CpuSet, sched_setaffinity},
};

/// Where programs of containers are; those of ours are not.
const OF_CONTAINERS: &str = "/bin";

/// One that is followed.
#[derive(Debug, Clone, Copy)]
enum Traced {
    /// It runs as ever, but for its children's sake.
    Free,
    /// Each instruction is counted; where the last one was.
    Stepped { at: u64 },
}

fn main() -> ExitCode {
    let pid = std::env::args().nth(1).and_then(|pid| pid.parse().ok()).map(Pid::from_raw);
    let Some(pid) = pid else {
        eprintln!("usage: instructions PID");
        return ExitCode::FAILURE;
    };
    match seize(pid).and_then(|()| count(pid)) {
        Ok(count) => {
            println!("{count}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("instructions: follow {pid}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn seize(process: Pid) -> io::Result<()> {
    let follow = Options::PTRACE_O_TRACECLONE
        | Options::PTRACE_O_TRACEFORK
        | Options::PTRACE_O_TRACEVFORK
        | Options::PTRACE_O_TRACEEXEC;
    for task in fs::read_dir(format!("/proc/{process}/task"))? {
        let task = task?.file_name().to_string_lossy().parse().map_err(io::Error::other)?;
        ptrace::seize(Pid::from_raw(task), follow)?;
    }
    Ok(())
}

/// Until the standard input ends: then so does a cat(1), which is waited for with all that is traced.
fn count(process: Pid) -> io::Result<u64> {
    let cat = Command::new("cat").stdout(Stdio::null()).spawn()?;
    let cat = Pid::from_raw(i32::try_from(cat.id()).map_err(io::Error::other)?);
    come_together(None);
    println!("ready");
    let (mut all, mut count) = (HashMap::new(), 0);
    loop {
        let status = wait()?;
        let Some(pid) = status.pid() else { continue };
        if pid == cat {
            break;
        }
        let traced = all.entry(pid).or_insert_with(|| first_seen(pid, process));
        let signal = match status {
            WaitStatus::Exited(..) | WaitStatus::Signaled(..) => {
                all.remove(&pid);
                continue;
            }
            WaitStatus::PtraceEvent(_, _, event) => {
                if event == nix::libc::PTRACE_EVENT_EXEC && is_a_containers(pid) {
                    *traced = Traced::Free;
                }
                None
            }
            WaitStatus::Stopped(_, Signal::SIGTRAP) => {
                if let Traced::Stepped { at } = traced {
                    let now = ptrace::getregs(pid).map_or(0, |registers| place(&registers));
                    // An instruction that repeats itself traps at each turn; how many it needs is the processor's.
                    if now != *at {
                        count += 1;
                        *at = now;
                    }
                }
                None
            }
            WaitStatus::Stopped(_, signal) => Some(signal),
            _ => continue,
        };
        unless_gone(match traced {
            Traced::Free => ptrace::cont(pid, signal),
            Traced::Stepped { .. } => ptrace::step(pid, signal),
        })?;
    }
    let stepped = all.into_iter().filter(|(_, traced)| matches!(traced, Traced::Stepped { .. }));
    let_go(stepped.map(|(pid, _)| pid).collect())?;
    Ok(count)
}

/// Lets them run on. One that is left with its flag set, as those of a tracer that ends are, dies of its next step.
fn let_go(mut stepped: HashSet<Pid>) -> io::Result<()> {
    for pid in &stepped {
        unless_gone(ptrace::interrupt(*pid))?;
    }
    while !stepped.is_empty() {
        let status = wait()?;
        let Some(pid) = status.pid() else { continue };
        let signal = match status {
            WaitStatus::Exited(..) | WaitStatus::Signaled(..) => None,
            WaitStatus::Stopped(_, signal) if signal != Signal::SIGTRAP => Some(signal),
            _ => None,
        };
        match stepped.remove(&pid) {
            true => unless_gone(ptrace::detach(pid, signal))?,
            false => unless_gone(ptrace::cont(pid, signal))?,
        }
    }
    Ok(())
}

fn wait() -> io::Result<WaitStatus> {
    loop {
        match waitpid(None, Some(WaitPidFlag::__WALL)) {
            Err(Errno::EINTR) => {}
            status => return Ok(status?),
        }
    }
}

/// Killed meanwhile: its end is told next.
fn unless_gone(done: nix::Result<()>) -> io::Result<()> {
    match done {
        Err(Errno::ESRCH) => Ok(()),
        done => Ok(done?),
    }
}

#[cfg(target_arch = "x86_64")]
fn place(registers: &nix::libc::user_regs_struct) -> u64 {
    registers.rip
}

#[cfg(target_arch = "aarch64")]
fn place(registers: &nix::libc::user_regs_struct) -> u64 {
    registers.pc
}

/// On one processor a step costs two switches, on two it wakes the other one twice. Ahead of what else the machine does: a
/// launch that is stepped through has to be over within the minute that berthd gives it.
fn come_together(pid: Option<Pid>) {
    let mut first = CpuSet::new();
    first.set(0);
    let pid = pid.and_then(|pid| rustix::process::Pid::from_raw(pid.as_raw()));
    // It takes longer otherwise.
    sched_setaffinity(pid, &first).ok();
    setpriority_process(pid, -20).ok();
}

fn first_seen(pid: Pid, process: Pid) -> Traced {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let group = status.lines().find_map(|line| line.strip_prefix("Tgid:"));
    let its_own = group.is_some_and(|group| group.trim() == process.to_string());
    if its_own {
        return Traced::Free;
    }
    come_together(Some(pid));
    Traced::Stepped { at: 0 }
}

fn is_a_containers(pid: Pid) -> bool {
    fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe.parent() == Some(Path::new(OF_CONTAINERS)))
}
