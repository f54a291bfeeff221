//! What a person asks for -> the hidden pod and the one container in it. Pure.

use std::{collections::HashMap, net::IpAddr, path::Path};

use berth_cri::{
    berth::{self, ContainerSpec},
    v1 as cri,
};
use berth_launch::v1 as launch;

use super::signal;
use crate::{
    Error, Result,
    id::ContainerId,
    net,
    pod::{Client, CreateContainer, IPS, NETWORK, Options, RunPod},
};

const OP: &str = "create container";

/// The log's name in the container's own log directory.
pub(super) const LOG: &str = "container.log";
const LOG_BYTES: u64 = 10 * 1024 * 1024;
const LOG_FILES: u32 = 3;

/// More names for one container than anybody gives.
const ALIASES: usize = 64;

/// Microseconds; a quota is a share of it.
const CPU_PERIOD_US: i64 = 100_000;
/// The kernel takes no quota below a millisecond.
const LEAST_MILLICPU: i64 = 10;

/// The pod that nobody sees; `logs` is the container's log directory.
pub(super) fn pod(spec: &ContainerSpec, id: &ContainerId, logs: &Path) -> Result<RunPod> {
    aliases(spec)?;
    let hostname = match spec.hostname.as_str() {
        "" => id.as_str()[..12].to_owned(),
        given => given.to_owned(),
    };
    let security = cri::LinuxSandboxSecurityContext {
        namespace_options: Some(namespaces(&spec.network)?),
        privileged: spec.privileged,
        ..Default::default()
    };
    let metadata = cri::PodSandboxMetadata {
        name: id.to_string(),
        uid: id.to_string(),
        namespace: "berth".into(),
        attempt: 0,
    };
    let config = cri::PodSandboxConfig {
        metadata: Some(metadata),
        hostname,
        log_directory: logs.display().to_string(),
        port_mappings: ports(spec)?,
        annotations: annotations(spec)?,
        linux: Some(cri::LinuxPodSandboxConfig { security_context: Some(security), ..Default::default() }),
        ..Default::default()
    };
    Ok(RunPod { config, handler: String::new(), client: Client::Standalone })
}

/// The container; `image_id` is what `spec.image` meant when it was asked for.
pub(super) fn container(spec: &ContainerSpec, id: &ContainerId, image_id: &str) -> Result<CreateContainer> {
    let config = cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata { name: spec.name.clone(), attempt: 0 }),
        image: Some(cri::ImageSpec {
            image: image_id.into(),
            user_specified_image: spec.image.clone(),
            ..Default::default()
        }),
        args: spec.command.clone(),
        working_dir: spec.workdir.clone(),
        envs: spec.env.iter().map(|pair| variable(pair)).collect::<Result<_>>()?,
        mounts: spec.volumes.iter().map(mount).collect::<Result<_>>()?,
        labels: spec.labels.clone(),
        log_path: LOG.into(),
        stdin: spec.stdin,
        // The end of what is piped in reaches the application; a terminal outlives its attaches.
        stdin_once: spec.stdin && !spec.tty,
        tty: spec.tty,
        linux: Some(cri::LinuxContainerConfig {
            resources: Some(resources(spec)?),
            security_context: Some(security(spec)?),
        }),
        ..Default::default()
    };
    Ok(CreateContainer {
        config,
        sandbox: cri::PodSandboxConfig::default(),
        options: options(spec)?,
        id: Some(id.clone()),
        keep_layer: true,
        standalone: Some(spec.clone()),
    })
}

fn namespaces(network: &str) -> Result<cri::NamespaceOption> {
    let network = match network {
        "" | "bridge" => cri::NamespaceMode::Pod,
        "host" => cri::NamespaceMode::Node,
        "none" => cri::NamespaceMode::Container,
        other => {
            let named = net::check_name(other);
            named.map_err(|cause| Error::invalid(OP, format!("network {other:?}"), cause))?;
            cri::NamespaceMode::Pod
        }
    };
    Ok(cri::NamespaceOption {
        network: network.into(),
        pid: cri::NamespaceMode::Container.into(),
        ipc: cri::NamespaceMode::Pod.into(),
        ..Default::default()
    })
}

/// Whether it is a network with addresses of its own.
fn is_bridged(network: &str) -> bool {
    !matches!(network, "host" | "none")
}

