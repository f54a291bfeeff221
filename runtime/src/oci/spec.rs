//! What is asked for and what the image says, merged into an OCI runtime spec 1.3 document.

use berth_cri::v1 as cri;
use oci_spec::runtime::{LinuxSeccomp, Spec};
use serde_json::{Value, json};

use super::{Request, capabilities, devices, labels, mounts, seccomp, user, users};
use crate::{Error, Kind, Result};

/// Files of /proc and /sys that tell or change what is the node's, not the container's; docker's list.
const MASKED: [&str; 13] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
    "/sys/devices/system/cpu/cpu0/thermal_throttle",
];
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

const PATH: &[u8] = b"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Merges config and image into an OCI runtime spec.
///
/// # Errors
/// `Invalid` names the field: no command, run_as_group without run_as_user, an unknown capability, a bad path.
pub fn spec(request: &Request<'_>) -> Result<Spec> {
    let none = cri::LinuxContainerSecurityContext::default();
    let security = user::security(request).unwrap_or(&none);
    let process = process(request, security)?;
    let nodes = devices::nodes(request)?;
    let devices: Vec<Value> = nodes
        .iter()
        .map(|node| {
            json!({
                "path": String::from_utf8_lossy(&node.path), "type": kind(node), "major": node.major,
                "minor": node.minor, "fileMode": node.mode, "uid": node.uid, "gid": node.gid,
            })
        })
        .collect();
    let mut linux = json!({
        "namespaces": namespaces(request, security),
        "cgroupsPath": request.place.cgroup_path,
        "devices": devices,
        "rootfsPropagation": rootfs_propagation(request),
        "maskedPaths": paths(security, &security.masked_paths, &MASKED),
        "readonlyPaths": paths(security, &security.readonly_paths, &READ_ONLY),
        "resources": resources(request)?,
    });
    if let Some(users) = users::of_container(request)? {
        linux["uidMappings"] = users::document(&users.uids);
        linux["gidMappings"] = users::document(&users.gids);
    }
    if request.host.selinux
        && let Some(label) = labels::selinux(security, request.sandbox)
    {
        linux["mountLabel"] = json!(labels::selinux_of_files(&label));
    }
    if let Some(profile) = profile(request, security)? {
        linux["seccomp"] = serde_json::to_value(profile).map_err(odd)?;
    }
    let document = json!({
        "ociVersion": "1.3.0",
        "process": process,
        "root": {"path": request.place.dir.join("rootfs"), "readonly": security.readonly_rootfs},
        "mounts": mounts::of_container(request)?,
        "annotations": request.config.annotations,
        "linux": linux,
    });
    serde_json::from_value(document).map_err(odd)
}

/// The process as bytes: an environment need not be UTF-8, the document has to be.
pub fn environment(request: &Request<'_>) -> Result<Vec<Vec<u8>>> {
    let image = request.image.config().as_ref().and_then(|config| config.env().clone()).unwrap_or_default();
    let mut env: Vec<Vec<u8>> = image.into_iter().map(String::into_bytes).collect();
    for pair in &request.config.envs {
        if pair.key.is_empty() || pair.key.contains(['=', '\0']) || pair.value.contains(&0) {
            return Err(Error::invalid(
                "read environment",
                format!("{:?}", pair.key),
                "it can be no variable",
            )
            .hint("a name has no `=`, and neither name nor value has a zero byte"));
        }
        set(&mut env, [pair.key.as_bytes(), b"=", &pair.value].concat());
    }
    for var in &request.place.cdi.env {
        if !var.contains('=') || var.starts_with('=') || var.contains('\0') {
            return Err(Error::invalid("read CDI environment", format!("{var:?}"), "it is not NAME=VALUE"));
        }
        set(&mut env, var.clone().into_bytes());
    }
    if !env.iter().any(|var| var.starts_with(b"PATH=")) {
        env.insert(0, PATH.to_vec());
    }
    if request.config.tty && !env.iter().any(|var| var.starts_with(b"TERM=")) {
        env.push(b"TERM=xterm".to_vec());
    }
    if !request.sandbox.hostname.is_empty() && !env.iter().any(|var| var.starts_with(b"HOSTNAME=")) {
        env.push(format!("HOSTNAME={}", request.sandbox.hostname).into_bytes());
    }
    Ok(env)
}

/// Sets a variable where it stands, or adds it.
pub fn set(env: &mut Vec<Vec<u8>>, var: Vec<u8>) {
    let name = |var: &[u8]| var.split(|byte| *byte == b'=').next().map(<[u8]>::to_vec);
    match env.iter_mut().find(|old| name(old) == name(&var)) {
        Some(old) => *old = var,
        None => env.push(var),
    }
}

