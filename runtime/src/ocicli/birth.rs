//! From a bundle to a container that is created: directory, cgroup, plan, shim. What fails leaves nothing.

use std::{
    fs,
    path::{Path, PathBuf},
};

use berth_launch::v1 as launch;
use jiff::Timestamp;
use oci_spec::runtime::{LinuxNamespaceType, Spec};
use prost::Message;

use super::{
    Globals, extras,
    groups::{self, Maker},
    hooks,
    identity::{Identity, end},
    limits, notify, passed, rdt, rootless, shim,
    state::{Container, START, State, read, write_whole},
};
use crate::{
    Error, Result,
    cgroup::{
        Group, Hierarchy,
        systemd::{self, Manager},
    },
    oci::{self, Keyring},
};

/// What the line asks of a new container.
#[derive(Debug)]
pub struct Asked {
    pub id: String,
    pub bundle: PathBuf,
    pub console: Option<PathBuf>,
    pub pid_file: Option<PathBuf>,
    pub preserve_fds: u32,
    pub keyring: Keyring,
}

/// Takes back what a failed birth has made.
#[derive(Debug)]
struct Undo {
    dir: PathBuf,
    group: Option<Group>,
    init: Identity,
}

impl Drop for Undo {
    fn drop(&mut self) {
        // The failure that brought us here is the one to tell.
        if let Ok(Some(init)) = self.init.handle() {
            end(&init);
        }
        if let Some(group) = &self.group {
            groups::remove(group).ok();
        }
        fs::remove_dir_all(&self.dir).ok();
        shim::reap();
    }
}

/// Creates a container.
pub fn birth(globals: &Globals, spec: &Spec, raw: &[u8], asked: &Asked) -> Result<Container> {
    let dir = globals.home.take(&asked.id)?;
    let mut undo = Undo { dir: dir.clone(), group: None, init: Identity::default() };
    let _lock = Container::lock(&dir)?;
    write_whole(&dir.join("config.json"), raw)?;
    // Held until init is in it.
    let (group, planned, _scope) = group(globals, spec, &asked.id, &mut undo)?;
    let rdt = spec.linux().as_ref().map_or(Ok(rdt::Made::default()), |linux| rdt::make(linux, &asked.id))?;
    let mut plan = plan(spec, asked, &dir, planned)?;
    plan.resctrl = rdt.enters.first().map(|dir| dir.to_string_lossy().into_owned()).unwrap_or_default();
    plan.needs = berth_launch::needs::container(&plan);
    write_whole(&dir.join("plan"), &plan.encode_to_vec())?;
    let mut container = Container { dir, state: state(spec, asked, &group)? };
    container.save()?;
    let ready = match shim::launch("oneshot", &plan, shim::enters(globals, &group)) {
        Ok(ready) => ready,
        Err(error) => {
            // The spec: what a hook refuses is destroyed, and told so. It may not have come to the hooks; theirs to see.
            drop(undo);
            hooks::poststop(globals, spec, &container.state)?;
            return Err(error);
        }
    };
    ready.warnings.iter().for_each(|warning| globals.log.warn(warning));
    container.state.init = Identity::new(ready.pid, ready.pid_start_time)?;
    undo.init = container.state.init.clone();
    rdt.enters.iter().skip(1).try_for_each(|dir| rdt::enter(dir, ready.pid))?;
    container.state.resctrl = rdt.enters.clone();
    container.state.resctrl_ours = rdt.ours.clone();
    container.save()?;
    if let Some(path) = &asked.pid_file {
        write_whole(path, ready.pid.to_string().as_bytes())?;
    }
    globals.log.debug(&format!("container {} is created, its init is {}", asked.id, ready.pid));
    // It stands.
    rdt.keep();
    undo.group = None;
    undo.init = Identity::default();
    undo.dir = PathBuf::new();
    Ok(container)
}

