//! The built-in bridge: addresses from leases on disk, links by netlink, the ways out and in by one nftables table.
//!
//! A pod's veth pair is made by its sandbox shim from the `Link` in its `Attachment`; it goes with the pod's network
//! namespace, some time after that was let go. `leaving` waits for that, so that nobody else has to, and only then its
//! address is free.

use std::{
    collections::BTreeMap,
    net::{IpAddr, TcpListener, UdpSocket},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use berth_launch::v1 as launch;
use tracing::{info, warn};

use super::{
    LinkStats, blocking,
    cni::Bandwidth,
    conntrack,
    lease::{Leases, Seat},
    leaving::Leaving,
    lock,
    port::{HostPort, Protocol},
    route::{self, Route},
    segment::{self, DEFAULT, Segment},
    subnet::Family,
    table,
};
use crate::{Error, Kind, Result, config, error::Cause, id::PodId};

/// Bridges, address allocator, masquerade.
#[derive(Debug)]
pub struct Bridge {
    table: String,
    segments: Mutex<BTreeMap<String, Known>>,
    leases: Arc<Mutex<Leases>>,
    leaving: Leaving,
    /// Held from reading the ports until the tables have them, so that no older list comes over a newer one.
    writing: tokio::sync::Mutex<()>,
}

/// A network and how far it is set up.
#[derive(Debug, Clone)]
struct Known {
    segment: Segment,
    state: State,
}

#[derive(Debug, Clone)]
enum State {
    /// With its bridge as it was made or found.
    Ready(route::Link),
    /// Why, and what to do about it. The next attach tries again.
    Broken(String),
}

impl Known {
    fn new(segment: Segment) -> Self {
        Self { segment, state: State::Broken("not set up yet".into()) }
    }
}

/// What a pod got: its addresses and the instructions its sandbox shim carries out.
#[derive(Debug, Clone)]
pub struct Attachment {
    pub link: launch::Link,
    /// In order; the first is the pod's IP.
    pub ips: Vec<IpAddr>,
}

impl Bridge {
    /// Reads the allocator's state under `dir`. Nothing is set up: `prepare` or the first attach does that.
    ///
    /// # Errors
    /// `Invalid` for a configuration that can't be right; whatever keeps the leases from being read.
    pub async fn open(config: &config::Bridge, dir: PathBuf) -> Result<Self> {
        let mut default = Segment::configured(config)?;
        if default.of(Family::V6).is_some() && !table::has_ipv6() {
            info!("the node's kernel has no IPv6, so pods have none");
            default.subnets.retain(|subnet| subnet.family() == Family::V4);
        }
        let segments = [default];
        let of_start = segments.clone();
        let leases = Arc::new(Mutex::new(blocking(move || Leases::open(&dir, &of_start)).await?));
        let known = |segment: Segment| (segment.name.clone(), Known::new(segment));
        Ok(Self {
            table: config.table.clone(),
            segments: Mutex::new(segments.into_iter().map(known).collect()),
            leaving: Leaving::new(Arc::clone(&leases)),
            leases,
            writing: tokio::sync::Mutex::default(),
        })
    }

    /// Makes or finds the bridge and the tables. One that can't be set up is told by `ready`; the next attach tries
    /// again.
    pub async fn prepare(&self) {
        if let Err(error) = self.ensure(DEFAULT).await {
            warn!(error = %error.chain(), "pods get no network");
        }
    }

    /// Ready, or why not, for CRI's NetworkReady.
    pub fn ready(&self) -> Result<(), String> {
        match lock(&self.segments).get(DEFAULT).map(|known| known.state.clone()) {
            Some(State::Ready(_)) => Ok(()),
            Some(State::Broken(why)) => Err(why),
            None => Err("there is no network".into()),
        }
    }

    /// "bridge berth0".
    pub fn describe(&self) -> String {
        let segments = lock(&self.segments);
        format!("bridge {}", segments.get(DEFAULT).map_or("", |known| known.segment.link.as_str()))
    }

    /// Takes addresses of a network and ports of the node for a pod, durably, before anything uses them. Called again
    /// for the same pod: the same answer.
    ///
    /// # Errors
    /// `Unavailable` while the network can't be set up, `Exhausted` when every address is in use, `Precondition` where
    /// a port is taken. After an error the pod may hold some of it: `release`.
    pub async fn attach(
        &self,
        pod: &PodId,
        network: &str,
        ports: &[HostPort],
        bandwidth: Bandwidth,
    ) -> Result<Attachment> {
        let (segment, bridge) = self.ensure(network).await?;
        self.leaving.left(pod).await;
        let seat = loop {
            match self.take(pod, network, ports).await {
                // Those who are leaving make room in a moment.
                Err(error) if error.kind == Kind::Exhausted && self.leaving.one_left().await => {}
                outcome => break outcome?,
            }
        };
        if !ports.is_empty() {
            self.open_ports().await?;
            take_flows_over(&seat, ports).await;
        }
        Ok(attachment(pod, &seat, &segment, bridge, bandwidth))
    }

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

    /// Lets the pod's ports go at once, and in the background its addresses, once its host link is gone (the netns was
    /// let go before). Absent: success.
    ///
    /// A link that stays is deleted after three seconds. After an error the pod holds all of it still.
    pub async fn release(&self, pod: &PodId) -> Result<()> {
        let (seat, closed) = {
            let mut leases = lock(&self.leases);
            let Some(seat) = leases.seat(pod).cloned() else { return Ok(()) };
            (seat, leases.close(pod))
        };
        if let Some(ports) = closed {
            if let Err(error) = self.open_ports().await {
                // The table has them still: the next release has to close them.
                lock(&self.leases).reopen(pod, ports);
                return Err(error);
            }
            if ports.iter().any(|port| port.protocol == Protocol::Udp) {
                told(blocking(move || conntrack::forget(&seat)).await);
            }
        }
        self.leaving.begin(pod, vec![host_name(pod)]);
        Ok(())
    }

    /// What could not be undone yet, a sentence each.
    pub fn troubles(&self) -> Vec<String> {
        self.leaving.troubles()
    }

    /// Pods that hold an address, for the reconcile at start.
    pub fn attached(&self) -> Vec<PodId> {
        lock(&self.leases).pods()
    }

    /// Counters of the pod's interface as the pod sees them (the host end's, swapped).
    pub fn stats(&self, pod: &PodId) -> Option<LinkStats> {
        let dir = Path::new("/sys/class/net").join(host_name(pod)).join("statistics");
        let counter = |name: &str| std::fs::read_to_string(dir.join(name)).ok()?.trim().parse().ok();
        Some(LinkStats {
            name: segment::POD_LINK.to_owned(),
            rx_bytes: counter("tx_bytes")?,
            rx_packets: counter("tx_packets")?,
            rx_errors: counter("tx_errors")?,
            rx_dropped: counter("tx_dropped")?,
            tx_bytes: counter("rx_bytes")?,
            tx_packets: counter("rx_packets")?,
            tx_errors: counter("rx_errors")?,
            tx_dropped: counter("rx_dropped")?,
        })
    }

    /// Removes bridges and tables, for tests and an uninstall. Leases stay; forwarding stays on.
    pub async fn dismantle(&self) -> Result<()> {
        let mut outcome = table::remove(&self.table).await;
        let route = Route::open()?;
        for segment in self.segments() {
            self.note(&segment.name, State::Broken("dismantled".into()));
            if let Some(link) = route.link(&segment.link).await? {
                outcome = outcome.and(route.delete(link, &segment.link).await);
            }
        }
        outcome
    }

    fn segments(&self) -> Vec<Segment> {
        lock(&self.segments).values().map(|known| known.segment.clone()).collect()
    }

    fn note(&self, network: &str, state: State) {
        if let Some(known) = lock(&self.segments).get_mut(network) {
            known.state = state;
        }
    }

    /// The network and its bridge, after setting up whatever is not there (any more). Two at once do the same thing
    /// twice.
    async fn ensure(&self, network: &str) -> Result<(Segment, route::Link)> {
        let known = lock(&self.segments).get(network).cloned();
        let Some(Known { segment, state }) = known else {
            return Err(Error::not_found("join network", network)
                .because(Cause("no network of that name was created".into()))
                .hint("`berth network ls` shows those there are"));
        };
        let route = Route::open()?;
        if let State::Ready(link) = state {
            let found = route.link(&segment.link).await?;
            if found.is_some_and(|found| found.index == link.index) {
                return Ok((segment, link));
            }
        }
        let set_up = async {
            let link = route.bridge(&segment).await?;
            self.open_ports().await?;
            Ok(link)
        };
        let outcome = set_up.await.map_err(|error: Error| {
            Error::new(Kind::Unavailable, "set up pod network", format!("bridge {}", segment.link))
                .because(error)
        });
        let state = match &outcome {
            Ok(link) => State::Ready(*link),
            Err(error) => State::Broken(error.chain()),
        };
        self.note(network, state);
        outcome.map(|link| (segment, link))
    }

    /// Brings the tables to what the leases say.
    async fn open_ports(&self) -> Result<()> {
        let _alone = self.writing.lock().await;
        let ports = lock(&self.leases).ports();
        table::install(&self.table, &self.segments(), &ports).await
    }

    async fn take(&self, pod: &PodId, network: &str, ports: &[HostPort]) -> Result<Seat> {
        let (leases, owner, wanted) = (Arc::clone(&self.leases), pod.clone(), ports.to_vec());
        let network = network.to_owned();
        blocking(move || {
            let mut leases = lock(&leases);
            if leases.holds(&owner, &network, &wanted).is_none() {
                wanted.iter().try_for_each(is_nobodys)?;
            }
            leases.take(&owner, &network, &wanted)
        })
        .await
    }
}

fn attachment(
    pod: &PodId,
    seat: &Seat,
    segment: &Segment,
    bridge: route::Link,
    bandwidth: Bandwidth,
) -> Attachment {
    let with_subnet = |address: &IpAddr| Some((*address, segment.of(Family::of(*address))?));
    let places: Vec<_> = seat.addresses.iter().filter_map(with_subnet).collect();
    let octets = |address: IpAddr| match address {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let link = launch::Link {
        host_name: host_name(pod),
        name: segment::POD_LINK.to_owned(),
        mtu: bridge.mtu,
        bridge_index: bridge.index,
        mac: seat.addresses.first().map(|address| route::mac(*address).to_vec()).unwrap_or_default(),
        addresses: places
            .iter()
            .map(|(ip, subnet)| launch::Address { ip: octets(*ip), prefix: subnet.prefix().into() })
            .collect(),
        routes: places
            .iter()
            .filter(|_| segment.reach == segment::Reach::Everybody)
            .map(|(_, subnet)| launch::Route { to: Vec::new(), prefix: 0, via: octets(subnet.gateway()) })
            .collect(),
        // A pod may reach itself through a service's address, once there are any.
        hairpin: true,
        ingress_bits: bandwidth.ingress.unwrap_or(0),
        egress_bits: bandwidth.egress.unwrap_or(0),
    };
    Attachment { link, ips: seat.addresses.clone() }
}

/// UDP clients that were served by others go on with the pod.
async fn take_flows_over(seat: &Seat, ports: &[HostPort]) {
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
fn told(deleted: Result<usize>) {
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
fn is_nobodys(port: &HostPort) -> Result<()> {
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

/// The host end of a pod's pair: 14 bytes of the 15 that an interface's name may have.
fn host_name(pod: &PodId) -> String {
    format!("bth{}", &pod.as_str()[..11])
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
