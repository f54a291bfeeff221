//! Pods with user namespaces: root inside is nobody on the node, and files have the owners that each side expects.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, chown},
    path::Path,
};

use berth_cri::v1::{self as cri, NamespaceMode};
use berth_fixtures::{Device, Entry, Layer};
use berth_tests::{Answer, Asked, Daemon, Pod, asked, host_network, pod, skip};
use serde_json::{Value, json};
use tonic::Code;

const LENGTH: u32 = 65_536;

/// As the kubelet asks: one range for both kinds of ids.
fn users(host_id: u32) -> cri::UserNamespace {
    cri::UserNamespace { mode: NamespaceMode::Pod.into(), uids: map(host_id), gids: map(host_id) }
}

fn map(host_id: u32) -> Vec<cri::IdMapping> {
    vec![cri::IdMapping { container_id: 0, host_id, length: LENGTH }]
}

fn options(config: &mut cri::PodSandboxConfig) -> &mut cri::NamespaceOption {
    let security = config.linux.get_or_insert_default().security_context.get_or_insert_default();
    security.namespace_options.get_or_insert_default()
}

fn with_users(mut config: cri::PodSandboxConfig, users: cri::UserNamespace) -> cri::PodSandboxConfig {
    options(&mut config).userns_options = Some(users);
    config
}

/// A container whose namespaces are its pod's.
fn of(pod: &Pod, name: &str, words: &[&str]) -> Asked {
    let options = options(&mut pod.config.clone()).clone();
    asked(name, words).secured(|security| security.namespace_options = Some(options.clone()))
}

/// A daemon, where the kernel can do it and the node says so.
fn daemon(test: &str) -> Option<Daemon> {
    let daemon = Daemon::with_fixture();
    let status = daemon.call(daemon.runtime().status(cri::StatusRequest { verbose: false })).unwrap();
    let features = |handler: &cri::RuntimeHandler| handler.features.is_some_and(|all| all.user_namespaces);
    let told = status.runtime_handlers.iter().all(features);
    assert_eq!(status.features.unwrap().user_namespaces_host_network, told);
    if !told {
        skip(test, "no user namespaces, or overlayfs takes no id-mapped layers (Linux 5.19)");
    }
    told.then_some(daemon)
}

fn stat(daemon: &Daemon, id: &str, path: &str) -> Value {
    serde_json::from_str(&daemon.exec_ok(id, &["stat", path])).unwrap()
}

fn owner(daemon: &Daemon, id: &str, path: &str) -> (u64, u64) {
    let told = stat(daemon, id, path);
    (told["uid"].as_u64().unwrap(), told["gid"].as_u64().unwrap())
}

/// The ids of a container's process as the node has them.
fn node_ids(daemon: &Daemon, id: &str) -> (u32, u32) {
    let process = format!("/proc/{}", daemon.details(id)["pid"]);
    let found = fs::metadata(process).unwrap();
    (found.uid(), found.gid())
}

fn volume(source: &Path, at: &str) -> cri::Mount {
    cri::Mount { host_path: source.display().to_string(), container_path: at.into(), ..Default::default() }
}

/// A directory of root's, with a file that only root reads.
fn secret(daemon: &Daemon, name: &str) -> std::path::PathBuf {
    let directory = daemon.dir().join(name);
    fs::create_dir(&directory).unwrap();
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o777)).unwrap();
    fs::write(directory.join("secret"), "secret\n").unwrap();
    fs::set_permissions(directory.join("secret"), fs::Permissions::from_mode(0o600)).unwrap();
    directory
}

fn denied(daemon: &Daemon, id: &str, words: &[&str]) {
    let answer = daemon.exec(id, words, 10).unwrap();
    let text = String::from_utf8_lossy(&answer.stderr);
    assert!(answer.exit_code != 0 && text.contains("denied"), "{words:?}: {text}");
}

