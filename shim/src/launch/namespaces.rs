//! Kinds of namespaces and the kernel's flags for them, `namespaces(7)`.

use berth_launch::v1::NamespaceKind;

/// The CLONE_NEW* flag of a kind.
pub fn flag(kind: NamespaceKind) -> i32 {
    match kind {
        NamespaceKind::NamespaceUnspecified => 0,
        NamespaceKind::Mount => libc::CLONE_NEWNS,
        NamespaceKind::Pid => libc::CLONE_NEWPID,
        NamespaceKind::Net => libc::CLONE_NEWNET,
        NamespaceKind::Ipc => libc::CLONE_NEWIPC,
        NamespaceKind::Uts => libc::CLONE_NEWUTS,
        NamespaceKind::Cgroup => libc::CLONE_NEWCGROUP,
        NamespaceKind::User => libc::CLONE_NEWUSER,
        NamespaceKind::Time => libc::CLONE_NEWTIME,
    }
}

/// The file of a kind below /proc/PID/ns, which is also its pin's name.
pub fn file(kind: NamespaceKind) -> &'static str {
    match kind {
        NamespaceKind::NamespaceUnspecified => "",
        NamespaceKind::Mount => "mnt",
        NamespaceKind::Pid => "pid",
        NamespaceKind::Net => "net",
        NamespaceKind::Ipc => "ipc",
        NamespaceKind::Uts => "uts",
        NamespaceKind::Cgroup => "cgroup",
        NamespaceKind::User => "user",
        NamespaceKind::Time => "time",
    }
}
