//! A container's cgroup: which one `cgroupsPath` means, who is in it, frozen or not.

use std::{
    collections::BTreeSet,
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use berth_launch::v1 as launch;
use oci_spec::runtime::LinuxResources;

use super::Globals;
use crate::{
    Error, Kind, Result,
    cgroup::{
        DeviceRules, Driver, Group,
        systemd::{self, Manager},
    },
    error::Cause,
};

/// Who makes a container's group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Maker {
    /// Ourselves.
    Us,
    Systemd(Manager),
}

impl Maker {
    pub fn of(globals: &Globals) -> Self {
        match (globals.groups, globals.rootless) {
            (Driver::Cgroupfs, _) => Self::Us,
            (Driver::Systemd, false) => Self::Systemd(Manager::System),
            (Driver::Systemd, true) => Self::Systemd(Manager::User),
        }
    }
}

/// The path that `cgroupsPath` means, below the roots or below the group of the user's own systemd; none is `/berth/<id>`, a
/// relative one is below `/berth`. For systemd it is `slice:prefix:name`, none is `system.slice:berth:<id>`, or `user.slice`.
///
/// # Errors
/// `Invalid` for another form, or what is no name of a slice or scope.
pub fn path(maker: Maker, asked: Option<&str>, id: &str) -> Result<String> {
    match (maker, asked.filter(|path| !path.is_empty())) {
        (Maker::Us, None) => Ok(format!("/berth/{id}")),
        (Maker::Us, Some(path)) if path.starts_with('/') => Ok(path.to_owned()),
        (Maker::Us, Some(path)) => Ok(format!("/berth/{path}")),
        (Maker::Systemd(manager), None) => systemd::container(manager.slice(), "berth", id),
        (Maker::Systemd(manager), Some(path)) => match path.split(':').collect::<Vec<_>>()[..] {
            ["", prefix, name] if !name.is_empty() => systemd::container(manager.slice(), prefix, name),
            [slice, prefix, name] if !name.is_empty() => systemd::container(slice, prefix, name),
            _ => Err(Error::invalid(
                "make cgroup",
                path,
                "with --systemd-cgroup cgroupsPath is slice:prefix:name",
            )
            .hint("a path takes the cgroupfs driver: leave --systemd-cgroup out")),
        },
    }
}

/// The group as plans name it, with the device program that it is to get.
pub fn planned(group: &Group, device_program: Vec<u8>) -> launch::Cgroup {
    let text = |path: &PathBuf| path.to_string_lossy().into_owned();
    launch::Cgroup {
        v2: group.v2.as_ref().map(text).unwrap_or_default(),
        v1: group.v1.iter().map(text).collect(),
        device_program,
    }
}

/// Makes a spec's device rules hold, or gives the program that does.
///
/// # Errors
/// `Invalid` for a rule about no device, `Precondition` where this host's cgroups can't hold it.
pub fn devices(globals: &Globals, group: &Group, resources: &LinuxResources) -> Result<Vec<u8>> {
    let asked = resources.devices().as_deref().unwrap_or_default();
    let rules = DeviceRules::of(asked)?;
    if globals.rootless || in_user_namespace()? {
        // The kernel lets no ordinary user set them, nor make a node: what is open is what is bound from the host.
        if !asked.is_empty() {
            globals
                .log
                .warn("device rules are not enforced: only root outside of user namespaces can set them");
        }
        return Ok(Vec::new());
    }
    group.allow_devices(&rules)
}

/// Whether not all ids of the host are ours.
pub fn in_user_namespace() -> Result<bool> {
    let map = read(Path::new("/proc/self/uid_map"))?;
    Ok(map.is_some_and(|map| !map.split_whitespace().eq(["0", "0", "4294967295"])))
}

/// Kills what is in the group and removes it, with the scope that it is in.
pub fn remove(group: &Group) -> Result<()> {
    group.kill().and_then(|()| group.remove())?;
    systemd::end(group)
}

/// The pids in the group and below, in any hierarchy.
pub fn pids(group: &Group) -> Result<BTreeSet<i32>> {
    let mut found = BTreeSet::new();
    let mut open: Vec<PathBuf> = group.v2.iter().chain(&group.v1).cloned().collect();
    while let Some(dir) = open.pop() {
        let text = read(&dir.join("cgroup.procs"))?.unwrap_or_default();
        found.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()).filter(|pid| *pid > 0));
        let below = fs::read_dir(&dir).into_iter().flatten().flatten();
        open.extend(
            below.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()),
        );
    }
    Ok(found)
}

