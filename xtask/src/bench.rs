//! `bench`: Berth on a private berthd, and the peers that are found, measured by one client in turns.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::Value;

use crate::{cargo, cni, debian, demo, interrupt, oci, private::Private, process};

#[derive(Debug, Args)]
pub struct Flags {
    /// Only these, in turns: start, bridge, stop, bridge-stop, exec, memory, lists, cni or oci
    names: Vec<String>,
    /// Where containerd, its shim and runc or crun are
    #[arg(long, value_name = "DIR")]
    peers: Option<PathBuf>,
    /// Where CNI's bridge, host-local and loopback plugins are
    #[arg(long, value_name = "DIR")]
    cni_plugins: Option<PathBuf>,
    /// Write the figures here as well
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// How often each is measured
    #[arg(long, value_name = "N", default_value_t = 50)]
    rounds: u32,
}

/// What is asked of a daemon over CRI.
const NAMES: &[&str] = &["start", "bridge", "stop", "bridge-stop", "exec", "memory", "lists"];
/// In networks that plugins make.
const CNI: &[&str] = &["cni", "cni-run", "cni-stop"];
/// What needs none.
const OCI: &str = "oci";

pub fn run(flags: &Flags) -> Result<()> {
    let all = || NAMES.iter().copied().chain([CNI[0], OCI]);
    if let Some(name) = flags.names.iter().find(|name| !all().any(|known| known == *name)) {
        bail!("no benchmark {name:?}; there are {}", all().collect::<Vec<_>>().join(", "));
    }
    let asked = |name: &str| flags.names.is_empty() || flags.names.iter().any(|asked| asked == name);
    let names: Vec<&str> = NAMES.iter().copied().filter(|name| asked(name)).collect();
    if !rustix::process::geteuid().is_root() {
        bail!("benchmarks start containers, which takes root");
    }
    debian::install(debian::RUNTIME)?;
    // As it is shipped: what is measured is not what a debugger wants.
    let mut programs = cargo::build(&["--release", "--workspace", "--bins"])?;
    programs.extend(cargo::shim()?);
    interrupt::catch()?;

    let mut figures: Vec<Value> = Vec::new();
    if !names.is_empty() {
        figures.extend(over_cri(flags, &names, &programs, None)?);
    }
    if asked(CNI[0]) {
        match &flags.cni_plugins {
            None => {
                eprintln!("xtask: no networks of plugins to measure: --cni-plugins DIR names where they are")
            }
            Some(plugins) => {
                let plugins =
                    plugins.canonicalize().with_context(|| format!("find {}", plugins.display()))?;
                cni::check(&plugins)?;
                figures.extend(over_cri(flags, CNI, &programs, Some(&plugins))?);
            }
        }
    }
    if asked(OCI) {
        let place = oci::Place::new(&programs)?;
        figures.extend(oci::measure(&place, flags.peers.as_deref(), flags.rounds)?);
    }
    let figures = Value::Array(figures);
    print!("{}", table(&figures));
    if let Some(file) = &flags.json {
        fs::write(file, figures.to_string()).with_context(|| format!("write {}", file.display()))?;
    }
    Ok(())
}

/// Measures a private berthd, and the peers' daemons, by one client.
fn over_cri(
    flags: &Flags,
    names: &[&str],
    programs: &cargo::Programs,
    plugins: Option<&Path>,
) -> Result<Vec<Value>> {
    let private = Private::start(programs, "bench", plugins)?;
    let archive = private.path("image.tar");
    demo::write_image(programs.path("fixture")?, &archive)?;
    let mut load = Command::new(private.path("bin/berth"));
    process::output(load.args(["--address", &private.address(), "load", "-i"]).arg(&archive))?;

    let mut client = Command::new(programs.path("bench")?);
    client
        .args(["--image", demo::IMAGE, "--rounds", &flags.rounds.to_string(), "--logs"])
        .arg(private.path("pod-logs"));
    client.arg("--runtime").arg(format!(
        "berth={}={}",
        private.address(),
        private.path("bin/berth-shim").display()
    ));
    let peers = crate::peers::start(flags.peers.as_deref(), programs.path("fixture")?, plugins)?;
    for peer in &peers {
        client.arg("--runtime").arg(peer.runtime());
    }
    let measured = process::output(client.args(names));
    if measured.is_err() {
        eprintln!("xtask: the end of berthd's log:\n{}", private.log());
        process::succeeds(Command::new(programs.path("demo")?).arg(private.address()).arg("--sweep"));
    }
    drop(peers);
    private.stop().iter().for_each(|line| eprintln!("xtask: cleaning up: {line}"));
    serde_json::from_str(&measured?).context("read what the client measured")
}

/// A line for each figure of each runtime; behind a peer's, how many times Berth's it is.
fn table(figures: &Value) -> String {
    let mut text = format!(
        "{:<24} {:<12} {:>10} {:>10} {:>10} {:>6} {:>8}\n",
        "", "runtime", "p50", "p90", "p99", "", "ratio"
    );
    let list = figures.as_array().map(Vec::as_slice).unwrap_or_default();
    let word = |figure: &Value, key: &str| figure[key].as_str().unwrap_or_default().to_owned();
    let number = |figure: &Value, key: &str| figure[key].as_f64().unwrap_or(f64::NAN);
    for figure in list {
        let same = |other: &&Value| other["name"] == figure["name"] && other["runtime"] == "berth";
        let ours = list.iter().find(same).map_or(f64::NAN, |ours| number(ours, "p50"));
        let ratio = number(figure, "p50") / ours;
        text += &format!(
            "{:<24} {:<12} {:>10.2} {:>10.2} {:>10.2} {:>6} {ratio:>7.2}x\n",
            word(figure, "name"),
            word(figure, "runtime"),
            number(figure, "p50"),
            number(figure, "p90"),
            number(figure, "p99"),
            word(figure, "unit"),
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_peer_is_compared_by_the_median() {
        let figure = |runtime: &str, p50: f64| json!({ "name": "start", "runtime": runtime, "unit": "ms", "p50": p50, "p90": 9.0, "p99": 10.0 });
        let text = table(&json!([figure("berth", 4.0), figure("containerd", 10.0)]));
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[1].ends_with("1.00x") && lines[2].ends_with("2.50x"), "{text}");
    }
}
