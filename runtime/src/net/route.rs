//! What the bridge takes of rtnetlink(7). A connection is opened for each operation: a socket and a task, both gone
//! with the last handle, and nothing to mend after an error.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use futures_util::TryStreamExt;
use rtnetlink::{
    Handle, LinkBridge, LinkUnspec, RouteMessageBuilder,
    packet_route::{
        address::{AddressAttribute, AddressHeaderFlags},
        link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage},
        route::{RouteAddress, RouteAttribute, RouteMessage, RouteType},
    },
};

use super::{segment::Segment, subnet::Subnet};
use crate::{Error, Kind, Result, error::Cause};

#[derive(Debug)]
pub struct Route(Handle);

/// A network interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub mtu: u32,
    is_bridge: bool,
}

/// A range of addresses that the node has a way to, by this link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Way {
    to: IpAddr,
    prefix: u8,
    link: u32,
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
            Ok(found) => Ok(found.as_ref().map(read)),
            Err(error) if errno(&error) == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(explain("look up link", name, error)),
        }
    }

    /// The bridge, made or found, with its addresses and up. `alias` is what people see beside its name; empty: nothing.
    ///
    /// # Errors
    /// `Precondition` where the node has ways to addresses of its subnets; one that has its addresses already is only
    /// told of.
    pub async fn bridge(&self, segment: &Segment, alias: &str) -> Result<Link> {
        let name = segment.link.as_str();
        let there = self.link(name).await?;
        let ways = self.ways().await?;
        for subnet in &segment.subnets {
            let own = |way: &Way| there.is_some_and(|link| link.index == way.link);
            let known = ways.iter().any(|way| own(way) && subnet.contains(way.to));
            if let Some(way) = meeting(*subnet, &ways).find(|way| !own(way)) {
                let error = self.met(segment, *subnet, way).await;
                match known {
                    true => tracing::warn!(error = error.chain(), "pods may not reach what they mean to"),
                    false => return Err(error),
                }
            }
        }
        let link = self.make_bridge(segment).await?;
        if segment.of(super::subnet::Family::V6).is_some() {
            refuse_advertisements(name);
        }
        for subnet in &segment.subnets {
            self.add_gateway(name, link, *subnet).await?;
        }
        let mut change = LinkUnspec::new_with_index(link.index).up();
        let mtu = match segment.mtu {
            0 => self.way_out(&ways).await?,
            mtu => mtu,
        };
        if mtu != 0 {
            change = change.mtu(mtu);
        }
        if !alias.is_empty() {
            change = change.append_extra_attribute(LinkAttribute::IfAlias(alias.to_owned()));
        }
        self.0
            .link()
            .set(change.build())
            .execute()
            .await
            .map_err(|error| explain("set up bridge", name, error))?;
        Ok(Link { mtu, ..link })
    }

    /// Usable at once: duplicates are the allocator's business, and a bridge without pods never ends looking for any.
    async fn add_gateway(&self, name: &str, link: Link, subnet: Subnet) -> Result<()> {
        let gateway = subnet.gateway();
        let mut request = self.0.address().add(link.index, gateway, subnet.prefix());
        request.message_mut().header.flags = AddressHeaderFlags::Nodad;
        match request.execute().await {
            Err(error) if errno(&error) != Some(libc::EEXIST) => {
                let object = format!("{gateway}/{} of {name}", subnet.prefix());
                Err(explain("add address", object, error))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    async fn met(&self, segment: &Segment, subnet: Subnet, way: &Way) -> Error {
        // Its name is for the message only.
        let link = self.name(way.link).await.unwrap_or_else(|| format!("link {}", way.link));
        let cause = format!("the node reaches {}/{} by {link}", way.to, way.prefix);
        let hint = match segment.name == super::segment::DEFAULT {
            true => "set network.bridge.subnet (subnet6) to a range that is free",
            false => "remove the network and create it with a range that is free",
        };
        Error::new(Kind::Precondition, "give pods addresses of", subnet.to_string())
            .because(Cause(cause))
            .hint(hint)
    }

    /// The MTU of the link that the default route goes by, the least of them; 0: there is none.
    async fn way_out(&self, ways: &[Way]) -> Result<u32> {
        let out: Vec<u32> = ways.iter().filter(|way| way.prefix == 0).map(|way| way.link).collect();
        if out.is_empty() {
            return Ok(0);
        }
        let links: HashMap<u32, u32> =
            self.links().await?.iter().map(|message| (message.header.index, read(message).mtu)).collect();
        Ok(out.iter().filter_map(|link| links.get(link).copied()).filter(|mtu| *mtu != 0).min().unwrap_or(0))
    }

    async fn name(&self, index: u32) -> Option<String> {
        let links = self.links().await.ok()?;
        links.iter().find(|message| message.header.index == index).and_then(name)
    }

    /// What the node has a way to, with the name of the link.
    pub async fn reached(&self) -> Result<Vec<(IpAddr, u8, String)>> {
        let links = self.links().await?;
        let names: HashMap<u32, String> =
            links.iter().filter_map(|message| Some((message.header.index, name(message)?))).collect();
        let told = |way: Way| {
            let link = names.get(&way.link).cloned().unwrap_or_else(|| format!("link {}", way.link));
            (way.to, way.prefix, link)
        };
        Ok(self.ways().await?.into_iter().map(told).collect())
    }

    async fn links(&self) -> Result<Vec<LinkMessage>> {
        let found = self.0.link().get().execute().try_collect().await;
        found.map_err(|error| explain("list links", "", error))
    }

    /// The node's addresses.
    pub async fn locals(&self) -> Result<Vec<IpAddr>> {
        let found: Vec<_> = self
            .0
            .address()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(|error| explain("list addresses", "", error))?;
        let address = |attribute| match attribute {
            AddressAttribute::Address(ip) | AddressAttribute::Local(ip) => Some(ip),
            _ => None,
        };
        Ok(found.into_iter().flat_map(|message| message.attributes).filter_map(address).collect())
    }

    /// The ways of the main table.
    pub async fn ways(&self) -> Result<Vec<Way>> {
        let mut ways = Vec::new();
        for message in
            [RouteMessageBuilder::<Ipv4Addr>::new().build(), RouteMessageBuilder::<Ipv6Addr>::new().build()]
        {
            let unspecified = match message.header.address_family {
                rtnetlink::packet_route::AddressFamily::Inet => IpAddr::from(Ipv4Addr::UNSPECIFIED),
                _ => Ipv6Addr::UNSPECIFIED.into(),
            };
            let found: Result<Vec<RouteMessage>, _> =
                self.0.route().get(message).execute().try_collect().await;
            match found {
                Ok(found) => ways.extend(found.iter().filter_map(|route| way(route, unspecified))),
                // A kernel without IPv6.
                Err(error) if errno(&error) == Some(libc::EOPNOTSUPP) => {}
                Err(error) => return Err(explain("list routes", "", error)),
            }
        }
        Ok(ways)
    }

    pub async fn delete(&self, link: Link, name: &str) -> Result<()> {
        match self.0.link().del(link.index).execute().await {
            Err(error) if errno(&error) != Some(libc::ENODEV) => Err(explain("delete link", name, error)),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    async fn make_bridge(&self, segment: &Segment) -> Result<Link> {
        let name = segment.link.as_str();
        // With an address of its own: else a bridge takes its ports' least, and changes it as pods come and go.
        let mut message = LinkBridge::new(name);
        if let Some(gateway) = segment.gateways().next() {
            message = message.address(mac(gateway).to_vec());
        }
        let message = message.build();
        match self.0.link().add(message).execute().await {
            Err(error) if errno(&error) != Some(libc::EEXIST) => {
                return Err(explain("make bridge", name, error));
            }
            Ok(()) | Err(_) => {}
        }
        let Some(link) = self.link(name).await? else {
            return Err(Error::new(Kind::Unavailable, "make bridge", name)
                .because(Cause("it was removed at once by somebody else".into())));
        };
        if !link.is_bridge {
            return Err(Error::new(Kind::AlreadyExists, "make bridge", name)
                .because(Cause("a link of that name exists and is no bridge".into()))
                .hint("give the network's bridge another name (network.bridge.name)"));
        }
        Ok(link)
    }
}

/// A link address that nobody else has on this node: locally administered, `be`, the end of the IP address.
pub fn mac(address: IpAddr) -> [u8; 6] {
    let [a, b, c, d] = match address {
        IpAddr::V4(ip) => ip.octets(),
        IpAddr::V6(ip) => (u128::from(ip) as u32).to_be_bytes(),
    };
    [0x02, 0xbe, a, b, c, d]
}

/// Nobody on the bridge is a router to the node: a pod that says so is not heard. One that can't be told so does not
/// heed them anyway, as it forwards.
fn refuse_advertisements(bridge: &str) {
    std::fs::write(format!("/proc/sys/net/ipv6/conf/{bridge}/accept_ra"), "0").ok();
}

/// Those that have addresses of the subnet. The default routes have all of them, which says nothing.
fn meeting(subnet: Subnet, ways: &[Way]) -> impl Iterator<Item = &Way> {
    ways.iter().filter(move |way| way.prefix != 0 && subnet.meets(way.to, way.prefix))
}

fn way(route: &RouteMessage, unspecified: IpAddr) -> Option<Way> {
    const MAIN: u32 = 254;
    let mut table = u32::from(route.header.table);
    let (mut to, mut link) = (unspecified, None);
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Table(number) => table = *number,
            RouteAttribute::Oif(index) => link = Some(*index),
            RouteAttribute::Destination(RouteAddress::Inet(ip)) => to = (*ip).into(),
            RouteAttribute::Destination(RouteAddress::Inet6(ip)) => to = (*ip).into(),
            _ => {}
        }
    }
    let wanted = table == MAIN && route.header.kind == RouteType::Unicast;
    let prefix = route.header.destination_prefix_length;
    wanted.then(|| Some(Way { to, prefix, link: link? })).flatten()
}

fn name(message: &LinkMessage) -> Option<String> {
    message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    })
}

