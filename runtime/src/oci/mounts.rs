//! Mounts: which a container has, and what their options mean to the kernel. `mount(8)`, `mount_setattr(2)`.

use std::path::Path;

use berth_cri::v1 as cri;
use berth_launch::v1 as launch;
use serde_json::{Value, json};

use super::{Request, modes, user, users};
use crate::{Error, Result};

/// All mounts of a container as the runtime spec writes them, in order.
pub fn of_container(request: &Request<'_>) -> Result<Vec<Value>> {
    let users = users::of_container(request)?;
    let asked: Vec<Value> = request
        .config
        .mounts
        .iter()
        .enumerate()
        .map(|(n, mount)| match &mount.image {
            Some(_) => image(n, mount, request, users.as_ref()),
            None => bind(mount, request, users.as_ref()),
        })
        .collect::<Result<_>>()?;
    let taken = |path: &str| request.config.mounts.iter().any(|mount| same(&mount.container_path, path));
    let mut all: Vec<Value> = own(request, users.as_ref())
        .into_iter()
        .filter(|mount| !taken(mount["destination"].as_str().unwrap_or("")))
        .collect();
    // A volume above another hides it, so the shorter path goes first; equals stay in their order.
    let mut asked = asked;
    asked.sort_by_key(|mount| Path::new(mount["destination"].as_str().unwrap_or("")).components().count());
    all.extend(request.place.cdi.mounts.iter().map(of_cdi).collect::<Result<Vec<_>>>()?);
    all.extend(asked);
    Ok(all)
}

/// As a device's vendor describes it; a bind of the host's unless it says another type.
fn of_cdi(mount: &super::cdi::Mount) -> Result<Value> {
    let at = mount.container_path.as_str();
    if !at.starts_with('/') || at.contains('\0') || same(at, "/") {
        return Err(Error::invalid("read CDI mount", format!("{at:?}"), "it is not absolute, or is /"));
    }
    let kind = if mount.r#type.is_empty() { "bind" } else { &mount.r#type };
    let mut options = mount.options.clone();
    if kind == "bind" && !options.iter().any(|option| option == "bind" || option == "rbind") {
        options.push("rbind".into());
    }
    Ok(json!({"destination": at, "type": kind, "source": mount.host_path, "options": options}))
}

