//! A container's statistics in the form of runc's `events --stats`, which podman, containerd and cAdvisor read.

use serde_json::{Value, json};

use crate::{Result, cgroup::Group};

/// Reads them.
pub fn read(group: &Group) -> Result<Value> {
    let (stats, detail) = (group.stats()?, group.detail()?);
    let or = |number: Option<u64>| number.unwrap_or(0);
    let entry = |device: &crate::cgroup::Device, op: &str, value: u64| json!({"major": device.major, "minor": device.minor, "op": op, "value": value});
    let bytes: Vec<Value> = detail
        .devices
        .iter()
        .flat_map(|device| {
            [entry(device, "Read", device.read_bytes), entry(device, "Write", device.write_bytes)]
        })
        .collect();
    let operations: Vec<Value> = detail
        .devices
        .iter()
        .flat_map(|device| [entry(device, "Read", device.reads), entry(device, "Write", device.writes)])
        .collect();
    let pages: serde_json::Map<String, Value> = detail
        .huge_pages
        .iter()
        .map(|page| {
            (page.size.clone(), json!({"usage": page.bytes, "max": or(page.most_bytes), "failcnt": 0}))
        })
        .collect();
    Ok(json!({
        "cpu": {
            "usage": {"total": stats.cpu_usage_ns, "kernel": or(detail.cpu_system_ns), "user": or(detail.cpu_user_ns)},
            "throttling": {"periods": or(detail.periods), "throttledPeriods": or(detail.throttled_periods),
                "throttledTime": or(detail.throttled_ns)},
        },
        "memory": {
            "cache": or(detail.cache_bytes),
            "usage": {"limit": stats.memory_limit_bytes.unwrap_or(u64::MAX), "usage": stats.memory_usage_bytes,
                "max": or(detail.most_bytes), "failcnt": or(detail.limit_hits)},
            "swap": {"limit": or(detail.swap_limit_bytes), "usage": or(stats.swap_usage_bytes), "max": 0, "failcnt": 0},
            "kernel": {"limit": 0, "usage": or(detail.kernel_bytes), "max": 0, "failcnt": 0},
            "kernelTCP": {"limit": 0, "failcnt": 0},
            "raw": {"rss": or(detail.rss_bytes), "mapped_file": or(detail.mapped_bytes), "pgfault": stats.page_faults,
                "pgmajfault": stats.major_page_faults,
                "inactive_file": stats.memory_usage_bytes.saturating_sub(stats.memory_working_set_bytes)},
        },
        "pids": {"current": stats.pids, "limit": or(detail.threads_limit)},
        "blkio": {"ioServiceBytesRecursive": bytes, "ioServicedRecursive": operations},
        "hugetlb": pages,
        "intel_rdt": {},
        "network_interfaces": null,
    }))
}
