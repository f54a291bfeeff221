//! User namespaces: made of maps and held by their file, entered by a process on its way to become a container's init.
//! `user_namespaces(7)`.
//!
//! ```text
//! shim ─ clone3 ─> usher: cgroups, OOM score, the root's place ─ setns ─ uid 0 ─ clone3(CLONE_PARENT) ─> init
//! ```
//! Init's other namespaces are made inside, so they belong to it. What takes the host's rights is done before. The usher
//! leaves once it has told init's pid, and init is the shim's child like any other.

use std::{
    fmt::Write,
    os::fd::{AsFd, OwnedFd},
};

use berth_launch::v1::{ContainerPlan, IdMap, NamespaceKind, Ready, Step};
use rustix::{
    fs::{FileType, Gid, Mode, OFlags, Uid, fchown, fstat, open},
    io::Errno,
    thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid},
};

use super::{
    attributes,
    channel::{Channel, Message_},
    child::{self, Streams},
    credentials, end,
    failure::{At, Result, fail},
    namespaces,
    prepare::Prepared,
};
use crate::kernel::{
    self,
    clone::{Parent, Side},
};

/// The plan's user namespace, made or opened; none where it has the host's.
pub fn of(plan: &ContainerPlan) -> Result<Option<OwnedFd>> {
    let Some(namespace) = plan.namespaces.iter().find(|one| one.kind() == NamespaceKind::User) else {
        return Ok(None);
    };
    match namespace.path.as_str() {
        "" => make(&plan.uid_maps, &plan.gid_maps).map(Some),
        path => open_namespace(path, Step::NamespaceJoin).map(Some),
    }
}

/// Makes a user namespace that nobody is in: the file holds it.
pub fn make(uids: &[IdMap], gids: &[IdMap]) -> Result<OwnedFd> {
    let (ours, theirs) = Channel::pair()?;
    let cloned = kernel::clone::clone3(libc::CLONE_NEWUSER as u64, None, Parent::Us);
    match cloned.map_err(|error| refused(&error))? {
        Side::Child => {
            drop(ours);
            theirs.wait_for_gate();
            kernel::clone::exit_now(0)
        }
        Side::Parent { pid, pidfd } => {
            drop(theirs);
            let made = map(pid, uids, gids)
                .and_then(|()| open_namespace(&format!("/proc/{pid}/ns/user"), Step::UserNamespace));
            end(&pidfd);
            made
        }
    }
}

pub fn refused(error: &std::io::Error) -> berth_launch::v1::Failure {
    let errno = error.raw_os_error().unwrap_or(0);
    let detail = match errno {
        libc::ENOSPC => "the limit user.max_user_namespaces is reached",
        libc::EINVAL => "this kernel has no user namespaces",
        _ => "",
    };
    fail(Step::UserNamespace, "clone", errno, detail)
}

pub fn open_namespace(path: &str, step: Step) -> Result<OwnedFd> {
    open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).at(step, path)
}

/// Writes the maps of a process's new user namespace: each once, whole, from outside, so setgroups(2) stays allowed.
pub fn map(pid: i32, uids: &[IdMap], gids: &[IdMap]) -> Result<()> {
    for (file, maps) in [("uid_map", uids), ("gid_map", gids)] {
        let mut text = String::new();
        for IdMap { inside, outside, length } in maps {
            // A String takes every write.
            writeln!(text, "{inside} {outside} {length}").ok();
        }
        let object = format!("{file} {}", text.trim_end().replace('\n', ", "));
        std::fs::write(format!("/proc/{pid}/{file}"), text).at(Step::UserNamespace, object)?;
    }
    Ok(())
}

/// Which of the host's ids an id inside is.
pub fn outside(maps: &[IdMap], id: u32) -> Option<u32> {
    maps.iter().find_map(|map| {
        let offset = id.checked_sub(map.inside).filter(|offset| *offset < map.length)?;
        map.outside.checked_add(offset)
    })
}

/// Becomes root of the user namespace that was just entered: what is made from now on has an owner in it.
pub fn become_root() -> Result<()> {
    let why = |errno: rustix::io::Errno| {
        let detail = "id 0 is not mapped in the user namespace, and to set it up takes its root";
        fail(Step::User, "0", errno.raw_os_error(), detail)
    };
    match set_thread_groups(&[]) {
        // Denied before the map of an ordinary user's one group was written: then the groups are theirs still.
        Err(Errno::PERM) if has_no_setgroups() => {}
        other => other.map_err(why)?,
    }
    set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT).map_err(why)?;
    set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT).map_err(why)
}

/// Whether setgroups(2) is denied in our user namespace for good. To be asked where /proc is the host's.
pub fn has_no_setgroups() -> bool {
    std::fs::read("/proc/self/setgroups").is_ok_and(|text| text.starts_with(b"deny"))
}

