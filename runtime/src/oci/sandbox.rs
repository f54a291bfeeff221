//! A pod's own plan: which namespaces it has beside the node's, and what is set in them.

use std::path::PathBuf;

use berth_cri::v1 as cri;
use berth_launch::v1 as launch;

use super::users;
use crate::{Error, Result};

/// /dev/shm of a pod, bytes; what docker and containerd give.
const SHM_BYTES: u64 = 64 << 20;

/// Compiles the pod's own plan; `link` comes from the network.
///
/// # Errors
/// `Invalid` for a host name the kernel would not take, a sysctl that is the node's, a mode CRI does not allow there.
pub fn sandbox_plan(
    sandbox: &cri::PodSandboxConfig,
    id: &str,
    dir: PathBuf,
    link: Option<launch::Link>,
    cgroup: launch::Cgroup,
) -> Result<launch::SandboxPlan> {
    use cri::NamespaceMode::Node;
    let modes = modes(sandbox);
    let users = users::of_pod(sandbox)?;
    let mut kinds = Vec::new();
    kinds.extend(users.iter().map(|_| launch::NamespaceKind::User));
    if modes.network() != Node {
        kinds.extend([launch::NamespaceKind::Net, launch::NamespaceKind::Uts]);
    }
    if modes.ipc() != Node {
        kinds.push(launch::NamespaceKind::Ipc);
    }
    // A pod of the node's network has the node's name: CRI ignores what it asks for.
    let hostname = if modes.network() == Node { String::new() } else { sandbox.hostname.clone() };
    if hostname.len() > 64 || hostname.contains(['\0', '\n', '/']) {
        return Err(Error::invalid(
            "read hostname",
            format!("{hostname:?}"),
            "a host name has at most 64 bytes",
        ));
    }
    let asked = sandbox.linux.as_ref().map(|linux| linux.sysctls.clone()).unwrap_or_default();
    let mut sysctls = Vec::new();
    for (name, value) in asked {
        check(&name, &modes)?;
        sysctls.push(launch::Sysctl { name, value });
    }
    sysctls.sort_by(|one, other| one.name.cmp(&other.name));
    let plan = launch::SandboxPlan {
        version: berth_launch::VERSION,
        id: id.to_owned(),
        dir: dir.to_string_lossy().into_owned(),
        new_namespaces: kinds.into_iter().map(Into::into).collect(),
        hostname,
        sysctls,
        link,
        shared_pid: modes.pid() == cri::NamespaceMode::Pod,
        cgroup: Some(cgroup),
        shm_bytes: if modes.ipc() == Node { 0 } else { SHM_BYTES },
        uid_maps: users.iter().map(|users| users.uids).collect(),
        gid_maps: users.iter().map(|users| users.gids).collect(),
        ..launch::SandboxPlan::default()
    };
    Ok(launch::SandboxPlan { needs: berth_launch::needs::sandbox(&plan), ..plan })
}

/// The namespace modes a pod asks for; the proto's default is POD for each.
pub fn modes(sandbox: &cri::PodSandboxConfig) -> cri::NamespaceOption {
    let security = sandbox.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    security.and_then(|security| security.namespace_options.clone()).unwrap_or_default()
}

/// Only parameters of namespaces that the pod has of its own: the others would be the node's.
fn check(name: &str, modes: &cri::NamespaceOption) -> Result<()> {
    use cri::NamespaceMode::Node;
    const IPC: [&str; 7] = [
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.sem",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
    ];
    let dotted = name.replace('/', ".");
    let (known, of_node) = if dotted.starts_with("net.") {
        (true, modes.network() == Node)
    } else if IPC.contains(&dotted.as_str())
        || dotted == "kernel.shm_rmid_forced"
        || dotted.starts_with("fs.mqueue.")
    {
        (true, modes.ipc() == Node)
    } else {
        (false, true)
    };
    match (known, of_node) {
        (_, false) => Ok(()),
        (true, true) => {
            Err(Error::invalid("set sysctl", name, "the pod shares that namespace with the node"))
        }
        (false, true) => Err(Error::invalid("set sysctl", name, "it belongs to no namespace of a pod")
            .hint("set it on the node instead")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(network: cri::NamespaceMode, sysctl: &str) -> Result<launch::SandboxPlan> {
        let options = cri::NamespaceOption {
            network: network.into(),
            pid: cri::NamespaceMode::Container.into(),
            ..Default::default()
        };
        let config = cri::PodSandboxConfig {
            hostname: "web".into(),
            linux: Some(cri::LinuxPodSandboxConfig {
                security_context: Some(cri::LinuxSandboxSecurityContext {
                    namespace_options: Some(options),
                    ..Default::default()
                }),
                sysctls: [(sysctl.to_owned(), "1".to_owned())].into(),
                ..Default::default()
            }),
            ..Default::default()
        };
        sandbox_plan(&config, "id", "/run/x".into(), None, launch::Cgroup::default())
    }

    #[test]
    fn only_parameters_of_the_pods_own_namespaces_are_set() {
        use cri::NamespaceMode::{Node, Pod};
        assert!(pod(Pod, "net.ipv4.ip_unprivileged_port_start").is_ok());
        assert!(pod(Pod, "net/core/somaxconn").is_ok());
        assert!(pod(Pod, "kernel.shmmax").is_ok());
        for (mode, name) in [(Node, "net.core.somaxconn"), (Pod, "vm.swappiness"), (Pod, "kernel.pid_max")] {
            assert!(pod(mode, name).is_err(), "{name}");
        }
    }

    #[test]
    fn the_nodes_network_brings_the_nodes_name() {
        let plan = pod(cri::NamespaceMode::Node, "kernel.sem").unwrap();
        assert_eq!(plan.hostname, "");
        assert_eq!(plan.new_namespaces, [i32::from(launch::NamespaceKind::Ipc)]);
        assert!(!plan.shared_pid);
    }
}
