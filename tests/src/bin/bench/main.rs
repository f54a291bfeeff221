//! The client of `cargo xtask bench`: does one thing to runtimes over CRI, in turns where there are several, and prints
//! what it measured as JSON.
//!
//! `bench --image IMAGE --logs DIR --runtime NAME=unix:///SOCKET=CGROUP... VERB [NUMBER...]`
//!
//! ```text
//!   turns ROUNDS SECONDS    pods one at a time, each call of their lives; no round begins after that time
//!   burst CLIENTS PODS      clients at once until all pods run, then until all are gone
//!   up FROM TO CLIENTS      makes pods fleet-FROM to fleet-TO, and leaves them
//!   down CLIENTS            removes all pods there are
//!   probes SECONDS          one ExecSync a second in every container
//!   lists ROUNDS            lists, statuses and stats of what there is
//!   await COUNT SECONDS     until so many containers are listed as running, whether anybody answers or not
//!   chatty                  a pod whose container writes a thousand lines a second, and leaves it
//!   streams ROUNDS MIB      port-forward and attach
//!   logs LINES LENGTH       one container that writes as fast as it can
//!   pull IMAGE...           all at once, into one runtime
//! ```
//! Output: a list of `{name, runtime, unit, samples}` and `{name, runtime, failed}`. A runtime that fails is left out from
//! there on. Pods have networks of their own, as the runtime is configured to make them.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use berth_cri::v1::{NamespaceMode, PodSandboxConfig};
use serde_json::{Value, json};

mod burst;
mod fleet;
mod lists;
mod logs;
mod pull;
mod questions;
mod streams;
mod turns;

#[allow(dead_code)] // The demo uses the rest of it.
#[path = "../../kubelet.rs"]
mod kubelet;

use kubelet::{Kubelet, Result};

/// Writes nothing and lives until it is told to end.
pub const IDLE: &[&str] = &["/bin/sleep", "100000"];

/// A runtime, and how pods are asked of it.
#[derive(Debug)]
pub struct Runtime {
    pub name: String,
    pub kubelet: Kubelet,
    address: String,
    cgroup_parent: String,
    pub image: String,
    pub logs: PathBuf,
}

/// What was measured, and what failed.
#[derive(Debug, Default)]
pub struct Report(Vec<Value>);

