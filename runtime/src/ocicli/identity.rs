//! Which process a number means: pid, start time and boot id together name one for ever. `proc_pid_stat(5)`.

use std::{fs, os::fd::OwnedFd};

use rustix::{
    event::{PollFd, PollFlags, poll},
    process::{Pid, PidfdFlags, pidfd_open},
};
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// 0: there is none yet.
    pub pid: i32,
    pub start_time: u64,
    pub boot_id: String,
}

impl Identity {
    pub fn new(pid: i32, start_time: u64) -> Result<Self> {
        Ok(Self { pid, start_time, boot_id: boot_id()? })
    }

    /// Whether it is there and has not ended: one that only waits to be reaped has.
    pub fn lives(&self) -> bool {
        let known = self.pid > 0 && boot_id().is_ok_and(|boot_id| boot_id == self.boot_id);
        known
            && fs::read_to_string(format!("/proc/{}/stat", self.pid))
                .ok()
                .and_then(|text| parse(&text))
                .is_some_and(|(state, started)| started == self.start_time && !matches!(state, 'Z' | 'X'))
    }

    /// A handle that no other process can get under; None where it is gone.
    pub fn handle(&self) -> Result<Option<OwnedFd>> {
        let Some(pid) = Pid::from_raw(self.pid) else { return Ok(None) };
        match pidfd_open(pid, PidfdFlags::empty()) {
            // Looked at after it is held: the number is its own now.
            Ok(pidfd) => Ok(self.lives().then_some(pidfd)),
            Err(rustix::io::Errno::SRCH) => Ok(None),
            Err(errno) => Err(Error::io("open process", self.pid.to_string(), errno)),
        }
    }
}

/// Kills a process and waits until it has ended; gone already is as good.
pub fn end(process: &OwnedFd) {
    rustix::process::pidfd_send_signal(process, rustix::process::Signal::KILL).ok();
    while poll(&mut [PollFd::new(process, PollFlags::IN)], None) == Err(rustix::io::Errno::INTR) {}
}

fn boot_id() -> Result<String> {
    const PATH: &str = "/proc/sys/kernel/random/boot_id";
    let text = fs::read_to_string(PATH).map_err(|error| Error::io("read", PATH, error))?;
    Ok(text.trim().to_owned())
}

/// State and start time. The second field is the program's name and may hold anything.
fn parse(stat: &str) -> Option<(char, u64)> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_a_parenthesis_hides_nothing() {
        let rest = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20";
        assert_eq!(parse(&format!("7 (a) Z (b) {rest}")), Some(('S', 4711)));
        assert_eq!(parse("7 (a"), None);
    }

    #[test]
    fn we_live_and_a_number_with_another_start_does_not() {
        let pid = std::process::id() as i32;
        let text = fs::read_to_string("/proc/self/stat").unwrap();
        let own = Identity::new(pid, parse(&text).unwrap().1).unwrap();
        assert!(own.lives() && own.handle().unwrap().is_some());
        assert!(!Identity { start_time: own.start_time + 1, ..own.clone() }.lives());
        assert!(!Identity { boot_id: "another".into(), ..own }.lives());
        assert!(!Identity::default().lives());
    }
}
