//! What a kubelet does when a disk gets full: images that nobody uses go, and then pods. Of static pods it takes none, so that needs a cluster.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use berth_cri::v1 as cri;
use berth_fixtures::{Image, Layer};
use berth_tests::{images, until};
use rustix::{
    fs::{StatVfs, statvfs},
    mount::{MountFlags, UnmountFlags, mount, unmount},
};
use serde_json::{Value, json};

use crate::{
    cluster::{self, Cluster, busybox},
    node::{KEPT, Node, PATIENCE, Setting, container, fixture, with},
};

/// On a node without a cluster, which needs no image but the fixture's afterwards.
pub const ON_A_NODE: &[(&str, crate::Test)] =
    &[("images_that_nobody_uses_go_where_room_is_short", short_of_room)];
pub const TOGETHER: &[(&str, cluster::Test)] =
    &[("a_pod_that_writes_more_than_its_limit_is_evicted", over_its_limit)];
/// Those that want a kubelet of their own.
pub const BY_ITSELF: &[(&str, cluster::Test)] = &[
    ("who_fills_the_nodes_disk_is_evicted", full_disk),
    ("images_go_until_their_disk_is_below_the_lower_threshold", thresholds),
];

/// The kubelet looks for images to remove every five minutes.
const COLLECTION: Duration = Duration::from_secs(420);
const MIB: u64 = 1 << 20;

fn short_of_room(node: &Node) {
    const UNUSED: &str = "localhost/unused:1";
    let image = |text: u8| Image::new().layer(Layer::new().file("big", 0o644, vec![text; 16 * MIB as usize]));
    node.daemon().load_image(UNUSED, &image(b'a'));
    node.daemon().load_image(KEPT, &image(b'b'));
    let pod = node.run("stays", json!({"containers": [fixture("c", &["sleep", "inf"])]}));
    pod.wait_ready();
    let before = used(node);
    node.stop_kubelet();
    // Any disk is fuller than that.
    let eviction = json!({"imagefs.available": "99%", "memory.available": "10Mi"});
    let over = json!({
        "staticPodPath": node.manifests(), "registerNode": false,
        "evictionHard": eviction, "imageMinimumGCAge": "1ms",
    });
    node.set(Setting { over, arguments: Vec::new() });
    node.start_kubelet();
    let gone = until(PATIENCE, || (!names(node).contains(&UNUSED.to_owned())).then_some(()));
    assert!(gone.is_some(), "{:?} are there\n{}", names(node), node.kubelet_log());
    let left = names(node);
    assert!([images::FIXTURE, KEPT].iter().all(|name| left.contains(&(*name).to_owned())), "{left:?}");
    let now = used(node);
    assert!(now + 16 * MIB <= before, "{before} bytes were used, and now {now}");
    assert_eq!(container(&pod.wait_ready(), "c")["restartCount"], 0);
}

fn over_its_limit(cluster: &Cluster) {
    let name = "over-its-limit";
    let script = "dd if=/dev/zero of=/grown bs=1M count=32 2>/dev/null; sleep 1000000";
    let greedy = with(busybox("c", script), json!({"resources": {"limits": {"ephemeral-storage": "8Mi"}}}));
    let pod = cluster.pod(name, &json!({"terminationGracePeriodSeconds": 1, "containers": [greedy]}));
    let status = evicted(cluster, name);
    let message = status["message"].as_str().unwrap_or_default();
    // Of the pod or of its only container, whichever it adds up first.
    let told = ["ephemeral local storage usage exceeds", "exceeded its local ephemeral storage limit"];
    assert!(told.iter().any(|words| message.contains(words)), "{status}");
    nothing_runs(cluster, name);
    drop(pod);
    nothing_is_left(cluster, name);
}

