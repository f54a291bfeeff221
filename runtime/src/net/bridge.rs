//! The built-in bridge: addresses from leases on disk, links by netlink, the ways out and in by one nftables table.
//!
//! A pod's veth pair is made by its sandbox shim from the `Link` in its `Attachment`; it goes with the pod's network
//! namespace, some time after that was let go. `leaving` waits for that, so that nobody else has to, and only then its
//! address is free.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use berth_launch::v1 as launch;
use tracing::{info, warn};

use super::{
    LinkStats, blocking,
    cni::{Bandwidth, Dns},
    conntrack,
    lease::{Leases, Seat},
    leaving::Leaving,
    lock,
    named::{Made, Named, Shelf},
    names::Names,
    port::{HostPort, Protocol},
    publish::{is_nobodys, take_flows_over, told},
    route::{self, Route},
    segment::{self, DEFAULT, Segment},
    subnet::{Family, Subnet},
    table,
};
use crate::{Error, Kind, Result, config, error::Cause, id::PodId};

/// Bridges, address allocator, masquerade.
#[derive(Debug)]
pub struct Bridge {
    pub(super) table: String,
    /// Where networks that ask for no subnet get theirs, one pool of a family.
    pub(super) pools: Vec<Subnet>,
    pub(super) segments: Mutex<BTreeMap<String, Known>>,
    pub(super) shelf: Shelf,
    /// By name, networks that are being made or removed, or could not wholly be.
    pub(super) going: Mutex<BTreeMap<String, Named>>,
    /// Held while a network is made or removed.
    pub(super) changing: tokio::sync::Mutex<()>,
    pub(super) leases: Arc<Mutex<Leases>>,
    pub(super) leaving: Leaving,
    pub(super) names: Names,
    /// Held while what is not ready is tried again.
    trying: tokio::sync::Mutex<()>,
    /// Held from reading the ports until the tables have them, so that no older list comes over a newer one.
    pub(super) writing: tokio::sync::Mutex<()>,
}

/// A network and how far it is set up.
#[derive(Debug, Clone)]
pub struct Known {
    pub segment: Segment,
    pub state: State,
    /// None: it is the node's own.
    pub made: Option<Made>,
}

#[derive(Debug, Clone)]
pub enum State {
    /// With its bridge as it was made or found.
    Ready(route::Link),
    /// Why, and what to do about it.
    Broken(String),
}

impl Known {
    fn new(segment: Segment, made: Option<Made>) -> Self {
        Self { segment, state: State::Broken("not set up yet".into()), made }
    }
}

/// What a pod asks for.
#[derive(Debug, Clone, Copy)]
pub struct Ask<'a> {
    pub network: &'a str,
    /// Those that it is to have; of a family without one any will do.
    pub addresses: &'a [IpAddr],
    pub ports: &'a [HostPort],
    pub bandwidth: Bandwidth,
}

/// What a pod got: its addresses and the instructions its sandbox shim carries out.
#[derive(Debug, Clone)]
pub struct Attachment {
    pub link: launch::Link,
    /// In order; the first is the pod's IP.
    pub ips: Vec<IpAddr>,
    /// Whom it asks for names, where the network itself has an answer.
    pub dns: Option<Dns>,
}

impl Bridge {
    /// Reads networks and the allocator's state under `dir`. Nothing is set up: `prepare`, `resume` or the first attach
    /// does that.
    ///
    /// # Errors
    /// `Invalid` for a configuration that can't be right; whatever keeps the records from being read.
    pub async fn open(config: &config::Network, dir: PathBuf) -> Result<Self> {
        let mut default = Segment::configured(&config.bridge)?;
        let mut pools = pools(config)?;
        let names = Names::new(&config.resolv_conf)?;
        let at = dir.clone();
        let (shelf, mut found) = blocking(move || Shelf::open(&at)).await?;
        if !table::has_ipv6() {
            only_ipv4(&mut pools);
            let named = found.there.iter_mut().map(|named| &mut named.segment);
            for segment in named.chain([&mut default]) {
                if only_ipv4(&mut segment.subnets) {
                    info!(network = segment.name, "the node's kernel has no IPv6, so pods have none");
                }
            }
        }
        let mut segments = BTreeMap::from([(default.name.clone(), Known::new(default, None))]);
        for Named { made, segment } in found.there {
            segments.insert(segment.name.clone(), Known::new(segment, Some(made)));
        }
        let of_start: Vec<Segment> = segments.values().map(|known| known.segment.clone()).collect();
        let leases = Arc::new(Mutex::new(blocking(move || Leases::open(&dir, &of_start)).await?));
        let going = found.going.into_iter().map(|named| (named.segment.name.clone(), named));
        Ok(Self {
            table: config.bridge.table.clone(),
            pools,
            segments: Mutex::new(segments),
            shelf,
            going: Mutex::new(going.collect()),
            changing: tokio::sync::Mutex::default(),
            leaving: Leaving::new(Arc::clone(&leases)),
            names,
            leases,
            trying: tokio::sync::Mutex::default(),
            writing: tokio::sync::Mutex::default(),
        })
    }

    /// Makes or finds the bridge and the tables. One that can't be set up is told by `ready`; the next attach tries
    /// again, as `try_again` does.
    pub async fn prepare(&self) {
        if let Err(error) = self.ensure(DEFAULT).await {
            warn!(error = %error.chain(), "pods get no network");
        }
    }

