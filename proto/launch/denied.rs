//! What the kernel's log says of a process that a seccomp filter ended: which system call it made. Pure.
//!
//! ```text
//! 5,901,423154195,-;audit: type=1326 audit(1796051297.753:2): auid=4294967295 uid=0 gid=0 ses=4294967295 pid=24350 comm="rm"
//!     exe="/bin/rm" sig=31 arch=c000003e syscall=87 compat=0 ip=0x438d59 code=0x80000000
//! ```
//! It is there where no audit daemon takes such records, and but for SCMP_ACT_TRAP.

use std::time::Duration;

/// The names of a classic BPF program's answers. linux/seccomp.h
const KILL_PROCESS: u32 = 0x8000_0000;
const KILL_THREAD: u32 = 0;
const TRAP: u32 = 0x0003_0000;
const ACTION: u32 = 0xffff_0000;
/// `BPF_RET | BPF_K`. linux/bpf_common.h
const RETURN: u16 = 0x06;
const SIGSYS: u32 = 31;

/// One such end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Since 1970, by the clock of then.
    pub at: Duration,
    /// As the host counts.
    pub pid: i32,
    /// Its name, as far as the kernel keeps it.
    pub program: String,
    /// The system call's number on that architecture, an AUDIT_ARCH_*.
    pub call: u32,
    pub arch: u32,
}

/// Takes a record of the kernel's log apart; none where it tells of something else, or was written by a process.
pub fn parse(record: &str) -> Option<Record> {
    let (head, text) = record.split_once(';')?;
    // syslog(2): the facility is in all bits but three, the kernel's is 0.
    let by_kernel = head.split(',').next()?.parse::<u32>().is_ok_and(|priority| priority < 8);
    let text = text.lines().next()?.strip_prefix("audit: type=1326 audit(").filter(|_| by_kernel)?;
    let (stamp, facts) = text.split_once("): ")?;
    let (seconds, milliseconds) = stamp.split_once(':')?.0.split_once('.')?;
    let at = Duration::from_secs(seconds.parse().ok()?) + Duration::from_millis(milliseconds.parse().ok()?);
    // A label of a security module may come before; whatever has white space or quotes is in digits.
    let (before, rest) = facts.split_once(" comm=")?;
    let pid = before.rsplit_once(" pid=")?.1.parse().ok()?;
    let mut words = rest.split(' ');
    let program = Some(name(words.next()?)).filter(|name| !name.is_empty()).unwrap_or_else(|| "?".to_owned());
    let mut value = |key: &str| words.find_map(|word| word.strip_prefix(key));
    let signal = value("sig=")?.parse::<u32>().ok()?;
    let arch = u32::from_str_radix(value("arch=")?, 16).ok()?;
    let call = value("syscall=")?.parse::<i64>().ok()?;
    // x32 has a high bit; the rest of the register is not the call's.
    let call = u32::try_from(call & 0xffff_ffff).ok()?;
    (signal == SIGSYS).then_some(Record { at, pid, program, call, arch })
}

/// In quotes, or in hexadecimal digits where that would be ambiguous.
fn name(text: &str) -> String {
    if let Some(quoted) = text.strip_prefix('"') {
        return quoted.trim_end_matches('"').to_owned();
    }
    let pairs = text.as_bytes().chunks(2).map(|pair| u8::from_str_radix(str::from_utf8(pair).ok()?, 16).ok());
    let bytes: Option<Vec<u8>> = pairs.collect();
    bytes.map_or_else(|| text.to_owned(), |bytes| String::from_utf8_lossy(&bytes).escape_debug().to_string())
}

/// Whether a program of `struct sock_filter`s ever answers with SIGSYS.
pub fn may_end(filter: &[u8]) -> bool {
    filter.chunks_exact(8).any(|instruction| {
        let code = u16::from_ne_bytes([instruction[0], instruction[1]]);
        let answer = u32::from_ne_bytes([instruction[4], instruction[5], instruction[6], instruction[7]]);
        code == RETURN && matches!(answer & ACTION, KILL_PROCESS | KILL_THREAD | TRAP)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn line(comm: &str) -> String {
        format!(
            "5,901,423154195,-;audit: type=1326 audit(1796051297.753:2): auid=4294967295 uid=0 gid=0 ses=4294967295 \
             subj=a b pid=3 pid=24350 comm={comm} exe=\"/tmp/a\" sig=31 arch=c000003e syscall=87 compat=0 ip=0x438d59 \
             code=0x80000000\n"
        )
    }

    #[test]
    fn a_record_tells_the_process_and_its_call() {
        let record = parse(&line("\"rm\"")).unwrap();
        let expected = Record {
            at: Duration::from_millis(1_796_051_297_753),
            pid: 24350,
            program: "rm".into(),
            call: 87,
            arch: 0xc000_003e,
        };
        assert_eq!(record, expected);
        assert_eq!(parse(&line("61207069643D31")).unwrap().program, "a pid=1");
        assert_eq!(parse(&line("\"rm\"").replace("sig=31", "sig=0")), None, "it was only logged");
        assert_eq!(parse(&line("\"rm\"").replacen('5', "13", 1)), None, "a process wrote it");
        assert_eq!(parse("5,1,2,-;audit: type=1400 audit(1.0:2): apparmor"), None);
    }

    #[test]
    fn a_filter_that_only_refuses_sends_no_signal() {
        let instruction =
            |code: u16, k: u32| [&code.to_ne_bytes()[..], &[0, 0], &k.to_ne_bytes()[..]].concat();
        let refuses =
            [instruction(0x20, 0), instruction(RETURN, 0x0005_0001), instruction(RETURN, 0x7fff_0000)];
        assert!(!may_end(&refuses.concat()) && !may_end(&[]));
        for answer in [KILL_PROCESS, KILL_THREAD, TRAP, TRAP | 7] {
            assert!(may_end(&[refuses.concat(), instruction(RETURN, answer)].concat()), "{answer:x}");
        }
    }

    proptest! {
        #[test]
        fn no_record_and_no_name_brings_it_down(text in any::<String>(), comm in "[^ ]{0,16}") {
            parse(&text);
            parse(&format!("5,1,2,-;audit: type=1326 audit({text}"));
            parse(&line(&comm));
            name(&text);
        }
    }
}
