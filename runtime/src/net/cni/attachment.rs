//! What was asked of the plugins for a pod, on disk: `<root>/network/cni/<pod id>`, JSON. Blocks.
//!
//! Written before the first ADD, with the configuration as it was then, and again after each result: whatever kills
//! berthd, its successor knows what has to be undone and how. Removed after the last DEL.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tracing::warn;

use super::{
    Source,
    conf::{NetworkList, Plugin},
    version::Version,
};
use crate::{Error, Result, id::PodId};

/// The start of a file that is being written, which no pod id has.
const NEW: &str = ".new-";
const VERSION: u32 = 1;

/// A pod's interfaces made by plugins, wholly, half, or about to be.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
pub struct Attachment {
    pub version: u32,
    /// The pinned namespace.
    pub netns: PathBuf,
    /// Where its configurations were; what was written before this was known has none.
    #[serde(default)]
    pub conf_dir: PathBuf,
    /// CNI_ARGS.
    pub arguments: Vec<(String, String)>,
    pub capabilities: Map<String, Value>,
    /// In the order of ADD: eth0, eth1.
    pub interfaces: Vec<Interface>,
}

#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
pub struct Interface {
    pub name: String,
    pub network: String,
    pub cni_version: String,
    pub disable_check: bool,
    pub disable_gc: bool,
    pub plugins: Vec<Map<String, Value>>,
    /// The last plugin's, in that version; none: ADD has not come to its end.
    pub result: Option<Value>,
}

impl Attachment {
    pub fn new(
        netns: PathBuf,
        source: Source,
        arguments: Vec<(String, String)>,
        capabilities: Map<String, Value>,
    ) -> Self {
        let interface = |(number, list): (usize, NetworkList)| Interface {
            name: format!("eth{number}"),
            network: list.name,
            cni_version: list.version.text().into(),
            disable_check: list.disable_check,
            disable_gc: list.disable_gc,
            plugins: list.plugins.into_iter().map(|plugin| plugin.object).collect(),
            result: None,
        };
        let Source { dir: conf_dir, lists } = source;
        let interfaces = lists.into_iter().enumerate().map(interface).collect();
        Self { version: VERSION, netns, conf_dir, arguments, capabilities, interfaces }
    }
}

impl Interface {
    pub fn list(&self) -> NetworkList {
        let plugin = |object: &Map<String, Value>| Plugin {
            kind: object.get("type").and_then(Value::as_str).unwrap_or_default().into(),
            object: object.clone(),
        };
        NetworkList {
            name: self.network.clone(),
            // What can't be read here was not written by us: the newest there is.
            version: Version::parse(&self.cni_version).unwrap_or(Version::V1_1_0),
            disable_check: self.disable_check,
            disable_gc: self.disable_gc,
            plugins: self.plugins.iter().map(plugin).collect(),
        }
    }
}

/// The directory of them.
#[derive(Debug, Clone)]
pub struct Shelf(PathBuf);

impl Shelf {
    /// Reads what is there. What can't be understood is moved to `<dir>/cni.aside`, with a warning.
    pub fn open(dir: &Path) -> Result<(Self, BTreeMap<PodId, Attachment>)> {
        let shelf = dir.join("cni");
        let failed = |error: io::Error| Error::io("read attachments", shelf.display().to_string(), error);
        fs::create_dir_all(&shelf).map_err(failed)?;
        let mut found = BTreeMap::new();
        for entry in fs::read_dir(&shelf).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            if name.starts_with(NEW) {
                // No plugin was called before the rename.
                fs::remove_file(&path).map_err(failed)?;
                continue;
            }
            match read(&path, &name) {
                Ok((pod, attachment)) => {
                    found.insert(pod, attachment);
                }
                Err(cause) => {
                    let aside = dir.join("cni.aside");
                    fs::create_dir_all(&aside).map_err(failed)?;
                    warn!(
                        attachment = %path.display(),
                        moved_to = %aside.display(),
                        cause,
                        "attachment set aside: it can't be understood, and plugins can't be told to undo it"
                    );
                    fs::rename(&path, aside.join(name)).map_err(failed)?;
                }
            }
        }
        Ok((Self(shelf), found))
    }

    /// Whether there are any that could not be understood: pods may run with what they say.
    pub fn has_unreadable(&self) -> bool {
        let aside = self.0.with_file_name("cni.aside");
        fs::read_dir(aside).is_ok_and(|mut entries| entries.next().is_some())
    }

    /// New and renamed: there whole or not at all.
    pub fn write(&self, pod: &PodId, attachment: &Attachment) -> Result<()> {
        let (new, path) = (self.0.join(format!("{NEW}{pod}")), self.0.join(pod.as_str()));
        let text = serde_json::to_vec(attachment).expect("its keys are text");
        fs::write(&new, text)
            .and_then(|()| fs::rename(&new, &path))
            .map_err(|error| Error::io("write attachment", path.display().to_string(), error))
    }

    /// Absent: success.
    pub fn remove(&self, pod: &PodId) -> Result<()> {
        let path = self.0.join(pod.as_str());
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::io("remove attachment", path.display().to_string(), error))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

fn read(path: &Path, name: &str) -> Result<(PodId, Attachment), String> {
    let pod = PodId::parse(name).map_err(|error| error.chain())?;
    let text = fs::read(path).map_err(|error| error.to_string())?;
    let attachment: Attachment = serde_json::from_slice(&text).map_err(|error| error.to_string())?;
    match attachment.version {
        VERSION => Ok((pod, attachment)),
        other => Err(format!("it is of version {other}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attachments_outlive_the_daemon_and_torn_ones_are_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let list = r#"{"cniVersion":"0.4.0","name":"n","plugins":[{"type":"a","x":[1]},{"type":"b"}]}"#;
        let list = NetworkList::parse(list).unwrap();
        let source = Source { dir: "/conf".into(), lists: vec![list.clone()] };
        let mut attachment = Attachment::new("/ns".into(), source, Vec::new(), Map::new());
        attachment.interfaces[0].result = Some(serde_json::json!({"ips": []}));
        assert_eq!((attachment.interfaces[0].name.as_str(), attachment.interfaces[0].list()), ("eth0", list));
        let pod = PodId::random();
        let (shelf, found) = Shelf::open(dir.path()).unwrap();
        assert!(found.is_empty() && !shelf.has_unreadable());
        shelf.write(&pod, &attachment).unwrap();
        let torn = PodId::random();
        fs::write(dir.path().join("cni").join(torn.as_str()), "{").unwrap();
        fs::write(dir.path().join("cni").join(format!("{NEW}{torn}")), "{").unwrap();
        let (shelf, found) = Shelf::open(dir.path()).unwrap();
        assert_eq!(found, BTreeMap::from([(pod.clone(), attachment)]));
        assert!(dir.path().join("cni.aside").join(torn.as_str()).exists() && shelf.has_unreadable());
        shelf.remove(&pod).unwrap();
        shelf.remove(&pod).unwrap();
        assert!(Shelf::open(dir.path()).unwrap().1.is_empty());
    }
}
