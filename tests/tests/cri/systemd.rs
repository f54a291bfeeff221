//! The systemd driver: a scope for each container, in the slice that the kubelet makes for its pod. On machines of cgroup
//! v2 that systemd runs; the VM is one.

use std::{fs, path::PathBuf, process::Command};

use berth_cri::v1 as cri;
use berth_tests::{
    Daemon, Options, Pod, asked, eventually, host_network, program, skip,
    systemd::{self, Slice, property, units},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

const DRIVER: &str = "[daemon]\ncgroup_driver = \"systemd\"\n";

struct Node {
    daemon: Daemon,
    /// Of a pod, as a kubelet names and makes it.
    slice: Slice,
}

fn node(test: &str) -> Option<Node> {
    if !systemd::runs_here() {
        skip(test, "systemd does not run this machine, or not on cgroup v2");
        return None;
    }
    let daemon = Daemon::start_with(Options { over: DRIVER.into(), ..Options::default() });
    daemon.load_fixture();
    let slice = Slice::of(&format!("{}/besteffort/pod1", daemon.cgroup_parent()));
    Some(Node { daemon, slice })
}

impl Node {
    fn config(&self, name: &str) -> cri::PodSandboxConfig {
        let mut config = host_network(name);
        config.linux.get_or_insert_default().cgroup_parent = self.slice.path();
        config
    }

    fn pod(&self, name: &str) -> Pod {
        self.daemon.run_pod(self.config(name)).unwrap()
    }

    /// The directory of a container's scope.
    fn scope(&self, id: &str) -> PathBuf {
        PathBuf::from(format!("/sys/fs/cgroup{}/{}", self.slice.path(), unit(id)))
    }

    /// Those who have gone took their scopes along.
    fn none_left(&self) {
        eventually("systemd to let the scopes go", || {
            let left = units("berth-*.scope");
            let ours = fs::read_dir(format!("/sys/fs/cgroup{}", self.slice.path()));
            let ours = ours.into_iter().flatten().flatten().filter(|entry| entry.path().is_dir()).count();
            (left.is_empty() && ours == 0).then_some(())
        });
    }
}

fn unit(id: &str) -> String {
    format!("berth-{id}.scope")
}

fn cgroup_of(pid: i64) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("it runs");
    text.trim().trim_start_matches("0::").to_owned()
}

