//! An ordinary user's container: the shim itself enters a user namespace of the plan's maps and a mount namespace, is
//! root there, and launches as root does. `user_namespaces(7)`, `newuidmap(1)`.
//!
//! ```text
//! shim ─ fork ─> mapper: waits ─ newuidmap, newgidmap ─ ends
//!   └ unshare(user, mount) ─ "go" ─ waits for its end ─ root ─ the launch, without the plan's user namespace
//! ```
//! Without the helpers there is one id: the user's own, mapped by ourselves, after setgroups(2) is denied for good.

use std::{
    fs,
    os::fd::{AsFd, BorrowedFd},
    process::Command,
};

use berth_launch::v1::{ContainerPlan, IdMap, NamespaceKind, Step};
use rustix::mount::{MountPropagationFlags, mount_change};

use super::{
    channel::{Channel, Message_},
    end,
    failure::{At, Result, fail},
    users,
};
use crate::kernel::{
    self,
    clone::{Parent, Side},
};

/// Whether we are to launch by an ordinary user's rights.
pub fn is_rootless() -> bool {
    !rustix::process::geteuid().is_root()
}

/// Enters namespaces in which this process is root, and gives the plan that is left to launch there.
pub fn enter(plan: &ContainerPlan) -> Result<ContainerPlan> {
    let users = plan.namespaces.iter().find(|one| one.kind() == NamespaceKind::User);
    match users {
        None => {
            let detail =
                "an ordinary user's container needs a user namespace: `berth oci spec --rootless` has one";
            return Err(fail(Step::UserNamespace, "user", libc::EPERM, detail));
        }
        Some(namespace) if !namespace.path.is_empty() => {
            let file = users::open_namespace(&namespace.path, Step::NamespaceJoin)?;
            join(file.as_fd())?;
        }
        Some(_) => make(plan)?,
    }
    kernel::clone::unshare(libc::CLONE_NEWNS).at(Step::Clone, "mount")?;
    mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)
        .at(Step::Rootfs, "/")?;
    let mut rest = without_users(plan);
    if let Some(process) = &mut rest.process {
        process.keep_groups = users::has_no_setgroups();
    }
    Ok(rest)
}

/// Enters the user namespace of a running container, for one more process in it.
pub fn beside(plan: &ContainerPlan, init: BorrowedFd<'_>) -> Result<ContainerPlan> {
    join(init)?;
    Ok(without_users(plan))
}

fn without_users(plan: &ContainerPlan) -> ContainerPlan {
    let mut rest = plan.clone();
    rest.namespaces.retain(|one| one.kind() != NamespaceKind::User);
    (rest.uid_maps, rest.gid_maps) = (Vec::new(), Vec::new());
    rest
}

/// Enters the user namespace of a file or of a process that a pidfd is of, as its root.
fn join(namespace: BorrowedFd<'_>) -> Result<()> {
    kernel::clone::setns(namespace, libc::CLONE_NEWUSER).at(Step::NamespaceJoin, "user")?;
    users::become_root()
}

fn make(plan: &ContainerPlan) -> Result<()> {
    let (ours, theirs) = Channel::pair()?;
    let own = rustix::process::getpid().as_raw_nonzero().get();
    let mapper = match kernel::clone::clone3(0, None, Parent::Us).at(Step::UserNamespace, "clone")? {
        Side::Child => {
            drop(ours);
            if theirs.wait_for_gate()
                && let Err(failure) = map(plan, own)
            {
                theirs.send_failure(failure);
            }
            kernel::clone::exit_now(0)
        }
        Side::Parent { pidfd, .. } => pidfd,
    };
    drop(theirs);
    let made = kernel::clone::unshare(libc::CLONE_NEWUSER)
        .map_err(|error| users::refused(&error))
        .and_then(|()| ours.open_gate())
        .and_then(|()| match ours.receive()? {
            Message_::Failure(failure) => Err(failure),
            Message_::Ready(..) | Message_::Closed => Ok(()),
        });
    drop(ours);
    end(&mapper);
    made.and_then(|()| users::become_root())
}

/// The mapper, outside: by the helpers, or of the one id that needs none.
fn map(plan: &ContainerPlan, pid: i32) -> Result<()> {
    match (plan.uid_map_helper.as_str(), plan.gid_map_helper.as_str()) {
        ("", "") => alone(plan, pid),
        (uids, gids) => {
            helped(uids, pid, &plan.uid_maps)?;
            helped(gids, pid, &plan.gid_maps)
        }
    }
}

fn alone(plan: &ContainerPlan, pid: i32) -> Result<()> {
    // Before the maps: a group that denies its members something could be left else (CVE-2014-8989).
    let path = format!("/proc/{pid}/setgroups");
    fs::write(&path, "deny").at(Step::UserNamespace, &path)?;
    users::map(pid, &plan.uid_maps, &plan.gid_maps)
}

fn helped(helper: &str, pid: i32, maps: &[IdMap]) -> Result<()> {
    let words =
        maps.iter().flat_map(|map| [map.inside, map.outside, map.length]).map(|word| word.to_string());
    let output = Command::new(helper).arg(pid.to_string()).args(words).env_clear().output();
    let output = output.at(Step::UserNamespace, helper)?;
    match output.status.success() {
        true => Ok(()),
        false => {
            let said = String::from_utf8_lossy(&output.stderr);
            let detail = format!("{}: /etc/subuid and /etc/subgid say which ids a user has", said.trim());
            Err(fail(Step::UserNamespace, helper, 0, &detail))
        }
    }
}
