//! A cluster of one node, as its users have it: by kubectl.

use std::{
    path::PathBuf,
    process::{Command, Output, Stdio},
};

use berth_fixtures::{Image, Layer};
use berth_tests::{Options, images, until};
use serde_json::{Value, json};

use crate::{
    kubectl,
    node::{self, Node, PATIENCE, Setting, is_ready},
    plane::{self, Plane},
    world::Driver,
};

/// An image with a file, words/greeting, and no program.
pub const DATA: &str = "localhost/data:1";

/// A trial, in the cluster that all share.
pub type Test = fn(&Cluster);

/// Dropped, it takes the node down, which looks for leaks, and then the control plane.
#[derive(Debug)]
pub struct Cluster {
    node: Node,
    plane: Plane,
}

impl Cluster {
    pub fn up() -> Self {
        let node = Node::place(Driver::Cgroupfs, Options { over: handlers(), ..Options::default() });
        load_images(&node);
        let mut plane = Plane::up(&node.dir().join("plane"));
        node.set(setting(&plane));
        node.start_kubelet();
        plane.start_proxy();
        let cluster = Self { node, plane };
        cluster.wait_for_node();
        for name in ["berth", "runc"] {
            cluster.make(&json!({
                "apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass",
                "metadata": {"name": name}, "handler": name,
            }));
        }
        cluster
    }

    pub fn node(&self) -> &Node {
        &self.node
    }

    /// Has no pods any more, and another kubelet, with more laid over its configuration and behind its arguments, from
    /// `begin` on until what is returned goes.
    pub fn other_kubelet(
        &self,
        over: Value,
        arguments: Vec<String>,
        begin: impl FnOnce(&Node),
    ) -> OtherKubelet<'_> {
        self.node.leave();
        begin(&self.node);
        let mut other = setting(&self.plane);
        for (key, value) in over.as_object().into_iter().flatten() {
            other.over[key] = value.clone();
        }
        other.arguments.extend(arguments);
        self.node.set(other);
        self.node.start_kubelet();
        self.wait_for_node();
        OtherKubelet { cluster: self }
    }

    fn wait_for_node(&self) {
        self.wait_for("nodes", node::NAME, "ready and without a taint", |node| {
            (is_ready(node) && node["spec"]["taints"].is_null()).then_some(())
        });
    }

    /// kubectl as the administrator.
    pub fn kubectl(&self, words: &[&str]) -> Command {
        let mut command = Command::new(kubectl::program("kubectl"));
        command.arg(format!("--kubeconfig={}", self.plane.kubeconfig("admin").display())).args(words);
        command.env("HOME", self.node.dir()).stdin(Stdio::null());
        command
    }

    pub fn run(&self, words: &[&str]) -> Output {
        self.kubectl(words).output().expect("run kubectl")
    }

    /// What kubectl says, which must succeed.
    pub fn ok(&self, words: &[&str]) -> String {
        succeeded(words, self.run(words))
    }

    /// Runs kubectl with something on its standard input.
    pub fn with_input(&self, words: &[&str], input: &[u8]) -> Output {
        use std::io::{Seek, Write};
        let mut file = tempfile::tempfile().expect("make a file");
        file.write_all(input).and_then(|()| file.rewind()).expect("write a file");
        self.kubectl(words).stdin(file).output().expect("run kubectl")
    }

    /// Makes an object that stays.
    fn make(&self, object: &Value) {
        let words = ["create", "-f", "-"];
        succeeded(&words, self.with_input(&words, object.to_string().as_bytes()));
    }

    /// Makes objects that go with what is returned.
    pub fn have(&self, objects: &[Value]) -> Objects<'_> {
        for object in objects {
            self.make(object);
        }
        Objects { cluster: self, objects: objects.to_vec() }
    }

    /// Makes a pod that goes with what is returned.
    pub fn pod(&self, name: &str, spec: &Value) -> Objects<'_> {
        self.have(&[pod(name, spec)])
    }

    pub fn get(&self, kind: &str, name: &str) -> Option<Value> {
        plane::object(&path(kind, name))
    }

    /// Waits until the apiserver says something of an object.
    pub fn wait_for<T>(&self, kind: &str, name: &str, what: &str, look: impl Fn(&Value) -> Option<T>) -> T {
        let mut last = None;
        let found = until(PATIENCE, || {
            last = self.get(kind, name);
            last.as_ref().and_then(&look)
        });
        found.unwrap_or_else(|| {
            let last =
                last.map_or_else(|| "there is none".into(), |object| format!("{:#}", object["status"]));
            let events =
                self.run(&["get", "events", "--field-selector", &format!("involvedObject.name={name}")]);
            let events = String::from_utf8_lossy(&events.stdout).into_owned();
            panic!(
                "{kind} {name} did not come to {what}: {last}\n{events}\n---- kubelet\n{}",
                self.node.kubelet_log()
            )
        })
    }

    pub fn wait_ready(&self, name: &str) -> Value {
        self.wait_for("pods", name, "ready", |pod| is_ready(pod).then(|| pod.clone()))
    }

    /// The end of a pod's container.
    pub fn ended(&self, name: &str, container: &str) -> Value {
        self.wait_for("pods", name, "the end of a container", |pod| {
            let ended = &node::container(pod, container)["state"]["terminated"];
            ended.is_object().then(|| ended.clone())
        })
    }

    /// What the only container of a pod that ends has said, and that it ended well.
    pub fn told(&self, name: &str, container: &str) -> String {
        let ended = self.ended(name, container);
        let said = self.ok(&["logs", name, "-c", container]);
        assert_eq!(ended["exitCode"], 0, "{ended}: {said}");
        said
    }

    /// The same of a container that runs `info`.
    pub fn info(&self, name: &str, container: &str) -> Value {
        let said = self.told(name, container);
        serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}"))
    }

    /// What a command in a pod says, which must succeed.
    pub fn exec(&self, pod: &str, command: &[&str]) -> String {
        self.ok(&[&["exec", pod, "--"], command].concat())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.node.leave();
        // Before berthd goes and looks for leaks.
        self.plane.end();
    }
}

