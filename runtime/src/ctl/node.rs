//! version and info.

use berth_cri::berth::{InfoRequest, InfoResponse, VersionRequest};

use super::{
    connect::Daemon,
    failure::Result,
    output::{self, Format},
};

pub(super) async fn version(daemon: &Daemon, format: Format) -> Result<u8> {
    let version = daemon.daemon().version(VersionRequest {}).await?.into_inner();
    output::show(format, "berth.v1.VersionResponse", &version, || {
        let commit = if version.commit.is_empty() { "unknown" } else { &version.commit };
        format!(
            "berth    {}\nberthd   {}\ncommit   {commit}\nCRI      {}\n",
            env!("CARGO_PKG_VERSION"),
            version.version,
            version.cri
        )
    })?;
    Ok(0)
}

pub(super) async fn info(daemon: &Daemon, format: Format) -> Result<u8> {
    let info = daemon.daemon().info(InfoRequest {}).await?.into_inner();
    output::show(format, "berth.v1.InfoResponse", &info, || lines(&info))?;
    Ok(0)
}

fn lines(info: &InfoResponse) -> String {
    let rows = [
        ("version", info.version.clone()),
        ("listen", info.listen.clone()),
        ("root", info.root.clone()),
        ("state", info.state.clone()),
        ("kernel", info.kernel.clone()),
        ("cgroup", format!("{}, driver {}", info.cgroup, info.cgroup_driver)),
        ("network", info.network.clone()),
        ("pods", info.pods.to_string()),
        ("containers", format!("{} ({} running)", info.containers, info.running)),
        ("images", info.images.to_string()),
    ];
    let rows = rows.into_iter().chain(info.warnings.iter().map(|warning| ("warning", warning.clone())));
    rows.map(|(name, value)| format!("{name:12}{value}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_host_lacks_is_told() {
        let info = InfoResponse {
            running: 1,
            containers: 2,
            warnings: vec!["no swap".into()],
            ..Default::default()
        };
        let text = lines(&info);
        assert!(
            text.contains("containers  2 (1 running)\n") && text.ends_with("warning     no swap\n"),
            "{text}"
        );
    }
}
