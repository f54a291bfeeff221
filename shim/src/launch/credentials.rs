//! Ids, capabilities, limits, seccomp: what a process may. Every one of these is an error if it fails; only what a host
//! without CAP_SYS_RESOURCE denies is clamped and said.

use std::{
    io::IoSlice,
    mem::MaybeUninit,
    os::fd::{AsFd, OwnedFd},
};

use berth_launch::v1::{Process, Rlimit, Step};
use rustix::{
    io::Errno,
    net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg},
    process::{Pid, Resource, Rlimit as Limit, getrlimit, prlimit},
    thread::{
        CapabilitySet, CapabilitySets, Gid, Uid, capabilities as get, clear_ambient_capability_set,
        configure_capability_in_ambient_set, remove_capability_from_bounding_set, set_capabilities,
        set_thread_groups, set_thread_res_gid, set_thread_res_uid,
    },
};

use super::{
    failure::{At, Result, fail},
    hooks,
    user::Resolved,
};
use crate::kernel;

/// Sets the score, clamped to the inherited one where lowering it is denied; the warning says so.
pub fn oom_score_adj(score: i32) -> Result<Option<String>> {
    const FILE: &str = "/proc/self/oom_score_adj";
    match std::fs::write(FILE, score.to_string()) {
        Ok(()) => Ok(None),
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => Ok(Some(format!(
            "oom_score_adj {score} is denied without CAP_SYS_RESOURCE, the inherited one stays"
        ))),
        Err(error) => Err(fail(Step::OomScore, FILE, error.raw_os_error().unwrap_or(0), "")),
    }
}

/// Sets limits of a process, or of this one, clamped to the inherited hard limit where raising it is denied.
pub fn rlimits(whose: Option<Pid>, limits: &[Rlimit]) -> Result<Vec<String>> {
    let mut warnings = Vec::new();
    for limit in limits {
        let name = format!("rlimit {}", limit.resource);
        let Some(resource) = resource(limit.resource) else {
            return Err(fail(Step::Rlimit, name, libc::EINVAL, "no such resource"));
        };
        let value = |n: u64| (n != u64::MAX).then_some(n);
        let wanted = Limit { current: value(limit.soft), maximum: value(limit.hard) };
        match prlimit(whose, resource, wanted) {
            Ok(_) => {}
            Err(Errno::PERM) => {
                let hard = getrlimit(resource).maximum;
                let soft = match (wanted.current, hard) {
                    (Some(soft), Some(hard)) => Some(soft.min(hard)),
                    (None, hard) => hard,
                    (soft, None) => soft,
                };
                prlimit(whose, resource, Limit { current: soft, maximum: hard }).at(Step::Rlimit, &name)?;
                warnings.push(format!("{name}: raising the hard limit is denied without CAP_SYS_RESOURCE, the inherited one stays"));
            }
            Err(errno) => return Err(fail(Step::Rlimit, name, errno.raw_os_error(), "")),
        }
    }
    Ok(warnings)
}

fn resource(number: u32) -> Option<Resource> {
    Some(match number {
        0 => Resource::Cpu,
        1 => Resource::Fsize,
        2 => Resource::Data,
        3 => Resource::Stack,
        4 => Resource::Core,
        5 => Resource::Rss,
        6 => Resource::Nproc,
        7 => Resource::Nofile,
        8 => Resource::Memlock,
        9 => Resource::As,
        10 => Resource::Locks,
        11 => Resource::Sigpending,
        12 => Resource::Msgqueue,
        13 => Resource::Nice,
        14 => Resource::Rtprio,
        15 => Resource::Rttime,
        _ => return None,
    })
}

