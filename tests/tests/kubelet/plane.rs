//! A control plane of the test's own: etcd, an apiserver, controllers and a scheduler, on loopback.
//!
//! ```text
//!   etcd <- kube-apiserver <- controller-manager, scheduler, kubelet, kubectl     each by a token of its own
//!                          <- kubectl proxy <- trials that look many times a second
//! ```
//!
//! A bare one has etcd, the apiserver and the proxy alone: pods are bound to the node by who makes them.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use berth_tests::{until, web};
use serde_json::{Value, json};

use crate::{kubectl::program, node, world};

const ETCD: &str = "http://127.0.0.1:2379";
const ETCD_PORT: u16 = 2379;
const APISERVER_PORT: u16 = 6443;
/// An emulated machine takes minutes to start an apiserver.
const STARTS_WITHIN: Duration = Duration::from_secs(600);
/// Where anybody may ask, as the administrator: nobody else is in these namespaces.
const PROXY_PORT: u16 = 8001;
pub const SERVICES: &str = "10.96.0.0/16";
/// What the apiserver has open beside what it has by itself: the kubelet's are the same.
pub const GATES: &[&str] =
    &["ContainerStopSignals", "UserNamespacesHostNetworkSupport", "VolumeBindMountOptions"];

/// Name, user and group of those with a token. The token of each is its name.
const USERS: &[(&str, &str, &str)] = &[
    ("admin", "admin", "system:masters"),
    ("controllers", "system:kube-controller-manager", "system:masters"),
    ("scheduler", "system:kube-scheduler", "system:masters"),
    ("proxy", "system:kube-proxy", "system:masters"),
    ("kubelet", "system:node:node", "system:nodes"),
];

/// Ended when dropped, the last that was started first.
#[derive(Debug)]
pub struct Plane {
    children: Vec<(String, Child)>,
    dir: PathBuf,
}

impl Plane {
    pub fn up(dir: &Path) -> Self {
        let mut plane = Self::begin(dir);
        plane.start_apiserver(&[
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
        ]);
        for (name, user) in [("kube-controller-manager", "controllers"), ("kube-scheduler", "scheduler")] {
            let mut words = vec![format!("--kubeconfig={}", plane.kubeconfig(user).display())];
            words.push("--leader-elect=false".into());
            if name == "kube-controller-manager" {
                let key = plane.path("service-accounts.pem");
                words.push(format!("--service-account-private-key-file={}", key.display()));
                words.push(format!("--root-ca-file={}", plane.certificate().display()));
            }
            plane.start(name, &words);
        }
        // Pods are refused before their account is there.
        plane.wait("kube-controller-manager", || {
            ask("/api/v1/namespaces/default/serviceaccounts/default").map(drop)
        });
        plane
    }

    /// Without controllers: nobody makes accounts for pods, or anything else of what is asked for.
    pub fn bare(dir: &Path) -> Self {
        let mut plane = Self::begin(dir);
        // What it does not write at its start, it need not have written within the half minute that it has for that.
        plane.start_apiserver(&[
            "--authorization-mode=AlwaysAllow",
            "--enable-priority-and-fairness=false",
            "--disable-admission-plugins=ServiceAccount",
        ]);
        plane.wait("kube-apiserver", || ask("/api/v1/namespaces/default").map(drop));
        plane
    }

    fn begin(dir: &Path) -> Self {
        fs::create_dir(dir).expect("make the control plane's directory");
        let mut plane = Self { children: Vec::new(), dir: dir.to_owned() };
        plane.write_secrets();
        plane.start_etcd();
        plane
    }

    /// How somebody reaches the apiserver.
    pub fn kubeconfig(&self, user: &str) -> PathBuf {
        self.path(&format!("{user}.kubeconfig"))
    }

    /// Services of the cluster, once they are wanted.
    pub fn start_proxy(&mut self) {
        let config = json!({
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": "nftables",
            "clientConnection": {"kubeconfig": self.kubeconfig("proxy")},
            "hostnameOverride": node::NAME,
            // The machine's table of connections is not ours to size.
            "conntrack": {"maxPerCore": 0, "min": 0},
            // Pods of one bridge answer each other past the node.
            "nftables": {"masqueradeAll": true, "minSyncPeriod": "100ms"},
        });
        let file = self.path("proxy.json");
        fs::write(&file, config.to_string()).expect("write kube-proxy's configuration");
        self.start("kube-proxy", &[format!("--config={}", file.display())]);
        self.wait("kube-proxy", || {
            let answer = web::ask("127.0.0.1", 10256, "GET /livez").ok()?;
            answer.contains(" 200 ").then_some(())
        });
    }

