//! Why a container ended, in words: what its shim wrote, and where a signal ended it who sent that, as far as Berth knows.
//! Pure.

use std::time::Duration;

use berth_launch::v1::{Denied, Exit, Sent, denied::Filter, sent::By};
use nix::sys::signal::Signal;

use crate::oci;

/// Empty: it exited, and there is no more to be told.
pub fn told(exit: &Exit) -> String {
    let by_signal = match (&exit.denied, exit.sent) {
        (Some(denied), _) => Some(forbidden(denied, exit.pid)),
        (None, Some(sent)) if exit.message.is_empty() || explains(sent.by()) => Some(ended_by(sent)),
        (None, _) => None,
    };
    match (exit.message.as_str(), by_signal) {
        (message, None) => message.to_owned(),
        ("", Some(by_signal)) => by_signal,
        (message, Some(by_signal)) => format!("{message}; {by_signal}"),
    }
}

/// Whether it adds to a message, which tells of ill health and of want of memory by itself.
fn explains(by: By) -> bool {
    match by {
        By::NobodyHere | By::Unhealthy | By::GraceOver => false,
        By::Stop | By::Kill | By::PodStops | By::Removed | By::GivesWay | By::NoAnswer => true,
    }
}

fn ended_by(sent: Sent) -> String {
    let name = name(sent.signal);
    let why = match sent.by() {
        By::NobodyHere => return format!("ended by {name}, which Berth did not send"),
        By::Stop if sent.grace_ms == 0 => "because it was to stop at once".to_owned(),
        By::Stop => "because it was to stop".to_owned(),
        By::GraceOver => {
            let grace = Duration::from_millis(sent.grace_ms);
            format!("because it had not ended {grace:?} after it was asked to")
        }
        By::Kill => "because it was asked to send that".to_owned(),
        By::PodStops => "because its pod was stopped".to_owned(),
        By::Removed => "because it was removed".to_owned(),
        By::GivesWay => "because another attempt takes its place".to_owned(),
        By::Unhealthy => "because it was unhealthy".to_owned(),
        By::NoAnswer => "to all of its cgroup, because its shim did not end it".to_owned(),
    };
    format!("ended by {name}, which Berth sent {why}")
}

fn forbidden(denied: &Denied, pid: i32) -> String {
    let filter = match denied.filter() {
        Filter::Profile => "its seccomp profile",
        Filter::Own => "a seccomp filter that it has set itself",
        Filter::Either => "a seccomp filter, that of its profile or one of its own,",
    };
    match denied.program.as_str() {
        "" => format!(
            "ended by SIGSYS, by which {filter} forbids a system call; which one, the kernel's log does not tell (an audit \
             daemon may have it: ausearch -m SECCOMP -p {pid}; SCMP_ACT_KILL_PROCESS is logged, SCMP_ACT_TRAP is not)"
        ),
        program => {
            let call = oci::system_call(denied.call, denied.arch);
            format!(
                "ended by SIGSYS: {filter} forbids the system call {call}, which process {pid} ({program}) made"
            )
        }
    }
}

fn name(signal: u32) -> String {
    let named = i32::try_from(signal).ok().and_then(|signal| Signal::try_from(signal).ok());
    named.map_or_else(|| format!("signal {signal}"), |signal| signal.as_str().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn by(signal: u32, by: By, grace_ms: u64) -> Exit {
        Exit { signal, sent: Some(Sent { signal, by: by.into(), grace_ms }), ..Exit::default() }
    }

    #[test]
    fn an_end_by_a_signal_tells_who_sent_it() {
        let rows = [
            (by(15, By::Stop, 10_000), "ended by SIGTERM, which Berth sent because it was to stop"),
            (by(9, By::Stop, 0), "ended by SIGKILL, which Berth sent because it was to stop at once"),
            (
                by(9, By::GraceOver, 1500),
                "ended by SIGKILL, which Berth sent because it had not ended 1.5s after it was asked to",
            ),
            (by(37, By::Kill, 0), "ended by signal 37, which Berth sent because it was asked to send that"),
            (by(9, By::NobodyHere, 0), "ended by SIGKILL, which Berth did not send"),
        ];
        for (exit, expected) in rows {
            assert_eq!(told(&exit), expected);
        }
        assert_eq!(told(&Exit { exit_code: 3, ..Exit::default() }), "");
        // Of a shim of before nothing is known.
        assert_eq!(told(&Exit { signal: 9, ..Exit::default() }), "");
    }

    #[test]
    fn a_message_of_its_own_comes_first_and_is_enough_where_it_names_the_cause() {
        let with = |exit: Exit| told(&Exit { message: "m".into(), ..exit });
        assert_eq!(with(by(9, By::NobodyHere, 0)), "m");
        assert_eq!(with(by(9, By::GraceOver, 10)), "m");
        assert!(with(by(9, By::Removed, 0)).starts_with("m; ended by SIGKILL, which Berth sent because"));
    }

    #[test]
    fn a_forbidden_call_is_named_where_the_kernel_tells_it() {
        let denied = |filter: Filter, program: &str, arch| {
            let denied = Denied { filter: filter.into(), program: program.into(), call: 87, arch };
            told(&Exit { pid: 12, denied: Some(denied), ..by(31, By::NobodyHere, 0) })
        };
        let known = if cfg!(target_arch = "x86_64") { "unlink (87 of x86_64)" } else { "87 of" };
        let ours = if cfg!(target_arch = "x86_64") { 0xc000_003e } else { 0xc000_00b7 };
        let told = denied(Filter::Profile, "rm", ours);
        assert!(told.starts_with("ended by SIGSYS: its seccomp profile forbids the system call "), "{told}");
        assert!(told.contains(known) || cfg!(not(target_arch = "x86_64")), "{told}");
        assert!(told.ends_with(", which process 12 (rm) made"), "{told}");
        let other = denied(Filter::Own, "rm", 0x4000_0003);
        assert!(
            other.contains("set itself") && other.contains("87 of the architecture 0x40000003"),
            "{other}"
        );
        let untold = denied(Filter::Profile, "", 0);
        assert!(untold.contains("does not tell") && untold.contains("ausearch -m SECCOMP -p 12"), "{untold}");
    }
}
