//! systemd's names: slices, scopes and where they are below the root of cgroups. Pure. systemd.slice(5), systemd.unit(5).

use crate::{Error, Result};

const OP: &str = "name systemd unit";
/// What a unit's name may have at most, with its suffix. systemd.unit(5).
const LONGEST: usize = 255;
const SLICE: &str = ".slice";
const SCOPE: &str = ".scope";
/// Below a scope: what is limited and counted; and who looks after it.
const CONTAINER: &str = "container";
pub const SUPERVISOR: &str = "supervisor";

/// Which systemd has a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manager {
    /// Process 1.
    System,
    /// A user's own, `user@UID.service`.
    User,
}

impl Manager {
    /// The slice of who names none.
    pub fn slice(self) -> &'static str {
        match self {
            Self::System => "system.slice",
            Self::User => "user.slice",
        }
    }

    /// Whose a group is.
    fn of(path: &str) -> Self {
        let is_users = |part: &str| part.starts_with("user@") && part.ends_with(".service");
        if path.split('/').any(is_users) { Self::User } else { Self::System }
    }
}

/// A scope by the path of the group that a container has in it. That may begin at the root of cgroups or at that of files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place<'a> {
    pub manager: Manager,
    /// `a-b.slice`.
    pub slice: &'a str,
    /// `berth-<id>.scope`.
    pub unit: &'a str,
    /// Of the scope: `/a.slice/a-b.slice/berth-<id>.scope`.
    pub path: &'a str,
}

impl Place<'_> {
    /// The group of the scope in which something of ours keeps it.
    pub fn supervisor(&self) -> String {
        format!("{}/{SUPERVISOR}", self.path)
    }
}

/// The scope that a group is in; `None` for one that is no scope's, made by ourselves.
pub fn place(path: &str) -> Option<Place<'_>> {
    let path = path.strip_suffix(CONTAINER)?.strip_suffix('/')?;
    let (above, unit) = path.rsplit_once('/')?;
    let (_, slice) = above.rsplit_once('/')?;
    let manager = Manager::of(above);
    (unit.ends_with(SCOPE) && slice.ends_with(SLICE)).then_some(Place { manager, slice, unit, path })
}

/// The name of the scope that a group is in.
pub fn scope(path: &str) -> Option<&str> {
    place(path).map(|place| place.unit)
}

/// What a group is in, for those who look at all of a pod: the slice of one in a scope, else the directory above.
pub fn above(path: &str) -> Option<&str> {
    let of = place(path).map_or(path, |place| place.path);
    of.rsplit_once('/').map(|(above, _)| above).filter(|above| !above.is_empty())
}

/// The group of a container: `<slice>/<prefix>-<name>.scope/container`, without `-` where the prefix is empty.
///
/// # Errors
/// `Invalid` for what is no name of a slice or scope.
pub fn container(slice: &str, prefix: &str, name: &str) -> Result<String> {
    let dash = if prefix.is_empty() { "" } else { "-" };
    let unit = format!("{prefix}{dash}{name}{SCOPE}");
    check(&unit)?;
    Ok(format!("{}/{unit}/{CONTAINER}", path_of(slice)?))
}

/// The slice that a parent means, given as clients of the systemd driver do (`a-b.slice`, alone or behind its own path)
/// or as a path of cgroupfs, whose parts become those of the slice's name.
pub fn slice(parent: &str) -> String {
    let parts: Vec<&str> = parent.split('/').filter(|part| !part.is_empty()).collect();
    match parts.last() {
        Some(last) if last.ends_with(SLICE) => (*last).to_owned(),
        _ => format!("{}{SLICE}", parts.join("-")),
    }
}

/// `a-b.slice` is in `a.slice`.
fn path_of(slice: &str) -> Result<String> {
    check(slice)?;
    let invalid = || Error::invalid(OP, slice, "a slice's name is parts with - between them, then .slice");
    let name = slice.strip_suffix(SLICE).ok_or_else(invalid)?;
    let mut path = String::new();
    for (end, _) in name.match_indices('-').chain([(name.len(), "")]) {
        let part = &name[..end];
        if part.is_empty() || part.ends_with('-') {
            return Err(invalid());
        }
        path.push_str(&format!("/{part}{SLICE}"));
    }
    Ok(path)
}

