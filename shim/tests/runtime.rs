//! What the runtime spec asks of a launcher beyond a pod's everyday: hooks, time, scheduling, device programs, seccomp
//! notification. Needs root and /bin/busybox.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::{
    io::{Read, Write},
    os::{fd::AsFd, unix::fs::symlink},
    path::Path,
};

use berth_launch::v1::{
    Filesystem, Hook, Hooks, IdMap, Mount, MountIds, Namespace, NamespaceKind, Overlay, Process, Rootfs,
    Scheduler, SeccompListener, SetDevices, Start, Step, TimeOffset, birth::Outcome, device, mount, reply,
    request::Call, rootfs, time_offset,
};
use rustix::fs::{FileType, Mode};
use support::container::Container;

/// A hook that appends what it is and the state it reads to a file.
fn hook(container: &Container, name: &str) -> Hook {
    let file = container.dir.path().join("hooks");
    let script = format!("read state; echo {name} $state >> {}", file.display());
    Hook {
        path: "/bin/busybox".into(),
        args: ["sh", "-c", &script].map(|arg| arg.as_bytes().to_vec()).into(),
        env: vec!["A=b".into()],
        timeout_seconds: 10,
    }
}

#[test]
fn hooks_run_in_order_with_the_state_on_their_input() {
    let mut container = Container::new();
    let pieces = |status: &str| vec![format!("{status} ").into_bytes(), b"\n".to_vec()];
    let mut plan = container.plan(&["sh", "-c", "echo program"]);
    let seen = container.dir.path().join("root/tmp/inside");
    let inside = Hook {
        path: "/bin/busybox".into(),
        args: ["sh", "-c", "read state; echo $state $$ > /tmp/inside"]
            .map(|arg| arg.as_bytes().to_vec())
            .into(),
        ..Hook::default()
    };
    plan.hooks = Some(Hooks {
        prestart: vec![hook(&container, "prestart")],
        create_runtime: vec![hook(&container, "createRuntime")],
        create_container: vec![hook(&container, "createContainer")],
        start_container: vec![inside],
        poststart: vec![hook(&container, "poststart")],
        poststop: vec![hook(&container, "poststop")],
        creating: pieces("creating"),
        created: pieces("created"),
        running: pieces("running"),
        stopped: pieces("stopped"),
    });
    let (mut client, ready) = container.create(&plan);
    assert!(!seen.exists());
    client.call(Call::Start(Start {}), &[]);
    assert_eq!(client.exited().exit_code, 0);
    let pid = ready.pid;
    let text = std::fs::read_to_string(container.dir.path().join("hooks")).unwrap();
    let expected = format!(
        "prestart creating {pid}\ncreateRuntime creating {pid}\ncreateContainer creating {pid}\n\
         poststart running {pid}\npoststop stopped {pid}\n"
    );
    assert_eq!(text, expected);
    let inside = std::fs::read_to_string(seen).unwrap();
    assert!(inside.starts_with(&format!("created {pid} ")), "{inside}");
    assert_ne!(inside.trim().rsplit(' ').next(), Some("1"));
}

#[test]
fn a_hook_that_fails_or_takes_too_long_ends_the_launch() {
    for (script, timeout_seconds, detail) in
        [("exit 3", 0, "exit status: 3"), ("sleep 100", 1, "longer than")]
    {
        let mut container = Container::new();
        let mut plan = container.plan(&["true"]);
        let args = ["sh", "-c", script].map(|arg| arg.as_bytes().to_vec()).into();
        let bad = Hook { path: "/bin/busybox".into(), args, timeout_seconds, ..Hook::default() };
        plan.hooks = Some(Hooks { create_runtime: vec![bad], ..Hooks::default() });
        let (shim, outcome) = support::birth("container", &plan);
        container.shim = Some(shim);
        let Outcome::Failure(failure) = outcome else { panic!("{outcome:?}") };
        assert_eq!((failure.step(), failure.object.as_str()), (Step::Hook, "/bin/busybox"));
        assert!(failure.detail.contains(detail), "{failure:?}");
    }
}