fn process(request: &Request<'_>, security: &cri::LinuxContainerSecurityContext) -> Result<Value> {
    let env: Vec<_> =
        environment(request)?.iter().map(|var| String::from_utf8_lossy(var).into_owned()).collect();
    let user = user::user(request)?;
    let mut who = json!({"uid": 0, "gid": 0, "additionalGids": user.additional_gids});
    match &user.user {
        Some(berth_launch::v1::user::User::Uid(uid)) => who["uid"] = json!(uid),
        Some(berth_launch::v1::user::User::UserName(name)) => who["username"] = json!(name),
        None => {}
    }
    if let Some(berth_launch::v1::user::Group::Gid(gid)) = &user.group {
        who["gid"] = json!(gid);
    }
    let none = cri::Capability::default();
    let asked = security.capabilities.as_ref().unwrap_or(&none);
    let sets = capabilities::sets(
        &capabilities::Asked {
            privileged: security.privileged,
            add: &asked.add_capabilities,
            drop: &asked.drop_capabilities,
            ambient: &asked.add_ambient_capabilities,
        },
        request.host.last_capability,
    )?;
    let (bounding, ambient) = (capabilities::names(sets.bounding), capabilities::names(sets.ambient));
    let resources = request.config.linux.as_ref().and_then(|linux| linux.resources.as_ref());
    let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let selinux = if request.host.selinux { labels::selinux(security, request.sandbox) } else { None };
    Ok(json!({
        "terminal": request.config.tty,
        "apparmorProfile": text(&request.place.apparmor),
        "selinuxLabel": selinux,
        "user": who,
        "args": arguments(request)?,
        "env": env,
        "cwd": working_directory(request)?,
        "capabilities": {"bounding": bounding, "effective": bounding, "permitted": bounding,
            "inheritable": ambient, "ambient": ambient},
        "noNewPrivileges": security.no_new_privs,
        "oomScoreAdj": resources.map_or(0, |resources| resources.oom_score_adj),
    }))
}

/// Kubernetes' rule, which is docker's with other names: `command` replaces ENTRYPOINT and drops CMD, `args` replaces
/// CMD.
fn arguments(request: &Request<'_>) -> Result<Vec<String>> {
    let image = request.image.config().as_ref();
    let of_image = |list: Option<&Vec<String>>| list.cloned().unwrap_or_default();
    let entrypoint = of_image(image.and_then(|config| config.entrypoint().as_ref()));
    let cmd = of_image(image.and_then(|config| config.cmd().as_ref()));
    let (command, args) = (&request.config.command, &request.config.args);
    let all = match &request.options.entrypoint {
        Some(entrypoint) => {
            let first = (!entrypoint.is_empty()).then(|| entrypoint.clone());
            first.into_iter().chain(args.iter().cloned()).collect()
        }
        None if !command.is_empty() => [command.clone(), args.clone()].concat(),
        None if !args.is_empty() => [entrypoint, args.clone()].concat(),
        None => [entrypoint, cmd].concat(),
    };
    if all.is_empty() {
        return Err(Error::invalid(
            "read command",
            "args",
            "neither the image nor the request names a program",
        )
        .hint("say what to run after the image's name"));
    }
    if all.iter().any(|arg| arg.contains('\0')) {
        return Err(Error::invalid("read command", "args", "an argument holds a zero byte"));
    }
    Ok(all)
}

fn working_directory(request: &Request<'_>) -> Result<String> {
    let image = request.image.config().as_ref().and_then(|config| config.working_dir().clone());
    let cwd = match request.config.working_dir.as_str() {
        "" => image.unwrap_or_default(),
        asked => asked.to_owned(),
    };
    match cwd.as_str() {
        "" => Ok("/".into()),
        cwd if cwd.starts_with('/') && !cwd.contains('\0') => Ok(cwd.into()),
        cwd => Err(Error::invalid("read working directory", format!("{cwd:?}"), "it is not absolute")),
    }
}

fn namespaces(request: &Request<'_>, security: &cri::LinuxContainerSecurityContext) -> Vec<Value> {
    let place = request.place;
    let options = security.namespace_options.clone().unwrap_or_default();
    let mut all = vec![json!({"type": "mount"}), json!({"type": "cgroup"})];
    match (&place.pod_pid, options.pid()) {
        (Some(path), _) => all.push(json!({"type": "pid", "path": path})),
        (None, cri::NamespaceMode::Node) => {}
        (None, _) => all.push(json!({"type": "pid"})),
    }
    let joined = [
        ("user", &place.pod_user),
        ("network", &place.pod_net),
        ("ipc", &place.pod_ipc),
        ("uts", &place.pod_uts),
    ];
    all.extend(
        joined
            .into_iter()
            .filter_map(|(kind, path)| path.as_ref().map(|path| json!({"type": kind, "path": path}))),
    );
    all
}