fn ports(spec: &ContainerSpec) -> Result<Vec<cri::PortMapping>> {
    if !spec.ports.is_empty() && !is_bridged(&spec.network) {
        let object = format!("ports on network {:?}", spec.network);
        return Err(Error::invalid(OP, object, "ports of the node lead to bridge networks only")
            .hint("leave the ports out, or the network"));
    }
    let number = |what: &str, port: u32| {
        let read = i32::try_from(port).ok().filter(|port| (1..=65_535).contains(port));
        read.ok_or_else(|| Error::invalid(OP, format!("{what} {port}"), "it is none of 1 to 65535"))
    };
    let mapping = |port: &berth::Port| {
        Ok(cri::PortMapping {
            protocol: match port.protocol() {
                berth::port::Protocol::Tcp => cri::Protocol::Tcp,
                berth::port::Protocol::Udp => cri::Protocol::Udp,
                berth::port::Protocol::Sctp => cri::Protocol::Sctp,
            }
            .into(),
            container_port: number("port of the container", port.container_port)?,
            host_port: number("port of the node", port.host_port)?,
            host_ip: port.host_ip.clone(),
        })
    };
    spec.ports.iter().map(mapping).collect()
}

/// Whether what it asks to be called can be asked for.
fn aliases(spec: &ContainerSpec) -> Result<()> {
    if spec.network_aliases.is_empty() {
        return Ok(());
    }
    if matches!(spec.network.as_str(), "" | net::DEFAULT) || !is_bridged(&spec.network) {
        let object = format!("network alias on network {:?}", spec.network);
        return Err(Error::invalid(OP, object, "only networks that somebody made have names")
            .hint("make one with `berth network create NAME`, and name it with --network NAME"));
    }
    if spec.network_aliases.len() > ALIASES {
        let object = format!("{} network aliases", spec.network_aliases.len());
        return Err(Error::invalid(OP, object, format!("a container has {ALIASES} at most")));
    }
    for alias in &spec.network_aliases {
        net::check_alias(alias)
            .map_err(|cause| Error::invalid(OP, format!("network alias {alias:?}"), cause))?;
    }
    Ok(())
}

/// What the pod's network is told.
fn annotations(spec: &ContainerSpec) -> Result<HashMap<String, String>> {
    let mut all = bandwidth(spec)?;
    if !matches!(spec.network.as_str(), "" | net::DEFAULT) && is_bridged(&spec.network) {
        all.insert(NETWORK.into(), spec.network.clone());
    }
    all.extend(addresses(spec)?);
    Ok(all)
}

/// As a kubelet asks for it.
fn bandwidth(spec: &ContainerSpec) -> Result<HashMap<String, String>> {
    let asked = [("ingress", &spec.ingress_bandwidth), ("egress", &spec.egress_bandwidth)];
    let asked = asked.into_iter().filter(|(_, bits)| !bits.is_empty());
    let all: HashMap<_, _> =
        asked.map(|(way, bits)| (format!("kubernetes.io/{way}-bandwidth"), bits.clone())).collect();
    if !all.is_empty() && !is_bridged(&spec.network) {
        let object = format!("bandwidth on network {:?}", spec.network);
        return Err(Error::invalid(OP, object, "only bridge networks limit it")
            .hint("leave the limits out, or the network"));
    }
    Ok(all)
}

/// The addresses that it is to have.
fn addresses(spec: &ContainerSpec) -> Result<Option<(String, String)>> {
    let of_family = |what: &str, text: &str, family: net::Family| match text.parse::<IpAddr>() {
        _ if text.is_empty() => Ok(None),
        Ok(address) if net::Family::of(address) == family => Ok(Some(address.to_string())),
        Ok(_) | Err(_) => Err(Error::invalid(OP, format!("{what} {text:?}"), "it is no such address")),
    };
    let asked = [of_family("ip", &spec.ip, net::Family::V4)?, of_family("ip6", &spec.ip6, net::Family::V6)?];
    let asked: Vec<String> = asked.into_iter().flatten().collect();
    if !asked.is_empty() && !is_bridged(&spec.network) {
        let object = format!("ip on network {:?}", spec.network);
        return Err(Error::invalid(OP, object, "it has no addresses to give"));
    }
    Ok((!asked.is_empty()).then(|| (IPS.to_owned(), asked.join(","))))
}

fn security(spec: &ContainerSpec) -> Result<cri::LinuxContainerSecurityContext> {
    Ok(cri::LinuxContainerSecurityContext {
        capabilities: Some(cri::Capability {
            add_capabilities: spec.cap_add.iter().map(|name| capability(name)).collect(),
            drop_capabilities: spec.cap_drop.iter().map(|name| capability(name)).collect(),
            ..Default::default()
        }),
        privileged: spec.privileged,
        namespace_options: Some(namespaces(&spec.network)?),
        readonly_rootfs: spec.read_only,
        // Masked paths are the compiler's defaults; the seccomp profile has to be asked for, and docker's people expect it.
        seccomp: Some(cri::SecurityProfile {
            profile_type: cri::security_profile::ProfileType::RuntimeDefault.into(),
            localhost_ref: String::new(),
        }),
        ..Default::default()
    })
}

