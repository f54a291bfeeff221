//! Where the time of a pod's start goes: the steps that `berth explain` tells of pods that were just measured, and what the
//! kernel takes for a process in namespaces of its own with nobody's help.

use std::{
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result};
use serde_json::Value;

use super::{
    contender::Contender,
    figures::{FLOOR, Figures},
};
use crate::process;

/// What a step's figures are called by, before its own name.
pub const STEP: &str = "step: ";
/// In their order; `prepare` is the sum of two and no step of its own.
pub const STEPS: [&str; 8] = [
    "take addresses",
    "make namespaces",
    "connect network",
    "write files",
    "hold layers",
    "make cgroup",
    "launch",
    "start",
];
/// A pod's first container, by the client's name for it.
const CONTAINER: &str = "first";
const FLOOR_ROUNDS: usize = 20;

/// Reads the steps of as many pods as are still told of, the last ones first.
pub fn steps(ours: &Contender, pods: usize, figures: &mut Figures) -> Result<()> {
    for number in (0..pods).rev() {
        let mut explain = Command::new(ours.path("bin/berth"));
        explain.args(["--address", &ours.address(), "explain", &format!("default/turn-{number}")]);
        // Older ones are told of no longer.
        let Ok(told) = process::output(explain.args(["-o", "json"])) else { break };
        let told: Value = serde_json::from_str(&told).context("read what `berth explain` says")?;
        for (step, ms) in read(&told) {
            figures.add(&format!("{STEP}{step}"), &ours.name, "ms", ms);
        }
    }
    Ok(())
}

fn read(told: &Value) -> Vec<(String, f64)> {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let of_start = |story: &Value| {
        story["podId"].as_str().unwrap_or_default().is_empty() || story["name"].as_str() == Some(CONTAINER)
    };
    let stories = list(&told["stories"]).into_iter().filter(of_start);
    let steps = stories.flat_map(|story| list(&story["steps"])).filter_map(|step| {
        let what = step["what"].as_str().filter(|what| STEPS.contains(what))?.to_owned();
        let micros: f64 = step["tookUs"].as_str()?.parse().ok()?;
        Some((what, micros / 1000.0))
    });
    steps.collect()
}

/// `true` by unshare(1), in new mount, PID, network, IPC and UTS namespaces.
pub fn floor(figures: &mut Figures) -> Result<()> {
    for _ in 0..FLOOR_ROUNDS {
        let began = Instant::now();
        let mut unshare = Command::new("unshare");
        unshare.args(["--mount", "--pid", "--net", "--ipc", "--uts", "--fork", "true"]).stdin(Stdio::null());
        process::output(&mut unshare)?;
        figures.add("pod up", FLOOR, "ms", began.elapsed().as_secs_f64() * 1000.0);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_steps_of_the_pod_and_its_first_container_are_read() {
        let step = |what: &str, took: &str| json!({ "what": what, "tookUs": took });
        let told = json!({ "stories": [
            { "name": "second", "podId": "p", "steps": [step("launch", "9000")] },
            { "name": "first", "podId": "p", "steps": [step("prepare", "7"), step("launch", "1500"), step("ended", "")] },
            { "name": "default/turn-1", "podId": "", "steps": [step("make namespaces", "250")] },
        ]});
        assert_eq!(read(&told), [("launch".to_owned(), 1.5), ("make namespaces".to_owned(), 0.25)]);
        assert_eq!(read(&json!({})), []);
    }
}
