//! What is known of a container between two verbs, on disk below the root: everything, since no process of ours stays.
//!
//! ```text
//! <root>/<id>/state.json   this file's `State`, written new and renamed
//!             config.json  the bundle's, as it was at create
//!             plan         what the shim was given, for execs
//!             start        init's socket, until it is started
//!             lock         flock(2): one verb at a time changes a container
//!             notify/      what is mounted at /run/notify, see `notify`
//! ```

use std::{
    collections::HashMap,
    fs::{self, DirBuilder, File},
    io::ErrorKind,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use berth_launch::v1 as launch;
use oci_spec::runtime::Spec;
use prost::Message;
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{Globals, groups, identity::Identity, line::Line};
use crate::{Error, Kind, Result, cgroup::Group, error::Cause, oci};

/// The latest runtime spec that bundles may be of.
pub const SPEC: &str = "1.3.0";
/// init's socket in a container's directory.
pub const START: &str = "start";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    Creating,
    Created,
    Running,
    Paused,
    Stopped,
}

impl Status {
    pub fn word(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        }
    }
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct State {
    pub oci_version: String,
    pub id: String,
    pub bundle: PathBuf,
    pub rootfs: PathBuf,
    /// RFC 3339.
    pub created: String,
    /// The uid that created it.
    pub owner: u32,
    #[serde(default)]
    pub annotations: HashMap<String, String>,
    pub init: Identity,
    pub cgroup_v2: Option<PathBuf>,
    #[serde(default)]
    pub cgroup_v1: Vec<PathBuf>,
    /// No process outlives init: it has a PID namespace of its own.
    #[serde(default)]
    pub own_pids: bool,
    /// The groups of resctrl that its processes enter, and those that go with it.
    #[serde(default)]
    pub resctrl: Vec<PathBuf>,
    #[serde(default)]
    pub resctrl_ours: Vec<PathBuf>,
}

impl State {
    pub fn group(&self) -> Group {
        Group { v2: self.cgroup_v2.clone(), v1: self.cgroup_v1.clone() }
    }

    fn printed(&self, status: Status) -> serde_json::Value {
        let stopped = matches!(status, Status::Stopped | Status::Creating);
        json!({
            "ociVersion": self.oci_version, "id": self.id, "pid": if stopped { 0 } else { self.init.pid },
            "status": status.word(), "bundle": self.bundle, "rootfs": self.rootfs, "created": self.created,
            "annotations": self.annotations, "owner": owner_name(self.owner),
        })
    }
}

/// Where containers' directories are.
#[derive(Debug)]
pub struct Home(PathBuf);

impl Home {
    pub fn new(root: PathBuf) -> Self {
        Self(root)
    }

    /// Finds a container.
    ///
    /// # Errors
    /// `NotFound`, in the words that containerd and podman look for.
    pub fn find(&self, id: &str) -> Result<Container> {
        check_id(id)?;
        let dir = self.0.join(id);
        match read_state(&dir) {
            Ok(Some(state)) => Ok(Container { dir, state }),
            Ok(None) => Err(Error::new(Kind::NotFound, "find container", id)
                .because(Cause("container does not exist".into()))),
            Err(error) => Err(error),
        }
    }

    /// Takes an id for a new container: its directory is made by this call alone.
    pub fn take(&self, id: &str) -> Result<PathBuf> {
        const OP: &str = "make container";
        check_id(id)?;
        let dir = self.0.join(id);
        let failed = |error| Error::io(OP, dir.display().to_string(), error);
        DirBuilder::new().recursive(true).mode(0o700).create(&self.0).map_err(failed)?;
        match DirBuilder::new().mode(0o700).create(&dir) {
            Ok(()) => Ok(dir),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                Err(Error::new(Kind::AlreadyExists, OP, id)
                    .because(Cause("container with that id exists already".into()))
                    .hint("delete it, or take another id"))
            }
            Err(error) => Err(failed(error)),
        }
    }

    pub fn directory(&self, id: &str) -> Result<PathBuf> {
        check_id(id).map(|()| self.0.join(id))
    }

    /// All containers whose state can be read, by id.
    pub fn all(&self) -> Result<Vec<Container>> {
        let entries = match fs::read_dir(&self.0) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(|error| Error::io("list", self.0.display().to_string(), error))?,
        };
        let mut all: Vec<Container> = entries
            .flatten()
            .filter_map(|entry| {
                let dir = entry.path();
                let state = read_state(&dir).ok().flatten()?;
                Some(Container { dir, state })
            })
            .collect();
        all.sort_by(|one, other| one.state.id.cmp(&other.state.id));
        Ok(all)
    }
}

