//! Names that no other daemon on this machine has, so that tests may run side by side.

use std::{
    fs::DirBuilder,
    io,
    os::{
        linux::net::SocketAddrExt,
        unix::{
            fs::DirBuilderExt,
            net::{SocketAddr, UnixListener},
        },
    },
    path::PathBuf,
    process,
};

/// Where a daemon lives. The directory is short: socket paths have 107 bytes.
#[derive(Debug)]
pub struct Place {
    /// Distinguishes all of it: `btt-<pid>-<number>`.
    pub name: String,
    pub dir: PathBuf,
    /// CIDR.
    pub subnet: String,
    /// The same of IPv6.
    pub subnet6: String,
    /// CIDR that networks of the test's own are in: four of 256 addresses.
    pub pool: String,
    /// The same of IPv6.
    pub pool6: String,
    /// Absolute as berthd takes it: `/btt-<pid>-<number>`.
    pub cgroup_parent: String,
    /// Held while the number is ours; the kernel lets it go with the process.
    _claim: UnixListener,
}

impl Place {
    /// Takes the first free number and makes the directory. One that is there may be another's, who is process 1 of another
    /// PID namespace and has taken the number in another network namespace.
    pub fn claim() -> Self {
        let take = |number| {
            let claim = bind(number)?;
            let name = format!("btt-{}-{number}", process::id());
            let dir = PathBuf::from("/tmp").join(&name);
            match DirBuilder::new().mode(0o711).create(&dir) {
                Ok(()) => Some((number, claim, name, dir)),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => None,
                Err(error) => panic!("make {name}: {error}"),
            }
        };
        let free = (0..4096).find_map(take);
        let (number, claim, name, dir) = free.expect("fewer than 4096 test daemons run at once");
        let subnet = format!("10.{}.{}.0/24", 160 + number / 256, number % 256);
        // From 1 on: a zero is not shown.
        let subnet6 = format!("fd0b:e480:{:x}::/64", number + 1);
        // Of the range for carriers' own networks, as many as there are places.
        let pool = format!("100.{}.{}.0/22", 64 + number / 64, number % 64 * 4);
        let pool6 = format!("fd0b:e482:{:x}::/48", number + 1);
        Self { cgroup_parent: format!("/{name}"), name, dir, subnet, subnet6, pool, pool6, _claim: claim }
    }

    pub fn root(&self) -> PathBuf {
        self.dir.join("lib")
    }

    pub fn state(&self) -> PathBuf {
        self.dir.join("run")
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.join("run/berth.sock")
    }

    pub fn bridge(&self) -> &str {
        &self.name
    }

    pub fn table(&self) -> String {
        self.name.replace('-', "_")
    }
}

fn bind(number: u32) -> Option<UnixListener> {
    let name = format!("berth-tests-{number}");
    let address = SocketAddr::from_abstract_name(name).expect("a short name without NUL is an address");
    UnixListener::bind_addr(&address).ok()
}
