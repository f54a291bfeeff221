//! Makes the directories of a group in every hierarchy and gets them ready to take limits and processes.

use std::path::{Component, Path, PathBuf};

use tracing::warn;

use super::{Group, Limits, apply, file};
use crate::{Error, Kind, Result};

/// v2 controllers that limits and stats want.
/// Those that no group with processes of its own can pass on are first, and say so: the others could, and would leave groups
/// below it that nobody can enter.
const WANTED: [&str; 5] = ["memory", "io", "cpu", "cpuset", "pids"];
/// Those that few limits want, also beside v1's: where they can't be passed on, the limit that needs one says so.
const WELCOME: [&str; 2] = ["hugetlb", "rdma"];

/// Makes the group and writes its limits. Directories that this call made are gone again after a failure.
pub fn create(roots: &Group, path: &str, limits: &Limits) -> Result<Group> {
    let parts = parts(path)?;
    let mut made = Made::default();
    for root in &roots.v1 {
        v1(root, &parts, &mut made)?;
    }
    if let Some(root) = &roots.v2 {
        v2(root, &parts, &mut made)?;
    }
    let group = roots.below(&parts);
    apply::limits(&group, limits)?;
    made.keep();
    Ok(group)
}

/// The names of a path below the roots.
///
/// # Errors
/// `Invalid` unless it is absolute, names something and goes nowhere but down.
pub fn parts(path: &str) -> Result<Vec<&str>> {
    let invalid = |cause: &str| Err(Error::invalid("make group", format!("{path:?}"), cause));
    if !path.starts_with('/') {
        return invalid("a cgroup path starts with /");
    }
    if path.contains(['\0', '\n']) || Path::new(path).components().any(|part| part == Component::ParentDir) {
        return invalid("a cgroup path has no .., newline or NUL");
    }
    let parts = normal_parts(path);
    if parts.is_empty() {
        return invalid("the root group is the host's");
    }
    Ok(parts)
}

/// The names in a path, whatever else is in it: no path leads out of the roots.
pub fn normal_parts(path: &str) -> Vec<&str> {
    path.split('/').filter(|part| !matches!(*part, "" | "." | "..")).collect()
}

fn v1(root: &Path, parts: &[&str], made: &mut Made) -> Result<()> {
    let mut dir = root.to_owned();
    for part in parts {
        let parent = dir.clone();
        dir.push(part);
        made.directory(&dir)?;
        // A new v1 cpuset has no cpus, and takes no process until it has, unless cgroup.clone_children is set.
        for name in ["cpuset.cpus", "cpuset.mems"] {
            if inherit(&parent.join(name), &dir.join(name))? == Found::AnotherController {
                break;
            }
        }
    }
    Ok(())
}

/// Whether a directory is cpuset's.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    Cpuset,
    AnotherController,
}

fn inherit(parent: &Path, child: &Path) -> Result<Found> {
    let Some(own) = file::read(child)? else { return Ok(Found::AnotherController) };
    // Else it is set already.
    if own.trim().is_empty()
        && let Some(text) = file::read(parent)?.filter(|text| !text.trim().is_empty())
    {
        file::write(child, text.trim())?;
    }
    Ok(Found::Cpuset)
}

/// Enables controllers from the top down for all groups but the last: a group with processes may not pass any on.
fn v2(root: &Path, parts: &[&str], made: &mut Made) -> Result<()> {
    let mut dir = root.to_owned();
    for part in parts {
        enable(&dir)?;
        dir.push(part);
        made.directory(&dir)?;
    }
    Ok(())
}

