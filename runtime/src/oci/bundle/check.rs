//! What of a spec has to be looked at as a whole: its version, what contradicts itself, what we can't do.

use std::path::Path;

use berth_launch::v1 as launch;
use oci_spec::runtime::{Linux, LinuxNamespaceType, Mount, Spec};

use super::{super::users, lacking, refused};
use crate::Result;

/// The latest spec that we know: a document of a later one may mean what we don't.
const KNOWN: (u64, u64) = (1, 3);

/// Checks `ociVersion`: semantic versioning, of which a major version is compatible with its earlier minors only.
pub fn version(text: &str) -> Result<()> {
    let mut parts = text.split(['.', '-', '+']).map(str::parse::<u64>);
    match (parts.next(), parts.next()) {
        (Some(Ok(major)), Some(Ok(minor))) if major == KNOWN.0 && minor <= KNOWN.1 => Ok(()),
        (Some(Ok(_)), Some(Ok(_))) => Err(refused(
            "ociVersion",
            &format!("{text} is not between 1.0 and {}.{}, which we know", KNOWN.0, KNOWN.1),
        )),
        _ => Err(refused("ociVersion", &format!("{text:?} is no version"))),
    }
}

/// Checks what no single field shows.
pub fn all(spec: &Spec) -> Result<()> {
    let elsewhere = [
        ("solaris", spec.solaris().is_some()),
        ("windows", spec.windows().is_some()),
        ("vm", spec.vm().is_some()),
        ("zos", spec.zos().is_some()),
    ];
    if let Some((what, _)) = elsewhere.iter().find(|(_, said)| *said) {
        return Err(lacking(what, "this is Linux"));
    }
    let Some(linux) = spec.linux() else {
        return Err(refused("linux", "the spec has no such part"));
    };
    namespaces(spec, linux)
}

fn namespaces(spec: &Spec, linux: &Linux) -> Result<()> {
    let all: Vec<_> = linux.namespaces().iter().flatten().collect();
    for (n, namespace) in all.iter().enumerate() {
        if all[..n].iter().any(|other| other.typ() == namespace.typ()) {
            return Err(refused("linux.namespaces", &format!("{:?} is there twice", namespace.typ())));
        }
    }
    let made = |kind| all.iter().any(|namespace| namespace.typ() == kind && unnamed(namespace.path()));
    let has = |kind| all.iter().any(|namespace| namespace.typ() == kind);
    if !made(LinuxNamespaceType::Mount) {
        // Without one we would change the root of whoever calls us.
        return Err(refused("linux.namespaces", "a mount namespace of its own is missing"));
    }
    if spec.hostname().as_ref().is_some_and(|name| !name.is_empty()) && !has(LinuxNamespaceType::Uts) {
        return Err(refused("hostname", "there is no UTS namespace to set it in"));
    }
    if !has(LinuxNamespaceType::User) && (mapped(linux.uid_mappings()) || mapped(linux.gid_mappings())) {
        return Err(refused("linux.uidMappings", "there is no user namespace to map ids for"));
    }
    Ok(())
}

/// The maps of a new user namespace. One that is joined has its own: what a bundle says of them there is not looked at, as
/// with the peers.
pub fn users(linux: &Linux) -> Result<(Vec<launch::IdMap>, Vec<launch::IdMap>)> {
    let mut all = linux.namespaces().iter().flatten();
    let is_new = all.any(|one| one.typ() == LinuxNamespaceType::User && unnamed(one.path()));
    match is_new {
        false => Ok(Default::default()),
        true if !mapped(linux.uid_mappings()) || !mapped(linux.gid_mappings()) => Err(refused(
            "linux.uidMappings",
            "a new user namespace needs mappings of both user and group ids",
        )),
        true => Ok((users::maps(linux.uid_mappings()), users::maps(linux.gid_mappings()))),
    }
}

fn unnamed(path: &Option<std::path::PathBuf>) -> bool {
    path.as_deref().is_none_or(|path| path == Path::new(""))
}

fn mapped<T>(mappings: &Option<Vec<T>>) -> bool {
    mappings.as_ref().is_some_and(|mappings| !mappings.is_empty())
}

