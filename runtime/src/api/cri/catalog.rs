//! Every metric: its name, which is cAdvisor's, what it means, its labels and where its value comes from. One row gives
//! the descriptor and the samples, so that they can't disagree.

use berth_cri::v1::MetricType::{self, Counter, Gauge};

use super::layers::Layer;
use crate::{
    cgroup::{Detail, Device, Faults, Pressure},
    net::LinkStats,
    pod::Stats,
};

/// The labels of every metric, before its own.
pub(super) const LABELS: [&str; 6] = ["container", "id", "image", "name", "namespace", "pod"];

/// What one look at a container gave.
#[derive(Debug, Default)]
pub(super) struct Look {
    /// Unix nanoseconds.
    pub at: i64,
    pub started_at: i64,
    pub stats: Stats,
    pub detail: Detail,
    pub layer: Option<Layer>,
    pub disk: Option<Disk>,
    /// RLIMIT_NOFILE of its first process; none where that is unlimited.
    pub open_files_limit: Option<u64>,
}

/// The file system that the writable layer is on.
#[derive(Debug, Default)]
pub(super) struct Disk {
    pub device: String,
    pub bytes: u64,
    pub inodes: u64,
    pub inodes_free: u64,
}

/// The values of a metric's own labels, and its value.
pub(super) type Value = (Vec<String>, u64);

/// A metric of `T`.
pub(super) struct Row<T: 'static> {
    pub name: &'static str,
    pub help: &'static str,
    pub kind: MetricType,
    /// Its own labels.
    pub keys: &'static [&'static str],
    pub values: fn(&T) -> Vec<Value>,
}

/// A metric of its own for each row of a list.
macro_rules! rows {
    ($of:ty: $($kind:ident $name:literal $keys:expr, $help:literal, $values:expr;)*) => {
        &[$(Row::<$of> { name: $name, help: $help, kind: $kind, keys: &$keys, values: $values }),*]
    };
}

