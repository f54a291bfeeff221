//! A process of a bundle: `process` of `config.json`, or the document of `exec --process`, which has the same form.

use std::os::unix::ffi::OsStrExt;

use berth_launch::v1 as launch;
use oci_spec::runtime::{PosixRlimitType, Process, Spec};

use super::{super::capabilities, filter, lacking, refused, scheduling};
use crate::Result;

/// Reads the document of `exec --process`.
///
/// # Errors
/// `Invalid` for what is no such document.
pub fn parse_process(text: &[u8]) -> Result<Process> {
    serde_json::from_slice(text).map_err(|error| refused("process document", &error.to_string()))
}

/// Compiles a process; the filter of system calls is the whole spec's.
///
/// # Errors
/// As of `plan`.
pub fn process(process: &Process, spec: &Spec) -> Result<launch::Process> {
    unsaid(process)?;
    let args: Vec<Vec<u8>> = process.args().iter().flatten().map(|arg| arg.clone().into_bytes()).collect();
    if args.is_empty() {
        return Err(refused("process.args", "it is empty: there is no program to run"));
    }
    let cwd = process.cwd().as_os_str().as_bytes().to_vec();
    if !cwd.starts_with(b"/") {
        return Err(refused("process.cwd", &format!("{} is not absolute", process.cwd().display())));
    }
    let (rows, columns) = process.console_size().map_or((0, 0), |size| {
        let cells = |n: u64| u32::try_from(n).unwrap_or(0);
        (cells(size.height()), cells(size.width()))
    });
    let user = process.user();
    let filter = filter::filter(spec)?;
    let linux = spec.linux().as_ref();
    Ok(launch::Process {
        args,
        env: process.env().iter().flatten().map(|var| var.clone().into_bytes()).collect(),
        cwd,
        user: Some(launch::User {
            user: Some(launch::user::User::Uid(user.uid())),
            group: Some(launch::user::Group::Gid(user.gid())),
            additional_gids: user.additional_gids().clone().unwrap_or_default(),
            image_groups: false,
        }),
        capabilities: Some(masks(process)?),
        no_new_privileges: process.no_new_privileges().unwrap_or(false),
        rlimits: rlimits(process)?,
        oom_score_adj: process.oom_score_adj(),
        seccomp: filter.program,
        seccomp_flags: filter.flags,
        apparmor_profile: process.apparmor_profile().clone().unwrap_or_default(),
        selinux_label: process.selinux_label().clone().unwrap_or_default(),
        tty: process.terminal().unwrap_or(false),
        rows,
        columns,
        umask: user.umask(),
        scheduler: process.scheduler().as_ref().map(scheduling::scheduler).transpose()?,
        io_priority: process.io_priority().as_ref().map(scheduling::io_priority).transpose()?,
        memory_policy: linux
            .and_then(|linux| linux.memory_policy().as_ref())
            .map(scheduling::memory_policy)
            .transpose()?,
        ..launch::Process::default()
    })
}

/// What a plan has no word for yet.
fn unsaid(process: &Process) -> Result<()> {
    match process.command_line() {
        Some(_) => Err(lacking("process.commandLine", "this is Linux")),
        None => Ok(()),
    }
}

/// The five sets; none of them said is none at all, as the spec has it.
fn masks(process: &Process) -> Result<launch::Capabilities> {
    let none = Default::default();
    let sets = process.capabilities().as_ref().unwrap_or(&none);
    let mask = |set: &Option<oci_spec::runtime::Capabilities>| {
        let mut names = set.iter().flatten();
        names.try_fold(0, |mask, name| Ok::<_, crate::Error>(mask | capabilities::bit(&name.to_string())?))
    };
    Ok(launch::Capabilities {
        bounding: mask(sets.bounding())?,
        effective: mask(sets.effective())?,
        permitted: mask(sets.permitted())?,
        inheritable: mask(sets.inheritable())?,
        ambient: mask(sets.ambient())?,
    })
}

fn rlimits(process: &Process) -> Result<Vec<launch::Rlimit>> {
    let mut limits: Vec<launch::Rlimit> = Vec::new();
    for asked in process.rlimits().iter().flatten() {
        let resource = number(asked.typ());
        let name = asked.typ();
        if limits.iter().any(|limit| limit.resource == resource) {
            return Err(refused("process.rlimits", &format!("{name} is there twice")));
        }
        if asked.soft() > asked.hard() {
            return Err(refused("process.rlimits", &format!("{name}: its soft limit is over its hard one")));
        }
        limits.push(launch::Rlimit { resource, soft: asked.soft(), hard: asked.hard() });
    }
    Ok(limits)
}

/// `RLIMIT_*` of `getrlimit(2)`.
fn number(kind: PosixRlimitType) -> u32 {
    match kind {
        PosixRlimitType::RlimitCpu => 0,
        PosixRlimitType::RlimitFsize => 1,
        PosixRlimitType::RlimitData => 2,
        PosixRlimitType::RlimitStack => 3,
        PosixRlimitType::RlimitCore => 4,
        PosixRlimitType::RlimitRss => 5,
        PosixRlimitType::RlimitNproc => 6,
        PosixRlimitType::RlimitNofile => 7,
        PosixRlimitType::RlimitMemlock => 8,
        PosixRlimitType::RlimitAs => 9,
        PosixRlimitType::RlimitLocks => 10,
        PosixRlimitType::RlimitSigpending => 11,
        PosixRlimitType::RlimitMsgqueue => 12,
        PosixRlimitType::RlimitNice => 13,
        PosixRlimitType::RlimitRtprio => 14,
        PosixRlimitType::RlimitRttime => 15,
    }
}
