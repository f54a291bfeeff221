//! The ways out of the node and in: forwarding on, and one nftables table, replaced as a whole.
//!
//! ```text
//! out   pod ── postrouting: the source of what leaves the subnet becomes the node's
//! in    node's port ── prerouting (from elsewhere) or output (from the node) ── ports: to the pod's address
//!       with postrouting: what comes from 127.0.0.1, or from the subnet itself, has to come back this way
//! ```

use std::{net::Ipv4Addr, process::Stdio, time::Duration};

use tokio::{io::AsyncWriteExt, process::Command, time::timeout};
use tracing::warn;

use super::{port::HostPort, subnet::Subnet};
use crate::{Error, Kind, Result, config, error::Cause};

const PROGRAM: &str = "nft";
const FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";
/// nft takes some milliseconds; longer than this it waits for something that does not come.
const LONGEST: Duration = Duration::from_secs(10);

/// Turns forwarding on and puts the table in place, in one transaction: traffic sees the old rules or the new ones.
pub async fn install(bridge: &config::Bridge, subnet: Subnet, ports: &[(Ipv4Addr, HostPort)]) -> Result<()> {
    forward()?;
    if !ports.is_empty() {
        admit_loopback(&bridge.name);
    }
    transact(PROGRAM, &rules(bridge, subnet, ports), &bridge.table).await
}

/// Lets what the node sends from 127.0.0.1 out to the bridge (ip-sysctl: route_localnet). The table keeps pods from
/// using that the other way.
fn admit_loopback(bridge: &str) {
    let switch = format!("/proc/sys/net/ipv4/conf/{bridge}/route_localnet");
    if std::fs::read_to_string(&switch).is_ok_and(|text| text.trim() == "1") {
        return;
    }
    if let Err(error) = std::fs::write(&switch, "1") {
        warn!(%switch, %error, "ports of the node that lead into pods are not reachable at 127.0.0.1");
    }
}

/// Removes the table; absent: success. Forwarding stays: others may rely on it by now.
pub async fn remove(table: &str) -> Result<()> {
    transact(PROGRAM, &format!("add table ip {table}\ndelete table ip {table}\n"), table).await
}

fn forward() -> Result<()> {
    // A line of procfs: not worth a hop to another thread. Read first: on some hosts /proc/sys is read-only and right.
    if std::fs::read_to_string(FORWARD).is_ok_and(|text| text.trim() == "1") {
        return Ok(());
    }
    std::fs::write(FORWARD, "1").map_err(|error| {
        Error::io("turn on forwarding in", FORWARD, error).hint("run sysctl -w net.ipv4.ip_forward=1 as root")
    })
}

/// The names were checked when the configuration was taken: they are words.
fn rules(bridge: &config::Bridge, subnet: Subnet, ports: &[(Ipv4Addr, HostPort)]) -> String {
    let config::Bridge { name, table, .. } = bridge;
    // `add` makes what is missing and `flush` empties the chains, so this may run again over itself.
    let mut rules = format!(
        r#"add table ip {table}
flush table ip {table}
add chain ip {table} postrouting {{ type nat hook postrouting priority srcnat; policy accept; }}
add chain ip {table} forward {{ type filter hook forward priority filter; policy accept; }}
add rule ip {table} postrouting ip saddr {subnet} oifname != "{name}" masquerade
add rule ip {table} forward iifname "{name}" accept
add rule ip {table} forward oifname "{name}" accept
"#
    );
    // Chains of earlier ports stay with nothing in them: a jump into an empty chain is no jump.
    if ports.is_empty() {
        return rules;
    }
    rules += &format!(
        r#"add chain ip {table} ports
add chain ip {table} prerouting {{ type nat hook prerouting priority dstnat; policy accept; }}
add chain ip {table} output {{ type nat hook output priority -100; policy accept; }}
add chain ip {table} guard {{ type filter hook prerouting priority raw; policy accept; }}
add rule ip {table} guard iifname "{name}" ip daddr 127.0.0.0/8 drop
add rule ip {table} prerouting fib daddr type local jump ports
add rule ip {table} output fib daddr type local jump ports
add rule ip {table} postrouting ip saddr 127.0.0.0/8 oifname "{name}" masquerade
add rule ip {table} postrouting ct status dnat ip saddr {subnet} oifname "{name}" masquerade
"#
    );
    // A port of one address before the same port of all.
    let mut ports = ports.to_vec();
    ports.sort_by_key(|(_, port)| (port.address.is_unspecified(), *port));
    for (pod, HostPort { protocol, address, host, pod: port }) in ports {
        let local = if address.is_unspecified() { String::new() } else { format!("ip daddr {address} ") };
        rules += &format!("add rule ip {table} ports {local}{protocol} dport {host} dnat to {pod}:{port}\n");
    }
    rules
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

    #[test]
    fn the_table_masquerades_what_leaves_the_subnet_and_the_bridge() {
        let bridge = config::Bridge::default();
        let text = rules(&bridge, Subnet::parse(&bridge.subnet).unwrap(), &[]);
        let expected =
            "add rule ip berth postrouting ip saddr 10.88.0.0/16 oifname != \"berth0\" masquerade\n";
        assert!(text.contains(expected), "{text}");
        assert!(text.starts_with("add table ip berth\nflush table ip berth\n"), "{text}");
        assert!(!text.contains("dnat"), "{text}");
    }

    #[test]
    fn ports_of_one_address_come_before_those_of_all() {
        let bridge = config::Bridge::default();
        let pod = Ipv4Addr::new(10, 88, 0, 2);
        let ports = ["udp 0.0.0.0:53 5353", "tcp 0.0.0.0:80 8080", "sctp 10.0.0.1:9 9"];
        let ports: Vec<_> = ports.iter().map(|port| (pod, port.parse().unwrap())).collect();
        let text = rules(&bridge, Subnet::parse(&bridge.subnet).unwrap(), &ports);
        let found: Vec<&str> =
            text.lines().filter_map(|line| line.strip_prefix("add rule ip berth ports ")).collect();
        let expected = [
            "ip daddr 10.0.0.1 sctp dport 9 dnat to 10.88.0.2:9",
            "tcp dport 80 dnat to 10.88.0.2:8080",
            "udp dport 53 dnat to 10.88.0.2:5353",
        ];
        assert_eq!(found, expected);
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
