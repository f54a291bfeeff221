//! Golden files: a configuration in, the text of its plan out. `UPDATE=1 cargo test -p berth-runtime golden` rewrites
//! them; the difference in `golden/` is then what a change of the compiler means. Nothing of this machine gets in: the
//! host, the image and the place are the test's.

mod text;

use std::{env, fs, path::Path};

use berth_cri::v1::{self as cri, security_profile::ProfileType};
use berth_launch::v1 as launch;
use oci_spec::image::ImageConfiguration;
use serde_json::json;

use super::{Document, Exec, Host, Options, Place, Request, compile, exec_process, sandbox_plan, spec};

/// What a case may change; the rest is a plain container of a plain pod.
struct Case {
    config: cri::ContainerConfig,
    sandbox: cri::PodSandboxConfig,
    options: Options,
    host: Host,
    place: Place,
}

impl Case {
    fn new() -> Self {
        let pin = |kind: &str| Some(format!("/run/berth/pods/p1/ns/{kind}").into());
        let file = |name: &str| Some(format!("/run/berth/pods/p1/{name}").into());
        Self {
            config: cri::ContainerConfig {
                metadata: Some(cri::ContainerMetadata { name: "app".into(), attempt: 0 }),
                log_path: "app/0.log".into(),
                linux: Some(cri::LinuxContainerConfig {
                    resources: None,
                    security_context: Some(security()),
                }),
                ..Default::default()
            },
            sandbox: cri::PodSandboxConfig { hostname: "web-1".into(), ..Default::default() },
            options: Options::default(),
            host: Host { cgroup_v2: true, last_capability: 40, ..Host::default() },
            place: Place {
                container_id: "c1".into(),
                dir: "/run/berth/containers/c1".into(),
                record_dir: "/var/lib/berth/containers/c1".into(),
                lowers: vec![
                    "/var/lib/berth/images/layers/2/fs".into(),
                    "/var/lib/berth/images/layers/1/fs".into(),
                ],
                upper: "/var/lib/berth/containers/c1/upper".into(),
                work: "/var/lib/berth/containers/c1/work".into(),
                volatile: true,
                pod_net: pin("net"),
                pod_ipc: pin("ipc"),
                pod_uts: pin("uts"),
                pod_pid: None,
                shm: file("shm"),
                resolv_conf: file("resolv.conf"),
                hosts: file("hosts"),
                hostname_file: file("hostname"),
                pod_user: None,
                cgroup_path: "/kubepods/pod1/c1".into(),
                cgroup: launch::Cgroup { v2: "/sys/fs/cgroup/kubepods/pod1/c1".into(), ..Default::default() },
                log: Some("/var/log/pods/ns_web_1/app/0.log".into()),
                seccomp_profile: None,
                image_volumes: Default::default(),
                cdi: Default::default(),
                apparmor: String::new(),
            },
        }
    }

    fn security(&mut self) -> &mut cri::LinuxContainerSecurityContext {
        let linux = self.config.linux.get_or_insert_default();
        linux.security_context.get_or_insert_default()
    }

    fn plan(&self) -> (oci_spec::runtime::Spec, launch::ContainerPlan) {
        let image = image();
        let request = Request {
            config: &self.config,
            sandbox: &self.sandbox,
            image: &image,
            host: &self.host,
            place: &self.place,
            options: &self.options,
        };
        let document = spec(&request).unwrap();
        let plan = compile(&document, &request).unwrap();
        (document, plan)
    }
}