fn negative(what: &str) -> Error {
    Error::invalid(OP, what, "it is negative").hint("0 means no limit")
}

fn resources(spec: &ContainerSpec) -> Result<cri::LinuxContainerResources> {
    if spec.memory_bytes < 0 {
        return Err(negative("memory_bytes"));
    }
    if spec.millicpu < 0 {
        return Err(negative("millicpu"));
    }
    if spec.pids_limit < 0 {
        return Err(negative("pids_limit"));
    }
    if (1..LEAST_MILLICPU).contains(&spec.millicpu) {
        let cause = format!("{} thousandths of a CPU are less than the kernel can give", spec.millicpu);
        return Err(Error::invalid(OP, "millicpu", cause).hint("give at least 0.01 CPUs"));
    }
    let mut resources =
        cri::LinuxContainerResources { memory_limit_in_bytes: spec.memory_bytes, ..Default::default() };
    if spec.millicpu > 0 {
        resources.cpu_period = CPU_PERIOD_US;
        resources.cpu_quota = spec.millicpu.saturating_mul(CPU_PERIOD_US / 1000);
    }
    Ok(resources)
}

fn options(spec: &ContainerSpec) -> Result<Options> {
    let restart = spec.restart.unwrap_or_default();
    let policy = match berth::restart::Policy::try_from(restart.policy) {
        Ok(berth::restart::Policy::Never) => launch::restart::Policy::Never,
        Ok(berth::restart::Policy::OnFailure) => launch::restart::Policy::OnFailure,
        Ok(berth::restart::Policy::Always) => launch::restart::Policy::Always,
        Err(unknown) => return Err(Error::invalid(OP, "restart.policy", unknown.to_string())),
    };
    if spec.auto_remove && policy != launch::restart::Policy::Never {
        return Err(Error::invalid(OP, "auto_remove", "a container that restarts is not removed at its end")
            .hint("give either --rm or --restart"));
    }
    Ok(Options {
        restart: launch::Restart { policy: policy.into(), max_retries: restart.max_retries },
        log_max_bytes: LOG_BYTES,
        log_max_files: LOG_FILES,
        // The node's.
        log_rate_bytes: 0,
        layer_max_bytes: u64::try_from(spec.storage_bytes).map_err(|_| negative("storage_bytes"))?,
        entrypoint: spec.entrypoint.clone(),
        user: Some(spec.user.clone()).filter(|user| !user.is_empty()),
        create_bind_sources: true,
        stop_signal: match spec.stop_signal.as_str() {
            "" => None,
            text => Some(signal::parse(text)?),
        },
        pids: Some(spec.pids_limit).filter(|limit| *limit > 0),
        // Without a word about it the image's is run.
        health: Some(spec.health.clone().unwrap_or_default()),
    })
}

/// `NET_ADMIN`, whatever way it was written.
fn capability(name: &str) -> String {
    let upper = name.to_ascii_uppercase();
    upper.strip_prefix("CAP_").map_or(upper.clone(), str::to_owned)
}

fn variable(pair: &[u8]) -> Result<cri::KeyValue> {
    let shown = || format!("env {:?}", String::from_utf8_lossy(pair));
    let at = pair.iter().position(|byte| *byte == b'=').filter(|at| *at > 0);
    let at = at.ok_or_else(|| Error::invalid(OP, shown(), "a variable is NAME=VALUE"))?;
    if pair.contains(&0) {
        return Err(Error::invalid(OP, shown(), "there is a NUL byte in it"));
    }
    let key = std::str::from_utf8(&pair[..at])
        .map_err(|error| Error::invalid(OP, shown(), "its name is not UTF-8").because(error))?;
    Ok(cri::KeyValue { key: key.to_owned(), value: pair[at + 1..].to_vec().into() })
}