/// Dropped, it brings back the kubelet that all share.
#[derive(Debug)]
pub struct OtherKubelet<'a> {
    cluster: &'a Cluster,
}

impl Drop for OtherKubelet<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // What has failed says why; the cluster is taken down next.
            eprintln!("---- the other kubelet's log, the end ----\n{}", self.cluster.node.kubelet_log());
        }
        self.cluster.node.leave();
        self.cluster.node.set(setting(&self.cluster.plane));
        self.cluster.node.start_kubelet();
        self.cluster.wait_for_node();
    }
}

/// A kubelet of this cluster.
fn setting(plane: &Plane) -> Setting {
    let gates: Value = plane::GATES.iter().map(|gate| ((*gate).to_owned(), json!(true))).collect();
    Setting {
        over: json!({
            "registerNode": true,
            "featureGates": gates,
            "allowedUnsafeSysctls": ["net.core.somaxconn"],
            "nodeStatusUpdateFrequency": "2s",
        }),
        arguments: vec![format!("--kubeconfig={}", plane.kubeconfig("kubelet").display())],
    }
}

/// Objects that are deleted with this.
#[derive(Debug)]
pub struct Objects<'a> {
    cluster: &'a Cluster,
    objects: Vec<Value>,
}

impl Drop for Objects<'_> {
    fn drop(&mut self) {
        for object in self.objects.iter().rev() {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let target = [text(&object["kind"]), text(&object["metadata"]["name"])].join("/");
            let words = ["delete", "--ignore-not-found", "--timeout=120s", &target];
            let output = self.cluster.run(&words);
            if !std::thread::panicking() {
                succeeded(&words, output);
            }
        }
    }
}

pub fn pod(name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}}, "spec": spec,
    })
}

/// A container of the image that has a shell.
pub fn busybox(name: &str, script: &str) -> Value {
    json!({"name": name, "image": images::BUSYBOX, "command": ["sh", "-c", script]})
}

fn path(kind: &str, name: &str) -> String {
    match kind {
        "nodes" => format!("/api/v1/{kind}/{name}"),
        "deployments" | "daemonsets" | "replicasets" => {
            format!("/apis/apps/v1/namespaces/default/{kind}/{name}")
        }
        "jobs" => format!("/apis/batch/v1/namespaces/default/{kind}/{name}"),
        _ => format!("/api/v1/namespaces/default/{kind}/{name}"),
    }
}

fn succeeded(words: &[&str], output: Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "kubectl {}: {}: {said}", words.join(" "), output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// runc beside the builtin handler, where it is installed.
fn handlers() -> String {
    runc().map_or_else(String::new, |runc| format!("[handlers.runc]\ntype = \"oci\"\npath = {runc:?}\n"))
}

pub fn runc() -> Option<PathBuf> {
    let places = ["/usr/sbin/runc", "/usr/bin/runc", "/usr/local/sbin/runc"].map(PathBuf::from);
    places.into_iter().find(|path| path.exists())
}

fn load_images(node: &Node) {
    let daemon = node.daemon();
    daemon.load_image(images::BUSYBOX, &images::busybox().expect("busybox-static is installed"));
    let layer = Layer::new().file("words/greeting", 0o644, "hello from an image\n");
    daemon.load_image(DATA, &Image::new().layer(layer));
}