fn full_disk(cluster: &Cluster) {
    let disk = Disk::mount(cluster.node().dir().join("small"), "64m");
    let over = json!({
        "evictionHard": {"nodefs.available": "24Mi", "imagefs.available": "1%", "memory.available": "10Mi"},
        "evictionPressureTransitionPeriod": "1s",
        // Who has written how much.
        "volumeStatsAggPeriod": "2s",
    });
    let arguments = vec![format!("--root-dir={}", disk.path().display())];
    let kubelet = cluster.other_kubelet(over, arguments, |_| ());
    let writer = |name: &str| {
        let spec = json!({
            "terminationGracePeriodSeconds": 1,
            "containers": [with(busybox("c", "sleep 1000000"), json!({
                "volumeMounts": [{"name": "empty", "mountPath": "/empty"}],
            }))],
            "volumes": [{"name": "empty", "emptyDir": {}}],
        });
        cluster.pod(name, &spec)
    };
    let (greedy, modest) = (writer("greedy"), writer("modest"));
    let before = cluster.wait_ready("modest");
    cluster.wait_ready("greedy");
    let write = |file: &str, mib: u32| {
        let script = format!("dd if=/dev/zero of=/empty/{file} bs=1M count={mib}");
        cluster.run(&["exec", "greedy", "--", "sh", "-c", &script])
    };
    assert!(write("first", 12).status.success());
    // It evicts by what it has counted.
    let counted = until(PATIENCE, || (volume_bytes(cluster, "greedy")? >= 12 * MIB).then_some(()));
    assert!(counted.is_some(), "the summary has {:?} bytes of it", volume_bytes(cluster, "greedy"));
    // Its end may be quicker than the answer.
    write("second", 36);
    let status = evicted(cluster, "greedy");
    let message = status["message"].as_str().unwrap_or_default();
    assert!(message.contains("low on resource: ephemeral-storage"), "{status}");
    nothing_runs(cluster, "greedy");
    let after = cluster.wait_ready("modest");
    let identity = |pod: &Value| {
        let status = container(pod, "c");
        (status["containerID"].clone(), status["restartCount"].clone())
    };
    assert_eq!(identity(&after), identity(&before));
    cluster.wait_for("nodes", crate::node::NAME, "no pressure", |node| {
        let conditions = node["status"]["conditions"].as_array()?;
        let pressure = conditions.iter().find(|condition| condition["type"] == "DiskPressure")?;
        (pressure["status"] == "False" && node["spec"]["taints"].is_null()).then_some(())
    });
    drop(greedy);
    nothing_is_left(cluster, "greedy");
    drop((modest, kubelet));
}

fn thresholds(cluster: &Cluster) {
    const IMAGES: u64 = 4;
    const EACH: u64 = 8 * MIB;
    // A loaded image is there twice, unpacked and as it came: two thirds are used.
    let disk = Disk::mount(cluster.node().dir().join("images"), "96m");
    let over = json!({
        "imageGCHighThresholdPercent": 50, "imageGCLowThresholdPercent": 45, "imageMinimumGCAge": "1ms",
    });
    let name = |number| format!("localhost/collected:{number}");
    let kubelet = cluster.other_kubelet(over, Vec::new(), |node| {
        node.reconfigure(&format!("[registry]\nroot = {:?}\n", disk.path()));
        for number in 1..=IMAGES {
            let content = vec![u8::try_from(number).expect("a small number"); EACH as usize];
            node.daemon()
                .load_image(&name(number), &Image::new().layer(Layer::new().file("big", 0o644, content)));
        }
    });
    let node = cluster.node();
    let count = || names(node).iter().filter(|name| name.starts_with("localhost/collected")).count() as u64;
    assert_eq!(count(), IMAGES);
    let told = image_file_system(node);
    let place = told.fs_id.map_or_else(String::new, |id| id.mountpoint);
    assert!(Path::new(&place).starts_with(disk.path()), "{place}");
    let (said, full) = (told.used_bytes.map_or(0, |used| used.value), disk.used_bytes());
    // What keeps track of images is there as well.
    assert!(full > 2 * IMAGES * EACH && said.abs_diff(full) < 4 * MIB, "{said} of {full}");
    let gone = until(COLLECTION, || (disk.used_percent() <= 45).then_some(()));
    assert!(
        gone.is_some(),
        "{} % are used, {} images are left\n{}",
        disk.used_percent(),
        count(),
        node.kubelet_log()
    );
    // Not more than what it took: by one image less the disk would be over the threshold.
    let left = count();
    assert!((1..IMAGES).contains(&left), "{left} images are left");
    drop(kubelet);
    cluster.node().leave();
    node.reconfigure("");
    node.start_kubelet();
}

