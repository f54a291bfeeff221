//! What a cluster mounts into containers.

use std::fs;

use berth_fixtures::Layer;
use berth_tests::{Registry, Transport, images, until};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use serde_json::{Value, json};

use crate::{
    cluster::{Cluster, DATA, Test, busybox},
    node::{PATIENCE, container, fixture, with},
};

pub const TRIALS: &[(&str, Test)] = &[
    ("configuration_secrets_and_tokens_are_files_and_follow_changes", configuration),
    ("empty_and_host_directories_are_shared_and_sized", directories),
    ("sub_paths_are_the_file_or_directory_they_name", sub_paths),
    ("an_image_is_a_volume_that_nobody_writes_to", image),
    ("options_of_a_volume_hold_for_the_mount_that_has_them", mount_options),
    ("read_only_can_hold_for_mounts_below", recursively_read_only),
    ("a_pull_secret_opens_a_private_registry", private),
];

fn configuration(cluster: &Cluster) {
    let named = |kind: &str, more: Value| {
        with(json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": "settings"}}), more)
    };
    let map = |value: &str| named("ConfigMap", json!({"data": {"key": value}}));
    let _objects = cluster.have(&[
        map("first"),
        named("Secret", json!({"stringData": {"password": "hush"}})),
        crate::cluster::pod("configured", &json!({
            "terminationGracePeriodSeconds": 1,
            "containers": [with(busybox("c", "sleep 1000000"), json!({
                "env": [
                    {"name": "KEY", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "key"}}},
                    {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                ],
                "envFrom": [{"secretRef": {"name": "settings"}, "prefix": "SECRET_"}],
                "volumeMounts": [
                    {"name": "config", "mountPath": "/config"},
                    {"name": "secret", "mountPath": "/secret"},
                    {"name": "all", "mountPath": "/all"},
                ],
            }))],
            "volumes": [
                {"name": "config", "configMap": {"name": "settings"}},
                {"name": "secret", "secret": {"secretName": "settings", "defaultMode": 0o400}},
                {"name": "all", "projected": {"sources": [
                    {"configMap": {"name": "settings"}},
                    {"secret": {"name": "settings"}},
                    {"downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}},
                    {"serviceAccountToken": {"path": "token", "expirationSeconds": 600}},
                ]}},
            ],
        })),
    ]);
    let pod = cluster.wait_ready("configured");
    let said = |script: &str| cluster.exec("configured", &["sh", "-c", script]);
    let ip = pod["status"]["podIP"].as_str().unwrap_or_default();
    assert_eq!(said("echo $KEY $SECRET_password $IP"), format!("first hush {ip}\n"));
    assert_eq!(said("cat /config/key /secret/password /all/key /all/password"), "firsthushfirsthush");
    assert_eq!(said("stat -L -c %a /secret/password"), "400\n");
    assert_eq!(said("cat /all/labels"), r#"app="configured""#);
    // Three parts of base64, and the one that everybody has.
    assert_eq!(said("cat /all/token").split('.').count(), 3);
    assert_eq!(said("ls /var/run/secrets/kubernetes.io/serviceaccount"), "ca.crt\nnamespace\ntoken\n");
    let refused = cluster.run(&["exec", "configured", "--", "sh", "-c", "echo x > /secret/more"]);
    assert!(!refused.status.success());
    let words = ["replace", "-f", "-"];
    let replaced = cluster.with_input(&words, map("second").to_string().as_bytes());
    assert!(replaced.status.success(), "{replaced:?}");
    let followed = until(PATIENCE, || (said("cat /config/key") == "second").then_some(()));
    assert!(followed.is_some(), "the file stays {}", said("cat /config/key"));
    let now = cluster.wait_ready("configured");
    assert_eq!(container(&now, "c")["restartCount"], 0);
}

fn directories(cluster: &Cluster) {
    let shared = cluster.node().volume("shared");
    let _pod = cluster.pod("directories", &json!({
        "terminationGracePeriodSeconds": 1,
        "initContainers": [with(busybox("first", "echo one > /empty/file; echo two > /memory/file; echo three > /host/file"), json!({
            "volumeMounts": [
                {"name": "empty", "mountPath": "/empty"},
                {"name": "memory", "mountPath": "/memory"},
                {"name": "host", "mountPath": "/host"},
            ],
        }))],
        "containers": [with(busybox("c", "sleep 1000000"), json!({"volumeMounts": [
            {"name": "empty", "mountPath": "/empty"},
            {"name": "memory", "mountPath": "/memory"},
            {"name": "host", "mountPath": "/host", "readOnly": true},
        ]}))],
        "volumes": [
            {"name": "empty", "emptyDir": {}},
            {"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": "4Mi"}},
            {"name": "host", "hostPath": {"path": shared, "type": "Directory"}},
        ],
    }));
    cluster.wait_ready("directories");
    let said = |script: &str| cluster.exec("directories", &["sh", "-c", script]);
    assert_eq!(said("cat /empty/file /memory/file /host/file"), "one\ntwo\nthree\n");
    assert_eq!(fs::read_to_string(shared.join("file")).expect("read what it wrote"), "three\n");
    assert_eq!(said("stat -f -c %T /memory"), "tmpfs\n");
    assert_eq!(said("df -k /memory | tail -n 1 | awk '{print $2}'"), "4096\n");
    assert_eq!(said("echo x > /host/file 2>/dev/null || echo refused"), "refused\n");
    // A file of the node comes in while the container runs.
    fs::write(shared.join("later"), "four\n").expect("write a file");
    assert_eq!(said("cat /host/later"), "four\n");
}

fn sub_paths(cluster: &Cluster) {
    let settings = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "sub-paths"},
        "data": {"one": "1", "two": "2"},
    });
    let spec = json!({
        "restartPolicy": "Never",
        "containers": [with(busybox("c", "cat /etc/one; ls /etc/one /d; echo x > /d/made; ls /whole/p-sub-paths"), json!({
            "env": [{"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
            "volumeMounts": [
                {"name": "config", "mountPath": "/etc/one", "subPath": "one"},
                {"name": "empty", "mountPath": "/d", "subPathExpr": "p-$(NAME)"},
                {"name": "empty", "mountPath": "/whole"},
            ],
        }))],
        "volumes": [
            {"name": "config", "configMap": {"name": "sub-paths"}},
            {"name": "empty", "emptyDir": {}},
        ],
    });
    let _objects = cluster.have(&[settings, crate::cluster::pod("sub-paths", &spec)]);
    assert_eq!(cluster.told("sub-paths", "c"), "1/etc/one\n\n/d:\nmade\n");
}

fn image(cluster: &Cluster) {
    let script = "cat /data/words/greeting /below/greeting; (echo x > /data/x) 2>/dev/null || echo refused";
    let _pod = cluster.pod(
        "image-volume",
        &json!({
            "restartPolicy": "Never",
            "containers": [with(busybox("c", script), json!({"volumeMounts": [
                {"name": "data", "mountPath": "/data"},
                {"name": "data", "mountPath": "/below", "subPath": "words"},
            ]}))],
            "volumes": [{"name": "data", "image": {"reference": DATA, "pullPolicy": "IfNotPresent"}}],
        }),
    );
    let hello = "hello from an image\n";
    assert_eq!(cluster.told("image-volume", "c"), format!("{hello}{hello}refused\n"));
}

fn mount_options(cluster: &Cluster) {
    let script = "cp /bin/busybox /plain/; /plain/busybox true && echo runs; \
        /bound/busybox true 2>/dev/null || echo is refused; grep ' /bound ' /proc/mounts | cut -d ' ' -f 4";
    let spec = json!({
        "restartPolicy": "Never",
        "containers": [with(busybox("c", script), json!({"volumeMounts": [
            {"name": "empty", "mountPath": "/plain"},
            {"name": "empty", "mountPath": "/bound", "bindMountOptions": ["noexec", "nodev", "nosuid"]},
        ]}))],
        "volumes": [{"name": "empty", "emptyDir": {}}],
    });
    let _pod = cluster.pod("mount-options", &spec);
    let said = cluster.told("mount-options", "c");
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines[..2], ["runs", "is refused"], "{said}");
    let options: Vec<&str> = lines[2].split(',').collect();
    assert!(["noexec", "nodev", "nosuid"].iter().all(|option| options.contains(option)), "{said}");
}

