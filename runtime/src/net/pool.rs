//! Who has which address. Pure: `lease` makes it durable.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::subnet::Subnet;
use crate::{Error, Kind, Result, id::PodId};

/// The addresses of a subnet and the pods that hold them.
#[derive(Debug)]
pub struct Pool {
    subnet: Subnet,
    by_pod: BTreeMap<PodId, IpAddr>,
    taken: BTreeSet<IpAddr>,
    /// A freed address rests as long as it can: its last owner is still in others' caches.
    last: IpAddr,
}

impl Pool {
    pub fn new(subnet: Subnet) -> Self {
        Self { subnet, by_pod: BTreeMap::new(), taken: BTreeSet::new(), last: subnet.gateway() }
    }

    /// Puts a pod back that held an address before; `false` where another holds that one.
    pub fn restore(&mut self, pod: PodId, address: IpAddr) -> bool {
        if !self.taken.insert(address) {
            return false;
        }
        if self.subnet.has(address) {
            self.last = self.last.max(address);
        }
        self.by_pod.insert(pod, address);
        true
    }

    /// The pod's address if it has one of this subnet; leases of an earlier subnet are not good any more.
    pub fn held(&self, pod: &PodId) -> Option<IpAddr> {
        self.by_pod.get(pod).copied().filter(|address| self.subnet.has(*address))
    }

    /// The first free address after the last one given.
    ///
    /// # Errors
    /// `Exhausted` says how many are in use.
    pub fn next(&self) -> Result<IpAddr> {
        let mut candidate = self.last;
        // At most one more than there are taken: capacity may be a number that nobody counts to.
        for _ in 0..self.subnet.capacity() {
            candidate = self.subnet.after(candidate);
            if !self.taken.contains(&candidate) {
                return Ok(candidate);
            }
        }
        let held = self.taken.iter().filter(|address| self.subnet.has(**address)).count();
        Err(Error::new(Kind::Exhausted, "allocate address", self.subnet.to_string())
            .because(crate::error::Cause(format!("all {held} addresses for pods are in use")))
            .hint("remove pods, or give the network a larger subnet"))
    }

    /// Whether this very address can be given.
    ///
    /// # Errors
    /// `Invalid` for one that is no pod's, `Precondition` for one that is in use.
    pub fn spare(&self, address: IpAddr) -> Result<IpAddr> {
        const OP: &str = "take address";
        if !self.subnet.has(address) {
            let cause = format!("it is not one of {} that a pod can have", self.subnet);
            return Err(Error::invalid(OP, address.to_string(), cause));
        }
        match self.by_pod.iter().find(|(_, held)| **held == address) {
            Some((pod, _)) => Err(Error::new(Kind::Precondition, OP, address.to_string())
                .because(crate::error::Cause(format!("pod {} has it", pod.short())))
                .hint("choose another one, or none")),
            None => Ok(address),
        }
    }

    /// Gives an address that `next` or `spare` named.
    pub fn give(&mut self, pod: PodId, address: IpAddr) {
        self.free(&pod);
        self.last = address;
        self.taken.insert(address);
        self.by_pod.insert(pod, address);
    }

    pub fn free(&mut self, pod: &PodId) {
        if let Some(address) = self.by_pod.remove(pod) {
            self.taken.remove(&address);
        }
    }

    pub fn subnet(&self) -> Subnet {
        self.subnet
    }

    #[cfg(test)]
    fn pods(&self) -> Vec<PodId> {
        self.by_pod.keys().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pod(number: u8) -> PodId {
        PodId::parse(&format!("{number:064x}")).unwrap()
    }

    #[test]
    fn a_freed_address_is_given_again_last() {
        for subnet in ["10.9.0.0/29", "fd09::/125"] {
            given_again_last(Subnet::parse(subnet).unwrap());
        }
    }

    fn given_again_last(subnet: Subnet) {
        let mut pool = Pool::new(subnet);
        let take = |pool: &mut Pool, number| {
            let address = pool.next().unwrap();
            pool.give(pod(number), address);
            match address {
                IpAddr::V4(ip) => ip.octets()[3],
                IpAddr::V6(ip) => ip.octets()[15],
            }
        };
        assert_eq!([take(&mut pool, 1), take(&mut pool, 2)], [2, 3]);
        pool.free(&pod(1));
        assert_eq!([3, 4, 5, 6].map(|number| take(&mut pool, number)), [4, 5, 6, 2]);
        let error = pool.next().unwrap_err();
        assert_eq!(error.kind, Kind::Exhausted);
        assert!(error.chain().contains("all 5 addresses"), "{}", error.chain());
    }

    #[test]
    fn an_address_that_is_asked_for_is_given_once() {
        let mut pool = Pool::new(Subnet::parse("10.9.0.0/29").unwrap());
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        pool.give(pod(1), pool.spare(ip("10.9.0.5")).unwrap());
        for (address, kind) in [
            ("10.9.0.5", Kind::Precondition),
            ("10.9.0.1", Kind::Invalid),
            ("10.9.0.7", Kind::Invalid),
            ("10.8.0.2", Kind::Invalid),
            ("fd09::2", Kind::Invalid),
        ] {
            assert_eq!(pool.spare(ip(address)).unwrap_err().kind, kind, "{address}");
        }
        // The next ones go round it.
        for number in 2..=5 {
            let address = pool.next().unwrap();
            assert_ne!(address, ip("10.9.0.5"));
            pool.give(pod(number), address);
        }
        assert_eq!(pool.next().unwrap_err().kind, Kind::Exhausted);
    }

    #[test]
    fn leases_of_another_subnet_are_known_but_not_good() {
        let mut pool = Pool::new(Subnet::parse("10.9.0.0/29").unwrap());
        assert!(pool.restore(pod(1), "172.16.0.9".parse().unwrap()));
        assert_eq!((pool.held(&pod(1)), pool.pods()), (None, vec![pod(1)]));
        assert!(!pool.restore(pod(2), "172.16.0.9".parse().unwrap()));
        assert_eq!(pool.next().unwrap().to_string(), "10.9.0.2");
    }

    proptest! {
        #[test]
        fn no_address_is_given_twice_and_all_are_pods_addresses(
            prefix in 27u8..=30,
            steps in prop::collection::vec((any::<bool>(), 0u8..40), 0..200),
        ) {
            let subnet = Subnet::parse(&format!("10.9.0.0/{prefix}")).unwrap();
            let mut pool = Pool::new(subnet);
            let mut model: BTreeMap<PodId, IpAddr> = BTreeMap::new();
            for (take, number) in steps {
                let pod = pod(number);
                if !take {
                    pool.free(&pod);
                    model.remove(&pod);
                } else if pool.held(&pod).is_none() {
                    match pool.next() {
                        Ok(address) => {
                            prop_assert!(subnet.has(address));
                            prop_assert!(!model.values().any(|held| *held == address));
                            pool.give(pod.clone(), address);
                            model.insert(pod, address);
                        }
                        Err(error) => {
                            prop_assert_eq!(error.kind, Kind::Exhausted);
                            prop_assert_eq!(model.len() as u128, subnet.capacity());
                        }
                    }
                }
                prop_assert_eq!(pool.pods(), model.keys().cloned().collect::<Vec<_>>());
                for (pod, address) in &model {
                    prop_assert_eq!(pool.held(pod), Some(*address));
                }
            }
        }
    }
}