#[derive(Debug, Default)]
struct Asked {
    image: String,
    logs: PathBuf,
    /// Name, address, cgroup.
    runtimes: Vec<[String; 3]>,
    verb: String,
    words: Vec<String>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let done = match asked(std::env::args().skip(1)) {
        Ok(asked) => measure(asked).await,
        Err(error) => Err(error),
    };
    match done {
        Ok(report) => {
            println!("{}", Value::Array(report.0));
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn asked(mut words: impl Iterator<Item = String>) -> Result<Asked> {
    let mut asked = Asked::default();
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or(format!("{word} wants a value"));
        match word.as_str() {
            "--image" => asked.image = value()?,
            "--logs" => asked.logs = value()?.into(),
            "--runtime" => asked.runtimes.push(runtime(&value()?)?),
            _ if asked.verb.is_empty() => asked.verb = word,
            _ => asked.words.push(word),
        }
    }
    Ok(asked)
}

fn runtime(text: &str) -> Result<[String; 3]> {
    let parts: Vec<&str> = text.splitn(3, '=').collect();
    match parts[..] {
        [name, address, cgroup] => Ok([name, address, cgroup].map(str::to_owned)),
        _ => Err(format!("--runtime {text}: not NAME=ADDRESS=CGROUP")),
    }
}

async fn measure(asked: Asked) -> Result<Report> {
    let mut report = Report::default();
    let numbers = || -> Result<Vec<usize>> {
        let number = |word: &String| word.parse().map_err(|error| format!("{word}: {error}"));
        asked.words.iter().map(number).collect()
    };
    if asked.verb == "await" {
        let [[name, address, _]] = &asked.runtimes[..] else { return Err("await: one runtime".into()) };
        let [count, seconds] = numbers()?[..] else { return Err("await COUNT SECONDS".into()) };
        let at = fleet::listed(address, count, Duration::from_secs(seconds as u64)).await?;
        report.samples("listed at", name, "ns", vec![at]);
        return Ok(report);
    }
    let mut runtimes = Vec::new();
    for [name, address, cgroup_parent] in asked.runtimes.clone() {
        runtimes.push(Runtime {
            kubelet: match asked.verb.as_str() {
                "pull" => Kubelet::connect_for(&address, pull::LONGEST).await?,
                _ => Kubelet::connect(&address).await?,
            },
            logs: asked.logs.join(&name),
            image: asked.image.clone(),
            name,
            address,
            cgroup_parent,
        });
    }
    match asked.verb.as_str() {
        "pull" => pull::all(&mut runtimes, &asked.words, &mut report).await?,
        verb => match (verb, &numbers()?[..]) {
            ("turns", &[rounds, seconds]) => turns::take(runtimes, rounds, seconds, &mut report).await,
            ("burst", &[clients, pods]) => burst::all(&runtimes, clients, pods, &mut report).await,
            ("up", &[from, to, clients]) => fleet::up(&runtimes, from..to, clients, &mut report).await,
            ("down", &[clients]) => fleet::down(&mut runtimes, clients, &mut report).await,
            ("chatty", &[]) => {
                for runtime in &mut runtimes {
                    runtime.run("chatty", &["/bin/spam", "0", "1000", "100"]).await?;
                }
            }
            ("probes", &[seconds]) => fleet::probes(&mut runtimes, seconds, &mut report).await,
            ("questions", &[seconds]) => questions::ask(&mut runtimes, seconds, &mut report).await,
            ("lists", &[rounds]) => lists::all(&mut runtimes, rounds, &mut report).await,
            ("streams", &[rounds, mib]) => streams::all(&mut runtimes, rounds, mib, &mut report).await,
            ("logs", &[lines, length]) => logs::all(&mut runtimes, lines, length, &mut report).await,
            _ => return Err(format!("no such verb, or not its numbers: {verb} {:?}", asked.words)),
        },
    }
    Ok(report)
}

impl Runtime {
    /// A pod with a network of its own, its logs in a directory of its own.
    pub fn pod(&self, name: &str) -> PodSandboxConfig {
        let mut config = kubelet::pod(name, &self.logs.join(name), NamespaceMode::Pod);
        if let Some(linux) = config.linux.as_mut() {
            linux.cgroup_parent = self.cgroup_parent.clone();
        }
        config
    }

    /// Another connection to it.
    pub async fn again(&self) -> Result<Self> {
        Ok(Self {
            name: self.name.clone(),
            kubelet: Kubelet::connect(&self.address).await?,
            address: self.address.clone(),
            cgroup_parent: self.cgroup_parent.clone(),
            image: self.image.clone(),
            logs: self.logs.clone(),
        })
    }

    /// Runs a pod with one container; what is half done after a failure is removed.
    pub async fn run(&mut self, name: &str, command: &[&str]) -> Result<(String, String)> {
        let config = self.pod(name);
        let pod = self.kubelet.run_pod(&config).await?;
        let work = async {
            let asked = kubelet::container(name, &self.image, command);
            let container = self.kubelet.create(&pod, asked, &config).await?;
            self.kubelet.start(&container).await?;
            Ok(container)
        };
        match work.await {
            Ok(container) => Ok((pod, container)),
            Err(error) => {
                // What failed first is what is told.
                self.kubelet.remove_pod(&pod).await.ok();
                Err(error)
            }
        }
    }
}

impl Report {
    pub fn samples(&mut self, name: &str, runtime: &str, unit: &str, samples: Vec<f64>) {
        self.0.push(json!({ "name": name, "runtime": runtime, "unit": unit, "samples": samples }));
    }

    pub fn failed(&mut self, name: &str, runtime: &str, why: &str) {
        self.0.push(json!({ "name": name, "runtime": runtime, "failed": why }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runtimes_are_told_by_name_address_and_cgroup() {
        let words = ["--runtime", "berth=unix:///s=/b/pods", "turns", "3", "60"].map(String::from);
        let asked = asked(words.into_iter()).unwrap();
        assert_eq!((asked.verb.as_str(), asked.words.len()), ("turns", 2));
        assert_eq!(asked.runtimes[0][1], "unix:///s");
        assert!(runtime("berth").is_err());
    }
}