fn recursively_read_only(cluster: &Cluster) {
    let top = cluster.node().volume("recursive");
    let below = top.join("below");
    fs::create_dir(&below).expect("make a directory");
    mount("below", &below, "tmpfs", MountFlags::empty(), None).expect("mount a tmpfs");
    let script =
        |name: &str| busybox(name, "(echo x > /v/below/x) 2>/dev/null && echo written || echo refused");
    let volume = |more: Value| json!({"volumeMounts": [with(json!({"name": "v", "mountPath": "/v", "readOnly": true}), more)]});
    let pod = cluster.pod(
        "recursive",
        &json!({
            "restartPolicy": "Never",
            "containers": [
                with(script("wholly"), volume(json!({"recursiveReadOnly": "Enabled"}))),
                with(script("plainly"), volume(json!({}))),
            ],
            "volumes": [{"name": "v", "hostPath": {"path": top}}],
        }),
    );
    let said = (cluster.told("recursive", "wholly"), cluster.told("recursive", "plainly"));
    let seen = cluster.get("pods", "recursive").expect("it is there");
    drop(pod);
    unmount(&below, UnmountFlags::DETACH).expect("unmount a tmpfs");
    assert_eq!(said, ("refused\n".to_owned(), "written\n".to_owned()));
    let mounts = container(&seen, "wholly")["volumeMounts"].as_array().cloned().unwrap_or_default();
    assert!(mounts.iter().any(|mount| mount["recursiveReadOnly"] == "Enabled"), "{mounts:?}");
}