fn enable(dir: &Path) -> Result<()> {
    let available = file::read(&dir.join("cgroup.controllers"))?.unwrap_or_default();
    let path = dir.join("cgroup.subtree_control");
    let enabled = file::read(&path)?.unwrap_or_default();
    for controller in missing(&available, &enabled, &WELCOME) {
        // See there: who asks for no such limit is not to fail for it.
        file::write(&path, &format!("+{controller}")).ok();
    }
    for controller in missing(&available, &enabled, &WANTED) {
        match file::write(&path, &format!("+{controller}")) {
            Ok(()) => {}
            // Processes in the way: nothing below would be limited or counted, for any controller.
            Err(error) if error.kind == Kind::Precondition => return Err(error),
            // One controller may refuse (cpu, while realtime processes run): a limit that needs it will say so.
            Err(error) => warn!(controller, error = %error.chain(), "cgroup controller not enabled"),
        }
    }
    Ok(())
}

/// What is there and wanted and not passed on yet. On hybrid hosts v1 holds most.
fn missing<'a>(available: &'a str, enabled: &str, wanted: &[&str]) -> Vec<&'a str> {
    let enabled: Vec<&str> = enabled.split_whitespace().collect();
    let there = |name: &&str| available.split_whitespace().find(|controller| controller == name);
    wanted.iter().filter_map(there).filter(|controller| !enabled.contains(controller)).collect()
}

/// Directories made by this call, removed when dropped before `keep`.
#[derive(Debug, Default)]
struct Made(Vec<PathBuf>);

impl Made {
    fn directory(&mut self, path: &Path) -> Result<()> {
        match std::fs::create_dir(path) {
            Ok(()) => self.0.push(path.to_owned()),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => {
                let hint = match error.raw_os_error() {
                    Some(libc::EROFS) => Some("cgroups are mounted read-only: remount them rw"),
                    Some(libc::EACCES | libc::EPERM) => {
                        Some("berthd has to run as root, or own this subtree")
                    }
                    Some(libc::EAGAIN) => Some("cgroup.max.descendants or cgroup.max.depth is reached"),
                    _ => None,
                };
                let error = Error::io("make group", path.display().to_string(), error);
                return Err(match hint {
                    Some(hint) => error.hint(hint),
                    None => error,
                });
            }
        }
        Ok(())
    }

    fn keep(mut self) {
        self.0.clear();
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        for path in self.0.iter().rev() {
            // The failure that brought us here is the one to tell; one that another call has filled since stays.
            std::fs::remove_dir(path).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_go_down_from_the_root() {
        assert_eq!(parts("/berth/a/").unwrap(), ["berth", "a"]);
        assert_eq!(parts("//berth/./a").unwrap(), ["berth", "a"]);
        for bad in ["", "/", "//", "berth", "../x", "/berth/../../etc", "/a\0b", "/a\nb", "/.."] {
            assert!(parts(bad).is_err(), "{bad:?}");
        }
        assert_eq!(normal_parts("/../../etc"), ["etc"]);
    }

    #[test]
    fn only_wanted_controllers_that_are_there_and_not_passed_on_are_enabled() {
        assert_eq!(
            missing("cpuset cpu io memory hugetlb pids rdma\n", "cpu\n", &WANTED),
            ["memory", "io", "cpuset", "pids"]
        );
        assert_eq!(missing("hugetlb\n", "\n", &WANTED), Vec::<&str>::new());
        assert_eq!(missing("hugetlb\n", "\n", &WELCOME), ["hugetlb"]);
    }

    #[test]
    fn what_a_failed_create_made_is_gone_and_what_was_there_stays() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("old")).unwrap();
        let roots = Group { v2: None, v1: vec![dir.path().to_owned()] };
        let limits = Limits { pids: Some(5), ..Limits::default() };
        // A plain directory has no pids.max.
        let error = create(&roots, "/old/new/leaf", &limits).unwrap_err();
        assert!(error.chain().contains("controller pids not enabled"), "{}", error.chain());
        assert!(dir.path().join("old").exists());
        assert!(!dir.path().join("old/new").exists());
        create(&roots, "/old/new/leaf", &Limits::default()).unwrap();
        assert!(dir.path().join("old/new/leaf").exists());
    }
}
