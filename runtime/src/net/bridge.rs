//! The built-in bridge: addresses from leases on disk, links by netlink, the ways out and in by one nftables table.
//!
//! A pod's veth pair is made by its sandbox shim from the `Link` in its `Attachment`; it goes with the pod's network
//! namespace. Here is only made sure that it has gone before its address is given to another.

use std::{
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use berth_launch::v1 as launch;
use tracing::warn;

use super::{
    LinkStats, blocking,
    lease::Leases,
    lock,
    port::{HostPort, Protocol},
    route::{self, Route},
    settings,
    subnet::Subnet,
    table,
};
use crate::{Error, Kind, Result, config, id::PodId};

/// How long the kernel may take to remove a link whose network namespace was let go; some 30 ms are usual.
const LINK_GOES_WITHIN: Duration = Duration::from_secs(3);
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LAST_PAUSE: Duration = Duration::from_millis(50);

/// Bridge, address allocator, masquerade.
#[derive(Debug)]
pub struct Bridge {
    config: config::Bridge,
    subnet: Subnet,
    state: Mutex<State>,
    leases: Arc<Mutex<Leases>>,
    /// Held from reading the ports until the table has them, so that no older list comes over a newer one.
    table: tokio::sync::Mutex<()>,
}

#[derive(Debug, Clone)]
enum State {
    Ready {
        /// The bridge's.
        index: u32,
    },
    /// Why, and what to do about it. The next attach tries again.
    Broken(String),
}

/// What a pod got: its addresses and the instructions its sandbox shim carries out.
#[derive(Debug, Clone)]
pub struct Attachment {
    pub link: launch::Link,
    /// In order; the first is the pod's IP.
    pub ips: Vec<IpAddr>,
}

impl Bridge {
    /// Reads the allocator's state under `dir`. Nothing is set up: `set_up` or the first attach does that.
    ///
    /// # Errors
    /// `Invalid` for a configuration that can't be right; whatever keeps the leases from being read.
    pub async fn open(config: &config::Bridge, dir: PathBuf) -> Result<Self> {
        let subnet = settings::check(config)?;
        let leases = blocking(move || Leases::open(&dir, subnet)).await?;
        Ok(Self {
            config: config.clone(),
            subnet,
            state: Mutex::new(State::Broken("not set up yet".into())),
            leases: Arc::new(Mutex::new(leases)),
            table: tokio::sync::Mutex::default(),
        })
    }

    /// Makes or finds the bridge and the table. One that can't be set up is told by `ready`; the next attach tries
    /// again.
    pub async fn prepare(&self) {
        if let Err(error) = self.ensure().await {
            warn!(error = %error.chain(), "pods get no network");
        }
    }

    /// Ready, or why not, for CRI's NetworkReady.
    pub fn ready(&self) -> Result<(), String> {
        match &*lock(&self.state) {
            State::Ready { .. } => Ok(()),
            State::Broken(why) => Err(why.clone()),
        }
    }

    /// "bridge berth0".
    pub fn describe(&self) -> String {
        format!("bridge {}", self.config.name)
    }

    /// Takes addresses and ports of the node for a pod, durably, before anything uses them. Called again for the same
    /// pod: the same answer.
    ///
    /// # Errors
    /// `Unavailable` while the network can't be set up, `Exhausted` when every address is in use, `Precondition` where
    /// a port is taken. After an error the pod may hold some of it: `release`.
    pub async fn attach(&self, pod: &PodId, ports: &[HostPort]) -> Result<Attachment> {
        let bridge_index = self.ensure().await?;
        let (leases, owner, wanted) = (self.leases.clone(), pod.clone(), ports.to_vec());
        let address = blocking(move || {
            let mut leases = lock(&leases);
            if leases.holds(&owner, &wanted).is_none() {
                wanted.iter().try_for_each(listens_nowhere)?;
            }
            leases.take(&owner, &wanted)
        })
        .await?;
        if !ports.is_empty() {
            self.open_ports().await?;
        }
        Ok(self.attachment(pod, address, bridge_index))
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
            leases.take(&owner, &[]).map(|_| true)
        })
        .await?;
        if closed { self.open_ports().await } else { Ok(()) }
    }

    /// Gives the addresses back once the pod's host link is gone (the netns was let go before). Absent: success.
    ///
    /// A link that stays is deleted after three seconds. After an error the pod holds its addresses still.
    pub async fn release(&self, pod: &PodId) -> Result<()> {
        let closed = lock(&self.leases).close(pod);
        if let Some(ports) = closed
            && let Err(error) = self.open_ports().await
        {
            // The table has them still: the next release has to close them.
            lock(&self.leases).reopen(pod, ports);
            return Err(error);
        }
        link_gone(&host_name(pod)).await?;
        let (leases, owner) = (self.leases.clone(), pod.clone());
        blocking(move || lock(&leases).give_back(&owner)).await
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
            name: settings::POD_LINK.to_owned(),
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

    /// Removes bridge and table, for tests and an uninstall. Leases stay; forwarding stays on.
    pub async fn dismantle(&self) -> Result<()> {
        *lock(&self.state) = State::Broken("dismantled".into());
        let table = table::remove(&self.config.table).await;
        let route = Route::open()?;
        if let Some(link) = route.link(&self.config.name).await? {
            route.delete(link, &self.config.name).await?;
        }
        table
    }

    /// The bridge's index, after setting up whatever is not there (any more). Two at once do the same thing twice.
    async fn ensure(&self) -> Result<u32> {
        let route = Route::open()?;
        let known = lock(&self.state).clone();
        if let State::Ready { index } = known {
            let found = route.link(&self.config.name).await?;
            if found.is_some_and(|link| link.index == index) {
                return Ok(index);
            }
        }
        let outcome = self.set_up(&route).await.map_err(|error| {
            Error::new(Kind::Unavailable, "set up pod network", self.describe()).because(error)
        });
        *lock(&self.state) = match &outcome {
            Ok(index) => State::Ready { index: *index },
            Err(error) => State::Broken(error.chain()),
        };
        outcome
    }

    async fn set_up(&self, route: &Route) -> Result<u32> {
        let link = route.bridge(&self.config, self.subnet).await?;
        self.open_ports().await?;
        Ok(link.index)
    }

    /// Brings the table to what the leases say.
    async fn open_ports(&self) -> Result<()> {
        let _alone = self.table.lock().await;
        let ports = lock(&self.leases).ports();
        table::install(&self.config, self.subnet, &ports).await
    }

    fn attachment(&self, pod: &PodId, address: Ipv4Addr, bridge_index: u32) -> Attachment {
        let link = launch::Link {
            host_name: host_name(pod),
            name: settings::POD_LINK.to_owned(),
            mtu: self.config.mtu,
            bridge_index,
            mac: route::mac(address).to_vec(),
            addresses: vec![launch::Address {
                ip: address.octets().to_vec(),
                prefix: u32::from(self.subnet.prefix()),
            }],
            routes: vec![launch::Route {
                to: Vec::new(),
                prefix: 0,
                via: self.subnet.gateway().octets().to_vec(),
            }],
            // A pod may reach itself through a service's address, once there are any.
            hairpin: true,
        };
        Attachment { link, ips: vec![address.into()] }
    }
}

