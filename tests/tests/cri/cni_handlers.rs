//! Handlers with CNI configurations of their own: their pods get their networks from there and from nowhere else.

use std::{fs, path::Path};

use berth_cri::v1 as cri;
use berth_tests::{Daemon, Options, eventually, pod};
use serde_json::{Value, json};
use tonic::Status;

use crate::cni::{calls, network_ready};

/// A plugin that says who it is, and gives an address of its own range.
fn plugin(daemon: &Daemon, name: &str, address: &str) {
    let result = json!({"cniVersion": "1.1.0", "interfaces": [{"name": "eth0", "sandbox": "x"}],
        "ips": [{"address": address, "interface": 0}]});
    let script = format!(
        r#"echo "{name} $CNI_COMMAND $CNI_CONTAINERID $(cat)" >>"$LOG"
case $CNI_COMMAND in
VERSION) echo '{{"cniVersion":"1.1.0","supportedVersions":["1.0.0","1.1.0"]}}';;
ADD) echo '{result}';;
esac"#
    );
    daemon.cni_script(name, &script);
}

fn write(dir: &Path, file: &str, text: &str) {
    fs::create_dir_all(dir).unwrap();
    let new = dir.join(format!(".{file}"));
    fs::write(&new, text).unwrap();
    fs::rename(new, dir.join(file)).unwrap();
}

fn list(name: &str, kind: &str) -> String {
    json!({"cniVersion": "1.1.0", "name": name, "plugins": [{"type": kind}]}).to_string()
}

fn run(daemon: &Daemon, name: &str, handler: &str) -> Result<String, Status> {
    let request = cri::RunPodSandboxRequest { config: Some(pod(name)), runtime_handler: handler.into() };
    Ok(daemon.call(daemon.runtime().run_pod_sandbox(request))?.pod_sandbox_id)
}

fn ip(daemon: &Daemon, id: &str) -> String {
    daemon.pod_status(id).unwrap().network.unwrap().ip
}

/// Of the verbose status: handlers whose pods get no network, and why.
fn unready(daemon: &Daemon) -> Value {
    let request = cri::StatusRequest { verbose: true };
    let told = daemon.call(daemon.runtime().status(request)).unwrap().info["config"].clone();
    serde_json::from_str::<Value>(&told).unwrap()["handlersWithoutNetwork"].clone()
}

fn handlers(own: &Path) -> Options {
    let over = format!(
        "[handlers.own]\ntype = \"builtin\"\ncni_conf_dir = {own:?}\n[handlers.plain]\ntype = \"builtin\"\n"
    );
    Options { over, ..Options::default() }
}

#[test]
fn pods_of_a_handler_get_their_networks_from_its_own_directory_and_from_nowhere_else() {
    let dir = tempfile::tempdir().unwrap();
    let own = dir.path().join("own.d");
    let daemon = Daemon::start_with(handlers(&own));
    plugin(&daemon, "node", "10.7.0.9/24");
    plugin(&daemon, "theirs", "10.6.0.9/24");
    daemon.cni_list("10.conflist", "1.1.0", &json!([{"type": "node"}]));
    let refused = |cause: &str| {
        let refused = run(&daemon, "refused", "own").unwrap_err();
        assert_eq!(refused.code(), tonic::Code::Unavailable, "{refused}");
        assert!(refused.message().contains(cause), "{refused}");
        // The node's own network is not the worse for it.
        assert!(network_ready(&daemon).status);
        let told = unready(&daemon)["own"].as_str().unwrap().to_owned();
        assert!(told.contains(cause), "{told}");
        let info = daemon.berth_ok(&["info"]);
        assert!(info.contains("pods of the handler own get no network"), "{info}");
    };
    // It is not there, has nothing, and has what is broken.
    refused("take cni_conf_dir out of [handlers.own]");
    fs::create_dir(&own).unwrap();
    refused("there is none (*.conf, *.conflist, *.json)");
    write(&own, "10.conflist", "{");
    refused("10.conflist: it is no JSON");
    write(&own, "10.conflist", &list("theirs", "nobody"));
    assert!(run(&daemon, "refused", "own").unwrap_err().message().contains("find network plugin nobody"));
    // Live, and each its own.
    write(&own, "10.conflist", &list("theirs", "theirs"));
    assert_eq!(unready(&daemon), json!({}));
    for (handler, address) in [("own", "10.6.0.9"), ("plain", "10.7.0.9"), ("", "10.7.0.9")] {
        let id = run(&daemon, &format!("of-{address}-{handler}"), handler).unwrap();
        assert_eq!(ip(&daemon, &id), address, "{handler:?}");
    }
    // Where the node has none its pods have the bridge, and the handler's still what is theirs.
    fs::remove_file(daemon.cni_conf_dir().join("10.conflist")).unwrap();
    assert_eq!(ip(&daemon, &run(&daemon, "again", "own").unwrap()), "10.6.0.9");
    let prefix = daemon.gateway().trim_end_matches(".1").to_owned();
    assert!(ip(&daemon, &run(&daemon, "bridged", "").unwrap()).starts_with(&prefix));
    fs::remove_dir_all(&own).unwrap();
    refused("take cni_conf_dir out of [handlers.own]");
}

#[test]
fn what_a_handlers_plugins_made_they_undo_and_collect_after_any_restart() {
    let dir = tempfile::tempdir().unwrap();
    let own = dir.path().join("own.d");
    let mut daemon = Daemon::start_with(handlers(&own));
    plugin(&daemon, "node", "10.7.0.9/24");
    plugin(&daemon, "theirs", "10.6.0.9/24");
    // Both lists have one name, as copies have: each is told of the other's attachments too.
    daemon.cni_file("10.conflist", &list("net", "node"));
    write(&own, "10.conflist", &list("net", "theirs"));
    let (one, other) = (run(&daemon, "one", "own").unwrap(), run(&daemon, "other", "").unwrap());
    let record = daemon.root().join("network/cni").join(&one);
    let record: Value = serde_json::from_slice(&fs::read(record).unwrap()).unwrap();
    assert_eq!(record["conf_dir"], json!(own));
    daemon.kill9();
    daemon.up();
    for kind in ["node", "theirs"] {
        eventually("GC", || {
            let collected = calls(&daemon, &format!("{kind} GC"));
            collected.iter().any(|line| line.contains(&one) && line.contains(&other)).then_some(())
        });
    }
    // Their configuration goes; what was asked for with it is written down.
    daemon.kill9();
    fs::remove_dir_all(&own).unwrap();
    daemon.up();
    daemon.stop_pod(&one).unwrap();
    daemon.stop_pod(&other).unwrap();
    let undone = |kind: &str, id: &str| calls(&daemon, &format!("{kind} DEL {id}")).len();
    assert_eq!((undone("theirs", &one), undone("node", &one)), (1, 0));
    assert_eq!((undone("node", &other), undone("theirs", &other)), (1, 0));
}