#[test]
fn a_hook_after_the_end_holds_no_exit_record_up() {
    let mut container = Container::new();
    let fifo = container.dir.path().join("fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, FileType::Fifo, Mode::from(0o600), 0).unwrap();
    let mut plan = container.plan(&["sh", "-c", "exit 3"]);
    let script = format!("read line < {}", fifo.display());
    let args = ["sh", "-c", &script].map(|arg| arg.as_bytes().to_vec()).into();
    let waits = Hook { path: "/bin/busybox".into(), args, timeout_seconds: 60, ..Hook::default() };
    plan.hooks = Some(Hooks { poststop: vec![waits], ..Hooks::default() });
    let mut client = container.start(&plan);
    // Opens once the hook reads, which then waits for a line.
    let mut line = std::fs::File::options().write(true).open(&fifo).unwrap();
    assert_eq!(container.record().exit_code, 3);
    line.write_all(b"go on\n").unwrap();
    assert_eq!(client.exited().exit_code, 3);
}

#[test]
fn a_time_namespace_has_its_offsets_and_a_domain_its_name() {
    let mut container = Container::new();
    let mut plan = container.plan(&["sh", "-c", "cat /proc/uptime /proc/sys/kernel/domainname"]);
    plan.namespaces.push(Namespace { kind: NamespaceKind::Time.into(), path: String::new() });
    plan.domainname = "box.example".into();
    plan.time_offsets = vec![TimeOffset {
        clock: time_offset::Clock::Boottime.into(),
        seconds: 1_000_000_000,
        nanoseconds: 0,
    }];
    let mut client = container.start(&plan);
    assert_eq!(client.exited().exit_code, 0);
    let log = container.log();
    assert!(log[0].starts_with("stdout F 10000"), "{log:?}");
    assert_eq!(log[1], "stdout F box.example");
}

#[test]
fn a_process_is_scheduled_as_said() {
    let mut container = Container::new();
    let script = "cut -d' ' -f19 /proc/self/stat; grep Cpus_allowed: /proc/self/status; uname -m";
    let mut plan = container.plan(&["sh", "-c", script]);
    let process = plan.process.as_mut().unwrap();
    process.scheduler = Some(Scheduler { nice: 7, ..Scheduler::default() });
    process.io_priority = Some(2 << 13 | 5);
    process.affinity = vec![0b11];
    process.final_affinity = vec![0b01];
    // PER_LINUX32.
    process.personality = Some(8);
    process.new_keyring = true;
    std::os::unix::fs::symlink("busybox", container.dir.path().join("root/bin/uname")).unwrap();
    for applet in ["cut", "grep"] {
        symlink("busybox", container.dir.path().join("root/bin").join(applet)).unwrap();
    }
    let mut client = container.start(&plan);
    assert_eq!(client.exited().exit_code, 0);
    let log = container.log();
    assert_eq!(log[0], "stdout F 7");
    assert!(log[1].ends_with('1') && !log[1].ends_with("3"), "{log:?}");
    #[cfg(target_arch = "x86_64")]
    assert_eq!(log[2], "stdout F i686");
}

/// struct bpf_insn[] that allows all (1) or nothing (0): `r0 = N; exit`.
fn program(verdict: u8) -> Vec<u8> {
    [[0xb7, 0, 0, 0, verdict, 0, 0, 0], [0x95, 0, 0, 0, 0, 0, 0, 0]].concat()
}

#[test]
fn a_device_program_holds_and_is_replaced() {
    let mut container = Container::new();
    let script = "cat < /dev/null || echo denied; while ! cat < /dev/null; do sleep 0.01; done; echo allowed";
    let mut plan = container.plan(&["sh", "-c", script]);
    plan.devices = vec![berth_launch::v1::Device {
        path: "/dev/null".into(),
        r#type: device::Type::Char.into(),
        major: 1,
        minor: 3,
        mode: 0o666,
        ..Default::default()
    }];
    // mknod(2) asks the program too: it allows that (access 1) and nothing else. r2 = *(u32 *)r1; r2 >>= 16; r2 &= 1; r0 = r2
    plan.cgroup.as_mut().unwrap().device_program = [
        [0x61, 0x12, 0, 0, 0, 0, 0, 0],
        [0x77, 0x02, 0, 0, 16, 0, 0, 0],
        [0x57, 0x02, 0, 0, 1, 0, 0, 0],
        [0xbf, 0x20, 0, 0, 0, 0, 0, 0],
        [0x95, 0, 0, 0, 0, 0, 0, 0],
    ]
    .concat();
    let mut client = container.start(&plan);
    support::wait_for_text(&container.dir.path().join("log"), |text| text.contains("denied"));
    let reply = client.call(Call::SetDevices(SetDevices { device_program: program(1) }), &[]);
    assert!(matches!(reply, reply::Result::Done(_)), "{reply:?}");
    assert_eq!(client.exited().exit_code, 0);
    assert!(container.log().contains(&"stdout F allowed".into()));
}

#[test]
fn a_new_user_namespace_has_its_maps_and_mounts_have_their_ids() {
    let mut container = Container::new();
    for applet in ["stat", "touch"] {
        symlink("busybox", container.dir.path().join("root/bin").join(applet)).unwrap();
    }
    let volume = container.dir.path().join("volume");
    std::fs::create_dir(&volume).unwrap();
    std::fs::write(volume.join("file"), "").unwrap();
    let script = "cat /proc/self/uid_map; id; stat -c '%u %g' / /as-root/file /as-five/file; touch /as-root/made; \
                  echo again > /dev/fd/1";
    let mut plan = container.plan(&["sh", "-c", script]);
    plan.namespaces.push(Namespace { kind: NamespaceKind::User.into(), path: String::new() });
    let map = |inside, outside, length| IdMap { inside, outside, length };
    plan.uid_maps = vec![map(0, 50_000, 1), map(1, 60_000, 5000)];
    plan.gid_maps = vec![map(0, 70_000, 5001)];
    // The container's own ids.
    plan.rootfs.as_mut().unwrap().ids = Some(MountIds::default());
    let bind = |at: &str, ids: MountIds| Mount {
        destination: at.into(),
        from: Some(mount::From::Bind(berth_launch::v1::Bind {
            source: volume.to_str().unwrap().into(),
            ..Default::default()
        })),
        ids: Some(ids),
        ..Mount::default()
    };
    let five = MountIds { uids: vec![map(0, 60_004, 1)], gids: vec![map(0, 70_005, 1)], recursive: false };
    plan.mounts.extend([bind("/as-root", MountIds::default()), bind("/as-five", five)]);
    let mut client = container.start(&plan);
    assert_eq!(client.exited().exit_code, 0, "{:?}", container.log());
    let words: Vec<String> = container
        .log()
        .iter()
        .map(|line| line.split_whitespace().skip(2).collect::<Vec<_>>().join(" "))
        .collect();
    let expected =
        ["0 50000 1", "1 60000 5000", "uid=0(root) gid=0(root) groups=0(root)", "0 0", "0 0", "5 5", "again"];
    assert_eq!(words, expected);
    let made = std::fs::metadata(volume.join("made")).unwrap();
    assert_eq!(
        (std::os::unix::fs::MetadataExt::uid(&made), std::os::unix::fs::MetadataExt::gid(&made)),
        (0, 0)
    );
}

#[test]
fn an_overlays_lower_layers_are_roots_inside_and_the_upper_one_is_the_nodes() {
    let mut container = Container::new();
    for applet in ["stat", "touch"] {
        symlink("busybox", container.dir.path().join("root/bin").join(applet)).unwrap();
    }
    let directory = container.dir.path().to_str().unwrap().to_owned();
    let path = |part: &str| format!("{directory}/{part}");
    for part in ["second", "upper", "work"] {
        std::fs::create_dir(path(part)).unwrap();
    }
    std::fs::write(path("second/file"), "").unwrap();
    std::os::unix::fs::chown(path("second/file"), Some(0), Some(6)).unwrap();
    std::os::unix::fs::chown(path("upper"), Some(50_000), Some(50_000)).unwrap();
    let script = "stat -c '%u %g' / /bin/busybox /file; touch /made /file; stat -c '%u %g' /made /file";
    let mut plan = container.plan(&["sh", "-c", script]);
    plan.namespaces.push(Namespace { kind: NamespaceKind::User.into(), path: String::new() });
    plan.uid_maps = vec![IdMap { inside: 0, outside: 50_000, length: 1000 }];
    plan.gid_maps = plan.uid_maps.clone();
    plan.rootfs = Some(Rootfs {
        from: Some(rootfs::From::Overlay(Overlay {
            lowers: vec![path("second"), path("root")],
            upper: path("upper"),
            work: path("work"),
            volatile: true,
            ..Overlay::default()
        })),
        ids: Some(MountIds::default()),
        ..Rootfs::default()
    });
    let mut client = container.start(&plan);
    assert_eq!(client.exited().exit_code, 0, "{:?}", container.log());
    let expected = ["0 0", "0 0", "0 6", "0 0", "0 6"].map(|ids| format!("stdout F {ids}"));
    assert_eq!(container.log(), expected);
    let owner = |part: &str| std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(path(part)).unwrap());
    assert_eq!((owner("upper/made"), owner("upper/file"), owner("second/file")), (50_000, 50_000, 0));
}

