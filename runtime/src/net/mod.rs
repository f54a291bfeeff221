//! THE WIRE: what gives pods their network: plugins where the node has a CNI configuration, else the built-in bridge.
//! Knows no pod.
//!
//! ```text
//! Network ─┬─ cni      pods that a kubelet asks for, where there is a configuration in network.conf_dir
//!          └─ bridge   all others, and those of people; networks: choose, named   those that people make
//!               names                                          who is called what in those, answered at their gateways
//!               segment ── subnet ─┬─ pool ── lease ── leaving   who has which address, in memory and on disk
//!                                  ├─ route                      the bridge and the host ends of pods, by netlink
//!                                  ├─ table                      forwarding and nftables: the way out, the ports in
//!                                  └─ conntrack                  flows of a port that leads elsewhere now
//!          orphans                                               links and rules that no lease explains
//!
//! attach ──> the sandbox shim makes and pins the namespace ──> plug ──> … ──> unplug ──> it is let go ──> release
//! ```

mod bridge;
mod choose;
mod cni;
mod conntrack;
mod counters;
mod lease;
mod leaving;
mod named;
mod names;
mod networks;
mod orphans;
mod pool;
mod port;
mod publish;
mod route;
mod segment;
mod subnet;
mod table;

use std::{
    collections::BTreeMap,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use berth_launch::v1 as launch;
use tracing::{debug, warn};

use self::{
    bridge::Bridge,
    cni::{Bandwidth, Cni},
};
pub use self::{
    cni::{Dns, IPS, Wish},
    named::Made,
    networks::{NetworkView, NewNetwork},
    orphans::Stray,
    port::{HostPort, Protocol},
    segment::{DEFAULT, Reach, check_alias, check_name},
    subnet::{Family, Subnet},
};
use crate::{Error, Kind, Result, config, id::PodId};

/// The node's pod network.
#[derive(Debug)]
pub struct Network {
    bridge: Bridge,
    cni: Cni,
}

/// Whose network a pod is to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice<'a> {
    /// What the node is configured for: plugins, or the bridge where there are none. A handler may have plugins of its
    /// own, and then nothing else.
    Configured { handler: &'a str },
    /// A network of the built-in kind, whatever is configured.
    BuiltIn(&'a str),
}

/// What a pod will have: the bridge's part is instructions for its sandbox shim, the plugins' comes with `plug`.
#[derive(Debug, Clone)]
pub enum Attachment {
    Bridge {
        link: Box<launch::Link>,
        /// In order; the first is the pod's IP.
        ips: Vec<IpAddr>,
        /// What its resolv.conf says where it does not ask for something itself; none: what the node's says.
        dns: Option<Dns>,
    },
    Plugins(cni::Source),
}

/// One interface's counters.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LinkStats {
    pub name: String,
    pub rx_bytes: u64,
    pub rx_packets: u64,
    pub rx_errors: u64,
    pub rx_dropped: u64,
    pub tx_bytes: u64,
    pub tx_packets: u64,
    pub tx_errors: u64,
    pub tx_dropped: u64,
}

impl Network {
    /// Reads what there is under `dir`. Nothing is set up: `set_up`, or the first attach.
    ///
    /// # Errors
    /// `Invalid` for a configuration that can't be right; whatever keeps the records from being read.
    pub async fn open(
        config: &config::Network,
        handlers: &BTreeMap<String, config::Handler>,
        dir: PathBuf,
    ) -> Result<Self> {
        cni::checked(config)?;
        let bridge = Bridge::open(config, dir.clone()).await?;
        let (config, handlers) = (config.clone(), handlers.clone());
        let cni = blocking(move || Cni::open(&config, &handlers, &dir)).await?;
        Ok(Self { bridge, cni })
    }

    /// Sets the bridge up where it serves, and goes on with what was being removed. Once, before calls are answered; pods
    /// may be found again meanwhile.
    ///
    /// What can't be set up is told by `ready`, and pods on the host's network run.
    pub async fn set_up(&self) {
        match self.cni.serving().await {
            // Where plugins serve the bridge waits for somebody who wants it; its pods of before need it at once.
            Ok(source) if source.lists.is_empty() || !self.bridge.attached().is_empty() => {
                self.bridge.prepare().await;
            }
            Ok(_) => {}
            Err(error) => warn!(error = %error.chain(), "pods get no network"),
        }
        self.bridge.resume().await;
    }

    /// Ready, or why not, for CRI's NetworkReady. A bridge that could not be set up is tried again by the question.
    pub async fn ready(&self) -> Result<(), String> {
        let source = self.cni.serving().await.map_err(|error| error.chain())?;
        match source.lists.is_empty() {
            true => {
                self.bridge.try_again().await;
                self.bridge.ready()
            }
            false => self.cni.ready(&source).await,
        }
    }

    /// Handlers with networks of their own whose pods get none now, and why.
    pub async fn unready_handlers(&self) -> BTreeMap<String, String> {
        self.cni.unready_handlers().await
    }

    /// "bridge berth0", "cni calico".
    pub async fn describe(&self) -> String {
        match self.cni.serving().await {
            Ok(source) if source.lists.is_empty() => self.bridge.describe(),
            Ok(source) => {
                let names: Vec<String> = source.lists.into_iter().map(|list| list.name).collect();
                format!("cni {}", names.join(", "))
            }
            Err(_) => "cni, broken".into(),
        }
    }

    /// What could not be undone yet, a sentence each.
    pub fn troubles(&self) -> Vec<String> {
        let mut troubles = self.cni.troubles();
        troubles.extend(self.bridge.troubles());
        troubles
    }

    /// Finds what gives the pod its network; of the bridge, takes addresses and ports, durably, before anything uses
    /// them. Called again for the same pod: the same answer.
    ///
    /// # Errors
    /// `Unavailable` while the network can't be set up, `Exhausted` when every address is in use, `Precondition` where
    /// a port is taken. After an error the pod may hold some of it: `release`.
    pub async fn attach(&self, pod: &PodId, choice: Choice<'_>, wish: &Wish) -> Result<Attachment> {
        let (network, addresses) = match choice {
            Choice::Configured { handler } => {
                let source = self.cni.of_handler(handler).await?;
                if !source.lists.is_empty() {
                    return Ok(Attachment::Plugins(source));
                }
                (DEFAULT, Vec::new())
            }
            Choice::BuiltIn(network) => (network, wish.addresses()?),
        };
        let bandwidth = Bandwidth::of(&wish.annotations)?;
        let ask = bridge::Ask { network, addresses: &addresses, ports: &wish.ports, bandwidth };
        let bridge::Attachment { link, ips, dns } = self.bridge.attach(pod, ask).await?;
        Ok(Attachment::Bridge { link: Box::new(link), ips, dns })
    }

    /// Lets plugins do their part in the pinned namespace. The pod's addresses, in order.
    ///
    /// # Errors
    /// What a plugin said. After an error the pod may hold some of it: `unplug`.
    pub async fn plug(
        &self,
        pod: &PodId,
        attachment: Attachment,
        netns: &Path,
        wish: &Wish,
    ) -> Result<Vec<IpAddr>> {
        match attachment {
            Attachment::Bridge { ips, .. } => Ok(ips),
            Attachment::Plugins(source) => self.cni.plug(pod, netns.to_owned(), source, wish).await,
        }
    }

    /// In a network that somebody made, and nowhere else, the pod is found by these names from now on. The first is what
    /// its addresses are called.
    pub fn announce(&self, pod: &PodId, names: &[String]) {
        self.bridge.announce(pod, names);
    }

    /// From now on it is not. It never was: success.
    pub fn withdraw(&self, pod: &PodId) {
        self.bridge.names.withdraw(pod);
    }

    /// Lets plugins undo their part, before the namespace is let go. None of it there: success.
    ///
    /// # Errors
    /// What a plugin said, while the namespace is there; it is tried again in the background.
    pub async fn unplug(&self, pod: &PodId) -> Result<()> {
        self.cni.unplug(pod).await
    }

    /// Lets the ports of the node that lead into a pod of the bridge go; `attach` takes them again. None: success.
    pub async fn close_ports(&self, pod: &PodId) -> Result<()> {
        self.bridge.close_ports(pod).await
    }

    /// Gives the addresses of the bridge back once the namespace, which was let go before, is gone; nobody waits for
    /// that. Absent: success.
    pub async fn release(&self, pod: &PodId) -> Result<()> {
        self.bridge.release(pod).await
    }

    /// Makes a network for people's containers. After an error it is not there.
    ///
    /// # Errors
    /// `Invalid`, `AlreadyExists`, `Precondition` for addresses that somebody has, `Exhausted`, `Unavailable`.
    pub async fn create(&self, new: NewNetwork) -> Result<NetworkView> {
        self.bridge.create(new).await
    }

    /// Removes one that no pod is in.
    ///
    /// # Errors
    /// `NotFound`, or `Precondition` where it is in use or the node's own.
    pub async fn remove(&self, name: &str) -> Result<()> {
        self.bridge.remove(name).await
    }

    /// Networks of the built-in kind, the node's own first.
    pub fn networks(&self) -> Vec<NetworkView> {
        self.bridge.networks()
    }

    /// One of them.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn network(&self, name: &str) -> Result<NetworkView> {
        self.bridge.network(name)
    }

    /// Pods that hold something of the network, for the reconcile at start.
    pub fn attached(&self) -> Vec<PodId> {
        let mut pods = self.bridge.attached();
        pods.extend(self.cni.pods());
        pods.sort();
        pods.dedup();
        pods
    }

    /// Whether plugins have to undo something for the pod: they may take their time, or hang.
    pub fn has_plugins(&self, pod: &PodId) -> bool {
        self.cni.has(pod)
    }

    /// After a start, once all who were there are announced. In the background plugins check what is there and collect
    /// what is not.
    pub fn look_after(&self, living: Vec<PodId>) {
        self.bridge.names.settle();
        let cni = self.cni.clone();
        tokio::spawn(async move {
            cni.collect().await;
            for pod in living {
                if let Err(error) = cni.check(&pod).await {
                    warn!(pod = %pod, error = error.chain(), "a pod's network is not what its plugins made");
                }
            }
        });
    }

    /// Notes the node's ranges of pod addresses, for plugins that ask for them.
    pub async fn set_ranges(&self, ranges: Vec<String>) -> Result<()> {
        self.cni.set_ranges(ranges).await
    }

    /// Removes bridge and table, for tests and an uninstall. Leases stay; forwarding stays on.
    pub async fn dismantle(&self) -> Result<()> {
        self.bridge.dismantle().await
    }

    /// Counters of the pod's interfaces as the pod sees them, eth0 first; none of a pod without a network of its own.
    pub async fn stats(&self, pod: &PodId) -> Vec<LinkStats> {
        let Some(netns) = self.cni.netns(pod) else {
            return self.bridge.stats(pod).into_iter().collect();
        };
        counters::counters(&netns).await.unwrap_or_else(|error| {
            // It may have gone in this moment; whoever asks again in a moment finds out.
            debug!(pod = %pod, error = error.chain(), "a pod's traffic can't be counted");
            Vec::new()
        })
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome,
        Err(error) => Err(Error::new(Kind::Internal, "access leases", "").because(error)),
    }
}

/// No change under these locks stops half-way, so what a panic elsewhere left is still whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
