//! Logs: from where it is asked, and with `follow` until the container has ended and all is sent.

use std::{os::fd::OwnedFd, path::Path, time::Duration};

use berth_cri::berth::{LogEntry, LogsRequest};
use rustix::fs::inotify::{CreateFlags, WatchFlags, add_watch, init};
use tokio::{
    io::unix::AsyncFd,
    sync::{mpsc, watch},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tracing::debug;

use super::{BACKLOG, Flow, create::blocking, tail::Tail};
use crate::{
    Error, Kind, Result,
    api::{Door, find, status},
    error::Cause,
    id::ContainerId,
    pod::ContainerState,
    streaming::ends,
};

/// A follower looks by itself so often, should the kernel tell it nothing, or can't (inotify watches run out).
const LOOK: Duration = Duration::from_secs(1);
const LOOK_UNTOLD: Duration = Duration::from_millis(200);

pub(super) async fn logs(door: &Door, request: LogsRequest) -> Result<Flow<LogEntry>> {
    let container = find::any_container(&door.pods, &request.container)?;
    let path = container.log.clone().ok_or_else(|| {
        Error::new(Kind::Precondition, "read log", container.id.short())
            .because(Cause("the container was created without a log".into()))
    })?;
    // Before the first read: nothing comes between.
    let news = request.follow.then(|| News::of(door, &path));
    let tail = blocking(move || Tail::open(&path, request.tail, request.since)).await?;
    let (sender, receiver) = mpsc::channel(BACKLOG);
    let door = door.clone();
    tokio::spawn(async move {
        if let Err(error) = send(&door, &container.id, tail, news, &sender).await {
            // Nobody listens any more where this fails.
            sender.send(Err(status::told(&error))).await.ok();
        }
    });
    Ok(Box::pin(ReceiverStream::new(receiver)))
}

type Sender = mpsc::Sender<Result<LogEntry, Status>>;

async fn send(
    door: &Door,
    id: &ContainerId,
    mut tail: Tail,
    mut news: Option<News>,
    sender: &Sender,
) -> Result<()> {
    loop {
        // Asked before the read: what it wrote before its end is in the file by then.
        let ended = ended(door, id);
        let batch;
        (tail, batch) = blocking(move || tail.read().map(|batch| (tail, batch))).await?;
        for entry in batch.entries {
            if sender.send(Ok(entry)).await.is_err() {
                return Ok(());
            }
        }
        if !batch.at_end {
            continue;
        }
        match &mut news {
            Some(news) if !ended => tokio::select! {
                () = news.next() => {}
                () = sender.closed() => return Ok(()),
            },
            _ => break,
        }
    }
    for entry in tail.finish() {
        if sender.send(Ok(entry)).await.is_err() {
            break;
        }
    }
    Ok(())
}

fn ended(door: &Door, id: &ContainerId) -> bool {
    match door.pods.container(id).map(|container| container.state) {
        Some(ContainerState::Created | ContainerState::Running | ContainerState::Backoff) => false,
        Some(ContainerState::Exited | ContainerState::Unknown) | None => true,
    }
}

/// Tells that the log may have grown, or the container ended.
struct News {
    files: Option<AsyncFd<OwnedFd>>,
    pods: Option<watch::Receiver<u64>>,
}

impl News {
    fn of(door: &Door, log: &Path) -> Self {
        let files = log.parent().and_then(|directory| match watched(directory) {
            Ok(files) => Some(files),
            Err(error) => {
                debug!(%error, directory = %directory.display(), "log directory not watched");
                None
            }
        });
        Self { files, pods: Some(door.pods.changes()) }
    }

    async fn next(&mut self) {
        let look = if self.files.is_some() { LOOK } else { LOOK_UNTOLD };
        let (files, pods) = (&mut self.files, &mut self.pods);
        let gone = tokio::select! {
            () = readable(files) => false,
            gone = changed(pods) => gone,
            () = tokio::time::sleep(look) => false,
        };
        if gone {
            self.pods = None;
        }
    }
}

fn watched(directory: &Path) -> std::io::Result<AsyncFd<OwnedFd>> {
    let inotify = init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    add_watch(&inotify, directory, WatchFlags::MODIFY | WatchFlags::CREATE | WatchFlags::MOVED_TO)?;
    ends::register(inotify)
}

/// Resolves when something happened in the directory; takes what is queued, which says no more than that.
async fn readable(files: &mut Option<AsyncFd<OwnedFd>>) {
    let Some(inotify) = files else { return std::future::pending().await };
    // An error is the event loop's end.
    let Ok(mut ready) = inotify.readable().await else { return std::future::pending().await };
    let mut events = [0; 4096];
    while rustix::io::read(ready.get_inner(), &mut events).is_ok_and(|taken| taken > 0) {}
    ready.clear_ready();
}

async fn changed(pods: &mut Option<watch::Receiver<u64>>) -> bool {
    match pods {
        Some(changes) => changes.changed().await.is_err(),
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_follower_is_woken_by_what_happens_to_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("container.log");
        let mut files = Some(watched(dir.path()).unwrap());
        for step in 0..3 {
            match step {
                0 => drop(std::fs::File::create(&log).unwrap()),
                1 => std::fs::write(&log, "x").unwrap(),
                _ => std::fs::rename(&log, dir.path().join("container.log.1")).unwrap(),
            }
            tokio::time::timeout(Duration::from_secs(10), readable(&mut files)).await.unwrap();
        }
    }

    #[tokio::test]
    async fn the_end_of_the_pods_is_no_busy_loop() {
        let (sender, receiver) = watch::channel(0);
        let mut pods = Some(receiver);
        sender.send_replace(1);
        assert!(!changed(&mut pods).await);
        drop(sender);
        assert!(changed(&mut pods).await);
    }
}
