//! The group of resctrl that a container's processes are in: shares of caches and of memory bandwidth. `intelRdt` of
//! `config-linux.md`; resctrl in the kernel's documentation.
//!
//! ```text
//! <resctrl>/<closID, else the container's id>/{schemata, tasks, mon_groups/<id>/tasks}
//! ```

use std::{
    collections::BTreeMap,
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use oci_spec::runtime::{Linux, LinuxIntelRdt};

use super::groups;
use crate::{Error, Kind, Result, error::Cause};

const OP: &str = "make resctrl group";
const WHERE: &str = "linux.intelRdt";

/// A container's groups, which are taken back unless they are kept.
#[derive(Debug, Default)]
pub struct Made {
    /// What each process enters, one after the other: the group, and the one within it that only counts.
    pub enters: Vec<PathBuf>,
    /// What goes with the container, innermost first.
    pub ours: Vec<PathBuf>,
}

impl Made {
    /// Leaves them to who removes the container.
    pub fn keep(mut self) {
        self.ours.clear();
    }

    fn make(&mut self, dir: &Path) -> Result<()> {
        fs::create_dir(dir).map_err(|error| Error::io(OP, dir.display().to_string(), error))?;
        self.ours.insert(0, dir.to_owned());
        Ok(())
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        // The failure that brought us here is the one to tell.
        remove(&self.ours).ok();
    }
}

/// Makes or finds what a spec asks for.
///
/// # Errors
/// `Precondition` where no resctrl is mounted, or a group is not there or another than asked for.
pub fn make(linux: &Linux, id: &str) -> Result<Made> {
    let Some(asked) = linux.intel_rdt() else { return Ok(Made::default()) };
    let mounts = fs::read_to_string("/proc/self/mountinfo")
        .map_err(|error| Error::io("read", "/proc/self/mountinfo", error))?;
    let root = mounted(&mounts).ok_or_else(|| {
        refused("no resctrl is mounted")
            .hint("where the processor has it: mount -t resctrl resctrl /sys/fs/resctrl")
    })?;
    make_in(&root, asked, id)
}

/// Removes groups, of which some may have gone.
pub fn remove(groups: &[PathBuf]) -> Result<()> {
    groups.iter().try_for_each(|dir| match fs::remove_dir(dir) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(Error::io("remove resctrl group", dir.display().to_string(), error))
        }
        _ => Ok(()),
    })
}

/// Puts a process into a group; 0 is the caller, and who it starts from then on.
pub fn enter(group: &Path, pid: i32) -> Result<()> {
    groups::write(&group.join("tasks"), &pid.to_string())
}

fn make_in(root: &Path, asked: &LinuxIntelRdt, id: &str) -> Result<Made> {
    let lines = lines(asked)?;
    let named = asked.clos_id().as_deref().filter(|name| !name.is_empty());
    let dir = group(root, named.unwrap_or(id))?;
    let mut made = Made { enters: vec![dir.clone()], ours: Vec::new() };
    match (dir.is_dir(), named) {
        (true, _) => agrees(&dir, &lines)?,
        (false, Some(name)) if lines.is_empty() => {
            return Err(refused(&format!("there is no group {name}, and nothing says what it should be")));
        }
        (false, _) => {
            made.make(&dir)?;
            let schemata = dir.join("schemata");
            lines.iter().try_for_each(|line| groups::write(&schemata, &format!("{line}\n")))?;
        }
    }
    if monitors(asked) {
        let monitor = dir.join("mon_groups").join(id);
        made.make(&monitor)?;
        made.enters.push(monitor);
    }
    // One that is named stays when its container goes.
    if named.is_some() {
        made.ours.retain(|ours| *ours != dir);
    }
    Ok(made)
}

fn mounted(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (mount, file_system) = line.split_once(" - ")?;
        file_system.starts_with("resctrl ").then(|| mount.split(' ').nth(4).map(PathBuf::from))?
    })
}

/// `/` is the root, which is a group too.
fn group(root: &Path, name: &str) -> Result<PathBuf> {
    const RESERVED: [&str; 5] = [".", "..", "info", "mon_groups", "mon_data"];
    match name {
        "/" => Ok(root.to_owned()),
        name if RESERVED.contains(&name) || name.contains(['/', '\0', '\n']) => {
            Err(Error::invalid(OP, WHERE, format!("{name:?} is no name of a group")))
        }
        name => Ok(root.join(name)),
    }
}

/// What goes into `schemata`, in the order that the spec has.
fn lines(asked: &LinuxIntelRdt) -> Result<Vec<&str>> {
    let single = [(asked.l3_cache_schema(), "L3"), (asked.mem_bw_schema(), "MB:")];
    let mut lines: Vec<&str> = Vec::new();
    for (line, start) in single {
        let Some(line) = line.as_deref().filter(|line| !line.is_empty()) else { continue };
        if !line.starts_with(start) {
            return Err(Error::invalid(OP, WHERE, format!("{line:?} does not begin with {start}")));
        }
        lines.push(line);
    }
    lines.extend(asked.schemata().iter().flatten().map(String::as_str));
    match lines.iter().find(|line| line.contains('\n')) {
        Some(line) => Err(Error::invalid(OP, WHERE, format!("{line:?} is more than a line"))),
        None => Ok(lines),
    }
}