fn private(cluster: &Cluster) {
    let Some(registry) = Registry::start("cluster::private", Transport::Private) else { return };
    // Of its own content: what was pulled by a secret a kubelet gives to nobody without, under whatever name.
    let image = images::with_layer(Layer::new().file("secret", 0o644, "hush"));
    registry.push("secret/fixture:1", &image);
    let reference = registry.reference("secret/fixture:1");
    let of = |name: &str, more: Value| {
        let container =
            with(fixture("c", &["echo", "pulled"]), json!({"image": reference, "imagePullPolicy": "Always"}));
        crate::cluster::pod(name, &with(json!({"restartPolicy": "Never", "containers": [container]}), more))
    };
    let server = format!("--docker-server={}", registry.host());
    let words = [
        "create",
        "secret",
        "docker-registry",
        "key",
        &server,
        "--docker-username=joe",
        "--docker-password=secret",
    ];
    cluster.ok(&words);
    let _pods = cluster.have(&[
        of("with-key", json!({"imagePullSecrets": [{"name": "key"}]})),
        of("without-key", json!({})),
    ]);
    assert_eq!(cluster.told("with-key", "c"), "pulled\n");
    cluster.wait_for("pods", "without-key", "a refused pull", |pod| {
        let waiting = &container(pod, "c")["state"]["waiting"];
        let told = waiting["message"].as_str().unwrap_or_default();
        (["ErrImagePull", "ImagePullBackOff"].iter().any(|why| waiting["reason"] == *why)
            && ["401", "nauthorized", "credentials"].iter().any(|word| told.contains(word)))
        .then_some(())
    });
    cluster.ok(&["delete", "secret", "key"]);
}