/// Clones init by way of an usher; the warnings are the usher's. Without a user namespace init is our own clone.
pub fn clone_init(
    plan: &ContainerPlan,
    prepared: &mut Prepared,
    namespaces: u64,
    whose: Parent,
) -> Result<(Side, Vec<String>)> {
    let group = prepared.cgroup_v2.as_ref().map(AsFd::as_fd);
    if prepared.users.is_none() {
        let side = kernel::clone::clone3(namespaces, group, whose).at(Step::Clone, "init")?;
        return Ok((side, Vec::new()));
    }
    let (ours, theirs) = Channel::pair()?;
    // Its group is init's: in the user namespace nobody may move there.
    match kernel::clone::clone3(0, group, Parent::Us).at(Step::Clone, "usher")? {
        Side::Child => {
            drop(ours);
            match usher(plan, prepared, namespaces, &theirs) {
                Ok(()) => Ok((Side::Child, Vec::new())),
                Err(failure) => {
                    theirs.send_failure(failure);
                    kernel::clone::exit_now(1)
                }
            }
        }
        Side::Parent { pidfd: usher, .. } => {
            drop(theirs);
            let told = ours.receive();
            end(&usher);
            match told? {
                Message_::Ready(ready, Some(pidfd)) => {
                    Ok((Side::Parent { pid: ready.pid, pidfd }, ready.warnings))
                }
                Message_::Failure(failure) => Err(failure),
                Message_::Ready(_, None) | Message_::Closed => {
                    Err(fail(Step::Clone, "usher", 0, "it died before it had made init"))
                }
            }
        }
    }
}

/// Returns in init alone.
fn usher(plan: &ContainerPlan, prepared: &mut Prepared, namespaces: u64, channel: &Channel) -> Result<()> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL)).ok();
    let process = plan.process.as_ref().ok_or_else(|| fail(Step::Plan, "process", 0, "the plan has none"))?;
    attributes::first_affinity(process)?;
    child::enter_cgroups(&mut std::mem::take(&mut prepared.cgroup_v1))?;
    let warning = process.oom_score_adj.map(credentials::oom_score_adj).transpose()?.flatten();
    child::stand_at_root(plan)?;
    join_what_is_the_hosts(prepared)?;
    if let Some(file) = &prepared.users {
        kernel::clone::setns(file.as_fd(), libc::CLONE_NEWUSER).at(Step::NamespaceJoin, "user")?;
    }
    become_root()?;
    match kernel::clone::clone3(namespaces, None, Parent::Ours).at(Step::Clone, "init")? {
        Side::Child => Ok(()),
        Side::Parent { pid, pidfd } => {
            let warnings = warning.into_iter().collect();
            channel.hand_over(Ready { pid, warnings, ..Ready::default() }, pidfd.as_fd());
            kernel::clone::exit_now(0)
        }
    }
}

/// Enters the namespaces that are to be joined, as long as we have the host's rights: what does not belong to the user namespace
/// can't be entered from there. Who lacks those rights finds what is left inside.
fn join_what_is_the_hosts(prepared: &mut Prepared) -> Result<()> {
    let mut later = Vec::new();
    for (file, kind) in std::mem::take(&mut prepared.joins) {
        match kernel::clone::setns(file.as_fd(), namespaces::flag(kind)) {
            Err(error) if kind != NamespaceKind::Pid && error.raw_os_error() == Some(libc::EPERM) => {
                later.push((file, kind));
            }
            joined => joined.at(Step::NamespaceJoin, namespaces::file(kind))?,
        }
    }
    prepared.joins = later;
    Ok(())
}

/// Makes a process's pipes its user's: or it could not open /dev/stdout, which is one of them by another name. Of what
/// else its streams are nothing is changed.
pub fn hand_over(streams: &Streams, (uid, gid): (u32, u32)) -> Result<()> {
    for (stream, name) in [(&streams.stdin, "0"), (&streams.stdout, "1"), (&streams.stderr, "2")] {
        let stat = fstat(stream).at(Step::Stdio, name)?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Fifo {
            match fchown(stream, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid))) {
                // An ordinary user's, of a pipe that is somebody else's: it works but for that.
                Ok(()) | Err(Errno::PERM) => {}
                Err(errno) => return Err(fail(Step::Stdio, name, errno.raw_os_error(), "")),
            }
        }
    }
    Ok(())
}

/// The ids of a process in its user namespace, as ours counts.
pub fn outer_ids(pid: i32, uid: u32, gid: u32) -> Result<(u32, u32)> {
    Ok((outer(pid, "uid_map", uid)?, outer(pid, "gid_map", gid)?))
}

fn outer(pid: i32, file: &str, id: u32) -> Result<u32> {
    let path = format!("/proc/{pid}/{file}");
    let text = std::fs::read_to_string(&path).at(Step::Stdio, &path)?;
    let maps: Vec<IdMap> = text.lines().filter_map(line).collect();
    outside(&maps, id).ok_or_else(|| fail(Step::User, id.to_string(), 0, "the user namespace has no such id"))
}

fn line(text: &str) -> Option<IdMap> {
    let mut numbers = text.split_whitespace().map(|word| word.parse().ok());
    let mut next = || numbers.next().flatten();
    Some(IdMap { inside: next()?, outside: next()?, length: next()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_found_in_the_range_that_has_it() {
        let maps: Vec<IdMap> =
            ["0 1000 1", "   1     100000      65535"].into_iter().filter_map(line).collect();
        for (id, expected) in
            [(0, Some(1000)), (1, Some(100_000)), (65_535, Some(165_534)), (65_536, None), (u32::MAX, None)]
        {
            assert_eq!(outside(&maps, id), expected, "{id}");
        }
        assert_eq!(line("0 1000"), None);
    }
}
