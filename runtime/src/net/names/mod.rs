//! Names in the networks that people make: a small resolver at each gateway, port 53, for who is in that network.
//!
//! ```text
//! announce, withdraw ──> zone    who is called what, one for each network
//!                          ^
//! desk, one a gateway ── attend ─┬─ message   packets, which may be anybody's: hickory's reading and writing
//!   (udp, tcp)                   ├─ quota     how much is under way, for whom
//!                                └─ host      all other names: the node's resolvers
//! ```
//! A desk is one task: whatever it has under way goes with it. It is bound to the bridge, so that nobody speaks to it who
//! is not on that, and heeds senders of the network's own subnets.

mod attend;
mod desk;
mod host;
mod message;
mod quota;
mod zone;

use std::{
    collections::BTreeMap,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::sync::watch;

use self::{desk::Desk, host::Host, zone::Zone};
use super::{
    cni::Dns,
    lock,
    route::Link,
    segment::{Reach, Segment},
};
use crate::{Error, Result, id::PodId};

/// So long a question waits for a new daemon to know who is there; a libc asks again after five seconds.
const SETTLES_WITHIN: Duration = Duration::from_secs(4);

/// All names, and who answers for them. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Names(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    zones: Mutex<BTreeMap<String, Zone>>,
    desks: Mutex<BTreeMap<String, Vec<Desk>>>,
    /// Held while desks are opened or closed.
    opening: tokio::sync::Mutex<()>,
    /// Whether all have been announced who were there at the start.
    settled: watch::Sender<bool>,
    host: Host,
}

impl Names {
    /// `resolv_conf` says who answers for other names.
    ///
    /// # Errors
    /// `Invalid` for a path that is none.
    pub fn new(resolv_conf: &Path) -> Result<Self> {
        if !resolv_conf.is_absolute() {
            let object = format!("network.resolv_conf = {resolv_conf:?}");
            return Err(Error::invalid("read configuration", object, "it is no absolute path"));
        }
        Ok(Self(Arc::new(Inner {
            zones: Mutex::default(),
            desks: Mutex::default(),
            opening: tokio::sync::Mutex::default(),
            settled: watch::Sender::new(false),
            host: Host::new(PathBuf::from(resolv_conf)),
        })))
    }

    /// Opens a desk at each gateway of a network whose bridge is there; those that are open stay. Where one can't be
    /// opened `trouble` says why, and it is tried again, ever less often.
    pub async fn serve(&self, segment: &Segment, link: Link) {
        let _alone = self.0.opening.lock().await;
        let fits = |desk: &Desk| desk.link == link.index && segment.gateways().any(|at| at == desk.at);
        let (mut kept, others): (Vec<Desk>, Vec<Desk>) = {
            let mut desks = lock(&self.0.desks);
            desks.remove(&segment.name).unwrap_or_default().into_iter().partition(fits)
        };
        for other in others {
            other.close().await;
        }
        for at in segment.gateways() {
            if !kept.iter().any(|desk| desk.at == at) {
                kept.push(Desk::open(self, segment, at, link.index));
            }
        }
        lock(&self.0.desks).insert(segment.name.clone(), kept);
    }

    /// Closes the network's desks; their ports are free afterwards. None: success.
    pub async fn close(&self, network: &str) {
        let _alone = self.0.opening.lock().await;
        let desks = lock(&self.0.desks).remove(network).unwrap_or_default();
        for desk in desks {
            desk.close().await;
        }
        lock(&self.0.zones).remove(network);
    }

    /// From now on the pod is found by these names, in its network only. Again for the same pod: these, no others.
    pub fn announce(&self, network: &str, pod: &PodId, names: &[String], addresses: &[IpAddr]) {
        lock(&self.0.zones).entry(network.to_owned()).or_default().announce(pod, names, addresses);
    }

    /// From now on it is not. It never was: success.
    pub fn withdraw(&self, pod: &PodId) {
        lock(&self.0.zones).values_mut().for_each(|zone| zone.withdraw(pod));
    }

    /// All that were there at the start are announced: who is not known is nobody.
    pub fn settle(&self) {
        self.0.settled.send_replace(true);
    }

    async fn settled(&self) {
        let mut settled = self.0.settled.subscribe();
        // Past its time it is answered with what is known.
        tokio::time::timeout(SETTLES_WITHIN, settled.wait_for(|settled| *settled)).await.ok();
    }

    fn is_settled(&self) -> bool {
        *self.0.settled.borrow()
    }

    /// What the containers of a network are told: its gateways that answer, the node's search list, and to ask for a word
    /// without a dot as it is. None where no gateway answers: then they ask whom the node asks.
    pub async fn dns(&self, segment: &Segment) -> Option<Dns> {
        let servers: Vec<String> = {
            let desks = lock(&self.0.desks);
            let desks = desks.get(&segment.name).map(Vec::as_slice).unwrap_or_default();
            desks.iter().filter(|desk| desk.trouble().is_none()).map(|desk| desk.at.to_string()).collect()
        };
        if servers.is_empty() {
            return None;
        }
        let host = self.0.host.read().await;
        let mut options = host.options;
        options.retain(|option| !option.starts_with("ndots:"));
        options.push("ndots:0".into());
        Some(Dns { servers, searches: host.searches, options })
    }

    /// Why a network's names are not answered, or not at each gateway.
    pub fn trouble(&self, network: &str) -> Option<String> {
        let desks = lock(&self.0.desks);
        let told: Vec<String> = desks.get(network)?.iter().filter_map(Desk::trouble).collect();
        (!told.is_empty()).then(|| told.join("; "))
    }

    /// The same of all networks, a sentence each.
    pub fn troubles(&self) -> Vec<String> {
        let networks: Vec<String> = lock(&self.0.desks).keys().cloned().collect();
        let told = |network: String| Some(format!("network {network}: {}", self.trouble(&network)?));
        networks.into_iter().filter_map(told).collect()
    }

    /// What the network's zone says to a question; none: the name is not of it.
    fn answer(&self, segment: &Segment, query: &message::Query) -> Option<message::Answer> {
        let zones = lock(&self.0.zones);
        let nobody = Zone::default();
        let found = zones.get(&segment.name).unwrap_or(&nobody).answer(segment, query);
        match segment.reach {
            Reach::Everybody => found,
            // Nothing leaves it, questions neither: what is not known here is not there.
            Reach::Internal => found.or(Some(message::Answer::Unknown)),
        }
    }
}
