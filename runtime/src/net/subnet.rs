//! A subnet of pods: its text checked, its addresses named. Both families are counted the same way. Pure.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// An IPv4 network of 2 to 2^24 addresses, or an IPv6 network of 2 to 2^80. The gateway has the first usable one, or
/// another that was chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subnet {
    family: Family,
    /// The bits of an IPv4 address are the lowest 32.
    network: u128,
    prefix: u8,
    gateway: u128,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    fn bits(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }

    fn address(self, number: u128) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::from(number as u32).into(),
            Self::V6 => Ipv6Addr::from(number).into(),
        }
    }

    /// Of the bits behind a prefix.
    fn rest(self, prefix: u8) -> u128 {
        let bits = self.bits() - prefix;
        if bits == 128 { u128::MAX } else { (1 << bits) - 1 }
    }
}

impl Subnet {
    /// Takes CIDR text.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let Some((address, prefix)) = text.split_once('/') else {
            return Err("a subnet is an address, a slash and a prefix, as 10.88.0.0/16".into());
        };
        let address: IpAddr = address.parse().map_err(|_| format!("{address:?} is no IP address"))?;
        let family = Family::of(address);
        let (least, most) = match family {
            Family::V4 => (8, 30),
            Family::V6 => (48, 126),
        };
        let plain =
            !prefix.is_empty() && prefix.len() <= 3 && prefix.bytes().all(|byte| byte.is_ascii_digit());
        let shown = prefix.parse::<u8>().ok().filter(|number| plain && number.to_string() == prefix);
        let Some(prefix) = shown.filter(|number| (least..=most).contains(number)) else {
            return Err(format!("the prefix is {prefix:?}, not one of {least} to {most}"));
        };
        let network = number(address) & !family.rest(prefix);
        let subnet = Self { family, network, prefix, gateway: network + 1 };
        if network != number(address) {
            return Err(format!("address bits are set after the prefix: write {subnet}"));
        }
        let good = match address {
            IpAddr::V4(ip) => !(ip.is_loopback() || ip.is_multicast() || matches!(ip.octets()[0], 0 | 240..)),
            IpAddr::V6(ip) => {
                let link_local = ip.segments()[0] & 0xffc0 == 0xfe80;
                !(ip.is_multicast() || link_local || ip.segments()[..3] == [0; 3])
            }
        };
        match good {
            true => Ok(subnet),
            false => {
                Err("pods can't have addresses of that range; 10.0.0.0/8, fd00::/8 and the like are for them"
                    .into())
            }
        }
    }

    pub fn family(self) -> Family {
        self.family
    }

    pub fn prefix(self) -> u8 {
        self.prefix
    }

    /// The address that the range is named by.
    pub fn first(self) -> IpAddr {
        self.family.address(self.network)
    }

    pub fn gateway(self) -> IpAddr {
        self.family.address(self.gateway)
    }

    /// The same range with another gateway.
    ///
    /// # Errors
    /// What is wrong with the address.
    pub fn with_gateway(self, gateway: IpAddr) -> Result<Self, String> {
        let inside =
            Family::of(gateway) == self.family && (self.network + 1..=self.last()).contains(&number(gateway));
        match inside {
            true => Ok(Self { gateway: number(gateway), ..self }),
            false => Err(format!("{gateway} is no address that a gateway of {self} can have")),
        }
    }

    /// The ranges of a shorter prefix that this one is made of, in order; none where it is shorter itself.
    pub fn parts(self, prefix: u8) -> impl Iterator<Item = Self> {
        let step = self.family.rest(prefix) + 1;
        let count = if prefix < self.prefix { 0 } else { 1_u128 << (prefix - self.prefix) };
        (0..count).map(move |part| {
            let network = self.network + part * step;
            Self { network, prefix, gateway: network + 1, ..self }
        })
    }

    /// Whether a pod may have this address: neither network, gateway nor broadcast.
    pub fn has(self, address: IpAddr) -> bool {
        let inside =
            Family::of(address) == self.family && (self.network + 1..=self.last()).contains(&number(address));
        inside && number(address) != self.gateway
    }

    /// Whether an address lies in the range, whoever has it.
    pub fn contains(self, address: IpAddr) -> bool {
        self.meets(address, self.family.bits())
    }

    /// Whether the range and another one, as a route has it, have an address in common.
    pub fn meets(self, address: IpAddr, prefix: u8) -> bool {
        let shorter = self.prefix.min(prefix);
        let known = Family::of(address) == self.family && prefix <= self.family.bits();
        known && (self.network ^ number(address)) & !self.family.rest(shorter) & self.family.rest(0) == 0
    }

    /// How many pods fit.
    pub fn capacity(self) -> u128 {
        self.last() - self.network - 1
    }

    /// The pods' address after this one, round and round; of one outside, the first.
    pub fn after(self, address: IpAddr) -> IpAddr {
        let over_gateway = |next: u128| if next == self.gateway { next + 1 } else { next };
        let next = over_gateway(number(address).saturating_add(1));
        let inside = Family::of(address) == self.family && (self.network + 1..=self.last()).contains(&next);
        self.family.address(if inside { next } else { over_gateway(self.network + 1) })
    }

    fn last(self) -> u128 {
        (self.network | self.family.rest(self.prefix)) - 1
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.family.address(self.network), self.prefix)
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(ip) => u32::from(ip).into(),
        IpAddr::V6(ip) => ip.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn good_subnets_have_a_gateway_and_room_for_pods() {
        for (text, gateway, first, capacity) in [
            ("10.88.0.0/16", "10.88.0.1", "10.88.0.2", 65_533),
            ("192.168.7.4/30", "192.168.7.5", "192.168.7.6", 1),
            ("10.0.0.0/8", "10.0.0.1", "10.0.0.2", 16_777_213),
            ("fd00:1::/64", "fd00:1::1", "fd00:1::2", (1 << 64) - 3),
            ("fd00:1::10/126", "fd00:1::11", "fd00:1::12", 1),
        ] {
            let subnet = Subnet::parse(text).unwrap();
            assert_eq!(subnet.to_string(), text);
            assert_eq!(subnet.gateway(), ip(gateway));
            assert_eq!(subnet.after(subnet.gateway()), ip(first));
            assert_eq!(subnet.capacity(), capacity);
            assert!(subnet.has(ip(first)) && !subnet.has(ip(gateway)) && subnet.contains(ip(gateway)));
        }
    }

    #[test]
    fn bad_subnets_are_refused() {
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
            "fd00::/127",
            "fd00::/47",
            "fe80::/64",
            "ff02::/64",
            "::/64",
            "10.88.0.0/16 ; reboot",
            "x/16",
            " 10.88.0.0/16",
        ];
        for text in bad {
            assert!(Subnet::parse(text).is_err(), "{text}");
        }
        assert!(Subnet::parse("10.88.0.1/16").unwrap_err().contains("write 10.88.0.0/16"));
    }

    #[test]
    fn a_gateway_may_be_anywhere_and_is_no_pods_address() {
        for (text, gateway) in
            [("10.9.0.0/29", "10.9.0.6"), ("10.9.0.0/29", "10.9.0.3"), ("fd09::/125", "fd09::4")]
        {
            let subnet = Subnet::parse(text).unwrap().with_gateway(ip(gateway)).unwrap();
            assert_eq!(
                (subnet.gateway(), subnet.capacity(), subnet.to_string()),
                (ip(gateway), 5, text.into())
            );
            let mut seen = vec![subnet.after(subnet.gateway())];
            while seen.len() < 5 {
                seen.push(subnet.after(seen[seen.len() - 1]));
            }
            assert!(seen.iter().all(|address| subnet.has(*address)), "{seen:?}");
            assert_eq!(subnet.after(seen[4]), seen[0]);
            seen.sort();
            seen.dedup();
            assert_eq!(seen.len(), 5);
        }
        let subnet = Subnet::parse("10.9.0.0/29").unwrap();
        for wrong in ["10.9.0.0", "10.9.0.7", "10.9.0.8", "fd09::1"] {
            assert!(subnet.with_gateway(ip(wrong)).unwrap_err().contains(wrong), "{wrong}");
        }
    }

    #[test]
    fn a_range_is_made_of_its_parts() {
        let parts = |text: &str, prefix| {
            Subnet::parse(text).unwrap().parts(prefix).map(|part| part.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(
            parts("10.89.0.0/22", 24),
            ["10.89.0.0/24", "10.89.1.0/24", "10.89.2.0/24", "10.89.3.0/24"]
        );
        assert_eq!(parts("fd00:1::/63", 64), ["fd00:1::/64", "fd00:1:0:1::/64"]);
        assert_eq!(parts("10.89.0.0/24", 24), ["10.89.0.0/24"]);
        assert!(parts("10.89.0.0/25", 24).is_empty());
    }

    #[test]
    fn ranges_meet_where_one_is_in_the_other() {
        let rows = [
            ("10.88.0.0/16", "10.88.3.0", 24, true),
            ("10.88.0.0/16", "10.0.0.0", 8, true),
            ("10.88.0.0/16", "10.89.0.0", 16, false),
            ("10.88.0.0/16", "0.0.0.0", 0, true),
            ("10.88.0.0/16", "fd00::", 8, false),
            ("fd00:1::/64", "fd00:1::", 48, true),
            ("fd00:1::/64", "fd00:1:0:1::", 64, false),
            ("fd00:1::/64", "::", 0, true),
        ];
        for (subnet, other, prefix, expected) in rows {
            let subnet = Subnet::parse(subnet).unwrap();
            assert_eq!(subnet.meets(ip(other), prefix), expected, "{subnet} {other}/{prefix}");
        }
    }
}
