//! Features of plans beyond version 1: their names, and which of them a plan uses. A field that a shim does not know is
//! dropped in silence, so both ends go by these: the daemon lists in `needs` what is found here, and a shim does nothing
//! with a plan that holds what it can't do.

use crate::v1::{
    ContainerPlan, Exec, Mount, NamespaceKind, Overlay, Process, SandboxPlan, health, mount, request::Call,
    rootfs,
};

/// A user namespace, new with maps or joined, for a container or a pod.
pub const USERS: &str = "user-namespace";
/// Maps written by newuidmap(1) and newgidmap(1).
pub const MAP_HELPERS: &str = "map-helpers";
/// A new time namespace with offsets.
pub const TIME: &str = "time-namespace";
pub const DOMAINNAME: &str = "domainname";
/// The six kinds of hooks.
pub const HOOKS: &str = "hooks";
/// Network devices moved into the container.
pub const NET_DEVICES: &str = "net-devices";
pub const RESCTRL: &str = "resctrl";
/// Id-mapped binds with maps of their own.
pub const MOUNT_IDS: &str = "mount-ids";
/// Images as volumes.
pub const IMAGES: &str = "image-volumes";
/// An SELinux label for all files of an overlay.
pub const OVERLAY_LABEL: &str = "overlay-label";
/// A bound of what an overlay's upper layer takes.
pub const LAYER_QUOTA: &str = "layer-quota";
/// tmpcopyup.
pub const COPY_UP: &str = "copy-up";
/// Attributes of a whole tree beside those of its top.
pub const RECURSIVE: &str = "recursive-attributes";
/// The eBPF device program of a v2 cgroup.
pub const DEVICE_PROGRAM: &str = "device-program";
pub const SCHEDULER: &str = "scheduler";
pub const IO_PRIORITY: &str = "io-priority";
/// CPU affinity, before the cgroup and before the program.
pub const AFFINITY: &str = "affinity";
pub const PERSONALITY: &str = "personality";
pub const MEMORY_POLICY: &str = "memory-policy";
pub const KEYRING: &str = "keyring";
pub const SECCOMP_LISTENER: &str = "seccomp-listener";
/// AppArmor and SELinux labels of processes.
pub const LABELS: &str = "labels";
pub const APPARMOR_STACKED: &str = "apparmor-stacked";
/// An OCI runtime of the host that does the work.
pub const RUNTIME: &str = "oci-runtime";
/// Flags of its own for that.
pub const RUNTIME_ARGS: &str = "oci-runtime-args";
/// Health checks.
pub const HEALTH: &str = "health";
/// A limit of what goes into the log in a second.
pub const LOG_RATE: &str = "log-rate";

/// What a container's plan uses beyond version 1, each name once.
pub fn container(plan: &ContainerPlan) -> Vec<String> {
    let has_users = plan.namespaces.iter().any(|namespace| namespace.kind() == NamespaceKind::User);
    let is_new = |kind: NamespaceKind| plan.namespaces.iter().any(|n| n.kind() == kind && n.path.is_empty());
    let root = plan.rootfs.as_ref().and_then(|rootfs| overlay_of(rootfs.from.as_ref()));
    let mut used = vec![
        (has_users || !plan.uid_maps.is_empty() || !plan.gid_maps.is_empty(), USERS),
        (!plan.uid_map_helper.is_empty() || !plan.gid_map_helper.is_empty(), MAP_HELPERS),
        (is_new(NamespaceKind::Time) || !plan.time_offsets.is_empty(), TIME),
        (!plan.domainname.is_empty(), DOMAINNAME),
        (plan.hooks.is_some(), HOOKS),
        (!plan.net_devices.is_empty(), NET_DEVICES),
        (!plan.resctrl.is_empty(), RESCTRL),
        (plan.runtime.is_some(), RUNTIME),
        (plan.runtime.as_ref().is_some_and(|runtime| !runtime.args.is_empty()), RUNTIME_ARGS),
        (plan.health.is_some(), HEALTH),
        (plan.log.as_ref().is_some_and(|log| log.rate_bytes != 0), LOG_RATE),
        (plan.cgroup.as_ref().is_some_and(|cgroup| !cgroup.device_program.is_empty()), DEVICE_PROGRAM),
        (plan.rootfs.as_ref().is_some_and(|rootfs| rootfs.ids.is_some()), MOUNT_IDS),
        (is_labelled(root), OVERLAY_LABEL),
        (root.is_some_and(|overlay| overlay.max_bytes != 0), LAYER_QUOTA),
    ];
    plan.mounts.iter().for_each(|mount| used.extend(of_mount(mount)));
    let check = plan.health.as_ref().and_then(|health| health.check.as_ref());
    let beside = check.and_then(|check| match check {
        health::Check::Command(process) => Some(process),
        health::Check::Http(_) | health::Check::Tcp(_) => None,
    });
    plan.process.iter().chain(beside).for_each(|process| used.extend(of_process(process)));
    names(used)
}

