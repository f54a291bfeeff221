//! What a kubelet alone does with static pods.

use std::fs;

use berth_tests::{lines, read_log, until};
use serde_json::{Value, json};

use crate::{
    Test, kubectl,
    node::{AGNHOST, Node, PATIENCE, container, fixture, read, with},
};

pub const TRIALS: &[(&str, Test)] = &[
    ("init_and_sidecar_containers_start_in_their_order", init_and_sidecars),
    ("probes_of_every_kind_make_a_pod_ready", probes),
    ("a_failing_liveness_probe_restarts_the_container", liveness),
    ("a_crashing_container_backs_off_and_its_restarts_are_counted", crash_loop),
    ("termination_messages_come_from_the_file_or_the_log", termination_messages),
    ("logs_are_where_the_kubelet_looks", logs),
    ("rotated_logs_lose_no_line", rotation),
    ("commands_run_in_a_container", commands),
    ("statistics_have_every_container", statistics),
    ("a_pod_that_goes_has_its_hook_and_its_grace", grace),
    ("memory_volumes_and_downward_files_are_there", volumes),
    ("a_container_over_its_memory_limit_is_oom_killed", oom),
    ("a_pod_with_users_of_its_own_owns_its_volumes", users),
];

fn init_and_sidecars(node: &Node) {
    let pod = node.run(
        "order",
        json!({
            "initContainers": [
                fixture("first", &["echo", "one"]),
                with(fixture("sidecar", &["http", "8080", "beside"]), json!({
                    "restartPolicy": "Always",
                    // Nobody is to take a slow machine's answer for none, and start it again.
                    "startupProbe": {
                        "httpGet": {"port": 8080, "path": "/"},
                        "periodSeconds": 1, "timeoutSeconds": 10, "failureThreshold": 60,
                    },
                })),
                // Reaches the sidecar: it has started before, in the same network.
                fixture("last", &["get", "127.0.0.1", "8080"]),
            ],
            "containers": [fixture("main", &["sleep", "inf"])],
        }),
    );
    let ready = pod.wait_ready();
    for name in ["first", "last"] {
        let ended = &container(&ready, name)["state"]["terminated"];
        assert_eq!((&ended["exitCode"], &ended["reason"]), (&json!(0), &json!("Completed")), "{name}");
    }
    assert!(container(&ready, "sidecar")["state"]["running"].is_object());
    let started = |name: &str| {
        let state = &container(&ready, name)["state"];
        let state = if state["running"].is_object() { &state["running"] } else { &state["terminated"] };
        state["startedAt"].as_str().unwrap_or_else(|| panic!("{name} has not started")).to_owned()
    };
    let order = ["first", "sidecar", "last", "main"].map(started);
    assert!(order.is_sorted(), "{order:?}");
}

fn probes(node: &Node) {
    let probe = |probe: Value| with(probe, json!({"periodSeconds": 1}));
    let grpc = json!({
        "name": "grpc", "image": AGNHOST, "imagePullPolicy": "Never",
        "args": ["grpc-health-checking", "--port", "5000", "--http-port", "5001"],
        "readinessProbe": probe(json!({"grpc": {"port": 5000}})),
    });
    let pod = node.run(
        "probes",
        json!({"containers": [
            with(fixture("http", &["http", "8080", "x"]), json!({
                "readinessProbe": probe(json!({"httpGet": {"port": 8080, "path": "/"}})),
            })),
            with(fixture("tcp", &["tcp", "8081"]), json!({
                "readinessProbe": probe(json!({"tcpSocket": {"port": 8081}})),
            })),
            with(fixture("exec", &["sleep", "inf"]), json!({
                "readinessProbe": probe(json!({"exec": {"command": ["/bin/fixture", "stat", "/tmp/ready"]}})),
            })),
            grpc,
        ]}),
    );
    let is_ready = |pod: &Value, name: &str| container(pod, name)["ready"] == true;
    let seen = pod.wait("ready but for one", |pod| {
        ["http", "tcp", "grpc"].iter().all(|name| is_ready(pod, name)).then(|| pod.clone())
    });
    assert!(!is_ready(&seen, "exec"), "its probe has nothing to find yet");
    kubectl::run_in("probes", "exec", &["/bin/fixture", "write", "/tmp/ready", "yes"])
        .expect("run a command in it");
    let ready = pod.wait_ready();
    assert!(["http", "tcp", "exec", "grpc"].iter().all(|name| container(&ready, name)["restartCount"] == 0));
}

