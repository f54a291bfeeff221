//! A route netlink socket and the few messages a pod's link takes, `rtnetlink(7)`: a message is a header, a fixed body
//! and attributes (length, type, value, padded to 4). Only sockets and bytes: no `unsafe` is needed here.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with};

const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const HEADER_BYTES: usize = 16;

const RTM_NEWLINK: u16 = 16;
const RTM_SETLINK: u16 = 19;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_PROTINFO: u16 = 12;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const IFLA_BRPORT_MODE: u16 = 4;
const NLA_F_NESTED: u16 = 0x8000;

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_F_NODAD: u8 = 2;
const IFA_F_PERMANENT: u8 = 0x80;
const IFADDRMSG_BYTES: usize = 8;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;

const RTM_NEWQDISC: u16 = 36;
const TC_H_ROOT: u32 = u32::MAX;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_RATE64: u16 = 4;
const TCA_TBF_BURST: u16 = 6;
const TC_LINKLAYER_ETHERNET: u8 = 1;
/// What may be sent at once: so many milliseconds' worth, and no less than the largest packet that a link takes whole.
const BURST_MS: u64 = 20;
const LEAST_BURST: u64 = 64 << 10;
/// What waits beside that, in milliseconds' worth; the rest is dropped.
const QUEUE_MS: u64 = 50;

const IFF_UP: u32 = 1;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_STATIC: u8 = 4;
const RT_SCOPE_LINK: u8 = 253;
const RTN_UNICAST: u8 = 1;

/// A socket in the network namespace it was opened in.
#[derive(Debug)]
pub struct Route(OwnedFd);

