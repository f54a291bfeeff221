//! A node: berthd and a kubelet, and what can be asked of them.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use berth_fixtures::{Image, Layer};
use berth_tests::{Daemon, Options, images, until, web};
use serde_json::{Value, json};

use crate::{
    kubectl,
    world::{self, Driver},
};

pub const NAME: &str = "node";
/// The image with Kubernetes' own test program.
pub const AGNHOST: &str = "localhost/agnhost:1";
/// An image that berthd calls pinned, once it is there.
pub const KEPT: &str = "localhost/kept:1";
/// A kubelet looks once a second and backs off for tens of them.
pub const PATIENCE: Duration = Duration::from_secs(180);

const READ_ONLY_PORT: u16 = 10255;

/// What differs from the usual kubelet.
#[derive(Debug, Clone, Default)]
pub struct Setting {
    /// Laid over its configuration, key by key.
    pub over: Value,
    pub arguments: Vec<String>,
}

/// Dropped, it takes the kubelet down and then berthd, which looks for leaks.
#[derive(Debug)]
pub struct Node {
    kubelet: Mutex<Option<Child>>,
    setting: Mutex<Setting>,
    /// How many settings there were: a static pod of a later one is another, though it be described alike.
    turn: AtomicU32,
    daemon: RwLock<Daemon>,
    dir: PathBuf,
    driver: Driver,
    cgroup: String,
}

impl Node {
    /// One with a kubelet that has no cluster, and more in its configuration.
    pub fn alone(driver: Driver, mut over: Value) -> Self {
        let ours = format!("[registry]\npinned = [{KEPT:?}]\n");
        let ours = match driver {
            Driver::Cgroupfs => ours,
            Driver::Systemd => format!("{ours}[daemon]\ncgroup_driver = \"systemd\"\n"),
        };
        let node = Self::place(driver, Options { over: ours, ..Options::default() });
        let agnhost = fs::read(kubectl::program("agnhost")).expect("read agnhost");
        let layer = Layer::new().directory("tmp", 0o1777).file("agnhost", 0o755, agnhost);
        let image = Image::new().layer(layer).entrypoint(&["/agnhost"]);
        node.daemon().load_image(AGNHOST, &image);
        over["staticPodPath"] = json!(node.manifests());
        over["registerNode"] = json!(false);
        node.set(Setting { over, arguments: Vec::new() });
        node.start_kubelet();
        node
    }

    /// One without a kubelet yet.
    pub fn place(driver: Driver, options: Options) -> Self {
        world::make();
        let daemon = Daemon::with_fixture_and(options);
        let dir = daemon.dir().join("kube");
        fs::create_dir(&dir).expect("make the kubelet's directory");
        world::hide(&dir);
        let node = Self {
            kubelet: Mutex::default(),
            setting: Mutex::default(),
            turn: AtomicU32::new(0),
            driver,
            cgroup: daemon.cgroup_parent().to_owned(),
            dir,
            daemon: RwLock::new(daemon),
        };
        world::make_cgroups(&node.cgroup);
        fs::create_dir(node.manifests()).expect("make the directory of manifests");
        node
    }

    /// Says how the next kubelet is started.
    pub fn set(&self, setting: Setting) {
        self.turn.fetch_add(1, Ordering::Relaxed);
        self.configure(&setting.over);
        *self.setting.lock().unwrap_or_else(PoisonError::into_inner) = setting;
    }

    /// A directory of the node's own.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where pods have their cgroups.
    pub fn pod_cgroups(&self) -> Vec<PathBuf> {
        world::pod_cgroups(self.driver, &self.cgroup)
    }

    /// What a file of a container's cgroup says.
    pub fn container_file(&self, id: &str, file: &str) -> Option<String> {
        world::container_file(self.driver, &self.cgroup, id, file)
    }

    pub fn daemon(&self) -> RwLockReadGuard<'_, Daemon> {
        self.daemon.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// To stop or kill it; the trials that do run alone.
    pub fn daemon_mut(&self) -> RwLockWriteGuard<'_, Daemon> {
        self.daemon.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// A directory for a trial's volumes.
    pub fn volume(&self, name: &str) -> PathBuf {
        let directory = self.dir.join("volumes").join(name);
        // Of an earlier trial by that name.
        fs::remove_dir_all(&directory).ok();
        fs::create_dir_all(&directory).expect("make a volume");
        directory
    }

    /// Starts berthd again with more laid over its configuration; empty: with what it had first. Nothing may be in its care.
    pub fn reconfigure(&self, over: &str) {
        let mut daemon = self.daemon_mut();
        fs::write(daemon.drop_ins().join("trial.toml"), over).expect("write a drop-in");
        daemon.restart();
    }