fn liveness(node: &Node) {
    let pod = node.run(
        "liveness",
        json!({
            "terminationGracePeriodSeconds": 1,
            "containers": [with(fixture("c", &["sleep", "inf"]), json!({
                // Nobody listens there.
                "livenessProbe": {"tcpSocket": {"port": 9}, "periodSeconds": 1, "failureThreshold": 1},
            }))],
        }),
    );
    let seen = pod
        .wait("a restart", |pod| (container(pod, "c")["restartCount"].as_u64()? >= 1).then(|| pod.clone()));
    let last = &container(&seen, "c")["lastState"]["terminated"];
    // The fixture's program takes SIGTERM for its end.
    assert_eq!(last["exitCode"], 143, "{last}");
    assert_eq!(last["reason"], "Error");
}

fn crash_loop(node: &Node) {
    let pod = node.run("crash", json!({"containers": [fixture("c", &["exit", "3"])]}));
    let seen = pod.wait("the back-off after two restarts", |pod| {
        let status = container(pod, "c");
        (status["state"]["waiting"]["reason"] == "CrashLoopBackOff" && status["restartCount"].as_u64()? >= 2)
            .then(|| pod.clone())
    });
    let status = container(&seen, "c");
    let last = &status["lastState"]["terminated"];
    assert_eq!((&last["exitCode"], &last["reason"]), (&json!(3), &json!("Error")));
    // Each restart is an attempt of its own, so a kubelet that forgot all counts the same.
    let attempts: Vec<u32> = node
        .daemon()
        .list_containers(Default::default())
        .iter()
        .filter(|one| one.labels.get("io.kubernetes.pod.name").is_some_and(|name| name == "crash-node"))
        .map(|one| one.metadata.as_ref().map_or(0, |metadata| metadata.attempt))
        .collect();
    let newest = attempts.iter().max().copied().map(u64::from);
    assert!(newest >= status["restartCount"].as_u64(), "{attempts:?}, {status}");
}

fn termination_messages(node: &Node) {
    let once = |name: &str, container: Value| {
        node.run(name, json!({"restartPolicy": "Never", "containers": [container]}))
    };
    let by_file = once("by-file", fixture("c", &["write", "/dev/termination-log", "told by file"]));
    let by_log = once(
        "by-log",
        with(fixture("c", &["no-such-applet"]), json!({"terminationMessagePolicy": "FallbackToLogsOnError"})),
    );
    let ended = |pod: &crate::node::StaticPod<'_>| {
        pod.wait("its end", |pod| {
            let ended = &container(pod, "c")["state"]["terminated"];
            ended.is_object().then(|| ended.clone())
        })
    };
    let (file, log) = (ended(&by_file), ended(&by_log));
    assert_eq!((&file["exitCode"], &file["message"]), (&json!(0), &json!("told by file\n")));
    assert_eq!(log["exitCode"], 127);
    assert!(log["message"].as_str().unwrap_or_default().contains("no applet \"no-such-applet\""), "{log}");
}

fn logs(node: &Node) {
    let pod = node.run("logs", json!({"containers": [fixture("c", &["http", "8080", "x"])]}));
    pod.wait_ready();
    kubectl::run_in("logs", "c", &["/bin/fixture", "get", "127.0.0.1", "8080"])
        .expect("ask the server in it");
    let own = pod.logs().join("c/0.log");
    let told = until(PATIENCE, || read(&own).filter(|text| !text.is_empty())).expect("it logs");
    let through =
        kubectl::raw("get", "/containerLogs/default/logs-node/c").expect("ask the kubelet for the log");
    let texts: Vec<String> = lines(&told).into_iter().map(|line| line.content).collect();
    assert_eq!(through.lines().collect::<Vec<_>>(), texts);
}

