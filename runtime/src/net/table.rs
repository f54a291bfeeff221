//! The ways out of the node and in: forwarding on, and an nftables table for each family, replaced as a whole.
//!
//! ```text
//! out       pod ── postrouting: the source of what leaves the subnet becomes the node's
//! in        node's port ── prerouting (from elsewhere) or output (from the node) ── ports: to the pod's address
//!           with postrouting: what comes from 127.0.0.1, or from the subnet itself, has to come back this way
//! between   forward: into a network that somebody made only answers, and what comes by a port of the node; out of an
//!           internal one nothing
//! ```

use std::{process::Stdio, time::Duration};

use tokio::{io::AsyncWriteExt, process::Command, time::timeout};
use tracing::{info, warn};

use super::{
    lease::Seat,
    port::HostPort,
    segment::{self, Reach, Segment},
    subnet::Family,
};
use crate::{Error, Kind, Result, error::Cause};

const PROGRAM: &str = "nft";
const FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";
const SIX: &str = "/proc/sys/net/ipv6/conf";
/// nft takes some milliseconds; longer than this it waits for something that does not come.
const LONGEST: Duration = Duration::from_secs(10);

/// Whether the node's kernel has IPv6 and is to use it.
pub fn has_ipv6() -> bool {
    ["all", "default"]
        .iter()
        .all(|which| read(&format!("{SIX}/{which}/disable_ipv6")).is_some_and(|text| text == "0"))
}

/// Turns forwarding on and puts the tables in place, in one transaction: traffic sees the old rules or the new ones.
pub async fn install(table: &str, segments: &[Segment], ports: &[(Seat, HostPort)]) -> Result<()> {
    forward()?;
    let six = has_ipv6();
    if six && segments.iter().any(|segment| segment.of(Family::V6).is_some()) {
        forward_ipv6()?;
    }
    if !ports.is_empty() {
        segments.iter().for_each(|segment| admit_loopback(&segment.link));
    }
    transact(PROGRAM, &rules(table, segments, ports, six), table).await
}

/// Lets what the node sends from 127.0.0.1 out to the bridge (ip-sysctl: route_localnet). The table keeps pods from
/// using that the other way.
fn admit_loopback(bridge: &str) {
    let switch = format!("/proc/sys/net/ipv4/conf/{bridge}/route_localnet");
    match read(&switch).as_deref() {
        // One that is not set up yet has no pods.
        Some("1") | None => {}
        Some(_) => {
            if let Err(error) = std::fs::write(&switch, "1") {
                warn!(%switch, %error, "ports of the node that lead into pods are not reachable at 127.0.0.1");
            }
        }
    }
}

/// Removes the tables; absent: success. Forwarding stays: others may rely on it by now.
pub async fn remove(table: &str) -> Result<()> {
    let families = if has_ipv6() { &["ip", "ip6"][..] } else { &["ip"] };
    let script: String = families.iter().map(|family| gone(family, table)).collect();
    transact(PROGRAM, &script, table).await
}

fn gone(family: &str, table: &str) -> String {
    format!("add table {family} {table}\ndelete table {family} {table}\n")
}

/// A line of procfs: not worth a hop to another thread.
fn read(path: &str) -> Option<String> {
    std::fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

fn switch_on(path: &str, key: &str) -> Result<()> {
    // Read first: on some hosts /proc/sys is read-only and right.
    if read(path).as_deref() == Some("1") {
        return Ok(());
    }
    std::fs::write(path, "1").map_err(|error| {
        Error::io("turn on forwarding in", path, error).hint(format!("run sysctl -w {key}=1 as root"))
    })
}

fn forward() -> Result<()> {
    switch_on(FORWARD, "net.ipv4.ip_forward")
}

/// A node that forwards takes no more router advertisements, and loses the way out that it has by them: links that took
/// some are told to go on (ip-sysctl: accept_ra 2).
fn forward_ipv6() -> Result<()> {
    let all = format!("{SIX}/all/forwarding");
    if read(&all).as_deref() != Some("1") {
        for link in std::fs::read_dir(SIX).into_iter().flatten().flatten() {
            let takes = link.path().join("accept_ra");
            if std::fs::read_to_string(&takes).is_ok_and(|text| text.trim() == "1")
                && std::fs::write(&takes, "2").is_ok()
            {
                info!(link = %link.file_name().display(), "accept_ra is 2: it would lose its router by forwarding");
            }
        }
    }
    switch_on(&all, "net.ipv6.conf.all.forwarding")
}

/// The names were checked when the networks were taken: they are words.
pub fn rules(table: &str, segments: &[Segment], ports: &[(Seat, HostPort)], six: bool) -> String {
    let mut text = of_family(Family::V4, table, segments, ports);
    let has_six = segments.iter().any(|segment| segment.of(Family::V6).is_some());
    match (six, has_six) {
        (true, true) => text += &of_family(Family::V6, table, segments, ports),
        // Of an earlier configuration.
        (true, false) => text += &gone("ip6", table),
        (false, _) => {}
    }
    text
}

fn of_family(family: Family, table: &str, segments: &[Segment], ports: &[(Seat, HostPort)]) -> String {
    let word = match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    };
    // `add` makes what is missing and `flush` empties the chains, so this may run again over itself.
    let mut text = format!(
        "add table {word} {table}\nflush table {word} {table}\n\
         add chain {word} {table} postrouting {{ type nat hook postrouting priority srcnat; policy accept; }}\n\
         add chain {word} {table} forward {{ type filter hook forward priority filter; policy accept; }}\n"
    );
    let mut rule = |chain: &str, rule: String| text += &format!("add rule {word} {table} {chain} {rule}\n");
    for segment in segments.iter().filter(|segment| segment.reach == Reach::Everybody) {
        if let Some(subnet) = segment.of(family) {
            rule("postrouting", format!("{word} saddr {subnet} oifname != \"{}\" masquerade", segment.link));
        }
    }
    between(segments).into_iter().for_each(|one| rule("forward", one));
    // Chains of earlier ports stay with nothing in them: a jump into an empty chain is no jump.
    if !ports.is_empty() {
        text += &inward(family, word, table, segments, ports);
    }
    text
}

