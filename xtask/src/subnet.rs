//! Subnets for a private bridge that no route of this host uses: a /20 of 10.200.0.0 to 10.250.255.255, which is more than
//! a bridge has ports, and a /64 of fd0b:e47::/32.

use std::net::{Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result};

const FIRST: u8 = 200;
const LAST: u8 = 250;
const PREFIX: u32 = 20;

/// Picks one at random among the free.
pub fn free() -> Result<String> {
    let table = std::fs::read_to_string("/proc/net/route").context("read /proc/net/route")?;
    let mut seed = [0u8; 2];
    rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty()).context("get random bytes")?;
    pick(u16::from_ne_bytes(seed), &routes(&table)).context("no subnet of 10.200.0.0 to 10.250.255.0 is free")
}

/// The same of IPv6; beside a berthd with its defaults, theirs are taken.
pub fn free6() -> Result<String> {
    let table = std::fs::read_to_string("/proc/net/ipv6_route").context("read /proc/net/ipv6_route")?;
    let mut seed = [0u8; 2];
    rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty()).context("get random bytes")?;
    Ok(pick6(u16::from_ne_bytes(seed), &table))
}

/// Reads /proc/net/ipv6_route: destinations are 32 hex digits at the beginning of each line.
fn pick6(seed: u16, table: &str) -> String {
    let free = |network: &Ipv6Addr| {
        let prefix: String = network.octets()[..8].iter().map(|byte| format!("{byte:02x}")).collect();
        !table.lines().any(|line| line.starts_with(&prefix))
    };
    let nth = |step: u16| Ipv6Addr::from([0xfd0b, 0xe47, seed.wrapping_add(step), 0, 0, 0, 0, 0]);
    // A table that has all of them is told of by berthd.
    let network = (0..=u16::MAX).map(nth).find(free).unwrap_or_else(|| nth(0));
    format!("{network}/64")
}

/// A route's destination and mask, in host order.
type Route = (u32, u32);

/// Reads /proc/net/route: hex words in network order as this (little-endian or not) host's memory shows them.
fn routes(table: &str) -> Vec<Route> {
    let word =
        |text: &str| u32::from_str_radix(text, 16).ok().map(|word| u32::from_be_bytes(word.to_ne_bytes()));
    let line = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        Some((word(words.get(1)?)?, word(words.get(7)?)?))
    };
    table.lines().skip(1).filter_map(line).collect()
}

/// Goes from a random place through all, once around.
fn pick(seed: u16, routes: &[Route]) -> Option<String> {
    let count = (u32::from(LAST - FIRST) + 1) << (PREFIX - 16);
    let seed = u32::from(seed) % count;
    (0..count).find_map(|step| {
        let place = (seed + step) % count;
        let network = u32::from(Ipv4Addr::new(10, FIRST, 0, 0)) + (place << (32 - PREFIX));
        let mask = u32::MAX << (32 - PREFIX);
        // The default route, mask 0, leads everywhere and claims nothing.
        let taken = |route: &Route| {
            let common = route.1 & mask;
            common != 0 && route.0 & common == network & common
        };
        (!routes.iter().any(taken)).then(|| format!("{}/{PREFIX}", Ipv4Addr::from(network)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subnet_that_a_route_has_is_passed_over() {
        let table = "fd0b0e47008800000000000000000000 40 00000000000000000000000000000000 00 x 00000100 00000001 zct0\n";
        assert_eq!(pick6(0x88, table), "fd0b:e47:89::/64");
        assert_eq!(pick6(0x90, table), "fd0b:e47:90::/64");
    }

    fn route(text: &str) -> Route {
        let (network, bits) = text.split_once('/').unwrap();
        let bits: u32 = bits.parse().unwrap();
        let mask = if bits == 0 { 0 } else { u32::MAX << (32 - bits) };
        (u32::from(network.parse::<Ipv4Addr>().unwrap()), mask)
    }

    #[test]
    fn the_next_subnet_without_a_route_is_taken() {
        assert_eq!(pick(0, &[]).unwrap(), "10.200.0.0/20");
        assert_eq!(pick(0, &[route("0.0.0.0/0"), route("10.200.0.0/24")]).unwrap(), "10.200.16.0/20");
        assert_eq!(pick(0, &[route("10.200.0.0/15"), route("10.202.0.64/26")]).unwrap(), "10.202.16.0/20");
        assert_eq!(pick(u16::MAX, &[]).unwrap().split('.').next(), Some("10"));
        assert_eq!(pick(7, &[route("10.0.0.0/8")]), None);
    }

    #[test]
    fn the_kernels_table_is_read() {
        let word =
            |text: &str| format!("{:08X}", u32::from_ne_bytes(text.parse::<Ipv4Addr>().unwrap().octets()));
        let table = format!(
            "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\n\
             br0\t{}\t00000000\t0001\t0\t0\t0\t{}\t0\t0\t0\n",
            word("10.200.7.0"),
            word("255.255.255.0")
        );
        assert_eq!(routes(&table), [route("10.200.7.0/24")]);
    }
}