/// Waits until a pod is evicted.
fn evicted(cluster: &Cluster, name: &str) -> Value {
    cluster.wait_for("pods", name, "its eviction", |pod| {
        let status = &pod["status"];
        (status["phase"] == "Failed" && status["reason"] == "Evicted").then(|| status.clone())
    })
}

/// An evicted pod stays for those who look why; its processes and cgroups don't.
fn nothing_runs(cluster: &Cluster, name: &str) {
    let uid = cluster.get("pods", name).map_or(Value::Null, |pod| pod["metadata"]["uid"].clone());
    let uid = uid.as_str().expect("an evicted pod is there").to_owned();
    let running = || {
        let containers = cluster.node().daemon().list_containers(cri::ContainerFilter::default());
        let running = cri::ContainerState::ContainerRunning as i32;
        let ours = |one: &&cri::Container| {
            one.labels.get("io.kubernetes.pod.uid").is_some_and(|of| *of == uid) && one.state == running
        };
        let cgroups = cluster.node().pod_cgroups();
        let cgroups = cgroups.iter().filter(|path| path.display().to_string().contains(&uid)).count();
        containers.iter().filter(ours).count() + cgroups
    };
    let ended = until(PATIENCE, || (running() == 0).then_some(()));
    assert!(ended.is_some(), "{} containers and cgroups of {name} are left", running());
}

/// Berth knows a pod no more.
fn nothing_is_left(cluster: &Cluster, name: &str) {
    let left = || -> Vec<String> {
        let pods = cluster.node().daemon().list_pods(cri::PodSandboxFilter::default());
        let ours =
            |pod: &cri::PodSandbox| pod.metadata.as_ref().is_some_and(|metadata| metadata.name == name);
        pods.into_iter().filter(ours).map(|pod| pod.id).collect()
    };
    let gone = until(PATIENCE, || left().is_empty().then_some(()));
    assert!(gone.is_some(), "{:?} of {name} are left", left());
}

/// What the kubelet has counted in a pod's only volume of its own.
fn volume_bytes(cluster: &Cluster, name: &str) -> Option<u64> {
    let summary: Value = serde_json::from_str(&cluster.node().get("/stats/summary")?).ok()?;
    let pods = summary["pods"].as_array()?;
    let pod = pods.iter().find(|pod| pod["podRef"]["name"] == name)?;
    pod["volume"].as_array()?.iter().find(|one| one["name"] == "empty")?["usedBytes"].as_u64()
}

/// The tags of all images.
fn names(node: &Node) -> Vec<String> {
    let daemon = node.daemon();
    let listed = daemon.call(daemon.images().list_images(cri::ListImagesRequest::default()));
    listed.expect("list images").images.into_iter().flat_map(|image| image.repo_tags).collect()
}

fn image_file_system(node: &Node) -> cri::FilesystemUsage {
    let daemon = node.daemon();
    let told = daemon.call(daemon.images().image_fs_info(cri::ImageFsInfoRequest {}));
    told.expect("ask for the file system of images").image_filesystems.remove(0)
}

fn used(node: &Node) -> u64 {
    image_file_system(node).used_bytes.map_or(0, |used| used.value)
}

/// A file system in memory, unmounted when dropped.
struct Disk(PathBuf);

impl Disk {
    fn mount(path: PathBuf, size: &str) -> Self {
        fs::create_dir_all(&path).expect("make a directory");
        let options = std::ffi::CString::new(format!("size={size},mode=755")).expect("no NUL is in it");
        mount("small", &path, "tmpfs", MountFlags::empty(), options.as_c_str()).expect("mount a tmpfs");
        Self(path)
    }

    fn path(&self) -> &Path {
        &self.0
    }

    fn figures(&self) -> StatVfs {
        statvfs(&self.0).expect("ask a file system")
    }

    fn used_bytes(&self) -> u64 {
        let figures = self.figures();
        (figures.f_blocks - figures.f_bfree) * figures.f_frsize
    }

    fn used_percent(&self) -> u64 {
        let figures = self.figures();
        100 - figures.f_bavail * 100 / figures.f_blocks
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // It goes with the namespace at the latest.
        unmount(&self.0, UnmountFlags::DETACH).ok();
    }
}