impl Route {
    pub fn open() -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC;
        // No protocol is protocol 0, NETLINK_ROUTE.
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
        Ok(Self(socket))
    }

    /// Makes a veth pair: `name` here, under a bridge and up; `peer` in another network namespace.
    pub fn veth(
        &self,
        name: &str,
        bridge: u32,
        mtu: u32,
        peer: &str,
        peer_mac: &[u8],
        namespace: &impl AsFd,
    ) -> io::Result<()> {
        let fd = std::os::fd::AsRawFd::as_raw_fd(&namespace.as_fd()) as u32;
        let mut message = Message::new(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL);
        message.link(0, IFF_UP, IFF_UP);
        message.text(IFLA_IFNAME, name);
        message.word_unless_zero(IFLA_MTU, mtu);
        message.word_unless_zero(IFLA_MASTER, bridge);
        message.nest(IFLA_LINKINFO, |message| {
            message.text(IFLA_INFO_KIND, "veth");
            message.nest(IFLA_INFO_DATA, |message| {
                message.nest(VETH_INFO_PEER, |message| {
                    message.link(0, 0, 0);
                    message.text(IFLA_IFNAME, peer);
                    message.word_unless_zero(IFLA_MTU, mtu);
                    if !peer_mac.is_empty() {
                        message.attribute(IFLA_ADDRESS, peer_mac);
                    }
                    message.attribute(IFLA_NET_NS_FD, &fd.to_ne_bytes());
                });
            });
        });
        self.call(message)
    }

    /// Lets a bridge port send a frame back where it came from: a pod reaches itself by a host port.
    pub fn hairpin(&self, index: u32) -> io::Result<()> {
        let mut message = Message::new(RTM_SETLINK, 0);
        message.family_link(libc::AF_BRIDGE as u8, index);
        message.nest(IFLA_PROTINFO, |message| message.attribute(IFLA_BRPORT_MODE, &[1]));
        self.call(message)
    }

    /// Brings a link up.
    pub fn up(&self, index: u32) -> io::Result<()> {
        let mut message = Message::new(RTM_NEWLINK, 0);
        message.link(index, IFF_UP, IFF_UP);
        self.call(message)
    }

    /// Gives a link an address, usable at once: duplicates are the allocator's business.
    pub fn address(&self, index: u32, ip: &[u8], prefix: u8) -> io::Result<()> {
        let mut message = Message::new(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL);
        message.bytes(&[family(ip)?, prefix, IFA_F_NODAD, 0]);
        message.bytes(&index.to_ne_bytes());
        message.attribute(IFA_LOCAL, ip);
        message.attribute(IFA_ADDRESS, ip);
        self.call(message)
    }

    /// Moves a link to another network namespace, under this name there.
    pub fn give(&self, index: u32, name: &str, namespace: &impl AsFd) -> io::Result<()> {
        let fd = std::os::fd::AsRawFd::as_raw_fd(&namespace.as_fd()) as u32;
        let mut message = Message::new(RTM_SETLINK, 0);
        message.link(index, 0, 0);
        message.attribute(IFLA_NET_NS_FD, &fd.to_ne_bytes());
        message.text(IFLA_IFNAME, name);
        self.call(message)
    }

    /// A link's addresses that are to stay: permanent ones of global scope, with their prefixes.
    pub fn addresses(&self, index: u32) -> io::Result<Vec<(Vec<u8>, u8)>> {
        let mut message = Message::new(RTM_GETADDR, NLM_F_DUMP);
        message.bytes(&[0; IFADDRMSG_BYTES]);
        send(&self.0, &message.finish(), SendFlags::empty())?;
        let mut found = Vec::new();
        let mut answer = vec![0u8; 32 << 10];
        loop {
            let (_, length) = recv(&self.0, &mut answer[..], RecvFlags::empty())?;
            for (kind, body) in messages(&answer[..length]) {
                match kind {
                    NLMSG_DONE => return Ok(found),
                    NLMSG_ERROR => {
                        let errno = body.get(..4).and_then(|bytes| bytes.try_into().ok());
                        let errno = errno.map_or(libc::EIO, |bytes| -i32::from_ne_bytes(bytes));
                        return Err(io::Error::from_raw_os_error(errno));
                    }
                    RTM_NEWADDR => found.extend(address_of(body, index)),
                    _ => {}
                }
            }
        }
    }

    /// Adds a route by a gateway, or to a link where `via` is empty; an empty `to` is the default route.
    pub fn route(&self, index: u32, to: &[u8], prefix: u8, via: &[u8]) -> io::Result<()> {
        let mut message = Message::new(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL);
        let family = family(if to.is_empty() { via } else { to })?;
        let scope = if via.is_empty() { RT_SCOPE_LINK } else { 0 };
        message.bytes(&[family, prefix, 0, 0, RT_TABLE_MAIN, RTPROT_STATIC, scope, RTN_UNICAST, 0, 0, 0, 0]);
        if !to.is_empty() {
            message.attribute(RTA_DST, to);
        }
        if !via.is_empty() {
            message.attribute(RTA_GATEWAY, via);
        }
        message.attribute(RTA_OIF, &index.to_ne_bytes());
        self.call(message)
    }

    /// Bounds what a link sends, in bits per second, tc-tbf(8). ENOENT: the kernel has no such discipline.
    pub fn limit(&self, index: u32, bits: u64) -> io::Result<()> {
        let mut message = Message::new(RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL);
        // struct tcmsg: family, index, handle, parent, info.
        message.bytes(&[0; 4]);
        for word in [index, 0, TC_H_ROOT, 0] {
            message.bytes(&word.to_ne_bytes());
        }
        message.text(TCA_KIND, "tbf");
        let Bucket { rate, burst, queue } = Bucket::of(bits);
        message.nest(TCA_OPTIONS, |message| {
            // struct tc_tbf_qopt: the rate, a peak rate (none), limit, buffer (which the burst says better), mtu.
            let mut options = [0; 36];
            options[1] = TC_LINKLAYER_ETHERNET;
            options[8..12].copy_from_slice(&u32::try_from(rate).unwrap_or(u32::MAX).to_ne_bytes());
            options[24..28].copy_from_slice(&queue.to_ne_bytes());
            message.attribute(TCA_TBF_PARMS, &options);
            message.attribute(TCA_TBF_BURST, &burst.to_ne_bytes());
            if rate > u64::from(u32::MAX) {
                message.attribute(TCA_TBF_RATE64, &rate.to_ne_bytes());
            }
        });
        self.call(message)
    }

    fn call(&self, message: Message) -> io::Result<()> {
        send(&self.0, &message.finish(), SendFlags::empty())?;
        let mut answer = [0u8; 4096];
        let (_, length) = recv(&self.0, &mut answer[..], RecvFlags::empty())?;
        let word = |at: usize| {
            answer.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map(i32::from_ne_bytes)
        };
        let kind = u16::from_ne_bytes([answer[4], answer[5]]);
        match (kind, word(16)) {
            (NLMSG_ERROR, Some(0)) if length >= 20 => Ok(()),
            (NLMSG_ERROR, Some(errno)) if length >= 20 => Err(io::Error::from_raw_os_error(-errno)),
            _ => Err(io::Error::from(io::ErrorKind::InvalidData)),
        }
    }
}

