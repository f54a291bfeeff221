//! What an ordinary user's container is without: rights to cgroups, and to map more ids than one's own. `newuidmap(1)`,
//! `subuid(5)`; the rules are runc's.

use std::path::{Path, PathBuf};

use berth_launch::v1 as launch;
use oci_spec::runtime::Linux;
use serde_json::{Value, json};

use super::groups;
use crate::{Error, Kind, Result, error::Cause};

/// Whether we have an ordinary user's rights: as one, or as the root of a user namespace, in which podman calls us.
pub fn is_ordinary() -> Result<bool> {
    match rustix::process::geteuid().is_root() {
        true => groups::in_user_namespace(),
        false => Ok(true),
    }
}

/// Whether a spec can do without a cgroup: it names none, and limits nothing. Device rules are not looked at: without a
/// right to make nodes there is nothing to be ruled.
pub fn does_without_cgroup(linux: &Linux) -> bool {
    let unnamed = linux.cgroups_path().as_ref().is_none_or(|path| path.as_os_str().is_empty());
    let mut resources = linux.resources().clone().unwrap_or_default();
    resources.set_devices(None);
    unnamed && resources == Default::default()
}

/// Has the maps of a new user namespace written by newuidmap and newgidmap, where we may not do it ourselves.
///
/// # Errors
/// `Precondition` where they are needed and not there.
pub fn with_helpers(plan: &mut launch::ContainerPlan) -> Result<()> {
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    let maps = !plan.uid_maps.is_empty() || !plan.gid_maps.is_empty();
    if uid.is_root() || !maps || is_own(&plan.uid_maps, uid.as_raw()) && is_own(&plan.gid_maps, gid.as_raw())
    {
        return Ok(());
    }
    plan.uid_map_helper = helper("newuidmap")?;
    plan.gid_map_helper = helper("newgidmap")?;
    plan.needs = berth_launch::needs::container(plan);
    Ok(())
}

/// The one map that takes no rights: a single id, the user's own.
fn is_own(maps: &[launch::IdMap], id: u32) -> bool {
    matches!(maps, [map] if map.length == 1 && map.outside == id)
}

fn helper(name: &str) -> Result<String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/bin", "/bin", "/usr/local/bin"].map(PathBuf::from);
    let found =
        std::env::split_paths(&path).chain(usual).map(|dir| dir.join(name)).find(|path| path.is_file());
    match found.as_deref().and_then(Path::to_str) {
        Some(path) => Ok(path.to_owned()),
        None => Err(Error::new(Kind::Precondition, "map ids", name)
            .because(Cause("it maps more than one's own id, and is not there".into()))
            .hint("install the package uidmap, or map one id: 0 to your own")),
    }
}

/// A beginning of a bundle as an ordinary user can run it.
pub fn document(mut document: Value) -> Value {
    let one = |id: u32| json!([{"containerID": 0, "hostID": id, "size": 1}]);
    let linux = &mut document["linux"];
    linux["uidMappings"] = one(rustix::process::geteuid().as_raw());
    linux["gidMappings"] = one(rustix::process::getegid().as_raw());
    if let Some(resources) = linux.as_object_mut() {
        resources.remove("resources");
    }
    // The host's network: without rights there is nothing to connect another one with.
    if let Some(namespaces) = linux["namespaces"].as_array_mut() {
        namespaces.retain(|namespace| namespace["type"] != "network");
        namespaces.push(json!({"type": "user"}));
    }
    for mount in document["mounts"].as_array_mut().into_iter().flatten() {
        if mount["destination"] == "/sys" {
            // A sysfs is its network namespace's, which is not ours.
            *mount = json!({"destination": "/sys", "type": "none", "source": "/sys",
                "options": ["rbind", "nosuid", "noexec", "nodev", "ro"]});
        }
        if let Some(options) = mount["options"].as_array_mut() {
            // tty's group is not mapped.
            options.retain(|option| option != "gid=5");
        }
    }
    if let Some(mounts) = document["mounts"].as_array_mut() {
        mounts.retain(|mount| mount["destination"] != "/sys/fs/cgroup");
    }
    document
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_id_of_ones_own_takes_no_helper() {
        let map = |outside, length| launch::IdMap { inside: 0, outside, length };
        assert!(is_own(&[map(1000, 1)], 1000));
        for other in [vec![], vec![map(1001, 1)], vec![map(1000, 2)], vec![map(1000, 1), map(5, 1)]] {
            assert!(!is_own(&other, 1000), "{other:?}");
        }
    }

    #[test]
    fn a_cgroup_is_not_missed_where_nothing_is_asked_of_it() {
        let of = |linux: Value| does_without_cgroup(&serde_json::from_value(linux).unwrap());
        assert!(of(json!({})));
        assert!(of(json!({"resources": {"devices": [{"allow": false, "access": "rwm"}]}})));
        assert!(!of(json!({"cgroupsPath": "/x"})));
        assert!(!of(json!({"resources": {"pids": {"limit": 5}}})));
    }
}
