//! The pools on disk: `<dir>/leases/<pod id>` holds the pod's network and addresses as text, and a line for each port of
//! the node that leads to it. Blocks.
//!
//! ```text
//! 10.88.0.2 fd0b:e47:88::2        of the default network; of another with `@name` at the end
//! tcp *:8080 80
//! ```
//! Written beside and renamed: a lease is there whole or not at all, whatever kills berthd. Not fsynced: only the end
//! of the kernel could lose it, and that takes the network namespaces that the addresses are in along.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Read},
    net::IpAddr,
    path::{Path, PathBuf},
};

use tracing::warn;

use super::{
    HostPort,
    pool::Pool,
    segment::{DEFAULT, Segment},
    subnet::Family,
};
use crate::{Error, Kind, Result, error::Cause, id::PodId};

/// The start of a file that is being written, which no pod id has.
const NEW: &str = ".new-";

#[derive(Debug)]
pub struct Leases {
    dir: PathBuf,
    /// Of each network, one for each of its subnets.
    pools: BTreeMap<String, Vec<Pool>>,
    seats: BTreeMap<PodId, Seat>,
    ports: BTreeMap<PodId, Vec<HostPort>>,
}

/// Where a pod is: in a network, at these addresses, IPv4 first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seat {
    pub network: String,
    pub addresses: Vec<IpAddr>,
}

impl Seat {
    pub fn of(&self, family: Family) -> Option<IpAddr> {
        self.addresses.iter().copied().find(|address| Family::of(*address) == family)
    }
}

