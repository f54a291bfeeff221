//! ListMetricDescriptors and ListPodSandboxMetrics: the catalog, and looks at what runs.

use std::path::Path;

use berth_cri::v1 as cri;
use tracing::debug;

use super::{
    catalog::{Disk, LABELS, Look, OF_CONTAINERS, OF_PODS, Row},
    view,
};
use crate::{
    Error, Kind, Result,
    api::{Door, now},
    cgroup::{Group, systemd},
    pod::{Client, ContainerState, ContainerView, PodState, PodView},
};

pub(super) fn descriptors() -> Vec<cri::MetricDescriptor> {
    OF_CONTAINERS.iter().map(descriptor).chain(OF_PODS.iter().map(descriptor)).collect()
}

impl Door {
    /// Of the pods that are ready and what runs in them.
    pub(super) async fn list_metrics(&self) -> Result<Vec<cri::PodSandboxMetrics>> {
        let listed = self.pods.list();
        let wanted = listed.iter().filter(|pod| pod.client == Client::Cri && pod.state == PodState::Ready);
        let mut told = Vec::new();
        for pod in wanted {
            told.push(self.pod_metrics(pod).await?);
        }
        Ok(told)
    }

    async fn pod_metrics(&self, pod: &PodView) -> Result<cri::PodSandboxMetrics> {
        let running = pod.containers.iter().filter(|one| one.state == ContainerState::Running);
        let running: Vec<_> = running
            .map(|one| (one.clone(), self.rooms.cgroups.group(&one.cgroup_path), self.layers.of(&one.id)))
            .collect();
        // A pod's containers at a time: what it is asked for is many small files.
        let look_at_all = move || {
            let look_at = |(container, group, layer): (ContainerView, Group, _)| {
                let look = look_at(&container, &group)?;
                Ok((container, Look { layer, ..look }))
            };
            running.into_iter().map(look_at).collect::<Vec<Result<_>>>()
        };
        let looks = tokio::task::spawn_blocking(look_at_all)
            .await
            .map_err(|error| Error::new(Kind::Internal, "measure pod", pod.id.short()).because(error))?;
        let links = self.rooms.network.stats(&pod.id).await;
        let labels = pod_labels(pod);
        let at = now();
        let metrics = links.iter().flat_map(|link| samples(OF_PODS, link, &labels, at)).collect();
        let mut container_metrics = Vec::new();
        for look in looks {
            match look {
                Ok((container, look)) => container_metrics.push(cri::ContainerMetrics {
                    container_id: container.id.to_string(),
                    metrics: samples(OF_CONTAINERS, &look, &container_labels(pod, &container), look.at),
                }),
                Err(error) if error.kind == Kind::NotFound => {
                    debug!(error = %error.chain(), "ended while it was measured");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(cri::PodSandboxMetrics { pod_sandbox_id: pod.id.to_string(), metrics, container_metrics })
    }
}

fn descriptor<T>(row: &Row<T>) -> cri::MetricDescriptor {
    cri::MetricDescriptor {
        name: row.name.to_owned(),
        help: row.help.to_owned(),
        label_keys: LABELS.iter().chain(row.keys).map(|key| (*key).to_owned()).collect(),
    }
}

fn samples<T>(rows: &[Row<T>], of: &T, labels: &[String; LABELS.len()], at: i64) -> Vec<cri::Metric> {
    let mut told = Vec::new();
    for row in rows {
        for (own, value) in (row.values)(of) {
            told.push(cri::Metric {
                name: row.name.to_owned(),
                timestamp: at,
                metric_type: row.kind.into(),
                label_values: labels.iter().cloned().chain(own).collect(),
                value: Some(cri::UInt64Value { value }),
            });
        }
    }
    told
}

/// In the order of `LABELS`; what a kubelet can't name is empty, which Prometheus takes as absent.
fn container_labels(pod: &PodView, container: &ContainerView) -> [String; LABELS.len()] {
    let metadata = pod.config.metadata.clone().unwrap_or_default();
    let name = container.config.metadata.clone().unwrap_or_default().name;
    let image = view::image(container).image;
    [name, container.cgroup_path.clone(), image, container.id.to_string(), metadata.namespace, metadata.name]
}

fn pod_labels(pod: &PodView) -> [String; LABELS.len()] {
    let metadata = pod.config.metadata.clone().unwrap_or_default();
    let path = pod.containers.first().and_then(|one| systemd::above(&one.cgroup_path));
    let path = path.unwrap_or_default().to_owned();
    [String::new(), path, String::new(), pod.id.to_string(), metadata.namespace, metadata.name]
}

/// Reads all that is told of a container, its layer aside. Blocks.
fn look_at(container: &ContainerView, group: &Group) -> Result<Look> {
    Ok(Look {
        stats: group.stats()?,
        detail: group.detail()?,
        layer: None,
        disk: disk(&container.upper),
        open_files_limit: open_files_limit(container.pid),
        at: now(),
        started_at: container.started_at,
    })
}

fn disk(dir: &Path) -> Option<Disk> {
    let device = rustix::fs::stat(dir).ok()?.st_dev;
    let there = rustix::fs::statvfs(dir).ok()?;
    Some(Disk {
        device: device_name(rustix::fs::major(device), rustix::fs::minor(device)),
        bytes: there.f_blocks.saturating_mul(there.f_frsize),
        inodes: there.f_files,
        inodes_free: there.f_ffree,
    })
}

/// "/dev/sda1"; its number where the device has no node.
pub(super) fn device_name(major: u32, minor: u32) -> String {
    let about = std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/uevent")).unwrap_or_default();
    let name = about.lines().find_map(|line| line.strip_prefix("DEVNAME="));
    name.map_or_else(|| format!("{major}:{minor}"), |name| format!("/dev/{name}"))
}

fn open_files_limit(pid: i32) -> Option<u64> {
    soft_limit(&std::fs::read_to_string(format!("/proc/{pid}/limits")).ok()?)
}

/// `Max open files            1024                 524288               files`
fn soft_limit(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{api::cri::catalog::tests::look, net::LinkStats};

    #[test]
    fn each_sample_has_as_many_labels_as_its_descriptor_in_that_order() {
        let pod = view::tests::pod();
        let container = &pod.containers[0];
        let link = LinkStats { name: "eth0".into(), ..LinkStats::default() };
        let mut told = samples(OF_CONTAINERS, &look(), &container_labels(&pod, container), 5);
        told.extend(samples(OF_PODS, &link, &pod_labels(&pod), 5));
        let descriptors = descriptors();
        let keyed = |metric: &cri::Metric| -> Vec<(String, String)> {
            let descriptor = descriptors.iter().find(|one| one.name == metric.name).unwrap();
            assert_eq!(descriptor.label_keys.len(), metric.label_values.len(), "{}", metric.name);
            descriptor.label_keys.iter().cloned().zip(metric.label_values.iter().cloned()).collect()
        };
        let labels: Vec<_> = told.iter().map(|metric| (metric.name.as_str(), keyed(metric))).collect();
        let find = |name: &str, key: &str| {
            let (_, labels) = labels.iter().find(|(told, _)| *told == name).unwrap();
            labels.iter().find(|(found, _)| found == key).unwrap().1.clone()
        };
        let (cpu, received) = ("container_cpu_usage_seconds_total", "container_network_receive_bytes_total");
        let rows = [
            (cpu, "container", "c".to_owned()),
            (cpu, "pod", "web".to_owned()),
            (cpu, "namespace", "default".to_owned()),
            (cpu, "image", "busybox:1".to_owned()),
            (cpu, "name", container.id.to_string()),
            (cpu, "id", "/berth/x".to_owned()),
            (cpu, "cpu", "total".to_owned()),
            (received, "interface", "eth0".to_owned()),
            (received, "container", String::new()),
            (received, "id", "/berth".to_owned()),
        ];
        for (name, key, expected) in rows {
            assert_eq!(find(name, key), expected, "{name} {key}");
        }
    }

    #[test]
    fn a_soft_limit_is_the_first_number() {
        let line = "Max open files            1024                 524288               files     \n";
        let rows = [
            (format!("Limit  Soft Limit\n{line}"), Some(1024)),
            (line.replace("1024", "unlimited"), None),
            (String::new(), None),
        ];
        for (text, expected) in rows {
            assert_eq!(soft_limit(&text), expected, "{text}");
        }
        assert_eq!(device_name(u32::MAX, 0), "4294967295:0");
    }
}
