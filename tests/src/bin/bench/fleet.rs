//! A node full of pods: made, probed, found again by the next daemon, removed.

use std::{
    ops::Range,
    time::{Duration, Instant},
};

use berth_cri::v1::{
    ContainerFilter, ContainerState, ContainerStateValue, ListContainersRequest, RemovePodSandboxRequest,
};

use crate::{
    Report, Runtime, burst,
    kubelet::{Kubelet, Result, done, timed},
};

const PAUSE: Duration = Duration::from_millis(2);

pub async fn up(runtimes: &[Runtime], range: Range<usize>, clients: usize, report: &mut Report) {
    for runtime in runtimes {
        match burst::start(runtime, "fleet", range.clone(), clients).await {
            Ok((done, _)) => {
                let failed = done.failed.len() as f64;
                report.samples("all running", &runtime.name, "s", vec![done.wall_ms / 1000.0]);
                report.samples("a pod's start", &runtime.name, "ms", done.took_ms);
                report.samples("failed starts", &runtime.name, "pods", vec![failed]);
                if let Some(why) = done.failed.first() {
                    report.failed("pods up", &runtime.name, why);
                }
            }
            Err(error) => report.failed("pods up", &runtime.name, &error),
        }
    }
}

pub async fn down(runtimes: &mut [Runtime], clients: usize, report: &mut Report) {
    for runtime in runtimes {
        let removed = async {
            let pods = runtime.kubelet.pods().await?;
            burst::remove(runtime, pods, clients).await
        };
        match removed.await {
            Ok(done) => {
                report.samples("all removed", &runtime.name, "s", vec![done.wall_ms / 1000.0]);
                if let Some(why) = done.failed.first() {
                    report.failed("pods down", &runtime.name, why);
                }
            }
            Err(error) => report.failed("pods down", &runtime.name, &error),
        }
        // What is half made, or stopped only, is in the list as well.
        for pod in runtime.kubelet.pods().await.unwrap_or_default() {
            let request = RemovePodSandboxRequest { pod_sandbox_id: pod };
            // It was told above why not.
            runtime.kubelet.runtime.remove_pod_sandbox(request).await.ok();
        }
    }
}

/// Asks every container once a second, evenly spread over it, by one connection each for as many as are under way at once.
pub async fn probes(runtimes: &mut [Runtime], seconds: usize, report: &mut Report) {
    for runtime in runtimes {
        match probe(runtime, seconds).await {
            Ok((took_ms, late)) => {
                report.samples("probe", &runtime.name, "ms", took_ms);
                report.samples("late probes", &runtime.name, "probes", vec![late as f64]);
            }
            Err(error) => report.failed("probes", &runtime.name, &error),
        }
    }
}

async fn probe(runtime: &mut Runtime, seconds: usize) -> Result<(Vec<f64>, usize)> {
    let containers = running(&mut runtime.kubelet).await?;
    let channel = runtime.kubelet.clone();
    let began = Instant::now();
    let mut tasks = Vec::new();
    for (index, container) in containers.iter().enumerate() {
        let offset = Duration::from_secs_f64(index as f64 / containers.len() as f64);
        let (mut kubelet, container) = (channel.clone(), container.clone());
        tasks.push(tokio::spawn(async move {
            let (mut took, mut late) = (Vec::new(), 0);
            for second in 0..seconds {
                let due = began + offset + Duration::from_secs(second as u64);
                // Behind by a second or more: a kubelet leaves those out, we count them.
                late += usize::from(Instant::now() > due + Duration::from_secs(1));
                tokio::time::sleep_until(due.into()).await;
                took.push(timed(kubelet.exec(&container, &["/bin/true"])).await?.1);
            }
            Ok::<_, String>((took, late))
        }));
    }
    let (mut took_ms, mut late) = (Vec::new(), 0);
    for task in tasks {
        let (took, behind) = task.await.map_err(|error| format!("a probe: {error}"))??;
        took_ms.extend(took);
        late += behind;
    }
    Ok((took_ms, late))
}

/// Waits until so many containers are told as running, and gives the time by CLOCK_MONOTONIC in nanoseconds.
pub async fn listed(address: &str, count: usize, within: Duration) -> Result<f64> {
    let end = Instant::now() + within;
    let mut last = String::new();
    while Instant::now() < end {
        let found = async {
            let mut kubelet = Kubelet::connect(address).await?;
            Ok::<_, String>(running(&mut kubelet).await?.len())
        };
        match found.await {
            Ok(found) if found >= count => return Ok(monotonic_nanos()),
            Ok(found) => last = format!("{found} are listed"),
            Err(error) => last = error,
        }
        tokio::time::sleep(PAUSE).await;
    }
    Err(format!("not {count} running containers within {} s: {last}", within.as_secs()))
}

pub async fn running(kubelet: &mut Kubelet) -> Result<Vec<String>> {
    let state = ContainerStateValue { state: ContainerState::ContainerRunning.into() };
    let filter = ContainerFilter { state: Some(state), ..Default::default() };
    let request = ListContainersRequest { filter: Some(filter) };
    let listed = done("ListContainers", kubelet.runtime.list_containers(request).await)?;
    Ok(listed.containers.into_iter().map(|container| container.id).collect())
}

fn monotonic_nanos() -> f64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as f64 * 1e9 + now.tv_nsec as f64
}