/// What may pass from one link to another: into a network that somebody made nothing but answers and what came by a port
/// of the node, as with docker; into the default one, whose pods are the cluster's, all but what comes from the others.
fn between(segments: &[Segment]) -> Vec<String> {
    let mut rules = Vec::new();
    for Segment { link, .. } in segments.iter().filter(|segment| segment.reach == Reach::Internal) {
        rules.push(format!("iifname \"{link}\" oifname != \"{link}\" drop"));
        rules.push(format!("iifname != \"{link}\" oifname \"{link}\" drop"));
    }
    let (default, named): (Vec<&Segment>, Vec<&Segment>) =
        segments.iter().partition(|segment| segment.name == segment::DEFAULT);
    if !named.is_empty() {
        rules.push("ct state established,related accept".into());
        rules.push("ct status dnat accept".into());
    }
    for Segment { link, .. } in &named {
        rules.push(format!("iifname != \"{link}\" oifname \"{link}\" drop"));
        for Segment { link: other, .. } in &default {
            rules.push(format!("iifname \"{link}\" oifname \"{other}\" drop"));
        }
    }
    for Segment { link, .. } in segments {
        rules.push(format!("iifname \"{link}\" accept"));
        rules.push(format!("oifname \"{link}\" accept"));
    }
    rules
}

/// The ways of ports of the node.
fn inward(
    family: Family,
    word: &str,
    table: &str,
    segments: &[Segment],
    ports: &[(Seat, HostPort)],
) -> String {
    let mut text = format!(
        "add chain {word} {table} ports\n\
         add chain {word} {table} prerouting {{ type nat hook prerouting priority dstnat; policy accept; }}\n\
         add chain {word} {table} output {{ type nat hook output priority -100; policy accept; }}\n\
         add chain {word} {table} guard {{ type filter hook prerouting priority raw; policy accept; }}\n"
    );
    let mut rule = |chain: &str, rule: String| text += &format!("add rule {word} {table} {chain} {rule}\n");
    rule("prerouting", "fib daddr type local jump ports".into());
    rule("output", "fib daddr type local jump ports".into());
    for segment in segments {
        let link = &segment.link;
        if family == Family::V4 {
            rule("guard", format!("iifname \"{link}\" ip daddr 127.0.0.0/8 drop"));
            rule("postrouting", format!("ip saddr 127.0.0.0/8 oifname \"{link}\" masquerade"));
        }
        if let Some(subnet) = segment.of(family) {
            let back = format!("ct status dnat {word} saddr {subnet} oifname \"{link}\" masquerade");
            rule("postrouting", back);
        }
    }
    // A port of one address before the same port of all.
    let mut ports: Vec<_> = ports
        .iter()
        .filter(|(_, port)| port.is_of(family))
        .filter_map(|(seat, port)| Some((seat.of(family)?, *port)))
        .collect();
    ports.sort_by_key(|(_, port)| (port.address.is_none_or(|address| address.is_unspecified()), *port));
    for (pod, HostPort { protocol, address, host, pod: port }) in ports {
        let local = match address.filter(|address| !address.is_unspecified()) {
            Some(address) => format!("{word} daddr {address} "),
            None => String::new(),
        };
        let to = std::net::SocketAddr::new(pod, port);
        rule("ports", format!("{local}{protocol} dport {host} dnat to {to}"));
    }
    text
}

