//! A network of CNI's bridge and host-local plugins, the same for every runtime but for its names.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use serde_json::json;

use crate::{golang, kubernetes, leftovers::Names, peers::Missing};

/// In a runtime's directory.
pub const CONF_DIR: &str = "net.d";

/// What is built of the release, by Go.
const RELEASE: &str = "github.com/containernetworking/plugins/plugins";
const VERSION: &str = "v1.9.1";
const PLUGINS: [&str; 3] = ["main/bridge", "main/loopback", "ipam/host-local"];

/// The plugins of a directory, or those that were built once below the user's cache directory.
///
/// # Errors
/// One is missing; what Go said; that there is no Go.
pub fn plugins(given: Option<&Path>, missing: Missing) -> Result<PathBuf> {
    if let Some(given) = given {
        let given = given.canonicalize().with_context(|| format!("find {}", given.display()))?;
        check(&given)?;
        return Ok(given);
    }
    let built = kubernetes::cache()?.join(format!("cni-{VERSION}"));
    if check(&built).is_err() && missing == Missing::Built {
        let packages = PLUGINS.map(|one| format!("{RELEASE}/{one}@{VERSION}"));
        golang::install(&built, &packages, golang::Linked::Statically, "")?;
    }
    check(&built)?;
    Ok(built)
}

fn check(plugins: &Path) -> Result<()> {
    match ["bridge", "host-local", "loopback"].iter().find(|name| !plugins.join(name).is_file()) {
        Some(missing) => bail!("no {missing} in {}", plugins.display()),
        None => Ok(()),
    }
}

/// Writes its list. Without masquerade: only the plugins' own work is measured, and no rule can be left behind.
pub fn write(names: &Names, subnet: &str) -> Result<()> {
    let directory = names.directory.join(CONF_DIR);
    fs::create_dir(&directory).with_context(|| format!("make {}", directory.display()))?;
    let list = json!({
        "cniVersion": "1.0.0",
        "name": names.table,
        "plugins": [{
            "type": "bridge",
            "bridge": names.bridge,
            "isGateway": true,
            "ipam": {
                "type": "host-local",
                "dataDir": names.directory.join("addresses"),
                "ranges": [[{ "subnet": subnet }]],
                "routes": [{ "dst": "0.0.0.0/0" }],
            },
        }],
    });
    let file = directory.join("10-bench.conflist");
    fs::write(&file, list.to_string()).with_context(|| format!("write {}", file.display()))
}
