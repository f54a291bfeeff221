//! Descriptors that the caller passes on to the container: `--preserve-fds`, and sockets by `sd_listen_fds(3)`.

use std::fs;

use super::line::wrong;
use crate::Result;

/// How many sockets the environment says that we were passed. It may be another process's, and what it says for that one.
pub fn listening(variable: &dyn Fn(&str) -> Option<String>, own: u32) -> u32 {
    let number = |name| variable(name).and_then(|text| text.parse::<u32>().ok());
    match number("LISTEN_PID") {
        Some(pid) if pid == own => number("LISTEN_FDS").unwrap_or(0),
        _ => 0,
    }
}

/// Checks that so many descriptors from 3 on were passed to us.
///
/// # Errors
/// `Invalid` for one that is not open, or that we have opened ourselves since.
pub fn are_open(count: u32) -> Result<()> {
    for number in 3..count.saturating_add(3) {
        let told = fs::read_to_string(format!("/proc/self/fdinfo/{number}")).unwrap_or_default();
        if !inherited(&told) {
            let why = format!("{count} are to be passed from 3 on, and {number} is not open");
            return Err(wrong("--preserve-fds", why));
        }
    }
    Ok(())
}

/// Whether a descriptor is open and stays that over execve: ours are all closed there. `proc_pid_fdinfo(5)`.
fn inherited(told: &str) -> bool {
    let flags = told.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|text| i32::from_str_radix(text.trim(), 8).ok());
    flags.is_some_and(|flags| flags & libc::O_CLOEXEC == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_are_ours_only_by_our_pid() {
        let of = |pid: &'static str, count: &'static str| {
            let variable = move |name: &str| match name {
                "LISTEN_PID" => Some(pid.to_owned()),
                "LISTEN_FDS" => Some(count.to_owned()),
                _ => None,
            };
            listening(&variable, 7)
        };
        assert_eq!(of("7", "2"), 2);
        for (pid, count) in [("8", "2"), ("", "2"), ("7", ""), ("7", "-1"), ("seven", "2")] {
            assert_eq!(of(pid, count), 0, "{pid} {count}");
        }
        assert_eq!(listening(&|_| None, 7), 0);
    }

    #[test]
    fn a_descriptor_of_ours_was_not_passed() {
        assert!(inherited("pos:\t0\nflags:\t0100002\nmnt_id:\t1\n"));
        assert!(!inherited("pos:\t0\nflags:\t02100002\n") && !inherited(""));
    }
}
