//! RuntimeClass handlers: OCI runtimes of the host keep the containers of their pods, in namespaces that Berth makes. Each
//! rule is tested with `berth oci` as the runtime, which is always there, and with runc and runsc, which has a kernel of
//! its own, where they are installed.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use berth_cri::v1 as cri;
use berth_tests::{Daemon, Options, Pod, asked, eventually, images, pod, program, skip};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use tonic::{Code, Status};

const OURS: &str = "berth-oci";
const RUNSC: &str = "runsc";
/// Those of the host, with flags of their own. A network stack of runsc's takes the pod's addresses for itself, and leaves
/// none for the next container.
const OTHERS: [(&str, &str); 2] = [("runc", ""), (RUNSC, "--network=host")];

/// A daemon with both handlers. Its own directory holds the link by which `berth` is an OCI runtime.
struct Node {
    daemon: Daemon,
    handlers: Vec<&'static str>,
    dir: tempfile::TempDir,
}

fn node(test: &str) -> Node {
    let dir = tempfile::tempdir().expect("make a directory");
    let handler = |name: &str, path: &Path| format!("[handlers.{name}]\ntype = \"oci\"\npath = {path:?}\n");
    let mut over = handler(OURS, &program("berth-oci"));
    let mut handlers = vec![OURS];
    for (other, args) in OTHERS {
        let places = ["/usr/sbin", "/usr/bin", "/usr/local/bin"].map(|dir| Path::new(dir).join(other));
        match places.into_iter().find(|path| path.exists()) {
            Some(path) => {
                over.push_str(&handler(other, &path));
                over.push_str(&format!("args = {:?}\n", args.split_whitespace().collect::<Vec<_>>()));
                handlers.push(other);
            }
            None => skip(&format!("{test}, with {other}"), &format!("{other} is not installed")),
        }
    }
    let daemon = Daemon::start_with(Options { over, ..Options::default() });
    daemon.load_fixture();
    Node { daemon, handlers, dir }
}

impl Node {
    fn run(&self, handler: &str, mut config: cri::PodSandboxConfig) -> Result<Pod, Status> {
        let uid = config.metadata.clone().unwrap_or_default().uid;
        let directory = self.daemon.dir().join("pod-logs").join(uid);
        fs::create_dir_all(&directory).expect("make the log directory");
        config.log_directory = directory.display().to_string();
        let request =
            cri::RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: handler.into() };
        let id = self.daemon.call(self.daemon.runtime().run_pod_sandbox(request))?.pod_sandbox_id;
        Ok(Pod { id, config })
    }

    fn told(&self, id: &str, words: &[&str]) -> Value {
        serde_json::from_str(&self.daemon.exec_ok(id, words)).expect("info is JSON")
    }
}

/// The shim of a container that it has started itself.
fn shim_of(daemon: &Daemon, id: &str) -> Pid {
    let init = daemon.details(id)["pid"].as_i64().expect("it has a pid");
    let status = fs::read_to_string(format!("/proc/{init}/status")).expect("it runs");
    let shim = status.lines().find_map(|line| line.strip_prefix("PPid:")).expect("it has a parent").trim();
    let name = fs::read_to_string(format!("/proc/{shim}/comm")).expect("its parent runs");
    assert!(name.starts_with("berth-shim"), "{name}");
    Pid::from_raw(shim.parse().expect("a pid"))
}

#[test]
fn handlers_are_listed_with_what_they_can_and_an_unknown_one_is_told() {
    let node = node("handlers_are_listed_with_what_they_can");
    let daemon = &node.daemon;
    let status = daemon.call(daemon.runtime().status(cri::StatusRequest::default())).unwrap();
    for name in ["", "berth"].iter().chain(&node.handlers) {
        let handler = status.runtime_handlers.iter().find(|handler| handler.name == *name);
        let features = handler.and_then(|handler| handler.features).expect(name);
        assert!(features.recursive_read_only_mounts || [OURS, RUNSC].contains(name), "{name}");
        assert!(!features.user_namespaces || matches!(*name, "" | "berth"), "{name}");
    }
    let refused = node.run("kata", pod("kata")).unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
    assert!(refused.message().contains("no runtime handler \"kata\""), "{refused}");
    let mut users = pod("users");
    let map = || vec![cri::IdMapping { host_id: 1 << 20, container_id: 0, length: 65536 }];
    let linux = users.linux.get_or_insert_default();
    let options = linux.security_context.get_or_insert_default().namespace_options.get_or_insert_default();
    options.userns_options =
        Some(cri::UserNamespace { mode: cri::NamespaceMode::Pod.into(), uids: map(), gids: map() });
    let refused = node.run(OURS, users).unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    assert!(refused.message().contains("has no user namespaces"), "{refused}");
}

/// The sizes of huge pages that the kernel has, as a kubelet writes them: 2MB, 1GB.
fn huge_pages() -> Vec<String> {
    let names = fs::read_dir("/sys/kernel/mm/hugepages").into_iter().flatten().flatten();
    let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let kibibytes = |name: String| name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse::<u64>().ok();
    let written =
        |size: u64| if size < 1 << 20 { format!("{}MB", size >> 10) } else { format!("{}GB", size >> 20) };
    names.filter_map(kibibytes).map(written).collect()
}

