//! A pod's own things: addresses, files, namespaces. Made in order, each undone by `take_down`, which takes back
//! whatever part there is and may be called at any time.

use std::net::IpAddr;

use berth_cri::v1::{self as cri, NamespaceMode};
use berth_launch::{fault, v1 as launch};

use super::{
    Client, Handler, Handlers, Rooms, RunPod, asks, blocking, clock,
    doing::noted,
    place::{self, Places},
    ports::host_ports,
    record::{self, Phase, PodRecord},
    told, wish,
};
use crate::{
    Error, Result,
    cgroup::{Driver, systemd},
    config::CgroupDriver,
    id::PodId,
    net::{Attachment, Choice, Wish},
    oci,
};

/// A step, which writes leases.
const TAKE: &str = "take addresses";

/// The pod's cgroup, where its reaper lives; its containers' are beside it.
///
/// # Errors
/// `Invalid` where its parent can be no slice of systemd's.
pub fn cgroup_path(config: &cri::PodSandboxConfig, rooms: &Rooms, id: &str) -> Result<String> {
    let parent = config.linux.as_ref().map(|linux| linux.cgroup_parent.as_str()).unwrap_or_default();
    let parent = if parent.is_empty() { rooms.config.cgroup_parent.as_str() } else { parent };
    driver(rooms).path(parent, id)
}

pub fn driver(rooms: &Rooms) -> Driver {
    match rooms.config.cgroup_driver {
        CgroupDriver::Cgroupfs => Driver::Cgroupfs,
        CgroupDriver::Systemd => Driver::Systemd,
    }
}

/// Makes all of it; after an error nothing is left but the record, which the caller removes.
pub async fn make(rooms: &Rooms, places: &Places, id: &PodId, record: &mut PodRecord) -> Result<Vec<IpAddr>> {
    let made = try_make(rooms, places, id, record).await;
    if made.is_err()
        && let Err(error) = take_back(rooms, places, id, record).await
    {
        // The caller hears of the first failure; this one is only here.
        tracing::warn!(pod = %id, error = error.chain(), "a failed pod is not wholly taken back; the next start sweeps it");
    }
    made
}

async fn try_make(rooms: &Rooms, places: &Places, id: &PodId, record: &mut PodRecord) -> Result<Vec<IpAddr>> {
    let config = record.config.clone().unwrap_or_default();
    let network = oci::modes(&config).network();
    let loopback_only = record.by() == Client::Standalone && network == NamespaceMode::Container;
    let path = cgroup_path(&config, rooms, id.as_str())?;
    record.cgroup_path.clone_from(&path);
    let wish = wish::of(&config, &path)?;
    let timelines = &rooms.timelines;
    let choice = match record.by() {
        Client::Cri => Choice::Configured { handler: &record.handler },
        Client::Standalone => Choice::BuiltIn(wish::network(&config)),
    };
    let attachment = match network {
        NamespaceMode::Node => None,
        _ if loopback_only => None,
        _ => Some(
            timelines.timed(id.as_str(), TAKE, noted(TAKE, rooms.network.attach(id, choice, &wish))).await?,
        ),
    };
    fault::point("pod.attached");
    let (link, dns) = match &attachment {
        Some(Attachment::Bridge { link, dns, .. }) => (Some((**link).clone()), dns.clone()),
        Some(Attachment::Plugins { .. }) | None => (None, None),
    };
    let own_network = network != NamespaceMode::Node;
    let shares_pid = oci::modes(&config).pid() == NamespaceMode::Pod;
    let (dir, cgroups, shim) = (places.pod_dir(id), rooms.cgroups.clone(), rooms.launcher.program.clone());
    let (cgroup, scope) = blocking("make pod", move || {
        place::make(&dir)?;
        match shares_pid {
            true => {
                let scope = systemd::begin(&cgroups, &path, shim.path())?;
                let group = cgroups.create(&path, &Default::default())?;
                // It opens nothing; who takes it over in a shared PID namespace is to have no more than a container.
                let program = group.allow_devices(&Default::default())?;
                Ok((super::container::plan_of(&group, program), scope))
            }
            false => Ok((launch::Cgroup::default(), None)),
        }
    })
    .await?;
    let owner = oci::users_of_pod(&config)?.map(|users| users.root());
    let plan = oci::sandbox_plan(&config, id.as_str(), places.pod_dir(id), link, cgroup)?;
    let made = timelines.timed(id.as_str(), "make namespaces", rooms.launcher.sandbox(&plan)).await;
    let ready = made.map_err(told)?;
    // From here on the reaper keeps it.
    drop(scope);
    fault::point("pod.pinned");
    let ips = match attachment {
        Some(attachment) => {
            let netns = places.pin(id, "net");
            let plugged = rooms.network.plug(id, attachment, &netns, &wish);
            timelines.timed(id.as_str(), "connect network", plugged).await?
        }
        None => Vec::new(),
    };
    let (dir, addresses) = (places.pod_dir(id), ips.clone());
    let config = wish::with_dns(config, dns);
    let written = blocking("write files of pod", move || {
        place::write_files(&dir, &config, own_network, &addresses)?;
        owner.map_or(Ok(()), |owner| place::give_files(&dir, owner))
    });
    timelines.timed(id.as_str(), "write files", written).await?;
    record.ips = ips.iter().map(ToString::to_string).collect();
    (record.reaper_pid, record.reaper_start_time) = (ready.pid, ready.pid_start_time);
    record.boot_id = clock::boot_id();
    Ok(ips)
}

