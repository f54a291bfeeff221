//! The whole way of a request, from the message to the plan, with messages that no kubelet sends: each comes to a plan, or
//! to an error that names what is wrong and blames the caller, never to a panic. Cases are drawn with proptest's seeds.

use std::collections::HashMap;

use berth_cri::v1 as cri;
use proptest::prelude::*;

use super::check;
use crate::{Error, Kind, oci};

/// What people and fuzzers put where a path or a name goes.
fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => prop::sample::select(vec![
            "", "/", ".", "..", "/..", "/a/../b", "//a//b/", "/proc", "/proc/self/root", "a/b", "/a", "/dev/null",
            "runtime/default", "localhost/", "localhost//x", "unconfined", "ALL", "CAP_ALL", "cap_sys_admin", "CAP_NONE",
            "SIGKILL", "-1", "0", "4294967296", "kernel.shm_rmid_forced", "net.ipv4.ip_forward", "a=b", "=",
            "%s%n", "\u{0}", "a\u{0}b", "\n", "\u{202e}x", "vendor.com/class=all", "0-3,8-", "memory.high", "../x",
        ]).prop_map(str::to_owned),
        1 => ".{0,40}",
        1 => (0usize..6000).prop_map(|length| format!("/{}", "x".repeat(length))),
    ]
}

fn texts() -> impl Strategy<Value = Vec<String>> {
    prop::collection::vec(text(), 0..4)
}

fn pairs() -> impl Strategy<Value = HashMap<String, String>> {
    prop::collection::hash_map(text(), text(), 0..4)
}

/// Numbers of enumerations: mostly of ones that are there.
fn number() -> impl Strategy<Value = i32> {
    prop_oneof![6 => 0i32..4, 1 => any::<i32>()]
}

fn large() -> impl Strategy<Value = i64> {
    prop_oneof![
        3 => 0i64..100_000,
        1 => prop::sample::select(vec![i64::MIN, i64::MAX, -1, -2, u32::MAX.into(), 1 << 32]),
        1 => any::<i64>(),
    ]
}

fn id() -> impl Strategy<Value = Option<cri::Int64Value>> {
    prop::option::of(large().prop_map(|value| cri::Int64Value { value }))
}

fn maps() -> impl Strategy<Value = Vec<cri::IdMapping>> {
    let map = (any::<u32>(), prop_oneof![3 => Just(0u32), 1 => any::<u32>()], any::<u32>());
    prop::collection::vec(
        map.prop_map(|(host_id, container_id, length)| cri::IdMapping { host_id, container_id, length }),
        0..3,
    )
}

fn namespaces() -> impl Strategy<Value = Option<cri::NamespaceOption>> {
    let users =
        (number(), maps(), maps()).prop_map(|(mode, uids, gids)| cri::UserNamespace { mode, uids, gids });
    let all = (number(), number(), number(), text(), prop::option::of(users));
    prop::option::of(all.prop_map(|(network, pid, ipc, target_id, userns_options)| cri::NamespaceOption {
        network,
        pid,
        ipc,
        target_id,
        userns_options,
    }))
}

fn profile() -> impl Strategy<Value = Option<cri::SecurityProfile>> {
    prop::option::of(
        (number(), text())
            .prop_map(|(profile_type, localhost_ref)| cri::SecurityProfile { profile_type, localhost_ref }),
    )
}

fn mount() -> impl Strategy<Value = cri::Mount> {
    let flags = (any::<bool>(), any::<bool>(), any::<bool>());
    let image =
        prop::option::weighted(0.2, text().prop_map(|image| cri::ImageSpec { image, ..Default::default() }));
    (text(), text(), number(), flags, (maps(), maps()), (image, text(), texts())).prop_map(
        |(
            host_path,
            container_path,
            propagation,
            flags,
            (uid_mappings, gid_mappings),
            (image, sub, options),
        )| {
            cri::Mount {
                host_path,
                container_path,
                propagation,
                readonly: flags.0,
                recursive_read_only: flags.1,
                selinux_relabel: flags.2,
                uid_mappings,
                gid_mappings,
                image,
                image_sub_path: sub,
                mount_options: options,
            }
        },
    )
}

fn resources() -> impl Strategy<Value = Option<cri::LinuxContainerResources>> {
    let numbers = (large(), large(), large(), large(), large(), large());
    prop::option::of((numbers, text(), text(), pairs()).prop_map(
        |(numbers, cpuset_cpus, cpuset_mems, unified)| cri::LinuxContainerResources {
            cpu_period: numbers.0,
            cpu_quota: numbers.1,
            cpu_shares: numbers.2,
            memory_limit_in_bytes: numbers.3,
            memory_swap_limit_in_bytes: numbers.4,
            oom_score_adj: numbers.5,
            cpuset_cpus,
            cpuset_mems,
            unified,
            ..Default::default()
        },
    ))
}

fn security() -> impl Strategy<Value = Option<cri::LinuxContainerSecurityContext>> {
    let capabilities = prop::option::of((texts(), texts(), texts()).prop_map(|(add, drop, ambient)| {
        cri::Capability { add_capabilities: add, drop_capabilities: drop, add_ambient_capabilities: ambient }
    }));
    let who = (id(), id(), text(), prop::collection::vec(large(), 0..3), number());
    let flags = (any::<bool>(), any::<bool>(), any::<bool>());
    let rest = (profile(), profile(), texts(), texts());
    prop::option::of((capabilities, namespaces(), who, flags, rest).prop_map(
        |(capabilities, namespace_options, who, flags, (seccomp, apparmor, masked_paths, readonly_paths))| {
            cri::LinuxContainerSecurityContext {
                capabilities,
                namespace_options,
                run_as_user: who.0,
                run_as_group: who.1,
                run_as_username: who.2,
                supplemental_groups: who.3,
                supplemental_groups_policy: who.4,
                privileged: flags.0,
                readonly_rootfs: flags.1,
                no_new_privs: flags.2,
                seccomp,
                apparmor,
                masked_paths,
                readonly_paths,
                ..Default::default()
            }
        },
    ))
}

