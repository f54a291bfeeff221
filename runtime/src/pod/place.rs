//! Where things are, and the small files a pod's containers see.
//!
//! ```text
//! <root>/pods/<id>/record                 <state>/pods/<id>/{ns/net,ns/ipc,ns/uts,ns/pid,ns/user,shm,resolv.conf,hosts,hostname}
//! <root>/containers/<id>/{record,exit,upper,work}   <state>/containers/<id>/{s,live,rootfs,shim.log}
//!                                         <state>/stories/<pod id>
//! ```

use std::{
    ffi::OsString,
    fs, io,
    net::IpAddr,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
};

use berth_cri::v1 as cri;
use rustix::mount::{UnmountFlags, unmount};

use crate::{
    Error, Result, config,
    id::{ContainerId, PodId},
};

#[derive(Debug, Clone)]
pub struct Places {
    pub root: PathBuf,
    pub state: PathBuf,
}

impl Places {
    pub fn new(config: &config::Daemon) -> Self {
        Self { root: config.root.clone(), state: config.state.clone() }
    }

    pub fn pods(&self) -> PathBuf {
        self.root.join("pods")
    }
    pub fn containers(&self) -> PathBuf {
        self.root.join("containers")
    }
    pub fn pod_record(&self, pod: &PodId) -> PathBuf {
        self.pods().join(pod.as_str())
    }
    pub fn pod_dir(&self, pod: &PodId) -> PathBuf {
        self.state.join("pods").join(pod.as_str())
    }
    pub fn container_record(&self, container: &ContainerId) -> PathBuf {
        self.containers().join(container.as_str())
    }
    pub fn container_dir(&self, container: &ContainerId) -> PathBuf {
        self.state.join("containers").join(container.as_str())
    }
    /// What `berth explain` tells, one file for each pod.
    pub fn stories(&self) -> PathBuf {
        self.state.join("stories")
    }
    pub fn pin(&self, pod: &PodId, kind: &str) -> PathBuf {
        self.pod_dir(pod).join(berth_launch::PINS).join(kind)
    }
}

/// Makes a directory and those above it.
pub fn make(directory: &Path) -> Result<()> {
    // Where it is there, nothing is asked of the disk: one that is frozen would keep whoever asks.
    if directory.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(directory)
        .map_err(|error| Error::io("make directory", directory.display().to_string(), error))
}

/// A shim that is on its way out writes two files and renames one, perhaps into a directory that is just being emptied.
const LAST_WORDS: usize = 5;

/// Removes a tree that nothing is mounted in; absent is success.
pub fn remove(directory: &Path) -> Result<()> {
    for tries in (0..LAST_WORDS).rev() {
        match fs::remove_dir_all(directory) {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty && tries > 0 => {}
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Error::io("remove", directory.display().to_string(), error));
            }
            _ => break,
        }
    }
    Ok(())
}

/// Lets a pod's pinned namespaces and its shared memory go. The kernel takes the rest: links, addresses, routes.
pub fn unpin(pod_dir: &Path) -> Result<()> {
    let mut pinned = vec![pod_dir.join("shm")];
    if let Ok(entries) = fs::read_dir(pod_dir.join(berth_launch::PINS)) {
        pinned.extend(entries.flatten().map(|entry| entry.path()));
    }
    unmount_each(pinned)
}

fn unmount_each(places: impl IntoIterator<Item = PathBuf>) -> Result<()> {
    for path in places {
        match unmount(&path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            // Not mounted, or not there: let go already.
            Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {}
            Err(errno) => return Err(Error::io("unmount", path.display().to_string(), errno)),
        }
    }
    Ok(())
}

/// Lets go of what a shim has mounted for an OCI runtime of the host, and of what that has mounted for itself where it
/// keeps its state: runsc binds a namespace there. In most directories there is nothing.
pub fn unmount_all(container_dir: &Path) -> Result<()> {
    let entries = |dir: &Path| fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let state: Vec<_> = entries(&container_dir.join("runtime")).collect();
    let states = state.iter().flat_map(|path| entries(path)).chain(state.iter().cloned());
    let volumes = entries(&container_dir.join("volumes"));
    unmount_each(volumes.chain(states).chain([container_dir.join("rootfs")]))
}

/// Lets go of whatever is mounted in a directory of which nothing is known, the last first. It reads the table of all
/// mounts: for what is known the others are quicker.
pub fn unmount_below(directory: &Path) -> Result<()> {
    let table =
        fs::read("/proc/self/mountinfo").map_err(|error| Error::io("read", "/proc/self/mountinfo", error))?;
    unmount_each(mounted_below(&table, directory).into_iter().rev())
}

/// In the order of their mounting. `proc_pid_mountinfo(5)`.
fn mounted_below(table: &[u8], directory: &Path) -> Vec<PathBuf> {
    let targets =
        table.split(|byte| *byte == b'\n').filter_map(|line| line.split(|byte| *byte == b' ').nth(4));
    targets.map(unescaped).filter(|target| target.starts_with(directory)).collect()
}

