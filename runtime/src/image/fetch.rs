//! Fetches one layer's blob: streamed to disk, hashed on the way, resumed where a connection or the daemon broke off.
//! Of a big one several pieces come at once; they are put down in order, so what is there is always a beginning.
//!
//! What came so far is a file under `partial/`. It stays after a failure of the network, and goes when its content is wrong
//! or the disk is full.

use std::{
    fs::{self, File},
    io::{Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::Arc,
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
    growth::Growth,
    install::{self, Watchers, blocking},
    pieces::{self, Allowance},
    registry::{Failure, Session, Span, backoff},
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

/// What is to be fetched, where to, and who wants to know.
#[derive(Debug, Clone)]
pub(super) struct Errand<'a> {
    pub(super) descriptor: &'a Descriptor,
    /// What is there already is gone on with.
    pub(super) to: &'a Path,
    pub(super) growth: &'a Arc<Growth>,
    pub(super) pieces: &'a Allowance,
    pub(super) watchers: &'a Watchers,
    /// Gives up when this is told.
    pub(super) stop: watch::Receiver<bool>,
}

/// How far a blob is.
pub(super) struct Transfer<'a> {
    pub(super) descriptor: &'a Descriptor,
    pub(super) sink: mpsc::Sender<Bytes>,
    pub(super) bytes: u64,
    /// None: pieces did not work out.
    pieces: Option<&'a Allowance>,
    watchers: &'a Watchers,
    told: Instant,
}

impl Session {
    /// Writes the blob down, checked against size and digest; gives up at the stop.
    pub(super) async fn fetch_layer(&self, errand: Errand<'_>) -> Result<()> {
        let (path, size) = (errand.to.to_owned(), errand.descriptor.size);
        let growth = Arc::clone(errand.growth);
        let (file, meter) = blocking("open layer", move || open(&path, size, &growth)).await?;
        let resumed = meter.bytes;
        if resumed > 0 {
            info!(layer = %errand.descriptor.digest, bytes = resumed, "layer resumed");
        }
        let fetched = self.fetch_into(file, meter, errand.clone()).await;
        let Err(error) = fetched else { return Ok(()) };
        if matches!(error.kind, Kind::Unavailable | Kind::Cancelled | Kind::Denied | Kind::NotFound) {
            return Err(error);
        }
        errand.growth.spoil();
        let path = errand.to.to_owned();
        blocking("remove layer", move || remove(&path)).await?;
        // What an earlier pull left may be what is wrong.
        if error.kind == Kind::Invalid && resumed > 0 {
            return Box::pin(self.fetch_layer(errand)).await;
        }
        Err(error)
    }

    /// Fetches what the file has not yet.
    async fn fetch_into(&self, file: File, meter: Meter, errand: Errand<'_>) -> Result<()> {
        let Errand { descriptor, to, growth, pieces, watchers, mut stop } = errand;
        let (sink, chunks) = mpsc::channel(AHEAD);
        let (bytes, size) = (meter.bytes, descriptor.size);
        let pen = Pen { file, meter, to: to.to_owned(), size, growth: Arc::clone(growth) };
        let writing = tokio::spawn(blocking("write layer", move || pen.write(chunks)));
        let mut transfer =
            Transfer { descriptor, sink, bytes, pieces: Some(pieces), watchers, told: Instant::now() };
        watchers.layer(descriptor, bytes, Phase::Fetching);
        let fetched = tokio::select! {
            () = install::stopped(&mut stop) => Err(install::interrupted(descriptor)),
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
            transfer.pieces = None;
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
        let pieces = transfer.pieces.filter(|_| pieces::is_worth(size - transfer.bytes));
        let mut response = match pieces {
            Some(pieces) => match self.fetch_pieces(transfer, pieces).await? {
                Some(response) => response,
                None => return Ok(()),
            },
            None => {
                let span = (transfer.bytes > 0).then_some(Span { from: transfer.bytes, to: None });
                self.get(&format!("blobs/{digest}"), span).await?
            }
        };
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
        let bytes = chunk.len();
        if self.bytes + bytes as u64 > *size {
            let cause = format!("it has more bytes than the {size} of the manifest");
            return Err(Failure::Lasting(Error::invalid("verify blob", digest.to_string(), cause)));
        }
        if self.sink.send(chunk).await.is_err() {
            return Err(self.unwritten());
        }
        self.note(bytes);
        Ok(())
    }

    /// The writer is gone. Its own error is returned instead of this.
    pub(super) fn unwritten(&self) -> Failure {
        Failure::Lasting(Error::new(Kind::Internal, "write layer", self.descriptor.digest.to_string()))
    }

    /// Counts what was sent to the writer.
    pub(super) fn note(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
        if self.told.elapsed() >= TELL_EVERY {
            self.told = Instant::now();
            self.watchers.layer(self.descriptor, self.bytes, Phase::Fetching);
        }
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
fn open(path: &Path, size: u64, growth: &Growth) -> Result<(File, Meter)> {
    let fail = |error| Error::io("open layer", path.display().to_string(), error);
    let mut file =
        File::options().read(true).write(true).create(true).truncate(false).open(path).map_err(fail)?;
    let mut meter = Meter::default();
    if file.metadata().map_err(fail)?.len() > size {
        file.set_len(0).map_err(fail)?;
    }
    meter.read(&mut file).map_err(fail)?;
    file.seek(SeekFrom::Start(meter.bytes)).map_err(fail)?;
    growth.begin(&file, meter.bytes).map_err(fail)?;
    Ok((file, meter))
}

fn remove(path: &Path) -> Result<()> {
    fs::remove_file(path).map_err(|error| Error::io("remove", path.display().to_string(), error))
}

/// Writes what comes behind what is there.
struct Pen {
    file: File,
    meter: Meter,
    to: PathBuf,
    /// As the manifest has it.
    size: u64,
    growth: Arc<Growth>,
}

impl Pen {
    fn write(mut self, mut chunks: mpsc::Receiver<Bytes>) -> Result<Meter> {
        while let Some(chunk) = chunks.blocking_recv() {
            self.put(&chunk)?;
            // Who follows is woken once for all that is there.
            for _ in 0..AHEAD {
                let Ok(chunk) = chunks.try_recv() else { break };
                self.put(&chunk)?;
            }
            self.growth.grew(self.meter.bytes);
        }
        Ok(self.meter)
    }

    fn put(&mut self, chunk: &[u8]) -> Result<()> {
        self.file.write_all(chunk).map_err(|error| {
            let (missing, size) = (self.size.saturating_sub(self.meter.bytes), self.size);
            Error::io("write layer", self.to.display().to_string(), error)
                .hint(format!("{missing} of its {size} bytes found no room"))
        })?;
        self.meter.update(chunk);
        Ok(())
    }
}
