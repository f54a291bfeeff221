//! A failed step of the launch as a sentence with a remedy. What crosses from the shim is (step, errno, object, detail).

use std::io;

use berth_launch::v1::{Failure, Step};

use crate::{Error, Kind, error::Cause};

/// Says what a shim's failure means.
pub fn explain(failure: &Failure) -> Error {
    let step = failure.step();
    let errno = failure.errno;
    let mut error = Error::new(kind(step, errno), op(step), &failure.object);
    if !failure.detail.is_empty() {
        error = error.because(Cause(failure.detail.clone()));
    } else if errno != 0 {
        error = error.because(io::Error::from_raw_os_error(errno));
    }
    match remedy(step, errno, &failure.detail) {
        "" => error,
        remedy => error.hint(remedy),
    }
}

fn kind(step: Step, errno: i32) -> Kind {
    match (step, errno) {
        (_, libc::ENOSPC | libc::EDQUOT | libc::ENOMEM | libc::EMFILE | libc::ENFILE) => Kind::Exhausted,
        (Step::Exec | Step::Workdir | Step::User | Step::Sysctl | Step::Plan, _) => Kind::Invalid,
        (Step::IdMap, libc::EINVAL | 0) => Kind::Invalid,
        (Step::BindSource, libc::ENOENT) => Kind::NotFound,
        (Step::Stdio | Step::NamespaceJoin | Step::Pty, 0) => Kind::Precondition,
        _ => Kind::Internal,
    }
}

fn op(step: Step) -> &'static str {
    match step {
        Step::Unspecified => "launch",
        Step::Plan => "read plan",
        Step::Socket => "bind the shim's socket",
        Step::LogOpen => "open log",
        Step::Overlay => "mount overlay of",
        Step::BindSource => "take volume",
        Step::Pty => "open terminal",
        Step::Clone => "clone",
        Step::NamespaceJoin => "join namespace",
        Step::CgroupJoin => "enter cgroup",
        Step::Rootfs => "mount root file system",
        Step::Mount => "mount on",
        Step::Device => "make device",
        Step::PivotRoot => "change root to",
        Step::Mask => "mask",
        Step::Sysctl => "set sysctl",
        Step::Hostname => "set hostname",
        Step::Rlimit => "set rlimit",
        Step::OomScore => "set oom_score_adj",
        Step::Workdir => "enter working directory",
        Step::User => "become user",
        Step::Capabilities => "set capabilities",
        Step::NoNewPrivs => "set no_new_privs",
        Step::Seccomp => "load seccomp filter",
        Step::Lsm => "set security label",
        Step::Exec => "execute",
        Step::Link => "set up link",
        Step::Pin => "pin namespace",
        Step::Shm => "mount shared memory",
        Step::Stdio => "connect streams of",
        Step::UserNamespace => "map ids of the user namespace",
        Step::IdMap => "id-map",
        Step::Time => "set time offset",
        Step::Hook => "run hook",
        Step::DeviceProgram => "load device rules of",
        Step::Scheduler => "set scheduling",
        Step::Keyring => "make session keyring",
        Step::NetDevice => "move network device",
        Step::Resctrl => "enter resctrl group",
        Step::Runtime => "run OCI runtime",
    }
}

fn remedy(step: Step, errno: i32, detail: &str) -> &'static str {
    match step {
        Step::Exec if detail.contains("CRLF") => "save the script with Unix line endings (dos2unix)",
        Step::Exec if detail.contains("is built for") => "use an image of this machine's architecture",
        Step::Exec if detail.contains("interpreter") => "use an image that has it, or a static program",
        Step::Exec if detail.contains("exec permission") => "chmod +x it when the image is built",
        Step::Exec if detail.contains("noexec") => "run it from another file system",
        Step::Exec if detail.contains("directory") => "name the program in it",
        Step::Exec if detail.contains("begins with #!") => "give the script a first line as #!/bin/sh",
        Step::Exec if errno == libc::ENOENT => "the image has no such program in its PATH; check the name",
        Step::Exec if errno == libc::EACCES => {
            "check the permissions on the program and the directories above it"
        }
        Step::Workdir => "the container's user has to be able to enter it; make it when the image is built",
        Step::User => "use a number, or add the name to the image's /etc/passwd or /etc/group",
        Step::BindSource if errno == libc::ENOENT => "make it on the host first",
        Step::IdMap if errno == libc::EINVAL => {
            "ext4, xfs, btrfs and, from Linux 6.3 on, tmpfs can be: move it there, or do without mappings"
        }
        Step::Sysctl if errno == libc::ENOENT => "this kernel has no such parameter",
        Step::Overlay if errno == libc::EINVAL => {
            "the writable layer must be on a file system that overlayfs can write to, not itself an overlay: move --root"
        }
        Step::Clone | Step::CgroupJoin if errno == libc::EAGAIN => "a pids limit is reached",
        Step::Link if errno == libc::EEXIST => {
            "an old pod's link has the name: it is swept when berthd restarts"
        }
        Step::Runtime if errno == libc::ENOENT => {
            "install it, or correct the handler's path in berthd's configuration"
        }
        Step::LogOpen => "the log's directory has to be there and writable",
        _ if errno == libc::ENOSPC => "free some space, or inodes",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_common_mistake_reads_as_a_sentence_with_a_remedy() {
        let rows = [
            (
                Step::Exec,
                libc::ENOENT,
                "nosuch",
                "",
                "execute nosuch: No such file or directory (os error 2); the image has no such program",
            ),
            (
                Step::Exec,
                libc::ENOENT,
                "/a.sh",
                "its interpreter /bin/bash is missing",
                "execute /a.sh: its interpreter /bin/bash is missing; use an image that has it",
            ),
            (Step::Exec, libc::EACCES, "/a", "it has no exec permission bit", "chmod +x"),
            (
                Step::User,
                0,
                "app",
                "the image's /etc/passwd has no such user",
                "become user app: the image's /etc/passwd has no such user; use a number",
            ),
            (Step::Overlay, libc::ENOSPC, "/l", "", "free some space"),
            (
                Step::IdMap,
                libc::EINVAL,
                "/data",
                "its file system can't be",
                "id-map /data: its file system can't be",
            ),
        ];
        for (step, errno, object, detail, expected) in rows {
            let failure = Failure { step: step.into(), errno, object: object.into(), detail: detail.into() };
            let text = explain(&failure).chain();
            assert!(text.contains(expected), "{text} has no {expected}");
        }
    }

    #[test]
    fn every_step_has_a_phrase_of_its_own() {
        let all: Vec<_> = (1..=29).chain(50..=59).map(|n| op(Step::try_from(n).unwrap())).collect();
        let distinct: std::collections::HashSet<_> = all.iter().collect();
        assert_eq!(distinct.len(), all.len());
    }
}