#[test]
fn a_user_namespace_without_a_root_is_refused() {
    let mut container = Container::new();
    let mut plan = container.plan(&["true"]);
    plan.namespaces.push(Namespace { kind: NamespaceKind::User.into(), path: String::new() });
    plan.uid_maps = vec![IdMap { inside: 1, outside: 50_000, length: 1 }];
    plan.gid_maps = plan.uid_maps.clone();
    let (shim, outcome) = support::birth("container", &plan);
    container.shim = Some(shim);
    let Outcome::Failure(failure) = outcome else { panic!("{outcome:?}") };
    assert_eq!(failure.step(), Step::User);
    assert!(failure.detail.contains("not mapped"), "{failure:?}");
}

#[test]
fn a_broken_device_program_is_refused_by_name() {
    let mut container = Container::new();
    let mut plan = container.plan(&["true"]);
    plan.cgroup.as_mut().unwrap().device_program = vec![0; 15];
    let (shim, outcome) = support::birth("container", &plan);
    container.shim = Some(shim);
    let Outcome::Failure(failure) = outcome else { panic!("{outcome:?}") };
    assert_eq!((failure.step(), failure.errno), (Step::DeviceProgram, libc::EINVAL));
}

#[test]
fn a_filter_that_asks_sends_its_listener_with_the_state() {
    let mut container = Container::new();
    let path = container.dir.path().join("notify");
    let socket = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let mut plan = container.plan(&["true"]);
    let process = plan.process.as_mut().unwrap();
    // RET ALLOW: nothing is asked, the descriptor is there all the same.
    process.seccomp =
        [6u16.to_ne_bytes().to_vec(), vec![0, 0], 0x7fff_0000u32.to_ne_bytes().to_vec()].concat();
    process.seccomp_listener = Some(SeccompListener {
        path: path.to_str().unwrap().into(),
        state: vec![b"{\"pid\":".to_vec(), b"}".to_vec()],
    });
    let (mut client, ready) = container.create(&plan);
    client.call(Call::Start(Start {}), &[]);
    let (mut connection, _) = socket.accept().unwrap();
    let mut bytes = [0u8; 256];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = rustix::net::RecvAncillaryBuffer::new(&mut space);
    let got = rustix::net::recvmsg(
        connection.as_fd(),
        &mut [std::io::IoSliceMut::new(&mut bytes)],
        &mut ancillary,
        rustix::net::RecvFlags::CMSG_CLOEXEC,
    )
    .unwrap();
    assert_eq!(bytes[..got.bytes], *format!("{{\"pid\":{}}}", ready.pid).as_bytes());
    let fds = ancillary.drain().flat_map(|message| match message {
        rustix::net::RecvAncillaryMessage::ScmRights(fds) => fds.collect::<Vec<_>>(),
        _ => Vec::new(),
    });
    let names: Vec<_> = fds
        .map(|fd| {
            let number = std::os::fd::AsRawFd::as_raw_fd(&fd);
            std::fs::read_link(format!("/proc/self/fd/{number}")).unwrap()
        })
        .collect();
    assert_eq!(names, [Path::new("anon_inode:seccomp notify")]);
    assert_eq!(client.exited().exit_code, 0);
    assert_eq!(connection.read(&mut bytes).unwrap(), 0);
}