/// Becomes the user. The bounding set shrinks first, while CAP_SETPCAP is there; permitted capabilities are kept over
/// the change of ids, `capabilities(7)`, and dropped to what the plan says by [`capabilities`], last.
pub fn ids(process: &Process, who: &Resolved) -> Result<()> {
    let keep = process.capabilities.unwrap_or_default().bounding;
    for n in 0..64 {
        let one = CapabilitySet::from_bits_retain(1 << n);
        if keep & (1 << n) == 0 {
            match remove_capability_from_bounding_set(one) {
                Ok(()) => {}
                // Past the last capability this kernel knows.
                Err(Errno::INVAL) => break,
                Err(errno) => return Err(fail(Step::Capabilities, "bounding set", errno.raw_os_error(), "")),
            }
        }
    }
    let groups: Vec<Gid> = who.groups.iter().map(|&gid| Gid::from_raw(gid)).collect();
    match process.keep_groups {
        false => set_thread_groups(&groups).at(Step::User, "setgroups")?,
        true if who.groups.iter().all(|gid| *gid == who.gid) => {}
        true => {
            let detail = "an ordinary user's container with one id has no other groups: newgidmap and /etc/subgid give more";
            return Err(fail(Step::User, "additional groups", libc::EPERM, detail));
        }
    }
    let (uid, gid) = (Uid::from_raw(who.uid), Gid::from_raw(who.gid));
    set_thread_res_gid(gid, gid, gid).at(Step::User, format!("gid {}", who.gid))?;
    rustix::thread::set_keep_capabilities(true).at(Step::Capabilities, "keepcaps")?;
    set_thread_res_uid(uid, uid, uid).at(Step::User, format!("uid {}", who.uid))?;
    rustix::thread::set_keep_capabilities(false).at(Step::Capabilities, "keepcaps")?;
    // The change to another user emptied the effective set: seccomp and the rest still need it.
    let mut sets = get(None).at(Step::Capabilities, "capget")?;
    sets.effective = sets.permitted;
    set_capabilities(None, sets).at(Step::Capabilities, "capset")
}

/// Drops to the plan's sets, then raises the ambient ones.
pub fn capabilities(process: &Process) -> Result<()> {
    let plan = process.capabilities.unwrap_or_default();
    let had = get(None).at(Step::Capabilities, "capget")?;
    let set = CapabilitySet::from_bits_retain;
    // What the shim itself lacks it cannot give: a container then has what there is, like the host's root.
    let permitted = set(plan.permitted) & had.permitted;
    let sets = CapabilitySets {
        effective: set(plan.effective) & permitted,
        permitted,
        inheritable: set(plan.inheritable) & (had.permitted | had.inheritable),
    };
    set_capabilities(None, sets).at(Step::Capabilities, "capset")?;
    clear_ambient_capability_set().at(Step::Capabilities, "ambient set")?;
    for n in 0..64u32 {
        let one = set(1u64.checked_shl(n).unwrap_or(0));
        if plan.ambient & (1 << n) != 0 && sets.permitted.contains(one) && sets.inheritable.contains(one) {
            configure_capability_in_ambient_set(one, true).at(Step::Capabilities, "ambient set")?;
        }
    }
    Ok(())
}

/// Loads the plan's filter, where it has one. Its notifications go where the plan wants them: the filter is in force by
/// then, so one that asks about sendmsg(2) asks nobody and waits for ever.
pub fn seccomp(process: &Process, listener: Option<(&OwnedFd, i32)>) -> Result<()> {
    if process.seccomp.is_empty() {
        return Ok(());
    }
    let listens = if listener.is_some() { libc::SECCOMP_FILTER_FLAG_NEW_LISTENER as u32 } else { 0 };
    let notify = kernel::seccomp::load(&process.seccomp, process.seccomp_flags | listens)
        .at(Step::Seccomp, "filter")?;
    match (notify, listener, &process.seccomp_listener) {
        (Some(notify), Some((socket, pid)), Some(plan)) => {
            let state = hooks::state(&plan.state, pid);
            let fds = [notify.as_fd()];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            ancillary.push(SendAncillaryMessage::ScmRights(&fds));
            sendmsg(socket, &[IoSlice::new(&state)], &mut ancillary, SendFlags::NOSIGNAL)
                .at(Step::Seccomp, &plan.path)
                .map(|_| ())
        }
        _ => Ok(()),
    }
}
