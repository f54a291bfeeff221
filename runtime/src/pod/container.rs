//! One container's things: image layers, directories, cgroup, shim. Made in order with an undo; taken away whole.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use berth_cri::v1 as cri;
use berth_launch::{fault, v1 as launch};
use oci_spec::runtime::Spec;

use super::{
    Handler, Rooms, apparmor, asks, blocking, cdi, clock, image_volumes,
    place::{self, Places},
    record::{self, ContainerRecord, Phase, PodRecord},
    relabel, resources, sandbox,
    state::State,
    takeover::Takeovers,
    told, undone, volumes,
};
use crate::{
    Error, Kind, Result,
    cgroup::{self, systemd},
    id::{ContainerId, PodId},
    image::Image,
    launcher::{Fault, Shim},
    oci,
};

#[derive(Debug)]
pub struct Container {
    pub id: ContainerId,
    pub record: ContainerRecord,
    pub config: Arc<cri::ContainerConfig>,
    pub document: oci::Document,
    pub env: Arc<Vec<Vec<u8>>>,
    pub state: State,
    pub shim: Option<Shim>,
    /// Counts the shims it has had in this daemon's life.
    pub run: u64,
    pub takeovers: Takeovers,
    /// Somebody was done with it after it had ended: no other attempt follows of berthd's making.
    pub settled: bool,
}

/// What a container is made in.
#[derive(Debug, Clone)]
pub struct Pod<'a> {
    pub id: &'a PodId,
    pub record: &'a PodRecord,
    /// PID namespace of the container that this one wants to share, as a file.
    pub target_pid: Option<PathBuf>,
}

/// Makes it up to CREATED. After an error nothing is left.
pub async fn create(
    rooms: &Rooms,
    places: &Places,
    pod: &Pod<'_>,
    mut record: ContainerRecord,
) -> Result<Container> {
    let id = ContainerId::parse(&record.id)?;
    let launched = launch(rooms, places, pod, &id, &mut record).await;
    let (shim, document, ready) = match launched {
        Ok(launched) => launched,
        Err(error) => {
            if let Err(error) = remove(rooms, places, &id, &record).await {
                // The caller hears of the first failure; this one is only here.
                tracing::warn!(container = %id, error = error.chain(), "a failed container is not wholly taken back yet");
                let (rooms, places) = (rooms.clone(), places.clone());
                undone::take_back(record.id.clone(), move || {
                    let (rooms, places, id, record) =
                        (rooms.clone(), places.clone(), id.clone(), record.clone());
                    async move { remove(&rooms, &places, &id, &record).await }
                });
            }
            return Err(error);
        }
    };
    for warning in &ready.warnings {
        tracing::warn!(container = %id, warning, "container created with less than asked for");
    }
    let config = Arc::new(record.config.clone().unwrap_or_default());
    let state = State::Created { pid: ready.pid };
    let env = Arc::new(record.env.clone());
    Ok(Container {
        id,
        record,
        config,
        document,
        env,
        state,
        shim: Some(shim),
        run: 0,
        takeovers: Takeovers::default(),
        settled: false,
    })
}

