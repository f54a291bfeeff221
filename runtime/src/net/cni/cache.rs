//! Results where libcni keeps them, as it lays them out, so that its tools find our pods' networks too:
//! `<cache_dir>/results/<network>-<container id>-<interface>`. Ours to write and remove; what we rely on is our own
//! attachment. Blocks.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Value, json};

use super::{attachment::Attachment, chain};
use crate::{Error, Result, id::PodId};

/// Writes one interface's result.
pub fn write(dir: &Path, pod: &PodId, attachment: &Attachment, number: usize) -> Result<()> {
    let interface = &attachment.interfaces[number];
    let config = json!({
        "cniVersion": interface.cni_version,
        "name": interface.network,
        "plugins": interface.plugins,
    });
    let asked = attachment.capabilities.iter().filter(|(name, _)| interface.list().asks_for(name));
    let capabilities: serde_json::Map<_, _> =
        asked.map(|(name, value)| (name.clone(), value.clone())).collect();
    let entry = json!({
        "kind": "cniCacheV1",
        "containerId": pod.as_str(),
        // Bytes, which Go's JSON writes in base64.
        "config": BASE64_STANDARD.encode(config.to_string()),
        "ifName": interface.name,
        "networkName": interface.network,
        "netns": attachment.netns,
        "cniArgs": attachment.arguments,
        "capabilityArgs": capabilities,
        "result": interface.result.clone().unwrap_or(Value::Null),
    });
    let path = path(dir, pod, attachment, number);
    let new = path.with_extension("berth-new");
    let write = || {
        fs::create_dir_all(dir.join("results"))?;
        fs::write(&new, entry.to_string())?;
        fs::rename(&new, &path)
    };
    write().map_err(|error| Error::io("write result to", path.display().to_string(), error))
}

/// Absent: success.
pub fn remove(dir: &Path, pod: &PodId, attachment: &Attachment, number: usize) -> Result<()> {
    let path = path(dir, pod, attachment, number);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io("remove result", path.display().to_string(), error))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

fn path(dir: &Path, pod: &PodId, attachment: &Attachment, number: usize) -> PathBuf {
    let interface = &attachment.interfaces[number];
    // The network's name was checked when the configuration was read: no path.
    dir.join("results").join(chain::cache_name(&interface.network, pod, &interface.name))
}
