//! Version, Status, RuntimeConfig: what the node is and whether it can take pods.

use std::collections::HashMap;

use berth_cri::v1 as cri;

use crate::{
    Error, Result,
    api::{Door, VERSION},
    config::CgroupDriver,
    pod::{Handler, RecursiveReadOnly},
};

impl Door {
    pub(super) fn version(&self) -> cri::VersionResponse {
        cri::VersionResponse {
            // Of the kubelet's own protocol; it accepts no other.
            version: "0.1.0".into(),
            runtime_name: "berth".into(),
            runtime_version: VERSION.into(),
            runtime_api_version: "v1".into(),
        }
    }

    pub(super) async fn node_status(&self, request: &cri::StatusRequest) -> cri::StatusResponse {
        let network = self.rooms.network.ready().await;
        let runtime = condition("RuntimeReady", Ok(()), "");
        let network = condition("NetworkReady", network, "NetworkNotReady");
        cri::StatusResponse {
            status: Some(cri::RuntimeStatus { conditions: vec![runtime, network] }),
            info: if request.verbose { self.node_info().await } else { HashMap::new() },
            runtime_handlers: self.rooms.handlers.all().map(|(name, is)| handler(name, is)).collect(),
            features: Some(cri::RuntimeFeatures {
                supplemental_groups_policy: true,
                user_namespaces_host_network: user_namespaces(),
                mount_options: true,
            }),
        }
    }

    pub(super) fn cgroup_driver(&self) -> cri::RuntimeConfigResponse {
        let driver = match self.rooms.config.cgroup_driver {
            CgroupDriver::Cgroupfs => cri::CgroupDriver::Cgroupfs,
            CgroupDriver::Systemd => cri::CgroupDriver::Systemd,
        };
        let cgroup_driver = driver.into();
        cri::RuntimeConfigResponse { linux: Some(cri::LinuxRuntimeConfiguration { cgroup_driver }) }
    }

    /// Notes where the node's pods have their addresses, for network plugins that ask for `ipRanges`. The built-in
    /// bridge has a subnet of its own. An empty text says nothing.
    pub(super) async fn note_pod_ranges(&self, text: &str) -> Result<()> {
        let ranges: Vec<String> =
            text.split(',').map(str::trim).filter(|one| !one.is_empty()).map(str::to_owned).collect();
        for range in &ranges {
            let (ip, prefix) = range.split_once('/').unwrap_or((range, ""));
            if ip.parse::<std::net::IpAddr>().is_err() || !prefix.parse::<u8>().is_ok_and(|bits| bits <= 128)
            {
                return Err(Error::invalid(
                    "read pod_cidr",
                    format!("{range:?}"),
                    "it is no range of addresses",
                ));
            }
        }
        match ranges.is_empty() {
            true => Ok(()),
            false => self.rooms.network.set_ranges(ranges).await,
        }
    }

    async fn node_info(&self) -> HashMap<String, String> {
        let daemon = &self.config.daemon;
        let config = serde_json::json!({
            "rootDir": daemon.root,
            "stateDir": daemon.state,
            "listen": daemon.listen,
            "cgroupDriver": daemon.cgroup_driver.word(),
            "cgroups": format!("{:?}", self.rooms.cgroups.mode).to_lowercase(),
            "network": self.rooms.network.describe().await,
            "handlersWithoutNetwork": self.rooms.network.unready_handlers().await,
        });
        HashMap::from([("config".into(), config.to_string())])
    }
}

fn handler(name: &str, is: &Handler) -> cri::RuntimeHandler {
    let features = match is {
        Handler::BuiltIn => cri::RuntimeHandlerFeatures {
            recursive_read_only_mounts: true,
            user_namespaces: user_namespaces(),
        },
        Handler::Runtime { recursive_read_only, .. } => cri::RuntimeHandlerFeatures {
            recursive_read_only_mounts: *recursive_read_only == RecursiveReadOnly::Known,
            user_namespaces: false,
        },
    };
    cri::RuntimeHandler { name: name.into(), features: Some(features) }
}

/// Whether pods can have user namespaces here: they are there, the node allows some, and overlayfs takes id-mapped layers
/// (Linux 5.19).
fn user_namespaces() -> bool {
    let allowed = std::fs::read_to_string("/proc/sys/user/max_user_namespaces").unwrap_or_default();
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    allowed.trim().parse::<u64>().is_ok_and(|most| most > 0) && version(&release) >= (5, 19)
}

/// Of `6.18.44-name`.
fn version(release: &str) -> (u32, u32) {
    let mut numbers = release.split(|one: char| !one.is_ascii_digit()).map(|word| word.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

fn condition(kind: &str, ready: Result<(), String>, reason: &str) -> cri::RuntimeCondition {
    match ready {
        Ok(()) => cri::RuntimeCondition { r#type: kind.into(), status: true, ..Default::default() },
        Err(message) => {
            cri::RuntimeCondition { r#type: kind.into(), status: false, reason: reason.into(), message }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernels_version_is_read_whatever_follows_it() {
        for (release, expected) in
            [("6.18.44-fc\n", (6, 18)), ("6.1.0-13-amd64", (6, 1)), ("7.0-rc1", (7, 0)), ("", (0, 0))]
        {
            assert_eq!(version(release), expected, "{release}");
        }
    }
}