/// Starts a shim for the container of this record: the first time, or again for one whose layer is kept.
pub async fn launch(
    rooms: &Rooms,
    places: &Places,
    pod: &Pod<'_>,
    id: &ContainerId,
    record: &mut ContainerRecord,
) -> Result<(Shim, oci::Document, launch::Ready)> {
    let Prepared { plan, spec, health, scope } = {
        let (rooms, places, id, container) = (rooms.clone(), places.clone(), id.clone(), record.clone());
        let (pod_id, pod_record, target) = (pod.id.clone(), pod.record.clone(), pod.target_pid.clone());
        let timelines = rooms.timelines.clone();
        let name = id.clone();
        let prepared = blocking("prepare container", move || {
            prepare(&rooms, &places, (&pod_id, &pod_record, target), &id, &container)
        });
        timelines.timed(name.as_str(), "prepare", prepared).await?
    };
    let mut text = serde_json::to_vec(&spec)
        .map_err(|error| Error::new(Kind::Internal, "write", "OCI spec").because(error))?;
    // Kept as long as the container: without the room that it grew into.
    text.shrink_to_fit();
    record.spec = text.into();
    let document = oci::Document::of(spec)?;
    let mounts = record.config.as_ref().map(|config| config.mounts.as_slice()).unwrap_or_default();
    let launched = rooms.timelines.timed(id.as_str(), "launch", rooms.launcher.container(&plan)).await;
    let (shim, ready) = launched.map_err(|fault| match fault {
        Fault::Failed(failure) => image_volumes::explain(oci::explain(&failure), &failure, mounts),
        fault => told(fault),
    })?;
    // From here on the shim keeps it.
    drop(scope);
    fault::point("container.born");
    record.set_phase(Phase::Made);
    record.uid = ready.uid;
    record.gid = ready.gid;
    record.groups.clone_from(&ready.groups);
    record.boot_id = clock::boot_id();
    record.env = plan.process.unwrap_or_default().env;
    record.health = health;
    record.runtime = plan.runtime.unwrap_or_default().program;
    let (directory, written) = (places.container_record(id), record.clone());
    blocking("record container", move || record::write(&directory, &written)).await?;
    fault::point("container.recorded");
    Ok((shim, document, ready))
}