fn rotation(node: &Node) {
    // A line of 100 bytes and its time: 64 KiB are some 450. Half a minute, as an emulated kubelet looks seldom.
    let pod = node.run(
        "rotation",
        json!({"containers": [with(fixture("c", &["spam", "6000", "200", "100"]), json!({}))], "restartPolicy": "Never"}),
    );
    pod.wait("its end", |pod| container(pod, "c")["state"]["terminated"].is_object().then_some(()));
    let directory = pod.logs().join("c");
    let mut files: Vec<_> =
        fs::read_dir(&directory).expect("list its logs").map(|file| file.expect("read").path()).collect();
    assert!(files.len() > 1, "nothing was rotated: {files:?}");
    // Rotated ones have their time behind the name, in order; the one being written has none.
    files.sort_by_key(|path| (path.ends_with("0.log"), path.clone()));
    let mut numbers = Vec::new();
    for file in &files {
        let bytes = match file.extension().is_some_and(|end| end == "gz") {
            true => {
                let unpacked =
                    std::process::Command::new("gzip").arg("-dc").arg(file).output().expect("run gzip");
                assert!(unpacked.status.success(), "{file:?} is no gzip");
                unpacked.stdout
            }
            false => fs::read(file).expect("read a log"),
        };
        let text = String::from_utf8(bytes).expect("a log is UTF-8");
        for line in lines(&text) {
            let number = line.content.split(' ').nth(1).and_then(|word| word.parse::<u64>().ok());
            numbers.push(number.unwrap_or_else(|| panic!("a line without a number: {line:?}")));
        }
    }
    assert_eq!(numbers.last(), Some(&6000));
    // The oldest files are gone; what is there is whole.
    let wrong = numbers.windows(2).find(|pair| pair[1] != pair[0] + 1);
    assert_eq!(wrong, None, "lines are missing or twice, of {} in {files:?}", numbers.len());
    assert!(read_log(&directory.join("0.log")).len() < 6000);
}

fn commands(node: &Node) {
    let pod = node.run("commands", json!({"containers": [fixture("c", &["sleep", "inf"])]}));
    pod.wait_ready();
    let said = kubectl::run_in("commands", "c", &["/bin/fixture", "echo", "hello"]);
    assert_eq!(said.as_deref(), Ok("hello\n"));
    let failed = kubectl::run_in("commands", "c", &["/bin/fixture", "exit", "7"]);
    assert!(failed.unwrap_err().contains('7'));
}

fn statistics(node: &Node) {
    let pod = node.run("statistics", json!({"containers": [fixture("c", &["burn", "600"])]}));
    pod.wait_ready();
    let found = until(PATIENCE, || {
        let summary: Value = serde_json::from_str(&node.get("/stats/summary")?).ok()?;
        let pods = summary["pods"].as_array()?;
        let pod = pods.iter().find(|pod| pod["podRef"]["name"] == "statistics-node")?;
        let container = pod["containers"].as_array()?.iter().find(|one| one["name"] == "c")?.clone();
        let has = |key: &str, value: &str| container[key][value].as_u64().is_some_and(|number| number > 0);
        (has("cpu", "usageCoreNanoSeconds")
            && has("memory", "workingSetBytes")
            && has("rootfs", "capacityBytes"))
        .then_some(container)
    });
    assert!(found.is_some(), "{:?}", node.get("/stats/summary"));
}

fn grace(node: &Node) {
    let shared = node.volume("grace");
    let pod = node.run(
        "grace",
        json!({
            "terminationGracePeriodSeconds": 30,
            "containers": [with(fixture("c", &["trap", "USR1", "--exit", "0"]), json!({
                "lifecycle": {
                    "postStart": {"exec": {"command": ["/bin/fixture", "write", "/shared/started", "yes"]}},
                    "preStop": {"exec": {"command": ["/bin/fixture", "write", "/shared/stopping", "yes"]}},
                },
                "volumeMounts": [{"name": "shared", "mountPath": "/shared"}],
            }))],
            "volumes": [{"name": "shared", "hostPath": {"path": shared}}],
        }),
    );
    let id = container(&pod.wait_ready(), "c")["containerID"].as_str().unwrap_or_default().to_owned();
    let id = id.strip_prefix("berth://").expect("the runtime's name is in the id").to_owned();
    assert!(shared.join("started").exists() && !shared.join("stopping").exists());
    pod.remove();
    // Its removal follows the end that it was given; the kubelet lists a static pod no more while that goes on.
    let gone = until(PATIENCE, || node.daemon().status(&id).is_err().then_some(()));
    assert!(gone.is_some(), "container {id} stays");
    assert_eq!(read(&shared.join("stopping")).as_deref(), Some("yes\n"));
}

