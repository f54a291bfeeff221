//! The CNI project's own plugins, built once where this machine has Go, and configurations for a daemon.

use std::{
    env,
    fs::{self, File},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::{Value, json};

use crate::{daemon::Daemon, skip::skip};

/// The release that tests are written against.
pub const RELEASE: &str = "v1.9.1";

/// Where the real plugins are: `BERTH_CNI_PLUGINS`, or a cache that outlives the checkout.
pub fn plugins() -> PathBuf {
    if let Some(dir) = env::var_os("BERTH_CNI_PLUGINS") {
        return dir.into();
    }
    let home = env::var_os("HOME").unwrap_or_else(|| "/root".into());
    Path::new(&home).join(".cache/berth-tests").join(format!("cni-{RELEASE}"))
}

/// What is built of the release.
const PACKAGES: [&str; 8] = [
    "main/bridge",
    "main/loopback",
    "main/macvlan",
    "main/ptp",
    "ipam/host-local",
    "meta/bandwidth",
    "meta/firewall",
    "meta/portmap",
];

/// Tells whether all these plugins are there, after building what is missing where there is Go; skips if not.
pub fn required(name: &str, kinds: &[&str]) -> bool {
    let dir = plugins();
    let missing = || kinds.iter().copied().filter(|kind| !dir.join(kind).is_file()).collect::<Vec<_>>();
    if missing().is_empty() {
        return true;
    }
    let why = build(&dir).err().unwrap_or_default();
    let missing = missing();
    if !missing.is_empty() {
        skip(name, &format!("CNI plugins {} are not in {}{why}", missing.join(", "), dir.display()));
    }
    missing.is_empty()
}

/// Builds the release from its Go module: some minutes, once for all clones.
fn build(dir: &Path) -> Result<(), String> {
    let told = |error: std::io::Error| format!("; building them: {error}");
    fs::create_dir_all(dir).map_err(told)?;
    // Tests run side by side: one builds, the others wait and find it done.
    let lock = File::create(dir.join(".lock")).map_err(told)?;
    lock.lock().map_err(told)?;
    let name = |package: &&str| package.rsplit('/').next().unwrap_or_default().to_owned();
    if PACKAGES.iter().all(|package| dir.join(name(package)).is_file()) {
        return Ok(());
    }
    let unfinished = dir.join(".new");
    let packages =
        PACKAGES.map(|one| format!("github.com/containernetworking/plugins/plugins/{one}@{RELEASE}"));
    let output = Command::new("go")
        .args(["install", "-p", "2", "-ldflags", "-s -w"])
        .args(packages)
        .envs([("CGO_ENABLED", "0"), ("GOFLAGS", "-buildvcs=false -trimpath")])
        .env("GOBIN", &unfinished)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("; building them: run go: {error}"))?;
    if !output.status.success() {
        return Err(format!("; building them: {}", String::from_utf8_lossy(&output.stderr).trim()));
    }
    for package in &PACKAGES {
        fs::rename(unfinished.join(name(package)), dir.join(name(package))).map_err(told)?;
    }
    fs::remove_dir(unfinished).map_err(told)
}

impl Daemon {
    /// Writes a list into the daemon's private directory.
    pub fn cni_list(&self, file: &str, version: &str, plugins: &Value) {
        let name = self.bridge();
        let list = json!({ "cniVersion": version, "name": name, "plugins": plugins });
        self.cni_file(file, &list.to_string());
    }

    /// Writes a file into the daemon's private directory, whole at once.
    pub fn cni_file(&self, file: &str, text: &str) {
        let dir = self.cni_conf_dir();
        fs::create_dir_all(&dir).expect("make the directory of configurations");
        let new = dir.join(format!(".{file}"));
        fs::write(&new, text).expect("write a configuration");
        fs::rename(new, dir.join(file)).expect("name a configuration");
    }

    /// A plugin of the test's own: a script of sh. `$LOG` is a file it may write to, `$0` its path.
    pub fn cni_script(&self, name: &str, script: &str) {
        let dir = self.cni_bin_dir();
        fs::create_dir_all(&dir).expect("make the directory of plugins");
        let log = self.dir().join("cni/log");
        let (new, path) = (dir.join(format!(".{name}")), dir.join(name));
        let text = format!("#!/bin/sh\nLOG={}\n{script}\n", log.display());
        fs::write(&new, text).expect("write a plugin");
        fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).expect("make it a program");
        fs::rename(new, path).expect("name a plugin");
    }

    /// What the scripts wrote.
    pub fn cni_log(&self) -> Vec<String> {
        let text = fs::read_to_string(self.dir().join("cni/log")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// The bridge plugin with addresses of the daemon's own subnet, as the IPAM plugin keeps them here.
    pub fn cni_bridge(&self) -> Value {
        json!({
            "type": "bridge",
            "bridge": self.bridge(),
            "isGateway": true,
            "hairpinMode": true,
            "ipam": self.cni_ipam(),
        })
    }

    pub fn cni_ipam(&self) -> Value {
        json!({
            "type": "host-local",
            "dataDir": self.dir().join("cni/ipam"),
            "ranges": [[{ "subnet": self.subnet() }], [{ "subnet": self.subnet6() }]],
            "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }],
        })
    }
}
