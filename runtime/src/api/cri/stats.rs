//! ContainerStats and ListContainerStats: the meter's numbers in CRI's messages.

use berth_cri::v1 as cri;
use futures_util::future::join_all;
use tracing::debug;

use super::labelled;
use crate::{
    Kind, Result,
    api::{Door, find, now},
    pod::{Client, ContainerState, ContainerView, Stats},
};

impl Door {
    pub(super) async fn stats_of(&self, text: &str) -> Result<cri::ContainerStatsResponse> {
        let container = find::container(&self.pods, text)?;
        let stats = self.pods.stats(&container.id).await?;
        Ok(cri::ContainerStatsResponse { stats: Some(message(&container, &stats, now())) })
    }

    /// Of those that run: a container that ends meanwhile is left out, not an error.
    pub(super) async fn list_stats(
        &self,
        filter: cri::ContainerStatsFilter,
    ) -> Result<cri::ListContainerStatsResponse> {
        let listed = self.pods.list();
        let containers = listed.iter().flat_map(|pod| &pod.containers);
        let wanted: Vec<_> = containers.filter(|container| passes(container, &filter)).collect();
        let samples = join_all(wanted.iter().map(|container| self.pods.stats(&container.id))).await;
        let mut stats = Vec::with_capacity(wanted.len());
        for (container, sample) in wanted.into_iter().zip(samples) {
            match sample {
                Ok(sample) => stats.push(message(container, &sample, now())),
                Err(error) if matches!(error.kind, Kind::NotFound | Kind::Precondition) => {
                    debug!(container = %container.id, "ended while it was measured");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(cri::ListContainerStatsResponse { stats })
    }
}

fn passes(container: &ContainerView, filter: &cri::ContainerStatsFilter) -> bool {
    container.client == Client::Cri
        && container.state == ContainerState::Running
        && container.id.as_str().starts_with(&filter.id)
        && container.pod.as_str().starts_with(&filter.pod_sandbox_id)
        && labelled(&container.config.labels, &filter.label_selector)
}

fn message(container: &ContainerView, stats: &Stats, timestamp: i64) -> cri::ContainerStats {
    let value = |value: u64| Some(cri::UInt64Value { value });
    let available = |limit: u64| limit.saturating_sub(stats.memory_working_set_bytes);
    cri::ContainerStats {
        attributes: Some(cri::ContainerAttributes {
            id: container.id.to_string(),
            metadata: container.config.metadata.clone(),
            labels: container.config.labels.clone(),
            annotations: container.config.annotations.clone(),
        }),
        cpu: Some(cri::CpuUsage {
            timestamp,
            usage_core_nano_seconds: value(stats.cpu_usage_ns),
            usage_nano_cores: None,
            psi: None,
        }),
        memory: Some(cri::MemoryUsage {
            timestamp,
            working_set_bytes: value(stats.memory_working_set_bytes),
            available_bytes: stats.memory_limit_bytes.and_then(|limit| value(available(limit))),
            usage_bytes: value(stats.memory_usage_bytes),
            rss_bytes: value(stats.memory_rss_bytes),
            page_faults: value(stats.page_faults),
            major_page_faults: value(stats.major_page_faults),
            psi: None,
        }),
        writable_layer: None,
        swap: stats.swap_usage_bytes.map(|bytes| cri::SwapUsage {
            timestamp,
            swap_available_bytes: None,
            swap_usage_bytes: value(bytes),
        }),
        io: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::cri::view;

    #[test]
    fn what_is_available_is_the_limit_less_the_working_set() {
        let container = view::tests::container();
        let mut stats = Stats { memory_working_set_bytes: 30, ..Stats::default() };
        let available = |stats: &Stats| message(&container, stats, 1).memory.unwrap().available_bytes;
        assert_eq!(available(&stats), None);
        stats.memory_limit_bytes = Some(100);
        assert_eq!(available(&stats).unwrap().value, 70);
        stats.memory_limit_bytes = Some(10);
        assert_eq!(available(&stats).unwrap().value, 0);
    }
}
