//! A container that writes as fast as it can, until its last line is in its log.

use std::{
    fs::File,
    io::{BufRead, BufReader, Read, Seek, SeekFrom},
    path::Path,
    time::{Duration, Instant},
};

use crate::{Report, Runtime, kubelet::Result, turns::ms};

const PAUSE: Duration = Duration::from_millis(2);
const WITHIN: Duration = Duration::from_secs(300);

pub async fn all(runtimes: &mut [Runtime], lines: usize, length: usize, report: &mut Report) {
    for runtime in runtimes {
        match one(runtime, lines, length).await {
            Ok((took_ms, records)) => {
                report.samples("log", &runtime.name, "ms", vec![took_ms]);
                report.samples("log records", &runtime.name, "records", vec![records as f64]);
            }
            Err(error) => report.failed("logs", &runtime.name, &error),
        }
    }
}

async fn one(runtime: &mut Runtime, lines: usize, length: usize) -> Result<(f64, usize)> {
    let name = "logs";
    let (count, long) = (lines.to_string(), length.to_string());
    let began = Instant::now();
    let (pod, _) = runtime.run(name, &["/bin/spam", &count, "0", &long]).await?;
    let directory = runtime.logs.join(name);
    let log = directory.join(format!("{name}.log"));
    let written = written(&log, &format!("line {lines:06} ")).await;
    let took_ms = ms(began);
    let removed = runtime.kubelet.remove_pod(&pod).await;
    let counted = written.and(removed).and_then(|()| records(&log));
    // A gigabyte: the next one needs the room.
    std::fs::remove_dir_all(&directory)
        .map_err(|error| format!("remove {}: {error}", directory.display()))?;
    counted.map(|records| (took_ms, records))
}

/// Waits for the last line.
async fn written(log: &Path, last: &str) -> Result<()> {
    let began = Instant::now();
    let mut file = loop {
        match File::open(log) {
            Ok(file) => break file,
            Err(error) if began.elapsed() > WITHIN => return Err(format!("{}: {error}", log.display())),
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    };
    let mut end = Vec::new();
    while began.elapsed() < WITHIN {
        let look = |file: &mut File, end: &mut Vec<u8>| -> std::io::Result<()> {
            let length = file.metadata()?.len();
            file.seek(SeekFrom::Start(length.saturating_sub(1 << 16)))?;
            end.clear();
            file.read_to_end(end).map(drop)
        };
        look(&mut file, &mut end).map_err(|error| format!("read {}: {error}", log.display()))?;
        if end.ends_with(b"\n") && end.windows(last.len()).any(|part| part == last.as_bytes()) {
            return Ok(());
        }
        tokio::time::sleep(PAUSE).await;
    }
    Err(format!("no {last:?} in {} within {} s", log.display(), WITHIN.as_secs()))
}

fn records(log: &Path) -> Result<usize> {
    let told = |error: std::io::Error| format!("read {}: {error}", log.display());
    let mut file = BufReader::with_capacity(1 << 20, File::open(log).map_err(told)?);
    let mut count = 0;
    loop {
        let piece = file.fill_buf().map_err(told)?;
        if piece.is_empty() {
            return Ok(count);
        }
        count += piece.iter().filter(|byte| **byte == b'\n').count();
        let length = piece.len();
        file.consume(length);
    }
}
