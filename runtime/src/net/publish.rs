//! Ports of the node that lead into pods of the built-in bridge: taken from nobody, brought into the tables, and flows of UDP
//! clients that go with them.

use std::net::{IpAddr, TcpListener, UdpSocket};

use tracing::{info, warn};

use super::{
    blocking,
    bridge::Bridge,
    conntrack,
    lease::Seat,
    lock,
    port::{HostPort, Protocol},
    route::Route,
    table,
};
use crate::{Error, Kind, Result, error::Cause, id::PodId};

impl Bridge {
    /// Lets the pod's ports of the node go; its addresses it keeps, and `attach` takes ports again. None: success.
    pub async fn close_ports(&self, pod: &PodId) -> Result<()> {
        let (leases, owner) = (self.leases.clone(), pod.clone());
        let closed = blocking(move || {
            let mut leases = lock(&leases);
            if leases.close(&owner).is_none() {
                return Ok(false);
            }
            // With its address only, for the next daemon too.
            let Some(network) = leases.seat(&owner).map(|seat| seat.network.clone()) else {
                return Ok(true);
            };
            leases.take(&owner, &network, &[]).map(|_| true)
        })
        .await?;
        if closed { self.open_ports().await } else { Ok(()) }
    }

    /// Brings the tables to what the leases say.
    pub(super) async fn open_ports(&self) -> Result<()> {
        let _alone = self.writing.lock().await;
        let ports = lock(&self.leases).ports();
        table::install(&self.table, &self.segments(), &ports).await
    }
}

/// UDP clients that were served by others go on with the pod.
pub(super) async fn take_flows_over(seat: &Seat, ports: &[HostPort]) {
    if !ports.iter().any(|port| port.protocol == Protocol::Udp) {
        return;
    }
    let (seat, ports) = (seat.clone(), ports.to_vec());
    let taken = async {
        let locals = Route::open()?.locals().await?;
        blocking(move || conntrack::take_over(&seat, &ports, &locals)).await
    };
    told(taken.await);
}

/// A kernel without nf_conntrack_netlink keeps flows until they rest; the port serves all others.
pub(super) fn told(deleted: Result<usize>) {
    match deleted {
        Ok(0) => {}
        Ok(count) => info!(count, "udp flows of a port of the node are cut: it leads elsewhere now"),
        Err(error) => {
            warn!(error = error.chain(), "udp clients of before may go on with who served them before")
        }
    }
}

/// Whether a port of the node is nobody's: the rules would take it from a server that listens there.
///
/// # Errors
/// `Precondition` where somebody listens; `Unimplemented` for ::1, which the kernel lets nobody lead elsewhere.
pub(super) fn is_nobodys(port: &HostPort) -> Result<()> {
    if let Some(IpAddr::V6(address)) = port.address
        && address.is_loopback()
    {
        return Err(Error::new(Kind::Unimplemented, "take port of the node", port.to_string())
            .because(Cause("what is sent to ::1 can't leave the node's loopback".into()))
            .hint("name 127.0.0.1, or no address"));
    }
    let addresses = match port.address {
        Some(address) => vec![address],
        None => vec![std::net::Ipv4Addr::UNSPECIFIED.into(), std::net::Ipv6Addr::UNSPECIFIED.into()],
    };
    let bind = |address: &IpAddr| {
        let at = (*address, port.host);
        match port.protocol {
            Protocol::Tcp => TcpListener::bind(at).map(drop),
            Protocol::Udp => UdpSocket::bind(at).map(drop),
            // The kernel may not have it at all; whoever listens keeps the node's own traffic.
            Protocol::Sctp => Ok(()),
        }
    };
    let no_family = |error: &std::io::Error| {
        port.address.is_none()
            && matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
    };
    let bound = addresses.iter().map(bind).find(|bound| bound.as_ref().is_err_and(|error| !no_family(error)));
    bound.unwrap_or(Ok(())).map_err(|error| {
        Error::new(Kind::Precondition, "take port of the node", format!("{}/{}", port.host, port.protocol))
            .because(error)
            .hint("something else listens there, or the address is not the node's: choose another port")
    })
}