pub(super) const OF_CONTAINERS: &[Row<Look>] = rows! { Look:
    Counter "container_cpu_usage_seconds_total" ["cpu"], "Processor time, whole seconds.",
        |look| vec![(vec!["total".into()], seconds(look.stats.cpu_usage_ns))];
    Counter "container_cpu_user_seconds_total" [], "Processor time in programs, whole seconds.",
        |look| one(look.detail.cpu_user_ns.map(seconds));
    Counter "container_cpu_system_seconds_total" [], "Processor time in the kernel, whole seconds.",
        |look| one(look.detail.cpu_system_ns.map(seconds));
    Counter "container_cpu_cfs_periods_total" [], "Periods of the processor limit that went by.",
        |look| one(look.detail.periods);
    Counter "container_cpu_cfs_throttled_periods_total" [], "Periods in which the limit was reached.",
        |look| one(look.detail.throttled_periods);
    Counter "container_cpu_cfs_throttled_seconds_total" [], "Time held back by the limit, whole seconds.",
        |look| one(look.detail.throttled_ns.map(seconds));
    Gauge "container_memory_usage_bytes" [], "Memory with all caches.",
        |look| one(Some(look.stats.memory_usage_bytes));
    Gauge "container_memory_working_set_bytes" [], "Memory without file pages that nobody touched lately.",
        |look| one(Some(look.stats.memory_working_set_bytes));
    Gauge "container_memory_rss" [], "Anonymous memory, bytes.", |look| one(look.detail.rss_bytes);
    Gauge "container_memory_cache" [], "File pages, bytes.", |look| one(look.detail.cache_bytes);
    Gauge "container_memory_mapped_file" [], "Mapped file pages, bytes.", |look| one(look.detail.mapped_bytes);
    Gauge "container_memory_swap" [], "Swap in use, bytes.", |look| one(look.detail.swap_bytes);
    Gauge "container_memory_kernel_usage" [], "Kernel memory, bytes.", |look| one(look.detail.kernel_bytes);
    Gauge "container_memory_max_usage_bytes" [], "The most memory that was ever in use.",
        |look| one(look.detail.most_bytes);
    Counter "container_memory_failcnt" [], "How often the memory limit held a request back.",
        |look| one(look.detail.limit_hits);
    Counter "container_memory_failures_total" ["failure_type", "scope"],
        "Page faults, all and those that waited for a disk.",
        |look| faults(look.detail.faults, "container").chain(faults(look.detail.faults_below, "hierarchy")).collect();
    Counter "container_oom_events_total" [], "Processes killed for want of memory.",
        |look| one(look.detail.oom_kills);
    Gauge "container_hugetlb_usage_bytes" ["pagesize"], "Huge pages in use.",
        |look| look.detail.huge_pages.iter().map(|pages| (vec![pages.size.clone()], pages.bytes)).collect();
    Gauge "container_hugetlb_max_usage_bytes" ["pagesize"], "The most huge pages that were ever in use.",
        |look| {
            let most = |pages: &crate::cgroup::HugePages| Some((vec![pages.size.clone()], pages.most_bytes?));
            look.detail.huge_pages.iter().filter_map(most).collect()
        };
    Gauge "container_fs_usage_bytes" ["device"], "What the container has written beside its volumes.",
        |look| disk(look, |_| Some(look.layer.as_ref()?.used.bytes));
    Gauge "container_fs_limit_bytes" ["device"], "Size of the file system that the container writes to.",
        |look| disk(look, |disk| Some(disk.bytes));
    Gauge "container_fs_inodes_total" ["device"], "Inodes of that file system.",
        |look| disk(look, |disk| Some(disk.inodes));
    Gauge "container_fs_inodes_free" ["device"], "Free inodes of that file system.",
        |look| disk(look, |disk| Some(disk.inodes_free));
    Counter "container_fs_reads_bytes_total" ["device"], "Bytes read from a device.",
        |look| devices(look, |device| device.read_bytes);
    Counter "container_fs_reads_total" ["device"], "Reads from a device.",
        |look| devices(look, |device| device.reads);
    Counter "container_fs_writes_bytes_total" ["device"], "Bytes written to a device.",
        |look| devices(look, |device| device.write_bytes);
    Counter "container_fs_writes_total" ["device"], "Writes to a device.",
        |look| devices(look, |device| device.writes);
    Counter "container_blkio_device_usage_total" ["device", "major", "minor", "operation"],
        "Bytes read from and written to a device.",
        |look| look.detail.devices.iter().flat_map(operations).collect();
    Gauge "container_processes" [], "Processes.", |look| one(look.detail.processes);
    Gauge "container_threads" [], "Threads.", |look| one(Some(look.stats.pids));
    Gauge "container_threads_max" [], "How many threads it may have; 0: no limit.",
        |look| one(look.detail.threads_limit);
    Gauge "container_file_descriptors" [], "Open file descriptors.", |look| one(look.detail.descriptors);
    Gauge "container_sockets" [], "Open sockets.", |look| one(look.detail.sockets);
    Gauge "container_ulimits_soft" ["ulimit"], "Soft limits of the first process.",
        |look| {
            let limit = look.open_files_limit.map(|limit| (vec!["max_open_files".into()], limit));
            limit.into_iter().collect()
        };
    Gauge "container_start_time_seconds" [], "When it started, seconds since 1970.",
        |look| one(epoch(look.started_at));
    Gauge "container_last_seen" [], "When it was measured, seconds since 1970.", |look| one(epoch(look.at));
    Gauge "container_spec_cpu_period" [], "Period of the processor limit, microseconds.",
        |look| one(look.detail.cpu_period_us);
    Gauge "container_spec_cpu_quota" [], "Processor time per period, microseconds; absent: no limit.",
        |look| one(look.detail.cpu_quota_us);
    Gauge "container_spec_cpu_shares" [], "Processor weight beside others; 1024 is usual.",
        |look| one(look.detail.cpu_shares);
    Gauge "container_spec_memory_limit_bytes" [], "Memory limit; 0: none.",
        |look| one(look.detail.memory_limit_bytes);
    Gauge "container_spec_memory_reservation_limit_bytes" [], "Memory that is reclaimed last; 0: none.",
        |look| one(look.detail.memory_reservation_bytes);
    Gauge "container_spec_memory_swap_limit_bytes" [],
        "Limit of swap, on cgroup v1 of memory and swap together; 0: none.",
        |look| one(look.detail.swap_limit_bytes);
    Counter "container_pressure_cpu_waiting_seconds_total" [], "Time in which some waited for a processor.",
        |look| one(look.stats.cpu_pressure.map(waiting));
    Counter "container_pressure_cpu_stalled_seconds_total" [], "Time in which all waited for a processor.",
        |look| one(look.stats.cpu_pressure.map(stalled));
    Counter "container_pressure_memory_waiting_seconds_total" [], "Time in which some waited for memory.",
        |look| one(look.stats.memory_pressure.map(waiting));
    Counter "container_pressure_memory_stalled_seconds_total" [], "Time in which all waited for memory.",
        |look| one(look.stats.memory_pressure.map(stalled));
    Counter "container_pressure_io_waiting_seconds_total" [], "Time in which some waited for a disk.",
        |look| one(look.stats.io_pressure.map(waiting));
    Counter "container_pressure_io_stalled_seconds_total" [], "Time in which all waited for a disk.",
        |look| one(look.stats.io_pressure.map(stalled));
};