/// The two that 1.3 has put together are taken as it.
fn monitors(asked: &LinuxIntelRdt) -> bool {
    [asked.enable_monitoring(), asked.enable_cmt(), asked.enable_mbm()].contains(&&Some(true))
}

/// Checks that a group which is there has what the lines ask for.
fn agrees(group: &Path, lines: &[&str]) -> Result<()> {
    if lines.is_empty() {
        return Ok(());
    }
    let path = group.join("schemata");
    let text =
        fs::read_to_string(&path).map_err(|error| Error::io("read", path.display().to_string(), error))?;
    let has: BTreeMap<(String, String), String> = text.lines().flat_map(shares).collect();
    let other = lines.iter().find(|line| shares(line).iter().any(|(key, value)| has.get(key) != Some(value)));
    match other {
        Some(line) => {
            Err(refused(&format!("{} is there already, and is not {line}: {}", group.display(), text.trim())))
        }
        None => Ok(()),
    }
}

/// "L3:0=7f0;1=1f": what of which resource each domain gives.
fn shares(line: &str) -> Vec<((String, String), String)> {
    let Some((resource, domains)) = line.trim().split_once(':') else { return Vec::new() };
    let plain = |value: &str| value.trim().trim_start_matches('0').to_ascii_lowercase();
    let one = |part: &str| {
        let (domain, value) = part.split_once('=')?;
        Some(((resource.trim().to_owned(), domain.trim().to_owned()), plain(value)))
    };
    domains.split(';').filter_map(one).collect()
}

fn refused(why: &str) -> Error {
    Error::new(Kind::Precondition, OP, WHERE).because(Cause(why.to_owned()))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// A root as the kernel's looks, whose groups are plain directories: a new one's files are not there.
    fn root() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for name in ["there", "there/mon_groups"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        fs::write(dir.path().join("there/schemata"), "    MB:0= 20;1= 70\n    L3:0=7f0;1=01f\n").unwrap();
        dir
    }

    fn of(root: &Path, asked: Value) -> Result<Made> {
        make_in(root, &serde_json::from_value(asked).unwrap(), "c1")
    }

    #[test]
    fn a_group_that_is_there_is_joined_where_it_is_what_is_asked_for() {
        let root = root();
        for asked in [
            json!({"closID": "there"}),
            json!({"closID": "there", "schemata": ["L3:0=7F0", "MB:1=70"]}),
            json!({"closID": "there", "l3CacheSchema": "L3:0=7f0;1=1f", "memBwSchema": "MB:0=20"}),
        ] {
            let made = of(root.path(), asked.clone()).unwrap();
            assert_eq!(made.enters, [root.path().join("there")], "{asked}");
            assert_eq!(made.ours, Vec::<PathBuf>::new());
        }
        let told = of(root.path(), json!({"closID": "there", "schemata": ["L3:0=f"]})).unwrap_err().chain();
        assert!(told.contains("L3:0=f") && told.contains("7f0"), "{told}");
        assert!(of(root.path(), json!({"closID": "other"})).is_err());
        assert_eq!(of(root.path(), json!({"closID": "/"})).unwrap().enters, [root.path()]);
        assert!(root.path().join("there").exists());
    }

    #[test]
    fn a_new_group_goes_with_its_container_and_a_named_one_stays() {
        let root = root();
        let made = of(root.path(), json!({})).unwrap();
        let ours = made.ours.clone();
        made.keep();
        assert_eq!(ours, [root.path().join("c1")]);
        remove(&ours).unwrap();
        assert!(!root.path().join("c1").exists());
        remove(&ours).unwrap();
        // A failure takes it back: here there is no schemata to write to.
        assert!(of(root.path(), json!({"schemata": ["L3:0=f"]})).is_err());
        assert!(!root.path().join("c1").exists());
        let made = of(root.path(), json!({"closID": "there", "enableMonitoring": true})).unwrap();
        let monitor = root.path().join("there/mon_groups/c1");
        assert_eq!(made.enters, [root.path().join("there"), monitor.clone()]);
        drop(made);
        assert!(!monitor.exists() && root.path().join("there").exists());
    }

    #[test]
    fn what_is_no_group_and_no_line_is_refused() {
        let root = root();
        for bad in [
            json!({"closID": "../x"}),
            json!({"closID": "info"}),
            json!({"l3CacheSchema": "MB:0=1"}),
            json!({"memBwSchema": "0=1"}),
            json!({"schemata": ["L3:0=1\nMB:0=2"]}),
        ] {
            assert_eq!(of(root.path(), bad.clone()).unwrap_err().kind, Kind::Invalid, "{bad}");
        }
    }

    #[test]
    fn the_file_system_is_found_where_it_is_mounted() {
        let line = |kind: &str| format!("30 25 0:26 / /sys/fs/x rw,nosuid shared:9 - {kind} none rw\n");
        assert_eq!(mounted(&(line("tmpfs") + &line("resctrl"))), Some("/sys/fs/x".into()));
        assert_eq!(mounted(&line("tmpfs")), None);
    }
}
