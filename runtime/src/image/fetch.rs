//! Fetches one layer's blob: streamed to disk, hashed on the way, resumed where a connection or the daemon broke off.
//!
//! What came so far is a file under `partial/`. It stays after a failure of the network, and goes when its content is wrong
//! or the disk is full.

use std::{
    fs::{self, File},
    io::{Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use http::{StatusCode, header};
use reqwest::Response;
use tokio::{
    sync::{mpsc, watch},
    time::sleep,
};
use tokio_util::bytes::Bytes;
use tracing::info;

use super::{
    Phase,
    digest::Meter,
    document::Descriptor,
    install::{self, Watchers, blocking},
    registry::{Failure, Session, backoff},
    tries::Tries,
};
use crate::{Error, Kind, Result};

/// Failures in a row without a new byte, and failures at all.
const BARREN_MAX: u32 = 4;
const FAILURES_MAX: u32 = 20;
const STALLS_MAX: u32 = 2;
/// Chunks on the way from the network to the disk.
const AHEAD: usize = 16;
const TELL_EVERY: Duration = Duration::from_millis(100);

/// How far a blob is.
struct Transfer<'a> {
    descriptor: &'a Descriptor,
    sink: mpsc::Sender<Bytes>,
    watchers: &'a Watchers,
    bytes: u64,
    told: Instant,
}

impl Session {
    /// Writes the blob to `to`, checked against size and digest; gives up at the stop.
    pub(super) async fn fetch_layer(
        &self,
        descriptor: &Descriptor,
        to: &Path,
        watchers: &Watchers,
        mut stop: watch::Receiver<bool>,
    ) -> Result<()> {
        let (path, size) = (to.to_owned(), descriptor.size);
        let (file, meter) = blocking("open layer", move || open(&path, size)).await?;
        let resumed = meter.bytes;
        if resumed > 0 {
            info!(layer = %descriptor.digest, bytes = resumed, "layer resumed");
        }
        let fetched = self.fetch_into(file, meter, to, descriptor, watchers, &mut stop).await;
        let Err(error) = fetched else { return Ok(()) };
        if matches!(error.kind, Kind::Unavailable | Kind::Cancelled | Kind::Denied | Kind::NotFound) {
            return Err(error);
        }
        let path = to.to_owned();
        blocking("remove layer", move || remove(&path)).await?;
        // What an earlier pull left may be what is wrong.
        if error.kind == Kind::Invalid && resumed > 0 {
            return Box::pin(self.fetch_layer(descriptor, to, watchers, stop)).await;
        }
        Err(error)
    }

    /// Fetches what the file has not yet.
    async fn fetch_into(
        &self,
        file: File,
        meter: Meter,
        to: &Path,
        descriptor: &Descriptor,
        watchers: &Watchers,
        stop: &mut watch::Receiver<bool>,
    ) -> Result<()> {
        let (sink, chunks) = mpsc::channel(AHEAD);
        let (bytes, path) = (meter.bytes, to.to_owned());
        let size = descriptor.size;
        let writing = tokio::spawn(blocking("write layer", move || write(chunks, file, meter, path, size)));
        let mut transfer = Transfer { descriptor, sink, watchers, bytes, told: Instant::now() };
        watchers.layer(descriptor, bytes, Phase::Fetching);
        let fetched = tokio::select! {
            () = install::stopped(stop) => Err(install::interrupted(descriptor)),
            fetched = self.fetch(&mut transfer) => fetched,
        };
        drop(transfer);
        let written = writing
            .await
            .unwrap_or_else(|error| Err(Error::new(Kind::Internal, "write layer", "").because(error)));
        // A full disk is why the rest could not be fetched, so its error comes first.
        let meter = written?;
        fetched?;
        install::check(meter, descriptor)
    }

    async fn fetch(&self, transfer: &mut Transfer<'_>) -> Result<()> {
        let (mut barren, mut failures, mut stalls) = (0, 0, 0);
        let mut tries = Tries::default();
        loop {
            let before = transfer.bytes;
            let Err(failure) = self.fetch_rest(transfer).await else { return Ok(()) };
            let progressed = transfer.bytes > before;
            barren = if progressed { 1 } else { barren + 1 };
            failures += 1;
            tries.note(&failure);
            let wait = match failure {
                Failure::Passing(_) if barren < BARREN_MAX && failures < FAILURES_MAX => backoff(barren),
                Failure::Later(_, wait) if barren < BARREN_MAX && failures < FAILURES_MAX => wait,
                Failure::Stalled(_) if progressed && stalls + 1 < STALLS_MAX => {
                    stalls += 1;
                    backoff(barren)
                }
                failure => return Err(tries.error(failure)),
            };
            sleep(wait).await;
        }
    }

    async fn fetch_rest(&self, transfer: &mut Transfer<'_>) -> Result<(), Failure> {
        let Descriptor { digest, size, .. } = transfer.descriptor;
        if transfer.bytes == *size {
            return Ok(());
        }
        let from = (transfer.bytes > 0).then_some(transfer.bytes);
        let mut response = self.get(&format!("blobs/{digest}"), from).await?;
        // A server without ranges sends all of it again: pass over what we have.
        let mut passed_over = starts_at(&response, transfer)?;
        let mut pace = self.pace();
        while let Some(mut chunk) = self.chunk(&mut response, &mut pace).await? {
            let over = usize::try_from(transfer.bytes - passed_over).unwrap_or(usize::MAX).min(chunk.len());
            passed_over += over as u64;
            let chunk = chunk.split_off(over);
            if chunk.is_empty() {
                continue;
            }
            passed_over += chunk.len() as u64;
            transfer.take(chunk).await?;
        }
        if transfer.bytes < *size {
            let cause = format!("the connection ended after {} of {size} bytes of {digest}", transfer.bytes);
            return Err(Failure::Passing(self.unavailable(cause)));
        }
        Ok(())
    }
}

impl Transfer<'_> {
    async fn take(&mut self, chunk: Bytes) -> Result<(), Failure> {
        let Descriptor { digest, size, .. } = self.descriptor;
        self.bytes += chunk.len() as u64;
        if self.bytes > *size {
            let cause = format!("it has more bytes than the {size} of the manifest");
            return Err(Failure::Lasting(Error::invalid("verify blob", digest.to_string(), cause)));
        }
        if self.sink.send(chunk).await.is_err() {
            // The writer's own error is returned instead.
            return Err(Failure::Lasting(Error::new(Kind::Internal, "write layer", digest.to_string())));
        }
        if self.told.elapsed() >= TELL_EVERY {
            self.told = Instant::now();
            self.watchers.layer(self.descriptor, self.bytes, Phase::Fetching);
        }
        Ok(())
    }
}