    /// Where logs of pods are.
    pub fn logs(&self) -> PathBuf {
        self.dir.join("logs")
    }

    pub fn manifests(&self) -> PathBuf {
        self.dir.join("manifests")
    }

    fn configure(&self, over: &Value) {
        let mut config = json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "failCgroupV1": false,
            "containerRuntimeEndpoint": format!("unix://{}", self.daemon().state().join("berth.sock").display()),
            "podLogsDir": self.logs(),
            "volumePluginDir": self.dir.join("plugins"),
            "failSwapOn": false,
            "authentication": {"anonymous": {"enabled": true}, "webhook": {"enabled": false}},
            "authorization": {"mode": "AlwaysAllow"},
            "clusterDomain": "cluster.local",
            "containerLogMaxSize": "64Ki",
            "containerLogMonitorInterval": "3s",
            "syncFrequency": "1s",
            "fileCheckFrequency": "1s",
            // The machine's disk and memory are not what is tested.
            "evictionHard": {"memory.available": "10Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
            "imageGCHighThresholdPercent": 100,
            // Lower takes a capability that may be missing.
            "oomScoreAdj": 0,
            "enforceNodeAllocatable": ["pods"],
            "readOnlyPort": READ_ONLY_PORT,
            "clusterDNS": [],
        });
        // With systemd nothing of it: the kubelet learns the driver from berthd, and has its slice at the root.
        match self.driver {
            Driver::Cgroupfs => {
                config["cgroupDriver"] = json!("cgroupfs");
                config["cgroupRoot"] = json!(self.cgroup);
            }
            // The VM asks nobody for names, and has no file that says whom.
            Driver::Systemd => config["resolvConf"] = json!(""),
        }
        for (key, value) in over.as_object().into_iter().flatten() {
            config[key] = value.clone();
        }
        fs::write(self.config(), config.to_string()).expect("write the kubelet's configuration");
    }

    fn config(&self) -> PathBuf {
        self.dir.join("kubelet.json")
    }

    pub fn start_kubelet(&self) {
        let log = File::options().create(true).append(true).open(self.dir.join("kubelet.log"));
        let log = log.expect("open the kubelet's log");
        let mut command = Command::new(kubectl::program("kubelet"));
        command.arg("--config").arg(self.config()).arg("--root-dir").arg(self.dir.join("root"));
        command.args(["--hostname-override", NAME, "--node-ip", world::NODE_IP]);
        command.args(&self.setting.lock().unwrap_or_else(PoisonError::into_inner).arguments);
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("share the log")).stderr(log);
        let mut child = command.spawn().expect("start the kubelet");
        let healthy = until(PATIENCE, || {
            if let Some(status) = child.try_wait().expect("look at the kubelet") {
                return Some(Err(status));
            }
            self.get("/healthz").filter(|body| body == "ok").map(|_| Ok(()))
        });
        assert!(matches!(healthy, Some(Ok(()))), "the kubelet: {healthy:?}\n{}", self.kubelet_log());
        *self.kubelet.lock().unwrap_or_else(PoisonError::into_inner) = Some(child);
    }

    pub fn stop_kubelet(&self) {
        let child = self.kubelet.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(mut child) = child {
            // Nothing of a kubelet needs an orderly end.
            child.kill().expect("kill the kubelet");
            child.wait().expect("wait for the kubelet");
        }
    }

    /// The end of its log.
    pub fn kubelet_log(&self) -> String {
        let log = fs::read(self.dir.join("kubelet.log")).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    /// What its read-only port says, None for an error.
    pub fn get(&self, path: &str) -> Option<String> {
        let answer = web::ask("127.0.0.1", READ_ONLY_PORT, &format!("GET {path}")).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        head.lines().next()?.contains(" 200").then(|| body.to_owned())
    }

    /// A static pod of that name, as the kubelet sees it.
    pub fn pod(&self, name: &str) -> Option<Value> {
        let pods: Value = serde_json::from_str(&self.get("/pods")?).ok()?;
        let name = format!("{name}-{NAME}");
        pods["items"].as_array()?.iter().find(|pod| pod["metadata"]["name"] == name.as_str()).cloned()
    }

    /// Waits until the kubelet says something of a pod.
    pub fn wait<T>(&self, name: &str, what: &str, look: impl Fn(&Value) -> Option<T>) -> T {
        let mut last = None;
        let found = until(PATIENCE, || {
            last = self.pod(name);
            last.as_ref().and_then(&look)
        });
        found.unwrap_or_else(|| {
            let status = last.map_or_else(|| "no such pod".into(), |pod| format!("{:#}", pod["status"]));
            panic!("pod {name} did not come to {what}: {status}\n---- kubelet\n{}", self.kubelet_log())
        })
    }

    /// Has the kubelet run a pod until the returned value goes.
    pub fn run(&self, name: &str, spec: Value) -> StaticPod<'_> {
        self.run_asking(name, json!({}), spec)
    }

    /// The same for a pod with annotations.
    pub fn run_asking(&self, name: &str, annotations: Value, spec: Value) -> StaticPod<'_> {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": name, "namespace": "default",
                "annotations": annotations,
                "labels": {"turn": self.turn.load(Ordering::Relaxed).to_string()},
            },
            "spec": spec,
        });
        let unfinished = self.dir.join(format!("{name}.json"));
        fs::write(&unfinished, pod.to_string()).expect("write a manifest");
        fs::rename(&unfinished, self.manifest(name)).expect("name a manifest");
        StaticPod { node: self, name: name.to_owned() }
    }

    fn manifest(&self, name: &str) -> PathBuf {
        self.manifests().join(format!("{name}.json"))
    }
}

