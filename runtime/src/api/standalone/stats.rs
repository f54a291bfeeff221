//! Stats: a sample of each container asked for, again every second where they are followed.

use std::time::Duration;

use berth_cri::berth as api;
use futures_util::future::join_all;
use tokio::{sync::mpsc, time::MissedTickBehavior};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tracing::debug;

use super::{BACKLOG, Flow};
use crate::{
    Error, Kind, Result,
    api::{Door, find, now, status},
    error::Cause,
    id::ContainerId,
    pod::{Client, ContainerState, ContainerView, Stats},
};

const PERIOD: Duration = Duration::from_secs(1);

/// Whose samples: those named, resolved once; or whatever runs at the time.
enum Whose {
    Named(Vec<ContainerId>),
    AllRunning,
}

pub(super) async fn stats(door: &Door, request: api::StatsRequest) -> Result<Flow<api::StatsResponse>> {
    let whose = whose(door, &request.containers)?;
    let first = sample(door, &whose).await?;
    let (sender, receiver) = mpsc::channel(BACKLOG);
    // Fits: the channel is empty.
    sender.try_send(Ok(first)).ok();
    if request.follow {
        tokio::spawn(follow(door.clone(), whose, sender));
    }
    Ok(Box::pin(ReceiverStream::new(receiver)))
}

async fn follow(door: Door, whose: Whose, sender: mpsc::Sender<Result<api::StatsResponse, Status>>) {
    let mut clock = tokio::time::interval(PERIOD);
    clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The first tick is at once; that sample is sent.
    clock.tick().await;
    loop {
        tokio::select! {
            _ = clock.tick() => {}
            () = sender.closed() => return,
        }
        let sampled = sample(&door, &whose).await;
        // Those named have all ended: there is nothing to come.
        let over = matches!((&whose, &sampled), (Whose::Named(_), Ok(sampled)) if sampled.stats.is_empty());
        let failed = sampled.is_err();
        let sent = sender.send(sampled.map_err(|error| status::told(&error))).await;
        if over || failed || sent.is_err() {
            return;
        }
    }
}

fn whose(door: &Door, names: &[String]) -> Result<Whose> {
    if names.is_empty() {
        return Ok(Whose::AllRunning);
    }
    let mut ids = Vec::new();
    for name in names {
        let container = find::any_container(&door.pods, name)?;
        if container.state != ContainerState::Running {
            return Err(Error::new(Kind::Precondition, "measure container", name)
                .because(Cause("it does not run".into())));
        }
        ids.push(container.id);
    }
    Ok(Whose::Named(ids))
}

/// One sample of each that runs: a container that ends meanwhile is left out, not an error.
async fn sample(door: &Door, whose: &Whose) -> Result<api::StatsResponse> {
    let containers: Vec<ContainerView> = match whose {
        Whose::Named(ids) => ids.iter().filter_map(|id| door.pods.container(id)).collect(),
        Whose::AllRunning => {
            let listed = door.pods.list();
            let all = listed.iter().flat_map(|pod| &pod.containers);
            all.filter(|container| container.client == Client::Standalone).cloned().collect()
        }
    };
    let running: Vec<_> =
        containers.into_iter().filter(|container| container.state == ContainerState::Running).collect();
    let samples = join_all(running.iter().map(|container| door.pods.stats(&container.id))).await;
    let mut stats = Vec::with_capacity(running.len());
    for (container, sample) in running.iter().zip(samples) {
        match sample {
            Ok(sample) => {
                let links = door.rooms.network.stats(&container.pod).await;
                let rx_bytes = links.iter().map(|link| link.rx_bytes).sum();
                let tx_bytes = links.iter().map(|link| link.tx_bytes).sum();
                stats.push(api::Stats { rx_bytes, tx_bytes, ..message(container, &sample) });
            }
            Err(error) if matches!(error.kind, Kind::NotFound | Kind::Precondition) => {
                debug!(container = %container.id, "ended while it was measured");
            }
            Err(error) => return Err(error),
        }
    }
    Ok(api::StatsResponse { stats })
}

fn message(container: &ContainerView, stats: &Stats) -> api::Stats {
    let metadata = container.config.metadata.as_ref();
    let name = find::name(container).or_else(|| metadata.map(|metadata| metadata.name.as_str()));
    api::Stats {
        id: container.id.to_string(),
        name: name.unwrap_or_default().to_owned(),
        at: now(),
        cpu_ns: stats.cpu_usage_ns,
        // Without the page cache that the kernel takes back when it must: what people mean by use.
        memory_bytes: stats.memory_working_set_bytes,
        memory_limit_bytes: stats.memory_limit_bytes.unwrap_or(0),
        pids: stats.pids,
        rx_bytes: 0,
        tx_bytes: 0,
        read_bytes: stats.read_bytes,
        write_bytes: stats.write_bytes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::standalone::list;

    #[test]
    fn a_sample_is_named_and_no_limit_is_zero() {
        let container = list::tests::container();
        let meter = Stats { cpu_usage_ns: 7, memory_working_set_bytes: 30, pids: 2, ..Stats::default() };
        let told = message(&container, &meter);
        assert_eq!((told.name.as_str(), told.cpu_ns, told.memory_bytes, told.pids), ("web", 7, 30, 2));
        assert_eq!(told.memory_limit_bytes, 0);
        let limited = Stats { memory_limit_bytes: Some(64), ..meter };
        assert_eq!(message(&container, &limited).memory_limit_bytes, 64);
    }
}
