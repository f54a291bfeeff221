//! Capability names and sets, `capabilities(7)`.

use crate::{Error, Result};

/// In the kernel's order: position n is bit n.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// What a container gets unless told otherwise: docker's and containerd's set.
const DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// Bit masks of the sets that can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sets {
    /// Bounding, permitted and effective.
    pub bounding: u64,
    pub ambient: u64,
}

/// Applies additions and removals to the default set, or to all where privileged. `ALL` goes first: `drop ALL, add X`
/// is just X, whatever the order.
///
/// # Errors
/// `Invalid` for a name that no kernel knows.
pub fn sets(asked: &Asked<'_>, last: u32) -> Result<Sets> {
    let every = every(last);
    if asked.privileged {
        return Ok(Sets { bounding: every, ambient: 0 });
    }
    let default = DEFAULT.iter().try_fold(0, |mask, name| bit(name).map(|bit| mask | bit))?;
    let is_all = |names: &[String]| names.iter().any(|name| plain(name) == "ALL");
    let mut mask = match (is_all(asked.add), is_all(asked.drop)) {
        (_, true) => 0,
        (true, false) => every,
        (false, false) => default,
    };
    for name in asked.drop.iter().filter(|name| plain(name) != "ALL") {
        mask &= !bit(name)?;
    }
    for name in asked.add.iter().filter(|name| plain(name) != "ALL") {
        mask |= bit(name)?;
    }
    let ambient = asked.ambient.iter().try_fold(0, |mask, name| bit(name).map(|bit| mask | bit))?;
    Ok(Sets { bounding: (mask | ambient) & every, ambient: ambient & every })
}

#[derive(Debug, Default)]
pub struct Asked<'a> {
    pub privileged: bool,
    pub add: &'a [String],
    pub drop: &'a [String],
    pub ambient: &'a [String],
}

/// `CAP_X` for each bit, as OCI documents have them.
pub fn names(mask: u64) -> Vec<String> {
    let set = |n: &usize| mask & (1 << n) != 0;
    (0..NAMES.len()).filter(set).map(|n| format!("CAP_{}", NAMES[n])).collect()
}

/// The bit of a name, with or without `CAP_`, in any case.
pub fn bit(name: &str) -> Result<u64> {
    let wanted = plain(name);
    match NAMES.iter().position(|known| *known == wanted) {
        Some(n) => Ok(1 << n),
        None => Err(Error::invalid("read capabilities", name, "no kernel knows it")
            .hint("capabilities(7) lists the names")),
    }
}

fn every(last: u32) -> u64 {
    let known = NAMES.len() as u32 - 1;
    (1 << (last.min(known) + 1)) - 1
}

fn plain(name: &str) -> String {
    let upper = name.to_ascii_uppercase();
    upper.strip_prefix("CAP_").unwrap_or(&upper).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(add: &[&str], drop: &[&str]) -> Vec<String> {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let (add, drop) = (owned(add), owned(drop));
        names(sets(&Asked { add: &add, drop: &drop, ..Asked::default() }, 40).unwrap().bounding)
    }

    #[test]
    fn additions_and_removals_mean_what_docker_means() {
        assert_eq!(of(&[], &[]).len(), 14);
        assert_eq!(of(&[], &["ALL"]), Vec::<String>::new());
        assert_eq!(of(&["net_admin"], &["all"]), ["CAP_NET_ADMIN"]);
        assert_eq!(of(&["ALL"], &[]).len(), 41);
        assert_eq!(of(&["ALL"], &["CAP_SYS_ADMIN"]).len(), 40);
        assert!(!of(&[], &["CHOWN"]).contains(&"CAP_CHOWN".to_owned()));
    }

    #[test]
    fn an_unknown_name_is_refused_and_an_old_kernels_last_one_is_the_last() {
        let unknown = ["CAP_FLY".to_owned()];
        assert!(sets(&Asked { add: &unknown, ..Asked::default() }, 40).is_err());
        let all = sets(&Asked { privileged: true, ..Asked::default() }, 37).unwrap();
        assert_eq!(names(all.bounding).last().unwrap(), "CAP_AUDIT_READ");
    }
}