/// Everything before the shim: intent, layers, directories, cgroup, plan. Blocks.
fn prepare(
    rooms: &Rooms,
    places: &Places,
    (pod_id, pod_record, target_pid): (&PodId, &PodRecord, Option<PathBuf>),
    id: &ContainerId,
    record: &ContainerRecord,
) -> Result<Prepared> {
    let config = record.config.clone().unwrap_or_default();
    let sandbox = pod_record.config.clone().unwrap_or_default();
    let mut options = record.options.clone().unwrap_or_default().options();
    let name = config.metadata.as_ref().map(|metadata| metadata.name.as_str()).unwrap_or_default();
    options.log_rate_bytes = asks::log_rate(&sandbox, name, rooms.config.log_rate_bytes)?;
    if options.layer_max_bytes == 0 {
        options.layer_max_bytes = asks::storage(&sandbox, name, rooms.config.layer_max_bytes)?;
    }
    volumes::check(&config.mounts)?;
    let image = find_image(rooms, &record.image_id)?;
    let (dir, directory) = (places.container_dir(id), places.container_record(id));
    let (upper, work) = (directory.join("upper"), directory.join("work"));
    // The record's directory first: what has an id and no such directory is nobody's.
    for made in [&upper, &work, &dir] {
        place::make(made)?;
    }
    let users = oci::users_of_pod(&sandbox)?;
    if let Some((uid, gid)) = users.as_ref().map(oci::Users::root) {
        // The upper directory is the root that the container sees.
        std::os::unix::fs::chown(&upper, Some(uid), Some(gid))
            .map_err(|error| Error::io("give away", upper.display().to_string(), error))?;
    }
    record::write(&directory, record)?;
    fault::point("container.intended");
    // A run before this one has left its exit, and perhaps how it came to that.
    for left in [directory.join(berth_launch::EXIT), dir.join(berth_launch::KILLED)] {
        match std::fs::remove_file(left) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io("remove exit record of", id.as_str(), error));
            }
            _ => {}
        }
    }
    let log = (!record.log.is_empty()).then(|| PathBuf::from(&record.log));
    if let Some(parent) = log.as_deref().and_then(Path::parent) {
        place::make(parent)?;
    }
    let timelines = &rooms.timelines;
    let snapshot =
        timelines.timed_here(id.as_str(), "hold layers", || rooms.images.hold(&image.id, id.as_str()))?;
    fault::point("container.held");
    let image_volumes = image_volumes::hold(rooms, id, record, &dir.join("empty"))?;
    let (scope, group) = timelines.timed_here(id.as_str(), "make cgroup", || {
        let scope = systemd::begin(&rooms.cgroups, &record.cgroup_path, rooms.launcher.program.path())?;
        let group = rooms.cgroups.create(&record.cgroup_path, &resources::limits(&config, &options))?;
        Ok((scope, group))
    })?;
    fault::point("container.grouped");
    let pin = |kind: &str| {
        let path = places.pin(pod_id, kind);
        path.exists().then_some(path)
    };
    let shares_ipc = oci::modes(&sandbox).ipc() != cri::NamespaceMode::Node;
    let security = config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    let pid_mode = security.and_then(|security| security.namespace_options.clone()).unwrap_or_default().pid();
    let pod_dir = places.pod_dir(pod_id);
    let place = oci::Place {
        container_id: id.to_string(),
        dir,
        record_dir: directory,
        lowers: snapshot.lowers,
        upper,
        work,
        volatile: !record.keep_layer,
        pod_net: pin("net"),
        pod_ipc: pin("ipc"),
        pod_uts: pin("uts"),
        pod_pid: match pid_mode {
            cri::NamespaceMode::Pod => pin("pid"),
            cri::NamespaceMode::Target => target_pid,
            cri::NamespaceMode::Container | cri::NamespaceMode::Node => None,
        },
        pod_user: users.is_some().then(|| places.pin(pod_id, "user")),
        shm: Some(if shares_ipc { pod_dir.join("shm") } else { "/dev/shm".into() }),
        resolv_conf: Some(pod_dir.join("resolv.conf")),
        hosts: Some(pod_dir.join("hosts")),
        hostname_file: Some(pod_dir.join("hostname")),
        cgroup_path: record.cgroup_path.clone(),
        cgroup: plan_of(&group, Vec::new()),
        log,
        seccomp_profile: seccomp_profile(security)?,
        image_volumes,
        apparmor: apparmor::profile(&oci::apparmor(security.unwrap_or(&Default::default()))?)?,
        cdi: cdi::edits(&rooms.config.cdi_dirs, &config)?,
    };
    let host = host(rooms, &config)?;
    let request = oci::Request {
        config: &config,
        sandbox: &sandbox,
        image: &image.config,
        host: &host,
        place: &place,
        options: &options,
    };
    let spec = oci::spec(&request)?;
    if let Some(label) = spec.linux().as_ref().and_then(|linux| linux.mount_label().as_deref()) {
        relabel::relabel(&config.mounts, label)?;
    }
    let mut plan = oci::compile(&spec, &request)?;
    match rooms.handlers.get(&pod_record.handler)? {
        // It reads the device rules in its spec, and holds the container to them itself.
        Handler::Runtime { program, args, .. } => {
            let runtime = oci::by_runtime(&spec, &request, program)?;
            plan.runtime = Some(launch::Runtime { args: args.clone(), ..runtime });
            plan.needs = berth_launch::needs::container(&plan);
        }
        Handler::BuiltIn => plan = held_to_devices(&group, &spec, plan)?,
    }
    let health = match &options.health {
        Some(asked) => oci::health(asked, &rooms.images.configuration(&image.id)?)?,
        None => None,
    };
    if let Some(check) = &health {
        let env = plan.process.as_ref().map(|process| process.env.as_slice()).unwrap_or_default();
        plan.health = Some(oci::health_plan(check, &oci::Document::of(spec.clone())?, env)?);
        plan.needs = berth_launch::needs::container(&plan);
    }
    Ok(Prepared { plan, spec, health, scope })
}

/// What a shim is to do, and what is kept of it.
struct Prepared {
    plan: launch::ContainerPlan,
    spec: Spec,
    health: Option<berth_cri::berth::HealthCheck>,
    scope: Option<systemd::Scope>,
}

/// The plan with the program, if it takes one, for the spec's device rules to hold in the group.
fn held_to_devices(
    group: &cgroup::Group,
    spec: &Spec,
    plan: launch::ContainerPlan,
) -> Result<launch::ContainerPlan> {
    let resources = spec.linux().as_ref().and_then(|linux| linux.resources().clone()).unwrap_or_default();
    let rules = cgroup::DeviceRules::of(resources.devices().as_deref().unwrap_or_default())?;
    let plan = launch::ContainerPlan { cgroup: Some(plan_of(group, group.allow_devices(&rules)?)), ..plan };
    Ok(launch::ContainerPlan { needs: berth_launch::needs::container(&plan), ..plan })
}