#[test]
fn a_container_is_a_scope_in_its_pods_slice() {
    let Some(node) = node("a_container_is_a_scope_in_its_pods_slice") else { return };
    let daemon = &node.daemon;
    let answer = daemon.call(daemon.runtime().runtime_config(cri::RuntimeConfigRequest {})).unwrap();
    assert_eq!(answer.linux.unwrap().cgroup_driver(), cri::CgroupDriver::Systemd);
    let pod = node.pod("scope");
    let wanted = asked("c", &["sleep", "inf"]).limited(|limits| limits.memory_limit_in_bytes = 64 << 20);
    let id = daemon.launch(&pod, &wanted).unwrap();

    let path = format!("{}/{}/container", node.slice.path(), unit(&id));
    let details = daemon.details(&id);
    assert_eq!(details["cgroup"], path.as_str());
    assert_eq!(cgroup_of(details["pid"].as_i64().unwrap()), path);
    assert_eq!(property(&unit(&id), "Slice"), node.slice.name());
    assert_eq!(property(&unit(&id), "Delegate"), "yes");
    assert_eq!(property(&unit(&id), "ActiveState"), "active");
    // Beside it whoever looks after it, and nobody else any more.
    let status = fs::read_to_string(format!("/proc/{}/status", details["pid"])).unwrap();
    let shim = status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap().trim().to_owned();
    let beside = fs::read_to_string(node.scope(&id).join("supervisor/cgroup.procs")).unwrap();
    assert_eq!(beside.trim(), shim);

    // What is below the scope is not systemd's: neither limits nor device rules are undone.
    let memory = || fs::read_to_string(node.scope(&id).join("container/memory.max")).unwrap();
    assert_eq!(memory().trim(), (64 << 20).to_string());
    let (_, disk) = berth_tests::block_device().expect("a machine of systemd's has a disk");
    daemon.exec_ok(&id, &["mknod", "/dev/disk", "b", &disk]);
    let open = || {
        let answer = daemon.exec(&id, &["open", "/dev/disk", "r"], 60).unwrap();
        String::from_utf8_lossy(&answer.stderr).into_owned()
    };
    assert!(open().contains("Operation not permitted"), "{}", open());
    systemd::systemctl(&["daemon-reload"]);
    assert_eq!(memory().trim(), (64 << 20).to_string());
    assert!(open().contains("Operation not permitted"), "{}", open());

    let update = cri::UpdateContainerResourcesRequest {
        container_id: id.clone(),
        linux: Some(cri::LinuxContainerResources { memory_limit_in_bytes: 96 << 20, ..Default::default() }),
        ..Default::default()
    };
    daemon.call(daemon.runtime().update_container_resources(update)).unwrap();
    assert_eq!(memory().trim(), (96 << 20).to_string());
    // The pod's slice has what its containers use.
    let request = cri::PodSandboxStatsRequest { pod_sandbox_id: pod.id.clone() };
    let stats = daemon.call(daemon.runtime().pod_sandbox_stats(request)).unwrap().stats.unwrap();
    assert_ne!(stats.linux.unwrap().memory.unwrap().usage_bytes.unwrap().value, 0);

    daemon.stop_container(&id, 10).unwrap();
    assert_eq!(daemon.exited(&id).exit_code, 143);
    daemon.remove_container(&id).unwrap();
    daemon.remove_pod(&pod.id).unwrap();
    node.none_left();
}

#[test]
fn how_a_container_ended_is_known_though_its_scope_goes() {
    let Some(node) = node("how_a_container_ended_is_known_though_its_scope_goes") else { return };
    let daemon = &node.daemon;
    let pod = node.pod("ends");
    let eats = asked("eats", &["eat", "512M"]).limited(|limits| limits.memory_limit_in_bytes = 32 << 20);
    let (status, _) = daemon.run_to_end(&pod, &eats).unwrap();
    assert_eq!((status.reason.as_str(), status.exit_code), ("OOMKilled", 137));
    let (status, _) = daemon.run_to_end(&pod, &asked("seven", &["exit", "7"])).unwrap();
    assert_eq!((status.reason.as_str(), status.exit_code), ("Error", 7));
    let refused = asked("missing", &[]).with(|config| config.command = vec!["/nosuch".into()]);
    let refused = daemon.launch(&pod, &refused).unwrap_err();
    assert!(refused.message().contains("nosuch"), "{refused}");
    daemon.remove_pod(&pod.id).unwrap();
    node.none_left();
}

#[test]
fn scopes_outlive_daemons_and_go_with_containers_whose_shims_are_killed() {
    let Some(mut node) = node("scopes_outlive_daemons") else { return };
    let pod = node.pod("outlives");
    let ids = ["a", "b"].map(|name| node.daemon.launch(&pod, &asked(name, &["sleep", "inf"])).unwrap());
    node.daemon.kill9();
    node.daemon.up();
    let daemon = &node.daemon;
    for id in &ids {
        assert_eq!(daemon.status(id).unwrap().state(), cri::ContainerState::ContainerRunning);
        daemon.exec_ok(id, &["true"]);
    }
    let shim = fs::read_to_string(node.scope(&ids[0]).join("supervisor/cgroup.procs")).unwrap();
    kill(Pid::from_raw(shim.trim().parse().unwrap()), Signal::SIGKILL).unwrap();
    if crate::kernel_keeps_exit_statuses() {
        eventually("another shim to take its place", || {
            let now = fs::read_to_string(node.scope(&ids[0]).join("supervisor/cgroup.procs")).ok()?;
            (!now.trim().is_empty() && now != shim).then_some(())
        });
        daemon.exec_ok(&ids[0], &["true"]);
        daemon.stop_container(&ids[0], 0).unwrap();
    }
    assert_eq!(daemon.exited(&ids[0]).exit_code, 137);
    daemon.exec_ok(&ids[1], &["true"]);
    daemon.remove_pod(&pod.id).unwrap();
    node.none_left();
}