fn has_apparmor() -> bool {
    fs::read_to_string("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.starts_with('Y'))
}

#[test]
fn root_inside_owns_what_is_the_pods_and_is_nobody_on_the_node() {
    let Some(daemon) = daemon("root_inside_owns_what_is_the_pods_and_is_nobody_on_the_node") else { return };
    let uids_apart = cri::UserNamespace { gids: map(300_000), ..users(200_000) };
    let pod = daemon.run_pod(with_users(pod("users"), uids_apart)).unwrap();
    let volume_of_all = secret(&daemon, "all");
    let ask = of(&pod, "c", &["sleep", "inf"]).mount(volume(&volume_of_all, "/all"));
    let id = daemon.launch(&pod, &ask).unwrap();
    let info: Value = serde_json::from_str(&daemon.exec_ok(&id, &["info"])).unwrap();
    let words = |key: &str| info[key].as_str().unwrap().split_whitespace().collect::<Vec<_>>().join(" ");
    assert_eq!((words("uid_map"), words("gid_map")), ("0 200000 65536".into(), "0 300000 65536".into()));
    assert_eq!((&info["uid"], &info["gid"], &info["groups"]), (&json!(0), &json!(0), &json!([0])));
    assert_eq!(node_ids(&daemon, &id), (200_000, 300_000));
    let host = fs::read_link("/proc/self/ns/user").unwrap();
    assert_ne!(info["namespaces"]["user"], host.to_str().unwrap());
    for path in
        ["/", "/bin/fixture", "/etc/passwd", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/dev/shm"]
    {
        assert_eq!(owner(&daemon, &id, path), (0, 0), "{path}");
    }
    for path in ["/new", "/etc/passwd", "/etc/hosts", "/dev/shm/x", "/dev/null", "/dev/stdout"] {
        daemon.exec_ok(&id, &["write", path, "written inside"]);
    }
    assert!(!daemon.exec_ok(&id, &["ls", "/sys/class/net"]).is_empty());
    assert!(daemon.exec_ok(&id, &["ls", "/dev/mqueue"]).is_empty());
    // What is no one's inside stays so.
    assert_eq!(owner(&daemon, &id, "/all/secret"), (65_534, 65_534));
    denied(&daemon, &id, &["cat", "/all/secret"]);
    daemon.exec_ok(&id, &["write", "/all/new", "x"]);
    let made = fs::metadata(volume_of_all.join("new")).unwrap();
    assert_eq!((made.uid(), made.gid()), (200_000, 300_000));
}

#[test]
fn all_capabilities_inside_are_none_over_the_node() {
    let Some(daemon) = daemon("all_capabilities_inside_are_none_over_the_node") else { return };
    let pod = daemon.run_pod(with_users(pod("capable"), users(100_000))).unwrap();
    let data = secret(&daemon, "data");
    let ask = of(&pod, "c", &["sleep", "inf"]).mount(volume(&data, "/data")).secured(|security| {
        security.capabilities =
            Some(cri::Capability { add_capabilities: vec!["ALL".into()], ..Default::default() });
        // Nothing is hidden or read-only by us.
        security.masked_paths = vec!["/none".into()];
        security.readonly_paths = vec!["/none".into()];
    });
    let id = daemon.launch(&pod, &ask).unwrap();
    denied(&daemon, &id, &["cat", "/data/secret"]);
    for path in ["/proc/sys/vm/swappiness", "/proc/sys/kernel/panic"] {
        denied(&daemon, &id, &["write", path, "0"]);
    }
    // Of what is the pod's it has the say.
    daemon.exec_ok(&id, &["write", "/proc/sys/net/ipv4/ip_forward", "1"]);
}

#[test]
fn two_pods_with_different_maps_share_one_image() {
    let Some(daemon) = daemon("two_pods_with_different_maps_share_one_image") else { return };
    // The upper layer changes and removes what the lower one has.
    let lower = Layer::new().file("data/kept", 0o600, "old\n").file("data/gone", 0o600, "gone\n");
    let upper = Layer::new().file("data/kept", 0o600, "new\n").file("data/.wh.gone", 0o644, "");
    daemon.load_image("localhost/shared:1", &berth_tests::images::with_layer(lower).layer(upper));
    let ids = [100_000, 200_000].map(|host_id| {
        let pod = daemon.run_pod(with_users(pod("shared"), users(host_id))).unwrap();
        let ask = of(&pod, "c", &["sleep", "inf"]).image("localhost/shared:1");
        let id = daemon.launch(&pod, &ask).unwrap();
        assert_eq!(node_ids(&daemon, &id), (host_id, host_id));
        id
    });
    let plain = daemon.plain_pod("plain");
    let plain = daemon.launch(&plain, &asked("c", &["sleep", "inf"]).image("localhost/shared:1")).unwrap();
    for id in [&ids[0], &ids[1], &plain] {
        assert_eq!(daemon.exec_ok(id, &["ls", "/data"]), "kept\n");
        assert_eq!(daemon.exec_ok(id, &["cat", "/data/kept"]), "new\n");
        assert_eq!(owner(&daemon, id, "/data/kept"), (0, 0));
        daemon.exec_ok(id, &["write", "/data/kept", "mine"]);
        daemon.exec_ok(id, &["rm", "/etc/group"]);
        assert_eq!(owner(&daemon, id, "/data/kept"), (0, 0));
        assert_eq!(stat(&daemon, id, "/data/kept")["mode"], "0600");
    }
}

#[test]
fn volumes_with_maps_have_the_containers_ids_on_the_disk() {
    let Some(daemon) = daemon("volumes_with_maps_have_the_containers_ids_on_the_disk") else { return };
    let pod = daemon.run_pod(with_users(pod("mapped"), users(100_000))).unwrap();
    let data = secret(&daemon, "data");
    fs::write(data.join("app"), "").unwrap();
    chown(data.join("app"), Some(1000), Some(1001)).unwrap();
    let mapped =
        cri::Mount { uid_mappings: map(100_000), gid_mappings: map(100_000), ..volume(&data, "/data") };
    let read_only = cri::Mount {
        readonly: true,
        recursive_read_only: true,
        container_path: "/fixed".into(),
        ..mapped.clone()
    };
    let ask = of(&pod, "c", &["sleep", "inf"]).mount(mapped).mount(read_only);
    let id = daemon.launch(&pod, &ask).unwrap();
    assert_eq!(daemon.exec_ok(&id, &["cat", "/data/secret", "/fixed/secret"]), "secret\nsecret\n");
    assert_eq!(owner(&daemon, &id, "/data/app"), (1000, 1001));
    daemon.exec_ok(&id, &["write", "/data/made", "inside"]);
    assert_eq!(fs::metadata(data.join("made")).unwrap().uid(), 0);
    let refused = daemon.exec(&id, &["write", "/fixed/x", "x"], 10).unwrap();
    assert!(String::from_utf8_lossy(&refused.stderr).contains("Read-only"), "{refused:?}");
    assert_eq!(daemon.status(&id).unwrap().mounts, ask.0.mounts);

    // Maps of their own need no user namespace of the pod.
    let plain = daemon.plain_pod("plain");
    let shifted = cri::Mount { uid_mappings: map(5000), gid_mappings: map(6000), ..volume(&data, "/data") };
    let id = daemon.launch(&plain, &asked("c", &["sleep", "inf"]).mount(shifted)).unwrap();
    assert_eq!(owner(&daemon, &id, "/data/secret"), (5000, 6000));
}

/// Maps are of the volume's own file system, as with runc: what is mounted below it may be of a kind that can't be mapped,
/// and a volume that works without it should. It is there, with the node's ids.
#[test]
fn what_is_mounted_below_a_volume_with_maps_has_the_nodes_ids() {
    let Some(daemon) = daemon("what_is_mounted_below_a_volume_with_maps_has_the_nodes_ids") else { return };
    let pod = daemon.run_pod(with_users(pod("below"), users(100_000))).unwrap();
    let data = secret(&daemon, "data");
    let below = data.join("below");
    fs::create_dir(&below).unwrap();
    let options = Some(c"mode=0755");
    rustix::mount::mount("tmpfs", &below, "tmpfs", rustix::mount::MountFlags::empty(), options).unwrap();
    fs::write(below.join("deep"), "deep\n").unwrap();
    fs::set_permissions(below.join("deep"), fs::Permissions::from_mode(0o600)).unwrap();
    let mapped =
        cri::Mount { uid_mappings: map(100_000), gid_mappings: map(100_000), ..volume(&data, "/data") };
    let launched = daemon.launch(&pod, &of(&pod, "c", &["sleep", "inf"]).mount(mapped));
    let told = launched.map(|id| {
        (owner(&daemon, &id, "/data/below/deep"), daemon.exec(&id, &["cat", "/data/below/deep"], 5))
    });
    daemon.remove_pod(&pod.id).unwrap();
    rustix::mount::unmount(&below, rustix::mount::UnmountFlags::empty()).unwrap();
    let (owner, read) = told.unwrap();
    // Nobody's, inside: not to be read by the pod's root.
    assert_eq!(owner, (65_534, 65_534));
    let said = String::from_utf8_lossy(&read.unwrap().stderr).into_owned();
    assert!(said.contains("denied"), "{said}");
}

#[test]
fn an_image_as_a_volume_is_roots_inside() {
    let Some(daemon) = daemon("an_image_as_a_volume_is_roots_inside") else { return };
    let layer = Layer::new().file("models/weights", 0o600, "weights\n");
    daemon.load_image("localhost/models:1", &berth_tests::images::with_layer(layer));
    let pod = daemon.run_pod(with_users(pod("image"), users(100_000))).unwrap();
    let image = |at: &str, sub_path: &str| cri::Mount {
        container_path: at.into(),
        readonly: true,
        image: Some(cri::ImageSpec { image: "localhost/models:1".into(), ..Default::default() }),
        image_sub_path: sub_path.into(),
        ..Default::default()
    };
    let ask = of(&pod, "c", &["sleep", "inf"]).mount(image("/all", "")).mount(image("/part", "models"));
    let id = daemon.launch(&pod, &ask).unwrap();
    for path in ["/all/models/weights", "/part/weights"] {
        assert_eq!(daemon.exec_ok(&id, &["cat", path]), "weights\n");
        assert_eq!(owner(&daemon, &id, path), (0, 0));
    }
}

#[test]
fn device_nodes_of_an_image_are_the_roots_inside_and_lead_to_no_device_of_the_node() {
    let Some(daemon) =
        daemon("device_nodes_of_an_image_are_the_roots_inside_and_lead_to_no_device_of_the_node")
    else {
        return;
    };
    let Some((_, number)) = berth_tests::block_device() else {
        let test = "device_nodes_of_an_image_are_the_roots_inside_and_lead_to_no_device_of_the_node";
        return skip(test, "no block device in /dev");
    };
    let (major, minor) = number.split_once(':').unwrap();
    let (major, minor) = (major.parse().unwrap(), minor.parse().unwrap());
    let layer = Layer::new()
        .with(Entry::device("odd/disk", 0o666, Device::Block { major, minor }))
        .with(Entry::device("odd/port", 0o666, Device::Char { major: 1, minor: 4 }))
        .with(Entry::device("odd/null", 0o666, Device::Char { major: 1, minor: 3 }));
    daemon.load_image("localhost/odd:1", &berth_tests::images::with_layer(layer));
    let pod = daemon.run_pod(with_users(pod("odd"), users(100_000))).unwrap();
    let id = daemon.launch(&pod, &of(&pod, "c", &["sleep", "inf"]).image("localhost/odd:1")).unwrap();
    let disk = stat(&daemon, &id, "/odd/disk");
    assert_eq!((&disk["kind"], &disk["device"]), (&json!("block"), &json!([major, minor])));
    for (path, device) in [("/odd/disk", false), ("/odd/port", false), ("/odd/null", true)] {
        assert_eq!(owner(&daemon, &id, path), (0, 0));
        let opened = daemon.exec(&id, &["open", path, "r"], 10).unwrap();
        assert_eq!(opened.exit_code == 0, device, "{path}: {}", String::from_utf8_lossy(&opened.stderr));
    }
}

#[test]
fn what_is_not_roots_inside_is_mapped_too() {
    let Some(daemon) = daemon("what_is_not_roots_inside_is_mapped_too") else { return };
    let pod = daemon.run_pod(with_users(pod("app"), users(100_000))).unwrap();
    let ask = of(&pod, "c", &["sleep", "inf"])
        .secured(|security| {
            security.run_as_user = Some(cri::Int64Value { value: 4000 });
            security.run_as_group = Some(cri::Int64Value { value: 4001 });
            security.supplemental_groups = vec![2000];
            // Labels and filters are set from inside.
            let default = cri::SecurityProfile::default();
            security.seccomp = Some(default.clone());
            security.apparmor = has_apparmor().then_some(default);
        })
        .with(|config| {
            config.tty = true;
            config.devices.push(cri::Device {
                container_path: "/dev/mine".into(),
                host_path: "/dev/zero".into(),
                permissions: "rw".into(),
            });
        });
    let id = daemon.launch(&pod, &ask).unwrap();
    assert_eq!(node_ids(&daemon, &id), (104_000, 104_001));
    let user = daemon.status(&id).unwrap().user.unwrap().linux.unwrap();
    assert_eq!((user.uid, user.gid, user.supplemental_groups), (4000, 4001, vec![4001, 2000]));
    assert_eq!(daemon.exec_ok(&id, &["id"]), "uid=4000 gid=4001 groups=2000,4001\n");
    let info: Value = serde_json::from_str(&daemon.exec_ok(&id, &["info"])).unwrap();
    assert_eq!(info["seccomp"], 2);
    if has_apparmor() {
        assert_eq!(info["apparmor"], "berth-default (enforce)");
    }
    assert_eq!(daemon.exec_ok(&id, &["write", "/dev/stdout", "said"]), "said\n");
    daemon.exec_ok(&id, &["write", "/dev/console", "x"]);
    let device = stat(&daemon, &id, "/dev/mine");
    assert_eq!((&device["kind"], &device["device"]), (&json!("char"), &json!([1, 5])));
    denied(&daemon, &id, &["write", "/new", "x"]);
    // An id that no one has there can't be run as.
    let outside = of(&pod, "outside", &["id"])
        .secured(|security| security.run_as_user = Some(cri::Int64Value { value: 70_000 }));
    let refused = daemon.create(&pod, &outside).unwrap_err();
    assert!(refused.message().contains("70000"), "{refused}");
}

#[test]
fn the_nodes_network_goes_with_a_user_namespace() {
    let Some(daemon) = daemon("the_nodes_network_goes_with_a_user_namespace") else { return };
    let pod = daemon.run_pod(with_users(host_network("host"), users(100_000))).unwrap();
    let id = daemon.launch(&pod, &of(&pod, "c", &["sleep", "inf"])).unwrap();
    let info: Value = serde_json::from_str(&daemon.exec_ok(&id, &["info"])).unwrap();
    let host = |name: &str| fs::read_link(format!("/proc/self/ns/{name}")).unwrap().display().to_string();
    assert_eq!(info["namespaces"]["net"], host("net"));
    assert_ne!(info["namespaces"]["user"], host("user"));
    let names = |text: String| text.lines().map(str::to_owned).collect::<Vec<_>>();
    let links = names(daemon.exec_ok(&id, &["ls", "/sys/class/net"]));
    assert!(links.contains(&"lo".into()), "{links:?}");
    assert!(!names(daemon.exec_ok(&id, &["ls", "/sys/fs/cgroup"])).is_empty());
    let refused = daemon.exec(&id, &["write", "/sys/class/net/lo/ifalias", "x"], 10).unwrap();
    assert_ne!(refused.exit_code, 0);
}

#[test]
fn processes_of_a_pod_are_shared_within_its_user_namespace() {
    let Some(daemon) = daemon("processes_of_a_pod_are_shared_within_its_user_namespace") else { return };
    let mut config = with_users(pod("together"), users(100_000));
    options(&mut config).pid = NamespaceMode::Pod.into();
    let pod = daemon.run_pod(config).unwrap();
    let one = daemon.launch(&pod, &of(&pod, "one", &["sleep", "1000001"])).unwrap();
    let two = daemon.launch(&pod, &of(&pod, "two", &["sleep", "1000002"])).unwrap();
    let info = |id: &str| serde_json::from_str::<Value>(&daemon.exec_ok(id, &["info"])).unwrap();
    let (one_sees, two_sees) = (info(&one), info(&two));
    for name in ["user", "pid", "net", "ipc", "uts"] {
        assert_eq!(one_sees["namespaces"][name], two_sees["namespaces"][name], "{name}");
    }
    daemon.stop_container(&one, 0).unwrap();
    assert_eq!(daemon.status(&one).unwrap().exit_code, 137);
    assert_eq!(daemon.status(&two).unwrap().state(), cri::ContainerState::ContainerRunning);
}

#[test]
fn a_new_daemon_finds_the_pod_and_its_user_namespace() {
    let Some(mut daemon) = daemon("a_new_daemon_finds_the_pod_and_its_user_namespace") else { return };
    let pod = daemon.run_pod(with_users(pod("found"), users(100_000))).unwrap();
    let id = daemon.launch(&pod, &of(&pod, "c", &["sleep", "inf"])).unwrap();
    let user = |daemon: &Daemon, id: &str| {
        let info: Value = serde_json::from_str(&daemon.exec_ok(id, &["info"])).unwrap();
        info["namespaces"]["user"].clone()
    };
    let before = user(&daemon, &id);
    daemon.kill9();
    daemon.up();
    assert_eq!(user(&daemon, &id), before);
    let next = daemon.launch(&pod, &of(&pod, "next", &["sleep", "inf"])).unwrap();
    assert_eq!(user(&daemon, &next), before);
    let stats =
        daemon.call(daemon.runtime().container_stats(cri::ContainerStatsRequest { container_id: next }));
    assert!(stats.unwrap().stats.unwrap().memory.unwrap().working_set_bytes.unwrap().value > 0);
    daemon.stop_pod(&pod.id).unwrap();
    assert_eq!(daemon.status(&id).unwrap().exit_code, 137);
    daemon.remove_pod(&pod.id).unwrap();
}

#[test]
fn what_cannot_be_is_refused_with_its_reason() {
    let Some(daemon) = daemon("what_cannot_be_is_refused_with_its_reason") else { return };
    let told = |answer: Answer<()>, code: Code, words: &str| {
        let status = answer.unwrap_err();
        assert!(status.code() == code && status.message().contains(words), "{words}: {status}");
    };
    let run = |config: cri::PodSandboxConfig| daemon.run_pod(config).map(drop);
    let good = users(100_000);
    let two = cri::UserNamespace { uids: [map(100_000), map(200_000)].concat(), ..good.clone() };
    told(run(with_users(pod("two"), two)), Code::InvalidArgument, "2 mappings");
    let none = cri::UserNamespace { mode: NamespaceMode::Pod.into(), ..Default::default() };
    told(run(with_users(pod("none"), none)), Code::InvalidArgument, "0 mappings");
    let node = cri::UserNamespace { mode: NamespaceMode::Node.into(), ..good.clone() };
    told(run(with_users(pod("node"), node)), Code::InvalidArgument, "node");
    let target = cri::UserNamespace { mode: NamespaceMode::Target.into(), ..good.clone() };
    told(run(with_users(pod("target"), target)), Code::InvalidArgument, "userns_options.mode");
    let mut processes = with_users(pod("pid"), good.clone());
    options(&mut processes).pid = NamespaceMode::Node.into();
    told(run(processes), Code::InvalidArgument, "processes");
    assert!(daemon.list_pods(cri::PodSandboxFilter::default()).is_empty());

    let pod = daemon.run_pod(with_users(pod("good"), good)).unwrap();
    let create = |ask: &Asked| daemon.create(&pod, ask).map(drop);
    let privileged = of(&pod, "privileged", &["id"]).secured(|security| security.privileged = true);
    told(create(&privileged), Code::InvalidArgument, "privileged");
    let other = of(&pod, "other", &["id"]).secured(|security| {
        security.namespace_options.as_mut().unwrap().userns_options = Some(users(200_000));
    });
    told(create(&other), Code::InvalidArgument, "another user namespace");
    // sysfs has no id-mapped mounts.
    let sysfs = cri::Mount {
        uid_mappings: map(100_000),
        gid_mappings: map(100_000),
        ..volume(Path::new("/sys/kernel"), "/kernel")
    };
    told(create(&of(&pod, "sysfs", &["id"]).mount(sysfs.clone())), Code::InvalidArgument, "id-map /kernel");
    let half = cri::Mount { gid_mappings: Vec::new(), ..sysfs };
    told(create(&of(&pod, "half", &["id"]).mount(half)), Code::InvalidArgument, "both");
    assert!(daemon.list_containers(cri::ContainerFilter::default()).is_empty());
}
