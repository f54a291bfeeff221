//! The pool on disk: `<dir>/leases/<pod id>` holds the pod's address as text, and a line for each port of the node that
//! leads to it. Blocks.
//!
//! Written beside and renamed: a lease is there whole or not at all, whatever kills berthd. Not fsynced: only the end
//! of the kernel could lose it, and that takes the network namespaces that the addresses are in along.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Read},
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use tracing::warn;

use super::{HostPort, pool::Pool, subnet::Subnet};
use crate::{Error, Kind, Result, error::Cause, id::PodId};

/// The start of a file that is being written, which no pod id has.
const NEW: &str = ".new-";

#[derive(Debug)]
pub struct Leases {
    dir: PathBuf,
    pool: Pool,
    ports: BTreeMap<PodId, Vec<HostPort>>,
}

impl Leases {
    /// Reads what is there. What can't be understood is moved to `<dir>/leases.aside`, with a warning.
    pub fn open(dir: &Path, subnet: Subnet) -> Result<Self> {
        let leases = dir.join("leases");
        let failed = |error: io::Error| Error::io("read leases", leases.display().to_string(), error);
        fs::create_dir_all(&leases).map_err(failed)?;
        let mut pool = Pool::new(subnet);
        let mut ports = BTreeMap::new();
        for entry in fs::read_dir(&leases).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            if name.starts_with(NEW) {
                // berthd ended before the rename, so nobody got that address.
                fs::remove_file(&path).map_err(failed)?;
                continue;
            }
            let outcome =
                read(&path, &name).and_then(|lease| match pool.restore(lease.pod.clone(), lease.address) {
                    true if lease.ports.is_empty() => Ok(()),
                    true => {
                        ports.insert(lease.pod, lease.ports);
                        Ok(())
                    }
                    false => Err(format!("another pod holds {}", lease.address)),
                });
            if let Err(cause) = outcome {
                set_aside(dir, &path, &name, &cause).map_err(failed)?;
            }
        }
        Ok(Self { dir: leases, pool, ports })
    }

    /// The pod's address, a new one or the one it has, and these ports of the node for it.
    ///
    /// # Errors
    /// `Exhausted` where no address is free, `Precondition` where another pod has one of the ports.
    pub fn take(&mut self, pod: &PodId, ports: &[HostPort]) -> Result<Ipv4Addr> {
        if let Some(address) = self.holds(pod, ports) {
            return Ok(address);
        }
        self.check(pod, ports)?;
        let held = self.pool.held(pod);
        let address = held.map_or_else(|| self.pool.next(), Ok)?;
        let (path, new) = (self.path(pod), self.dir.join(format!("{NEW}{pod}")));
        let lines: String = ports.iter().map(|port| format!("{port}\n")).collect();
        let written = fs::write(&new, format!("{address}\n{lines}")).and_then(|()| fs::rename(&new, &path));
        if let Err(error) = written {
            // The write's failure is the one to tell; what is left of it is swept at the next start.
            fs::remove_file(&new).ok();
            return Err(Error::io("write lease", path.display().to_string(), error));
        }
        if held.is_none() {
            self.pool.give(pod.clone(), address);
        }
        self.ports.remove(pod);
        if !ports.is_empty() {
            self.ports.insert(pod.clone(), ports.to_vec());
        }
        Ok(address)
    }

    /// Every port of the node that leads to a pod, with the pod's address.
    pub fn ports(&self) -> Vec<(Ipv4Addr, HostPort)> {
        let with_address = |(pod, ports): (&PodId, &Vec<HostPort>)| {
            let address = self.pool.held(pod)?;
            Some(ports.iter().map(|port| (address, *port)).collect::<Vec<_>>())
        };
        self.ports.iter().filter_map(with_address).flatten().collect()
    }

    /// The pod's address, where it has just these ports.
    pub fn holds(&self, pod: &PodId, ports: &[HostPort]) -> Option<Ipv4Addr> {
        let theirs = self.ports.get(pod).map_or(&[][..], Vec::as_slice);
        self.pool.held(pod).filter(|_| theirs == ports)
    }

    /// Lets the pod's ports go before its address, which it keeps. None where it had none.
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
                self.pool.free(pod);
                Ok(())
            }
        }
    }

    pub fn pods(&self) -> Vec<PodId> {
        self.pool.pods()
    }

    fn path(&self, pod: &PodId) -> PathBuf {
        self.dir.join(pod.as_str())
    }
}