/// As a kubelet asks: one PID namespace for each container.
fn security() -> cri::LinuxContainerSecurityContext {
    cri::LinuxContainerSecurityContext {
        namespace_options: Some(cri::NamespaceOption {
            pid: cri::NamespaceMode::Container.into(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn image() -> ImageConfiguration {
    serde_json::from_value(json!({
        "architecture": "amd64",
        "os": "linux",
        "config": {
            "Env": ["PATH=/usr/bin:/bin", "LANG=C"],
            "Entrypoint": ["/docker-entrypoint.sh"],
            "Cmd": ["serve", "--port=80"],
            "WorkingDir": "/srv",
            "User": "app:www",
            "StopSignal": "SIGQUIT",
        },
        "rootfs": {"type": "layers", "diff_ids": []},
    }))
    .unwrap()
}

fn mount(at: &str, from: &str) -> cri::Mount {
    cri::Mount { container_path: at.into(), host_path: from.into(), ..Default::default() }
}

/// Compares with the file of that name, or rewrites it.
fn golden(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/oci/golden").join(format!("{name}.txt"));
    if env::var_os("UPDATE").is_some() {
        fs::write(&path, text).unwrap();
        return;
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    // The numbers of system calls, and so a filter's program, are the architecture's.
    let here = |line: &&str| cfg!(target_arch = "x86_64") || !line.starts_with("seccomp ");
    let lines = |text: &str| text.lines().filter(here).map(str::to_owned).collect::<Vec<_>>();
    let (expected, found) = (lines(&expected), lines(text));
    let gone = expected.iter().filter(|line| !found.contains(line)).map(|line| format!("- {line}\n"));
    let come = found.iter().filter(|line| !expected.contains(line)).map(|line| format!("+ {line}\n"));
    let change = gone.chain(come).collect::<String>();
    assert!(
        expected == found,
        "golden/{name}.txt differs; UPDATE=1 rewrites it where that is right\n{change}"
    );
}

#[test]
fn a_container_that_asks_for_nothing() {
    let (_, plan) = Case::new().plan();
    golden("minimal", &text::container(&plan));
}

#[test]
fn a_privileged_container_has_all_of_the_host() {
    let mut case = Case::new();
    case.host.devices = vec![
        ("/dev/fuse".into(), 'c', 10, 229, 0o666),
        ("/dev/null".into(), 'c', 1, 3, 0o666),
        ("/dev/sda".into(), 'b', 8, 0, 0o660),
    ];
    case.security().privileged = true;
    // Ignored where privileged.
    case.security().masked_paths = vec!["/proc/kcore".into()];
    case.security().seccomp = Some(profile(ProfileType::RuntimeDefault));
    let (_, plan) = case.plan();
    golden("privileged", &text::container(&plan));
}

fn profile(kind: ProfileType) -> cri::SecurityProfile {
    cri::SecurityProfile { profile_type: kind.into(), localhost_ref: String::new() }
}

/// Everything that CRI can say and this compiler takes.
fn everything() -> Case {
    let mut case = Case::new();
    case.host.devices = vec![
        ("/dev/snd/controlC0".into(), 'c', 116, 0, 0o660),
        ("/dev/snd/timer".into(), 'c', 116, 33, 0o660),
        ("/dev/kvm".into(), 'c', 10, 232, 0o660),
    ];
    case.place.cgroup = launch::Cgroup {
        v2: String::new(),
        v1: vec!["/sys/fs/cgroup/memory/k/c1".into(), "/sys/fs/cgroup/cpu/k/c1".into()],
        ..Default::default()
    };
    let config = &mut case.config;
    config.command = vec!["/bin/sh".into(), "-c".into()];
    config.args = vec!["echo \"$A\"\tü".into()];
    config.working_dir = "/work dir".into();
    let env = |key: &str, value: &[u8]| cri::KeyValue { key: key.into(), value: value.to_vec().into() };
    config.envs = vec![env("LANG", b"de_DE"), env("BYTES", b"\xff\n\\"), env("EMPTY", b"")];
    config.mounts = vec![
        mount("/data/deep/er", "/srv/deep"),
        cri::Mount { readonly: true, ..mount("/data", "/srv/data") },
        cri::Mount { readonly: true, recursive_read_only: true, ..mount("/rro", "/srv/rro") },
        cri::Mount {
            propagation: cri::MountPropagation::PropagationHostToContainer.into(),
            ..mount("/slave", "/srv/slave")
        },
        cri::Mount {
            propagation: cri::MountPropagation::PropagationBidirectional.into(),
            ..mount("/shared", "/srv/shared")
        },
        cri::Mount {
            mount_options: vec!["noexec".into(), "nodev".into(), "nosuid".into()],
            ..mount("/careful", "/srv/careful")
        },
        // In the place of the pod's own file.
        mount("/etc/hosts", "/var/lib/kubelet/pods/1/etc-hosts"),
    ];
    let device = |host: &str, at: &str| cri::Device {
        host_path: host.into(),
        container_path: at.into(),
        permissions: "rwm".into(),
    };
    config.devices = vec![device("/dev/snd", "/dev/snd"), device("/dev/kvm", "/dev/virt")];
    (config.stdin, config.stdin_once, config.tty) = (true, true, true);
    config.stop_signal = cri::Signal::Sigusr1.into();
    config.linux.get_or_insert_default().resources = Some(cri::LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: 50_000,
        cpu_shares: 512,
        memory_limit_in_bytes: 64 << 20,
        oom_score_adj: 900,
        cpuset_cpus: "0-1".into(),
        ..Default::default()
    });
    let security = case.security();
    security.capabilities = Some(cri::Capability {
        add_capabilities: vec!["NET_ADMIN".into(), "SYS_TIME".into()],
        drop_capabilities: vec!["ALL".into()],
        add_ambient_capabilities: vec!["NET_BIND_SERVICE".into()],
    });
    security.run_as_user = Some(cri::Int64Value { value: 1000 });
    security.run_as_group = Some(cri::Int64Value { value: 2000 });
    security.supplemental_groups = vec![3000, 4000];
    security.supplemental_groups_policy = cri::SupplementalGroupsPolicy::Strict.into();
    security.readonly_rootfs = true;
    security.no_new_privs = true;
    security.masked_paths = vec!["/proc/kcore".into(), "/sys/firmware".into()];
    security.readonly_paths = vec!["/proc/sys".into()];
    security.seccomp = Some(profile(ProfileType::RuntimeDefault));
    case
}

#[test]
fn a_container_that_asks_for_everything() {
    let (_, plan) = everything().plan();
    golden("everything", &text::container(&plan));
}

#[test]
fn a_container_with_labels_an_image_as_a_volume_and_a_described_device() {
    let mut case = Case::new();
    case.host.selinux = true;
    case.place.apparmor = "berth-default".into();
    case.security().selinux_options =
        Some(cri::SeLinuxOption { level: "s0:c1,c2".into(), ..Default::default() });
    case.config.mounts = vec![cri::Mount {
        container_path: "/models".into(),
        readonly: true,
        image: Some(cri::ImageSpec { image: "models:1".into(), ..Default::default() }),
        image_sub_path: "a/b".into(),
        ..Default::default()
    }];
    let layers = vec!["/layers/3/fs".into(), "/layers/2/fs".into()];
    case.place.image_volumes.insert(0, layers);
    case.place.cdi = serde_json::from_value(json!({
        "env": ["GPU=0"],
        "deviceNodes": [{"path": "/dev/gpu0", "type": "c", "major": 195, "minor": 0, "fileMode": 438}],
        "mounts": [{"hostPath": "/opt/driver", "containerPath": "/usr/lib/driver", "options": ["ro", "nosuid"]}],
        "additionalGids": [44],
    }))
    .unwrap();
    let (_, plan) = case.plan();
    golden("labels-image-cdi", &text::container(&plan));
}

#[test]
fn a_persons_container_with_its_own_rules() {
    let mut case = Case::new();
    case.config.mounts = vec![mount("/data", "/home/me/data")];
    case.config.args = vec!["-f".into()];
    case.security().seccomp = Some(profile(ProfileType::RuntimeDefault));
    case.place.volatile = false;
    case.place.log = Some("/var/lib/berth/logs/c1/container.log".into());
    case.options = Options {
        restart: launch::Restart { policy: launch::restart::Policy::OnFailure.into(), max_retries: 3 },
        log_max_bytes: 10 << 20,
        log_max_files: 3,
        log_rate_bytes: 0,
        layer_max_bytes: 0,
        entrypoint: Some("/bin/httpd".into()),
        user: Some("1000:www".into()),
        create_bind_sources: true,
        stop_signal: Some(2),
        pids: Some(100),
        health: None,
    };
    let (_, plan) = case.plan();
    golden("standalone", &text::container(&plan));
}

#[test]
fn a_container_in_the_hosts_namespaces() {
    let mut case = Case::new();
    let node = cri::NamespaceMode::Node.into();
    case.security().namespace_options =
        Some(cri::NamespaceOption { network: node, pid: node, ipc: node, ..Default::default() });
    (case.place.pod_net, case.place.pod_ipc, case.place.pod_uts) = (None, None, None);
    case.place.shm = Some("/dev/shm".into());
    case.sandbox.hostname = String::new();
    let (_, plan) = case.plan();
    golden("host-namespaces", &text::container(&plan));
}

#[test]
fn a_process_beside_the_containers_own() {
    let (document, _) = everything().plan();
    let plain = Exec { args: vec!["id".into()], ..Default::default() };
    let asked = Exec {
        own_env: vec![b"PATH=/bin".to_vec(), b"BYTES=\xff".to_vec()],
        args: vec!["sh".into(), "-c".into(), "id; exit 3".into()],
        env: vec![b"A=\xfe".to_vec(), b"LANG=C".to_vec()],
        user: "app:4000".into(),
        cwd: "/tmp".into(),
        tty: true,
        rows: 24,
        columns: 80,
        privileged: true,
    };
    for (name, exec) in [("exec", plain), ("exec-privileged", asked)] {
        golden(name, &text::process(&exec_process(&Document::of(document.clone()).unwrap(), &exec).unwrap()));
    }
}

/// As the kubelet asks: one range for all ids.
fn users() -> cri::UserNamespace {
    let maps = vec![cri::IdMapping { container_id: 0, host_id: 131_072, length: 65_536 }];
    cri::UserNamespace { mode: cri::NamespaceMode::Pod.into(), uids: maps.clone(), gids: maps }
}

#[test]
fn a_container_with_its_pods_user_namespace() {
    let mut case = Case::new();
    let mut options = case.security().namespace_options.clone().unwrap_or_default();
    options.userns_options = Some(users());
    case.security().namespace_options = Some(options.clone());
    let linux = case.sandbox.linux.get_or_insert_default();
    linux.security_context.get_or_insert_default().namespace_options = Some(options);
    case.place.pod_user = Some("/run/berth/pods/p1/ns/user".into());
    let maps = |host_id| vec![cri::IdMapping { container_id: 0, host_id, length: 65_536 }];
    let mapped = |at: &str, host_id| cri::Mount {
        uid_mappings: maps(host_id),
        gid_mappings: maps(host_id),
        ..mount(at, "/srv/data")
    };
    case.config.mounts =
        vec![mapped("/pods", 131_072), mapped("/others", 200_000), mount("/plain", "/srv/data")];
    case.host.devices = vec![("/dev/kvm".into(), 'c', 10, 232, 0o660)];
    case.config.devices = vec![cri::Device {
        host_path: "/dev/kvm".into(),
        container_path: "/dev/virt".into(),
        permissions: "rw".into(),
    }];
    let (_, plan) = case.plan();
    golden("users", &text::container(&plan));
}

fn pod(
    network: cri::NamespaceMode,
    pid: cri::NamespaceMode,
    ipc: cri::NamespaceMode,
) -> cri::PodSandboxConfig {
    let options = cri::NamespaceOption {
        network: network.into(),
        pid: pid.into(),
        ipc: ipc.into(),
        ..Default::default()
    };
    cri::PodSandboxConfig {
        hostname: "web-1".into(),
        linux: Some(cri::LinuxPodSandboxConfig {
            security_context: Some(cri::LinuxSandboxSecurityContext {
                namespace_options: Some(options),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

#[test]
fn pods_with_a_link_and_with_the_hosts_network() {
    use cri::NamespaceMode::{Container, Node, Pod};
    let mut linked = pod(Pod, Pod, Pod);
    let sysctls = [("net/core/somaxconn", "1024"), ("kernel.shmmax", "65536")];
    linked.linux.get_or_insert_default().sysctls =
        sysctls.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    let link = launch::Link {
        host_name: "bth0123456789ab".into(),
        name: "eth0".into(),
        mtu: 1500,
        bridge_index: 7,
        mac: vec![2, 0x42, 10, 88, 0, 2],
        addresses: vec![launch::Address { ip: vec![10, 88, 0, 2], prefix: 16 }],
        routes: vec![launch::Route { to: Vec::new(), prefix: 0, via: vec![10, 88, 0, 1] }],
        hairpin: true,
        ingress_bits: 10_000_000,
        egress_bits: 0,
    };
    let cgroup = launch::Cgroup { v2: "/sys/fs/cgroup/kubepods/p1".into(), ..Default::default() };
    let plan = |config: &cri::PodSandboxConfig, link, cgroup| {
        sandbox_plan(config, "p1", "/run/berth/pods/p1".into(), link, cgroup).unwrap()
    };
    golden("sandbox-link", &text::sandbox(&plan(&linked, Some(link), cgroup)));
    let host = plan(&pod(Node, Container, Node), None, launch::Cgroup::default());
    golden("sandbox-host", &text::sandbox(&host));
    let mut with_users = pod(Node, Container, Pod);
    let security = with_users.linux.get_or_insert_default().security_context.get_or_insert_default();
    security.namespace_options.get_or_insert_default().userns_options = Some(users());
    golden("sandbox-users", &text::sandbox(&plan(&with_users, None, launch::Cgroup::default())));
}
