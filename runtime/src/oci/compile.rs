//! A spec compiled into the plan that a shim walks: names become numbers, paths bytes, profiles programs.

use std::{os::unix::ffi::OsStrExt, sync::Arc};

use berth_launch::v1 as launch;
use oci_spec::runtime::{LinuxNamespaceType, LinuxSeccomp, Spec};

use super::{Request, capabilities, devices, kept::Kept, mounts, seccomp, spec, user};
use crate::{Error, Kind, Result, error::Cause};

/// Compiles a spec into the plan that a shim walks.
///
/// # Errors
/// `Invalid` for a seccomp profile that can't be compiled, a stop signal that is none.
pub fn compile(document: &Spec, request: &Request<'_>) -> Result<launch::ContainerPlan> {
    let place = request.place;
    let linux = document.linux().clone().unwrap_or_default();
    let bytes = |paths: &Option<Vec<String>>| {
        paths.iter().flatten().map(|path| path.clone().into_bytes()).collect::<Vec<_>>()
    };
    let text = |path: &std::path::Path| path.to_string_lossy().into_owned();
    let read_only = document.root().as_ref().and_then(|root| root.readonly()).unwrap_or(false);
    let propagation = linux.rootfs_propagation().as_deref().and_then(mounts::propagation).unwrap_or(0);
    let stdin = match (request.config.stdin, request.config.stdin_once) {
        (true, true) => launch::stdio::Stdin::Once,
        (true, false) => launch::stdio::Stdin::Open,
        (false, _) => launch::stdio::Stdin::None,
    };
    let label = linux.mount_label().clone().unwrap_or_default();
    let plan = launch::ContainerPlan {
        version: berth_launch::VERSION,
        needs: Vec::new(),
        id: place.container_id.clone(),
        dir: text(&place.dir),
        record_dir: text(&place.record_dir),
        namespaces: linux.namespaces().iter().flatten().filter_map(namespace).collect(),
        rootfs: Some(launch::Rootfs {
            from: Some(launch::rootfs::From::Overlay(launch::Overlay {
                lowers: place.lowers.iter().map(|lower| text(lower)).collect(),
                upper: text(&place.upper),
                work: text(&place.work),
                volatile: place.volatile,
                label: label.clone(),
                max_bytes: request.options.layer_max_bytes,
            })),
            readonly: read_only,
            propagation,
            ids: place.pod_user.as_ref().map(|_| launch::MountIds::default()),
        }),
        mounts: document.mounts().iter().flatten().map(|mount| mounts::compile(mount, &label)).collect(),
        devices: devices::nodes(request)?,
        symlinks: devices::symlinks(),
        masked_paths: bytes(linux.masked_paths()),
        readonly_paths: bytes(linux.readonly_paths()),
        sysctls: Vec::new(),
        // The pod's UTS namespace has its name already.
        hostname: String::new(),
        cgroup: Some(place.cgroup.clone()),
        process: Some(process(document, request)?),
        stdio: Some(launch::Stdio { stdin: stdin.into() }),
        log: place.log.as_ref().map(|path| launch::Log {
            path: text(path),
            max_bytes: request.options.log_max_bytes,
            max_files: request.options.log_max_files,
            format: launch::log::Format::Cri.into(),
            rate_bytes: request.options.log_rate_bytes,
        }),
        restart: Some(request.options.restart),
        stop_signal: stop_signal(request)?,
        started_runs: 0,
        outside: None,
        ..launch::ContainerPlan::default()
    };
    Ok(launch::ContainerPlan { needs: berth_launch::needs::container(&plan), ..plan })
}