/// runc's rule for ids: a file's name of letters, digits and `_+-.`.
fn check_id(id: &str) -> Result<()> {
    let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '+' | '-' | '.');
    match !id.is_empty() && id.len() <= 255 && id != "." && id != ".." && id.chars().all(known) {
        true => Ok(()),
        false => Err(Error::invalid("read arguments", format!("{id:?}"), "invalid id format")
            .hint("an id is up to 255 letters, digits and _ + - .")),
    }
}

/// A container on disk.
#[derive(Debug)]
pub struct Container {
    pub dir: PathBuf,
    pub state: State,
}

impl Container {
    pub fn status(&self) -> Result<Status> {
        if self.state.init.pid == 0 {
            return Ok(Status::Creating);
        }
        if !self.state.init.lives() {
            return Ok(Status::Stopped);
        }
        if self.dir.join(START).exists() {
            return Ok(Status::Created);
        }
        Ok(if groups::is_frozen(&self.state.group())? { Status::Paused } else { Status::Running })
    }

    pub fn spec(&self) -> Result<Spec> {
        let path = self.dir.join("config.json");
        oci::parse_bundle(&read(&path)?)
    }

    pub fn plan(&self) -> Result<launch::ContainerPlan> {
        let path = self.dir.join("plan");
        launch::ContainerPlan::decode(read(&path)?.as_slice())
            .map_err(|error| Error::new(Kind::Internal, "read", path.display().to_string()).because(error))
    }

    pub fn save(&self) -> Result<()> {
        let path = self.dir.join("state.json");
        let text = serde_json::to_vec(&self.state).map_err(|error| {
            Error::new(Kind::Internal, "write", path.display().to_string()).because(error)
        })?;
        write_whole(&path, &text)
    }

    /// Holds the container for a change; waits for who has it.
    pub fn lock(dir: &Path) -> Result<File> {
        let path = dir.join("lock");
        let failed = |error: std::io::Error| match error.kind() {
            ErrorKind::NotFound => Error::new(Kind::NotFound, "find container", dir.display().to_string())
                .because(Cause("container does not exist".into())),
            _ => Error::io("lock", path.display().to_string(), error),
        };
        let file = File::options().write(true).create(true).truncate(false).open(&path).map_err(failed)?;
        rustix::fs::flock(&file, FlockOperation::LockExclusive).map_err(|errno| failed(errno.into()))?;
        Ok(file)
    }
}

fn read_state(dir: &Path) -> Result<Option<State>> {
    let path = dir.join("state.json");
    let text = match fs::read(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        other => other.map_err(|error| Error::io("read", path.display().to_string(), error))?,
    };
    serde_json::from_slice(&text)
        .map(Some)
        .map_err(|error| Error::new(Kind::Internal, "read", path.display().to_string()).because(error))
}

/// Reads a file of a bundle or of ours, bounded.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    use std::io::Read;
    const MOST: u64 = 16 << 20;
    let failed = |error| Error::io("read", path.display().to_string(), error);
    let mut text = Vec::new();
    File::open(path).map_err(failed)?.take(MOST + 1).read_to_end(&mut text).map_err(failed)?;
    match text.len() as u64 > MOST {
        true => Err(Error::invalid("read", path.display().to_string(), "it is larger than 16 MiB")),
        false => Ok(text),
    }
}

/// Writes a file new and renames it: whoever reads sees all of it or what was there before.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let failed = |error| Error::io("write", path.display().to_string(), error);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let new = path.with_file_name(format!(".{name}.{}", std::process::id()));
    fs::write(&new, bytes).map_err(failed)?;
    fs::rename(&new, path).map_err(|error| {
        // The failure is the story.
        fs::remove_file(&new).ok();
        failed(error)
    })
}

/// The name of a uid, or its digits.
pub fn owner_name(uid: u32) -> String {
    let text = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let named = text.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == uid.to_string()).then(|| name.to_owned())
    });
    named.unwrap_or_else(|| uid.to_string())
}

/// `state`.
pub fn print(globals: &Globals, line: &Line) -> Result<u8> {
    let container = globals.home.find(line.id()?)?;
    let state = container.state.printed(container.status()?);
    say!("{state:#}");
    Ok(0)
}

/// As `list --format json` shows it.
pub fn listed(container: &Container) -> Result<serde_json::Value> {
    Ok(container.state.printed(container.status()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_a_name_and_no_path() {
        for good in ["a", "A-b_c.d+1", "...", &"a".repeat(255)] {
            assert!(check_id(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "../a", "a b", "ä", "a\0", &"a".repeat(256)] {
            assert!(check_id(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn an_id_is_taken_once() {
        let directory = tempfile::tempdir().unwrap();
        let home = Home::new(directory.path().join("root"));
        assert_eq!(home.find("c1").unwrap_err().kind, Kind::NotFound);
        assert!(home.all().unwrap().is_empty());
        home.take("c1").unwrap();
        assert_eq!(home.take("c1").unwrap_err().kind, Kind::AlreadyExists);
    }
}