    /// The end of what one of them said.
    pub fn log(&self, name: &str) -> String {
        let log = fs::read(self.path(&format!("{name}.log"))).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// What the apiserver makes for itself at its first start.
    fn certificate(&self) -> PathBuf {
        self.path("certificates/apiserver.crt")
    }

    fn write_secrets(&self) {
        let key = rcgen::KeyPair::generate().expect("make a key");
        fs::write(self.path("service-accounts.pem"), key.serialize_pem()).expect("write a key");
        fs::write(self.path("service-accounts.pub"), key.public_key_pem()).expect("write a key");
        let lines = USERS.iter().map(|(name, user, group)| format!("{name},{user},{name},{group}\n"));
        fs::write(self.path("tokens.csv"), lines.collect::<String>()).expect("write tokens");
        for (name, ..) in USERS {
            let config = json!({
                "apiVersion": "v1", "kind": "Config", "current-context": "test",
                "contexts": [{"name": "test", "context": {"cluster": "test", "user": name}}],
                "users": [{"name": name, "user": {"token": name}}],
                "clusters": [{"name": "test", "cluster": {
                    // The address that its certificate is made for.
                    "server": format!("https://{}:{APISERVER_PORT}", world::NODE_IP),
                    "certificate-authority": self.certificate(),
                }}],
            });
            fs::write(self.kubeconfig(name), config.to_string()).expect("write a kubeconfig");
        }
    }

    fn start_etcd(&mut self) {
        let data = format!("--data-dir={}", self.path("etcd").display());
        let urls = [format!("--listen-client-urls={ETCD}"), format!("--advertise-client-urls={ETCD}")];
        let peers = "--listen-peer-urls=http://127.0.0.1:2380".to_owned();
        // What it keeps is nobody's after the test.
        let words = [vec![data, peers, "--unsafe-no-fsync".into()], urls.to_vec()].concat();
        self.start("etcd", &words);
        self.wait("etcd", || {
            let answer = web::ask("127.0.0.1", ETCD_PORT, "GET /health").ok()?;
            answer.contains("\"true\"").then_some(())
        });
    }

    fn start_apiserver(&mut self, of_its_kind: &[&str]) {
        let key = self.path("service-accounts.pem");
        let gates: Vec<String> = GATES.iter().map(|gate| format!("{gate}=true")).collect();
        let mut words = vec![
            format!("--etcd-servers={ETCD}"),
            format!("--cert-dir={}", self.certificate().with_file_name("").display()),
            format!("--token-auth-file={}", self.path("tokens.csv").display()),
            format!("--service-account-key-file={}", key.with_extension("pub").display()),
            format!("--service-account-signing-key-file={}", key.display()),
            "--service-account-issuer=https://kubernetes.default.svc".into(),
            format!("--service-cluster-ip-range={SERVICES}"),
            format!("--advertise-address={}", world::NODE_IP),
            "--bind-address=0.0.0.0".into(),
            // Nobody knows the node's name.
            "--kubelet-preferred-address-types=InternalIP".into(),
            format!("--secure-port={APISERVER_PORT}"),
            "--allow-privileged=true".into(),
            format!("--feature-gates={}", gates.join(",")),
        ];
        words.extend(of_its_kind.iter().map(|word| (*word).to_owned()));
        self.start("kube-apiserver", &words);
        // Its key is the last that it makes of the certificate, which kubectl reads at its start.
        let key = self.certificate().with_extension("key");
        self.wait("kube-apiserver", || key.exists().then_some(()));
        let kubeconfig = format!("--kubeconfig={}", self.kubeconfig("admin").display());
        let port = format!("--port={PROXY_PORT}");
        self.start("kubectl", &[kubeconfig, "proxy".into(), port, "--disable-filter".into()]);
        self.wait("kube-apiserver", || ask("/readyz").map(drop));
    }

    fn start(&mut self, name: &str, words: &[String]) {
        let log = File::create(self.path(&format!("{name}.log"))).expect("make a log");
        let mut command = Command::new(program(name));
        command.args(words).env_remove("KUBECONFIG").env("HOME", &self.dir);
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("share the log")).stderr(log);
        let child = command.spawn().unwrap_or_else(|error| panic!("start {name}: {error}"));
        self.children.push((name.to_owned(), child));
    }

    /// Waits until one that was started does what it is for.
    fn wait(&mut self, name: &str, mut look: impl FnMut() -> Option<()>) {
        let child = self.children.iter_mut().find(|(other, _)| other == name).map(|(_, child)| child);
        let child = child.expect("it was started");
        let up = until(STARTS_WITHIN, || {
            if let Some(status) = child.try_wait().expect("look at a child") {
                return Some(Err(status));
            }
            look().map(Ok)
        });
        assert!(matches!(up, Some(Ok(()))), "{name}: {up:?}\n{}", self.log(name));
    }
}

impl Plane {
    /// Ends all of it. May be called twice.
    pub fn end(&mut self) {
        for (name, mut child) in self.children.drain(..).rev() {
            // Nothing of them is wanted any more.
            child.kill().unwrap_or_else(|error| eprintln!("kill {name}: {error}"));
            child.wait().ok();
        }
    }
}

impl Drop for Plane {
    fn drop(&mut self) {
        self.end();
        if std::thread::panicking() {
            for name in ["kube-apiserver", "kube-controller-manager", "kube-scheduler"] {
                eprintln!("---- {name}, the end ----\n{}", self.log(name));
            }
        }
    }
}

/// What the apiserver says to the administrator, None for an error.
pub fn ask(path: &str) -> Option<String> {
    let answer = web::ask("127.0.0.1", PROXY_PORT, &format!("GET {path}")).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    head.lines().next()?.contains(" 200").then(|| body.to_owned())
}

/// Makes an object among those of a path.
pub fn make(path: &str, object: &Value) {
    let answer = web::send("127.0.0.1", PROXY_PORT, &format!("POST {path}"), &object.to_string());
    let answer = answer.unwrap_or_else(|error| panic!("make one of {path}: {error}"));
    assert!(answer.lines().next().is_some_and(|line| line.contains(" 201")), "make one of {path}: {answer}");
}

/// Has an object go, which takes its time.
pub fn remove(path: &str) {
    let answer = web::ask("127.0.0.1", PROXY_PORT, &format!("DELETE {path}"));
    assert!(answer.as_ref().is_ok_and(|answer| answer.contains(" 200")), "remove {path}: {answer:?}");
}

/// An object, None if there is none.
pub fn object(path: &str) -> Option<Value> {
    serde_json::from_str(&ask(path)?).ok()
}
