//! What a process is given beside its credentials: labels, scheduling, memory policy, personality, keyring. What the
//! host lacks is refused with its name.

use std::{ffi::CString, fs::File, io::Write, path::Path};

use berth_launch::v1::{Process, Step};

use super::failure::{At, Result, fail};
use crate::kernel::scheduling;

/// Files of this process's own security attributes, open since the host's /proc was in reach: what an image puts at
/// /proc can't catch what is written to them.
#[derive(Debug, Default)]
pub struct Labels {
    apparmor: Option<File>,
    selinux: Option<File>,
}

impl Labels {
    /// Opens what the process's labels will be written to; nothing where it has none.
    pub fn open(process: &Process) -> Result<Self> {
        let attribute = |path: &str| File::options().write(true).open(path).at(Step::Lsm, path);
        let mut labels = Self::default();
        let profile = process.apparmor_profile.as_str();
        if !profile.is_empty() {
            let own = Path::new("/proc/self/attr/apparmor/exec");
            let is_on = std::fs::read("/sys/module/apparmor/parameters/enabled");
            labels.apparmor = match (is_on.is_ok_and(|text| text.starts_with(b"Y")), profile) {
                (true, _) if own.exists() => Some(attribute("/proc/self/attr/apparmor/exec")?),
                (true, _) => Some(attribute("/proc/self/attr/exec")?),
                (false, "unconfined") => None,
                (false, _) => {
                    return Err(fail(Step::Lsm, profile, 0, "AppArmor is not enabled on this host"));
                }
            };
        }
        let label = process.selinux_label.as_str();
        if !label.is_empty() {
            if !Path::new("/sys/fs/selinux/enforce").exists() {
                return Err(fail(Step::Lsm, label, 0, "SELinux is not enabled on this host"));
            }
            labels.selinux = Some(attribute("/proc/self/attr/exec")?);
            // Keys that it makes are its own, as it is.
            attribute("/proc/self/attr/keycreate")?.write_all(label.as_bytes()).at(Step::Lsm, label)?;
        }
        Ok(labels)
    }

    /// Says what the next execve makes of this process.
    pub fn apply(self, process: &Process) -> Result<()> {
        if let Some(mut file) = self.apparmor {
            let verb = if process.apparmor_stacked { "stack" } else { "exec" };
            let profile = &process.apparmor_profile;
            file.write_all(format!("{verb} {profile}").as_bytes()).map_err(|error| {
                let detail = match error.raw_os_error() {
                    Some(libc::ENOENT) => "no such AppArmor profile is loaded",
                    _ => "",
                };
                fail(Step::Lsm, profile, error.raw_os_error().unwrap_or(0), detail)
            })?;
        }
        if let Some(mut file) = self.selinux {
            let label = &process.selinux_label;
            file.write_all(label.as_bytes()).at(Step::Lsm, label)?;
        }
        Ok(())
    }
}

/// Before the cgroup is entered, whose cpuset has the last word.
pub fn first_affinity(process: &Process) -> Result<()> {
    match process.affinity.as_slice() {
        [] => Ok(()),
        mask => scheduling::set_affinity(mask).at(Step::Scheduler, "affinity"),
    }
}

/// Just before the program.
pub fn final_affinity(process: &Process) -> Result<()> {
    match process.final_affinity.as_slice() {
        [] => Ok(()),
        mask => scheduling::set_affinity(mask).at(Step::Scheduler, "final affinity"),
    }
}

/// All that needs rights which the program may not have.
pub fn scheduling(process: &Process, keyring: &str) -> Result<()> {
    if let Some(plan) = &process.scheduler {
        let times = [plan.runtime, plan.deadline, plan.period];
        scheduling::set_scheduler(plan.policy, plan.flags, plan.nice, plan.priority, times)
            .at(Step::Scheduler, format!("policy {}", plan.policy))?;
    }
    if let Some(value) = process.io_priority {
        scheduling::set_io_priority(value).at(Step::Scheduler, format!("I/O priority {value}"))?;
    }
    if let Some(policy) = &process.memory_policy {
        scheduling::set_memory_policy(policy.mode, &policy.nodes)
            .at(Step::Scheduler, format!("memory policy {}", policy.mode))?;
    }
    if let Some(persona) = process.personality {
        scheduling::set_personality(persona).at(Step::Scheduler, format!("personality {persona}"))?;
    }
    if process.new_keyring {
        let name = CString::new(keyring).unwrap_or_default();
        scheduling::new_keyring(&name).at(Step::Keyring, keyring)?;
    }
    Ok(())
}
