//! The place of a kubelet: links, directories and cgroups, in namespaces that go with this process.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_bind_recursive, mount_change,
    mount_move, unmount,
};

/// The node's address, on a link that leads nowhere.
pub const NODE_IP: &str = "192.168.77.1";
/// The kubelet's own, where its programs look for them; bound to directories of this run.
const HIDDEN: &[&str] = &["/var/log", "/var/lib"];

/// Who makes cgroups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Driver {
    Cgroupfs,
    /// A machine of cgroup v2 that systemd runs, the VM of the tests: it knows processes by their ids, so nobody has a PID
    /// namespace of their own there.
    Systemd,
}

/// Whether we were started in a network namespace that nobody else is in, and where the machine is not ours, in a PID
/// namespace of our own.
pub fn is_our_own(driver: Driver) -> bool {
    let links = fs::read_dir("/sys/class/net").map_or(0, |links| links.flatten().count());
    // sysfs shows the namespace of who mounted it, so the links of this process's own are asked for.
    let own = fs::read_to_string("/proc/net/dev").unwrap_or_default();
    let names = own.lines().skip(2).filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned()));
    let others = names.filter(|name| name != "lo" && !is_tunnel(name)).count();
    links > 0 && others == 0 && (driver == Driver::Systemd || std::process::id() < 100)
}

/// Links that the kernel makes by itself in every new namespace.
fn is_tunnel(name: &str) -> bool {
    ["tunl", "sit", "gre", "erspan", "ip_vti", "ip6", "dummy", "ifb", "bond", "teql"]
        .iter()
        .any(|prefix| name.starts_with(prefix))
}

/// Sets up links and mounts. Called once, before anything is started.
pub fn make() {
    show_our_links();
    // Mounts come in from outside, none goes out; volumes are shared with containers.
    mount_change("/", MountPropagationFlags::SHARED | MountPropagationFlags::REC).expect("share mounts");
    let ip = |words: &str| {
        let status = Command::new("ip").args(words.split(' ')).status().expect("run ip");
        assert!(status.success(), "ip {words}: {status}");
    };
    ip("link set lo up");
    ip("link add node0 type bridge");
    ip(&format!("addr add {NODE_IP}/24 dev node0"));
    ip("link set node0 up");
    // A kubelet finds out its address by the default route.
    ip("route add default via 192.168.77.2 dev node0");
}

/// Mounts /sys anew: it shows the links of the network namespace that it was mounted in.
fn show_our_links() {
    let place = tempfile::tempdir().expect("make a directory");
    let new = place.path();
    mount("sysfs", new, "sysfs", MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC, None)
        .expect("mount a sysfs");
    mount_bind_recursive("/sys/fs/cgroup", new.join("fs/cgroup")).expect("bind the cgroups");
    // Where AppArmor says which profiles there are.
    if Path::new("/sys/kernel/security/lsm").exists() {
        mount_bind("/sys/kernel/security", new.join("kernel/security")).expect("bind the securityfs");
    }
    unmount("/sys", UnmountFlags::DETACH).expect("unmount the old sysfs");
    mount_move(new, "/sys").expect("move the new sysfs to its place");
}

/// Puts directories of this run over those that a kubelet writes to by itself.
pub fn hide(dir: &Path) {
    for hidden in HIDDEN {
        let ours = dir.join(hidden.trim_start_matches('/').replace('/', "-"));
        fs::create_dir_all(&ours).expect("make a directory");
        mount_bind(&ours, *hidden).unwrap_or_else(|error| panic!("bind {hidden}: {error}"));
    }
}

/// The last step, when nothing runs any more.
pub fn show() {
    for hidden in HIDDEN {
        // It goes with the namespace at the latest.
        unmount(*hidden, UnmountFlags::DETACH).ok();
    }
}

/// Makes a cgroup in every hierarchy, with what its children can't do without.
pub fn make_cgroups(parent: &str) {
    for root in hierarchies() {
        let directory = root.join(parent.trim_start_matches('/'));
        fs::create_dir_all(&directory)
            .unwrap_or_else(|error| panic!("make {}: {error}", directory.display()));
        // v1: a cpuset without processors takes no process.
        for file in ["cpuset.cpus", "cpuset.mems"] {
            let (from, to) = (root.join(file), directory.join(file));
            if to.exists() && root.join("tasks").exists() {
                let all = fs::read_to_string(from).expect("read the root's cpuset");
                fs::write(&to, all.trim()).unwrap_or_else(|error| panic!("write {}: {error}", to.display()));
            }
        }
    }
}

/// Cgroups of pods, in any hierarchy: below a cgroup, or where systemd has them.
pub fn pod_cgroups(driver: Driver, parent: &str) -> Vec<PathBuf> {
    // `pod…`, or `kubepods-burstable-pod….slice`
    let is_pod = |path: &Path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        name.starts_with("pod") || name.contains("-pod")
    };
    let tops = kubepods(driver, parent);
    let below_tops: Vec<PathBuf> = tops.iter().flat_map(|top| directories(top)).collect();
    let classes = below_tops.iter().filter(|path| !is_pod(path));
    let below_classes: Vec<PathBuf> = classes.flat_map(|class| directories(class)).collect();
    below_tops.into_iter().chain(below_classes).filter(|path| is_pod(path)).collect()
}

/// What a file of a container's cgroup says, in whichever hierarchy has it.
pub fn container_file(driver: Driver, parent: &str, id: &str, file: &str) -> Option<String> {
    kubepods(driver, parent).into_iter().find_map(|top| {
        let mut level = vec![top];
        // kubepods/[QoS/]pod/container; a scope has the container below it
        for _ in 0..3 {
            level = level.iter().flat_map(|directory| directories(directory)).collect();
            let ours = level
                .iter()
                .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().contains(id)));
            let Some(ours) = ours else { continue };
            let inner = ours.join("container");
            let ours = if inner.is_dir() { &inner } else { ours };
            return fs::read_to_string(ours.join(file)).ok().map(|text| text.trim().to_owned());
        }
        None
    })
}

/// Where a kubelet has its pods.
fn kubepods(driver: Driver, parent: &str) -> Vec<PathBuf> {
    let place = match driver {
        Driver::Cgroupfs => format!("{}/kubepods", parent.trim_start_matches('/')),
        Driver::Systemd => "kubepods.slice".to_owned(),
    };
    hierarchies().into_iter().map(|root| root.join(&place)).collect()
}

fn directories(of: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(of).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
}

/// Removes what the kubelet made below a cgroup or in systemd, which is empty by now.
pub fn remove_kubelets_cgroups(driver: Driver, parent: &str) {
    if driver == Driver::Systemd {
        // Its services and pods are gone; so is the slice, where it was the last one's.
        Command::new("systemctl").args(["stop", "kubepods.slice"]).status().ok();
        return;
    }
    for top in kubepods(driver, parent) {
        for place in [top.join("burstable"), top.join("besteffort"), top] {
            // A hierarchy that the kubelet doesn't use has none of them.
            fs::remove_dir(place).ok();
        }
    }
}

/// Where cgroup hierarchies are mounted.
fn hierarchies() -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").expect("read the mounts");
    let root = |line: &str| {
        let (left, right) = line.split_once(" - ")?;
        right.starts_with("cgroup").then(|| left.split(' ').nth(4).map(PathBuf::from)).flatten()
    };
    table.lines().filter_map(root).collect()
}