/// The same of a process beside init.
pub fn process(process: &Process) -> Vec<String> {
    names(of_process(process).into())
}

/// The same of a pod.
pub fn sandbox(plan: &SandboxPlan) -> Vec<String> {
    let is_new = plan.new_namespaces().any(|kind| kind == NamespaceKind::User);
    names(vec![
        (is_new || !plan.uid_maps.is_empty() || !plan.gid_maps.is_empty(), USERS),
        (plan.cgroup.as_ref().is_some_and(|cgroup| !cgroup.device_program.is_empty()), DEVICE_PROGRAM),
    ])
}

/// The same of a request to a shim that runs.
pub fn request(call: &Call) -> Vec<String> {
    match call {
        Call::Exec(Exec { document, .. }) if !document.is_empty() => vec![RUNTIME.to_owned()],
        Call::Exec(Exec { process: Some(of), .. }) => process(of),
        Call::SetDevices(_) => vec![DEVICE_PROGRAM.to_owned()],
        _ => Vec::new(),
    }
}

fn overlay_of(from: Option<&rootfs::From>) -> Option<&Overlay> {
    match from {
        Some(rootfs::From::Overlay(overlay)) => Some(overlay),
        Some(rootfs::From::Path(_)) | None => None,
    }
}

fn is_labelled(overlay: Option<&Overlay>) -> bool {
    overlay.is_some_and(|overlay| !overlay.label.is_empty())
}

fn of_mount(mount: &Mount) -> [(bool, &'static str); 5] {
    let image = match &mount.from {
        Some(mount::From::Image(image)) => Some(image),
        Some(mount::From::Bind(_) | mount::From::Filesystem(_)) | None => None,
    };
    [
        (image.is_some(), IMAGES),
        (is_labelled(image.and_then(|image| image.overlay.as_ref())), OVERLAY_LABEL),
        (mount.ids.is_some(), MOUNT_IDS),
        (mount.copy_up, COPY_UP),
        (mount.recursive_set | mount.recursive_clear != 0, RECURSIVE),
    ]
}

fn of_process(process: &Process) -> [(bool, &'static str); 10] {
    [
        (process.scheduler.is_some(), SCHEDULER),
        (process.io_priority.is_some(), IO_PRIORITY),
        (!process.affinity.is_empty() || !process.final_affinity.is_empty(), AFFINITY),
        (process.personality.is_some(), PERSONALITY),
        (process.memory_policy.is_some(), MEMORY_POLICY),
        (process.new_keyring, KEYRING),
        (process.seccomp_listener.is_some(), SECCOMP_LISTENER),
        (!process.apparmor_profile.is_empty(), LABELS),
        (!process.selinux_label.is_empty(), LABELS),
        (process.apparmor_stacked, APPARMOR_STACKED),
    ]
}

fn names(used: Vec<(bool, &str)>) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for (_, name) in used.into_iter().filter(|(is_used, _)| *is_used) {
        if !names.iter().any(|known| known == name) {
            names.push(name.to_owned());
        }
    }
    names
}