fn container() -> impl Strategy<Value = cri::ContainerConfig> {
    let env = prop::collection::vec(
        (text(), prop::collection::vec(any::<u8>(), 0..9))
            .prop_map(|(key, value)| cri::KeyValue { key, value: value.into() }),
        0..3,
    );
    let device = (text(), text(), text()).prop_map(|(host_path, container_path, permissions)| cri::Device {
        host_path,
        container_path,
        permissions,
    });
    let words = (text(), texts(), texts(), text(), env);
    let things = (prop::collection::vec(mount(), 0..4), prop::collection::vec(device, 0..3));
    let rest = (pairs(), pairs(), text(), any::<(bool, bool, bool)>(), number());
    (words, things, rest, resources(), security()).prop_map(
        |((name, command, args, working_dir, envs), (mounts, devices), rest, resources, security_context)| {
            cri::ContainerConfig {
                metadata: Some(cri::ContainerMetadata { name, attempt: 0 }),
                command,
                args,
                working_dir,
                envs,
                mounts,
                devices,
                labels: rest.0,
                annotations: rest.1,
                log_path: rest.2,
                stdin: rest.3.0,
                stdin_once: rest.3.1,
                tty: rest.3.2,
                stop_signal: rest.4,
                linux: Some(cri::LinuxContainerConfig { resources, security_context }),
                ..Default::default()
            }
        },
    )
}

fn pod() -> impl Strategy<Value = cri::PodSandboxConfig> {
    let port = (number(), large(), large(), text()).prop_map(|(protocol, host, container, host_ip)| {
        let narrow = |port: i64| i32::try_from(port).unwrap_or(i32::MIN);
        cri::PortMapping { protocol, host_port: narrow(host), container_port: narrow(container), host_ip }
    });
    let security = (namespaces(), id(), id(), any::<bool>(), profile()).prop_map(
        |(namespace_options, run_as_user, run_as_group, privileged, seccomp)| {
            cri::LinuxSandboxSecurityContext {
                namespace_options,
                run_as_user,
                run_as_group,
                privileged,
                seccomp,
                ..Default::default()
            }
        },
    );
    let linux = (text(), prop::option::of(security), pairs()).prop_map(
        |(cgroup_parent, security_context, sysctls)| cri::LinuxPodSandboxConfig {
            cgroup_parent,
            security_context,
            sysctls,
            ..Default::default()
        },
    );
    let dns = prop::option::of(
        (texts(), texts(), texts()).prop_map(|(servers, searches, options)| cri::DnsConfig {
            servers,
            searches,
            options,
        }),
    );
    let names = (text(), text(), text(), text(), text());
    let ports = prop::collection::vec(port, 0..3);
    (names, pairs(), pairs(), ports, dns, prop::option::of(linux)).prop_map(
        |(
            (name, uid, namespace, hostname, log_directory),
            labels,
            annotations,
            port_mappings,
            dns_config,
            linux,
        )| {
            cri::PodSandboxConfig {
                metadata: Some(cri::PodSandboxMetadata { name, uid, namespace, attempt: 0 }),
                hostname,
                log_directory,
                dns_config,
                port_mappings,
                labels,
                annotations,
                linux,
                ..Default::default()
            }
        },
    )
}

/// The caller is to blame, and is told for what.
fn blames(error: &Error) {
    let kinds = [Kind::Invalid, Kind::NotFound, Kind::Unimplemented, Kind::Precondition];
    assert!(kinds.contains(&error.kind), "{:?}: {}", error.kind, error.chain());
    assert!(!error.object.is_empty(), "{}", error.chain());
}

/// As far as a request gets without touching this machine.
fn compiled(config: &cri::ContainerConfig, sandbox: &cri::PodSandboxConfig) -> Result<(), Error> {
    check::container("create container", config)?;
    let image = serde_json::from_value(serde_json::json!({
        "architecture": "amd64", "os": "linux", "config": {"Entrypoint": ["/x"]},
        "rootfs": {"type": "layers", "diff_ids": []},
    }))
    .expect("an image's configuration");
    let host = oci::Host { last_capability: 40, ..Default::default() };
    let place = oci::Place { container_id: "c1".into(), dir: "/run/c1".into(), ..Default::default() };
    let options = oci::Options::default();
    let request =
        oci::Request { config, sandbox, image: &image, host: &host, place: &place, options: &options };
    let document = oci::spec(&request)?;
    oci::compile(&document, &request)?;
    oci::by_runtime(&document, &request, std::path::Path::new("/usr/sbin/runc")).map(drop)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_container_comes_to_a_plan_or_to_an_error_of_the_callers(config in container()) {
        if let Err(error) = compiled(&config, &cri::PodSandboxConfig::default()) {
            blames(&error);
        }
    }

    #[test]
    fn any_pod_comes_to_a_plan_or_to_an_error_of_the_callers(config in pod()) {
        let planned = check::pod("run pod", &config)
            .and_then(|()| oci::users_of_pod(&config))
            .and_then(|_| oci::sandbox_plan(&config, "p1", "/run/p1".into(), None, Default::default()));
        if let Err(error) = planned {
            blames(&error);
        }
    }
}