struct Lease {
    pod: PodId,
    address: Ipv4Addr,
    ports: Vec<HostPort>,
}

fn read(path: &Path, name: &str) -> Result<Lease, String> {
    // A line has 30 bytes at most: room for every port there is.
    const LONGEST: u64 = 4 << 20;
    let pod = PodId::parse(name).map_err(|error| error.chain())?;
    let mut text = String::new();
    let file = fs::File::open(path).map_err(|error| error.to_string())?;
    file.take(LONGEST).read_to_string(&mut text).map_err(|error| error.to_string())?;
    let whole = text.strip_suffix('\n').ok_or_else(|| format!("{text:.64?} has no newline at its end"))?;
    let mut lines = whole.split('\n');
    let address = lines.next().and_then(|line| line.parse().ok());
    let address = address.ok_or_else(|| format!("{text:.64?} begins with no address"))?;
    let ports = lines.map(str::parse).collect::<Result<_, _>>()?;
    Ok(Lease { pod, address, ports })
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

    fn subnet() -> Subnet {
        Subnet::parse("10.9.0.0/28").unwrap()
    }

    #[test]
    fn leases_outlive_the_daemon_and_are_stable_per_pod() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (PodId::random(), PodId::random());
        let mut leases = Leases::open(dir.path(), subnet()).unwrap();
        let first = leases.take(&one, &[]).unwrap();
        assert_eq!(leases.take(&one, &[]).unwrap(), first);
        let second = leases.take(&two, &[]).unwrap();
        assert_ne!(first, second);

        let mut again = Leases::open(dir.path(), subnet()).unwrap();
        assert_eq!(again.pods().len(), 2);
        assert_eq!((again.take(&one, &[]).unwrap(), again.take(&two, &[]).unwrap()), (first, second));
        again.give_back(&one).unwrap();
        again.give_back(&one).unwrap();
        assert_eq!(Leases::open(dir.path(), subnet()).unwrap().pods(), [two]);
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
        let opened = Leases::open(dir.path(), subnet()).unwrap();
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
        assert_eq!(Leases::open(dir.path(), subnet()).unwrap().pods().len(), 1);
        assert_eq!(fs::read_dir(dir.path().join("leases.aside")).unwrap().count(), 5);
    }

    #[test]
    fn an_address_that_cannot_be_written_down_is_not_given() {
        let dir = tempfile::tempdir().unwrap();
        let mut leases = Leases::open(dir.path(), subnet()).unwrap();
        fs::remove_dir(dir.path().join("leases")).unwrap();
        assert!(leases.take(&PodId::random(), &[]).is_err());
        assert!(leases.pods().is_empty());
    }

    #[test]
    fn a_port_of_the_node_has_one_pod_and_outlives_the_daemon() {
        let dir = tempfile::tempdir().unwrap();
        let port = |text: &str| text.parse::<HostPort>().unwrap();
        let (one, two) = (PodId::random(), PodId::random());
        let mut leases = Leases::open(dir.path(), subnet()).unwrap();
        let web = [port("tcp 0.0.0.0:80 8080"), port("udp 0.0.0.0:80 8080")];
        let address = leases.take(&one, &web).unwrap();
        assert_eq!(leases.take(&one, &web).unwrap(), address);
        for (pod, ports) in [(&two, [port("tcp 127.0.0.1:80 1")].as_slice()), (&one, &[web[0], web[0]])] {
            let error = leases.take(pod, ports).unwrap_err();
            assert!(error.chain().contains("80/tcp: it leads to"), "{}", error.chain());
        }
        assert_eq!(leases.pods(), std::slice::from_ref(&one));

        let mut again = Leases::open(dir.path(), subnet()).unwrap();
        assert_eq!(again.ports(), web.map(|port| (address, port)));
        assert_eq!(again.holds(&one, &web), Some(address));
        assert_eq!((again.close(&one), again.close(&one)), (Some(web.to_vec()), None));
        assert!(again.ports().is_empty() && again.holds(&one, &web).is_none());
        again.take(&two, &web).unwrap();
        again.give_back(&two).unwrap();
        again.take(&two, &[]).unwrap();
        assert!(again.ports().is_empty());
    }
}
