//! Names that no other daemon on this machine has, so that tests may run side by side.

use std::{
    fs::{self, DirBuilder},
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
    /// Takes the first free number and makes the directory.
    pub fn claim() -> Self {
        let (number, claim) = (0..4096)
            .find_map(|number| Some((number, bind(number)?)))
            .expect("fewer than 4096 test daemons run at once");
        let name = format!("btt-{}-{number}", process::id());
        let dir = PathBuf::from("/tmp").join(&name);
        // What an earlier test of this process left was told already.
        fs::remove_dir_all(&dir).ok();
        DirBuilder::new().mode(0o711).create(&dir).unwrap_or_else(|error| panic!("make {name}: {error}"));
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
