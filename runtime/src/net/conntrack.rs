//! Flows that the kernel tracks, nfnetlink(7): a UDP client that goes on sending keeps the address that its first packet
//! was translated to. When a port of the node gets another pod, such flows are deleted; the next packet makes a new one.
//! Only sockets and bytes. Blocks.

use std::{io, net::IpAddr, os::fd::OwnedFd, time::Duration};

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with, sockopt,
};

use super::{
    lease::Seat,
    port::{HostPort, Protocol},
    subnet::Family,
};
use crate::{Error, Result};

const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const HEADER: usize = 16;
/// struct nfgenmsg.
const FAMILY_HEADER: usize = 4;

const CT_NEW: u16 = 0x100;
const CT_GET: u16 = 0x101;
const CT_DELETE: u16 = 0x102;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_DST_PORT: u16 = 3;
/// Of the bits of an attribute's type.
const TYPE: u16 = 0x3fff;
const UDP: u8 = 17;
/// The kernel answers at once; a socket that does not is not waited for.
const PATIENCE: Duration = Duration::from_secs(2);

/// Deletes what is tracked of these ports and leads elsewhere than to the pod. `locals` are the node's addresses.
///
/// # Errors
/// What the kernel said: it may have no conntrack.
pub fn take_over(seat: &Seat, ports: &[HostPort], locals: &[IpAddr]) -> Result<usize> {
    let udp: Vec<HostPort> = ports.iter().copied().filter(|port| port.protocol == Protocol::Udp).collect();
    match udp.is_empty() {
        true => Ok(0),
        false => delete(|flow| leads_elsewhere(flow, seat, &udp, locals)),
    }
}

/// Deletes what leads to a pod that is no more: its address may be another's soon.
pub fn forget(seat: &Seat) -> Result<usize> {
    delete(|flow| flow.translated() && seat.addresses.contains(&flow.reply_source))
}

fn leads_elsewhere(flow: &Flow, seat: &Seat, ports: &[HostPort], locals: &[IpAddr]) -> bool {
    let of_port = |port: &HostPort| {
        let here = match port.address.filter(|address| !address.is_unspecified()) {
            Some(address) => flow.destination == address,
            // One that was not translated to anywhere was the node's own, or went through it: then it is not ours.
            None => flow.translated() || locals.contains(&flow.destination),
        };
        let family = Family::of(flow.destination);
        flow.port == port.host && port.is_of(family) && here && seat.of(family).is_some()
    };
    !seat.addresses.contains(&flow.reply_source) && ports.iter().any(of_port)
}

/// What is known of one UDP flow.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Flow {
    /// Where its first packet was sent to.
    destination: IpAddr,
    port: u16,
    /// Who answers.
    reply_source: IpAddr,
    /// What names it, as the kernel gave it.
    name: Vec<u8>,
}

impl Flow {
    fn translated(&self) -> bool {
        self.destination != self.reply_source
    }
}

fn delete(stale: impl Fn(&Flow) -> bool) -> Result<usize> {
    let work = || -> io::Result<usize> {
        let mut found = Vec::new();
        for family in [libc::AF_INET as u8, libc::AF_INET6 as u8] {
            found.extend(flows(family)?.into_iter().filter(&stale).map(|flow| (family, flow.name)));
        }
        let socket = open()?;
        for (family, name) in &found {
            send(&socket, &message(CT_DELETE, NLM_F_ACK, *family, name), SendFlags::empty())?;
            let mut answer = [0; 4096];
            let (_, length) = recv(&socket, &mut answer[..], RecvFlags::empty())?;
            match error(&answer[..length.min(4096)]) {
                // It rested meanwhile.
                Some(0 | libc::ENOENT) => {}
                Some(errno) => return Err(io::Error::from_raw_os_error(errno)),
                None => return Err(io::ErrorKind::InvalidData.into()),
            }
        }
        Ok(found.len())
    };
    work().map_err(|error| Error::io("delete tracked flows", "udp", error))
}

fn open() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, Some(netlink::NETFILTER))?;
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(PATIENCE))?;
    Ok(socket)
}

/// All UDP flows of a family.
fn flows(family: u8) -> io::Result<Vec<Flow>> {
    let socket = open()?;
    send(&socket, &message(CT_GET, NLM_F_DUMP, family, &[]), SendFlags::empty())?;
    let mut found = Vec::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        let (_, length) = recv(&socket, &mut buffer[..], RecvFlags::empty())?;
        let mut rest = &buffer[..length.min(1 << 16)];
        while let Some((kind, whole, next)) = split(rest) {
            match kind {
                CT_NEW => found.extend(whole.get(HEADER + FAMILY_HEADER..).and_then(flow)),
                NLMSG_DONE => return Ok(found),
                NLMSG_ERROR => {
                    return Err(
                        error(whole).map_or(io::ErrorKind::InvalidData.into(), io::Error::from_raw_os_error)
                    );
                }
                _ => {}
            }
            rest = next;
        }
    }
}

