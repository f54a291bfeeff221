//! Plans as text: one fact a line, names for the kernel's bits, bytes with what is no printable ASCII escaped. Every
//! message is taken apart whole, so that a new field has to be written here before the tests compile.

use std::fmt::Write;

use berth_launch::v1::{self as launch, device, log, mount, restart, rootfs, stdio, user};
use sha2::{Digest, Sha256};

use super::super::capabilities;

/// Lines, each `key value`; what is unset has none.
#[derive(Default)]
struct Lines(String);

impl Lines {
    fn say(&mut self, key: &str, value: impl std::fmt::Display) {
        let line = format!("{key} {value}");
        writeln!(self.0, "{}", line.trim_end()).expect("a String takes every write");
    }

    fn some(&mut self, key: &str, value: &str) {
        if !value.is_empty() {
            self.say(key, value);
        }
    }

    fn number(&mut self, key: &str, value: u64) {
        if value != 0 {
            self.say(key, value);
        }
    }

    fn flag(&mut self, key: &str, is_set: bool) {
        if is_set {
            self.say(key, "");
        }
    }
}

pub fn container(plan: &launch::ContainerPlan) -> String {
    let launch::ContainerPlan {
        version,
        needs,
        id,
        dir,
        record_dir,
        namespaces,
        rootfs,
        mounts,
        devices,
        symlinks,
        masked_paths,
        readonly_paths,
        sysctls,
        hostname,
        cgroup,
        process: program,
        stdio,
        log,
        restart,
        stop_signal,
        started_runs,
        outside,
        uid_maps,
        gid_maps,
        uid_map_helper,
        gid_map_helper,
        time_offsets,
        domainname,
        hooks,
        net_devices,
        resctrl,
        runtime,
        health,
    } = plan;
    let mut lines = Lines::default();
    lines.say("version", version);
    needs.iter().for_each(|feature| lines.say("needs", feature));
    lines.say("id", id);
    lines.say("dir", dir);
    lines.say("record_dir", record_dir);
    for namespace in namespaces {
        let launch::Namespace { kind: _, path } = namespace;
        let from = if path.is_empty() { "new" } else { path };
        lines.say("namespace", format!("{} {from}", namespace.kind().as_str_name()));
    }
    rootfs.iter().for_each(|rootfs| root(&mut lines, rootfs));
    mounts.iter().for_each(|mount| mounted(&mut lines, mount));
    devices.iter().for_each(|device| node(&mut lines, device));
    for launch::Symlink { path, target } in symlinks {
        lines.say("symlink", format!("{} -> {}", bytes(path), bytes(target)));
    }
    masked_paths.iter().for_each(|path| lines.say("masked", bytes(path)));
    readonly_paths.iter().for_each(|path| lines.say("readonly", bytes(path)));
    sysctls.iter().for_each(|sysctl| parameter(&mut lines, sysctl));
    lines.some("hostname", hostname);
    cgroup.iter().for_each(|cgroup| group(&mut lines, cgroup));
    program.iter().for_each(|program| say_process(&mut lines, program));
    if let Some(launch::Stdio { stdin }) = stdio {
        lines.say("stdin", stdio::Stdin::try_from(*stdin).expect("a mode of stdin").as_str_name());
    }
    if let Some(launch::Log { path, max_bytes, max_files, format, rate_bytes }) = log {
        lines.say("log", path);
        lines.number("log.max_bytes", *max_bytes);
        lines.number("log.max_files", u64::from(*max_files));
        lines.number("log.rate_bytes", *rate_bytes);
        lines.say("log.format", log::Format::try_from(*format).expect("a format").as_str_name());
    }
    if let Some(launch::Restart { policy, max_retries }) = restart {
        lines.say("restart", restart::Policy::try_from(*policy).expect("a policy").as_str_name());
        lines.number("restart.max_retries", u64::from(*max_retries));
    }
    lines.number("stop_signal", u64::from(*stop_signal));
    lines.number("started_runs", *started_runs);
    maps(&mut lines, uid_maps, gid_maps);
    lines.some("uid_map_helper", uid_map_helper);
    lines.some("gid_map_helper", gid_map_helper);
    time_offsets.iter().for_each(|offset| lines.say("time_offset", format!("{offset:?}")));
    lines.some("domainname", domainname);
    hooks.iter().for_each(|hooks| lines.say("hooks", format!("{hooks:?}")));
    net_devices.iter().for_each(|device| lines.say("net_device", format!("{device:?}")));
    lines.some("resctrl", resctrl);
    health.iter().for_each(|health| lines.say("health", format!("{health:?}")));
    lines.some("runtime", runtime.as_ref().map_or("", |runtime| runtime.program.as_str()));
    if let Some(launch::Outside { start_socket, console_socket, preserve_fds }) = outside {
        lines.say("outside.start_socket", start_socket);
        lines.some("outside.console_socket", console_socket);
        lines.number("outside.preserve_fds", u64::from(*preserve_fds));
    }
    lines.0
}

