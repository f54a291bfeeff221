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

/// Whether we were started in a network namespace that nobody else is in.
pub fn is_our_own() -> bool {
    let links = fs::read_dir("/sys/class/net").map_or(0, |links| links.flatten().count());
    // sysfs shows the namespace of who mounted it, so the links of this process's own are asked for.
    let own = fs::read_to_string("/proc/net/dev").unwrap_or_default();
    let names = own.lines().skip(2).filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned()));
    let others = names.filter(|name| name != "lo" && !is_tunnel(name)).count();
    links > 0 && others == 0 && std::process::id() < 100
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

/// Cgroups of pods below a cgroup, in any hierarchy.
pub fn pod_cgroups(parent: &str) -> Vec<PathBuf> {
    let parents = hierarchies().into_iter().flat_map(|root| {
        let top = root.join(parent.trim_start_matches('/')).join("kubepods");
        [top.join("burstable"), top.join("besteffort"), top]
    });
    let children = parents.flat_map(|parent| fs::read_dir(parent).into_iter().flatten().flatten());
    let pods = children.filter(|child| child.file_name().to_string_lossy().starts_with("pod"));
    pods.map(|child| child.path()).collect()
}

/// What a file of a container's cgroup says, in whichever hierarchy has it.
pub fn container_file(parent: &str, id: &str, file: &str) -> Option<String> {
    let named = |directory: &Path| -> Vec<PathBuf> {
        fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
    };
    hierarchies().into_iter().find_map(|root| {
        let mut level = vec![root.join(parent.trim_start_matches('/')).join("kubepods")];
        // kubepods/[QoS/]pod/container
        for _ in 0..3 {
            level =
                level.iter().flat_map(|directory| named(directory)).filter(|path| path.is_dir()).collect();
            let ours = level.iter().find(|path| path.ends_with(id));
            if let Some(text) = ours.and_then(|path| fs::read_to_string(path.join(file)).ok()) {
                return Some(text.trim().to_owned());
            }
        }
        None
    })
}

/// Removes what the kubelet made below a cgroup, which is empty by now.
pub fn remove_kubelets_cgroups(parent: &str) {
    for root in hierarchies() {
        for name in ["kubepods/burstable", "kubepods/besteffort", "kubepods"] {
            // A hierarchy that the kubelet doesn't use has none of them.
            fs::remove_dir(root.join(parent.trim_start_matches('/')).join(name)).ok();
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