#[test]
fn attributes_of_a_tree_are_beside_those_of_its_top() {
    let mut container = Container::new();
    let mut plan = container.plan(&["sh", "-c", "grep ' /data' /proc/mounts"]);
    symlink("busybox", container.dir.path().join("root/bin/grep")).unwrap();
    plan.mounts.push(Mount {
        destination: "/data".into(),
        from: Some(mount::From::Filesystem(Filesystem {
            r#type: "tmpfs".into(),
            source: "tmpfs".into(),
            options: vec![],
        })),
        set_attributes: libc::MOUNT_ATTR_NOEXEC,
        recursive_set: libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID,
        ..Mount::default()
    });
    let mut client = container.start(&plan);
    assert_eq!(client.exited().exit_code, 0);
    let log = container.log();
    assert!(log[0].contains("ro,nosuid,noexec"), "{log:?}");
}

#[test]
fn a_label_that_the_host_knows_nothing_of_is_refused() {
    if Path::new("/sys/fs/selinux/enforce").exists() {
        return eprintln!("skipped: a_label_that_the_host_knows_nothing_of_is_refused: SELinux is enabled");
    }
    let mut container = Container::new();
    let mut plan = container.plan(&["true"]);
    plan.process.as_mut().unwrap().selinux_label = "system_u:system_r:container_t:s0".into();
    let (shim, outcome) = support::birth("container", &plan);
    container.shim = Some(shim);
    let Outcome::Failure(failure) = outcome else { panic!("{outcome:?}") };
    assert_eq!(failure.step(), Step::Lsm);
}

#[test]
fn what_a_shim_lacks_it_says() {
    let mut container = Container::new();
    let mut plan = container.plan(&["true"]);
    plan.needs = vec!["flight".into()];
    let (shim, outcome) = support::birth("container", &plan);
    container.shim = Some(shim);
    let Outcome::Unsupported(unsupported) = outcome else { panic!("{outcome:?}") };
    assert_eq!(unsupported.features, ["flight"]);
}

/// A process of nothing that version 1 lacks needs nothing.
#[test]
fn everyday_plans_need_no_feature() {
    let container = Container::new();
    assert_eq!(berth_launch::needs::container(&container.plan(&["true"])), Vec::<String>::new());
    assert_eq!(
        berth_launch::needs::process(&Process { io_priority: Some(0), ..Process::default() }),
        ["io-priority"]
    );
}