    /// Tries again what could not be set up, one at a time: while a network is not ready no kubelet asks for a pod.
    pub async fn try_again(&self) {
        let Err(before) = self.ready() else { return };
        let Ok(_alone) = self.trying.try_lock() else { return };
        match self.ensure(DEFAULT).await {
            Ok(_) => info!("pods get a network now"),
            Err(error) if error.chain() != before => warn!(error = %error.chain(), "pods get no network"),
            Err(_) => {}
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
    pub async fn attach(&self, pod: &PodId, ask: Ask<'_>) -> Result<Attachment> {
        let Ask { network, ports, bandwidth, .. } = ask;
        let (segment, bridge) = self.ensure(network).await?;
        self.leaving.left(pod).await;
        let seat = loop {
            match self.take(pod, ask).await {
                // Those who are leaving make room in a moment.
                Err(error) if error.kind == Kind::Exhausted && self.leaving.one_left().await => {}
                outcome => break outcome?,
            }
        };
        if !ports.is_empty() {
            self.open_ports().await?;
            take_flows_over(&seat, ports).await;
        }
        let dns = self.names.dns(&segment).await;
        Ok(Attachment { dns, ..attachment(pod, &seat, &segment, bridge, bandwidth) })
    }

    /// Lets the pod's ports go at once, and in the background its addresses, once its host link is gone (the netns was
    /// let go before). Absent: success.
    ///
    /// A link that stays is deleted after three seconds. After an error the pod holds all of it still.
    pub async fn release(&self, pod: &PodId) -> Result<()> {
        self.names.withdraw(pod);
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
        let mut troubles = self.leaving.troubles();
        troubles.extend(self.names.troubles());
        troubles
    }

    /// The pod, of a network that somebody made, is found there by these names, the first before all. Of another, or none:
    /// nothing.
    pub fn announce(&self, pod: &PodId, names: &[String]) {
        let seat = lock(&self.leases).seat(pod).cloned();
        if let Some(seat) = seat.filter(|seat| seat.network != DEFAULT) {
            self.names.announce(&seat.network, pod, names, &seat.addresses);
        }
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
            self.names.close(&segment.name).await;
            if let Some(link) = route.link(&segment.link).await? {
                outcome = outcome.and(route.delete(link, &segment.link).await);
            }
        }
        outcome
    }

    pub(super) fn segments(&self) -> Vec<Segment> {
        lock(&self.segments).values().map(|known| known.segment.clone()).collect()
    }

    fn note(&self, network: &str, state: State) {
        if let Some(known) = lock(&self.segments).get_mut(network) {
            known.state = state;
        }
    }

    /// The network and its bridge, after setting up whatever is not there (any more). Two at once do the same thing
    /// twice.
    pub(super) async fn ensure(&self, network: &str) -> Result<(Segment, route::Link)> {
        let known = lock(&self.segments).get(network).cloned();
        let Some(Known { segment, state, .. }) = known else {
            return Err(Error::not_found("join network", network)
                .because(Cause("no network of that name was created".into()))
                .hint("`berth network ls` shows those there are"));
        };
        let route = Route::open()?;
        if let State::Ready(link) = state {
            let found = route.link(&segment.link).await?;
            if found.is_some_and(|found| found.index == link.index) {
                self.serve(&segment, link).await;
                return Ok((segment, link));
            }
        }
        let set_up = async {
            let link = route.bridge(&segment, &self.alias(&segment)).await?;
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
        let link = outcome?;
        self.serve(&segment, link).await;
        Ok((segment, link))
    }

    /// Answers for the names of a network that somebody made.
    pub(super) async fn serve(&self, segment: &Segment, link: route::Link) {
        if segment.name != DEFAULT {
            self.names.serve(segment, link).await;
        }
    }

    /// What people see beside the name of a network's bridge.
    pub(super) fn alias(&self, segment: &Segment) -> String {
        let segments = lock(&self.segments);
        match segments.get(DEFAULT) {
            Some(default) if segment.name != DEFAULT => {
                format!("{}: network {}", default.segment.link, segment.name)
            }
            Some(_) | None => String::new(),
        }
    }

    async fn take(&self, pod: &PodId, ask: Ask<'_>) -> Result<Seat> {
        let (leases, owner, network) = (Arc::clone(&self.leases), pod.clone(), ask.network.to_owned());
        let (addresses, wanted) = (ask.addresses.to_vec(), ask.ports.to_vec());
        blocking(move || {
            let mut leases = lock(&leases);
            if leases.holds(&owner, &network, &wanted).is_none() {
                wanted.iter().try_for_each(is_nobodys)?;
            }
            leases.take_at(&owner, &network, &addresses, &wanted)
        })
        .await
    }
}

/// Leaves IPv4 alone; whether anything went.
fn only_ipv4(subnets: &mut Vec<Subnet>) -> bool {
    let before = subnets.len();
    subnets.retain(|subnet| subnet.family() == Family::V4);
    before > subnets.len()
}

/// Where networks that ask for no subnet get theirs.
///
/// # Errors
/// `Invalid` names the key.
fn pools(config: &config::Network) -> Result<Vec<Subnet>> {
    let mut pools = Vec::new();
    for (key, text, family) in [("pool", &config.pool, Family::V4), ("pool6", &config.pool6, Family::V6)] {
        if family == Family::V6 && text.is_empty() {
            continue;
        }
        let invalid =
            |cause: String| Error::invalid("read configuration", format!("network.{key} = {text:?}"), cause);
        let pool = Subnet::parse(text).map_err(invalid)?;
        if pool.family() != family {
            return Err(invalid("it is of the other family".into()));
        }
        pools.push(pool);
    }
    Ok(pools)
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
    Attachment { link, ips: seat.addresses.clone(), dns: None }
}

/// The host end of a pod's pair: 14 bytes of the 15 that an interface's name may have.
pub(super) fn host_name(pod: &PodId) -> String {
    format!("bth{}", &pod.as_str()[..11])
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
