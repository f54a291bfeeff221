//! Logs: a container writes as fast as it can, beside the same program whose output is drained by a pipe's reader.

use std::{
    io::Read,
    path::Path,
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result};

use super::{
    Group,
    client::{Client, words},
    contender::{Contender, of_each_daemon},
    figures::{FLOOR, Figures},
};
use crate::{interrupt, oci::children_cpu};

/// By name: how long a line is without its end.
const LINES: [(&str, usize); 2] = [("short lines", 73), ("long lines", 8191)];
const MOST_ROUNDS: usize = 3;

/// So many bytes by each contender in turns, at both lengths.
pub fn measure(
    group: &Group,
    contenders: &[Contender],
    producer: &Path,
    bytes: usize,
    figures: &mut Figures,
) -> Result<()> {
    for _ in 0..group.rounds.min(MOST_ROUNDS) {
        let began = Instant::now();
        for (name, length) in LINES {
            let lines = bytes / (length + 1);
            let mut floor_cpu = f64::NAN;
            if let Err(error) = floor(producer, lines, length).map(|(wall_ms, cpu_ms)| {
                figures.add(&format!("{name}: wall"), FLOOR, "s", wall_ms / 1000.0);
                floor_cpu = cpu_ms;
            }) {
                figures.fail(name, FLOOR, &format!("{error:#}"));
            }
            for contender in of_each_daemon(contenders, |contender| contender.name.clone()) {
                interrupt::check()?;
                if figures.has_failed(name, &contender.name) {
                    continue;
                }
                let before = contender.cpu_ms();
                match one(group.client, contender, lines, length) {
                    Ok((wall_ms, records)) => {
                        let road = contender.cpu_ms() - before - floor_cpu;
                        let runtime = contender.name.as_str();
                        figures.add(&format!("{name}: wall"), runtime, "s", wall_ms / 1000.0);
                        figures.add(&format!("{name}: CPU"), runtime, "s", road / 1000.0);
                        figures.add(&format!("{name}: records"), runtime, "", records);
                    }
                    Err(error) => figures.fail(name, &contender.name, &format!("{error:#}")),
                }
            }
        }
        if !group.until.has_room_for(began.elapsed()) {
            break;
        }
    }
    Ok(())
}

fn one(client: &Client, contender: &Contender, lines: usize, length: usize) -> Result<(f64, f64)> {
    let answers = client.ask([contender], &words("logs", &[lines, length]))?;
    let of = |name: &str| {
        let answer = answers.iter().find(|answer| answer.name == name || answer.outcome.is_err());
        let answer = answer.with_context(|| format!("no {name}"))?;
        let samples = answer.outcome.as_ref().map_err(|why| anyhow::anyhow!("{why}"))?;
        samples.first().copied().with_context(|| format!("no {name}"))
    };
    Ok((of("log")?, of("log records")?))
}

/// The producer alone: its time and its processor time, in milliseconds.
fn floor(producer: &Path, lines: usize, length: usize) -> Result<(f64, f64)> {
    let before = children_cpu()?;
    let began = Instant::now();
    let mut child = Command::new(producer)
        .args(["spam", &lines.to_string(), "0", &length.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("start the producer")?;
    let mut output = child.stdout.take().context("the producer's output")?;
    let mut piece = vec![0; 1 << 16];
    while output.read(&mut piece).context("read the producer's output")? > 0 {}
    child.wait().context("wait for the producer")?;
    let wall_ms = began.elapsed().as_secs_f64() * 1000.0;
    Ok((wall_ms, (children_cpu()?.saturating_sub(before)).as_secs_f64() * 1000.0))
}
