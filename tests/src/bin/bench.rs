//! The client of `cargo xtask bench`: measures runtimes in turns over CRI, prints JSON.
//!
//! `bench --image IMAGE --logs DIR --rounds N --runtime NAME=unix:///SOCKET=SHIM... [start] [bridge] [stop] [bridge-stop]
//! [cni] [cni-run] [cni-stop] [exec] [memory] [lists]`
//!
//! ```text
//!   start    RunPodSandbox + CreateContainer + StartContainer, ms
//!   bridge   the same on Berth's built-in bridge; peers have no network of their own
//!   stop     StopPodSandbox + RemovePodSandbox of such a pod, ms; bridge-stop: the same on the bridge
//!   cni      as start, in pods whose network plugins make; cni-run: RunPodSandbox of it alone; cni-stop: as stop
//!   exec     ExecSync of `true`, ms
//!   memory   private dirty memory of all shims of a pod with a chatty container, KiB
//!   lists    lists and statuses while there are a thousand containers, ms; of Berth only
//! ```
//! Rounds go over all times and all runtimes before the next begins: what else the machine does hits all of them alike.
//! But for the bridge's and those of cni all pods are on the host's network, so that no runtime's network plugins are
//! measured.

use std::{
    fs,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use berth_cri::v1::NamespaceMode;
use serde_json::{Value, json};

#[allow(dead_code)] // The demo uses the rest of it.
#[path = "../kubelet.rs"]
mod kubelet;

#[path = "../lists.rs"]
mod lists;

use kubelet::{Kubelet, Result, container, pod, timed};

/// Not measured: files come into memory, programs get linked.
const WARM_UP: u32 = 3;
/// How long a container is chatty before its shims are looked at.
const CHATTY: Duration = Duration::from_secs(2);

#[derive(Debug, Default)]
struct Asked {
    image: String,
    logs: PathBuf,
    rounds: u32,
    runtimes: Vec<Runtime>,
    names: Vec<String>,
}

#[derive(Debug)]
struct Runtime {
    name: String,
    kubelet: Option<Kubelet>,
    address: String,
    /// The program of its shims.
    shim: PathBuf,
}

/// A pod that runs, and what it took.
struct Started {
    pod: String,
    container: String,
    took_ms: f64,
    /// RunPodSandbox alone.
    run_ms: f64,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let done = match asked(std::env::args().skip(1)) {
        Ok(asked) => measure(asked).await,
        Err(error) => Err(error),
    };
    match done {
        Ok(figures) => {
            println!("{figures:#}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn asked(mut words: impl Iterator<Item = String>) -> Result<Asked> {
    let mut asked = Asked { rounds: 50, ..Asked::default() };
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or(format!("{word} wants a value"));
        match word.as_str() {
            "--image" => asked.image = value()?,
            "--logs" => asked.logs = value()?.into(),
            "--rounds" => asked.rounds = value()?.parse().map_err(|error| format!("--rounds: {error}"))?,
            "--runtime" => asked.runtimes.push(runtime(&value()?)?),
            "start" | "bridge" | "stop" | "bridge-stop" | "cni" | "cni-run" | "cni-stop" | "exec"
            | "memory" | "lists" => asked.names.push(word),
            _ => return Err(format!("no such word: {word}")),
        }
    }
    Ok(asked)
}

fn runtime(text: &str) -> Result<Runtime> {
    let parts: Vec<&str> = text.splitn(3, '=').collect();
    let [name, address, shim] = parts[..] else {
        return Err(format!("--runtime {text}: not NAME=ADDRESS=SHIM"));
    };
    Ok(Runtime { name: name.into(), kubelet: None, address: address.into(), shim: shim.into() })
}

async fn measure(mut asked: Asked) -> Result<Value> {
    for runtime in &mut asked.runtimes {
        runtime.kubelet = Some(Kubelet::connect(&runtime.address).await?);
    }
    let mut figures = Vec::new();
    let (alone, timed): (Vec<&str>, Vec<&str>) =
        asked.names.iter().map(String::as_str).partition(|name| ["memory", "lists"].contains(name));
    let mut samples = vec![vec![Vec::new(); asked.runtimes.len()]; timed.len()];
    for round in 0..asked.rounds + WARM_UP {
        for (name, samples) in timed.iter().zip(&mut samples) {
            let taken = take(&mut asked.runtimes, name, round, &asked.image, &asked.logs).await?;
            if round >= WARM_UP {
                samples.iter_mut().zip(taken).for_each(|(samples, taken)| samples.extend(taken));
            }
        }
    }
    for (name, samples) in timed.iter().zip(samples) {
        let named = asked.runtimes.iter().zip(samples);
        let measured = named.filter(|(_, samples)| !samples.is_empty());
        figures.extend(measured.map(|(runtime, samples)| figure(name, &runtime.name, "ms", samples)));
    }
    for name in alone {
        if name == "lists" {
            figures
                .extend(measure_lists(&mut asked.runtimes, &asked.image, &asked.logs, asked.rounds).await?);
            continue;
        }
        let taken = take(&mut asked.runtimes, name, 0, &asked.image, &asked.logs).await?;
        let named = asked.runtimes.iter().zip(taken);
        figures.extend(named.map(|(runtime, taken)| figure(name, &runtime.name, "KiB", taken)));
    }
    Ok(Value::Array(figures))
}

/// One round of all runtimes; none of a peer for what only Berth has.
async fn take(
    runtimes: &mut [Runtime],
    name: &str,
    round: u32,
    image: &str,
    logs: &Path,
) -> Result<Vec<Vec<f64>>> {
    let mut taken = Vec::new();
    for runtime in runtimes {
        if is_on_bridge(name) && runtime.name != "berth" {
            taken.push(Vec::new());
            continue;
        }
        let pod = format!("{name}-{round}");
        let logs = logs.join(&runtime.name).join(&pod);
        let sample = runtime.sample(name, &pod, image, &logs).await;
        taken.push(sample.map_err(|error| format!("{} of {}: {error}", name, runtime.name))?);
    }
    Ok(taken)
}

/// Of Berth's alone: a peer would be waited for longer than its figures are worth.
async fn measure_lists(
    runtimes: &mut [Runtime],
    image: &str,
    logs: &Path,
    rounds: u32,
) -> Result<Vec<Value>> {
    let mut figures = Vec::new();
    for runtime in runtimes.iter_mut().filter(|runtime| runtime.name == "berth") {
        let Some(kubelet) = runtime.kubelet.as_mut() else { return Err("not connected".into()) };
        let mut thousand = lists::Thousand::default();
        let made = thousand.make(kubelet, image, logs).await;
        let mut samples: [Vec<f64>; lists::CALLS.len()] = Default::default();
        let mut measured = made;
        for round in 0..rounds + WARM_UP {
            if measured.is_err() {
                break;
            }
            measured = thousand.measure(kubelet, round as usize).await.map(|took| {
                if round >= WARM_UP {
                    samples.iter_mut().zip(took).for_each(|(samples, took)| samples.push(took));
                }
            });
        }
        let removed = thousand.remove(kubelet).await;
        measured.and(removed)?;
        let named = lists::CALLS.iter().zip(samples);
        figures.extend(named.map(|(name, samples)| figure(name, &runtime.name, "ms", samples)));
    }
    Ok(figures)
}

impl Runtime {
    /// Measures once; the pod is removed whatever happened.
    async fn sample(&mut self, name: &str, pod_name: &str, image: &str, logs: &Path) -> Result<Vec<f64>> {
        let shim = self.shim.clone();
        let Some(kubelet) = self.kubelet.as_mut() else { return Err("not connected".into()) };
        let command: &[&str] = match name {
            "memory" => &["/bin/spam", "0", "1000", "100"],
            _ => &["/bin/sleep", "1000"],
        };
        let own = is_on_bridge(name) || name.starts_with("cni");
        let network = if own { NamespaceMode::Pod } else { NamespaceMode::Node };
        let started = start(kubelet, pod_name, image, (command, network), logs).await?;
        if name.ends_with("stop") {
            return timed(kubelet.remove_pod(&started.pod)).await.map(|((), took_ms)| vec![took_ms]);
        }
        let sample = match name {
            "start" | "bridge" | "cni" => Ok(vec![started.took_ms]),
            "cni-run" => Ok(vec![started.run_ms]),
            "exec" => execute(kubelet, &started.container).await,
            _ => {
                tokio::time::sleep(CHATTY).await;
                private_dirty_kib(&shim).map(|kib| vec![kib])
            }
        };
        let removed = kubelet.remove_pod(&started.pod).await;
        sample.and_then(|sample| removed.map(|()| sample))
    }
}

fn is_on_bridge(name: &str) -> bool {
    name.starts_with("bridge")
}

async fn start(
    kubelet: &mut Kubelet,
    name: &str,
    image: &str,
    (command, network): (&[&str], NamespaceMode),
    logs: &Path,
) -> Result<Started> {
    let config = pod(name, logs, network);
    let mut pod_id = None;
    let work = async {
        let (pod, run_ms) = timed(kubelet.run_pod(&config)).await?;
        let pod = pod_id.insert(pod).clone();
        let id = kubelet.create(&pod, container(name, image, command), &config).await?;
        kubelet.start(&id).await?;
        Ok((pod, id, run_ms))
    };
    match timed(work).await {
        Ok(((pod, container, run_ms), took_ms)) => Ok(Started { pod, container, took_ms, run_ms }),
        Err(error) => {
            if let Some(pod) = pod_id {
                // What failed first is what is told.
                kubelet.remove_pod(&pod).await.ok();
            }
            Err(error)
        }
    }
}

async fn execute(kubelet: &mut Kubelet, container: &str) -> Result<Vec<f64>> {
    let mut samples = Vec::new();
    // A pod's start is dear, an exec is not: some in each.
    for _ in 0..4 {
        samples.push(timed(kubelet.exec(container, &["/bin/true"])).await?.1);
    }
    Ok(samples)
}

/// Adds up what is the processes' own and no page of a file. See proc_pid_smaps(5).
fn private_dirty_kib(program: &Path) -> Result<f64> {
    let mut kib = 0.0;
    let mut count = 0;
    for entry in fs::read_dir("/proc").map_err(|error| format!("read /proc: {error}"))?.flatten() {
        let place = entry.path();
        // A shim of ours runs its program by a mount without a place: then the word that it was called by says which.
        let called = fs::read(place.join("cmdline")).unwrap_or_default();
        let called = called.split(|byte| *byte == 0).next() == Some(program.as_os_str().as_bytes());
        if called || fs::read_link(place.join("exe")).is_ok_and(|exe| exe == program) {
            let text = fs::read_to_string(place.join("smaps_rollup"));
            let text =
                text.map_err(|error| format!("read {}: {error}", place.join("smaps_rollup").display()))?;
            kib += dirty(&text).ok_or("no Private_Dirty in smaps_rollup")?;
            count += 1;
        }
    }
    if count == 0 {
        return Err(format!("no process runs {}", program.display()));
    }
    Ok(kib)
}

fn dirty(rollup: &str) -> Option<f64> {
    let line = rollup.lines().find_map(|line| line.strip_prefix("Private_Dirty:"))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

fn figure(name: &str, runtime: &str, unit: &str, mut samples: Vec<f64>) -> Value {
    samples.sort_by(f64::total_cmp);
    json!({
        "name": name,
        "runtime": runtime,
        "unit": unit,
        "count": samples.len(),
        "p50": percentile(&samples, 50),
        "p90": percentile(&samples, 90),
        "p99": percentile(&samples, 99),
    })
}

/// The nearest rank of sorted samples.
fn percentile(sorted: &[f64], percent: usize) -> Option<f64> {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_nearest_ranks() {
        let samples: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(percentile(&samples, 50), Some(50.0));
        assert_eq!(percentile(&samples, 99), Some(99.0));
        assert_eq!(percentile(&[7.0], 50), Some(7.0));
        assert_eq!(percentile(&[], 50), None);
    }

    #[test]
    fn the_kernels_figure_is_read() {
        assert_eq!(dirty("Rss: 900 kB\nPrivate_Dirty:       212 kB\nReferenced: 1 kB\n"), Some(212.0));
        assert_eq!(dirty("Rss: 900 kB\n"), None);
    }

    #[test]
    fn runtimes_are_told_by_name_address_and_shim() {
        let words = ["--runtime", "berth=unix:///s=/b/berth-shim", "--rounds", "3", "exec"].map(String::from);
        let asked = asked(words.into_iter()).unwrap();
        assert_eq!((asked.rounds, asked.names), (3, vec!["exec".to_owned()]));
        assert_eq!(asked.runtimes[0].address, "unix:///s");
        assert!(runtime("berth").is_err());
    }
}
