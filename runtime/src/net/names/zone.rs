//! Who is called what in one network. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::message::{Answer, Asked, Query};
use crate::{id::PodId, net::segment::Segment};

#[derive(Debug, Default)]
pub struct Zone {
    pods: BTreeMap<PodId, Entry>,
    /// In lower case.
    by_name: BTreeMap<String, BTreeSet<PodId>>,
    by_address: BTreeMap<IpAddr, PodId>,
}

#[derive(Debug)]
struct Entry {
    names: Vec<String>,
    addresses: Vec<IpAddr>,
}

impl Zone {
    /// Puts a pod in, under these names and no others; the first is what its addresses are called.
    pub fn announce(&mut self, pod: &PodId, names: &[String], addresses: &[IpAddr]) {
        self.withdraw(pod);
        let names: Vec<String> = names.iter().map(|name| name.to_ascii_lowercase()).collect();
        for name in &names {
            self.by_name.entry(name.clone()).or_default().insert(pod.clone());
        }
        self.by_address.extend(addresses.iter().map(|address| (*address, pod.clone())));
        self.pods.insert(pod.clone(), Entry { names, addresses: addresses.to_vec() });
    }

    /// Takes it out. Absent: success.
    pub fn withdraw(&mut self, pod: &PodId) {
        let Some(Entry { names, addresses }) = self.pods.remove(pod) else { return };
        for name in names {
            if let Some(pods) = self.by_name.get_mut(&name) {
                pods.remove(pod);
                if pods.is_empty() {
                    self.by_name.remove(&name);
                }
            }
        }
        for address in addresses {
            if self.by_address.get(&address) == Some(pod) {
                self.by_address.remove(&address);
            }
        }
    }

    /// What it says to a question; none: the name is not of this network.
    pub fn answer(&self, segment: &Segment, query: &Query) -> Option<Answer> {
        if let Some(address) = query.pointer() {
            return self.name_of(segment, address);
        }
        let addresses = self.addresses(segment, &query.name()?)?;
        let wanted = |address: &IpAddr| match query.asked() {
            Asked::Ipv4 => address.is_ipv4(),
            Asked::Ipv6 => address.is_ipv6(),
            Asked::Any => true,
            Asked::Other => false,
        };
        Some(Answer::Addresses(addresses.into_iter().filter(wanted).collect()))
    }

    /// By one of their names, or that with the network's behind it, as with docker.
    fn addresses(&self, segment: &Segment, name: &str) -> Option<Vec<IpAddr>> {
        let suffix = format!(".{}", segment.name.to_ascii_lowercase());
        let found = self.by_name.get(name);
        let found = found.or_else(|| self.by_name.get(name.strip_suffix(&suffix)?));
        let entries = found?.iter().filter_map(|pod| self.pods.get(pod));
        Some(entries.flat_map(|entry| entry.addresses.iter().copied()).collect())
    }