#[test]
fn a_shared_pid_namespaces_reaper_is_in_a_scope_too() {
    let Some(node) = node("a_shared_pid_namespaces_reaper_is_in_a_scope_too") else { return };
    let daemon = &node.daemon;
    let mut config = node.config("shared");
    let security = config.linux.get_or_insert_default().security_context.get_or_insert_default();
    security.namespace_options.get_or_insert_default().pid = cri::NamespaceMode::Pod.into();
    let pod = daemon.run_pod(config).unwrap();
    assert_eq!(property(&unit(&pod.id), "ActiveState"), "active");
    let shared = asked("c", &["sleep", "inf"]).secured(|security| {
        security.namespace_options.get_or_insert_default().pid = cri::NamespaceMode::Pod.into();
    });
    let id = daemon.launch(&pod, &shared).unwrap();
    daemon.exec_ok(&id, &["true"]);
    daemon.stop_pod(&pod.id).unwrap();
    daemon.remove_pod(&pod.id).unwrap();
    node.none_left();
}

#[test]
fn many_scopes_begin_and_end_at_once() {
    let Some(node) = node("many_scopes_begin_and_end_at_once") else { return };
    let (daemon, pod) = (&node.daemon, node.pod("many"));
    std::thread::scope(|scope| {
        for number in 0..12 {
            let pod = &pod;
            scope.spawn(move || {
                let (status, _) = daemon.run_to_end(pod, &asked(&format!("c{number}"), &["true"])).unwrap();
                assert_eq!(status.exit_code, 0);
            });
        }
    });
    daemon.remove_pod(&pod.id).unwrap();
    node.none_left();
}

#[test]
fn a_parent_that_is_no_slice_is_refused_and_no_parent_is_the_daemons_own() {
    let Some(node) = node("a_parent_that_is_no_slice_is_refused") else { return };
    let daemon = &node.daemon;
    let own = Slice::of(daemon.cgroup_parent());
    let pod = daemon.run_pod(host_network("own")).unwrap();
    let id = daemon.launch(&pod, &asked("c", &["sleep", "inf"])).unwrap();
    assert_eq!(property(&unit(&id), "Slice"), own.name());
    daemon.remove_pod(&pod.id).unwrap();
    node.none_left();
    let mut bad = host_network("bad");
    bad.linux.get_or_insert_default().cgroup_parent = "a--b.slice".into();
    let refused = daemon.run_pod(bad).unwrap_err();
    assert_eq!(refused.code(), tonic::Code::InvalidArgument, "{refused}");
    assert!(refused.message().contains("a--b.slice"), "{refused}");
}

/// Anywhere else the daemon says at once what would fail at each container.
#[test]
fn a_host_without_systemd_or_cgroup_v2_refuses_the_driver() {
    if systemd::runs_here() {
        return skip("a_host_without_systemd_or_cgroup_v2_refuses_the_driver", "systemd runs this machine");
    }
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("berthd.toml");
    let (root, state) = (dir.path().join("root"), dir.path().join("state"));
    fs::write(
        &config,
        format!(
            "{DRIVER}root = {root:?}\nstate = {state:?}\nlisten = \"unix://{}\"\n",
            state.join("s").display()
        ),
    )
    .unwrap();
    let output = Command::new(program("berthd")).arg("--config").arg(&config).output().unwrap();
    assert!(!output.status.success());
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(told.contains("systemd") && told.contains("cgroup_driver"), "{told}");
}
