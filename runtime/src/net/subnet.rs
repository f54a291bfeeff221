//! The pods' subnet: its text checked, its addresses named. Pure.

use std::{fmt, net::Ipv4Addr};

use crate::{Error, Result};

/// An IPv4 network of 2 to 2^24 addresses. The first usable one is the gateway's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subnet {
    network: u32,
    prefix: u8,
}

impl Subnet {
    /// Takes CIDR text.
    ///
    /// # Errors
    /// `Invalid` names the key and what is wrong with its value.
    pub fn parse(text: &str) -> Result<Self> {
        let invalid =
            |cause: String| Err(Error::invalid("read network.bridge.subnet", format!("{text:?}"), cause));
        let Some((address, prefix)) = text.split_once('/') else {
            return invalid("a subnet is an address, a slash and a prefix, as 10.88.0.0/16".into());
        };
        let Ok(address) = address.parse::<Ipv4Addr>() else {
            return invalid(format!("{address:?} is no IPv4 address"));
        };
        let plain =
            !prefix.is_empty() && prefix.len() <= 2 && prefix.bytes().all(|byte| byte.is_ascii_digit());
        let Some(prefix) = prefix.parse::<u8>().ok().filter(|prefix| plain && (8..=30).contains(prefix))
        else {
            return invalid(format!("the prefix is {prefix:?}, not one of 8 to 30"));
        };
        let network = u32::from(address) & (u32::MAX << (32 - prefix));
        let subnet = Self { network, prefix };
        if network != u32::from(address) {
            return invalid(format!("address bits are set after the prefix: write {subnet}"));
        }
        if address.is_loopback() || address.is_multicast() || matches!(address.octets()[0], 0 | 240..) {
            return invalid(
                "pods can't have addresses of that range; 10.0.0.0/8 and the like are for them".into(),
            );
        }
        Ok(subnet)
    }

    pub fn prefix(self) -> u8 {
        self.prefix
    }

    pub fn gateway(self) -> Ipv4Addr {
        Ipv4Addr::from(self.network + 1)
    }

    /// Whether a pod may have this address: neither network, gateway nor broadcast.
    pub fn has(self, address: Ipv4Addr) -> bool {
        (self.first()..=self.last()).contains(&u32::from(address))
    }

    /// How many pods fit.
    pub fn capacity(self) -> usize {
        (self.last() - self.first()) as usize + 1
    }

    /// The pods' address after this one, round and round; of one outside, the first.
    pub fn after(self, address: Ipv4Addr) -> Ipv4Addr {
        let next = u32::from(address).saturating_add(1);
        Ipv4Addr::from(if (self.first()..=self.last()).contains(&next) { next } else { self.first() })
    }

    fn first(self) -> u32 {
        self.network + 2
    }

    fn last(self) -> u32 {
        (self.network | (u32::MAX >> self.prefix)) - 1
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", Ipv4Addr::from(self.network), self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_subnets_have_a_gateway_and_room_for_pods() {
        for (text, gateway, first, capacity) in [
            ("10.88.0.0/16", [10, 88, 0, 1], [10, 88, 0, 2], 65_533),
            ("192.168.7.4/30", [192, 168, 7, 5], [192, 168, 7, 6], 1),
            ("10.0.0.0/8", [10, 0, 0, 1], [10, 0, 0, 2], 16_777_213),
        ] {
            let subnet = Subnet::parse(text).unwrap();
            assert_eq!(subnet.to_string(), text);
            assert_eq!(subnet.gateway(), Ipv4Addr::from(gateway));
            assert_eq!(subnet.after(subnet.gateway()), Ipv4Addr::from(first));
            assert_eq!(subnet.capacity(), capacity);
        }
    }

    #[test]
    fn bad_subnets_are_refused_with_the_key() {
        let bad = [
            "",
            "/",
            "10.88.0.0",
            "10.88.0.0/",
            "10.88.0.0/7",
            "10.88.0.0/31",
            "10.88.0.0/+9",
            "10.88.0.0/016",
            "10.88.0.0/-1",
            "10.88.0.0/256",
            "10.88.0.1/16",
            "10.88.0.0/16/16",
            "127.0.0.0/8",
            "224.0.0.0/8",
            "0.0.0.0/8",
            "255.0.0.0/8",
            "fd00::/64",
            "10.88.0.0/16 ; reboot",
            "x/16",
            " 10.88.0.0/16",
        ];
        for text in bad {
            let error = Subnet::parse(text).unwrap_err();
            assert_eq!(error.kind, crate::Kind::Invalid);
            assert!(error.chain().contains("network.bridge.subnet"), "{text}: {}", error.chain());
        }
        assert!(Subnet::parse("10.88.0.1/16").unwrap_err().chain().contains("write 10.88.0.0/16"));
    }
}
