//! Signals as people write them: `TERM`, `SIGTERM`, `15`, `RTMIN+3`.

use crate::{Error, Result};

/// Names as signal(7) has them on every Linux architecture that Berth runs on.
const NAMES: [(&str, i32); 34] = [
    ("HUP", libc::SIGHUP),
    ("INT", libc::SIGINT),
    ("QUIT", libc::SIGQUIT),
    ("ILL", libc::SIGILL),
    ("TRAP", libc::SIGTRAP),
    ("ABRT", libc::SIGABRT),
    ("IOT", libc::SIGABRT),
    ("BUS", libc::SIGBUS),
    ("FPE", libc::SIGFPE),
    ("KILL", libc::SIGKILL),
    ("USR1", libc::SIGUSR1),
    ("SEGV", libc::SIGSEGV),
    ("USR2", libc::SIGUSR2),
    ("PIPE", libc::SIGPIPE),
    ("ALRM", libc::SIGALRM),
    ("TERM", libc::SIGTERM),
    ("STKFLT", libc::SIGSTKFLT),
    ("CHLD", libc::SIGCHLD),
    ("CLD", libc::SIGCHLD),
    ("CONT", libc::SIGCONT),
    ("STOP", libc::SIGSTOP),
    ("TSTP", libc::SIGTSTP),
    ("TTIN", libc::SIGTTIN),
    ("TTOU", libc::SIGTTOU),
    ("URG", libc::SIGURG),
    ("XCPU", libc::SIGXCPU),
    ("XFSZ", libc::SIGXFSZ),
    ("VTALRM", libc::SIGVTALRM),
    ("PROF", libc::SIGPROF),
    ("WINCH", libc::SIGWINCH),
    ("IO", libc::SIGIO),
    ("POLL", libc::SIGIO),
    ("PWR", libc::SIGPWR),
    ("SYS", libc::SIGSYS),
];

/// The first real-time signal that a libc leaves to programs, and the last one.
const REALTIME: (u32, u32) = (34, 64);

/// The number of a signal; empty text is the caller's matter.
///
/// # Errors
/// `Invalid` for what names none.
pub(super) fn parse(text: &str) -> Result<u32> {
    let (first, last) = REALTIME;
    let upper = text.trim().to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let offset = |digits: &str| digits.parse::<u32>().ok().filter(|offset| *offset <= last - first);
    let number = if let Some((_, number)) = NAMES.iter().find(|(known, _)| *known == name) {
        u32::try_from(*number).ok()
    } else if let Some(rest) = name.strip_prefix("RTMIN") {
        if rest.is_empty() { Some(first) } else { rest.strip_prefix('+').and_then(offset).map(|o| first + o) }
    } else if let Some(rest) = name.strip_prefix("RTMAX") {
        if rest.is_empty() { Some(last) } else { rest.strip_prefix('-').and_then(offset).map(|o| last - o) }
    } else if name.bytes().all(|byte| byte.is_ascii_digit()) {
        name.parse().ok().filter(|number| (1..=last).contains(number))
    } else {
        None
    };
    number.ok_or_else(|| {
        Error::invalid("read signal", format!("{text:?}"), "no signal is called so")
            .hint("write it as TERM, SIGTERM, 15 or RTMIN+3")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_is_a_name_with_or_without_sig_or_a_number() {
        let rows = [
            ("TERM", Some(15)),
            ("SIGTERM", Some(15)),
            ("sigterm", Some(15)),
            ("kill", Some(9)),
            ("9", Some(9)),
            ("64", Some(64)),
            ("SIGRTMIN", Some(34)),
            ("SIGRTMIN+3", Some(37)),
            ("RTMAX-1", Some(63)),
            ("RTMAX", Some(64)),
            ("0", None),
            ("65", None),
            ("-9", None),
            ("+9", None),
            ("", None),
            ("SIG", None),
            ("NOPE", None),
            ("RTMIN+31", None),
            ("RTMIN-1", None),
        ];
        for (text, expected) in rows {
            assert_eq!(parse(text).ok(), expected, "{text:?}");
        }
    }
}