/// A kubelet sends a nought for each size of huge pages to every container that asks for none, hugetlb controller or not.
#[test]
fn a_kubelets_noughts_of_huge_pages_keep_no_handler_from_its_work() {
    let node = node("a_kubelets_noughts_of_huge_pages_keep_no_handler_from_its_work");
    for handler in &node.handlers {
        let pod = node.run(handler, pod(handler)).unwrap();
        let nought = |page_size: String| cri::HugepageLimit { page_size, limit: 0 };
        let noughts = huge_pages().into_iter().map(nought).collect();
        let asked = asked("c", &["true"]).limited(|resources| resources.hugepage_limits = noughts);
        let id = node.daemon.launch(&pod, &asked).unwrap();
        assert_eq!(node.daemon.exited(&id).exit_code, 0, "{handler}");
    }
}

#[test]
fn an_oci_runtimes_container_lives_as_any_other() {
    let node = node("an_oci_runtimes_container_lives_as_any_other");
    let daemon = &node.daemon;
    for handler in &node.handlers {
        let pod = node.run(handler, pod("life")).unwrap();
        assert_eq!(daemon.pod_status(&pod.id).unwrap().runtime_handler, *handler);
        let (status, log) = daemon.run_to_end(&pod, &asked("echo", &["echo", "hello"])).unwrap();
        assert_eq!((status.exit_code, status.reason.as_str()), (0, "Completed"), "{handler}");
        assert_eq!(log.iter().map(|line| line.content.as_str()).collect::<Vec<_>>(), ["hello"], "{handler}");
        let (status, _) = daemon.run_to_end(&pod, &asked("seven", &["exit", "7"])).unwrap();
        assert_eq!((status.exit_code, status.reason.as_str()), (7, "Error"), "{handler}");
        let id = daemon.launch(&pod, &asked("sleep", &["sleep", "inf"]).env("A", b"b")).unwrap();
        let seen = node.told(&id, &["info"]);
        // In the pod's network, which Berth has made.
        let ip = daemon.pod_ip(&pod);
        assert!(seen["interfaces"].to_string().contains(&ip), "{handler}: no {ip} in {}", seen["interfaces"]);
        assert_eq!((&seen["env"]["A"], &seen["env"]["HOME"]), (&"b".into(), &"/root".into()), "{handler}");
        assert_eq!(daemon.exec(&id, &["exit", "9"], 10).unwrap().exit_code, 9, "{handler}");
        let missing = daemon.exec(&id, &["nosuch"], 10).unwrap_err();
        assert!(missing.message().contains("nosuch"), "{handler}: {missing}");
        let late = daemon.exec(&id, &["sleep", "inf"], 1).unwrap_err();
        assert_eq!(late.code(), Code::DeadlineExceeded, "{handler}: {late}");
        // TERM by the runtime; the fixture ends by it.
        daemon.stop_container(&id, 30).unwrap();
        assert_eq!(daemon.exited(&id).exit_code, 143, "{handler}");
        let id = daemon.launch(&pod, &asked("killed", &["trap", "TERM"])).unwrap();
        daemon.stop_container(&id, 0).unwrap();
        assert_eq!(daemon.exited(&id).exit_code, 137, "{handler}");
        daemon.remove_container(&id).unwrap();
        let refused = daemon.launch(&pod, &asked("nosuch", &[]).with(|c| c.command = vec!["/nosuch".into()]));
        let refused = refused.unwrap_err();
        assert!(refused.message().contains("nosuch"), "{handler}: {refused}");
        daemon.remove_pod(&pod.id).unwrap();
    }
}

