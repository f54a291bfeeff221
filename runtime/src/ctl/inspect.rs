//! inspect: docker's main keys, so that scripts written for it find what they look for.

use berth_cri::berth::{
    Container, ContainerSpec, InspectRequest, InspectResponse, container::State, restart::Policy,
};
use clap::Args;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    command::Shape,
    connect::Daemon,
    failure::Result,
    health, human,
    output::{self, Format, Notation},
};

#[derive(Debug, Args)]
pub(super) struct Flags {
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
    #[command(flatten)]
    shape: Shape,
}

/// Prints those there are; one that is missing is a failure all the same.
pub(super) async fn inspect(daemon: &Daemon, flags: Flags, format: Format) -> Result<u8> {
    let (mut found, mut missing) = (Vec::new(), None);
    for container in flags.containers {
        match daemon.containers().inspect(InspectRequest { container }).await {
            Ok(told) => found.push(document(told.into_inner())),
            Err(status) => missing = Some(status),
        }
    }
    // There are no columns for this much: a person gets JSON as well.
    let notation = flags.shape.or(format).notation().unwrap_or(Notation::Json);
    output::print(output::write(notation, &Value::Array(found))?)?;
    missing.map_or(Ok(0), |status| Err(status.into()))
}

fn document(told: InspectResponse) -> Value {
    let container = told.container.unwrap_or_default();
    let spec = told.spec.unwrap_or_default();
    let state = container.state();
    let mut document = json!({
        "Id": container.id,
        // Docker's names begin with a slash; scripts strip it.
        "Name": format!("/{}", container.name),
        "Created": time(container.created_at),
        "Path": container.command.first(),
        "Args": container.command.get(1..).unwrap_or_default(),
        "State": state_of(&container, state),
        "Image": container.image_id,
        "LogPath": told.log_path,
        "RestartCount": container.restarts,
        "Config": {
            "Image": container.image,
            "Cmd": container.command,
            "Env": told.env,
            "WorkingDir": told.workdir,
            "User": spec.user,
            "Tty": spec.tty,
            "OpenStdin": spec.stdin,
            "Hostname": spec.hostname,
            "Labels": container.labels,
            "StopSignal": spec.stop_signal,
        },
        "HostConfig": host(&spec),
        "Mounts": spec.volumes.iter().map(|volume| json!({
            "Type": "bind",
            "Source": volume.source,
            "Destination": volume.destination,
            "RW": !volume.read_only,
        })).collect::<Vec<_>>(),
        "NetworkSettings": {
            "Networks": networks(&container, &spec),
            "IPAddress": container.ips.iter().find(|ip| !ip.contains(':')).map_or("", String::as_str),
            "GlobalIPv6Address": container.ips.iter().find(|ip| ip.contains(':')).map_or("", String::as_str),
        },
        "Berth": {
            "Client": container.client,
            "PodId": container.pod_id,
            "Cgroup": told.cgroup,
            "UpperDir": told.rootfs,
            "Uid": told.uid,
            "Gid": told.gid,
            "CommandLine": spec.command_line,
        },
    });
    // As with docker: what has none has no such keys.
    if let Some(health) = &container.health {
        document["State"]["Health"] = health::of_state(health);
    }
    if let Some(check) = &told.health {
        document["Config"]["Healthcheck"] = health::of_config(check);
    }
    document
}

/// docker's: by the network's name, where it is there.
fn networks(container: &Container, spec: &ContainerSpec) -> Value {
    let of_family =
        |six: bool| container.ips.iter().find(|ip| ip.contains(':') == six).map_or("", String::as_str);
    match spec.network.as_str() {
        "" => json!({}),
        name => json!({ name: {
            "IPAddress": of_family(false),
            "GlobalIPv6Address": of_family(true),
            "Aliases": spec.network_aliases,
            "DNSNames": dns_names(container, spec),
        } }),
    }
}

/// What it is found by in a network that somebody made, as the daemon has it.
fn dns_names<'a>(container: &'a Container, spec: &'a ContainerSpec) -> Vec<&'a str> {
    if matches!(spec.network.as_str(), "bridge" | "host" | "none") {
        return Vec::new();
    }
    let aliases = spec.network_aliases.iter().map(String::as_str);
    let names = [container.name.as_str()].into_iter().chain(aliases);
    let names = names.chain([human::short_id(&container.id), spec.hostname.as_str()]);
    names.filter(|name| !name.is_empty()).collect()
}

fn state_of(container: &Container, state: State) -> Value {
    let status = match state {
        State::Created => "created",
        State::Running => "running",
        State::Restarting => "restarting",
        State::Exited => "exited",
        State::Unknown => "unknown",
    };
    json!({
        "Status": status,
        "Running": matches!(state, State::Running | State::Restarting),
        "Restarting": state == State::Restarting,
        "OOMKilled": container.oom_killed,
        "Pid": container.pid,
        "ExitCode": container.exit_code,
        "Error": container.message,
        "StartedAt": time(container.started_at),
        "FinishedAt": time(container.finished_at),
    })
}