fn mount(volume: &berth::Volume) -> Result<cri::Mount> {
    for path in [&volume.source, &volume.destination] {
        if !path.starts_with('/') || path.contains('\0') {
            return Err(Error::invalid(OP, format!("volume {path:?}"), "it is no absolute path"));
        }
    }
    Ok(cri::Mount {
        container_path: volume.destination.clone(),
        host_path: volume.source.clone(),
        readonly: volume.read_only,
        propagation: cri::MountPropagation::PropagationPrivate.into(),
        ..Default::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> ContainerSpec {
        ContainerSpec { name: "web".into(), image: "busybox".into(), ..Default::default() }
    }

    fn made(spec: &ContainerSpec) -> Result<CreateContainer> {
        container(spec, &ContainerId::random(), "sha256:01")
    }

    #[test]
    fn the_pod_is_hidden_named_after_the_container_and_logs_into_its_directory() {
        let id = ContainerId::random();
        let pod = pod(&spec(), &id, Path::new("/r/logs/x")).unwrap();
        assert_eq!(pod.client, Client::Standalone);
        let metadata = pod.config.metadata.unwrap();
        assert_eq!((metadata.name.as_str(), metadata.uid.as_str()), (id.as_str(), id.as_str()));
        assert_eq!(pod.config.hostname, id.as_str()[..12]);
        assert_eq!(pod.config.log_directory, "/r/logs/x");
        let named = ContainerSpec { hostname: "db".into(), ..spec() };
        assert_eq!(super::pod(&named, &id, Path::new("/l")).unwrap().config.hostname, "db");
    }

    #[test]
    fn each_network_is_a_namespace_mode_of_pod_and_container_alike() {
        let rows = [
            ("", Some(cri::NamespaceMode::Pod)),
            ("bridge", Some(cri::NamespaceMode::Pod)),
            ("host", Some(cri::NamespaceMode::Node)),
            ("none", Some(cri::NamespaceMode::Container)),
            ("blue", Some(cri::NamespaceMode::Pod)),
            ("no/name", None),
            ("default", None),
        ];
        for (network, expected) in rows {
            let spec = ContainerSpec { network: network.into(), ..spec() };
            let pod = pod(&spec, &ContainerId::random(), Path::new("/l")).ok();
            let pod = pod.map(|pod| pod.config.linux.unwrap().security_context.unwrap());
            let pod = pod.map(|security| security.namespace_options.unwrap().network());
            let container = made(&spec).ok().map(|made| made.config.linux.unwrap().security_context.unwrap());
            let container = container.map(|security| security.namespace_options.unwrap().network());
            assert_eq!((pod, container), (expected, expected), "{network}");
        }
    }

    #[test]
    fn what_is_asked_for_arrives() {
        let full = ContainerSpec {
            command: vec!["sh".into(), "-c".into()],
            entrypoint: Some(String::new()),
            env: vec![b"A=1=2".to_vec().into(), b"B=\xff".to_vec().into()],
            volumes: vec![berth::Volume {
                source: "/data".into(),
                destination: "/mnt".into(),
                read_only: true,
            }],
            workdir: "/w".into(),
            user: "app:users".into(),
            stdin: true,
            restart: Some(berth::Restart {
                policy: berth::restart::Policy::OnFailure.into(),
                max_retries: 3,
            }),
            memory_bytes: 1 << 20,
            millicpu: 1500,
            read_only: true,
            stop_signal: "SIGQUIT".into(),
            cap_add: vec!["cap_net_admin".into()],
            cap_drop: vec!["ALL".into()],
            pids_limit: 7,
            ..spec()
        };
        let CreateContainer { config, options, id, keep_layer, standalone, .. } = made(&full).unwrap();
        assert_eq!((keep_layer, id.is_some(), standalone.as_ref()), (true, true, Some(&full)));
        assert_eq!((config.command.len(), config.args.len(), config.working_dir.as_str()), (0, 2, "/w"));
        let image = config.image.unwrap();
        assert_eq!((image.image.as_str(), image.user_specified_image.as_str()), ("sha256:01", "busybox"));
        let envs: Vec<_> = config.envs.iter().map(|pair| (pair.key.as_str(), &pair.value[..])).collect();
        assert_eq!(envs, [("A", &b"1=2"[..]), ("B", b"\xff")]);
        assert_eq!((config.mounts[0].host_path.as_str(), config.mounts[0].readonly), ("/data", true));
        assert!(config.stdin && config.stdin_once && !config.tty);
        let linux = config.linux.unwrap();
        let resources = linux.resources.unwrap();
        assert_eq!((resources.cpu_quota, resources.cpu_period), (150_000, 100_000));
        assert_eq!(resources.memory_limit_in_bytes, 1 << 20);
        let security = linux.security_context.unwrap();
        assert!(security.readonly_rootfs && security.seccomp.is_some());
        let capabilities = security.capabilities.unwrap();
        assert_eq!(capabilities.add_capabilities, ["NET_ADMIN"]);
        assert_eq!(capabilities.drop_capabilities, ["ALL"]);
        assert_eq!(options.restart.policy(), launch::restart::Policy::OnFailure);
        assert_eq!((options.restart.max_retries, options.stop_signal, options.pids), (3, Some(3), Some(7)));
        assert_eq!((options.user.as_deref(), options.entrypoint.as_deref()), (Some("app:users"), Some("")));
        assert_eq!((options.log_max_bytes, options.log_max_files), (LOG_BYTES, LOG_FILES));
    }

    #[test]
    fn nothing_asked_for_is_no_limit_and_no_choice() {
        let CreateContainer { config, options, .. } = made(&spec()).unwrap();
        let resources = config.linux.unwrap().resources.unwrap();
        assert_eq!(resources, cri::LinuxContainerResources::default());
        assert_eq!((options.pids, options.stop_signal, options.user), (None, None, None));
        assert!(!config.stdin && !config.stdin_once);
        let terminal = made(&ContainerSpec { tty: true, stdin: true, ..spec() }).unwrap().config;
        assert!(terminal.stdin && !terminal.stdin_once);
    }

    #[test]
    fn a_privileged_container_sees_all_of_proc() {
        let made = made(&ContainerSpec { privileged: true, ..spec() }).unwrap();
        let security = made.config.linux.unwrap().security_context.unwrap();
        assert!(security.privileged);
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        let always = Some(berth::Restart { policy: berth::restart::Policy::Always.into(), max_retries: 0 });
        let volume = |source: &str, destination: &str| {
            vec![berth::Volume {
                source: source.into(),
                destination: destination.into(),
                ..Default::default()
            }]
        };
        let rows = [
            (ContainerSpec { memory_bytes: -1, ..spec() }, "memory_bytes"),
            (ContainerSpec { millicpu: -1, ..spec() }, "millicpu"),
            (ContainerSpec { millicpu: 9, ..spec() }, "millicpu"),
            (ContainerSpec { pids_limit: -2, ..spec() }, "pids_limit"),
            (ContainerSpec { storage_bytes: -1, ..spec() }, "storage_bytes"),
            (ContainerSpec { env: vec![b"NOVALUE".to_vec().into()], ..spec() }, "env \"NOVALUE\""),
            (ContainerSpec { env: vec![b"=x".to_vec().into()], ..spec() }, "env \"=x\""),
            (ContainerSpec { env: vec![b"\xff=x".to_vec().into()], ..spec() }, "env"),
            (ContainerSpec { env: vec![b"A=\0".to_vec().into()], ..spec() }, "env"),
            (ContainerSpec { volumes: volume("data", "/mnt"), ..spec() }, "volume \"data\""),
            (ContainerSpec { volumes: volume("/data", "mnt"), ..spec() }, "volume \"mnt\""),
            (ContainerSpec { stop_signal: "NOPE".into(), ..spec() }, "\"NOPE\""),
            (ContainerSpec { auto_remove: true, restart: always, ..spec() }, "auto_remove"),
        ];
        for (spec, named) in rows {
            let error = made(&spec).unwrap_err();
            assert_eq!(error.kind, crate::Kind::Invalid);
            assert!(error.chain().contains(named), "{}", error.chain());
        }
        let named =
            ContainerSpec { network: "blue".into(), ip: "10.9.0.7".into(), ip6: "fd09::7".into(), ..spec() };
        let told = annotations(&named).unwrap();
        assert_eq!((told[NETWORK].as_str(), told[IPS].as_str()), ("blue", "10.9.0.7,fd09::7"));
        assert!(annotations(&ContainerSpec { network: "bridge".into(), ..spec() }).unwrap().is_empty());
        for (spec, named) in [
            (ContainerSpec { ip: "fd09::7".into(), ..spec() }, "ip \"fd09::7\""),
            (ContainerSpec { ip6: "x".into(), ..spec() }, "ip6 \"x\""),
            (
                ContainerSpec { ip: "10.9.0.7".into(), network: "none".into(), ..spec() },
                "ip on network \"none\"",
            ),
        ] {
            assert!(annotations(&spec).unwrap_err().chain().contains(named), "{named}");
        }
        let limited = ContainerSpec { network: "host".into(), egress_bandwidth: "1M".into(), ..spec() };
        let error = bandwidth(&limited).unwrap_err();
        assert!(error.chain().contains("bandwidth on network \"host\""), "{}", error.chain());
    }
}