/// Containers of a pod share its network, so these are the pod's.
pub(super) const OF_PODS: &[Row<LinkStats>] = rows! { LinkStats:
    Counter "container_network_receive_bytes_total" ["interface"], "Bytes received.",
        |link| vec![(vec![link.name.clone()], link.rx_bytes)];
    Counter "container_network_receive_packets_total" ["interface"], "Packets received.",
        |link| vec![(vec![link.name.clone()], link.rx_packets)];
    Counter "container_network_receive_errors_total" ["interface"], "Errors while receiving.",
        |link| vec![(vec![link.name.clone()], link.rx_errors)];
    Counter "container_network_receive_packets_dropped_total" ["interface"], "Packets dropped while receiving.",
        |link| vec![(vec![link.name.clone()], link.rx_dropped)];
    Counter "container_network_transmit_bytes_total" ["interface"], "Bytes sent.",
        |link| vec![(vec![link.name.clone()], link.tx_bytes)];
    Counter "container_network_transmit_packets_total" ["interface"], "Packets sent.",
        |link| vec![(vec![link.name.clone()], link.tx_packets)];
    Counter "container_network_transmit_errors_total" ["interface"], "Errors while sending.",
        |link| vec![(vec![link.name.clone()], link.tx_errors)];
    Counter "container_network_transmit_packets_dropped_total" ["interface"], "Packets dropped while sending.",
        |link| vec![(vec![link.name.clone()], link.tx_dropped)];
};

fn one(value: Option<u64>) -> Vec<Value> {
    value.map(|value| (Vec::new(), value)).into_iter().collect()
}

/// CRI has whole numbers only.
fn seconds(nanoseconds: u64) -> u64 {
    nanoseconds / 1_000_000_000
}

fn epoch(nanoseconds: i64) -> Option<u64> {
    u64::try_from(nanoseconds).ok().filter(|time| *time > 0).map(seconds)
}

fn waiting(pressure: Pressure) -> u64 {
    pressure.some.total_us / 1_000_000
}

fn stalled(pressure: Pressure) -> u64 {
    pressure.full.total_us / 1_000_000
}

fn faults(faults: Option<Faults>, scope: &'static str) -> impl Iterator<Item = Value> {
    let kinds = faults.into_iter().flat_map(|faults| [("pgfault", faults.all), ("pgmajfault", faults.major)]);
    kinds.map(move |(kind, count)| (vec![kind.into(), scope.into()], count))
}

fn disk(look: &Look, value: impl Fn(&Disk) -> Option<u64>) -> Vec<Value> {
    let told = look.disk.as_ref().and_then(|disk| Some((vec![disk.device.clone()], value(disk)?)));
    told.into_iter().collect()
}

fn devices(look: &Look, value: impl Fn(&Device) -> u64) -> Vec<Value> {
    look.detail.devices.iter().map(|device| (vec![device_name(device)], value(device))).collect()
}

fn operations(device: &Device) -> [Value; 2] {
    let labels = |operation: &str| {
        vec![device_name(device), device.major.to_string(), device.minor.to_string(), operation.to_owned()]
    };
    [(labels("Read"), device.read_bytes), (labels("Write"), device.write_bytes)]
}