fn group(
    globals: &Globals,
    spec: &Spec,
    id: &str,
    undo: &mut Undo,
) -> Result<(Group, launch::Cgroup, Option<systemd::Scope>)> {
    let linux = spec.linux().clone().unwrap_or_default();
    let asked = linux.cgroups_path().as_ref().map(|path| path.to_string_lossy().into_owned());
    let maker = Maker::of(globals);
    let mut path = groups::path(maker, asked.as_deref(), id)?;
    let resources = linux.resources().clone().unwrap_or_default();
    let wanted = limits::limits(&resources);
    limits::tell_obsolete(globals, &resources);
    if globals.rootless && maker == Maker::Us && rootless::does_without_cgroup(&linux) {
        globals.log.debug(
            "an ordinary user's container without a cgroupsPath has no cgroup: neither limits nor statistics",
        );
        return Ok((Group { v2: None, v1: Vec::new() }, launch::Cgroup::default(), None));
    }
    let hierarchy = Hierarchy::detect()?;
    if maker == Maker::Systemd(Manager::User) {
        path.insert_str(0, systemd::users_group(&hierarchy)?.trim_end_matches('/'));
    }
    // A group that is there already is whoever's made it, and stays after a failure.
    let named = hierarchy.group(&path);
    let ours = !named.v2.iter().chain(&named.v1).any(|dir| dir.exists());
    let scope = systemd::begin(&hierarchy, &path, &shim::program()?)?;
    let group = hierarchy.create(&path, &wanted)?;
    undo.group = ours.then(|| group.clone());
    extras::write(&group, &resources)?;
    let program = groups::devices(globals, &group, &resources)?;
    let planned = groups::planned(&group, program);
    Ok((group, planned, scope))
}

fn plan(spec: &Spec, asked: &Asked, dir: &Path, cgroup: launch::Cgroup) -> Result<launch::ContainerPlan> {
    let listen = passed::listening(&|name| std::env::var(name).ok(), std::process::id());
    let kept = asked.preserve_fds.saturating_add(listen);
    passed::are_open(kept)?;
    let notify = notify::prepare(dir)?;
    let console = asked.console.as_ref().map(|path| path.to_string_lossy().into_owned());
    let mut plan = oci::bundle_plan(&oci::Bundle {
        spec,
        id: &asked.id,
        path: &asked.bundle,
        dir,
        cgroup,
        outside: launch::Outside {
            start_socket: START.into(),
            console_socket: console.unwrap_or_default(),
            preserve_fds: kept,
        },
        notify: notify.as_deref(),
        keyring: asked.keyring,
    })?;
    rootless::with_helpers(&mut plan)?;
    if let Some(process) = plan.process.as_mut().filter(|_| listen > 0) {
        // sd_listen_fds(3): the program is PID 1 of its namespace.
        process.env.retain(|var| !var.starts_with(b"LISTEN_FDS=") && !var.starts_with(b"LISTEN_PID="));
        process.env.push(format!("LISTEN_FDS={listen}").into_bytes());
        process.env.push(b"LISTEN_PID=1".to_vec());
    }
    Ok(plan)
}

fn state(spec: &Spec, asked: &Asked, group: &Group) -> Result<State> {
    let namespaces = spec.linux().as_ref().and_then(|linux| linux.namespaces().clone()).unwrap_or_default();
    let own_pids = namespaces.iter().any(|namespace| {
        let unnamed = namespace.path().as_ref().is_none_or(|path| path.as_os_str().is_empty());
        namespace.typ() == LinuxNamespaceType::Pid && unnamed
    });
    Ok(State {
        oci_version: spec.version().clone(),
        id: asked.id.clone(),
        bundle: asked.bundle.clone(),
        rootfs: oci::rootfs_path(spec, &asked.bundle)?,
        created: Timestamp::now().to_string(),
        owner: rustix::process::getuid().as_raw(),
        annotations: spec.annotations().clone().unwrap_or_default(),
        init: Identity::default(),
        cgroup_v2: group.v2.clone(),
        cgroup_v1: group.v1.clone(),
        own_pids,
        resctrl: Vec::new(),
        resctrl_ours: Vec::new(),
    })
}

/// Reads a bundle's document, with its bytes.
pub fn document(bundle: &Path) -> Result<(Spec, Vec<u8>)> {
    let raw = read(&bundle.join("config.json"))?;
    Ok((oci::parse_bundle(&raw)?, raw))
}

/// A path of the line's as an absolute one.
pub fn absolute(path: &str) -> Result<PathBuf> {
    std::path::absolute(path).map_err(|error| Error::io("find", path, error))
}
