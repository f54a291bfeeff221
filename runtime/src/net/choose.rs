//! Which subnets a network gets: those that were asked for, or the first of the pools that nobody on this node has.
//! Pure.

use std::{fmt, net::IpAddr};

use super::subnet::{Family, Subnet};
use crate::{Error, Kind, Result, error::Cause};

/// Addresses that somebody has, and who.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    pub to: IpAddr,
    pub prefix: u8,
    pub whose: Whose,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Whose {
    /// A network of ours.
    Network(String),
    /// The node has a way to them, by a link of this name or number.
    Node(String),
}

impl fmt::Display for Whose {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Network(name) => write!(formatter, "the network {name} has"),
            Self::Node(link) => write!(formatter, "the node reaches, by {link},"),
        }
    }
}

/// What a network has for each family where nobody says how much.
fn share(family: Family) -> u8 {
    match family {
        Family::V4 => 24,
        Family::V6 => 64,
    }
}

/// Reads the subnets that were asked for, each with the gateway that is its own, IPv4 first.
///
/// # Errors
/// `Invalid` names the one that can't be.
pub fn asked(subnets: &[String], gateways: &[String]) -> Result<Vec<Subnet>> {
    const OP: &str = "create network";
    let mut read: Vec<Subnet> = Vec::new();
    for text in subnets {
        let object = || format!("subnet {text:?}");
        let subnet = Subnet::parse(text).map_err(|cause| Error::invalid(OP, object(), cause))?;
        if read.iter().any(|other| other.family() == subnet.family()) {
            return Err(Error::invalid(OP, object(), "a network has one subnet of each family")
                .hint("create another network, or ask for one that is wide enough"));
        }
        read.push(subnet);
    }
    let mut with_gateway = Vec::new();
    for text in gateways {
        let object = || format!("gateway {text:?}");
        let gateway: IpAddr =
            text.parse().map_err(|_| Error::invalid(OP, object(), "it is no IP address"))?;
        let Some(subnet) = read.iter_mut().find(|subnet| subnet.contains(gateway)) else {
            return Err(Error::invalid(OP, object(), "it is in no subnet that is asked for")
                .hint("give the subnet too, with --subnet"));
        };
        if with_gateway.contains(&subnet.family()) {
            return Err(Error::invalid(OP, object(), format!("{subnet} has a gateway already")));
        }
        with_gateway.push(subnet.family());
        *subnet = subnet.with_gateway(gateway).map_err(|cause| Error::invalid(OP, object(), cause))?;
    }
    read.sort_by_key(|subnet| subnet.family());
    Ok(read)
}

/// Refuses a subnet that somebody has addresses of.
///
/// # Errors
/// `Precondition` says whose.
pub fn unmet(subnets: &[Subnet], taken: &[Taken]) -> Result<()> {
    for subnet in subnets {
        if let Some(Taken { to, prefix, whose }) = meeting(*subnet, taken) {
            return Err(Error::new(Kind::Precondition, "create network", format!("subnet {subnet}"))
                .because(Cause(format!("{whose} {to}/{prefix}")))
                .hint("ask for a range that is free, or for none: then one is found"));
        }
    }
    Ok(())
}

/// One of each pool that nobody has addresses of.
///
/// # Errors
/// `Exhausted` names the pool that has none.
pub fn free(pools: &[Subnet], taken: &[Taken]) -> Result<Vec<Subnet>> {
    let of_pool = |pool: &Subnet| {
        let mut parts = pool.parts(pool.prefix().max(share(pool.family())));
        parts.find(|part| meeting(*part, taken).is_none()).ok_or_else(|| {
            Error::new(Kind::Exhausted, "create network", format!("pool {pool}"))
                .because(Cause("every subnet of it is in use".into()))
                .hint("remove networks, ask for a --subnet, or set network.pool (pool6) to a wider range")
        })
    };
    pools.iter().map(of_pool).collect()
}