/// Changes a container's resources in its cgroup, all or nothing, and in its record. Blocks.
pub fn update(
    rooms: &Rooms,
    places: &Places,
    id: &ContainerId,
    record: &ContainerRecord,
    update: &cri::LinuxContainerResources,
) -> Result<ContainerRecord> {
    let mut record = record.clone();
    let linux = record.config.get_or_insert_default().linux.get_or_insert_default();
    let before = linux.resources.clone().unwrap_or_default();
    linux.resources = Some(resources::merged(&before, update));
    let group = rooms.cgroups.group(&record.cgroup_path);
    let asked = resources::of(update);
    group.update(&asked).inspect_err(|_| {
        // What could be changed before is changed back; the failure that stopped us is the one to tell.
        if let Err(error) = group.update(&resources::back(&resources::of(&before), &asked)) {
            tracing::warn!(container = %id, error = error.chain(), "a refused update is not wholly taken back");
        }
    })?;
    record::write(&places.container_record(id), &record)?;
    Ok(record)
}

/// Takes all of it away; absent parts are success. Goes on after an error; gives the first.
pub async fn remove(
    rooms: &Rooms,
    places: &Places,
    id: &ContainerId,
    record: &ContainerRecord,
) -> Result<()> {
    let (rooms, id, record) = (rooms.clone(), id.clone(), record.clone());
    let (dir, directory) = (places.container_dir(&id), places.container_record(&id));
    blocking("remove container", move || {
        let emptied = clear_cgroup(&rooms, &record.cgroup_path)
            .and_then(|()| systemd::end(&rooms.cgroups.group(&record.cgroup_path)));
        fault::point("container.emptied");
        let first = place::unmount_all(&dir).and_then(|()| place::remove(&dir));
        let released = rooms.images.release(id.as_str());
        let released = released.and(image_volumes::release(&rooms, &id, &record));
        fault::point("container.released");
        // The record goes last: as long as there is something, there is somebody who knows of it.
        let gone = emptied.and(first).and(released);
        match gone {
            Ok(()) => place::remove(&directory),
            Err(error) => Err(error),
        }
    })
    .await
}

/// Kills what may still run and removes the cgroup. Blocks.
pub fn clear_cgroup(rooms: &Rooms, path: &str) -> Result<()> {
    if path.is_empty() {
        return Ok(());
    }
    let group = rooms.cgroups.group(path);
    let killed = match group.is_empty() {
        true => Ok(()),
        false => group.kill(),
    };
    killed.and(group.remove())
}

/// The cgroup as plans carry it, with the device program that it is to get.
pub fn plan_of(group: &cgroup::Group, device_program: Vec<u8>) -> launch::Cgroup {
    let text = |path: &PathBuf| path.to_string_lossy().into_owned();
    launch::Cgroup {
        v2: group.v2.as_ref().map(text).unwrap_or_default(),
        v1: group.v1.iter().map(text).collect(),
        device_program,
    }
}

/// By the id that was resolved when the container was created, else as the client wrote it.
pub fn find_image(rooms: &Rooms, name: &str) -> Result<Image> {
    rooms
        .images
        .find(name)
        .ok_or_else(|| Error::not_found("find image", name).hint(format!("pull it first: berth pull {name}")))
}

/// A Localhost profile is a file of the node, named absolutely by the kubelet.
fn seccomp_profile(security: Option<&cri::LinuxContainerSecurityContext>) -> Result<Option<String>> {
    let Some(profile) = security.and_then(|security| security.seccomp.as_ref()) else { return Ok(None) };
    if profile.profile_type() != cri::security_profile::ProfileType::Localhost {
        return Ok(None);
    }
    let path = profile.localhost_ref.strip_prefix("localhost/").unwrap_or(&profile.localhost_ref);
    if !path.starts_with('/') {
        return Err(Error::invalid("read seccomp profile", path, "its path is not absolute"));
    }
    std::fs::read_to_string(path)
        .map(Some)
        .map_err(|error| Error::new(Kind::Invalid, "read seccomp profile", path).because(error))
}

