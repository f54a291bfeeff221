//! A pod's port mappings as the network wants them, and their end with a person's container.

use std::net::IpAddr;

use berth_cri::v1 as cri;
use tracing::warn;

use super::actor::Pod;
use crate::{
    Error, Result,
    id::ContainerId,
    net::{HostPort, Protocol},
};

/// Reads the mappings that ask for a port of the node: 0 asks for none.
///
/// # Errors
/// `Invalid` names the field.
pub fn host_ports(config: &cri::PodSandboxConfig) -> Result<Vec<HostPort>> {
    let wanted = config.port_mappings.iter().enumerate().filter(|(_, port)| port.host_port > 0);
    wanted.map(|(n, port)| host_port(n, port)).collect()
}

fn host_port(n: usize, port: &cri::PortMapping) -> Result<HostPort> {
    let field = |name: &str| format!("port_mappings[{n}].{name}");
    let number = |name: &str, value: i32| {
        let read = u16::try_from(value).ok().filter(|port| *port > 0);
        read.ok_or_else(|| Error::invalid("read port", field(name), format!("{value} is none of 1 to 65535")))
    };
    let address = match port.host_ip.as_str() {
        "" => None,
        text => Some(text.parse::<IpAddr>().map_err(|_| {
            Error::invalid("read port", field("host_ip"), format!("{text:?} is no IP address"))
        })?),
    };
    Ok(HostPort {
        protocol: match port.protocol() {
            cri::Protocol::Tcp => Protocol::Tcp,
            cri::Protocol::Udp => Protocol::Udp,
            cri::Protocol::Sctp => Protocol::Sctp,
        },
        address,
        host: number("host_port", port.host_port)?,
        pod: number("container_port", port.container_port)?,
    })
}

impl Pod {
    /// Lets the ports of the node go that lead to a person's container, which has ended.
    pub async fn close_ports(&self, id: &ContainerId) {
        if let Err(error) = self.rooms.network.close_ports(&self.id).await {
            warn!(container = %id, error = error.chain(), "ports of the node lead to an ended container still");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Kind;

    #[test]
    fn mappings_are_ports_of_the_node_or_nothing_or_told() {
        let read = |protocol: cri::Protocol, host_ip: &str, host_port, container_port| {
            let port = cri::PortMapping {
                protocol: protocol.into(),
                host_ip: host_ip.into(),
                host_port,
                container_port,
            };
            let config = cri::PodSandboxConfig { port_mappings: vec![port], ..Default::default() };
            host_ports(&config).map(|ports| ports.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        use cri::Protocol::{Sctp, Tcp, Udp};
        assert_eq!(read(Tcp, "", 0, 80).unwrap(), Vec::<String>::new());
        assert_eq!(read(Tcp, "", 8080, 80).unwrap(), ["tcp *:8080 80"]);
        assert_eq!(read(Udp, "127.0.0.1", 53, 53).unwrap(), ["udp 127.0.0.1:53 53"]);
        assert_eq!(read(Sctp, "::", 9, 9).unwrap(), ["sctp [::]:9 9"]);
        let rows = [("here", 9, 9, Kind::Invalid), ("", 70_000, 9, Kind::Invalid), ("", 9, 0, Kind::Invalid)];
        for (address, host, pod, kind) in rows {
            assert_eq!(read(Tcp, address, host, pod).unwrap_err().kind, kind, "{address} {host} {pod}");
        }
    }
}
