//! stats: what containers use. Shares need two samples, so the first one is never shown.

use std::{collections::HashMap, io};

use berth_cri::berth::{Stats, StatsRequest, StatsResponse};
use clap::Args;

use super::{
    command::Shape,
    connect::Daemon,
    failure::Result,
    human::{binary_bytes, decimal_bytes, short_id},
    output::{self, Format},
    terminal,
};

/// Clears the terminal and goes to its corner.
const CLEAR: &str = "\x1b[2J\x1b[H";

#[derive(Debug, Args)]
pub(super) struct Flags {
    /// Once, not again every second
    #[arg(long)]
    no_stream: bool,
    #[command(flatten)]
    shape: Shape,
    /// Those; else all that run
    #[arg(value_name = "CONTAINER")]
    containers: Vec<String>,
}

pub(super) async fn stats(daemon: &Daemon, flags: Flags, format: Format) -> Result<u8> {
    let request = StatsRequest { containers: flags.containers, follow: true };
    let mut samples = daemon.containers().stats(request).await?.into_inner();
    let clear = if terminal::is_terminal(io::stdout()) && !flags.no_stream { CLEAR } else { "" };
    let mut before = HashMap::new();
    let mut first = true;
    while let Some(sample) = samples.message().await? {
        let shown = !std::mem::take(&mut first) || sample.stats.is_empty();
        if shown {
            output::show(flags.shape.or(format), "berth.v1.StatsResponse", &sample, || {
                format!("{clear}{}", table(&sample, &before))
            })?;
            if flags.no_stream {
                break;
            }
        }
        before = sample.stats.into_iter().map(|stats| (stats.id.clone(), stats)).collect();
    }
    Ok(0)
}

fn table(sample: &StatsResponse, before: &HashMap<String, Stats>) -> String {
    let row = |stats: &Stats| {
        let cpu = before.get(&stats.id).and_then(|before| cpu(before, stats));
        let limit = Some(stats.memory_limit_bytes).filter(|limit| *limit > 0);
        let share = limit.map(|limit| 100.0 * stats.memory_bytes as f64 / limit as f64);
        [
            short_id(&stats.id).to_owned(),
            stats.name.clone(),
            percent(cpu),
            format!("{} / {}", binary_bytes(stats.memory_bytes), limit.map_or("-".into(), binary_bytes)),
            percent(share),
            format!("{} / {}", decimal_bytes(stats.rx_bytes), decimal_bytes(stats.tx_bytes)),
            format!("{} / {}", decimal_bytes(stats.read_bytes), decimal_bytes(stats.write_bytes)),
            stats.pids.to_string(),
        ]
    };
    let header =
        ["CONTAINER ID", "NAME", "CPU %", "MEM USAGE / LIMIT", "MEM %", "NET I/O", "BLOCK I/O", "PIDS"];
    output::table(header, sample.stats.iter().map(row))
}

/// Of one CPU, in hundredths; `None` where no time passed or the container began anew.
fn cpu(before: &Stats, after: &Stats) -> Option<f64> {
    let used = after.cpu_ns.checked_sub(before.cpu_ns)?;
    let passed = u64::try_from(after.at.checked_sub(before.at)?).ok().filter(|passed| *passed > 0)?;
    Some(100.0 * used as f64 / passed as f64)
}

fn percent(share: Option<f64>) -> String {
    share.map_or("-".into(), |share| format!("{share:.2}%"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_of_cpu_is_between_two_samples() {
        let sample = |at, cpu_ns| Stats { at, cpu_ns, ..Default::default() };
        let rows = [
            (sample(0, 0), sample(1000, 500), Some(50.0)),
            (sample(0, 100), sample(1000, 2100), Some(200.0)),
            (sample(5, 0), sample(5, 1), None),
            (sample(0, 10), sample(1000, 5), None),
            (sample(9, 0), sample(5, 1), None),
        ];
        for (before, after, expected) in rows {
            assert_eq!(cpu(&before, &after), expected, "{before:?} {after:?}");
        }
    }

    #[test]
    fn no_limit_is_no_share() {
        let stats =
            Stats { id: "ab".into(), name: "web".into(), memory_bytes: 1 << 20, ..Default::default() };
        let text = table(&StatsResponse { stats: vec![stats] }, &HashMap::new());
        assert!(text.contains("1.00MiB / -") && text.lines().count() == 2, "{text}");
    }
}
