//! A pod's namespaces, through the shim's own door. Needs root.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use berth_launch::v1::{Address, Link, NamespaceKind, Route, SandboxPlan, Sysctl, birth::Outcome};

fn plan(dir: &std::path::Path) -> SandboxPlan {
    SandboxPlan {
        version: 1,
        id: "a".repeat(64),
        dir: dir.to_str().unwrap().into(),
        new_namespaces: vec![NamespaceKind::Net.into(), NamespaceKind::Ipc.into(), NamespaceKind::Uts.into()],
        hostname: "pod-a".into(),
        sysctls: vec![Sysctl { name: "net.ipv4.ip_unprivileged_port_start".into(), value: "0".into() }],
        shm_bytes: 1 << 20,
        ..SandboxPlan::default()
    }
}

fn let_go(dir: &std::path::Path) {
    for mount in support::mounts_below(dir) {
        support::run("umount", &["-l", mount.to_str().unwrap()]);
    }
}

#[test]
fn a_pod_has_an_address_on_the_bridge_and_its_link_goes_with_its_pins() {
    let dir = support::directory();
    let (bridge, host) = (support::unique("brt"), support::unique("vet"));
    support::run("ip", &["link", "add", &bridge, "type", "bridge"]);
    support::run("ip", &["addr", "add", "10.213.7.1/24", "dev", &bridge]);
    support::run("ip", &["link", "set", &bridge, "up"]);
    let index = std::fs::read_to_string(format!("/sys/class/net/{bridge}/ifindex")).unwrap();
    let link = Link {
        host_name: host.clone(),
        name: "eth0".into(),
        mtu: 1400,
        bridge_index: index.trim().parse().unwrap(),
        mac: vec![2, 0, 10, 213, 7, 2],
        addresses: vec![Address { ip: vec![10, 213, 7, 2], prefix: 24 }],
        routes: vec![Route { to: vec![], prefix: 0, via: vec![10, 213, 7, 1] }],
        hairpin: true,
        ..Default::default()
    };
    let (mut shim, outcome) =
        support::birth("sandbox", &SandboxPlan { link: Some(link), ..plan(dir.path()) });
    shim.wait().unwrap();
    let Outcome::Ready(_) = outcome else { panic!("{outcome:?}") };
    let net = format!("--net={}/ns/net", dir.path().display());
    let uts = format!("--uts={}/ns/uts", dir.path().display());
    let addresses = support::run("nsenter", &[&net, "ip", "-o", "addr"]);
    assert!(addresses.contains("10.213.7.2/24") && addresses.contains("127.0.0.1/8"), "{addresses}");
    let routes = support::run("nsenter", &[&net, "ip", "route"]);
    assert!(routes.contains("default via 10.213.7.1 dev eth0"), "{routes}");
    support::run("nsenter", &[&net, "/bin/busybox", "ping", "-c", "1", "-W", "2", "10.213.7.1"]);
    assert_eq!(support::run("nsenter", &[&uts, "hostname"]).trim(), "pod-a");
    let port = support::run(
        "nsenter",
        &[&net, "/bin/busybox", "cat", "/proc/sys/net/ipv4/ip_unprivileged_port_start"],
    );
    assert_eq!(port.trim(), "0");
    let mode = std::fs::read_to_string(format!("/sys/class/net/{host}/brport/hairpin_mode")).unwrap();
    assert_eq!(mode.trim(), "1");
    let_go(dir.path());
    support::run("ip", &["link", "del", &bridge]);
    while std::path::Path::new(&format!("/sys/class/net/{host}")).exists() {
        std::thread::yield_now();
    }
}

#[test]
fn a_sandbox_that_fails_leaves_no_mount() {
    let dir = support::directory();
    let sysctls = vec![Sysctl { name: "net.no.such".into(), value: "1".into() }];
    let (mut shim, outcome) = support::birth("sandbox", &SandboxPlan { sysctls, ..plan(dir.path()) });
    shim.wait().unwrap();
    let Outcome::Failure(failure) = outcome else { panic!("{outcome:?}") };
    assert_eq!((failure.step(), failure.object.as_str()), (berth_launch::v1::Step::Sysctl, "net.no.such"));
    assert_eq!(support::mounts_below(dir.path()), Vec::<std::path::PathBuf>::new());
}

#[test]
fn a_shared_pid_namespace_has_a_reaper_that_outlives_the_shim() {
    let dir = support::directory();
    let (mut shim, outcome) =
        support::birth("sandbox", &SandboxPlan { shared_pid: true, ..plan(dir.path()) });
    shim.wait().unwrap();
    let Outcome::Ready(ready) = outcome else { panic!("{outcome:?}") };
    assert!(ready.pid > 0 && ready.pid_start_time > 0);
    let pid = rustix::process::Pid::from_raw(ready.pid).unwrap();
    let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap();
    let seen = support::run(
        "nsenter",
        &[&format!("--pid={}/ns/pid", dir.path().display()), "/bin/busybox", "sh", "-c", "echo $$"],
    );
    assert_ne!(seen.trim(), "1");
    rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL).unwrap();
    let_go(dir.path());
}
