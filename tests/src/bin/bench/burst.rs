//! Many pods at once, each client with a connection of its own, one runtime after the other.

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use crate::{
    IDLE, Report, Runtime,
    kubelet::{Result, timed},
    turns::ms,
};

/// What became of pods that clients worked on at once.
#[derive(Debug, Default)]
pub struct Done {
    pub took_ms: Vec<f64>,
    pub failed: Vec<String>,
    pub wall_ms: f64,
}

pub async fn all(runtimes: &[Runtime], clients: usize, pods: usize, report: &mut Report) {
    for runtime in runtimes {
        if let Err(error) = one(runtime, clients, pods, report).await {
            report.failed("pods at once", &runtime.name, &error);
        }
    }
}

async fn one(runtime: &Runtime, clients: usize, pods: usize, report: &mut Report) -> Result<()> {
    let (up, made) = start(runtime, "burst", 0..pods, clients).await?;
    let down = remove(runtime, made, clients).await?;
    for (name, done) in [("up", &up), ("down", &down)] {
        if let Some(why) = done.failed.first() {
            return Err(format!("{} of {pods} {name} failed, first: {why}", done.failed.len()));
        }
        let rate = done.took_ms.len() as f64 / (done.wall_ms / 1000.0);
        report.samples(&format!("pods {name} at once"), &runtime.name, "pods/s", vec![rate]);
    }
    report.samples("a pod's start at once", &runtime.name, "ms", up.took_ms);
    Ok(())
}

/// Starts pods by so many clients; gives those that run.
pub async fn start(
    runtime: &Runtime,
    name: &str,
    range: Range<usize>,
    clients: usize,
) -> Result<(Done, Vec<String>)> {
    let (next, end) = (Arc::new(AtomicUsize::new(range.start)), range.end);
    let began = Instant::now();
    let mut tasks = Vec::new();
    for _ in 0..clients {
        let (mut client, next, name) = (runtime.again().await?, next.clone(), name.to_owned());
        tasks.push(tokio::spawn(async move {
            let (mut done, mut made) = (Done::default(), Vec::new());
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= end {
                    return (done, made);
                }
                match timed(client.run(&format!("{name}-{number}"), IDLE)).await {
                    Ok(((pod, _), took_ms)) => {
                        done.took_ms.push(took_ms);
                        made.push(pod);
                    }
                    Err(error) => done.failed.push(error),
                }
            }
        }));
    }
    let (mut all, mut pods) = (Done::default(), Vec::new());
    for task in tasks {
        let (done, made) = task.await.map_err(|error| format!("a client: {error}"))?;
        all.add(done);
        pods.extend(made);
    }
    all.wall_ms = ms(began);
    Ok((all, pods))
}

/// Stops and removes pods by so many clients.
pub async fn remove(runtime: &Runtime, pods: Vec<String>, clients: usize) -> Result<Done> {
    let (next, pods) = (Arc::new(AtomicUsize::new(0)), Arc::new(pods));
    let began = Instant::now();
    let mut tasks = Vec::new();
    for _ in 0..clients {
        let (mut client, next, pods) = (runtime.again().await?, next.clone(), pods.clone());
        tasks.push(tokio::spawn(async move {
            let mut done = Done::default();
            while let Some(pod) = pods.get(next.fetch_add(1, Ordering::Relaxed)) {
                match timed(client.kubelet.remove_pod(pod)).await {
                    Ok(((), took_ms)) => done.took_ms.push(took_ms),
                    Err(error) => done.failed.push(error),
                }
            }
            done
        }));
    }
    let mut all = Done::default();
    for task in tasks {
        all.add(task.await.map_err(|error| format!("a client: {error}"))?);
    }
    all.wall_ms = ms(began);
    Ok(all)
}

impl Done {
    fn add(&mut self, other: Self) {
        self.took_ms.extend(other.took_ms);
        self.failed.extend(other.failed);
    }
}
