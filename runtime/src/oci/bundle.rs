//! A bundle's `config.json` -> `launch::ContainerPlan`, for `berth oci`. Pure. The OCI runtime spec 1.3, `config.md` and
//! `config-linux.md`; what a plan can't express is refused with its reason, never left out.
//!
//! ```text
//! config.json ── parse ──> Spec ── check ──> Spec ── plan ──> ContainerPlan        bundle_process: one process of it
//! ```

mod check;
mod filter;
mod hooks;
#[cfg(test)]
mod hostile;
mod net_devices;
mod process;
mod scheduling;

use std::{
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use berth_launch::v1 as launch;
use oci_spec::runtime::{Linux, LinuxDevice, LinuxDeviceType, LinuxPersonalityDomain, Spec};

pub use self::{
    filter::{Asker, FLAGS as SECCOMP_FLAGS, listener},
    hooks::{late_hooks, state_text},
    process::{parse_process, process},
    scheduling::cpus,
};
use super::{compile, devices, mounts};
use crate::{Error, Kind, Result, error::Cause};

/// A bundle, and where its container is to be.
#[derive(Debug)]
pub struct Bundle<'a> {
    pub spec: &'a Spec,
    pub id: &'a str,
    /// Absolute; the spec's relative paths begin here.
    pub path: &'a Path,
    /// The container's own directory of state.
    pub dir: &'a Path,
    pub cgroup: launch::Cgroup,
    pub outside: launch::Outside,
    /// The directory that the container's notify socket will be in, where the caller has one.
    pub notify: Option<&'a Path>,
    pub keyring: Keyring,
}

/// Which session keyring the container has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keyring {
    New,
    Callers,
}

/// Where a container finds its notify socket, as with the peers.
const NOTIFY: &str = "/run/notify";

/// Reads a `config.json`.
///
/// # Errors
/// `Invalid` for what is no such document, or one of a later spec than we know.
pub fn parse(text: &[u8]) -> Result<Spec> {
    let spec: Spec =
        serde_json::from_slice(text).map_err(|error| refused("config.json", &error.to_string()))?;
    check::version(spec.version())?;
    Ok(spec)
}

/// Compiles a bundle into the plan that a shim walks.
///
/// # Errors
/// `Invalid` for what contradicts itself, `Unimplemented` for what no plan can say.
pub fn plan(bundle: &Bundle<'_>) -> Result<launch::ContainerPlan> {
    let spec = bundle.spec;
    check::all(spec)?;
    let none = Default::default();
    let linux = spec.linux().as_ref().unwrap_or(&none);
    let bytes = |paths: &Option<Vec<String>>| {
        paths.iter().flatten().map(|path| path.clone().into_bytes()).collect::<Vec<_>>()
    };
    let mut process = match spec.process() {
        Some(asked) => process::process(asked, spec)?,
        None => return Err(refused("process", "the spec has none, and there is nothing to create")),
    };
    let mut all = mounts(bundle)?;
    if let Some(directory) = bundle.notify {
        all.push(notify(directory));
        process.env.retain(|var| !var.starts_with(b"NOTIFY_SOCKET="));
        process.env.push(format!("NOTIFY_SOCKET={NOTIFY}/notify.sock").into_bytes());
    }
    let own_dev = !all.iter().any(|mount| {
        mount.destination == b"/dev" && matches!(mount.from, Some(launch::mount::From::Bind(_)))
    });
    process.new_keyring = bundle.keyring == Keyring::New;
    process.personality = personality(linux)?;
    process.seccomp_listener = filter::listener(spec, bundle.id, bundle.path, &filter::Asker::Init)?;
    let (uid_maps, gid_maps) = check::users(linux)?;
    let plan = launch::ContainerPlan {
        version: berth_launch::VERSION,
        uid_maps,
        gid_maps,
        id: bundle.id.to_owned(),
        dir: bundle.dir.to_string_lossy().into_owned(),
        namespaces: linux.namespaces().iter().flatten().filter_map(compile::namespace).collect(),
        rootfs: Some(rootfs(bundle)?),
        mounts: all,
        // A /dev of the host's has them already, and they are the host's to make.
        devices: match own_dev {
            true => nodes(linux.devices().as_deref().unwrap_or_default())?,
            false => Vec::new(),
        },
        symlinks: if own_dev { devices::symlinks() } else { Vec::new() },
        masked_paths: bytes(linux.masked_paths()),
        readonly_paths: bytes(linux.readonly_paths()),
        sysctls: check::sysctls(linux)?,
        hostname: spec.hostname().clone().unwrap_or_default(),
        cgroup: Some(bundle.cgroup.clone()),
        process: Some(process),
        stdio: Some(launch::Stdio { stdin: launch::stdio::Stdin::Inherit.into() }),
        outside: Some(bundle.outside.clone()),
        time_offsets: check::time_offsets(linux)?,
        domainname: spec.domainname().clone().unwrap_or_default(),
        hooks: hooks::early_hooks(spec, bundle.id, bundle.path)?,
        net_devices: net_devices::all(linux)?,
        ..launch::ContainerPlan::default()
    };
    Ok(launch::ContainerPlan { needs: berth_launch::needs::container(&plan), ..plan })
}

/// `personality(2)`.
fn personality(linux: &Linux) -> Result<Option<u64>> {
    let Some(asked) = linux.personality() else { return Ok(None) };
    if asked.flags().as_ref().is_some_and(|flags| !flags.is_empty()) {
        return Err(lacking("linux.personality.flags", "the runtime spec defines none"));
    }
    Ok(Some(match asked.domain() {
        LinuxPersonalityDomain::PerLinux => 0,
        LinuxPersonalityDomain::PerLinux32 => 8,
    }))
}