/// What every Linux program expects, OCI runtime spec "Default Filesystems", and the pod's own files.
fn own(request: &Request<'_>, users: Option<&users::Users>) -> Vec<Value> {
    let privileged = user::security(request).is_some_and(|security| security.privileged);
    let read_only = user::security(request).is_some_and(|security| security.readonly_rootfs);
    let access = if privileged { "rw" } else { "ro" };
    let filesystem = |kind: &str, at: &str, options: &[&str]| json!({"destination": at, "type": kind, "source": kind, "options": options});
    let mut mounts = vec![
        filesystem("proc", "/proc", &["nosuid", "noexec", "nodev"]),
        filesystem("tmpfs", "/dev", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        filesystem(
            "devpts",
            "/dev/pts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        filesystem("mqueue", "/dev/mqueue", &["nosuid", "noexec", "nodev"]),
        match (users, modes(request.sandbox).network()) {
            // A sysfs is a network namespace's, and takes power over it: there is the node's to be seen.
            (Some(_), cri::NamespaceMode::Node) => {
                json!({"destination": "/sys", "type": "bind", "source": "/sys",
                "options": ["bind", "nosuid", "noexec", "nodev", "ro"]})
            }
            _ => filesystem("sysfs", "/sys", &["nosuid", "noexec", "nodev", access]),
        },
        filesystem("cgroup", "/sys/fs/cgroup", &["nosuid", "noexec", "nodev", "relatime", access]),
    ];
    match &request.place.shm {
        Some(shm) => mounts.push(json!({"destination": "/dev/shm", "type": "bind", "source": shm,
            "options": ["rbind", "nosuid", "noexec", "nodev"]})),
        None => {
            mounts.push(filesystem(
                "tmpfs",
                "/dev/shm",
                &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"],
            ));
        }
    }
    let place = request.place;
    let files = [
        ("/etc/resolv.conf", &place.resolv_conf),
        ("/etc/hosts", &place.hosts),
        ("/etc/hostname", &place.hostname_file),
    ];
    for (at, source) in files {
        if let Some(source) = source {
            let mut options = vec!["rbind", "rprivate"];
            options.extend(read_only.then_some("ro"));
            mounts.push(json!({"destination": at, "type": "bind", "source": source, "options": options}));
        }
    }
    mounts
}

const OP: &str = "read mount";

fn destination(mount: &cri::Mount) -> Result<&str> {
    let at = mount.container_path.as_str();
    match !at.starts_with('/') || at.contains('\0') || same(at, "/") {
        true => Err(Error::invalid(
            OP,
            format!("{at:?}"),
            "a mount's path in the container is absolute, and not /",
        )),
        false => Ok(at),
    }
}

/// An image as a volume: always read-only, never shared with the node. Its programs may run.
fn image(n: usize, mount: &cri::Mount, request: &Request<'_>, users: Option<&users::Users>) -> Result<Value> {
    let at = destination(mount)?;
    let refuse = |why: &str| Err(Error::invalid(OP, at, why));
    if !mount.host_path.is_empty() {
        return refuse("it has both an image and a host path");
    }
    if !mount.readonly {
        return refuse("an image is mounted read-only, and readonly is not set");
    }
    if mount.propagation() != cri::MountPropagation::PropagationPrivate {
        return refuse("an image is mounted privately, and another propagation is asked for");
    }
    let Some(lowers) = request.place.image_volumes.get(&n) else {
        return refuse("its image was not found");
    };
    let lowers: Vec<_> = lowers.iter().map(|lower| lower.to_string_lossy()).collect();
    let mut options = vec!["rro".to_owned(), "nosuid".to_owned(), "nodev".to_owned()];
    options.extend(bind_options(mount, at)?.into_iter().map(str::to_owned));
    options.extend(users.map(|_| "idmap".to_owned()));
    options.push(format!("lowerdir={}", lowers.join(":")));
    options.push(format!("{SUB_PATH}{}", mount.image_sub_path));
    Ok(json!({"destination": at, "type": "overlay", "source": "image", "options": options}))
}

/// Marks an overlay as an image's, and says which part of it is wanted.
const SUB_PATH: &str = "x-berth.sub-path=";

/// What a mount may ask for beside the usual, of CRI's three.
fn bind_options<'a>(mount: &'a cri::Mount, at: &str) -> Result<Vec<&'a str>> {
    let known = |option: &&str| matches!(*option, "noexec" | "nodev" | "nosuid");
    match mount.mount_options.iter().map(String::as_str).find(|option| !known(option)) {
        Some(other) => Err(Error::invalid(OP, at, format!("{other:?} is not among noexec, nodev, nosuid"))),
        None => Ok(mount.mount_options.iter().map(String::as_str).collect()),
    }
}

fn bind(mount: &cri::Mount, request: &Request<'_>, users: Option<&users::Users>) -> Result<Value> {
    let at = destination(mount)?;
    if !mount.host_path.starts_with('/') || mount.host_path.contains('\0') {
        return Err(Error::invalid(OP, at, format!("its host path {:?} is not absolute", mount.host_path)));
    }
    let (uids, gids) = (&mount.uid_mappings, &mount.gid_mappings);
    if uids.is_empty() != gids.is_empty() {
        return Err(Error::invalid(OP, at, "it maps either user or group ids, and has to map both"));
    }
    let propagation = match mount.propagation() {
        cri::MountPropagation::PropagationPrivate => "rprivate",
        cri::MountPropagation::PropagationHostToContainer => "rslave",
        cri::MountPropagation::PropagationBidirectional => "rshared",
    };
    let mut options = vec!["rbind", propagation];
    match (mount.recursive_read_only, mount.readonly) {
        (true, false) => {
            return Err(Error::invalid(OP, at, "recursive_read_only is set and readonly is not"));
        }
        (true, true) if propagation != "rprivate" => {
            return Err(Error::invalid(
                OP,
                at,
                "a recursively read-only mount is private, and this one is not",
            ));
        }
        (true, true) => options.push("rro"),
        (false, true) => options.push("ro"),
        // Not `rw`: what the node has read-only stays so.
        (false, false) => {}
    }
    options.extend(bind_options(mount, at)?);
    if request.options.create_bind_sources {
        options.push("x-berth.create");
    }
    let is_pods = users.is_some_and(|users| users.are(uids, gids));
    options.extend(is_pods.then_some("idmap"));
    let mut document =
        json!({"destination": at, "type": "bind", "source": mount.host_path, "options": options});
    if !is_pods && !uids.is_empty() {
        document["uidMappings"] = users::documents(uids);
        document["gidMappings"] = users::documents(gids);
    }
    Ok(document)
}

fn same(one: &str, other: &str) -> bool {
    Path::new(one).components().eq(Path::new(other).components())
}