impl Node {
    /// Waits until the kubelet has nothing to do any more, and ends it. May be called twice.
    pub fn leave(&self) {
        // Pods that are going keep it busy, their cgroups last.
        let busy = || self.pod_cgroups();
        until(PATIENCE, || busy().is_empty().then_some(()));
        let left = busy();
        self.stop_kubelet();
        if !left.is_empty() && !std::thread::panicking() {
            panic!("the kubelet did not finish with {left:?}:\n{}", self.kubelet_log());
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.leave();
        if std::thread::panicking() {
            eprintln!("---- the kubelet's log, the end ----\n{}", self.kubelet_log());
        }
        world::remove_kubelets_cgroups(self.driver, &self.cgroup);
        world::show();
    }
}

/// A pod that goes with this.
#[derive(Debug)]
pub struct StaticPod<'a> {
    node: &'a Node,
    pub name: String,
}

impl StaticPod<'_> {
    pub fn wait<T>(&self, what: &str, look: impl Fn(&Value) -> Option<T>) -> T {
        self.node.wait(&self.name, what, look)
    }

    pub fn wait_ready(&self) -> Value {
        self.wait("ready", |pod| is_ready(pod).then(|| pod.clone()))
    }

    /// Takes its manifest away and waits until it is gone.
    pub fn remove(self) {
        drop(self);
    }

    /// Takes its manifest away; the kubelet may take its time.
    pub fn forget(&self) {
        fs::remove_file(self.node.manifest(&self.name)).expect("remove a manifest");
    }

    /// The directory of its logs.
    pub fn logs(&self) -> PathBuf {
        let pod = self.node.pod(&self.name).expect("the kubelet has it");
        let uid = pod["metadata"]["uid"].as_str().unwrap_or_default();
        // A static pod's directory has its configuration's hash, which is its uid here.
        self.node.logs().join(format!("default_{}-{NAME}_{uid}", self.name))
    }
}

impl Drop for StaticPod<'_> {
    fn drop(&mut self) {
        // Failing, or by the node: the file may be gone.
        fs::remove_file(self.node.manifest(&self.name)).ok();
        let gone = until(PATIENCE, || self.node.pod(&self.name).is_none().then_some(()));
        if !std::thread::panicking() {
            assert!(gone.is_some(), "pod {} stays though its manifest is gone", self.name);
        }
    }
}

pub fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    conditions.is_some_and(|all| all.iter().any(|one| one["type"] == "Ready" && one["status"] == "True"))
}

/// The status of a container, of those that run for good or of those for the start.
pub fn container<'a>(pod: &'a Value, name: &str) -> &'a Value {
    let all = ["containerStatuses", "initContainerStatuses"].into_iter();
    let mut all = all.filter_map(|kind| pod["status"][kind].as_array()).flatten();
    all.find(|status| status["name"] == name).unwrap_or(&Value::Null)
}

/// A container of the fixture's image.
pub fn fixture(name: &str, command: &[&str]) -> Value {
    let mut words = vec!["/bin/fixture"];
    words.extend(command);
    json!({"name": name, "image": images::FIXTURE, "imagePullPolicy": "Never", "command": words})
}

/// The same with more keys.
pub fn with(mut container: Value, more: Value) -> Value {
    let more = match more {
        Value::Object(more) => more,
        other => panic!("{other} is no object"),
    };
    for (key, value) in more {
        container[key] = value;
    }
    container
}

/// Reads a file that may not be there yet.
pub fn read(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok()
}