impl Leases {
    /// Reads what is there. What can't be understood is moved to `<dir>/leases.aside`, with a warning.
    pub fn open(dir: &Path, segments: &[Segment]) -> Result<Self> {
        let leases = dir.join("leases");
        let failed = |error: io::Error| Error::io("read leases", leases.display().to_string(), error);
        fs::create_dir_all(&leases).map_err(failed)?;
        let mut opened = Self {
            dir: leases.clone(),
            pools: BTreeMap::new(),
            seats: BTreeMap::new(),
            ports: BTreeMap::new(),
        };
        segments.iter().for_each(|segment| opened.add(segment));
        for entry in fs::read_dir(&leases).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            if name.starts_with(NEW) {
                // berthd ended before the rename, so nobody got that address.
                fs::remove_file(&path).map_err(failed)?;
                continue;
            }
            if let Err(cause) = read(&path, &name).and_then(|lease| opened.restore(lease)) {
                set_aside(dir, &path, &name, &cause).map_err(failed)?;
            }
        }
        Ok(opened)
    }

    /// From now on there are places in this network.
    pub fn add(&mut self, segment: &Segment) {
        let pools = segment.subnets.iter().map(|subnet| Pool::new(*subnet)).collect();
        self.pools.insert(segment.name.clone(), pools);
    }

    /// From now on there are none.
    ///
    /// # Errors
    /// Who has one; then it stays.
    pub fn remove(&mut self, network: &str) -> Result<(), Vec<PodId>> {
        let of_network = self.seats.iter().filter(|(_, seat)| seat.network == network);
        let users: Vec<PodId> = of_network.map(|(pod, _)| pod.clone()).collect();
        if users.is_empty() {
            self.pools.remove(network);
            return Ok(());
        }
        Err(users)
    }

    /// The pod's place in the network, a new one or the one it has, and these ports of the node for it.
    ///
    /// # Errors
    /// `Exhausted` where no address is free, `Precondition` where another pod has one of the ports, or the network has
    /// no address for one.
    pub fn take(&mut self, pod: &PodId, network: &str, ports: &[HostPort]) -> Result<Seat> {
        self.take_at(pod, network, &[], ports)
    }

    /// The same at addresses that were asked for; of a family without one any address will do.
    ///
    /// # Errors
    /// Also `Invalid` for an address that the network does not have, `Precondition` for one that is in use.
    pub fn take_at(
        &mut self,
        pod: &PodId,
        network: &str,
        addresses: &[IpAddr],
        ports: &[HostPort],
    ) -> Result<Seat> {
        if let Some(seat) = self.holds(pod, network, ports) {
            return Ok(seat);
        }
        self.check(pod, ports)?;
        let held = self.held(pod, network);
        let seat = match held.clone() {
            Some(seat) => seat,
            None => self.next(network, addresses)?,
        };
        for port in ports {
            if !seat.addresses.iter().any(|address| port.is_of(Family::of(*address))) {
                return Err(Error::new(Kind::Precondition, "take port of the node", port.to_string())
                    .because(Cause(format!("network {network} has no subnet of that family")))
                    .hint("name an address of the other family, or none"));
            }
        }
        let (path, new) = (self.path(pod), self.dir.join(format!("{NEW}{pod}")));
        let written = fs::write(&new, text(&seat, ports)).and_then(|()| fs::rename(&new, &path));
        if let Err(error) = written {
            // The write's failure is the one to tell; what is left of it is swept at the next start.
            fs::remove_file(&new).ok();
            return Err(Error::io("write lease", path.display().to_string(), error));
        }
        if held.is_none() {
            self.free(pod);
            for (pool, address) in self.pools.get_mut(network).into_iter().flatten().zip(&seat.addresses) {
                pool.give(pod.clone(), *address);
            }
            self.seats.insert(pod.clone(), seat.clone());
        }
        self.ports.remove(pod);
        if !ports.is_empty() {
            self.ports.insert(pod.clone(), ports.to_vec());
        }
        Ok(seat)
    }

    /// Every port of the node that leads to a pod, with the pod's place.
    pub fn ports(&self) -> Vec<(Seat, HostPort)> {
        let with_seat = |(pod, ports): (&PodId, &Vec<HostPort>)| {
            let seat = self.seats.get(pod)?;
            Some(ports.iter().map(|port| (seat.clone(), *port)).collect::<Vec<_>>())
        };
        self.ports.iter().filter_map(with_seat).flatten().collect()
    }

    /// The pod's place in the network, where it has just these ports.
    pub fn holds(&self, pod: &PodId, network: &str, ports: &[HostPort]) -> Option<Seat> {
        let theirs = self.ports.get(pod).map_or(&[][..], Vec::as_slice);
        self.held(pod, network).filter(|_| theirs == ports)
    }

    /// The pod's place, if it is one of the subnets as they are now; of an earlier configuration's nothing is good.
    fn held(&self, pod: &PodId, network: &str) -> Option<Seat> {
        let pools = self.pools.get(network)?;
        let seat = self.seats.get(pod).filter(|seat| seat.network == network)?;
        let good = |address: &IpAddr| pools.iter().any(|pool| pool.held(pod) == Some(*address));
        seat.addresses.iter().all(good).then(|| seat.clone())
    }

    fn next(&self, network: &str, asked: &[IpAddr]) -> Result<Seat> {
        let pools = self.pools.get(network).ok_or_else(|| {
            Error::not_found("join network", network).hint("`berth network ls` shows those there are")
        })?;
        let of_family = |pool: &Pool, address: &IpAddr| Family::of(*address) == pool.subnet().family();
        if let Some(stray) = asked.iter().find(|address| !pools.iter().any(|pool| of_family(pool, address))) {
            let cause = format!("the network {network} has no subnet of that family");
            return Err(Error::invalid("take address", stray.to_string(), cause));
        }
        let address = |pool: &Pool| match asked.iter().find(|address| of_family(pool, address)) {
            Some(address) => pool.spare(*address),
            None => pool.next(),
        };
        let addresses = pools.iter().map(address).collect::<Result<_>>()?;
        Ok(Seat { network: network.into(), addresses })
    }

    fn restore(&mut self, lease: Lease) -> Result<(), String> {
        let Lease { pod, seat, ports } = lease;
        for address in &seat.addresses {
            if let Some(other) = self.seats.iter().find(|(_, other)| other.addresses.contains(address)) {
                return Err(format!("pod {} holds {address}", other.0.short()));
            }
        }
        for address in &seat.addresses {
            let pools = self.pools.get_mut(&seat.network).into_iter().flatten();
            let mut of_family = pools.filter(|pool| pool.subnet().family() == Family::of(*address));
            if let Some(pool) = of_family.next() {
                pool.restore(pod.clone(), *address);
            }
        }
        self.seats.insert(pod.clone(), seat);
        if !ports.is_empty() {
            self.ports.insert(pod, ports);
        }
        Ok(())
    }

    /// Lets the pod's ports go before its addresses, which it keeps. None where it had none.
    pub fn close(&mut self, pod: &PodId) -> Option<Vec<HostPort>> {
        self.ports.remove(pod)
    }

    /// Takes a `close` back.
    pub fn reopen(&mut self, pod: &PodId, ports: Vec<HostPort>) {
        self.ports.insert(pod.clone(), ports);
    }

    fn check(&self, pod: &PodId, ports: &[HostPort]) -> Result<()> {
        for (n, port) in ports.iter().enumerate() {
            let taken = |owner: String| {
                let shown = format!("{}/{}", port.host, port.protocol);
                Error::new(Kind::Precondition, "take port of the node", shown)
                    .because(Cause(format!("it leads to {owner} already")))
                    .hint("choose another one, or stop that pod")
            };
            if ports[..n].iter().any(|other| port.collides(other)) {
                return Err(taken("the same pod".into()));
            }
            let others = self.ports.iter().filter(|(other, _)| *other != pod);
            for (owner, theirs) in others {
                if theirs.iter().any(|other| port.collides(other)) {
                    return Err(taken(format!("pod {}", owner.short())));
                }
            }
        }
        Ok(())
    }

    /// Absent: success.
    pub fn give_back(&mut self, pod: &PodId) -> Result<()> {
        let path = self.path(pod);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::io("remove lease", path.display().to_string(), error))
            }
            Ok(()) | Err(_) => {
                self.ports.remove(pod);
                self.free(pod);
                Ok(())
            }
        }
    }

    fn free(&mut self, pod: &PodId) {
        self.pools.values_mut().flatten().for_each(|pool| pool.free(pod));
        self.seats.remove(pod);
    }

    /// Where the pod is, or was under an earlier configuration.
    pub fn seat(&self, pod: &PodId) -> Option<&Seat> {
        self.seats.get(pod)
    }

    pub fn pods(&self) -> Vec<PodId> {
        self.seats.keys().cloned().collect()
    }

    fn path(&self, pod: &PodId) -> PathBuf {
        self.dir.join(pod.as_str())
    }
}