/// White space and backslashes are written there as three octal digits.
fn unescaped(mut text: &[u8]) -> PathBuf {
    let mut path = Vec::new();
    while let Some((first, rest)) = text.split_first() {
        let digits = rest.get(..3).filter(|_| *first == b'\\').and_then(|digits| str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                path.push(byte);
                text = &rest[3..];
            }
            None => {
                path.push(*first);
                text = rest;
            }
        }
    }
    OsString::from_vec(path).into()
}

/// Writes the files that containers of the pod see under /etc.
pub fn write_files(
    pod_dir: &Path,
    config: &cri::PodSandboxConfig,
    own_network: bool,
    ips: &[IpAddr],
) -> Result<()> {
    let host = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let write = |name: &str, text: &str| {
        let path = pod_dir.join(name);
        fs::write(&path, text).map_err(|error| Error::io("write", path.display().to_string(), error))
    };
    let resolv = match &config.dns_config {
        Some(dns) if !(dns.servers.is_empty() && dns.searches.is_empty() && dns.options.is_empty()) => {
            resolv_conf(dns)
        }
        _ => host("/etc/resolv.conf"),
    };
    write("resolv.conf", &resolv)?;
    if own_network {
        write("hostname", &format!("{}\n", config.hostname))?;
        write("hosts", &hosts(&config.hostname, ips))
    } else {
        write("hostname", &host("/etc/hostname"))?;
        write("hosts", &host("/etc/hosts"))
    }
}

/// Gives them to the root of the pod's user namespace.
pub fn give_files(pod_dir: &Path, (uid, gid): (u32, u32)) -> Result<()> {
    for name in ["resolv.conf", "hosts", "hostname"] {
        let path = pod_dir.join(name);
        std::os::unix::fs::chown(&path, Some(uid), Some(gid))
            .map_err(|error| Error::io("give away", path.display().to_string(), error))?;
    }
    Ok(())
}

/// resolv.conf(5).
fn resolv_conf(dns: &cri::DnsConfig) -> String {
    let mut text = String::new();
    if !dns.searches.is_empty() {
        text.push_str(&format!("search {}\n", dns.searches.join(" ")));
    }
    for server in &dns.servers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    if !dns.options.is_empty() {
        text.push_str(&format!("options {}\n", dns.options.join(" ")));
    }
    text
}

/// hosts(5).
fn hosts(hostname: &str, ips: &[IpAddr]) -> String {
    let mut text = String::from(
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n",
    );
    if !hostname.is_empty() {
        match ips.is_empty() {
            true => text.push_str(&format!("127.0.1.1\t{hostname}\n")),
            false => ips.iter().for_each(|ip| text.push_str(&format!("{ip}\t{hostname}\n"))),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_mounted_in_a_directory_is_found_whatever_its_name() {
        let table =
            b"1 0 0:1 / / rw - ext4 a rw\n2 1 0:2 / /s/a\\040b rw - tmpfs t rw\n3 1 0:3 / /s/a rw - x y rw\n\
            4 2 0:4 net:[4] /s/a\\040b/ns/\\134 rw shared:1 - nsfs nsfs rw\n";
        assert_eq!(
            mounted_below(table, Path::new("/s/a b")),
            [Path::new("/s/a b"), Path::new("/s/a b/ns/\\")]
        );
        assert_eq!(mounted_below(table, Path::new("/s/a")), [Path::new("/s/a")]);
        assert_eq!(mounted_below(table, Path::new("/q")), [] as [&Path; 0]);
    }

    #[test]
    fn a_directory_goes_though_somebody_writes_a_last_word_into_it() {
        let dir = tempfile::tempdir().unwrap();
        for round in 0..200 {
            let directory = dir.path().join(round.to_string());
            make(&directory.join("upper")).unwrap();
            std::thread::scope(|scope| {
                let written = scope.spawn(|| {
                    let new = directory.join("new");
                    fs::write(&new, "").and_then(|()| fs::rename(&new, directory.join("exit")))
                });
                remove(&directory).unwrap();
                // It came before or after.
                written.join().unwrap().ok();
            });
            assert!(!directory.exists());
        }
    }

    #[test]
    fn a_pods_files_say_what_it_asked_for() {
        let dns = cri::DnsConfig {
            servers: vec!["10.0.0.10".into()],
            searches: vec!["a.b".into(), "c".into()],
            options: vec!["ndots:5".into()],
        };
        assert_eq!(resolv_conf(&dns), "search a.b c\nnameserver 10.0.0.10\noptions ndots:5\n");
        assert!(hosts("web", &["10.88.0.2".parse().unwrap()]).ends_with("10.88.0.2\tweb\n"));
        assert!(hosts("web", &[]).ends_with("127.0.1.1\tweb\n"));
    }
}