/// Where a bundle's root file system is.
pub fn rootfs_path(spec: &Spec, bundle: &Path) -> Result<PathBuf> {
    match spec.root() {
        Some(root) if !root.path().as_os_str().is_empty() => Ok(bundle.join(root.path())),
        _ => Err(refused("root.path", "a Linux container has to have one")),
    }
}

fn rootfs(bundle: &Bundle<'_>) -> Result<launch::Rootfs> {
    let path = rootfs_path(bundle.spec, bundle.path)?;
    let readonly = bundle.spec.root().as_ref().and_then(|root| root.readonly()).unwrap_or(false);
    let asked = bundle.spec.linux().as_ref().and_then(|linux| linux.rootfs_propagation().clone());
    let propagation = match asked.as_deref() {
        None | Some("") => 0,
        Some(name) => mounts::propagation(name)
            .ok_or_else(|| refused("linux.rootfsPropagation", &format!("{name:?} is no propagation")))?,
    };
    Ok(launch::Rootfs {
        from: Some(launch::rootfs::From::Path(path.to_string_lossy().into_owned())),
        readonly,
        propagation,
        ids: None,
    })
}

fn mounts(bundle: &Bundle<'_>) -> Result<Vec<launch::Mount>> {
    bundle.spec.mounts().iter().flatten().map(|mount| one_mount(mount, bundle)).collect()
}

fn one_mount(mount: &oci_spec::runtime::Mount, bundle: &Bundle<'_>) -> Result<launch::Mount> {
    let shown = mount.destination().display().to_string();
    let label = bundle.spec.linux().as_ref().and_then(|linux| linux.mount_label().clone());
    let mut compiled = mounts::compile(mount, &label.unwrap_or_default());
    if !mount.destination().is_absolute() {
        // Spec 1.0 allowed it, and peers take it as from the root.
        compiled.destination.insert(0, b'/');
    }
    check::mount(mount, &shown)?;
    check::mount_ids(&compiled, bundle.spec, &shown)?;
    match &mut compiled.from {
        Some(launch::mount::From::Bind(bind)) => {
            if bind.source.is_empty() {
                return Err(refused("mount", &format!("{shown}: a bind mount needs a source")));
            }
            let source = mount.source().clone().unwrap_or_default();
            bind.source = bundle.path.join(source).as_os_str().as_bytes().to_vec();
            // docker's and CRI's way is not a bundle's.
            bind.create_directory = false;
        }
        Some(launch::mount::From::Filesystem(filesystem)) if filesystem.r#type.is_empty() => {
            return Err(refused("mount", &format!("{shown}: neither a type nor a bind option")));
        }
        _ => {}
    }
    Ok(compiled)
}

/// To a socket one may speak on a read-only mount too; nothing else is to be left there.
fn notify(directory: &Path) -> launch::Mount {
    let attributes =
        libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC;
    launch::Mount {
        destination: NOTIFY.into(),
        set_attributes: attributes,
        from: Some(launch::mount::From::Bind(launch::Bind {
            source: directory.as_os_str().as_bytes().to_vec(),
            ..launch::Bind::default()
        })),
        ..launch::Mount::default()
    }
}

/// The default devices and the spec's; one of the spec's at a default's path takes its place.
fn nodes(asked: &[LinuxDevice]) -> Result<Vec<launch::Device>> {
    let mut nodes: Vec<launch::Device> = devices::default_nodes();
    for device in asked {
        let node = node(device)?;
        nodes.retain(|known| known.path != node.path);
        nodes.push(node);
    }
    Ok(nodes)
}

fn node(device: &LinuxDevice) -> Result<launch::Device> {
    let shown = device.path().display().to_string();
    let kind = match device.typ() {
        LinuxDeviceType::B => launch::device::Type::Block,
        LinuxDeviceType::C | LinuxDeviceType::U => launch::device::Type::Char,
        LinuxDeviceType::P => launch::device::Type::Fifo,
        LinuxDeviceType::A => {
            return Err(refused("linux.devices", &format!("{shown}: a node has one type, not \"a\"")));
        }
    };
    let number = |number: i64, what: &str| match (device.typ(), u32::try_from(number)) {
        (LinuxDeviceType::P, _) => Ok(0),
        (_, Ok(number)) => Ok(number),
        (_, Err(_)) => {
            Err(refused("linux.devices", &format!("{shown}: {what} {number} is no number of a device")))
        }
    };
    if !device.path().is_absolute() {
        return Err(refused("linux.devices", &format!("{shown:?} is not absolute")));
    }
    Ok(launch::Device {
        path: device.path().as_os_str().as_bytes().to_vec(),
        r#type: kind.into(),
        major: number(device.major(), "major")?,
        minor: number(device.minor(), "minor")?,
        mode: device.file_mode().unwrap_or(0o666) & 0o7777,
        uid: device.uid().unwrap_or(0),
        gid: device.gid().unwrap_or(0),
        ..launch::Device::default()
    })
}

/// Something in the document that can't be right.
fn refused(what: &str, why: &str) -> Error {
    Error::invalid("read bundle", what, why)
}

/// Something right that we can't do.
fn lacking(what: &str, why: &str) -> Error {
    Error::new(Kind::Unimplemented, "read bundle", what).because(Cause(why.to_owned()))
}
