//! The pod of `cargo xtask demo`: run, looked into and removed over CRI, each step with its time.
//!
//! `demo unix:///SOCKET IMAGE LOGS` shows it; `demo unix:///SOCKET --sweep` removes whatever pods there are.

use std::{
    path::Path,
    process::ExitCode,
    time::{Duration, Instant},
};

use berth_cri::v1::NamespaceMode;

#[path = "../kubelet.rs"]
mod kubelet;

use kubelet::{Kubelet, Result, container, pod, timed};

const WORD: &str = "hello from a container in a pod";
/// The log is written by the shim as the container speaks: a moment after its start.
const LOGGED_WITHIN: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(5);

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let done = match words[..] {
        [address, "--sweep"] => sweep(address).await,
        [address, image, logs] => show(address, image, Path::new(logs)).await,
        _ => Err("usage: demo unix:///SOCKET IMAGE LOGS | demo unix:///SOCKET --sweep".into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("demo: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn show(address: &str, image: &str, logs: &Path) -> Result<()> {
    let mut kubelet = Kubelet::connect(address).await?;
    let pod_config = pod("demo", logs, NamespaceMode::Pod);
    let run_pod = kubelet.run_pod(&pod_config);
    let pod = step("RunPodSandbox", run_pod).await?;
    let shown = in_pod(&mut kubelet, &pod, image, logs).await;
    // Also when something in it failed.
    let removed = step("StopPodSandbox, RemovePodSandbox", kubelet.remove_pod(&pod)).await;
    shown.and(removed)
}

async fn in_pod(kubelet: &mut Kubelet, pod_id: &str, image: &str, logs: &Path) -> Result<()> {
    let pod_config = pod("demo", logs, NamespaceMode::Pod);
    // Says a line a second, so that there is something to stop.
    let config = container("hello", image, &["/bin/spam", "0", "1", "30"]);
    let id = step("CreateContainer", kubelet.create(pod_id, config, &pod_config)).await?;
    step("StartContainer", kubelet.start(&id)).await?;
    let said = step("ExecSync", kubelet.exec(&id, &["/bin/echo", WORD])).await?;
    said.lines().for_each(|line| println!("    | {line}"));
    if said.trim() != WORD {
        return Err(format!("the command in the container was to say {WORD:?}, and said {said:?}"));
    }
    let log = step("the container's log", logged(&logs.join("hello.log"))).await?;
    log.lines().for_each(|line| println!("    | {line}"));
    step("StopContainer", kubelet.stop(&id)).await?;
    step("RemoveContainer", kubelet.remove(&id)).await
}

/// Waits for the first line of a log.
async fn logged(log: &Path) -> Result<String> {
    let begun = Instant::now();
    loop {
        match std::fs::read_to_string(log) {
            Ok(text) if text.ends_with('\n') => return Ok(text),
            found if begun.elapsed() > LOGGED_WITHIN => {
                return Err(format!("no line in {} within {LOGGED_WITHIN:?}: {found:?}", log.display()));
            }
            _ => tokio::time::sleep(PAUSE).await,
        }
    }
}

async fn sweep(address: &str) -> Result<()> {
    let mut kubelet = Kubelet::connect(address).await?;
    for pod in kubelet.pods().await? {
        // One that can't be removed must not keep the others.
        if let Err(error) = kubelet.remove_pod(&pod).await {
            eprintln!("demo: pod {pod}: {error}");
        }
    }
    Ok(())
}

async fn step<T>(name: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
    let (done, took_ms) = timed(work).await?;
    println!("  {name:<34} {took_ms:>8.1} ms");
    Ok(done)
}
