//! CRI-O with conmon, as it configures itself but for places, networks, cgroups and the pause image.

use std::{fs, path::Path};

use anyhow::{Context, Result};

use super::{PAUSE, Start, Wish};
use crate::cni;

pub fn write(place: &Path, runtime: &str, wish: &Wish) -> Result<Start> {
    let policy = place.join("policy.json");
    fs::write(&policy, r#"{"default":[{"type":"insecureAcceptAnything"}]}"#).context("write a policy")?;
    let file = place.join("crio.conf");
    fs::write(&file, configuration(place, runtime, wish)).context("write a configuration")?;
    // No drop-ins of the machine's.
    let drop_ins = place.join("crio.conf.d");
    fs::create_dir(&drop_ins).context("make a directory")?;
    // It looks for one in its user's home before the machine's.
    let home = place.join("home");
    let registries = home.join(".config/containers/registries.conf");
    fs::create_dir_all(home.join(".config/containers")).context("make a directory")?;
    let plain = format!("[[registry]]\nlocation = {:?}\ninsecure = true\n", wish.registry);
    fs::write(&registries, plain).context("write the registry's place")?;
    Ok(Start {
        program: "crio",
        arguments: vec!["--config".into(), file.into(), "--config-dir".into(), drop_ins.into()],
        environment: vec![("HOME", home)],
        monitors: vec!["conmon"],
    })
}

fn configuration(place: &Path, runtime: &str, wish: &Wish) -> String {
    let path = |name: &str| place.join(name).display().to_string();
    let (root, state, socket) = (path("root"), path("state"), path("sock"));
    let (binary, conmon, pinns) = (path(&format!("bin/{runtime}")), path("bin/conmon"), path("bin/pinns"));
    let (plugins, conf_dir) = (wish.plugins.display().to_string(), path(cni::CONF_DIR));
    let pause = format!("{}/{PAUSE}", wish.registry);
    let (logs, exits, attach, namespaces) =
        (path("logs"), path("state/exits"), path("attach"), path("state/ns"));
    let (version, clean, policy) = (path("state/version"), path("clean"), path("policy.json"));
    let (version_persist, runtime_root) = (path("version-persist"), path("state/oci"));
    format!(
        r#"[crio]
root = {root:?}
runroot = {state:?}
storage_driver = "overlay"
log_dir = {logs:?}
version_file = {version:?}
version_file_persist = {version_persist:?}
clean_shutdown_file = {clean:?}
internal_wipe = false
[crio.api]
listen = {socket:?}
stream_address = "127.0.0.1"
stream_port = "0"
[crio.runtime]
default_runtime = {runtime:?}
cgroup_manager = "cgroupfs"
conmon_cgroup = "pod"
container_exits_dir = {exits:?}
container_attach_socket_dir = {attach:?}
namespaces_dir = {namespaces:?}
pinns_path = {pinns:?}
[crio.runtime.runtimes.{runtime}]
runtime_path = {binary:?}
runtime_root = {runtime_root:?}
monitor_path = {conmon:?}
monitor_cgroup = "pod"
[crio.image]
pause_image = {pause:?}
pause_command = ""
signature_policy = {policy:?}
[crio.network]
network_dir = {conf_dir:?}
plugin_dirs = [{plugins:?}]
[crio.nri]
enable_nri = false
"#
    )
}
