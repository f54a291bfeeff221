//! A pod's user namespace: which ids of the node its own are. CRI's `UserNamespace`.

use berth_cri::v1::{self as cri, NamespaceMode};
use berth_launch::v1::IdMap;
use serde_json::{Value, json};

use super::{Request, modes, user};
use crate::{Error, Result};

const OP: &str = "read user namespace";

/// The ids of a pod, one range of each kind.
#[derive(Debug, Clone, PartialEq)]
pub struct Users {
    pub uids: IdMap,
    pub gids: IdMap,
}

impl Users {
    /// The node's ids that the pod's root is.
    pub fn root(&self) -> (u32, u32) {
        (self.uids.outside, self.gids.outside)
    }

    /// Whether a mount's maps are the pod's own.
    pub fn are(&self, uids: &[cri::IdMapping], gids: &[cri::IdMapping]) -> bool {
        let same = |own: &IdMap, maps: &[cri::IdMapping]| matches!(maps, [map] if (map.container_id, map.host_id, map.length) == (own.inside, own.outside, own.length));
        same(&self.uids, uids) && same(&self.gids, gids)
    }
}

/// The ids of a pod that has a user namespace of its own.
///
/// # Errors
/// `Invalid` for a mode that is not a pod's or the node's, for maps other than one from 0 on, and for what the namespace
/// would have no power over.
pub fn of_pod(sandbox: &cri::PodSandboxConfig) -> Result<Option<Users>> {
    let modes = modes(sandbox);
    let Some(users) = of(&modes)? else { return Ok(None) };
    let privileged = |linux: &cri::LinuxPodSandboxConfig| {
        linux.security_context.as_ref().is_some_and(|security| security.privileged)
    };
    if sandbox.linux.as_ref().is_some_and(privileged) {
        return Err(refused("a privileged pod", "it has all of the node's rights, or a user namespace"));
    }
    for (mode, object) in
        [(modes.pid(), "a pod with the node's processes"), (modes.ipc(), "a pod with the node's IPC")]
    {
        if mode == NamespaceMode::Node {
            return Err(refused(object, "its user namespace has no power over them"));
        }
    }
    Ok(Some(users))
}

/// The same for a container, which has to ask for what its pod has, or for nothing.
pub fn of_container(request: &Request<'_>) -> Result<Option<Users>> {
    let pod = of_pod(request.sandbox)?;
    let Some(security) = user::security(request) else { return Ok(pod) };
    let asked = security.namespace_options.clone().unwrap_or_default();
    if asked.userns_options.is_some() && of(&asked)? != pod {
        return Err(refused("a container", "it asks for another user namespace than its pod has"));
    }
    if pod.is_some() && security.privileged {
        return Err(refused("a privileged container", "its pod has a user namespace"));
    }
    if pod.is_some() && asked.pid() == NamespaceMode::Node {
        return Err(refused("a container with the node's processes", "its pod has a user namespace"));
    }
    Ok(pod)
}

fn of(modes: &cri::NamespaceOption) -> Result<Option<Users>> {
    let Some(asked) = &modes.userns_options else { return Ok(None) };
    match asked.mode() {
        NamespaceMode::Node if asked.uids.is_empty() && asked.gids.is_empty() => Ok(None),
        NamespaceMode::Node => {
            Err(refused("userns_options", "it maps ids, and asks for the node's namespace"))
        }
        NamespaceMode::Container | NamespaceMode::Target => {
            Err(refused("userns_options.mode", "a user namespace is the pod's or the node's"))
        }
        NamespaceMode::Pod => Ok(Some(Users {
            uids: one("userns_options.uids", &asked.uids)?,
            gids: one("userns_options.gids", &asked.gids)?,
        })),
    }
}

fn one(field: &str, maps: &[cri::IdMapping]) -> Result<IdMap> {
    let [map] = maps else {
        return Err(refused(field, &format!("there are {} mappings, and one is needed", maps.len())));
    };
    if map.container_id != 0 {
        return Err(refused(field, "the mapping does not begin with id 0 of the container"));
    }
    // The last id of all is nobody's: -1 says none.
    if map.length == 0 || map.host_id.checked_add(map.length).is_none() {
        return Err(refused(field, &format!("{} ids from {} on are no range", map.length, map.host_id)));
    }
    Ok(IdMap { inside: 0, outside: map.host_id, length: map.length })
}

fn refused(object: &str, why: &str) -> Error {
    Error::invalid(OP, object, why)
}

/// A map as the runtime spec writes it.
pub fn document(map: &IdMap) -> Value {
    json!([{"containerID": map.inside, "hostID": map.outside, "size": map.length}])
}

/// CRI's maps as the runtime spec writes them.
pub fn documents(maps: &[cri::IdMapping]) -> Value {
    let one = |map: &cri::IdMapping| json!({"containerID": map.container_id, "hostID": map.host_id, "size": map.length});
    maps.iter().map(one).collect()
}

/// The runtime spec's maps as plans carry them.
pub fn maps(maps: &Option<Vec<oci_spec::runtime::LinuxIdMapping>>) -> Vec<IdMap> {
    maps.iter()
        .flatten()
        .map(|map| IdMap { inside: map.container_id(), outside: map.host_id(), length: map.size() })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(container_id: u32, host_id: u32, length: u32) -> cri::IdMapping {
        cri::IdMapping { container_id, host_id, length }
    }

    fn asked(mode: NamespaceMode, maps: Vec<cri::IdMapping>) -> Result<Option<Users>> {
        of(&cri::NamespaceOption {
            userns_options: Some(cri::UserNamespace { mode: mode.into(), uids: maps.clone(), gids: maps }),
            ..Default::default()
        })
    }

    #[test]
    fn a_pod_has_one_range_from_0_on_or_the_nodes_ids() {
        use NamespaceMode::{Container, Node, Pod, Target};
        let good = map(0, 100_000, 65_536);
        assert_eq!(asked(Pod, vec![good]).unwrap().unwrap().root(), (100_000, 100_000));
        assert_eq!(asked(Node, Vec::new()).unwrap(), None);
        assert_eq!(of(&cri::NamespaceOption::default()).unwrap(), None);
        for (mode, maps) in [
            (Pod, Vec::new()),
            (Pod, vec![good, map(65_536, 300_000, 1)]),
            (Pod, vec![map(1, 100_000, 65_536)]),
            (Pod, vec![map(0, 100_000, 0)]),
            (Pod, vec![map(0, u32::MAX, 2)]),
            (Node, vec![good]),
            (Container, vec![good]),
            (Target, vec![good]),
        ] {
            assert!(asked(mode, maps.clone()).is_err(), "{mode:?} {maps:?}");
        }
    }
}
