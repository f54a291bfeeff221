//! The device nodes and links every container has, and those it asks for.

use std::{os::unix::ffi::OsStrExt, path::Path};

use berth_launch::v1::{Device, Symlink, device::Type};
use serde_json::{Value, json};

use super::{Host, Request, user};
use crate::{Error, Result};

/// OCI runtime spec 1.3, "Default Devices"; /dev/console comes with a terminal.
const DEFAULT: [(&str, u32, u32); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

const LINKS: [(&str, &str); 6] = [
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
    ("/dev/core", "/proc/kcore"),
    ("/dev/ptmx", "pts/ptmx"),
];

pub fn symlinks() -> Vec<Symlink> {
    LINKS.map(|(path, target)| Symlink { path: path.into(), target: target.into() }).into()
}

/// The nodes that every container has.
pub fn default_nodes() -> Vec<Device> {
    DEFAULT
        .iter()
        .map(|(path, major, minor)| Device {
            path: path.as_bytes().to_vec(),
            r#type: Type::Char.into(),
            major: *major,
            minor: *minor,
            mode: 0o666,
            ..Device::default()
        })
        .collect()
}

/// The nodes of a container: the default ones, all of the host's where privileged, and those asked for.
///
/// # Errors
/// `NotFound` names a host device that isn't there.
pub fn nodes(request: &Request<'_>) -> Result<Vec<Device>> {
    let mut nodes = default_nodes();
    if user::security(request).is_some_and(|security| security.privileged) {
        nodes.extend(request.host.devices.iter().map(|device| node(&device.0.to_string_lossy(), device)));
    }
    for asked in &request.config.devices {
        nodes.extend(of_host(request.host, &asked.host_path, &asked.container_path)?);
    }
    nodes.extend(request.place.cdi.device_nodes.iter().map(of_cdi).collect::<Result<Vec<_>>>()?);
    let mut seen = std::collections::HashSet::new();
    nodes.retain(|node| seen.insert(node.path.clone()));
    Ok(nodes)
}

/// What the container may do with devices beside what every one may: with those asked for as the request says, with all of
/// them where privileged.
///
/// # Errors
/// As `nodes`.
pub fn rules(request: &Request<'_>) -> Result<Vec<Value>> {
    if user::security(request).is_some_and(|security| security.privileged) {
        return Ok(vec![json!({"allow": true, "access": "rwm"})]);
    }
    let mut rules = vec![json!({"allow": false, "access": "rwm"})];
    // Said though every one may: an OCI runtime of the host goes by the document alone.
    rules.extend(default_nodes().iter().filter_map(|node| rule(node, "rwm")));
    for asked in &request.config.devices {
        let nodes = of_host(request.host, &asked.host_path, &asked.container_path)?;
        rules.extend(nodes.iter().filter_map(|node| rule(node, &asked.permissions)));
    }
    for described in &request.place.cdi.device_nodes {
        rules.extend(rule(&of_cdi(described)?, &described.permissions));
    }
    Ok(rules)
}

/// None for a pipe, which is no device.
fn rule(node: &Device, permissions: &str) -> Option<Value> {
    let kind = match node.r#type() {
        Type::Char => "c",
        Type::Block => "b",
        Type::Fifo => return None,
    };
    let access = if permissions.is_empty() { "rwm" } else { permissions };
    Some(json!({"allow": true, "type": kind, "major": node.major, "minor": node.minor, "access": access}))
}

/// As its vendor describes it.
fn of_cdi(node: &super::cdi::Node) -> Result<Device> {
    let (Some(major), Some(minor)) = (node.major, node.minor) else {
        return Err(Error::invalid("make CDI device", &node.path, "it has no number"));
    };
    let kind = match node.r#type.as_str() {
        "b" => Type::Block,
        "c" | "u" => Type::Char,
        "p" => Type::Fifo,
        other => return Err(Error::invalid("make CDI device", &node.path, format!("{other:?} is no type"))),
    };
    Ok(Device {
        path: node.path.clone().into_bytes(),
        r#type: kind.into(),
        major,
        minor,
        mode: node.file_mode.unwrap_or(0o660) & 0o777,
        uid: node.uid.unwrap_or(0),
        gid: node.gid.unwrap_or(0),
        host_path: node.host_path.clone().into_bytes(),
    })
}

/// One device, or all below a directory of the host.
fn of_host(host: &Host, host_path: &str, container_path: &str) -> Result<Vec<Device>> {
    let below = format!("{}/", host_path.trim_end_matches('/'));
    let found: Vec<Device> = host
        .devices
        .iter()
        .filter_map(|device| {
            let path = device.0.to_str()?;
            match path.strip_prefix(&below) {
                Some(rest) => Some(node(&format!("{}/{rest}", container_path.trim_end_matches('/')), device)),
                None => (path == host_path).then(|| node(container_path, device)),
            }
        })
        .collect();
    match found.is_empty() {
        true => Err(Error::not_found("find device", host_path).hint("it has to be there on the node")),
        false => Ok(found),
    }
}

fn node(path: &str, device: &(std::path::PathBuf, char, u32, u32, u32)) -> Device {
    let kind = if device.1 == 'b' { Type::Block } else { Type::Char };
    Device {
        path: path.as_bytes().to_vec(),
        r#type: kind.into(),
        major: device.2,
        minor: device.3,
        mode: device.4,
        host_path: match Path::new(path) == device.0 {
            true => Vec::new(),
            false => device.0.as_os_str().as_bytes().to_vec(),
        },
        ..Device::default()
    }
}
