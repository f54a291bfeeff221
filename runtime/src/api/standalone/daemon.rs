//! The daemon itself: which it is, where its things are, what this host lacks.

use berth_cri::berth::{self as api, daemon_server::Daemon};
use tonic::Request;
use tracing::info_span;

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use super::{Answer, doctor, explain};
use crate::{
    Error, Kind, Result,
    api::{Door, VERSION, status::call},
    cgroup::Mode,
    image::{self, Share},
    pod::ContainerState,
};

/// For all containers together.
const WALK_WITHIN: Duration = Duration::from_secs(30);

/// Given by whoever builds a release; else empty.
const COMMIT: Option<&str> = option_env!("BERTH_COMMIT");

#[tonic::async_trait]
impl Daemon for Door {
    async fn version(&self, _: Request<api::VersionRequest>) -> Answer<api::VersionResponse> {
        let version = api::VersionResponse {
            version: VERSION.into(),
            commit: COMMIT.unwrap_or_default().into(),
            cri: "v1".into(),
        };
        call(info_span!("rpc", op = "Daemon.Version"), async { Ok(version) }).await
    }

    async fn info(&self, _: Request<api::InfoRequest>) -> Answer<api::InfoResponse> {
        call(info_span!("rpc", op = "Daemon.Info"), async { Ok(info(self).await) }).await
    }

    async fn explain(&self, request: Request<api::ExplainRequest>) -> Answer<api::ExplainResponse> {
        let asked = request.into_inner();
        call(info_span!("rpc", op = "Daemon.Explain"), async { explain::explain(self, &asked) }).await
    }

    async fn doctor(&self, request: Request<api::DoctorRequest>) -> Answer<api::DoctorResponse> {
        let asked = request.into_inner();
        call(info_span!("rpc", op = "Daemon.Doctor"), doctor::doctor(self, &asked)).await
    }

    async fn disk_usage(&self, _: Request<api::DiskUsageRequest>) -> Answer<api::DiskUsageResponse> {
        call(info_span!("rpc", op = "Daemon.DiskUsage"), disk_usage(self)).await
    }
}

async fn disk_usage(door: &Door) -> Result<api::DiskUsageResponse> {
    let (images, downloads) = door.images.shares().await?;
    let listed = door.pods.list();
    let containers: Vec<(bool, PathBuf)> = listed
        .iter()
        .flat_map(|pod| &pod.containers)
        .map(|container| (container.state == ContainerState::Running, container.upper.clone()))
        .collect();
    let walked = tokio::task::spawn_blocking(move || written(&containers)).await;
    let containers =
        walked.map_err(|error| Error::new(Kind::Internal, "measure", "containers").because(error))??;
    let row = |kind: &str, share: Share| api::DiskUsageRow {
        r#type: kind.into(),
        total: share.total,
        active: share.active,
        bytes: share.bytes,
        reclaimable_bytes: share.reclaimable_bytes,
    };
    Ok(api::DiskUsageResponse {
        rows: vec![row("images", images), row("containers", containers), row("downloads", downloads)],
    })
}

/// What containers have written. Whoever asks waits for the disk, but not for ever.
fn written(containers: &[(bool, PathBuf)]) -> Result<Share> {
    let until = Instant::now() + WALK_WITHIN;
    let mut share = Share { total: containers.len() as u64, ..Share::default() };
    for (running, upper) in containers {
        share.active += u64::from(*running);
        // Removed since it was listed.
        if !upper.exists() {
            continue;
        }
        let used = image::walk(upper, until)?;
        share.bytes += used.bytes;
        share.reclaimable_bytes += if *running { 0 } else { used.bytes };
    }
    Ok(share)
}

async fn info(door: &Door) -> api::InfoResponse {
    let listed = door.pods.list();
    let containers = || listed.iter().flat_map(|pod| &pod.containers);
    let daemon = &door.config.daemon;
    let network = &door.rooms.network;
    let unready = network.ready().await.err().map(|cause| format!("the network is not ready: {cause}"));
    let handlers = network.unready_handlers().await.into_iter();
    let handlers =
        handlers.map(|(name, cause)| format!("pods of the handler {name} get no network: {cause}"));
    let warnings = unready.into_iter().chain(handlers).chain(network.troubles());
    api::InfoResponse {
        version: VERSION.into(),
        root: daemon.root.display().to_string(),
        state: daemon.state.display().to_string(),
        cgroup: match door.rooms.cgroups.mode {
            Mode::V1 => "v1".into(),
            Mode::V2 => "v2".into(),
            Mode::Hybrid => "hybrid".into(),
        },
        cgroup_driver: daemon.cgroup_driver.word().into(),
        kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
        pods: count(listed.iter()),
        containers: count(containers()),
        running: count(containers().filter(|container| container.state == ContainerState::Running)),
        images: count(door.images.list().iter()),
        network: network.describe().await,
        warnings: warnings.collect(),
        listen: daemon.listen.clone(),
    }
}

fn count(things: impl Iterator) -> u32 {
    u32::try_from(things.count()).unwrap_or(u32::MAX)
}
