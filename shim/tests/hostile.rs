//! What a hostile image or request must not get: each is an attack of the last years. Needs root and /bin/busybox.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::os::unix::fs::symlink;

use berth_launch::v1::{
    Exec, Kill, Process, Start, Step, Symlink, Sysctl, birth::Outcome, reply, request::Call,
};
use support::container::Container;

/// CVE-2025-31133: an image's /dev/null that is another file would be shown, writable, over what is masked.
#[test]
fn a_dev_null_that_is_none_masks_nothing() {
    for kind in ["file", "link"] {
        let mut container = Container::new();
        let dev = container.dir.path().join("root/dev");
        std::fs::create_dir_all(&dev).unwrap();
        match kind {
            "file" => std::fs::write(dev.join("null"), "").unwrap(),
            _ => symlink("/proc/sysrq-trigger", dev.join("null")).unwrap(),
        }
        let mut plan = container.plan(&["true"]);
        plan.mounts.retain(|mount| !mount.destination.starts_with(b"/dev"));
        plan.masked_paths = vec!["/proc/kcore".into()];
        let (shim, outcome) = support::birth("container", &plan);
        container.shim = Some(shim);
        let Outcome::Failure(failure) = outcome else { panic!("{outcome:?}") };
        assert_eq!((failure.step(), failure.object.as_str()), (Step::Mask, "/dev/null"), "{kind}");
    }
}

/// CVE-2025-52881: a write that is meant for /proc/sys must not land in another file.
#[test]
fn a_sysctl_is_written_to_a_procfs_or_not_at_all() {
    let mut container = Container::new();
    let target = container.dir.path().join("root/proc/sys/kernel");
    std::fs::create_dir_all(&target).unwrap();
    std::fs::write(target.join("domainname"), "untouched").unwrap();
    let mut plan = container.plan(&["true"]);
    plan.mounts.retain(|mount| mount.destination != b"/proc");
    plan.sysctls = vec![Sysctl { name: "kernel.domainname".into(), value: "written".into() }];
    let (shim, outcome) = support::birth("container", &plan);
    container.shim = Some(shim);
    let Outcome::Failure(failure) = outcome else { panic!("{outcome:?}") };
    assert_eq!(failure.step(), Step::Sysctl);
    assert_eq!(std::fs::read_to_string(target.join("domainname")).unwrap(), "untouched");
}

/// CVE-2024-21626: a working directory that leads to a descriptor of ours, on the host.
#[test]
fn a_working_directory_through_a_descriptor_is_refused() {
    for number in 3..20 {
        let mut container = Container::new();
        let mut plan = container.plan(&["true"]);
        plan.process.as_mut().unwrap().cwd = format!("/proc/self/fd/{number}").into_bytes();
        let (shim, outcome) = support::birth("container", &plan);
        container.shim = Some(shim);
        match outcome {
            Outcome::Failure(failure) => assert_eq!(failure.step(), Step::Workdir),
            Outcome::Ready(_) => {
                let mut client = support::Client::connect(&container.dir.path().join("run"));
                let reply = client.call(Call::Start(Start {}), &[]);
                let reply::Result::Failure(failure) = reply else { panic!("fd {number}: {reply:?}") };
                assert_eq!(failure.step(), Step::Workdir);
                client.exited();
            }
            Outcome::Unsupported(unsupported) => panic!("{unsupported:?}"),
        }
    }
}

/// The same for an exec, whose child holds the directory of its cgroup open: a way to the host.
#[test]
fn an_exec_has_no_working_directory_through_a_descriptor() {
    let mut container = Container::new();
    let mut client = container.start(&container.plan(&["sleep", "1000"]));
    for number in 3..20 {
        let process = Process {
            args: vec!["true".into()],
            env: vec!["PATH=/bin".into()],
            cwd: format!("/proc/self/fd/{number}").into_bytes(),
            ..Process::default()
        };
        let exec = Exec { exec_id: format!("e{number}"), process: Some(process), ..Exec::default() };
        let reply = client.call(Call::Exec(exec), &[]);
        let reply::Result::Failure(failure) = reply else { panic!("fd {number}: {reply:?}") };
        assert_eq!(failure.step(), Step::Workdir);
    }
    client.call(Call::Kill(Kill { signal: 9, all: true }), &[]);
    client.exited();
}

/// No descriptor of the shim's reaches the program.
#[test]
fn a_program_has_its_three_descriptors() {
    let mut container = Container::new();
    symlink("busybox", container.dir.path().join("root/bin/ls")).unwrap();
    let mut client = container.start(&container.plan(&["sh", "-c", "ls /proc/$$/fd; cat"]));
    client.exited();
    assert_eq!(container.log(), ["stdout F 0", "stdout F 1", "stdout F 2"]);
}

/// CVE-2026-41579: /dev as a link must not lead device nodes or mounts out of the root.
#[test]
fn a_dev_that_is_a_link_stays_inside() {
    let mut container = Container::new();
    let outside = container.dir.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    symlink(&outside, container.dir.path().join("root/dev")).unwrap();
    let mut plan = container.plan(&["true"]);
    plan.mounts.retain(|mount| !mount.destination.starts_with(b"/dev"));
    plan.symlinks = vec![Symlink { path: "/dev/fd".into(), target: "/proc/self/fd".into() }];
    plan.devices =
        vec![berth_launch::v1::Device { path: "/dev/x".into(), major: 1, minor: 3, ..Default::default() }];
    let (shim, outcome) = support::birth("container", &plan);
    container.shim = Some(shim);
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0, "{outcome:?}");
    if let Outcome::Ready(_) = outcome {
        let mut client = support::Client::connect(&container.dir.path().join("run"));
        client.call(Call::Kill(Kill { signal: 9, all: true }), &[]);
        client.exited();
    }
}