fn read(message: &LinkMessage) -> Link {
    let mtu = message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Mtu(mtu) => Some(*mtu),
        _ => None,
    });
    Link { index: message.header.index, mtu: mtu.unwrap_or(0), is_bridge: is_bridge(message) }
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

pub fn explain(op: &'static str, object: impl Into<String>, error: rtnetlink::Error) -> Error {
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
        let mac = mac(Ipv4Addr::new(10, 88, 1, 200).into());
        assert_eq!(mac, [0x02, 0xbe, 10, 88, 1, 200]);
        assert_eq!(mac[0] & 0b11, 0b10);
    }

    #[test]
    fn a_subnet_meets_ways_of_others_but_not_the_default_one() {
        let way = |to: &str, prefix| Way { to: to.parse().unwrap(), prefix, link: 1 };
        let ways = [
            way("0.0.0.0", 0),
            way("10.0.0.0", 8),
            way("10.88.7.0", 24),
            way("192.168.0.0", 16),
            way("::", 0),
        ];
        let subnet = Subnet::parse("10.88.0.0/16").unwrap();
        assert_eq!(meeting(subnet, &ways).collect::<Vec<_>>(), [&ways[1], &ways[2]]);
        assert_eq!(meeting(Subnet::parse("fd00:9::/64").unwrap(), &ways).count(), 0);
    }
}