pub fn process(process: &launch::Process) -> String {
    let mut lines = Lines::default();
    say_process(&mut lines, process);
    lines.0
}

pub fn sandbox(plan: &launch::SandboxPlan) -> String {
    let launch::SandboxPlan {
        version,
        needs,
        id,
        dir,
        new_namespaces: _,
        hostname,
        sysctls,
        link: pair,
        shared_pid,
        cgroup,
        shm_bytes,
        uid_maps,
        gid_maps,
    } = plan;
    let mut lines = Lines::default();
    lines.say("version", version);
    needs.iter().for_each(|feature| lines.say("needs", feature));
    lines.say("id", id);
    lines.say("dir", dir);
    plan.new_namespaces().for_each(|kind| lines.say("namespace", format!("{} new", kind.as_str_name())));
    lines.some("hostname", hostname);
    sysctls.iter().for_each(|sysctl| parameter(&mut lines, sysctl));
    pair.iter().for_each(|pair| link(&mut lines, pair));
    lines.flag("shared_pid", *shared_pid);
    cgroup.iter().for_each(|cgroup| group(&mut lines, cgroup));
    lines.number("shm_bytes", *shm_bytes);
    maps(&mut lines, uid_maps, gid_maps);
    lines.0
}

fn root(lines: &mut Lines, rootfs: &launch::Rootfs) {
    let launch::Rootfs { readonly, propagation, from, ids } = rootfs;
    match from {
        Some(rootfs::From::Overlay(launch::Overlay { lowers, upper, work, volatile, label, max_bytes })) => {
            lowers.iter().for_each(|lower| lines.say("rootfs.lower", lower));
            lines.some("rootfs.upper", upper);
            lines.some("rootfs.work", work);
            lines.flag("rootfs.volatile", *volatile);
            lines.some("rootfs.label", label);
            if *max_bytes != 0 {
                lines.number("rootfs.max_bytes", *max_bytes);
            }
        }
        Some(rootfs::From::Path(path)) => lines.say("rootfs.path", path),
        None => lines.say("rootfs", "from nothing"),
    }
    lines.flag("rootfs.readonly", *readonly);
    ids.iter().for_each(|ids| lines.say("rootfs.ids", format!("{ids:?}")));
    lines.say("rootfs.propagation", propagated(*propagation));
}

