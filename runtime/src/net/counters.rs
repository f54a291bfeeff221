//! The counters of interfaces in a pod's network namespace, which is not entered for that: the kernel has a number for
//! each namespace that another knows of, and tells of the links there by that, rtnetlink(7) with IFLA_TARGET_NETNSID.

use std::{fs::File, os::fd::AsRawFd, path::Path};

use futures_util::{StreamExt, TryStreamExt};
use rtnetlink::{
    Handle,
    packet_core::{NLM_F_ACK, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload},
    packet_route::{
        RouteNetlinkMessage,
        link::{LinkAttribute, LinkFlags, LinkMessage},
        nsid::{NsidAttribute, NsidMessage},
    },
};

use super::{LinkStats, route::explain};
use crate::{Error, Result};

/// What the kernel says of a namespace that has no number, and is told to choose one.
const NONE: i32 = -1;

/// Every interface but the loopback, as the pod sees it; eth0 first.
///
/// # Errors
/// The namespace is gone, or what the kernel said.
pub async fn counters(netns: &Path) -> Result<Vec<LinkStats>> {
    let shown = netns.display().to_string();
    let file = File::open(netns).map_err(|error| Error::io("open network namespace", &shown, error))?;
    let (connection, handle, _) = rtnetlink::new_connection()
        .map_err(|error| Error::io("open netlink socket", "NETLINK_ROUTE", error))?;
    // Ends by itself once the handle is dropped.
    tokio::spawn(connection);
    let told = |error| explain("count traffic of", &shown, error);
    let mut number = ask(&handle, &file).await.map_err(told)?;
    if number == NONE {
        let named = message(&file, Some(NONE));
        let request = request(RouteNetlinkMessage::NewNsId(named), NLM_F_REQUEST | NLM_F_ACK);
        // Somebody else may have been faster: the number is asked for in any case.
        handle.clone().request(request).map_err(told)?.collect::<Vec<_>>().await;
        number = ask(&handle, &file).await.map_err(told)?;
    }
    let mut links = handle.link().get();
    links.message_mut().attributes.push(LinkAttribute::IfNetnsId(number));
    let links: Vec<LinkMessage> = links.execute().try_collect().await.map_err(told)?;
    let mut all: Vec<LinkStats> = links.iter().filter_map(read).collect();
    // The others stay in the order of their making.
    all.sort_by_key(|link| link.name != super::segment::POD_LINK);
    Ok(all)
}

async fn ask(handle: &Handle, file: &File) -> Result<i32, rtnetlink::Error> {
    let asked = request(RouteNetlinkMessage::GetNsId(message(file, None)), NLM_F_REQUEST);
    let mut answers = handle.clone().request(asked)?;
    while let Some(answer) = answers.next().await {
        match answer.payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNsId(answer)) => {
                let number = answer.attributes.iter().find_map(|attribute| match attribute {
                    NsidAttribute::Id(number) => Some(*number),
                    _ => None,
                });
                return Ok(number.unwrap_or(NONE));
            }
            NetlinkPayload::Error(error) => return Err(rtnetlink::Error::NetlinkError(error)),
            _ => {}
        }
    }
    Ok(NONE)
}

fn message(file: &File, number: Option<i32>) -> NsidMessage {
    let mut message = NsidMessage::default();
    let fd = file.as_raw_fd().unsigned_abs();
    message.attributes.push(NsidAttribute::Fd(fd));
    message.attributes.extend(number.map(NsidAttribute::Id));
    message
}

fn request(message: RouteNetlinkMessage, flags: u16) -> NetlinkMessage<RouteNetlinkMessage> {
    let mut request = NetlinkMessage::from(message);
    request.header.flags = flags;
    request
}

fn read(link: &LinkMessage) -> Option<LinkStats> {
    if link.header.flags.contains(LinkFlags::Loopback) {
        return None;
    }
    let name = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    })?;
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Stats64(counted) => Some(LinkStats {
            name: name.clone(),
            rx_bytes: counted.rx_bytes,
            rx_packets: counted.rx_packets,
            rx_errors: counted.rx_errors,
            rx_dropped: counted.rx_dropped,
            tx_bytes: counted.tx_bytes,
            tx_packets: counted.tx_packets,
            tx_errors: counted.tx_errors,
            tx_dropped: counted.tx_dropped,
        }),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_namespace_without_links_has_no_counters_and_none_at_all_is_told() {
        let name = format!("btns{}", &crate::id::PodId::random().as_str()[..8]);
        let ip = |words: &[&str]| {
            std::process::Command::new("ip").args(words).output().is_ok_and(|output| output.status.success())
        };
        if !ip(&["netns", "add", &name]) {
            eprintln!("SKIPPED: needs root and ip");
            return;
        }
        let path = Path::new("/run/netns").join(&name);
        let empty = counters(&path).await;
        let peer = format!("p{}", &name[4..]);
        let made = ip(&["link", "add", &peer, "type", "veth", "peer", "name", "eth0", "netns", &name]);
        let more = ip(&["-n", &name, "link", "add", "eth1", "type", "bridge"]);
        let linked = counters(&path).await;
        assert!(ip(&["netns", "del", &name]));
        assert_eq!(empty.unwrap(), []);
        let names: Vec<String> = linked.unwrap().into_iter().map(|link| link.name).collect();
        assert!(made && more && names == ["eth0", "eth1"], "{names:?}");
        assert!(counters(&path).await.is_err());
    }
}