    /// Of an address that is the network's own nobody else knows anything.
    fn name_of(&self, segment: &Segment, address: IpAddr) -> Option<Answer> {
        if !segment.subnets.iter().any(|subnet| subnet.contains(address)) {
            return None;
        }
        let entry = self.by_address.get(&address).and_then(|pod| self.pods.get(pod));
        let names = entry.map(|entry| entry.names.as_slice()).unwrap_or_default();
        let full = names.iter().map(|name| format!("{name}.{}", segment.name));
        // A name may be too long for DNS; the id never is.
        let mut writable = full.filter(|name| super::message::is_writable(name));
        Some(writable.next().map_or(Answer::Unknown, Answer::Name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::{segment::Reach, subnet::Subnet};

    fn segment() -> Segment {
        Segment {
            name: "Blue".into(),
            link: "btn0".into(),
            subnets: ["10.9.0.0/24", "fd09::/64"].map(|text| Subnet::parse(text).unwrap()).to_vec(),
            mtu: 0,
            reach: Reach::Everybody,
        }
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn put(zone: &mut Zone, names: &[&str], addresses: &[&str]) -> PodId {
        let pod = PodId::random();
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let addresses: Vec<IpAddr> = addresses.iter().map(|text| ip(text)).collect();
        zone.announce(&pod, &names, &addresses);
        pod
    }

    fn ask(zone: &Zone, name: &str, kind: &str) -> Option<Answer> {
        zone.answer(&segment(), &Query::of(name, kind))
    }

    #[test]
    fn each_name_answers_with_all_who_have_it_by_family_whatever_its_case() {
        let mut zone = Zone::default();
        let one = put(&mut zone, &["Web", "a", "0123456789ab"], &["10.9.0.2", "fd09::2"]);
        put(&mut zone, &["db", "a"], &["10.9.0.3"]);
        let answer = |texts: &[&str]| Some(Answer::Addresses(texts.iter().map(|text| ip(text)).collect()));
        assert_eq!(ask(&zone, "web", "A"), answer(&["10.9.0.2"]));
        assert_eq!(ask(&zone, "WEB.blue", "AAAA"), answer(&["fd09::2"]));
        assert_eq!(ask(&zone, "0123456789AB", "ANY"), answer(&["10.9.0.2", "fd09::2"]));
        // There, with nothing of that kind: no other server is to say that it is not.
        assert_eq!(ask(&zone, "db", "AAAA"), answer(&[]));
        assert_eq!(ask(&zone, "db", "MX"), answer(&[]));
        let Some(Answer::Addresses(both)) = ask(&zone, "a", "A") else { panic!("no addresses") };
        assert_eq!(BTreeSet::from_iter(both), BTreeSet::from([ip("10.9.0.2"), ip("10.9.0.3")]));
        for other in ["nobody", "web.red", "x.web", "blue", "."] {
            assert_eq!(ask(&zone, other, "A"), None, "{other}");
        }
        zone.withdraw(&one);
        zone.withdraw(&one);
        assert_eq!((ask(&zone, "web", "A"), ask(&zone, "a", "A")), (None, answer(&["10.9.0.3"])));
        assert_eq!(zone.by_name.len() + zone.by_address.len(), 3);
    }

    #[test]
    fn addresses_of_the_network_have_names_or_none_and_others_are_not_ours() {
        let mut zone = Zone::default();
        put(&mut zone, &["web"], &["10.9.0.2", "fd09::2"]);
        put(&mut zone, &[&"x".repeat(64), "0123456789ab"], &["10.9.0.3"]);
        let named = |name: &str| Some(Answer::Name(name.into()));
        assert_eq!(ask(&zone, "2.0.9.10.in-addr.arpa", "PTR"), named("web.Blue"));
        assert_eq!(ask(&zone, "3.0.9.10.in-addr.arpa", "PTR"), named("0123456789ab.Blue"));
        let six = format!("2.{}9.0.d.f.ip6.arpa", "0.".repeat(27));
        assert_eq!(ask(&zone, &six, "PTR"), named("web.Blue"));
        assert_eq!(ask(&zone, "9.0.9.10.in-addr.arpa", "PTR"), Some(Answer::Unknown));
        assert_eq!(ask(&zone, "2.0.8.10.in-addr.arpa", "PTR"), None);
        assert_eq!(ask(&zone, "0.9.10.in-addr.arpa", "PTR"), None);
    }

    #[test]
    fn a_pod_that_is_announced_again_has_its_new_names_only() {
        let mut zone = Zone::default();
        let pod = put(&mut zone, &["old"], &["10.9.0.2"]);
        zone.announce(&pod, &["new".into()], &[ip("10.9.0.3")]);
        assert_eq!((ask(&zone, "old", "A"), zone.by_name.len(), zone.by_address.len()), (None, 1, 1));
        // Its old address is another's before it is withdrawn.
        let other = put(&mut zone, &["other"], &["10.9.0.3"]);
        zone.withdraw(&pod);
        assert_eq!(zone.by_address.get(&ip("10.9.0.3")), Some(&other));
    }
}
