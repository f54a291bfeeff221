//! ContainerStats, PodSandboxStats and their lists: the meter's numbers in CRI's messages.

use std::{collections::HashMap, sync::Arc};

use berth_cri::v1 as cri;
use futures_util::future::{join_all, try_join_all};
use tracing::debug;

use super::{
    labelled,
    layers::{self, Layer},
};
use crate::{
    Kind, Result,
    api::{Door, find, now},
    cgroup::{Pressure, Stall, systemd},
    net::LinkStats,
    pod::{Client, ContainerState, ContainerView, PodState, PodView, Stats},
};

/// What a look at something gave.
struct Sample {
    at: i64,
    stats: Stats,
    nano_cores: Option<u64>,
}

impl Door {
    pub(super) async fn stats_of(&self, text: &str) -> Result<cri::ContainerStatsResponse> {
        let container = find::container(&self.pods, text)?;
        let sample = self.sample(container.id.as_str(), self.pods.stats(&container.id).await?);
        let layer = self.layers.of(&container.id);
        Ok(cri::ContainerStatsResponse { stats: Some(message(&container, &sample, layer)) })
    }

    /// Of those that run: a container that ends meanwhile is left out, not an error.
    pub(super) async fn list_stats(
        &self,
        filter: cri::ContainerStatsFilter,
    ) -> Result<cri::ListContainerStatsResponse> {
        let listed = self.pods.list();
        let containers = listed.iter().flat_map(|pod| &pod.containers);
        let wanted = containers.filter(|container| passes(container, &filter)).collect();
        let measured = self.measured(wanted).await?;
        let stats = measured
            .iter()
            .map(|(container, sample)| message(container, sample, self.layers.of(&container.id)));
        Ok(cri::ListContainerStatsResponse { stats: stats.collect() })
    }

    pub(super) async fn pod_stats_of(&self, text: &str) -> Result<cri::PodSandboxStatsResponse> {
        let pod = find::pod(&self.pods, text)?;
        let listed = self.pods.list();
        let stats = self.pod_stats(&pod, &Parents::of(&listed)).await?;
        Ok(cri::PodSandboxStatsResponse { stats: Some(stats) })
    }

    /// Of those that are ready; nothing runs in the others.
    pub(super) async fn list_pod_stats(
        &self,
        filter: &cri::PodSandboxStatsFilter,
    ) -> Result<Vec<cri::PodSandboxStats>> {
        let listed = self.pods.list();
        let parents = Parents::of(&listed);
        let wanted = listed.iter().filter(|pod| pod_passes(pod, filter));
        try_join_all(wanted.map(|pod| self.pod_stats(pod, &parents))).await
    }

    async fn pod_stats(&self, pod: &PodView, parents: &Parents<'_>) -> Result<cri::PodSandboxStats> {
        let running = pod.containers.iter().filter(|one| one.state == ContainerState::Running).collect();
        let containers = self.measured(running).await?;
        let whole = match parents.own_group(pod) {
            Some(path) => self.group_stats(path).await?,
            None => None,
        };
        let whole = whole.unwrap_or_else(|| sum(containers.iter().map(|(_, sample)| &sample.stats)));
        let sample = self.sample(pod.id.as_str(), whole);
        let links = self.rooms.network.stats(&pod.id).await;
        let containers = containers
            .iter()
            .map(|(container, sample)| message(container, sample, self.layers.of(&container.id)));
        Ok(pod_message(pod, &sample, links, containers.collect()))
    }