/// Whether a port of the node is nobody's: the rules would take it from a server that listens there.
///
/// # Errors
/// `Precondition` where somebody listens.
fn listens_nowhere(port: &HostPort) -> Result<()> {
    let at = (port.address, port.host);
    let bound = match port.protocol {
        Protocol::Tcp => std::net::TcpListener::bind(at).map(drop),
        Protocol::Udp => std::net::UdpSocket::bind(at).map(drop),
        // The kernel may not have it at all; whoever listens keeps the node's own traffic.
        Protocol::Sctp => Ok(()),
    };
    bound.map_err(|error| {
        Error::new(Kind::Precondition, "take port of the node", format!("{}/{}", port.host, port.protocol))
            .because(error)
            .hint("something else listens there, or the address is not the node's: choose another port")
    })
}

/// The host end of a pod's pair: 14 bytes of the 15 that an interface's name may have.
fn host_name(pod: &PodId) -> String {
    format!("bth{}", &pod.as_str()[..11])
}

/// Waits until the kernel has removed a link, which it does some time after its namespace; then removes it itself.
async fn link_gone(name: &str) -> Result<()> {
    let route = Route::open()?;
    let until = Instant::now() + LINK_GOES_WITHIN;
    let mut pause = FIRST_PAUSE;
    while let Some(link) = route.link(name).await? {
        if Instant::now() >= until {
            warn!(
                link = name,
                "deleting a pod's link that outlived it: something holds its network namespace"
            );
            return route.delete(link, name).await;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LAST_PAUSE);
    }
    Ok(())
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