#[test]
fn users_volumes_images_limits_and_terminals_are_as_asked() {
    let node = node("users_volumes_images_limits_and_terminals");
    let daemon = &node.daemon;
    for handler in &node.handlers {
        let pod = node.run(handler, pod("asked")).unwrap();
        let volume = node.dir.path().join(format!("volume-{handler}"));
        fs::create_dir(&volume).unwrap();
        fs::write(volume.join("file"), "in the volume\n").unwrap();
        let mount = cri::Mount {
            host_path: volume.display().to_string(),
            container_path: "/volume".into(),
            readonly: true,
            ..Default::default()
        };
        let image = cri::Mount {
            container_path: "/image".into(),
            image: Some(cri::ImageSpec { image: images::FIXTURE.into(), ..Default::default() }),
            image_sub_path: "etc".into(),
            readonly: true,
            ..Default::default()
        };
        let all = asked("all", &["sleep", "inf"]).mount(mount).mount(image).secured(|security| {
            security.run_as_user = Some(cri::Int64Value { value: 1234 });
            security.run_as_group = Some(cri::Int64Value { value: 77 });
            security.supplemental_groups = vec![88];
        });
        let all = all.limited(|limits| limits.memory_limit_in_bytes = 64 << 20);
        let id = daemon.launch(&pod, &all).unwrap();
        let seen = node.told(&id, &["info"]);
        assert_eq!((&seen["uid"], &seen["gid"]), (&1234.into(), &77.into()), "{handler}");
        assert!(seen["groups"].as_array().unwrap().contains(&88.into()), "{handler}: {}", seen["groups"]);
        let user = daemon.status(&id).unwrap().user.unwrap().linux.unwrap();
        assert_eq!((user.uid, user.gid), (1234, 77), "{handler}");
        assert_eq!(daemon.exec_ok(&id, &["cat", "/volume/file"]), "in the volume\n", "{handler}");
        assert_ne!(daemon.exec(&id, &["write", "/volume/new", "x"], 10).unwrap().exit_code, 0, "{handler}");
        assert!(daemon.exec_ok(&id, &["cat", "/image/passwd"]).contains("root"), "{handler}");
        let stats = cri::ContainerStatsRequest { container_id: id.clone() };
        let stats = daemon.call(daemon.runtime().container_stats(stats)).unwrap().stats.unwrap();
        assert_ne!(stats.memory.unwrap().usage_bytes.unwrap().value, 0, "{handler}");
        let privileged =
            asked("privileged", &["sleep", "inf"]).secured(|security| security.privileged = true);
        let id = daemon.launch(&pod, &privileged).unwrap();
        let (inside, here) = (node.told(&id, &["info"]), fs::read_to_string("/proc/self/status").unwrap());
        let ours = here.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap().trim();
        // A kernel of its own knows fewer.
        assert!(inside["caps"]["effective"] == ours || *handler == RUNSC, "{handler}: {}", inside["caps"]);
        let tty = asked("tty", &["info"]).with(|config| config.tty = true);
        assert_eq!(daemon.info(&pod, &tty)["tty"], serde_json::json!([true, true, true]), "{handler}");
        daemon.remove_pod(&pod.id).unwrap();
    }
}

#[test]
fn a_new_daemon_and_a_new_shim_find_an_oci_runtimes_container() {
    let mut node = node("a_new_daemon_and_a_new_shim");
    for handler in node.handlers.clone() {
        let pod = node.run(handler, pod("recover")).unwrap();
        let id = node.daemon.launch(&pod, &asked("sleep", &["sleep", "inf"])).unwrap();
        node.daemon.kill9();
        node.daemon.up();
        let daemon = &node.daemon;
        let running =
            |daemon: &Daemon| daemon.status(&id).unwrap().state() == cri::ContainerState::ContainerRunning;
        assert!(running(daemon), "{handler}");
        daemon.exec_ok(&id, &["true"]);
        if crate::kernel_keeps_exit_statuses() {
            kill(shim_of(daemon, &id), Signal::SIGKILL).unwrap();
            eventually("another shim to take over", || {
                let log = daemon.log();
                let mut taken = log.lines().filter(|line| line.contains("another took over"));
                taken.any(|line| line.contains(&id)).then_some(())
            });
            assert!(running(daemon), "{handler}");
            daemon.exec_ok(&id, &["true"]);
        } else {
            skip(
                "a_new_daemon_and_a_new_shim, a shim killed",
                "the kernel keeps no exit statuses (before 6.15)",
            );
        }
        daemon.stop_container(&id, 30).unwrap();
        assert_eq!(daemon.exited(&id).exit_code, 143, "{handler}");
        daemon.remove_pod(&pod.id).unwrap();
    }
}

/// A runtime may keep mounts with its state, as runsc does: they go with the container, and so does the state.
#[test]
fn what_a_runtime_has_mounted_for_itself_goes_with_the_container() {
    let dir = tempfile::tempdir().unwrap();
    let (runtime, inner) = (dir.path().join("runtime"), program("berth-oci"));
    let script = format!(
        "#!/bin/sh\nfor word; do [ \"$before\" = --root ] && root=$word; before=$word; done\n\
         case \" $* \" in *\" create \"*)\n\
         mkdir -p \"$root/kept\"; touch \"$root/one\" \"$root/kept/two\"\n\
         for file in one kept/two; do mount --bind /proc/self/ns/net \"$root/$file\"; done;; esac\n\
         exec {} \"$@\"\n",
        inner.display()
    );
    fs::write(&runtime, script).unwrap();
    fs::set_permissions(&runtime, fs::Permissions::from_mode(0o755)).unwrap();
    let over = format!("[handlers.mounts]\ntype = \"oci\"\npath = {runtime:?}\n");
    let daemon = Daemon::start_with(Options { over, ..Options::default() });
    daemon.load_fixture();
    let node = Node { daemon, handlers: vec!["mounts"], dir };
    let pod = node.run("mounts", pod("mounts")).unwrap();
    let id = node.daemon.launch(&pod, &asked("c", &["sleep", "inf"])).unwrap();
    let mounted = || fs::read_to_string("/proc/self/mountinfo").unwrap().matches(&id).count();
    assert!(mounted() >= 3, "the root and two of the runtime's own");
    node.daemon.stop_container(&id, 0).unwrap();
    node.daemon.remove_container(&id).unwrap();
    assert_eq!(mounted(), 0);
    node.daemon.remove_pod(&pod.id).unwrap();
}