fn volumes(node: &Node) {
    let info = ["stat", "/memory", "/config/name"];
    let pod = node.run(
        "volumes",
        json!({
            "restartPolicy": "Never",
            "containers": [with(fixture("c", &info), json!({"volumeMounts": [
                {"name": "memory", "mountPath": "/memory"},
                {"name": "config", "mountPath": "/config", "readOnly": true, "recursiveReadOnly": "IfPossible"},
            ]}))],
            "volumes": [
                {"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
                {"name": "config", "downwardAPI": {"items": [
                    {"path": "name", "fieldRef": {"fieldPath": "metadata.name"}},
                ]}},
            ],
        }),
    );
    let ended = pod.wait("its end", |pod| {
        let ended = &container(pod, "c")["state"]["terminated"];
        ended.is_object().then(|| ended.clone())
    });
    assert_eq!(ended["exitCode"], 0, "{ended}");
}

fn users(node: &Node) {
    let shared = node.volume("users");
    let written = ["write", "/memory/made", "x"];
    let pod = node.run(
        "users",
        json!({
            "hostUsers": false,
            "restartPolicy": "Never",
            "initContainers": [with(fixture("first", &written), json!({
                "volumeMounts": [{"name": "memory", "mountPath": "/memory"}],
            }))],
            "containers": [with(fixture("c", &["info"]), json!({"volumeMounts": [
                {"name": "memory", "mountPath": "/memory"},
                {"name": "shared", "mountPath": "/shared"},
                {"name": "config", "mountPath": "/config", "readOnly": true},
            ]})),
            with(fixture("writes", &["write", "/shared/made", "yes"]), json!({
                "volumeMounts": [{"name": "shared", "mountPath": "/shared"}],
            })),
            with(fixture("looks", &["stat", "/memory/made", "/config/name", "/etc/hosts"]), json!({"volumeMounts": [
                {"name": "memory", "mountPath": "/memory"},
                {"name": "config", "mountPath": "/config", "readOnly": true},
            ]}))],
            "volumes": [
                {"name": "memory", "emptyDir": {}},
                {"name": "shared", "hostPath": {"path": shared}},
                {"name": "config", "downwardAPI": {"items": [
                    {"path": "name", "fieldRef": {"fieldPath": "metadata.name"}},
                ]}},
            ],
        }),
    );
    for name in ["c", "writes", "looks"] {
        let ended = pod.wait("its end", |pod| {
            let ended = &container(pod, name)["state"]["terminated"];
            ended.is_object().then(|| ended.clone())
        });
        assert_eq!(ended["exitCode"], 0, "{name}: {ended}");
    }
    let told = |name: &str| -> Vec<Value> {
        let log = read_log(&pod.logs().join(name).join("0.log"));
        log.iter().map(|line| serde_json::from_str(&line.content).expect("a line is JSON")).collect()
    };
    let map = told("c")[0]["uid_map"].as_str().unwrap_or_default().to_owned();
    let numbers: Vec<u32> = map.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    assert!(numbers.len() == 3 && numbers[0] == 0 && numbers[1] >= 65_536, "{map}");
    for file in told("looks") {
        assert_eq!(file["uid"], 0, "{file}");
    }
    assert_eq!(read(&shared.join("made")).as_deref(), Some("yes\n"));
}

fn oom(node: &Node) {
    let pod = node.run(
        "oom",
        json!({
            "restartPolicy": "Never",
            "containers": [with(fixture("c", &["eat", "256M"]), json!({
                "resources": {"limits": {"memory": "32Mi"}},
            }))],
        }),
    );
    let ended = pod.wait("its end", |pod| {
        let ended = &container(pod, "c")["state"]["terminated"];
        ended.is_object().then(|| ended.clone())
    });
    assert_eq!((&ended["exitCode"], &ended["reason"]), (&json!(137), &json!("OOMKilled")), "{ended}");
}