/// The offset of the answer's first byte in the blob.
fn starts_at(response: &Response, transfer: &Transfer<'_>) -> Result<u64, Failure> {
    let wrong = |cause: String| {
        let object = transfer.descriptor.digest.to_string();
        Failure::Lasting(Error::invalid("verify blob", object, cause))
    };
    let range = response.headers().get(header::CONTENT_RANGE).and_then(|value| value.to_str().ok());
    let start = match response.status() {
        StatusCode::PARTIAL_CONTENT => range
            .and_then(|range| range.strip_prefix("bytes "))
            .and_then(|range| range.split('-').next())
            .and_then(|start| start.parse().ok())
            .ok_or_else(|| wrong("the registry sends a part without saying which".into()))?,
        _ => 0,
    };
    if start != 0 && start != transfer.bytes {
        return Err(wrong(format!(
            "asked for bytes from {}, the registry sends from {start}",
            transfer.bytes
        )));
    }
    match response.content_length() {
        Some(length) if start.saturating_add(length) != transfer.descriptor.size => Err(wrong(format!(
            "the registry has {} bytes of it, the manifest says {}",
            start.saturating_add(length),
            transfer.descriptor.size
        ))),
        _ => Ok(start),
    }
}

/// Opens what came of the blob so far, hashed, to be written on behind it.
fn open(path: &Path, size: u64) -> Result<(File, Meter)> {
    let fail = |error| Error::io("open layer", path.display().to_string(), error);
    let mut file =
        File::options().read(true).write(true).create(true).truncate(false).open(path).map_err(fail)?;
    let mut meter = Meter::default();
    if file.metadata().map_err(fail)?.len() > size {
        file.set_len(0).map_err(fail)?;
    }
    meter.read(&mut file).map_err(fail)?;
    file.seek(SeekFrom::Start(meter.bytes)).map_err(fail)?;
    Ok((file, meter))
}

fn remove(path: &Path) -> Result<()> {
    fs::remove_file(path).map_err(|error| Error::io("remove", path.display().to_string(), error))
}

fn write(
    mut chunks: mpsc::Receiver<Bytes>,
    mut file: File,
    mut meter: Meter,
    to: PathBuf,
    size: u64,
) -> Result<Meter> {
    while let Some(chunk) = chunks.blocking_recv() {
        file.write_all(&chunk).map_err(|error| {
            let missing = size.saturating_sub(meter.bytes);
            Error::io("write layer", to.display().to_string(), error)
                .hint(format!("{missing} of its {size} bytes found no room"))
        })?;
        meter.update(&chunk);
    }
    Ok(meter)
}
