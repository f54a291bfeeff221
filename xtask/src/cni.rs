//! A network of CNI's bridge and host-local plugins, the same for every runtime but for its names.

use std::{fs, path::Path};

use anyhow::{Context, Result, bail};
use serde_json::json;

use crate::leftovers::Names;

/// In a runtime's directory.
pub const CONF_DIR: &str = "net.d";

/// Fails where a plugin is missing.
pub fn check(plugins: &Path) -> Result<()> {
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