fn host(spec: &ContainerSpec) -> Value {
    let restart = spec.restart.unwrap_or_default();
    let policy = match restart.policy() {
        Policy::Never => "no",
        Policy::OnFailure => "on-failure",
        Policy::Always => "always",
    };
    let volume = |volume: &berth_cri::berth::Volume| {
        let mode = if volume.read_only { ":ro" } else { "" };
        format!("{}:{}{mode}", volume.source, volume.destination)
    };
    json!({
        "Binds": spec.volumes.iter().map(volume).collect::<Vec<_>>(),
        "RestartPolicy": { "Name": policy, "MaximumRetryCount": restart.max_retries },
        "AutoRemove": spec.auto_remove,
        "Memory": spec.memory_bytes,
        "NanoCpus": spec.millicpu.saturating_mul(1_000_000),
        "PidsLimit": spec.pids_limit,
        "StorageOpt": (spec.storage_bytes > 0).then(|| json!({ "size": spec.storage_bytes.to_string() })),
        "NetworkMode": spec.network,
        "PortBindings": bindings(spec),
        "Privileged": spec.privileged,
        "ReadonlyRootfs": spec.read_only,
        "CapAdd": spec.cap_add,
        "CapDrop": spec.cap_drop,
    })
}

/// docker's: by the container's port, who leads there.
fn bindings(spec: &ContainerSpec) -> Value {
    let mut by_port = serde_json::Map::new();
    for port in &spec.ports {
        let protocol = port.protocol().as_str_name().to_ascii_lowercase();
        let binding = json!({ "HostIp": port.host_ip, "HostPort": port.host_port.to_string() });
        let entry = by_port.entry(format!("{}/{protocol}", port.container_port));
        if let Value::Array(all) = entry.or_insert_with(|| json!([])) {
            all.push(binding);
        }
    }
    Value::Object(by_port)
}

/// RFC 3339; what has not happened is docker's year one.
pub(super) fn time(nanoseconds: i64) -> String {
    match Timestamp::from_nanosecond(nanoseconds.into()) {
        Ok(at) if nanoseconds != 0 => at.to_string(),
        _ => "0001-01-01T00:00:00Z".into(),
    }
}

#[cfg(test)]
mod tests {
    use berth_cri::berth::Restart;

    use super::*;

    #[test]
    fn scripts_find_dockers_keys() {
        let told = InspectResponse {
            container: Some(Container {
                id: "ab".into(),
                name: "web".into(),
                image: "busybox".into(),
                image_id: "sha256:01".into(),
                command: vec!["sh".into(), "-c".into()],
                state: State::Running.into(),
                started_at: 1_500_000_000,
                pid: 42,
                restarts: 2,
                ips: vec!["fd88::2".into(), "10.88.0.2".into()],
                ..Default::default()
            }),
            spec: Some(ContainerSpec {
                memory_bytes: 5,
                millicpu: 1500,
                tty: true,
                restart: Some(Restart { policy: Policy::OnFailure.into(), max_retries: 3 }),
                ..Default::default()
            }),
            log_path: "/l".into(),
            env: vec!["A=1".into()],
            workdir: "/w".into(),
            ..Default::default()
        };
        let document = document(told);
        let rows = [
            ("/Id", json!("ab")),
            ("/Name", json!("/web")),
            ("/Image", json!("sha256:01")),
            ("/LogPath", json!("/l")),
            ("/RestartCount", json!(2)),
            ("/State/Status", json!("running")),
            ("/State/Running", json!(true)),
            ("/State/Pid", json!(42)),
            ("/State/ExitCode", json!(0)),
            ("/State/OOMKilled", json!(false)),
            ("/State/StartedAt", json!("1970-01-01T00:00:01.5Z")),
            ("/State/FinishedAt", json!("0001-01-01T00:00:00Z")),
            ("/Config/Image", json!("busybox")),
            ("/Config/Cmd", json!(["sh", "-c"])),
            ("/Config/Env", json!(["A=1"])),
            ("/Config/WorkingDir", json!("/w")),
            ("/Config/Tty", json!(true)),
            ("/HostConfig/RestartPolicy/Name", json!("on-failure")),
            ("/HostConfig/RestartPolicy/MaximumRetryCount", json!(3)),
            ("/HostConfig/Memory", json!(5)),
            ("/HostConfig/NanoCpus", json!(1_500_000_000_i64)),
            ("/NetworkSettings/IPAddress", json!("10.88.0.2")),
        ];
        for (path, expected) in rows {
            assert_eq!(document.pointer(path), Some(&expected), "{path}");
        }
    }
}