struct Lease {
    pod: PodId,
    seat: Seat,
    ports: Vec<HostPort>,
}

fn text(seat: &Seat, ports: &[HostPort]) -> String {
    let mut words: Vec<String> = seat.addresses.iter().map(ToString::to_string).collect();
    if seat.network != DEFAULT {
        words.push(format!("@{}", seat.network));
    }
    let lines: String = ports.iter().map(|port| format!("{port}\n")).collect();
    format!("{}\n{lines}", words.join(" "))
}

fn read(path: &Path, name: &str) -> Result<Lease, String> {
    // A line has 60 bytes at most: room for every port there is.
    const LONGEST: u64 = 8 << 20;
    let pod = PodId::parse(name).map_err(|error| error.chain())?;
    let mut text = String::new();
    let file = fs::File::open(path).map_err(|error| error.to_string())?;
    file.take(LONGEST).read_to_string(&mut text).map_err(|error| error.to_string())?;
    let whole = text.strip_suffix('\n').ok_or_else(|| format!("{text:.64?} has no newline at its end"))?;
    let mut lines = whole.split('\n');
    let first = lines.next().unwrap_or_default();
    let (words, network) = first.split_once(" @").unwrap_or((first, DEFAULT));
    let addresses = words.split(' ').map(str::parse).collect::<Result<Vec<IpAddr>, _>>();
    let addresses = addresses.map_err(|_| format!("{text:.64?} begins with no address"))?;
    let ports = lines.map(str::parse).collect::<Result<_, _>>()?;
    Ok(Lease { pod, seat: Seat { network: network.into(), addresses }, ports })
}

