//! THE WIRE: what gives pods their network. Today the built-in bridge; CNI comes with its own issue. Knows no pod.

use std::{net::IpAddr, path::PathBuf};

use berth_launch::v1 as launch;

use crate::{Result, config, id::PodId};

/// The node's pod network: bridge, address allocator, masquerade.
#[derive(Debug)]
pub struct Network {}

/// What a pod got: its addresses and the instructions its sandbox shim carries out.
#[derive(Debug, Clone)]
pub struct Attachment {
    pub link: launch::Link,
    /// In order; the first is the pod's IP.
    pub ips: Vec<IpAddr>,
}

/// One interface's counters.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LinkStats {
    pub name: String,
    pub rx_bytes: u64,
    pub rx_errors: u64,
    pub tx_bytes: u64,
    pub tx_errors: u64,
}

impl Network {
    /// Makes or finds the bridge and the masquerade table and reads the allocator's state under `dir`.
    pub async fn open(config: &config::Network, dir: PathBuf) -> Result<Self> {
        todo!("{config:?} {dir:?}")
    }
    /// Ready, or why not, for CRI's NetworkReady.
    pub fn ready(&self) -> Result<(), String> {
        todo!()
    }
    /// "bridge berth0".
    pub fn describe(&self) -> String {
        todo!()
    }
    /// Takes addresses for a pod, durably, before anything uses them. Called again for the same pod: the same answer.
    pub async fn attach(&self, pod: &PodId) -> Result<Attachment> {
        todo!("{pod}")
    }
    /// Gives the addresses back once the pod's host link is gone (the netns was let go before). Absent: success.
    pub async fn release(&self, pod: &PodId) -> Result<()> {
        todo!("{pod}")
    }
    /// Pods that hold an address, for the reconcile at start.
    pub fn attached(&self) -> Vec<PodId> {
        todo!()
    }
    /// Counters of the pod's interface as the pod sees them (the host end's, swapped).
    pub fn stats(&self, pod: &PodId) -> Option<LinkStats> {
        todo!("{pod}")
    }
}