fn device_name(device: &Device) -> String {
    super::metrics::device_name(device.major, device.minor)
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::{
        cgroup::{HugePages, Stall},
        image::Used,
    };

    /// A host that tells everything, each value another.
    pub fn look() -> Look {
        let pressure = |seconds: u64| {
            let stall = |seconds| Stall { total_us: seconds * 1_000_000, ..Stall::default() };
            Some(Pressure { some: stall(seconds), full: stall(seconds + 1) })
        };
        Look {
            at: 1_000_000_000_000,
            started_at: 500_000_000_000,
            stats: Stats {
                cpu_usage_ns: 7_999_999_999,
                memory_usage_bytes: 100,
                memory_working_set_bytes: 90,
                pids: 3,
                cpu_pressure: pressure(10),
                memory_pressure: pressure(20),
                io_pressure: pressure(30),
                ..Stats::default()
            },
            detail: Detail {
                cpu_user_ns: Some(5_000_000_000),
                cpu_system_ns: Some(2_000_000_000),
                periods: Some(31),
                throttled_periods: Some(32),
                throttled_ns: Some(33_000_000_000),
                cache_bytes: Some(41),
                rss_bytes: Some(42),
                mapped_bytes: Some(43),
                swap_bytes: Some(44),
                kernel_bytes: Some(45),
                most_bytes: Some(46),
                limit_hits: Some(47),
                faults: Some(Faults { all: 48, major: 49 }),
                faults_below: Some(Faults { all: 50, major: 51 }),
                oom_kills: Some(52),
                cpu_shares: Some(1024),
                cpu_period_us: Some(100_000),
                cpu_quota_us: Some(20_000),
                memory_limit_bytes: Some(61),
                memory_reservation_bytes: Some(62),
                swap_limit_bytes: Some(63),
                threads_limit: Some(64),
                devices: vec![Device {
                    major: 0,
                    minor: 9,
                    read_bytes: 71,
                    write_bytes: 72,
                    reads: 73,
                    writes: 74,
                }],
                huge_pages: vec![HugePages { size: "2MB".into(), bytes: 75, most_bytes: Some(76) }],
                processes: Some(2),
                descriptors: Some(81),
                sockets: Some(82),
            },
            layer: Some(Layer { at: 1, mountpoint: "/images".into(), used: Used { bytes: 91, inodes: 92 } }),
            disk: Some(Disk { device: "/dev/x".into(), bytes: 93, inodes: 94, inodes_free: 95 }),
            open_files_limit: Some(96),
        }
    }

    fn labels<T>(row: &Row<T>, of: &T) -> Vec<Value> {
        let values = (row.values)(of);
        assert!(!values.is_empty(), "{} is not told", row.name);
        for (own, _) in &values {
            assert_eq!(own.len(), row.keys.len(), "{}", row.name);
        }
        values
    }

    #[test]
    fn every_metric_is_told_where_the_host_tells_all_and_its_labels_fit() {
        let mut names = BTreeSet::new();
        for row in OF_CONTAINERS {
            labels(row, &look());
            assert!(names.insert(row.name) && !row.help.is_empty(), "{}", row.name);
            let counts = row.name.ends_with("failcnt")
                || row.name.ends_with("_total") && row.name != "container_fs_inodes_total";
            assert_eq!(matches!(row.kind, Counter), counts, "{}", row.name);
        }
        for row in OF_PODS {
            labels(row, &LinkStats::default());
            assert!(names.insert(row.name));
        }
        assert_eq!(names.len(), 56);
    }

    #[test]
    fn values_come_from_their_sources() {
        let value = |name: &str| {
            let row = OF_CONTAINERS.iter().find(|row| row.name == name).unwrap();
            (row.values)(&look())[0].clone()
        };
        let rows = [
            ("container_cpu_usage_seconds_total", vec!["total"], 7),
            ("container_cpu_cfs_throttled_seconds_total", vec![], 33),
            ("container_memory_working_set_bytes", vec![], 90),
            ("container_memory_failures_total", vec!["pgfault", "container"], 48),
            ("container_hugetlb_max_usage_bytes", vec!["2MB"], 76),
            ("container_fs_usage_bytes", vec!["/dev/x"], 91),
            ("container_fs_inodes_free", vec!["/dev/x"], 95),
            ("container_fs_writes_total", vec!["0:9"], 74),
            ("container_blkio_device_usage_total", vec!["0:9", "0", "9", "Read"], 71),
            ("container_threads", vec![], 3),
            ("container_ulimits_soft", vec!["max_open_files"], 96),
            ("container_start_time_seconds", vec![], 500),
            ("container_last_seen", vec![], 1000),
            ("container_pressure_memory_waiting_seconds_total", vec![], 20),
            ("container_pressure_io_stalled_seconds_total", vec![], 31),
        ];
        for (name, labels, expected) in rows {
            assert_eq!(value(name), (labels.into_iter().map(str::to_owned).collect(), expected), "{name}");
        }
    }

    #[test]
    fn what_the_host_does_not_tell_is_left_out() {
        let told = OF_CONTAINERS.iter().filter(|row| !(row.values)(&Look::default()).is_empty());
        let names: Vec<_> = told.map(|row| row.name).collect();
        let always = [
            "container_cpu_usage_seconds_total",
            "container_memory_usage_bytes",
            "container_memory_working_set_bytes",
            "container_threads",
        ];
        assert_eq!(names, always);
    }
}
