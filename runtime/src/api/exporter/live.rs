//! What lives now and what the daemon's process uses: read when somebody asks, never kept.

use std::fs;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{
        counter::ConstCounter,
        family::Family,
        gauge::{ConstGauge, Gauge},
    },
    registry::Unit,
};

use crate::pod::{Client, ContainerState, PodState, Pods};

#[derive(Debug)]
pub(super) struct Live(pub(super) Pods);

impl Collector for Live {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let (pods, containers) = (Lives::default(), Lives::default());
        for pod in self.0.list() {
            // A person's pod is a detail of its container.
            if pod.client == Client::Cri {
                pods.get_or_create(&[("client", "cri"), ("state", pod_state(pod.state))]).inc();
            }
            for container in &pod.containers {
                let labels =
                    [("client", client(container.client)), ("state", container_state(container.state))];
                containers.get_or_create(&labels).inc();
            }
        }
        let mut gauge = |name: &str, help: &str, unit: Option<Unit>, metric: &dyn Encode| {
            metric.put(encoder.encode_descriptor(name, help, unit.as_ref(), metric.kind())?)
        };
        gauge("pods", "Pods there are", None, &pods)?;
        gauge("containers", "Containers there are", None, &containers)?;
        let Some(process) = process() else { return Ok(()) };
        let memory = ConstGauge::new(process.resident_bytes);
        gauge("process_resident_memory", "Memory of the daemon", Some(Unit::Bytes), &memory)?;
        let cpu = ConstCounter::new(process.cpu_seconds);
        gauge("process_cpu", "CPU time of the daemon", Some(Unit::Seconds), &cpu)?;
        gauge("process_threads", "Threads of the daemon", None, &ConstGauge::new(process.threads))?;
        gauge("process_open_fds", "Open descriptors of the daemon", None, &ConstGauge::new(process.open_fds))
    }
}

type Lives = Family<[(&'static str, &'static str); 2], Gauge>;

/// A metric behind one type, whatever it counts.
trait Encode {
    fn kind(&self) -> prometheus_client::metrics::MetricType;
    fn put(&self, encoder: prometheus_client::encoding::MetricEncoder<'_>) -> Result<(), std::fmt::Error>;
}

impl<M: EncodeMetric> Encode for M {
    fn kind(&self) -> prometheus_client::metrics::MetricType {
        self.metric_type()
    }

    fn put(&self, encoder: prometheus_client::encoding::MetricEncoder<'_>) -> Result<(), std::fmt::Error> {
        self.encode(encoder)
    }
}

fn client(client: Client) -> &'static str {
    match client {
        Client::Cri => "cri",
        Client::Standalone => "berth",
    }
}

fn pod_state(state: PodState) -> &'static str {
    match state {
        PodState::Ready => "ready",
        PodState::NotReady => "not_ready",
    }
}

fn container_state(state: ContainerState) -> &'static str {
    match state {
        ContainerState::Created => "created",
        ContainerState::Running => "running",
        ContainerState::Backoff => "backoff",
        ContainerState::Exited => "exited",
        ContainerState::Unknown => "unknown",
    }
}

#[derive(Debug, PartialEq)]
struct Process {
    resident_bytes: i64,
    cpu_seconds: f64,
    threads: i64,
    open_fds: i64,
}

/// This process as the kernel tells it; none where /proc is not readable.
fn process() -> Option<Process> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    let open_fds = i64::try_from(fs::read_dir("/proc/self/fd").ok()?.count()).ok()?;
    let page = i64::try_from(rustix::param::page_size()).ok()?;
    parse(&stat, rustix::param::clock_ticks_per_second(), page, open_fds)
}

/// Fields 14, 15, 20 and 24 of proc_pid_stat(5).
fn parse(stat: &str, ticks_per_second: u64, page_bytes: i64, open_fds: i64) -> Option<Process> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |field: usize| fields.get(field - 3)?.parse::<i64>().ok();
    Some(Process {
        resident_bytes: number(24)? * page_bytes,
        cpu_seconds: (number(14)? + number(15)?) as f64 / ticks_per_second as f64,
        threads: number(20)?,
        open_fds,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_fields_are_found_behind_any_name() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4 9 0 0 0 250 50 0 0 20 0 3 0 99 4096 12 0";
        let told = parse(stat, 100, 4096, 8).unwrap();
        assert_eq!(told, Process { resident_bytes: 12 * 4096, cpu_seconds: 3.0, threads: 3, open_fds: 8 });
        assert_eq!(parse("7 (cut", 100, 4096, 8), None);
    }

    #[test]
    fn this_process_is_readable() {
        let told = process().unwrap();
        assert!(told.resident_bytes > 0 && told.threads > 0 && told.open_fds > 0, "{told:?}");
    }
}
