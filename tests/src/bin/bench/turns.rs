//! Pods one at a time: every call of a pod's life with its time, all runtimes in turns.
//!
//! Rounds go over all runtimes before the next begins: what else the machine does hits all of them alike.

use std::time::{Duration, Instant};

use crate::{
    IDLE, Report, Runtime,
    kubelet::{Kubelet, Result, container, done, timed},
};
use berth_cri::v1::{RemovePodSandboxRequest, StopPodSandboxRequest};

/// Not measured: files come into memory, programs get linked.
const WARM_UP: usize = 3;
/// Execs in each pod: a pod's start is dear, they are not.
const EXECS: usize = 4;

/// What is measured of one pod's life.
#[derive(Debug, Default)]
struct Life {
    took: Vec<(&'static str, f64)>,
}

pub async fn take(runtimes: Vec<Runtime>, rounds: usize, seconds: usize, report: &mut Report) {
    let end = Instant::now() + Duration::from_secs(seconds as u64);
    let mut alive: Vec<(Runtime, Vec<Life>)> =
        runtimes.into_iter().map(|runtime| (runtime, Vec::new())).collect();
    for round in 0..rounds + WARM_UP {
        if round > WARM_UP && Instant::now() > end {
            eprintln!("bench: time is up after {} of {rounds} rounds", round - WARM_UP);
            break;
        }
        let mut able = Vec::new();
        for (mut runtime, mut lives) in alive {
            match life(&mut runtime, round).await {
                Ok(life) => {
                    if round >= WARM_UP {
                        lives.push(life);
                    }
                    able.push((runtime, lives));
                }
                Err(error) => report.failed("pods one at a time", &runtime.name, &error),
            }
        }
        alive = able;
    }
    for (runtime, lives) in &alive {
        let names: Vec<&str> = lives.first().map_or(Vec::new(), |life| {
            let mut names: Vec<&str> = life.took.iter().map(|(name, _)| *name).collect();
            names.dedup();
            names
        });
        for name in names {
            let of =
                |life: &Life| life.took.iter().filter(|took| took.0 == name).map(|took| took.1).collect();
            let samples: Vec<f64> = lives.iter().flat_map(|life| -> Vec<f64> { of(life) }).collect();
            report.samples(name, &runtime.name, "ms", samples);
        }
    }
}

async fn life(runtime: &mut Runtime, round: usize) -> Result<Life> {
    let name = format!("turn-{round}");
    let config = runtime.pod(&name);
    let mut life = Life::default();
    let began = Instant::now();
    let pod = life.call("RunPodSandbox", runtime.kubelet.run_pod(&config)).await?;
    let image = runtime.image.clone();
    let lived = async {
        let kubelet = &mut runtime.kubelet;
        let asked = container("first", &image, IDLE);
        let first = life.call("CreateContainer", kubelet.create(&pod, asked, &config)).await?;
        life.call("StartContainer", kubelet.start(&first)).await?;
        life.took.push(("pod up", ms(began)));
        let began = Instant::now();
        let second = kubelet.create(&pod, container("second", &image, IDLE), &config).await?;
        kubelet.start(&second).await?;
        life.took.push(("container in a pod", ms(began)));
        // In the second: when it is stopped it has come to where it takes the signal.
        for _ in 0..EXECS {
            life.call("ExecSync", kubelet.exec(&second, &["/bin/true"])).await?;
        }
        life.call("StopContainer", kubelet.stop(&second)).await?;
        life.call("RemoveContainer", kubelet.remove(&second)).await
    };
    if let Err(error) = lived.await {
        // What failed first is what is told.
        runtime.kubelet.remove_pod(&pod).await.ok();
        return Err(error);
    }
    let began = Instant::now();
    life.call("StopPodSandbox", stop_pod(&mut runtime.kubelet, &pod)).await?;
    life.call("RemovePodSandbox", remove_pod(&mut runtime.kubelet, &pod)).await?;
    life.took.push(("pod down", ms(began)));
    Ok(life)
}

impl Life {
    async fn call<T>(&mut self, name: &'static str, work: impl Future<Output = Result<T>>) -> Result<T> {
        let (done, took_ms) = timed(work).await?;
        self.took.push((name, took_ms));
        Ok(done)
    }
}

async fn stop_pod(kubelet: &mut Kubelet, pod: &str) -> Result<()> {
    let request = StopPodSandboxRequest { pod_sandbox_id: pod.to_owned() };
    done("StopPodSandbox", kubelet.runtime.stop_pod_sandbox(request).await).map(drop)
}

async fn remove_pod(kubelet: &mut Kubelet, pod: &str) -> Result<()> {
    let request = RemovePodSandboxRequest { pod_sandbox_id: pod.to_owned() };
    done("RemovePodSandbox", kubelet.runtime.remove_pod_sandbox(request).await).map(drop)
}

pub fn ms(began: Instant) -> f64 {
    began.elapsed().as_secs_f64() * 1000.0
}
