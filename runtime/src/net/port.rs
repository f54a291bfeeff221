//! Ports of the node that lead into pods. Pure: which may be together, how they are written down.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use super::subnet::Family;

/// One port of the node and where it leads in the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostPort {
    pub protocol: Protocol,
    /// None: every address of the node. An unspecified one: every address of that family.
    pub address: Option<IpAddr>,
    pub host: u16,
    pub pod: u16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl HostPort {
    /// Whether a packet could be for both.
    pub fn collides(&self, other: &Self) -> bool {
        let meet = match (self.address, other.address) {
            (None, _) | (_, None) => true,
            (Some(one), Some(another)) => {
                Family::of(one) == Family::of(another)
                    && (one == another || one.is_unspecified() || another.is_unspecified())
            }
        };
        self.protocol == other.protocol && self.host == other.host && meet
    }

    /// Whether packets of that family can be for it.
    pub fn is_of(&self, family: Family) -> bool {
        self.address.is_none_or(|address| Family::of(address) == family)
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        })
    }
}

/// `tcp *:8080 80`, `udp 127.0.0.1:53 53`, `tcp [fd00::1]:80 80`: a line of a lease.
impl fmt::Display for HostPort {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { protocol, address, host, pod } = self;
        match address {
            Some(address) => write!(formatter, "{protocol} {} {pod}", SocketAddr::new(*address, *host)),
            None => write!(formatter, "{protocol} *:{host} {pod}"),
        }
    }
}

impl FromStr for HostPort {
    type Err = String;

    fn from_str(line: &str) -> Result<Self, String> {
        let read = || {
            let mut words = line.split(' ');
            let protocol = match words.next()? {
                "tcp" => Protocol::Tcp,
                "udp" => Protocol::Udp,
                "sctp" => Protocol::Sctp,
                _ => return None,
            };
            let word = words.next()?;
            let (address, host) = match word.strip_prefix("*:") {
                Some(host) => (None, host.parse().ok()?),
                None => {
                    let at: SocketAddr = word.parse().ok()?;
                    (Some(at.ip()), at.port())
                }
            };
            let port = Self { protocol, address, host, pod: words.next()?.parse().ok()? };
            words.next().is_none().then_some(port)
        };
        read().ok_or_else(|| format!("{line:?} is no port of the node"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(text: &str) -> HostPort {
        text.parse().unwrap()
    }

    #[test]
    fn a_port_is_read_as_it_was_written() {
        for text in [
            "tcp *:8080 80",
            "tcp 0.0.0.0:8080 80",
            "udp 127.0.0.1:53 5353",
            "sctp 10.0.0.1:1 65535",
            "tcp [fd00::1]:80 8080",
        ] {
            assert_eq!(port(text).to_string(), text);
        }
        for wrong in [
            "",
            "tcp",
            "icmp 0.0.0.0:1 1",
            "tcp 0.0.0.0 1",
            "tcp 0.0.0.0:65536 1",
            "tcp ::1:1 1",
            "tcp 0.0.0.0:1 1 1",
        ] {
            assert!(wrong.parse::<HostPort>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn ports_collide_where_a_packet_could_be_for_both() {
        let all = port("tcp *:80 1");
        let rows = [
            ("tcp [fd00::1]:80 1", true),
            ("tcp [::]:80 1", true),
            ("tcp 0.0.0.0:80 2", true),
            ("tcp 127.0.0.1:80 1", true),
            ("tcp 0.0.0.0:81 1", false),
            ("udp 0.0.0.0:80 1", false),
        ];
        for (other, expected) in rows {
            assert_eq!(
                (all.collides(&port(other)), port(other).collides(&all)),
                (expected, expected),
                "{other}"
            );
        }
        assert!(!port("tcp 0.0.0.0:80 1").collides(&port("tcp [::]:80 1")));
        assert!(port("tcp [::]:80 1").collides(&port("tcp [::1]:80 1")));
        assert!(!port("tcp 127.0.0.1:80 1").collides(&port("tcp 10.0.0.1:80 1")));
    }
}