fn mounted(lines: &mut Lines, mount: &launch::Mount) {
    let launch::Mount {
        destination,
        set_attributes,
        clear_attributes,
        recursive_attributes,
        propagation,
        from,
        ids,
        copy_up,
        recursive_set,
        recursive_clear,
    } = mount;
    let mut words = vec![bytes(destination)];
    match from {
        Some(mount::From::Bind(launch::Bind { source, recursive, create_directory })) => {
            words.push(if *recursive { "rbind" } else { "bind" }.into());
            words.push(format!("source={}", bytes(source)));
            words.extend(create_directory.then(|| "create".into()));
        }
        Some(mount::From::Filesystem(launch::Filesystem { r#type, source, options })) => {
            words.push(r#type.clone());
            words.push(format!("source={source}"));
            words.extend(options.iter().cloned());
        }
        Some(mount::From::Image(launch::ImageTree { overlay, sub_path })) => {
            words.push(format!("image={}", overlay.clone().unwrap_or_default().lowers.join(":")));
            words.push(format!("sub_path={}", bytes(sub_path)));
        }
        None => words.push("from nothing".into()),
    }
    let scope = if *recursive_attributes { "recursively " } else { "" };
    let changes = [("set", set_attributes), ("clear", clear_attributes)].into_iter();
    words.extend(
        changes
            .filter(|(_, bits)| **bits != 0)
            .map(|(change, bits)| format!("{scope}{change}={}", attributes(*bits))),
    );
    if *propagation != 0 {
        words.push(propagated(*propagation));
    }
    words.extend(ids.iter().map(|ids| format!("{ids:?}")));
    words.extend(copy_up.then(|| "copy_up".into()));
    let whole =
        [("set", recursive_set), ("clear", recursive_clear)].into_iter().filter(|(_, bits)| **bits != 0);
    words.extend(whole.map(|(change, bits)| format!("recursively {change}={}", attributes(*bits))));
    lines.say("mount", words.join(" "));
}

fn maps(lines: &mut Lines, uids: &[launch::IdMap], gids: &[launch::IdMap]) {
    for (key, maps) in [("uid_map", uids), ("gid_map", gids)] {
        for launch::IdMap { inside, outside, length } in maps {
            lines.say(key, format!("{inside} {outside} {length}"));
        }
    }
}

fn node(lines: &mut Lines, device: &launch::Device) {
    let launch::Device { path, r#type, major, minor, mode, uid, gid, host_path } = device;
    let kind = device::Type::try_from(*r#type).expect("a type of device").as_str_name();
    let from = if host_path.is_empty() { String::new() } else { format!(" host={}", bytes(host_path)) };
    lines.say("device", format!("{} {kind} {major}:{minor} {mode:04o} {uid}:{gid}{from}", bytes(path)));
}

fn parameter(lines: &mut Lines, launch::Sysctl { name, value }: &launch::Sysctl) {
    lines.say("sysctl", format!("{name}={value}"));
}

fn group(lines: &mut Lines, launch::Cgroup { v2, v1, device_program }: &launch::Cgroup) {
    lines.some("cgroup.v2", v2);
    v1.iter().for_each(|directory| lines.say("cgroup.v1", directory));
    lines.number("cgroup.device_program", device_program.len() as u64);
}

fn link(lines: &mut Lines, pair: &launch::Link) {
    let launch::Link {
        host_name,
        name,
        mtu,
        bridge_index,
        mac,
        addresses,
        routes,
        hairpin,
        ingress_bits,
        egress_bits,
    } = pair;
    lines.say("link", format!("{host_name} <-> {name}"));
    lines.number("link.mtu", u64::from(*mtu));
    lines.say("link.bridge_index", bridge_index);
    lines.some("link.mac", &mac.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":"));
    for launch::Address { ip, prefix } in addresses {
        lines.say("link.address", format!("{}/{prefix}", address(ip)));
    }
    for launch::Route { to, prefix, via } in routes {
        let to = if to.is_empty() { "default".into() } else { format!("{}/{prefix}", address(to)) };
        lines.say("link.route", format!("{to} via {}", address(via)));
    }
    lines.flag("link.hairpin", *hairpin);
    lines.number("link.ingress_bits", *ingress_bits);
    lines.number("link.egress_bits", *egress_bits);
}

fn say_process(lines: &mut Lines, process: &launch::Process) {
    let launch::Process {
        args,
        env,
        cwd,
        user: who,
        capabilities: sets,
        no_new_privileges,
        rlimits,
        oom_score_adj,
        seccomp,
        seccomp_flags,
        apparmor_profile,
        selinux_label,
        tty,
        rows,
        columns,
        umask,
        scheduler,
        io_priority,
        affinity,
        final_affinity,
        personality,
        memory_policy,
        new_keyring,
        seccomp_listener,
        keep_groups: _,
        apparmor_stacked,
    } = process;
    args.iter().for_each(|arg| lines.say("arg", bytes(arg)));
    env.iter().for_each(|var| lines.say("env", bytes(var)));
    lines.say("cwd", bytes(cwd));
    who.iter().for_each(|who| say_user(lines, who));
    sets.iter().for_each(|sets| say_capabilities(lines, sets));
    lines.flag("no_new_privileges", *no_new_privileges);
    for launch::Rlimit { resource, soft, hard } in rlimits {
        lines.say("rlimit", format!("{resource} {soft} {hard}"));
    }
    oom_score_adj.iter().for_each(|score| lines.say("oom_score_adj", score));
    if !seccomp.is_empty() {
        let digest = hex::encode(Sha256::digest(seccomp));
        lines.say("seccomp", format!("{} bytes sha256:{digest}", seccomp.len()));
    }
    lines.number("seccomp_flags", u64::from(*seccomp_flags));
    lines.some("apparmor_profile", apparmor_profile);
    lines.some("selinux_label", selinux_label);
    lines.flag("tty", *tty);
    if (*rows, *columns) != (0, 0) {
        lines.say("size", format!("{rows} rows {columns} columns"));
    }
    umask.iter().for_each(|umask| lines.say("umask", format!("{umask:04o}")));
    scheduler.iter().for_each(|scheduler| lines.say("scheduler", format!("{scheduler:?}")));
    io_priority.iter().for_each(|priority| lines.say("io_priority", priority));
    lines.some("affinity", &hex::encode(affinity));
    lines.some("final_affinity", &hex::encode(final_affinity));
    personality.iter().for_each(|persona| lines.say("personality", persona));
    memory_policy.iter().for_each(|policy| lines.say("memory_policy", format!("{policy:?}")));
    lines.flag("new_keyring", *new_keyring);
    seccomp_listener.iter().for_each(|listener| lines.say("seccomp_listener", format!("{listener:?}")));
    lines.flag("apparmor_stacked", *apparmor_stacked);
}

fn say_user(lines: &mut Lines, who: &launch::User) {
    let launch::User { user, group, additional_gids, image_groups } = who;
    match user {
        Some(user::User::Uid(uid)) => lines.say("user", uid),
        Some(user::User::UserName(name)) => lines.say("user", format!("named {name}")),
        None => lines.say("user", "unsaid"),
    }
    match group {
        Some(user::Group::Gid(gid)) => lines.say("group", gid),
        Some(user::Group::GroupName(name)) => lines.say("group", format!("named {name}")),
        None => lines.say("group", "unsaid"),
    }
    additional_gids.iter().for_each(|gid| lines.say("additional_group", gid));
    lines.flag("image_groups", *image_groups);
}

fn say_capabilities(lines: &mut Lines, sets: &launch::Capabilities) {
    let launch::Capabilities { bounding, effective, permitted, inheritable, ambient } = sets;
    let sets = [
        ("bounding", bounding),
        ("effective", effective),
        ("permitted", permitted),
        ("inheritable", inheritable),
        ("ambient", ambient),
    ];
    for (name, mask) in sets {
        let names =
            capabilities::names(*mask).iter().map(|name| name.replace("CAP_", "")).collect::<Vec<_>>();
        let names = if names.is_empty() { "none".into() } else { names.join(",") };
        lines.say("capabilities", format!("{name} {names}"));
    }
}

/// MOUNT_ATTR_* by the names of mount(8). The access times are one of several values.
fn attributes(bits: u64) -> String {
    const NAMES: [(u64, &str); 6] = [
        (libc::MOUNT_ATTR_RDONLY, "ro"),
        (libc::MOUNT_ATTR_NOSUID, "nosuid"),
        (libc::MOUNT_ATTR_NODEV, "nodev"),
        (libc::MOUNT_ATTR_NOEXEC, "noexec"),
        (libc::MOUNT_ATTR_NODIRATIME, "nodiratime"),
        (libc::MOUNT_ATTR_NOSYMFOLLOW, "nosymfollow"),
    ];
    let known = NAMES.iter().filter(|(bit, _)| bits & bit != 0);
    let mut words: Vec<String> = known.map(|(_, name)| (*name).into()).collect();
    match bits & libc::MOUNT_ATTR__ATIME {
        0 => {}
        libc::MOUNT_ATTR_NOATIME => words.push("noatime".into()),
        libc::MOUNT_ATTR_STRICTATIME => words.push("strictatime".into()),
        _ => words.push("atime-mask".into()),
    }
    let rest = NAMES.iter().fold(bits & !libc::MOUNT_ATTR__ATIME, |rest, (bit, _)| rest & !bit);
    words.extend((rest != 0).then(|| format!("{rest:#x}")));
    words.join(",")
}

fn propagated(bits: u64) -> String {
    let recursive = if bits & libc::MS_REC != 0 { "r" } else { "" };
    match bits & !libc::MS_REC {
        0 => "unsaid".into(),
        libc::MS_PRIVATE => format!("{recursive}private"),
        libc::MS_SLAVE => format!("{recursive}slave"),
        libc::MS_SHARED => format!("{recursive}shared"),
        libc::MS_UNBINDABLE => format!("{recursive}unbindable"),
        other => format!("{recursive}{other:#x}"),
    }
}

fn address(bytes: &[u8]) -> String {
    match (<[u8; 4]>::try_from(bytes), <[u8; 16]>::try_from(bytes)) {
        (Ok(v4), _) => std::net::Ipv4Addr::from(v4).to_string(),
        (_, Ok(v6)) => std::net::Ipv6Addr::from(v6).to_string(),
        _ => format!("{bytes:?}"),
    }
}

fn bytes(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}