/// Type and body of each message of an answer; what is cut off is no message.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
        let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
        let body = bytes.get(HEADER_BYTES..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, body))
    })
}

/// struct ifaddrmsg and its attributes: the address, where it is a lasting one of this link.
fn address_of(body: &[u8], index: u32) -> Option<(Vec<u8>, u8)> {
    let &[_, prefix, flags, scope] = body.get(..4)? else { return None };
    let whose = u32::from_ne_bytes(body.get(4..IFADDRMSG_BYTES)?.try_into().ok()?);
    if whose != index || flags & IFA_F_PERMANENT == 0 || scope != 0 {
        return None;
    }
    let mut rest = body.get(IFADDRMSG_BYTES..)?;
    let mut found: Option<(u16, &[u8])> = None;
    while let (Some(length), Some(kind)) = (rest.get(..2), rest.get(2..4)) {
        let length = usize::from(u16::from_ne_bytes(length.try_into().ok()?));
        let kind = u16::from_ne_bytes(kind.try_into().ok()?);
        // Of a link to one other the local address is ours, the other one theirs.
        if kind == IFA_LOCAL || kind == IFA_ADDRESS && found.is_none() {
            found = Some((kind, rest.get(4..length)?));
        }
        rest = rest.get(length.next_multiple_of(4).max(4)..).unwrap_or_default();
    }
    found.map(|(_, ip)| (ip.to_vec(), prefix))
}

/// A bound as tbf has it, in bytes.
#[derive(Debug, PartialEq)]
struct Bucket {
    rate: u64,
    burst: u32,
    queue: u32,
}

impl Bucket {
    fn of(bits: u64) -> Self {
        let rate = (bits / 8).max(1);
        let fits = |bytes: u64| u32::try_from(bytes).unwrap_or(u32::MAX);
        let burst = (rate / 1000 * BURST_MS).max(LEAST_BURST);
        Self { rate, burst: fits(burst), queue: fits(burst + rate / 1000 * QUEUE_MS) }
    }
}

fn family(ip: &[u8]) -> io::Result<u8> {
    match ip.len() {
        4 => Ok(libc::AF_INET as u8),
        16 => Ok(libc::AF_INET6 as u8),
        _ => Err(io::Error::from_raw_os_error(libc::EINVAL)),
    }
}

/// A message under construction.
#[derive(Debug)]
struct Message(Vec<u8>);

impl Message {
    fn new(kind: u16, flags: u16) -> Self {
        let mut bytes = Vec::with_capacity(256);
        bytes.extend_from_slice(&0u32.to_ne_bytes());
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&(NLM_F_REQUEST | NLM_F_ACK | flags).to_ne_bytes());
        bytes.extend_from_slice(&[0; 8]);
        Self(bytes)
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// struct ifinfomsg.
    fn link(&mut self, index: u32, flags: u32, change: u32) {
        self.bytes(&[0; 4]);
        self.bytes(&index.to_ne_bytes());
        self.bytes(&flags.to_ne_bytes());
        self.bytes(&change.to_ne_bytes());
    }