/// Bits of `mount_setattr(2)`.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
struct Attributes {
    set: u64,
    clear: u64,
}

/// What the options of one mount come to.
#[derive(Debug, Default, PartialEq)]
struct Meaning {
    /// Of what is mounted, and of all that is mounted below it too.
    top: Attributes,
    tree: Attributes,
    propagation: u64,
    bind: bool,
    recursive: bool,
    create: bool,
    /// A tmpfs that begins with what lies where it goes.
    copy_up: bool,
    /// Id-mapped as the container is, unless the mount says otherwise.
    ids: Option<launch::MountIds>,
    /// Of an image that is a volume.
    sub_path: Option<String>,
    data: Vec<String>,
}

/// Compiles a mount of a spec; what is new in memory gets the container's SELinux label, where it has one.
pub fn compile(mount: &oci_spec::runtime::Mount, label: &str) -> launch::Mount {
    use std::os::unix::ffi::OsStrExt;
    let none = Vec::new();
    let mut meaning = meaning(mount.options().as_ref().unwrap_or(&none));
    let (uids, gids) = (users::maps(mount.uid_mappings()), users::maps(mount.gid_mappings()));
    if !uids.is_empty() || !gids.is_empty() {
        let recursive = meaning.ids.take().is_some_and(|ids| ids.recursive);
        meaning.ids = Some(launch::MountIds { uids, gids, recursive });
    }
    let source = mount.source().clone().unwrap_or_default();
    let kind = mount.typ().clone().unwrap_or_default();
    let from = if let Some(sub_path) = &meaning.sub_path {
        let lowers = meaning.data.iter().find_map(|option| option.strip_prefix("lowerdir="));
        let lowers = lowers.unwrap_or_default().split(':').map(str::to_owned).collect();
        launch::mount::From::Image(launch::ImageTree {
            overlay: Some(launch::Overlay { lowers, label: label.to_owned(), ..launch::Overlay::default() }),
            sub_path: sub_path.clone().into_bytes(),
        })
    } else if meaning.bind || kind == "bind" {
        launch::mount::From::Bind(launch::Bind {
            source: source.as_os_str().as_bytes().to_vec(),
            recursive: meaning.recursive,
            create_directory: meaning.create,
        })
    } else {
        if !label.is_empty() && matches!(kind.as_str(), "tmpfs" | "mqueue" | "devpts") {
            meaning.data.push(format!("context={label}"));
        }
        launch::mount::From::Filesystem(launch::Filesystem {
            r#type: kind,
            source: source.to_string_lossy().into_owned(),
            options: meaning.data,
        })
    };
    let (top, tree, recursive_attributes) = match meaning.top == Attributes::default() {
        // Earlier shims know that form alone.
        true => (meaning.tree, Attributes::default(), meaning.tree != Attributes::default()),
        false => (meaning.top, meaning.tree, false),
    };
    launch::Mount {
        destination: mount.destination().as_os_str().as_bytes().to_vec(),
        from: Some(from),
        set_attributes: top.set,
        clear_attributes: top.clear,
        recursive_attributes,
        recursive_set: tree.set,
        recursive_clear: tree.clear,
        propagation: meaning.propagation,
        ids: meaning.ids,
        copy_up: meaning.copy_up && mount.typ().as_deref() == Some("tmpfs"),
    }
}

fn meaning(options: &[String]) -> Meaning {
    let mut meaning = Meaning::default();
    for option in options {
        let name = option.as_str();
        if let Some((bits, clear)) = attribute(name) {
            meaning.top.apply(bits, clear);
        } else if let Some((bits, clear)) = name.strip_prefix('r').and_then(attribute) {
            meaning.tree.apply(bits, clear);
        } else if let Some(bits) = propagation(name) {
            meaning.propagation = bits;
        } else {
            match name {
                "bind" => meaning.bind = true,
                "rbind" => (meaning.bind, meaning.recursive) = (true, true),
                "idmap" | "ridmap" => {
                    meaning.ids =
                        Some(launch::MountIds { recursive: name == "ridmap", ..Default::default() });
                }
                "x-berth.create" => meaning.create = true,
                "tmpcopyup" => meaning.copy_up = true,
                // fsopen(2) knows no instances but new ones.
                "newinstance" | "defaults" => {}
                other if other.starts_with(SUB_PATH) => {
                    meaning.sub_path = Some(other[SUB_PATH.len()..].to_owned());
                }
                other => meaning.data.push(other.to_owned()),
            }
        }
    }
    meaning
}

