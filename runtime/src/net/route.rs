//! What the bridge takes of rtnetlink(7). A connection is opened for each operation: a socket and a task, both gone
//! with the last handle, and nothing to mend after an error.

use std::net::Ipv4Addr;

use futures_util::TryStreamExt;
use rtnetlink::{
    Handle, LinkBridge, LinkUnspec,
    packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage},
};

use super::subnet::Subnet;
use crate::{Error, Kind, Result, config};

#[derive(Debug)]
pub struct Route(Handle);

/// A network interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    is_bridge: bool,
}

impl Route {
    pub fn open() -> Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection()
            .map_err(|error| Error::io("open netlink socket", "NETLINK_ROUTE", error))?;
        // Ends by itself once the handle is dropped.
        tokio::spawn(connection);
        Ok(Self(handle))
    }

    pub async fn link(&self, name: &str) -> Result<Option<Link>> {
        let found = self.0.link().get().match_name(name).execute().try_next().await;
        match found {
            Ok(found) => {
                Ok(found.map(|message| Link { index: message.header.index, is_bridge: is_bridge(&message) }))
            }
            Err(error) if errno(&error) == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(explain("look up link", name, error)),
        }
    }

    /// The bridge, made or found, with its address and up.
    pub async fn bridge(&self, config: &config::Bridge, subnet: Subnet) -> Result<Link> {
        let link = self.make_bridge(config, subnet).await?;
        let name = config.name.as_str();
        let gateway = subnet.gateway();
        let added = self.0.address().add(link.index, gateway.into(), subnet.prefix()).execute().await;
        match added {
            Err(error) if errno(&error) != Some(libc::EEXIST) => {
                let object = format!("{gateway}/{} of {name}", subnet.prefix());
                return Err(explain("add address", object, error));
            }
            Ok(()) | Err(_) => {}
        }
        let mut change = LinkUnspec::new_with_index(link.index).up();
        if config.mtu != 0 {
            change = change.mtu(config.mtu);
        }
        self.0
            .link()
            .set(change.build())
            .execute()
            .await
            .map_err(|error| explain("set up bridge", name, error))?;
        Ok(link)
    }

    pub async fn delete(&self, link: Link, name: &str) -> Result<()> {
        match self.0.link().del(link.index).execute().await {
            Err(error) if errno(&error) != Some(libc::ENODEV) => Err(explain("delete link", name, error)),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    async fn make_bridge(&self, config: &config::Bridge, subnet: Subnet) -> Result<Link> {
        let name = config.name.as_str();
        // With an address of its own: else a bridge takes its ports' least, and changes it as pods come and go.
        let message = LinkBridge::new(name).address(mac(subnet.gateway()).to_vec()).build();
        match self.0.link().add(message).execute().await {
            Err(error) if errno(&error) != Some(libc::EEXIST) => {
                return Err(explain("make bridge", name, error));
            }
            Ok(()) | Err(_) => {}
        }
        let Some(link) = self.link(name).await? else {
            return Err(Error::new(Kind::Unavailable, "make bridge", name)
                .because(crate::error::Cause("it was removed at once by somebody else".into())));
        };
        if !link.is_bridge {
            return Err(Error::new(Kind::AlreadyExists, "make bridge", name)
                .because(crate::error::Cause("a link of that name exists and is no bridge".into()))
                .hint("set network.bridge.name to another"));
        }
        Ok(link)
    }
}

/// A link address that nobody else has on this node: locally administered, `be`, the IP address.
pub fn mac(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [0x02, 0xbe, a, b, c, d]
}

fn is_bridge(message: &LinkMessage) -> bool {
    message.attributes.iter().any(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => infos.contains(&LinkInfo::Kind(InfoKind::Bridge)),
        _ => false,
    })
}

fn errno(error: &rtnetlink::Error) -> Option<i32> {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.code.map(|code| code.get().abs()),
        _ => None,
    }
}

fn explain(op: &'static str, object: impl Into<String>, error: rtnetlink::Error) -> Error {
    match errno(&error) {
        Some(code @ (libc::EPERM | libc::EACCES)) => Error::new(Kind::Denied, op, object)
            .because(std::io::Error::from_raw_os_error(code))
            .hint("berthd needs CAP_NET_ADMIN"),
        Some(code @ libc::EOPNOTSUPP) => Error::new(Kind::Unavailable, op, object)
            .because(std::io::Error::from_raw_os_error(code))
            .hint("load the kernel's bridge module"),
        Some(code) => Error::io(op, object, std::io::Error::from_raw_os_error(code)),
        None => Error::new(Kind::Unavailable, op, object).because(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn link_addresses_are_local_unicast_and_differ_as_the_ips_do() {
        let mac = mac(Ipv4Addr::new(10, 88, 1, 200));
        assert_eq!(mac, [0x02, 0xbe, 10, 88, 1, 200]);
        assert_eq!(mac[0] & 0b11, 0b10);
    }
}