/// A volume that is to carry mounts to the node needs a root that does.
fn rootfs_propagation(request: &Request<'_>) -> &'static str {
    let has = |wanted| request.config.mounts.iter().any(|mount| mount.propagation() == wanted);
    match has(cri::MountPropagation::PropagationBidirectional) {
        true => "rshared",
        false => "rslave",
    }
}

fn paths(security: &cri::LinuxContainerSecurityContext, asked: &[String], default: &[&str]) -> Vec<String> {
    match (security.privileged, asked.is_empty()) {
        (true, _) => Vec::new(),
        (false, true) => default.iter().map(|path| (*path).to_owned()).collect(),
        (false, false) => asked.to_vec(),
    }
}

fn resources(request: &Request<'_>) -> Result<Value> {
    let devices = devices::rules(request)?;
    let Some(asked) = request.config.linux.as_ref().and_then(|linux| linux.resources.as_ref()) else {
        return Ok(json!({"devices": devices}));
    };
    let some = |value: i64| (value != 0).then_some(value);
    let text = |value: &str| (!value.is_empty()).then(|| value.to_owned());
    let huge: Vec<Value> = asked
        .hugepage_limits
        .iter()
        .map(|limit| json!({"pageSize": limit.page_size, "limit": i64::try_from(limit.limit).unwrap_or(-1)}))
        .collect();
    Ok(json!({
        "devices": devices,
        "cpu": {
            "shares": some(asked.cpu_shares), "quota": some(asked.cpu_quota), "period": some(asked.cpu_period),
            "cpus": text(&asked.cpuset_cpus), "mems": text(&asked.cpuset_mems),
        },
        "memory": {"limit": some(asked.memory_limit_in_bytes), "swap": some(asked.memory_swap_limit_in_bytes)},
        "pids": request.options.pids.map(|limit| json!({"limit": limit})),
        "hugepageLimits": huge,
        "unified": asked.unified,
    }))
}

/// The seccomp profile that applies: CRI runs unconfined what says nothing, as its peers do.
fn profile(
    request: &Request<'_>,
    security: &cri::LinuxContainerSecurityContext,
) -> Result<Option<LinuxSeccomp>> {
    use cri::security_profile::ProfileType;
    if security.privileged {
        return Ok(None);
    }
    let Some(asked) = &security.seccomp else { return Ok(None) };
    match asked.profile_type() {
        ProfileType::Unconfined => Ok(None),
        ProfileType::RuntimeDefault => {
            let sets = security.capabilities.clone().unwrap_or_default();
            let asked = capabilities::Asked {
                privileged: false,
                add: &sets.add_capabilities,
                drop: &sets.drop_capabilities,
                ambient: &sets.add_ambient_capabilities,
            };
            let bounding = capabilities::sets(&asked, request.host.last_capability)?.bounding;
            Ok(Some(seccomp::default_profile(bounding)?))
        }
        ProfileType::Localhost => {
            let text = request.place.seccomp_profile.as_deref().ok_or_else(|| {
                Error::not_found("read seccomp profile", &asked.localhost_ref)
                    .hint("the file has to be there on the node")
            })?;
            let profile = serde_json::from_str(text).map_err(|error| {
                Error::new(Kind::Invalid, "read seccomp profile", &asked.localhost_ref).because(error)
            })?;
            Ok(Some(profile))
        }
    }
}

fn kind(node: &berth_launch::v1::Device) -> &'static str {
    match node.r#type() {
        berth_launch::v1::device::Type::Char => "c",
        berth_launch::v1::device::Type::Block => "b",
        berth_launch::v1::device::Type::Fifo => "p",
    }
}

fn odd(error: serde_json::Error) -> Error {
    Error::new(Kind::Internal, "write", "OCI spec").because(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_is_replaced_where_it_stands() {
        let mut env = vec![b"A=1".to_vec(), b"AB=2".to_vec()];
        set(&mut env, b"A=3".to_vec());
        set(&mut env, b"C=\xff".to_vec());
        assert_eq!(env, [b"A=3".to_vec(), b"AB=2".to_vec(), b"C=\xff".to_vec()]);
    }
}