    fn family_link(&mut self, family: u8, index: u32) {
        self.bytes(&[family, 0, 0, 0]);
        self.bytes(&index.to_ne_bytes());
        self.bytes(&[0; 8]);
    }

    fn attribute(&mut self, kind: u16, value: &[u8]) {
        let length = (4 + value.len()) as u16;
        self.bytes(&length.to_ne_bytes());
        self.bytes(&kind.to_ne_bytes());
        self.bytes(value);
        self.pad();
    }

    fn text(&mut self, kind: u16, text: &str) {
        let mut bytes = text.as_bytes().to_vec();
        bytes.push(0);
        self.attribute(kind, &bytes);
    }

    fn word_unless_zero(&mut self, kind: u16, word: u32) {
        if word != 0 {
            self.attribute(kind, &word.to_ne_bytes());
        }
    }

    fn nest(&mut self, kind: u16, inside: impl FnOnce(&mut Self)) {
        let at = self.0.len();
        self.bytes(&[0; 2]);
        self.bytes(&(kind | NLA_F_NESTED).to_ne_bytes());
        inside(self);
        let length = (self.0.len() - at) as u16;
        self.0[at..at + 2].copy_from_slice(&length.to_ne_bytes());
        self.pad();
    }

    fn pad(&mut self) {
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        let length = self.0.len() as u32;
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_nests_count_their_content() {
        let mut message = Message::new(RTM_NEWLINK, 0);
        message.nest(IFLA_LINKINFO, |message| message.text(IFLA_INFO_KIND, "veth"));
        let bytes = message.finish();
        assert_eq!(bytes.len(), 16 + 4 + 12);
        assert_eq!(u32::from_ne_bytes(bytes[..4].try_into().unwrap()), 32);
        assert_eq!(u16::from_ne_bytes(bytes[16..18].try_into().unwrap()), 16);
        assert_eq!(u16::from_ne_bytes(bytes[20..22].try_into().unwrap()), 9);
    }

    #[test]
    fn an_answer_is_read_as_far_as_it_is_whole() {
        let mut bytes = vec![2, 24, IFA_F_PERMANENT, 0, 7, 0, 0, 0];
        bytes.extend([8, 0, 1, 0, 10, 0, 0, 9, 8, 0, 2, 0, 10, 0, 0, 1]);
        assert_eq!(address_of(&bytes, 7), Some((vec![10, 0, 0, 1], 24)));
        assert_eq!(address_of(&bytes, 8), None);
        for length in 0..bytes.len() {
            // No piece of it makes us read what is not there.
            address_of(&bytes[..length], 7);
        }
        let mut message = Message::new(RTM_NEWADDR, 0);
        message.bytes(&bytes);
        let whole = message.finish();
        let twice = [whole.as_slice(), whole.as_slice()].concat();
        assert_eq!(messages(&twice).count(), 2);
        assert_eq!(messages(&twice[..twice.len() - 1]).count(), 1);
        assert_eq!(messages(&[0; 16]).count(), 0);
    }

    #[test]
    fn a_bound_has_room_for_a_whole_packet_and_fits_what_the_kernel_counts_in() {
        assert_eq!(Bucket::of(8000), Bucket { rate: 1000, burst: 65_536, queue: 65_586 });
        assert_eq!(
            Bucket::of(8_000_000_000),
            Bucket { rate: 1_000_000_000, burst: 20_000_000, queue: 70_000_000 }
        );
        assert_eq!(Bucket::of(u64::MAX).burst, u32::MAX);
    }

    #[test]
    fn an_address_of_another_length_is_refused() {
        assert!(family(&[1, 2, 3]).is_err());
    }
}
