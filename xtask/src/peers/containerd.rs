//! containerd with its own CRI plugin, as it configures itself but for places, networks and the pause image.

use std::{fs, path::Path};

use anyhow::{Context, Result};

use super::{PAUSE, Start, Wish};
use crate::cni;

pub fn write(place: &Path, runtime: &str, wish: &Wish) -> Result<Start> {
    let file = place.join("config.toml");
    fs::write(&file, configuration(place, runtime, wish)).context("write a configuration")?;
    let hosts = place.join("certs.d").join(wish.registry);
    fs::create_dir_all(&hosts).context("make a directory")?;
    let plain = format!("server = \"http://{0}\"\n[host.\"http://{0}\"]\n", wish.registry);
    fs::write(hosts.join("hosts.toml"), plain).context("write the registry's place")?;
    Ok(Start {
        program: "containerd",
        arguments: vec!["--config".into(), file.into()],
        environment: Vec::new(),
        monitors: vec!["containerd-shim-runc-v2"],
    })
}

/// The score of a pod's own process is kept where this machine has no CAP_SYS_RESOURCE to lower it: runc would fail.
fn configuration(place: &Path, runtime: &str, wish: &Wish) -> String {
    let path = |name: &str| place.join(name).display().to_string();
    let (root, state, socket) = (path("root"), path("state"), path("sock"));
    let binary = path(&format!("bin/{runtime}"));
    let (plugins, conf_dir) = (wish.plugins.display().to_string(), path(cni::CONF_DIR));
    let hosts = path("certs.d");
    let pause = format!("{}/{PAUSE}", wish.registry);
    format!(
        r#"version = 2
root = {root:?}
state = {state:?}
disabled_plugins = ["io.containerd.internal.v1.opt"]
[grpc]
address = {socket:?}
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = {pause:?}
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".registry]
config_path = {hosts:?}
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = {plugins:?}
conf_dir = {conf_dir:?}
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
BinaryName = {binary:?}
"#
    )
}
