//! What a pod asks of its network, as the network wants it. Pure.

use berth_cri::{berth, v1 as cri};

use super::ports::host_ports;
use crate::{
    Result,
    id::ContainerId,
    net::{DEFAULT, Dns, Wish},
};

/// Digits of an id that people type.
const SHORT: usize = 12;

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

/// What a person's container is called in its network, as with docker: its name, its aliases, its short id and the host
/// name that it was given.
pub fn names(spec: &berth::ContainerSpec, id: &ContainerId) -> Vec<String> {
    let mut names = vec![spec.name.clone()];
    names.extend(spec.network_aliases.iter().cloned());
    names.push(id.as_str()[..SHORT].to_owned());
    names.push(spec.hostname.clone());
    names.retain(|name| !name.is_empty());
    names
}

/// The pod's configuration with what its network says about names, where it says nothing itself.
pub fn with_dns(config: cri::PodSandboxConfig, network: Option<Dns>) -> cri::PodSandboxConfig {
    let said = config.dns_config.clone().filter(|said| *said != cri::DnsConfig::default());
    let told =
        network.map(|Dns { servers, searches, options }| cri::DnsConfig { servers, searches, options });
    cri::PodSandboxConfig { dns_config: said.or(told), ..config }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_is_called_what_dockers_people_expect() {
        let id = ContainerId::random();
        let spec = berth::ContainerSpec {
            name: "web".into(),
            network_aliases: vec!["a".into(), "b".into()],
            ..Default::default()
        };
        assert_eq!(names(&spec, &id), ["web", "a", "b", &id.as_str()[..12]]);
        let hosted = berth::ContainerSpec { hostname: "db.example".into(), ..spec };
        assert_eq!(names(&hosted, &id).last().unwrap(), "db.example");
    }

    #[test]
    fn what_a_pod_says_of_names_is_before_what_its_network_says() {
        let network = Dns { servers: vec!["10.9.0.1".into()], ..Dns::default() };
        let of = |said: Option<cri::DnsConfig>| {
            let config = cri::PodSandboxConfig { dns_config: said, ..Default::default() };
            with_dns(config, Some(network.clone())).dns_config.unwrap().servers
        };
        let own = cri::DnsConfig { servers: vec!["9.9.9.9".into()], ..Default::default() };
        assert_eq!((of(None), of(Some(own))), (vec!["10.9.0.1".to_owned()], vec!["9.9.9.9".to_owned()]));
        assert_eq!(of(Some(cri::DnsConfig::default())), ["10.9.0.1"]);
        assert_eq!(with_dns(cri::PodSandboxConfig::default(), None).dns_config, None);
    }
}