/// Takes the ports of the node again that a person's container let go when it ended.
pub async fn take_ports(rooms: &Rooms, id: &PodId, config: &cri::PodSandboxConfig) -> Result<()> {
    let ports = host_ports(config)?;
    match ports.is_empty() {
        true => Ok(()),
        false => {
            let wish = Wish { ports, ..Wish::default() };
            noted(TAKE, rooms.network.attach(id, Choice::BuiltIn(wish::network(config)), &wish))
                .await
                .map(drop)
        }
    }
}

/// Takes the pod's namespaces, its reaper and its addresses back. Where a network plugin can't undo its part, all is
/// left for the next call, which the client makes; else it goes on after an error and gives the first.
pub async fn take_down(rooms: &Rooms, places: &Places, id: &PodId, record: &PodRecord) -> Result<()> {
    let timelines = &rooms.timelines;
    let killed = timelines.timed(id.as_str(), "end reaper", end_reaper(rooms, id, record)).await;
    timelines.timed(id.as_str(), "disconnect network", rooms.network.unplug(id)).await?;
    killed.and(timelines.timed(id.as_str(), "let namespaces go", let_go(rooms, places, id)).await)
}

/// The same for a pod that nobody has: what plugins can't undo now is their affair, in the background.
pub async fn take_back(rooms: &Rooms, places: &Places, id: &PodId, record: &PodRecord) -> Result<()> {
    let killed = end_reaper(rooms, id, record).await;
    if let Err(error) = rooms.network.unplug(id).await {
        tracing::warn!(pod = %id, error = error.chain(), "the network of a pod that is gone is not undone; it is tried again");
    }
    killed.and(let_go(rooms, places, id).await)
}

/// Takes a pod that nobody has away, to the last of its files.
pub async fn remove(rooms: &Rooms, places: &Places, id: &PodId, record: &PodRecord) -> Result<()> {
    take_back(rooms, places, id, record).await?;
    let (dir, directory) = (places.pod_dir(id), places.pod_record(id));
    blocking("remove pod", move || place::remove(&dir).and(place::remove(&directory))).await
}

/// Lets the pinned namespaces go, and then what the bridge holds for them.
pub async fn let_go(rooms: &Rooms, places: &Places, id: &PodId) -> Result<()> {
    let dir = places.pod_dir(id);
    let unpinned = blocking("unpin", move || place::unpin(&dir)).await;
    unpinned.and(noted("let addresses go", rooms.network.release(id)).await)
}

/// The reaper holds every namespace of the pod open.
async fn end_reaper(rooms: &Rooms, id: &PodId, record: &PodRecord) -> Result<()> {
    let config = record.config.clone().unwrap_or_default();
    if oci::modes(&config).pid() != NamespaceMode::Pod {
        return Ok(());
    }
    let path = match record.cgroup_path.as_str() {
        "" => cgroup_path(&config, rooms, id.as_str())?,
        path => path.to_owned(),
    };
    let cgroups = rooms.cgroups.clone();
    blocking("end reaper", move || {
        let group = cgroups.group(&path);
        group.kill().and_then(|()| group.remove())?;
        systemd::end(&group)
    })
    .await
}

/// Writes how far the pod has come.
pub async fn note(places: &Places, id: &PodId, record: &mut PodRecord, phase: Phase) -> Result<()> {
    record.set_phase(phase);
    let (directory, record) = (places.pod_record(id), record.clone());
    blocking("record pod", move || record::write(&directory, &record)).await
}

/// Refuses annotations that say nothing, a handler that is not there, and what an OCI runtime of the host does not do for us.
pub fn check(handlers: &Handlers, request: &RunPod) -> Result<()> {
    asks::check(&request.config)?;
    match (handlers.get(&request.handler)?, oci::users_of_pod(&request.config)?) {
        (Handler::Runtime { .. }, Some(_)) => Err(Error::invalid(
            "run pod",
            "config.linux.security_context.namespace_options.userns_options",
            format!("the handler {:?} has no user namespaces", request.handler),
        )
        .hint("leave the pod's RuntimeClass out, or its hostUsers: false")),
        (Handler::Runtime { .. } | Handler::BuiltIn, _) => Ok(()),
    }
}