/// The file that freezes a group, and what it is told: v1's where that controller is there.
enum Freezer {
    V1(PathBuf),
    V2(PathBuf),
}

fn freezer(group: &Group) -> Result<Freezer> {
    if let Some(dir) = group.v1_with("freezer.state") {
        return Ok(Freezer::V1(dir.to_owned()));
    }
    match group.v2.as_ref().filter(|dir| dir.join("cgroup.freeze").exists()) {
        Some(dir) => Ok(Freezer::V2(dir.clone())),
        None => Err(Error::new(Kind::Precondition, "freeze", "cgroup")
            .because(Cause("this host's cgroups have no freezer".into()))),
    }
}

pub fn is_frozen(group: &Group) -> Result<bool> {
    match freezer(group) {
        Ok(Freezer::V1(dir)) => {
            Ok(read(&dir.join("freezer.state"))?.is_some_and(|text| text.trim() != "THAWED"))
        }
        Ok(Freezer::V2(dir)) => Ok(read(&dir.join("cgroup.freeze"))?.is_some_and(|text| text.trim() == "1")),
        Err(_) => Ok(false),
    }
}

/// Freezes all processes and returns when they stand still; a group that won't is let go again.
///
/// # Errors
/// `Deadline` where it takes longer than 10 s.
pub fn freeze(group: &Group) -> Result<()> {
    let freezer = freezer(group)?;
    let until = Instant::now() + Duration::from_secs(10);
    let stands = loop {
        let stands = match &freezer {
            // Written again each time: a process that forks meanwhile is caught the next time.
            Freezer::V1(dir) => {
                write(&dir.join("freezer.state"), "FROZEN")?;
                read(&dir.join("freezer.state"))?.is_some_and(|text| text.trim() == "FROZEN")
            }
            Freezer::V2(dir) => {
                write(&dir.join("cgroup.freeze"), "1")?;
                read(&dir.join("cgroup.events"))?
                    .is_some_and(|text| text.lines().any(|line| line == "frozen 1"))
            }
        };
        if stands || Instant::now() >= until {
            break stands;
        }
        thread::sleep(Duration::from_millis(1));
    };
    if stands {
        return Ok(());
    }
    thaw(group)?;
    Err(Error::new(Kind::Deadline, "freeze", "cgroup")
        .because(Cause("its processes don't stand still".into())))
}

pub fn thaw(group: &Group) -> Result<()> {
    match freezer(group)? {
        Freezer::V1(dir) => write(&dir.join("freezer.state"), "THAWED"),
        Freezer::V2(dir) => write(&dir.join("cgroup.freeze"), "0"),
    }
}

pub fn read(path: &Path) -> Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV) => {
            Ok(None)
        }
        Err(error) => Err(Error::io("read", path.display().to_string(), error)),
    }
}

pub fn write(path: &Path, value: &str) -> Result<()> {
    use std::io::Write;
    fs::File::options()
        .write(true)
        .open(path)
        .and_then(|mut file| file.write_all(value.as_bytes()))
        .map_err(|error| Error::io("set", format!("{} to {value:?}", path.display()), error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn systemds_cgroups_path_has_three_parts() {
        let of = |asked| path(Maker::Systemd(Manager::System), asked, "c1");
        assert_eq!(of(None).unwrap(), "/system.slice/berth-c1.scope/container");
        assert_eq!(of(Some(":libpod:x")).unwrap(), "/system.slice/libpod-x.scope/container");
        assert_eq!(of(Some("machine.slice::x")).unwrap(), "/machine.slice/x.scope/container");
        for bad in ["/pod/x", "a.slice:b", "a.slice:b:", "a.slice:b:c:d", "../x:b:c"] {
            assert_eq!(of(Some(bad)).unwrap_err().kind, Kind::Invalid, "{bad}");
        }
        let of = |asked| path(Maker::Systemd(Manager::User), asked, "c1").unwrap();
        assert_eq!(of(None), "/user.slice/berth-c1.scope/container");
        assert_eq!(of(Some(":libpod:x")), "/user.slice/libpod-x.scope/container");
    }

    #[test]
    fn a_cgroups_path_is_absolute_relative_or_ours() {
        let of = |asked| path(Maker::Us, asked, "c1").unwrap();
        assert_eq!(of(None), "/berth/c1");
        assert_eq!(of(Some("")), "/berth/c1");
        assert_eq!(of(Some("/pod/x")), "/pod/x");
        assert_eq!(of(Some("x")), "/berth/x");
    }
}