fn message(kind: u16, flags: u16, family: u8, attributes: &[u8]) -> Vec<u8> {
    let length = (HEADER + FAMILY_HEADER + attributes.len()) as u32;
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend((NLM_F_REQUEST | flags).to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend([family, 0, 0, 0]);
    bytes.extend(attributes);
    bytes
}

/// The first message's type, all of it, and what follows.
fn split(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    let whole = bytes.get(..length).filter(|whole| whole.len() >= HEADER)?;
    Some((kind, whole, bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

/// The errno of an NLMSG_ERROR; 0: done.
fn error(message: &[u8]) -> Option<i32> {
    let (kind, whole, _) = split(message)?;
    let code = whole.get(HEADER..HEADER + 4)?.try_into().ok().map(i32::from_ne_bytes)?;
    (kind == NLMSG_ERROR).then_some(-code)
}

/// Attributes: type, value, and all of it as it stands there.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8], &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?) & TYPE;
        let whole = bytes.get(..length).filter(|whole| whole.len() >= 4)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, &whole[4..], whole))
    })
}

fn flow(bytes: &[u8]) -> Option<Flow> {
    let mut name = Vec::new();
    let (mut there, mut back) = (None, None);
    for (kind, value, whole) in attributes(bytes) {
        match kind {
            CTA_TUPLE_ORIG => there = tuple(value),
            CTA_TUPLE_REPLY => back = tuple(value),
            _ => {}
        }
        if matches!(kind, CTA_TUPLE_ORIG | CTA_ID | CTA_ZONE) {
            name.extend(whole);
            name.resize(name.len().next_multiple_of(4), 0);
        }
    }
    let ((_, destination, port), (reply_source, ..)) = (there?, back?);
    Some(Flow { destination, port, reply_source, name })
}

/// Source, destination and its port, of UDP.
fn tuple(bytes: &[u8]) -> Option<(IpAddr, IpAddr, u16)> {
    let (mut ips, mut protocol, mut port) = ([None; 2], None, None);
    for (kind, value, _) in attributes(bytes) {
        match kind {
            CTA_TUPLE_IP => {
                for (kind, value, _) in attributes(value) {
                    // 1 and 3 are sources, 2 and 4 destinations.
                    *ips.get_mut(usize::from(kind.wrapping_sub(1) & 1))? = ip(value);
                }
            }
            CTA_TUPLE_PROTO => {
                for (kind, value, _) in attributes(value) {
                    match kind {
                        CTA_PROTO_NUM => protocol = value.first().copied(),
                        CTA_PROTO_DST_PORT => port = value.try_into().ok().map(u16::from_be_bytes),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    (protocol? == UDP).then_some((ips[0]?, ips[1]?, port?))
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(four) = <[u8; 4]>::try_from(bytes) {
        return Some(four.into());
    }
    <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = ((4 + value.len()) as u16).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn of(kind: u16, source: [u8; 4], destination: [u8; 4], protocol: u8, port: u16) -> Vec<u8> {
        let ips = [attribute(1, &source), attribute(2, &destination)].concat();
        let proto =
            [attribute(CTA_PROTO_NUM, &[protocol]), attribute(CTA_PROTO_DST_PORT, &port.to_be_bytes())];
        let inside =
            [attribute(CTA_TUPLE_IP | 0x8000, &ips), attribute(CTA_TUPLE_PROTO | 0x8000, &proto.concat())];
        attribute(kind | 0x8000, &inside.concat())
    }

    #[test]
    fn a_flow_is_read_with_what_names_it_and_torn_ones_are_none() {
        let there = of(CTA_TUPLE_ORIG, [10, 0, 0, 9], [10, 0, 0, 1], UDP, 53);
        let back = of(CTA_TUPLE_REPLY, [10, 88, 0, 2], [10, 0, 0, 9], UDP, 4000);
        let id = attribute(CTA_ID, &[1, 2, 3, 4]);
        let bytes = [there.clone(), back, attribute(3, &[0; 4]), id.clone()].concat();
        let read = flow(&bytes).unwrap();
        assert_eq!((read.destination.to_string().as_str(), read.port), ("10.0.0.1", 53));
        assert!(read.reply_source.to_string() == "10.88.0.2" && read.translated());
        assert_eq!(read.name, [there, id].concat());
        for end in 0..bytes.len() - 20 {
            // Whatever is cut off: no panic, and none without both tuples.
            let cut = flow(&bytes[..end]);
            assert!(cut.is_none() || end >= 100, "{end}");
        }
        assert_eq!(flow(&of(CTA_TUPLE_ORIG, [1; 4], [2; 4], 6, 53)), None);
    }

    #[test]
    fn what_led_elsewhere_goes_and_what_is_of_others_stays() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let seat = Seat { network: "bridge".into(), addresses: vec![ip("10.88.0.5"), ip("fd00::5")] };
        let ports: Vec<HostPort> = vec!["udp *:53 53".parse().unwrap(), "udp 10.0.0.2:99 1".parse().unwrap()];
        let rows = [
            // Of the pod before.
            ("10.0.0.1", 53, "10.88.0.2", true),
            // Of the node itself, before there was a rule.
            ("10.0.0.1", 53, "10.0.0.1", true),
            // Through the node, to somebody's port 53.
            ("9.9.9.9", 53, "9.9.9.9", false),
            ("10.0.0.1", 53, "10.88.0.5", false),
            ("10.0.0.1", 54, "10.88.0.2", false),
            ("10.0.0.2", 99, "10.88.0.2", true),
            ("10.0.0.1", 99, "10.88.0.2", false),
            ("fd00:2::1", 53, "fd00::2", true),
        ];
        for (destination, port, answers, expected) in rows {
            let flow =
                Flow { destination: ip(destination), port, reply_source: ip(answers), name: Vec::new() };
            let stale = leads_elsewhere(&flow, &seat, &ports, &[ip("10.0.0.1")]);
            assert_eq!(stale, expected, "{flow:?}");
        }
    }
}