fn process(document: &Spec, request: &Request<'_>) -> Result<launch::Process> {
    let process = document
        .process()
        .as_ref()
        .ok_or_else(|| Error::invalid("compile", "process", "the spec has none"))?;
    let args = process.args().iter().flatten().map(|arg| arg.clone().into_bytes()).collect();
    Ok(launch::Process {
        args,
        env: spec::environment(request)?,
        cwd: process.cwd().as_os_str().as_bytes().to_vec(),
        user: Some(user::user(request)?),
        capabilities: Some(masks(document)?),
        no_new_privileges: process.no_new_privileges().unwrap_or(false),
        rlimits: Vec::new(),
        oom_score_adj: Some(process.oom_score_adj().unwrap_or(0)),
        seccomp: filter(document)?.to_vec(),
        apparmor_profile: process.apparmor_profile().clone().unwrap_or_default(),
        selinux_label: process.selinux_label().clone().unwrap_or_default(),
        tty: process.terminal().unwrap_or(false),
        ..launch::Process::default()
    })
}

/// The capability sets of a spec's process.
pub fn masks(document: &Spec) -> Result<launch::Capabilities> {
    let none = Default::default();
    let sets = document.process().as_ref().and_then(|process| process.capabilities().as_ref());
    let sets = sets.unwrap_or(&none);
    let mask = |set: &Option<oci_spec::runtime::Capabilities>| {
        set.iter()
            .flatten()
            .try_fold(0, |mask, name| Ok::<_, Error>(mask | capabilities::bit(&name.to_string())?))
    };
    Ok(launch::Capabilities {
        bounding: mask(sets.bounding())?,
        effective: mask(sets.effective())?,
        permitted: mask(sets.permitted())?,
        inheritable: mask(sets.inheritable())?,
        ambient: mask(sets.ambient())?,
    })
}

/// The program of a spec's seccomp profile; empty where it has none.
///
/// # Errors
/// `Unimplemented` for a profile that asks a listener: a pod has nobody who would hold it.
pub fn filter(document: &Spec) -> Result<Arc<Vec<u8>>> {
    let profile = document.linux().as_ref().and_then(|linux| linux.seccomp().as_ref());
    match profile {
        None => Ok(Arc::default()),
        Some(profile) if seccomp::notifies(profile) => {
            Err(Error::new(Kind::Unimplemented, "compile", "seccomp profile")
                .because(Cause("SCMP_ACT_NOTIFY takes a listener, and pods have none".into()))
                .hint("`berth oci` takes profiles with a listenerPath"))
        }
        Some(profile) => compiled(profile),
    }
}

fn compiled(profile: &LinuxSeccomp) -> Result<Arc<Vec<u8>>> {
    static COMPILED: Kept<LinuxSeccomp, Arc<Vec<u8>>> = Kept::new();
    COMPILED.or_make(profile, |profile| seccomp::compile(profile).map(Arc::new))
}

pub fn namespace(namespace: &oci_spec::runtime::LinuxNamespace) -> Option<launch::Namespace> {
    let kind = match namespace.typ() {
        LinuxNamespaceType::Mount => launch::NamespaceKind::Mount,
        LinuxNamespaceType::Pid => launch::NamespaceKind::Pid,
        LinuxNamespaceType::Network => launch::NamespaceKind::Net,
        LinuxNamespaceType::Ipc => launch::NamespaceKind::Ipc,
        LinuxNamespaceType::Uts => launch::NamespaceKind::Uts,
        LinuxNamespaceType::Cgroup => launch::NamespaceKind::Cgroup,
        LinuxNamespaceType::User => launch::NamespaceKind::User,
        LinuxNamespaceType::Time => launch::NamespaceKind::Time,
    };
    let path = namespace.path().as_ref().map(|path| path.to_string_lossy().into_owned());
    Some(launch::Namespace { kind: kind.into(), path: path.unwrap_or_default() })
}

/// The person's, else CRI's, else the image's, else 0 for the shim's default.
fn stop_signal(request: &Request<'_>) -> Result<u32> {
    let image = request.image.config().as_ref().and_then(|config| config.stop_signal().clone());
    match (request.options.stop_signal, user::cri_signal(request.config.stop_signal()), image.as_deref()) {
        (Some(signal), _, _) | (None, Some(signal), _) => Ok(signal),
        (None, None, Some("") | None) => Ok(0),
        (None, None, Some(text)) => user::parse_signal(text),
    }
}