fn set_aside(dir: &Path, path: &Path, name: &str, cause: &str) -> io::Result<()> {
    let aside = dir.join("leases.aside");
    fs::create_dir_all(&aside)?;
    let mut target = aside.join(name);
    let mut number = 1;
    while target.symlink_metadata().is_ok() {
        target = aside.join(format!("{name}.{number}"));
        number += 1;
    }
    warn!(lease = %path.display(), moved_to = %target.display(), cause, "lease set aside: it can't be understood");
    fs::rename(path, target)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::{segment::Reach, subnet::Subnet};

    fn segment(name: &str, subnets: &[&str]) -> Segment {
        Segment {
            name: name.into(),
            link: name.into(),
            subnets: subnets.iter().map(|text| Subnet::parse(text).unwrap()).collect(),
            mtu: 0,
            reach: Reach::Everybody,
        }
    }

    fn networks() -> [Segment; 2] {
        [segment(DEFAULT, &["10.9.0.0/28", "fd09::/64"]), segment("blue", &["10.9.1.0/30"])]
    }

    #[test]
    fn leases_outlive_the_daemon_and_are_stable_per_pod() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (PodId::random(), PodId::random());
        let mut leases = Leases::open(dir.path(), &networks()).unwrap();
        let first = leases.take(&one, DEFAULT, &[]).unwrap();
        assert_eq!(leases.take(&one, DEFAULT, &[]).unwrap(), first);
        let second = leases.take(&two, DEFAULT, &[]).unwrap();
        assert_ne!(first, second);

        let mut again = Leases::open(dir.path(), &networks()).unwrap();
        assert_eq!(again.pods().len(), 2);
        assert_eq!(
            (again.take(&one, DEFAULT, &[]).unwrap(), again.take(&two, DEFAULT, &[]).unwrap()),
            (first, second)
        );
        again.give_back(&one).unwrap();
        again.give_back(&one).unwrap();
        assert_eq!(Leases::open(dir.path(), &networks()).unwrap().pods(), [two]);
    }

    #[test]
    fn what_cannot_be_understood_is_set_aside_and_the_rest_served() {
        let dir = tempfile::tempdir().unwrap();
        let (good, twin, torn) = (PodId::random(), PodId::random(), PodId::random());
        let leases = dir.path().join("leases");
        fs::create_dir(&leases).unwrap();
        fs::write(leases.join(good.as_str()), "10.9.0.2\n").unwrap();
        fs::write(leases.join(torn.as_str()), "10.9.").unwrap();
        fs::write(leases.join("not-a-pod"), [0xff; 4096]).unwrap();
        fs::write(leases.join(format!("{NEW}{torn}")), "").unwrap();
        fs::create_dir(leases.join("directory")).unwrap();
        let opened = Leases::open(dir.path(), &networks()).unwrap();
        assert_eq!(opened.pods(), [good]);
        let mut aside: Vec<_> = fs::read_dir(dir.path().join("leases.aside"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        aside.sort();
        let mut expected = ["directory".to_owned(), "not-a-pod".to_owned(), torn.to_string()];
        expected.sort();
        assert_eq!(aside, expected);

        // The same name torn a second time overwrites nothing; nor does a second pod with the same address win.
        fs::write(leases.join(torn.as_str()), "").unwrap();
        fs::write(leases.join(twin.as_str()), "10.9.0.2\n").unwrap();
        assert_eq!(Leases::open(dir.path(), &networks()).unwrap().pods().len(), 1);
        assert_eq!(fs::read_dir(dir.path().join("leases.aside")).unwrap().count(), 5);
    }

    #[test]
    fn an_address_that_cannot_be_written_down_is_not_given() {
        let dir = tempfile::tempdir().unwrap();
        let mut leases = Leases::open(dir.path(), &networks()).unwrap();
        fs::remove_dir(dir.path().join("leases")).unwrap();
        assert!(leases.take(&PodId::random(), DEFAULT, &[]).is_err());
        assert!(leases.pods().is_empty());
    }

    #[test]
    fn a_port_of_the_node_has_one_pod_and_outlives_the_daemon() {
        let dir = tempfile::tempdir().unwrap();
        let port = |text: &str| text.parse::<HostPort>().unwrap();
        let (one, two) = (PodId::random(), PodId::random());
        let mut leases = Leases::open(dir.path(), &networks()).unwrap();
        let web = [port("tcp 0.0.0.0:80 8080"), port("udp 0.0.0.0:80 8080")];
        let address = leases.take(&one, DEFAULT, &web).unwrap();
        assert_eq!(leases.take(&one, DEFAULT, &web).unwrap(), address);
        let told: Vec<_> = address.addresses.iter().map(ToString::to_string).collect();
        assert_eq!(told, ["10.9.0.2", "fd09::2"]);
        for (pod, ports) in [(&two, [port("tcp 127.0.0.1:80 1")].as_slice()), (&one, &[web[0], web[0]])] {
            let error = leases.take(pod, DEFAULT, ports).unwrap_err();
            assert!(error.chain().contains("80/tcp: it leads to"), "{}", error.chain());
        }
        assert_eq!(leases.pods(), std::slice::from_ref(&one));

        let mut again = Leases::open(dir.path(), &networks()).unwrap();
        assert_eq!(again.ports(), web.map(|port| (address.clone(), port)));
        assert_eq!(again.holds(&one, DEFAULT, &web), Some(address));
        assert_eq!((again.close(&one), again.close(&one)), (Some(web.to_vec()), None));
        assert!(again.ports().is_empty() && again.holds(&one, DEFAULT, &web).is_none());
        again.take(&two, DEFAULT, &web).unwrap();
        again.give_back(&two).unwrap();
        again.take(&two, DEFAULT, &[]).unwrap();
        assert!(again.ports().is_empty());
    }
    #[test]
    fn a_pod_is_in_one_network_and_another_network_s_addresses_are_others() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (PodId::random(), PodId::random());
        let mut leases = Leases::open(dir.path(), &networks()).unwrap();
        let seat = leases.take(&one, "blue", &[]).unwrap();
        assert_eq!(seat.addresses, ["10.9.1.2".parse::<IpAddr>().unwrap()]);
        assert_eq!(leases.take(&two, "blue", &[]).unwrap_err().kind, Kind::Exhausted);
        assert_eq!(leases.take(&two, "green", &[]).unwrap_err().kind, Kind::NotFound);
        let six: HostPort = "tcp [::]:80 80".parse().unwrap();
        let error = leases.take(&one, "blue", &[six]).unwrap_err();
        assert!(error.chain().contains("no subnet of that family"), "{}", error.chain());
        let again = Leases::open(dir.path(), &networks()).unwrap();
        assert_eq!(again.seat(&one), Some(&seat));
        // The network is gone: what was in it is known still, and free once it is given back.
        let mut without = Leases::open(dir.path(), &networks()[..1]).unwrap();
        assert_eq!(without.pods(), std::slice::from_ref(&one));
        without.give_back(&one).unwrap();
        assert!(Leases::open(dir.path(), &networks()).unwrap().pods().is_empty());
    }

    #[test]
    fn a_network_goes_when_nobody_is_in_it_and_addresses_may_be_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (PodId::random(), PodId::random());
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let mut leases = Leases::open(dir.path(), &networks()[..1]).unwrap();
        let red = segment("red", &["10.9.2.0/24", "fd0a::/64"]);
        leases.add(&red);
        let seat = leases.take_at(&one, "red", &[ip("fd0a::9")], &[]).unwrap();
        assert_eq!(seat.addresses, [ip("10.9.2.2"), ip("fd0a::9")]);
        // Whoever has a place keeps it, whatever is asked for.
        assert_eq!(leases.take_at(&one, "red", &[ip("10.9.2.7")], &[]).unwrap(), seat);
        let refused = leases.take_at(&two, "red", &[ip("10.9.2.2")], &[]).unwrap_err();
        assert!(
            refused.kind == Kind::Precondition && refused.chain().contains(one.short()),
            "{}",
            refused.chain()
        );
        leases.add(&segment("green", &["10.9.3.0/24"]));
        let refused = leases.take_at(&two, "green", &[ip("fd0a::9")], &[]).unwrap_err();
        assert!(refused.chain().contains("no subnet of that family"), "{}", refused.chain());
        assert_eq!(leases.remove("red"), Err(vec![one.clone()]));
        assert_eq!(leases.remove("green"), Ok(()));
        assert_eq!(leases.take(&two, "green", &[]).unwrap_err().kind, Kind::NotFound);
        leases.give_back(&one).unwrap();
        assert_eq!((leases.remove("red"), leases.remove("red")), (Ok(()), Ok(())));
    }

    #[test]
    fn a_lease_of_before_there_was_ipv6_is_good_still() {
        let dir = tempfile::tempdir().unwrap();
        let pod = PodId::random();
        fs::create_dir(dir.path().join("leases")).unwrap();
        let old = "10.9.0.7\ntcp 0.0.0.0:80 8080\n";
        fs::write(dir.path().join("leases").join(pod.as_str()), old).unwrap();
        let mut leases = Leases::open(dir.path(), &networks()).unwrap();
        let ports = ["tcp 0.0.0.0:80 8080".parse().unwrap()];
        let seat = leases.take(&pod, DEFAULT, &ports).unwrap();
        assert_eq!(seat.addresses, ["10.9.0.7".parse::<IpAddr>().unwrap()]);
    }
}
