//! What a pod asks of its network, as the network wants it. Pure.

use berth_cri::v1 as cri;

use super::ports::host_ports;
use crate::{
    Result,
    net::{DEFAULT, Dns, Wish},
};

/// Of the hidden pod of a person's container: the network it is in, and what it is called there.
pub const NETWORK: &str = "berth.dev/network";

/// The network that a person's container is in.
pub fn network(config: &cri::PodSandboxConfig) -> &str {
    config.annotations.get(NETWORK).map_or(DEFAULT, String::as_str)
}

/// Reads it from the pod's configuration; `cgroup` is the pod's.
///
/// # Errors
/// `Invalid` names a port mapping that can't be.
pub fn of(config: &cri::PodSandboxConfig, cgroup: &str) -> Result<Wish> {
    let metadata = config.metadata.clone().unwrap_or_default();
    let dns = config.dns_config.clone().unwrap_or_default();
    Ok(Wish {
        namespace: metadata.namespace,
        name: metadata.name,
        uid: metadata.uid,
        annotations: config.annotations.clone().into_iter().collect(),
        ports: host_ports(config)?,
        dns: Dns { servers: dns.servers, searches: dns.searches, options: dns.options },
        cgroup: cgroup.to_owned(),
    })
}