/// Gives a script to nft, which does all of it or nothing.
async fn transact(program: &str, script: &str, table: &str) -> Result<()> {
    let failed = |kind: Kind| Error::new(kind, "set nftables table", table);
    let io_failed = |error: std::io::Error| Error::io("run", program, error);
    let mut command = Command::new(program);
    command.args(["-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = match command.kill_on_drop(true).spawn() {
        Ok(child) => child,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(failed(Kind::Unavailable)
                .because(Cause(format!("the program {program} is not in PATH")))
                .hint("install nftables"));
        }
        Err(error) => return Err(io_failed(error)),
    };
    let mut input = child.stdin.take();
    let run = async {
        if let Some(input) = &mut input {
            // One that ended early says why on stderr.
            input.write_all(script.as_bytes()).await.ok();
        }
        drop(input);
        child.wait_with_output().await
    };
    let output = match timeout(LONGEST, run).await {
        Ok(output) => output.map_err(io_failed)?,
        Err(_) => {
            let cause = Cause(format!("{program} did not end within {} s", LONGEST.as_secs()));
            return Err(failed(Kind::Unavailable).because(cause).hint("see whether another nft hangs"));
        }
    };
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said: Vec<&str> = said.lines().take(3).map(str::trim).collect();
    Err(failed(Kind::Unavailable)
        .because(Cause(format!("{program}: {}: {}", output.status, said.join(" "))))
        .hint("berthd needs CAP_NET_ADMIN and a kernel with nf_tables and nft_masq"))
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::config;

    fn seat(addresses: &[&str]) -> Seat {
        let addresses = addresses.iter().map(|text| text.parse().unwrap()).collect();
        Seat { network: "bridge".into(), addresses }
    }

    fn lines<'a>(text: &'a str, start: &str) -> Vec<&'a str> {
        text.lines().filter_map(|line| line.strip_prefix(start)).collect()
    }

    fn default() -> Segment {
        Segment::configured(&config::Bridge::default()).unwrap()
    }

    #[test]
    fn the_tables_masquerade_what_leaves_the_subnets_and_the_bridge() {
        let text = rules("berth", &[default()], &[], true);
        for (word, subnet) in [("ip", "10.88.0.0/16"), ("ip6", "fd0b:e47:88::/64")] {
            let found = lines(&text, &format!("add rule {word} berth postrouting "));
            assert_eq!(found, [format!("{word} saddr {subnet} oifname != \"berth0\" masquerade")]);
            assert!(text.contains(&format!("add table {word} berth\nflush table {word} berth\n")), "{text}");
        }
        assert!(!text.contains("dnat") && !text.contains("drop"), "{text}");
        assert!(!rules("berth", &[default()], &[], false).contains("ip6"));
        let four = Segment { subnets: default().subnets[..1].to_vec(), ..default() };
        assert!(rules("berth", &[four], &[], true).ends_with("delete table ip6 berth\n"));
    }

    #[test]
    fn ports_of_one_address_come_before_those_of_all_and_each_family_has_its_own() {
        let pod = seat(&["10.88.0.2", "fd00::2"]);
        let ports = ["udp *:53 5353", "tcp 0.0.0.0:80 8080", "sctp 10.0.0.1:9 9", "tcp [fd01::1]:80 81"];
        let ports: Vec<_> = ports.iter().map(|port| (pod.clone(), port.parse().unwrap())).collect();
        let text = rules("berth", &[default()], &ports, true);
        let expected = [
            "ip daddr 10.0.0.1 sctp dport 9 dnat to 10.88.0.2:9",
            "udp dport 53 dnat to 10.88.0.2:5353",
            "tcp dport 80 dnat to 10.88.0.2:8080",
        ];
        let mut found = lines(&text, "add rule ip berth ports ");
        assert_eq!(found.remove(0), expected[0]);
        found.sort_unstable();
        assert_eq!(found, ["tcp dport 80 dnat to 10.88.0.2:8080", "udp dport 53 dnat to 10.88.0.2:5353"]);
        let six =
            ["ip6 daddr fd01::1 tcp dport 80 dnat to [fd00::2]:81", "udp dport 53 dnat to [fd00::2]:5353"];
        assert_eq!(lines(&text, "add rule ip6 berth ports "), six);
    }

    #[test]
    fn networks_are_kept_apart_and_an_internal_one_from_all() {
        let blue = Segment { name: "blue".into(), link: "bn1".into(), ..default() };
        let inside =
            Segment { name: "inside".into(), link: "bn2".into(), reach: Reach::Internal, ..default() };
        let text = rules("berth", &[default(), blue, inside], &[], false);
        let expected = [
            "iifname \"bn2\" oifname != \"bn2\" drop",
            "iifname != \"bn2\" oifname \"bn2\" drop",
            "ct state established,related accept",
            "ct status dnat accept",
            "iifname != \"bn1\" oifname \"bn1\" drop",
            "iifname \"bn1\" oifname \"berth0\" drop",
            "iifname != \"bn2\" oifname \"bn2\" drop",
            "iifname \"bn2\" oifname \"berth0\" drop",
        ];
        assert_eq!(lines(&text, "add rule ip berth forward ")[..8], expected);
        assert!(!text.contains("oifname != \"bn2\" masquerade"), "{text}");
    }

    #[tokio::test]
    async fn a_program_that_is_missing_or_fails_is_told_with_a_remedy() {
        let error = transact("berth-no-such-nft", "", "t").await.unwrap_err();
        assert!(error.chain().contains("not in PATH; install nftables"), "{}", error.chain());
        // More than a pipe holds, to one that reads none of it.
        let error = transact("false", &"#".repeat(1 << 20), "t").await.unwrap_err();
        assert_eq!(error.kind, Kind::Unavailable);
        assert!(error.chain().contains("exit status: 1"), "{}", error.chain());
    }
}