/// Refuses the mounts that would come out as another mount.
pub fn mount(mount: &Mount, shown: &str) -> Result<()> {
    if mapped(mount.uid_mappings()) != mapped(mount.gid_mappings()) {
        return Err(refused(
            "mount",
            &format!("{shown}: it maps either user or group ids, and has to map both"),
        ));
    }
    for option in mount.options().iter().flatten() {
        match option.as_str() {
            "tmpcopyup" if mount.typ().as_deref() != Some("tmpfs") => {
                return Err(refused("mount", &format!("{shown}: tmpcopyup is for a tmpfs")));
            }
            "copy-symlink" | "dest-nofollow" | "src-nofollow" => {
                return Err(lacking("mount", &format!("{shown}: this version can't do {option}")));
            }
            "remount" => {
                return Err(refused("mount", &format!("{shown}: what is to be mounted can't be a remount")));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Checks that a mount whose ids are mapped is one that can be, and that it is said how.
pub fn mount_ids(mount: &launch::Mount, spec: &Spec, shown: &str) -> Result<()> {
    let Some(ids) = &mount.ids else { return Ok(()) };
    if !matches!(mount.from, Some(launch::mount::From::Bind(_))) {
        return Err(refused("mount", &format!("{shown}: only the ids of a bind mount can be mapped")));
    }
    let linux = spec.linux().as_ref();
    let mut namespaces = linux.and_then(|linux| linux.namespaces().as_ref()).into_iter().flatten();
    match ids.uids.is_empty() && !namespaces.any(|one| one.typ() == LinuxNamespaceType::User) {
        true => Err(refused(
            "mount",
            &format!("{shown}: it has no mappings, and the container no user namespace"),
        )),
        false => Ok(()),
    }
}

/// The sysctls, each of a namespace that the container has for itself.
pub fn sysctls(linux: &Linux) -> Result<Vec<launch::Sysctl>> {
    let has = |kind| linux.namespaces().iter().flatten().any(|namespace| namespace.typ() == kind);
    let mut sysctls: Vec<launch::Sysctl> = Vec::new();
    for (name, value) in linux.sysctl().iter().flatten() {
        let dotted = name.replace('/', ".");
        let needs = match dotted.as_str() {
            "kernel.msgmax"
            | "kernel.msgmnb"
            | "kernel.msgmni"
            | "kernel.sem"
            | "kernel.shmall"
            | "kernel.shmmax"
            | "kernel.shmmni"
            | "kernel.shm_rmid_forced"
            | "kernel.msg_next_id"
            | "kernel.sem_next_id"
            | "kernel.shm_next_id" => Some(LinuxNamespaceType::Ipc),
            name if name.starts_with("fs.mqueue.") => Some(LinuxNamespaceType::Ipc),
            name if name.starts_with("net.") => Some(LinuxNamespaceType::Network),
            "kernel.domainname" => Some(LinuxNamespaceType::Uts),
            name if name.starts_with("user.") => Some(LinuxNamespaceType::User),
            _ => None,
        };
        match needs {
            Some(kind) if has(kind) => {}
            Some(kind) => {
                return Err(refused(
                    "linux.sysctl",
                    &format!("{name} needs a {kind:?} namespace of the container's own"),
                ));
            }
            None => {
                return Err(refused(
                    "linux.sysctl",
                    &format!("{name} belongs to no namespace: it would be the whole host's"),
                ));
            }
        }
        sysctls.push(launch::Sysctl { name: name.clone(), value: value.clone() });
    }
    sysctls.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(sysctls)
}

/// Offsets of a new time namespace's clocks; `time_namespaces(7)`.
pub fn time_offsets(linux: &Linux) -> Result<Vec<launch::TimeOffset>> {
    let mut offsets = Vec::new();
    for (clock, offset) in linux.time_offsets().iter().flatten() {
        let clock = match clock.as_str() {
            "monotonic" => launch::time_offset::Clock::Monotonic,
            "boottime" => launch::time_offset::Clock::Boottime,
            other => return Err(refused("linux.timeOffsets", &format!("{other:?} is no clock"))),
        };
        offsets.push(launch::TimeOffset {
            clock: clock.into(),
            seconds: offset.secs().unwrap_or(0),
            nanoseconds: offset.nanosecs().unwrap_or(0),
        });
    }
    offsets.sort_by_key(|offset| offset.clock);
    Ok(offsets)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn linux(namespace: Value, maps: Value) -> Linux {
        serde_json::from_value(json!({"namespaces": [namespace], "uidMappings": maps, "gidMappings": maps}))
            .unwrap()
    }

    #[test]
    fn a_new_user_namespace_has_maps_and_a_joined_one_its_own() {
        let maps = || json!([{"containerID": 0, "hostID": 1000, "size": 1}, {"containerID": 1, "hostID": 5, "size": 2}]);
        let (uids, gids) = users(&linux(json!({"type": "user"}), maps())).unwrap();
        assert_eq!(uids, gids);
        assert_eq!(uids[1], launch::IdMap { inside: 1, outside: 5, length: 2 });
        let joined = linux(json!({"type": "user", "path": "/proc/1/ns/user"}), maps());
        assert_eq!(users(&joined).unwrap(), Default::default());
        assert!(users(&linux(json!({"type": "user"}), json!([]))).is_err());
    }

    #[test]
    fn only_a_bind_mount_has_its_ids_mapped() {
        let of = |kind: &str, options: &[&str], namespace: &str| {
            let document = json!({"destination": "/x", "type": kind, "source": "/y", "options": options});
            let spec = json!({"ociVersion": "1.2.0", "linux": {"namespaces": [{"type": namespace}]}});
            let mounted = super::super::mounts::compile(&serde_json::from_value(document).unwrap(), "");
            mount_ids(&mounted, &serde_json::from_value(spec).unwrap(), "/x")
        };
        assert!(of("bind", &["bind", "idmap"], "user").is_ok());
        assert!(of("bind", &["bind", "ridmap"], "user").is_ok());
        assert!(of("tmpfs", &[], "mount").is_ok());
        assert!(of("tmpfs", &["idmap"], "user").is_err());
        assert!(of("bind", &["bind", "idmap"], "mount").is_err());
    }
}