/// The node's default ways have all addresses, which says nothing.
fn meeting(subnet: Subnet, taken: &[Taken]) -> Option<&Taken> {
    taken.iter().find(|other| other.prefix != 0 && subnet.meets(other.to, other.prefix))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(subnets: &[&str], gateways: &[&str]) -> Result<Vec<Subnet>> {
        let owned = |texts: &[&str]| texts.iter().map(ToString::to_string).collect::<Vec<_>>();
        asked(&owned(subnets), &owned(gateways))
    }

    fn taken(range: &str, whose: Whose) -> Taken {
        let (to, prefix) = range.split_once('/').unwrap();
        Taken { to: to.parse().unwrap(), prefix: prefix.parse().unwrap(), whose }
    }

    #[test]
    fn what_is_asked_for_is_one_of_a_family_with_its_gateway() {
        let both = read(&["fd09::/64", "10.9.0.0/24"], &["10.9.0.254"]).unwrap();
        let told: Vec<_> = both.iter().map(|subnet| format!("{subnet} {}", subnet.gateway())).collect();
        assert_eq!(told, ["10.9.0.0/24 10.9.0.254", "fd09::/64 fd09::1"]);
        assert!(read(&[], &[]).unwrap().is_empty());
        let rows: [(&[&str], &[&str], &str); 6] = [
            (&["10.9.0.0/33"], &[], "\"10.9.0.0/33\""),
            (&["10.9.0.0/24", "10.8.0.0/24"], &[], "one subnet of each family"),
            (&[], &["10.9.0.1"], "--subnet"),
            (&["10.9.0.0/24"], &["10.8.0.1"], "in no subnet"),
            (&["10.9.0.0/24"], &["x"], "no IP address"),
            (&["10.9.0.0/24"], &["10.9.0.1", "10.9.0.2"], "has a gateway already"),
        ];
        for (subnets, gateways, expected) in rows {
            let error = read(subnets, gateways).unwrap_err();
            assert!(error.kind == Kind::Invalid && error.chain().contains(expected), "{}", error.chain());
        }
    }

    #[test]
    fn a_range_that_somebody_has_is_told_with_whose_it_is() {
        let subnets = read(&["10.9.0.0/24"], &[]).unwrap();
        let all =
            [taken("0.0.0.0/0", Whose::Node("eth0".into())), taken("fd00::/8", Whose::Node("eth0".into()))];
        assert!(unmet(&subnets, &all).is_ok());
        for (range, whose, expected) in [
            ("10.9.0.128/25", Whose::Network("blue".into()), "the network blue has 10.9.0.128/25"),
            ("10.0.0.0/8", Whose::Node("eth1".into()), "the node reaches, by eth1, 10.0.0.0/8"),
        ] {
            let told = unmet(&subnets, &[taken(range, whose)]).unwrap_err().chain();
            assert!(told.contains(expected) && told.contains("10.9.0.0/24"), "{told}");
        }
    }

    #[test]
    fn a_pool_with_nothing_free_is_named_with_its_key() {
        let pool = Subnet::parse("10.9.0.0/23").unwrap();
        let node = |range: &str| taken(range, Whose::Node("eth0".into()));
        assert_eq!(free(&[pool], &[node("10.9.0.7/32")]).unwrap()[0].to_string(), "10.9.1.0/24");
        let told = free(&[pool], &[node("10.9.0.0/16")]).unwrap_err().chain();
        assert!(told.contains("pool 10.9.0.0/23") && told.contains("network.pool"), "{told}");
        // One that is narrower than a share is given whole.
        let narrow = Subnet::parse("10.9.0.0/26").unwrap();
        assert_eq!(free(&[narrow], &[]).unwrap(), [narrow]);
    }

    proptest! {
        #[test]
        fn what_is_free_meets_nobody_and_is_of_the_pool(
            others in prop::collection::vec((any::<u16>(), 9u8..=32), 0..40),
        ) {
            let pool = Subnet::parse("10.9.0.0/18").unwrap();
            let of_draw = |(low, prefix): &(u16, u8)| {
                taken(&format!("10.9.{}.{}/{prefix}", low >> 8 & 63, low & 255), Whose::Node("x".into()))
            };
            let others: Vec<_> = others.iter().map(of_draw).collect();
            let free = free(&[pool], &others);
            let expected = pool.parts(24).find(|part| unmet(&[*part], &others).is_ok());
            prop_assert_eq!(free.ok().map(|free| free[0]), expected);
            if let Some(found) = expected {
                prop_assert!(pool.contains(found.gateway()) && found.prefix() == 24);
            }
        }
    }
}