fn check(unit: &str) -> Result<()> {
    let known = |byte: u8| byte.is_ascii_alphanumeric() || b":-_.\\@".contains(&byte);
    if !unit.bytes().all(known) {
        return Err(Error::invalid(OP, unit, "a unit's name is letters, digits and :-_.\\@"));
    }
    match unit.len() > LONGEST {
        true => Err(Error::invalid(OP, unit, format!("a unit's name has at most {LONGEST} bytes"))),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_slice_is_in_those_whose_names_it_begins_with() {
        let rows = [
            ("berth.slice", "/berth.slice/berth-c1.scope/container"),
            (
                "kubepods-burstable-pod1.slice",
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/berth-c1.scope/container",
            ),
        ];
        for (slice, path) in rows {
            assert_eq!(container(slice, "berth", "c1").unwrap(), path);
            let place = place(path).unwrap();
            assert_eq!((place.slice, place.unit), (slice, "berth-c1.scope"));
            assert_eq!(format!("{}/container", place.path), path);
        }
        assert_eq!(container("a.slice", "", "c1").unwrap(), "/a.slice/c1.scope/container");
        for bad in
            ["a--b.slice", "-a.slice", "-.slice", "a-.slice", ".slice", "a", "a/b.slice", "a b.slice", ""]
        {
            assert!(container(bad, "berth", "c1").is_err(), "{bad:?}");
        }
        assert!(container("a.slice", "berth", &"x".repeat(250)).is_err());
        assert!(container("a.slice", "berth", "../x").is_err());
    }

    #[test]
    fn a_group_below_a_users_service_is_that_users_systemds() {
        let path = container("user.slice", "libpod", "c1").unwrap();
        assert_eq!(place(&path).unwrap().manager, Manager::System);
        let path = format!("/sys/fs/cgroup/user.slice/user-1000.slice/user@1000.service{path}");
        let place = place(&path).unwrap();
        assert_eq!(
            (place.manager, place.slice, place.unit),
            (Manager::User, "user.slice", "libpod-c1.scope")
        );
    }

    #[test]
    fn a_parent_is_a_slice_whichever_way_it_is_said() {
        let rows = [
            ("kubepods-pod1.slice", "kubepods-pod1.slice"),
            ("/kubepods.slice/kubepods-pod1.slice", "kubepods-pod1.slice"),
            ("/berth", "berth.slice"),
            ("/a/b/", "a-b.slice"),
            // No slice: whoever asks for a container's group is refused.
            ("/", ".slice"),
        ];
        for (parent, expected) in rows {
            assert_eq!(slice(parent), expected, "{parent:?}");
        }
    }

    #[test]
    fn what_is_above_a_group_is_no_scope() {
        let rows = [
            ("/a.slice/a-b.slice/berth-c.scope/container", Some("/a.slice/a-b.slice")),
            ("/kubepods/pod1/c", Some("/kubepods/pod1")),
            ("/c", None),
            // Somebody's directory of that name, in no scope.
            ("/a/container", Some("/a")),
        ];
        for (path, expected) in rows {
            assert_eq!(above(path), expected, "{path}");
        }
    }

    proptest! {
        /// Whatever is asked for, a path that comes of it goes down from the root, and names the unit that it is in.
        #[test]
        fn a_path_leads_back_to_its_unit(parent in "[a-z./-]{0,20}", prefix in "[a-z.-]{0,5}", name in "[a-z0-9./-]{0,12}") {
            let slice = slice(&parent);
            if let Ok(path) = container(&slice, &prefix, &name) {
                prop_assert!(path.starts_with('/'));
                prop_assert!(path.split('/').all(|part| part != ".."));
                let place = place(&path).unwrap();
                prop_assert_eq!(place.slice, slice.as_str());
                let supervisor = place.supervisor();
                prop_assert!(supervisor.starts_with(place.path));
            }
        }
    }
}