impl Attributes {
    fn apply(&mut self, bits: u64, clear: bool) {
        // An access time is one of several values, not a bit: the old one goes first.
        let atime = bits & libc::MOUNT_ATTR__ATIME != 0 || bits == 0;
        if atime {
            self.set &= !libc::MOUNT_ATTR__ATIME;
            self.clear |= libc::MOUNT_ATTR__ATIME;
        }
        if clear {
            self.set &= !bits;
            self.clear |= bits;
        } else {
            self.set |= bits;
            if !atime {
                self.clear &= !bits;
            }
        }
    }
}

/// A flag of one mount, and whether its name takes it away.
fn attribute(name: &str) -> Option<(u64, bool)> {
    Some(match name {
        "ro" => (libc::MOUNT_ATTR_RDONLY, false),
        "rw" => (libc::MOUNT_ATTR_RDONLY, true),
        "nosuid" => (libc::MOUNT_ATTR_NOSUID, false),
        "suid" => (libc::MOUNT_ATTR_NOSUID, true),
        "nodev" => (libc::MOUNT_ATTR_NODEV, false),
        "dev" => (libc::MOUNT_ATTR_NODEV, true),
        "noexec" => (libc::MOUNT_ATTR_NOEXEC, false),
        "exec" => (libc::MOUNT_ATTR_NOEXEC, true),
        "noatime" => (libc::MOUNT_ATTR_NOATIME, false),
        "strictatime" => (libc::MOUNT_ATTR_STRICTATIME, false),
        "relatime" | "atime" => (libc::MOUNT_ATTR_RELATIME, false),
        "nodiratime" => (libc::MOUNT_ATTR_NODIRATIME, false),
        "diratime" => (libc::MOUNT_ATTR_NODIRATIME, true),
        "nosymfollow" => (libc::MOUNT_ATTR_NOSYMFOLLOW, false),
        "symfollow" => (libc::MOUNT_ATTR_NOSYMFOLLOW, true),
        _ => return None,
    })
}

/// MS_* of a propagation's name, as plans carry it.
pub fn propagation(name: &str) -> Option<u64> {
    let (name, recursive) = match name.strip_prefix('r') {
        Some(rest) => (rest, libc::MS_REC),
        None => (name, 0),
    };
    Some(
        recursive
            | match name {
                "private" => libc::MS_PRIVATE,
                "slave" => libc::MS_SLAVE,
                "shared" => libc::MS_SHARED,
                "unbindable" => libc::MS_UNBINDABLE,
                _ => return None,
            },
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(options: &[&str]) -> Meaning {
        meaning(&options.iter().map(|option| (*option).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn options_become_attributes_and_the_rest_is_the_file_systems() {
        let read_only = Attributes { set: libc::MOUNT_ATTR_RDONLY, clear: 0 };
        let writable = Attributes { set: 0, clear: libc::MOUNT_ATTR_RDONLY };
        let rows = [
            (vec!["ro"], Meaning { top: read_only, ..Meaning::default() }),
            (vec!["ro", "rw"], Meaning { top: writable, ..Meaning::default() }),
            (vec!["rro", "rw"], Meaning { top: writable, tree: read_only, ..Meaning::default() }),
            (
                vec!["rbind", "rro", "rslave"],
                Meaning {
                    tree: read_only,
                    propagation: libc::MS_REC | libc::MS_SLAVE,
                    bind: true,
                    recursive: true,
                    ..Meaning::default()
                },
            ),
            (
                vec!["relatime", "strictatime", "mode=755"],
                Meaning {
                    top: Attributes { set: libc::MOUNT_ATTR_STRICTATIME, clear: libc::MOUNT_ATTR__ATIME },
                    data: vec!["mode=755".into()],
                    ..Meaning::default()
                },
            ),
        ];
        for (options, expected) in rows {
            assert_eq!(of(&options), expected, "{options:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bit_is_both_set_and_cleared_but_the_access_times(
            options in prop::collection::vec(
                prop::sample::select(vec![
                    "ro", "rw", "rro", "nosuid", "suid", "nodev", "dev", "noexec", "exec", "rnoexec", "noatime",
                    "relatime", "strictatime", "nodiratime", "diratime", "bind", "rbind", "rprivate", "size=1",
                ]),
                0..12,
            )
        ) {
            let meaning = of(&options);
            for part in [meaning.top, meaning.tree] {
                prop_assert_eq!(part.set & part.clear & !libc::MOUNT_ATTR__ATIME, 0);
            }
        }
    }
}