/// What of this host matters to the spec; its devices only where they are asked for.
fn host(rooms: &Rooms, config: &cri::ContainerConfig) -> Result<oci::Host> {
    let last = std::fs::read_to_string("/proc/sys/kernel/cap_last_cap")
        .map_err(|error| Error::io("read", "/proc/sys/kernel/cap_last_cap", error))?;
    let privileged = config
        .linux
        .as_ref()
        .and_then(|linux| linux.security_context.as_ref())
        .is_some_and(|security| security.privileged);
    let mut devices = Vec::new();
    if privileged || !config.devices.is_empty() {
        collect_devices(Path::new("/dev"), &mut devices);
    }
    let held = held_capabilities();
    Ok(oci::Host {
        cgroup_v2: rooms.cgroups.mode == cgroup::Mode::V2,
        counts_huge_pages: rooms.cgroups.counts_huge_pages,
        last_capability: last.trim().parse().unwrap_or(40),
        selinux: Path::new("/sys/fs/selinux/enforce").exists(),
        lowest_oom_score: lowest_oom_score(held),
        held_capabilities: held,
        devices,
    })
}

/// What this process may, `proc_pid_status(5)`.
pub fn held_capabilities() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let held = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(held.trim(), 16).ok()
}

/// Where CAP_SYS_RESOURCE (bit 24) is missing a score can't be lowered. `proc_pid_oom_score_adj(5)`.
fn lowest_oom_score(held: Option<u64>) -> Option<i32> {
    held.filter(|held| held & 1 << 24 == 0)?;
    std::fs::read_to_string("/proc/self/oom_score_adj").ok()?.trim().parse().ok()
}

/// Character and block devices below /dev, but terminals and what containers have of their own.
fn collect_devices(directory: &Path, found: &mut Vec<(PathBuf, char, u32, u32, u32)>) {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    const OWN: [&str; 6] = ["pts", "shm", "fd", "mqueue", ".lxc", ".udev"];
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        let Ok(metadata) = entry.metadata() else { continue };
        let kind = metadata.file_type();
        if kind.is_dir() && !OWN.iter().any(|own| name == *own) {
            collect_devices(&path, found);
        } else if (kind.is_char_device() || kind.is_block_device()) && name != "console" {
            let letter = if kind.is_block_device() { 'b' } else { 'c' };
            let number = metadata.rdev();
            let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
            found.push((path, letter, major, minor, metadata.mode() & 0o7777));
        }
    }
}

/// The record of a container that is to be made.
pub fn record(
    rooms: &Rooms,
    pod: &Pod<'_>,
    id: &ContainerId,
    request: &super::CreateContainer,
    image: &Image,
    volume_images: Vec<String>,
) -> Result<ContainerRecord> {
    let sandbox = pod.record.config.clone().unwrap_or_default();
    let log = match (sandbox.log_directory.as_str(), request.config.log_path.as_str()) {
        ("", _) | (_, "") => String::new(),
        (directory, path) => Path::new(directory).join(path).to_string_lossy().into_owned(),
    };
    Ok(ContainerRecord {
        version: record::VERSION,
        id: id.to_string(),
        pod: pod.id.to_string(),
        config: Some(request.config.clone()),
        options: Some(record::OptionsRecord::from(&request.options)),
        keep_layer: request.keep_layer,
        standalone: request.standalone.clone(),
        image_id: image.id.clone(),
        cgroup_path: sandbox::cgroup_path(&sandbox, rooms, id.as_str())?,
        log,
        phase: Phase::Making.into(),
        volume_images,
        ..ContainerRecord::default()
    })
}

/// An exit that nobody saw.
pub fn unseen(record: &ContainerRecord, why: &str) -> launch::Exit {
    launch::Exit {
        version: berth_launch::VERSION,
        id: record.id.clone(),
        finished_at: clock::now(),
        exit_code: 137,
        signal: 9,
        message: why.to_owned(),
        ..launch::Exit::default()
    }
}