    async fn measured<'a>(&self, wanted: Vec<&'a ContainerView>) -> Result<Vec<(&'a ContainerView, Sample)>> {
        let samples = join_all(wanted.iter().map(|container| self.pods.stats(&container.id))).await;
        let mut measured = Vec::with_capacity(wanted.len());
        for (container, stats) in wanted.into_iter().zip(samples) {
            match stats {
                Ok(stats) => measured.push((container, self.sample(container.id.as_str(), stats))),
                Err(error) if matches!(error.kind, Kind::NotFound | Kind::Precondition) => {
                    debug!(container = %container.id, "ended while it was measured");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(measured)
    }

    fn sample(&self, id: &str, stats: Stats) -> Sample {
        let at = now();
        let nano_cores = self.rates.nano_cores(id, at, stats.cpu_usage_ns);
        Sample { at, stats, nano_cores }
    }

    async fn group_stats(&self, path: &str) -> Result<Option<Stats>> {
        match self.pods.measure(path).await {
            Ok(stats) => Ok(Some(stats)),
            Err(error) if error.kind == Kind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// How many pods were given each parent.
struct Parents<'a>(HashMap<&'a str, usize>);

impl<'a> Parents<'a> {
    fn of(pods: &'a [Arc<PodView>]) -> Self {
        let mut counted = HashMap::new();
        pods.iter()
            .filter_map(|pod| parent_given(pod))
            .for_each(|parent| *counted.entry(parent).or_default() += 1);
        Self(counted)
    }

    /// The pod's cgroup, where it has one to itself: a kubelet gives each pod its own, other clients share one. Only
    /// that one counts those that have ended too.
    fn own_group<'b>(&self, pod: &'b PodView) -> Option<&'b str> {
        let alone = self.0.get(parent_given(pod)?).is_none_or(|pods| *pods == 1);
        // The root of all is nobody's own.
        systemd::above(&pod.containers.first()?.cgroup_path).filter(|_| alone)
    }
}

fn passes(container: &ContainerView, filter: &cri::ContainerStatsFilter) -> bool {
    container.client == Client::Cri
        && container.state == ContainerState::Running
        && container.id.as_str().starts_with(&filter.id)
        && container.pod.as_str().starts_with(&filter.pod_sandbox_id)
        && labelled(&container.config.labels, &filter.label_selector)
}

fn pod_passes(pod: &PodView, filter: &cri::PodSandboxStatsFilter) -> bool {
    pod.client == Client::Cri
        && pod.state == PodState::Ready
        && pod.id.as_str().starts_with(&filter.id)
        && labelled(&pod.config.labels, &filter.label_selector)
}

fn parent_given(pod: &PodView) -> Option<&str> {
    pod.config.linux.as_ref().map(|linux| linux.cgroup_parent.as_str()).filter(|parent| !parent.is_empty())
}

/// Of all containers. A limit is the pod's only where each has one; pressure doesn't add up.
fn sum<'a>(all: impl Iterator<Item = &'a Stats>) -> Stats {
    let mut whole = Stats::default();
    let mut limits = Vec::new();
    for stats in all {
        whole.cpu_usage_ns += stats.cpu_usage_ns;
        whole.memory_usage_bytes += stats.memory_usage_bytes;
        whole.memory_working_set_bytes += stats.memory_working_set_bytes;
        whole.memory_rss_bytes += stats.memory_rss_bytes;
        whole.page_faults += stats.page_faults;
        whole.major_page_faults += stats.major_page_faults;
        whole.pids += stats.pids;
        whole.read_bytes += stats.read_bytes;
        whole.write_bytes += stats.write_bytes;
        limits.push(stats.memory_limit_bytes);
    }
    let limits: Option<Vec<u64>> = limits.into_iter().collect();
    whole.memory_limit_bytes = limits.filter(|limits| !limits.is_empty()).map(|limits| limits.iter().sum());
    whole
}

fn message(container: &ContainerView, sample: &Sample, layer: Option<Layer>) -> cri::ContainerStats {
    cri::ContainerStats {
        attributes: Some(cri::ContainerAttributes {
            id: container.id.to_string(),
            metadata: container.config.metadata.clone(),
            labels: container.config.labels.clone(),
            annotations: container.config.annotations.clone(),
        }),
        cpu: Some(cpu(sample)),
        memory: Some(memory(sample)),
        writable_layer: layer.map(layers::message),
        swap: sample.stats.swap_usage_bytes.map(|bytes| cri::SwapUsage {
            timestamp: sample.at,
            swap_available_bytes: sample
                .stats
                .swap_limit_bytes
                .and_then(|limit| value(limit.saturating_sub(bytes))),
            swap_usage_bytes: value(bytes),
        }),
        io: io(sample),
    }
}

fn pod_message(
    pod: &PodView,
    sample: &Sample,
    links: Vec<LinkStats>,
    containers: Vec<cri::ContainerStats>,
) -> cri::PodSandboxStats {
    let mut links = links.into_iter().map(|link| cri::NetworkInterfaceUsage {
        name: link.name,
        rx_bytes: value(link.rx_bytes),
        rx_errors: value(link.rx_errors),
        tx_bytes: value(link.tx_bytes),
        tx_errors: value(link.tx_errors),
    });
    // The default one is not among the others.
    let network = links.next().map(|first| cri::NetworkUsage {
        timestamp: sample.at,
        default_interface: Some(first),
        interfaces: links.collect(),
    });
    let linux = cri::LinuxPodSandboxStats {
        cpu: Some(cpu(sample)),
        memory: Some(memory(sample)),
        network,
        process: Some(cri::ProcessUsage { timestamp: sample.at, process_count: value(sample.stats.pids) }),
        containers,
        io: io(sample),
    };
    cri::PodSandboxStats {
        attributes: Some(cri::PodSandboxAttributes {
            id: pod.id.to_string(),
            metadata: pod.config.metadata.clone(),
            labels: pod.config.labels.clone(),
            annotations: pod.config.annotations.clone(),
        }),
        linux: Some(linux),
        windows: None,
    }
}

fn cpu(sample: &Sample) -> cri::CpuUsage {
    cri::CpuUsage {
        timestamp: sample.at,
        usage_core_nano_seconds: value(sample.stats.cpu_usage_ns),
        usage_nano_cores: sample.nano_cores.and_then(value),
        psi: sample.stats.cpu_pressure.map(psi),
    }
}

fn memory(sample: &Sample) -> cri::MemoryUsage {
    let stats = &sample.stats;
    let available = |limit: u64| limit.saturating_sub(stats.memory_working_set_bytes);
    cri::MemoryUsage {
        timestamp: sample.at,
        working_set_bytes: value(stats.memory_working_set_bytes),
        available_bytes: stats.memory_limit_bytes.and_then(|limit| value(available(limit))),
        usage_bytes: value(stats.memory_usage_bytes),
        rss_bytes: value(stats.memory_rss_bytes),
        page_faults: value(stats.page_faults),
        major_page_faults: value(stats.major_page_faults),
        psi: stats.memory_pressure.map(psi),
    }
}

fn io(sample: &Sample) -> Option<cri::IoUsage> {
    let pressure = sample.stats.io_pressure?;
    Some(cri::IoUsage { timestamp: sample.at, psi: Some(psi(pressure)) })
}

fn psi(pressure: Pressure) -> cri::PsiStats {
    let data = |stall: Stall| cri::PsiData {
        total: stall.total_us.saturating_mul(1000),
        avg10: stall.avg10,
        avg60: stall.avg60,
        avg300: stall.avg300,
    };
    cri::PsiStats { full: Some(data(pressure.full)), some: Some(data(pressure.some)) }
}

fn value(value: u64) -> Option<cri::UInt64Value> {
    Some(cri::UInt64Value { value })
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, sync::Arc};

    use super::*;
    use crate::api::cri::view;

    fn sample(stats: Stats) -> Sample {
        Sample { at: 1, stats, nano_cores: None }
    }

    #[test]
    fn what_is_available_is_the_limit_less_the_working_set() {
        let rows = [(None, None), (Some(100), Some(70)), (Some(10), Some(0))];
        for (limit, expected) in rows {
            let stats = Stats { memory_working_set_bytes: 30, memory_limit_bytes: limit, ..Stats::default() };
            let available = memory(&sample(stats)).available_bytes.map(|bytes| bytes.value);
            assert_eq!(available, expected, "{limit:?}");
        }
    }

    #[test]
    fn pressure_is_in_nanoseconds_and_absent_where_the_kernel_is_silent() {
        let some = Stall { avg10: 1.5, total_us: 7, ..Stall::default() };
        let pressure = Some(Pressure { some, full: Stall::default() });
        let stats = Stats { io_pressure: pressure, cpu_pressure: pressure, ..Stats::default() };
        let told = message(&view::tests::container(), &sample(stats), None);
        let data = told.io.unwrap().psi.unwrap().some.unwrap();
        assert_eq!((data.total, data.avg10), (7000, 1.5));
        assert_eq!(told.cpu.unwrap().psi.unwrap().full.unwrap().total, 0);
        assert_eq!((told.memory.unwrap().psi, told.writable_layer), (None, None));
    }

    #[test]
    fn a_pod_without_a_cgroup_of_its_own_uses_what_its_containers_use() {
        let one = Stats { cpu_usage_ns: 5, pids: 1, memory_limit_bytes: Some(10), ..Stats::default() };
        let other = Stats { memory_limit_bytes: None, ..one.clone() };
        let rows = [
            (vec![], (0, 0, None)),
            (vec![one.clone()], (5, 1, Some(10))),
            (vec![one.clone(), one.clone()], (10, 2, Some(20))),
            (vec![one, other], (10, 2, None)),
        ];
        for (all, expected) in rows {
            let whole = sum(all.iter());
            assert_eq!((whole.cpu_usage_ns, whole.pids, whole.memory_limit_bytes), expected);
        }
    }

    #[test]
    fn a_pods_group_is_its_containers_parent_where_one_was_given_to_it_alone() {
        let pod = |given: &str, path: &str| {
            let mut pod = view::tests::pod();
            let linux = cri::LinuxPodSandboxConfig { cgroup_parent: given.into(), ..Default::default() };
            pod.config = Arc::new(cri::PodSandboxConfig { linux: Some(linux), ..(*pod.config).clone() });
            pod.containers[0].cgroup_path = path.into();
            Arc::new(pod)
        };
        let listed = [
            pod("", "/berth/x"),
            pod("/kubepods/pod1", "/kubepods/pod1/x"),
            pod("/", "/x"),
            pod("/shared", "/shared/y"),
            pod("/shared", "/shared/z"),
        ];
        let parents = Parents::of(&listed);
        let found: Vec<_> = listed.iter().map(|pod| parents.own_group(pod)).collect();
        assert_eq!(found, [None, Some("/kubepods/pod1"), None, None, None]);
    }

    #[test]
    fn a_pods_filter_means_all_of_what_it_says_and_its_link_is_told() {
        let pod = view::tests::pod();
        let filter = |id: &str, label: &str| cri::PodSandboxStatsFilter {
            id: id.into(),
            label_selector: HashMap::from([("app".to_owned(), label.to_owned())]),
        };
        let id = pod.id.to_string();
        let rows = [
            (cri::PodSandboxStatsFilter::default(), true),
            (filter(&id[..6], "web"), true),
            (filter(&id, "db"), false),
            (filter("zz", "web"), false),
        ];
        for (filter, expected) in rows {
            assert_eq!(pod_passes(&pod, &filter), expected, "{filter:?}");
        }
        let link = |name: &str| LinkStats { name: name.into(), rx_bytes: 3, ..LinkStats::default() };
        let links = vec![link("eth0"), link("eth1")];
        let told = pod_message(&pod, &sample(Stats::default()), links, Vec::new());
        let network = told.linux.unwrap().network.unwrap();
        let eth0 = network.default_interface.unwrap();
        assert_eq!((eth0.name.as_str(), eth0.rx_bytes.unwrap().value), ("eth0", 3));
        assert!(network.interfaces.len() == 1 && network.interfaces[0].name == "eth1");
        let host = pod_message(&pod, &sample(Stats::default()), Vec::new(), Vec::new());
        assert_eq!(host.linux.unwrap().network, None);
    }
}
