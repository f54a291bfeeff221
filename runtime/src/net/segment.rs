//! One network of the built-in kind: a bridge, its subnets, what may leave it. Checked before any of it becomes a
//! command, a path or a message. Pure.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::subnet::{Family, Subnet};
use crate::{Error, Result, config};

/// The interface's name in every pod.
pub const POD_LINK: &str = "eth0";
/// The network that pods have who ask for none, from network.bridge.
pub const DEFAULT: &str = "bridge";
/// What the bridges of all other networks begin with; 12 digits of the network's id follow.
pub const NAMED_LINKS: &str = "btn";
/// Words that mean something else where a network is named, here or with docker and podman.
const RESERVED: [&str; 6] = [DEFAULT, "host", "none", "default", "container", "ns"];

/// A network as it is set up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    pub name: String,
    /// The bridge's interface.
    pub link: String,
    /// One of a family at most, IPv4 first.
    pub subnets: Vec<Subnet>,
    /// 0: that of the node's way out.
    pub mtu: u32,
    pub reach: Reach,
}

/// Whom the pods of a network can talk to beside each other and the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reach {
    Everybody,
    /// Nobody.
    Internal,
}

impl Segment {
    /// The network of network.bridge.
    ///
    /// # Errors
    /// `Invalid` names the key.
    pub fn configured(bridge: &config::Bridge) -> Result<Self> {
        let config::Bridge { name, subnet, subnet6, mtu, table } = bridge;
        let invalid = |key: &str, shown: String, cause: &str| {
            let object = format!("network.bridge.{key} = {shown}");
            Error::invalid("read configuration", object, cause.to_owned())
        };
        if !link_name(name) {
            let cause = "an interface's name is 1 to 15 letters, digits, dots, dashes and underscores";
            return Err(invalid("name", format!("{name:?}"), cause));
        }
        if name.starts_with("bth") || name.starts_with(NAMED_LINKS) {
            let cause = "bth is what the links of pods start with, btn the bridges of other networks";
            return Err(invalid("name", format!("{name:?}"), cause));
        }
        if !table_name(table) {
            let cause = "a table's name is a letter and up to 31 letters, digits and underscores";
            return Err(invalid("table", format!("{table:?}"), cause));
        }
        if !good_mtu(*mtu) {
            return Err(invalid(
                "mtu",
                mtu.to_string(),
                "not one of 68 to 65535, or 0 for that of the way out",
            ));
        }
        let read = |key: &str, text: &str, family: Family| match Subnet::parse(text) {
            Ok(subnet) if subnet.family() == family => Ok(subnet),
            Ok(_) => Err(invalid(key, format!("{text:?}"), "it is of the other family")),
            Err(cause) => Err(invalid(key, format!("{text:?}"), &cause)),
        };
        let mut subnets = vec![read("subnet", subnet, Family::V4)?];
        if !subnet6.is_empty() {
            subnets.push(read("subnet6", subnet6, Family::V6)?);
        }
        Ok(Self { name: DEFAULT.into(), link: name.clone(), subnets, mtu: *mtu, reach: Reach::Everybody })
    }

    pub fn of(&self, family: Family) -> Option<Subnet> {
        self.subnets.iter().copied().find(|subnet| subnet.family() == family)
    }

    pub fn gateways(&self) -> impl Iterator<Item = IpAddr> {
        self.subnets.iter().map(|subnet| subnet.gateway())
    }
}

/// Whether somebody's network may have this name.
///
/// # Errors
/// Why not.
pub fn check_name(name: &str) -> Result<(), String> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    let begins = name.starts_with(|first: char| first.is_ascii_alphanumeric());
    if !begins || name.len() > 63 || !name.bytes().all(allowed) {
        return Err("a network's name is up to 63 letters, digits, `_`, `.` and `-`, and begins with one of the first two".into());
    }
    if RESERVED.contains(&name) {
        return Err("that name has a meaning of its own".into());
    }
    Ok(())
}

/// Whether somebody in a network may be called so beside their name.
///
/// # Errors
/// Why not.
pub fn check_alias(alias: &str) -> Result<(), String> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    let label = |label: &str| (1..=63).contains(&label.len()) && label.bytes().all(allowed);
    match alias.len() <= 253 && alias.split('.').all(label) {
        true => Ok(()),
        false => {
            Err("it is words of up to 63 letters, digits, `_` and `-` with dots between them, 253 in all"
                .into())
        }
    }
}

pub fn good_mtu(mtu: u32) -> bool {
    mtu == 0 || (68..=65_535).contains(&mtu)
}

fn link_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    (1..=15).contains(&name.len()) && name.bytes().all(allowed) && !name.starts_with(['.', '-'])
}

fn table_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    (1..=32).contains(&name.len())
        && name.bytes().all(allowed)
        && name.starts_with(|first: char| first.is_ascii_alphabetic())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_has_a_plain_name_of_its_own() {
        for good in ["a", "blue", "my-net_1.x", &"a".repeat(63)] {
            assert_eq!(check_name(good), Ok(()), "{good}");
        }
        for bad in ["", "-a", ".", "a b", "a/b", "a\n", "ä", "bridge", "host", "none", &"a".repeat(64)] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_alias_is_a_name_that_dns_has_room_for() {
        for good in ["a", "db_1", "db.example.com", &"a".repeat(63)] {
            assert_eq!(check_alias(good), Ok(()), "{good}");
        }
        for bad in ["", ".", "a.", ".a", "a..b", "a b", "a\n", "ä", &"a".repeat(64), &["a"; 128].join(".")] {
            assert!(check_alias(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn hostile_settings_are_refused_with_their_key() {
        let check = Segment::configured;
        let good = config::Bridge::default();
        assert_eq!(check(&good).unwrap().subnets.len(), 2);
        assert_eq!(
            check(&config::Bridge { subnet6: String::new(), ..good.clone() }).unwrap().subnets.len(),
            1
        );
        assert!(check(&config::Bridge { mtu: 1400, ..good.clone() }).is_ok());
        let refused = |key: &str, bridge: config::Bridge| {
            let error = check(&bridge).unwrap_err();
            let told = error.kind == crate::Kind::Invalid && error.chain().contains(key);
            assert!(told, "{key}: {}", error.chain());
        };
        for name in
            ["", ".", "..", "-x", "a/b", "a b", "sixteen-letters-", "x\"; flush", "x\n", "bth0", "btn0", "é"]
        {
            refused("network.bridge.name", config::Bridge { name: name.into(), ..good.clone() });
        }
        for table in ["", "1x", "a b", "x;flush ruleset", "x\n", "{}", &"x".repeat(33)] {
            refused("network.bridge.table", config::Bridge { table: table.into(), ..good.clone() });
        }
        for mtu in [1, 67, 65_536, u32::MAX] {
            refused("network.bridge.mtu", config::Bridge { mtu, ..good.clone() });
        }
        for subnet in ["", "x", "10.0.0.0/33", "fd00::/64"] {
            refused("network.bridge.subnet", config::Bridge { subnet: subnet.into(), ..good.clone() });
        }
        for subnet6 in ["x", "fe80::/64", "10.0.0.0/8"] {
            refused("network.bridge.subnet6", config::Bridge { subnet6: subnet6.into(), ..good.clone() });
        }
    }
}
