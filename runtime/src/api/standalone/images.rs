//! Images of berth.v1: pull with its progress, archives in and out.

use berth_cri::berth::{self as api, images_server::Images};
use prost::bytes::Bytes;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::mpsc,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Status, Streaming};
use tracing::info_span;

use super::{Answer, BACKLOG, Flow, spool::Spool};
use crate::{
    Error, Kind, Result,
    api::{
        Door,
        status::{call, told},
    },
    error::Cause,
    image,
};

/// Of an archive, in one message.
const PIECE_BYTES: usize = 256 * 1024;

type Sender<T> = mpsc::Sender<Result<T, Status>>;

#[tonic::async_trait]
impl Images for Door {
    type PullStream = Flow<api::PullProgress>;
    async fn pull(&self, request: Request<api::PullRequest>) -> Answer<Self::PullStream> {
        let request = request.into_inner();
        let span = info_span!("rpc", op = "Pull", image = request.reference);
        call(span, async { pull(self, request) }).await
    }

    async fn load(&self, request: Request<Streaming<api::LoadRequest>>) -> Answer<api::LoadResponse> {
        call(info_span!("rpc", op = "Load"), load(self, request.into_inner())).await
    }

    type SaveStream = Flow<api::SaveChunk>;
    async fn save(&self, request: Request<api::SaveRequest>) -> Answer<Self::SaveStream> {
        let images = request.into_inner().images;
        let span = info_span!("rpc", op = "Save", image = images.join(" "));
        call(span, save(self, images)).await
    }

    type CheckStream = Flow<api::CheckProgress>;
    async fn check(&self, request: Request<api::CheckRequest>) -> Answer<Self::CheckStream> {
        let repair = if request.into_inner().repair { image::Repair::Yes } else { image::Repair::No };
        call(info_span!("rpc", op = "Images.Check"), async { Ok(check(self, repair)) }).await
    }

    async fn prune(&self, request: Request<api::PruneRequest>) -> Answer<api::PruneResponse> {
        let unused = if request.into_inner().all { image::Unused::Any } else { image::Unused::Untagged };
        let pruned = async {
            let image::Pruned { images, downloads, bytes } = self.images.prune(unused).await?;
            Ok(api::PruneResponse { images, downloads, bytes })
        };
        call(info_span!("rpc", op = "Images.Prune"), pruned).await
    }
}

fn check(door: &Door, repair: image::Repair) -> Flow<api::CheckProgress> {
    let (sender, receiver) = mpsc::channel(BACKLOG);
    let (teller, mut findings) = mpsc::channel(BACKLOG);
    let images = door.images.clone();
    tokio::spawn(async move {
        let forward = async {
            while let Some(found) = findings.recv().await {
                let event = api::check_progress::Event::Finding(finding(found));
                if sender.send(Ok(api::CheckProgress { event: Some(event) })).await.is_err() {
                    // Nobody listens: the check ends where it can't tell any more.
                    findings.close();
                }
            }
        };
        let (checked, ()) = tokio::join!(images.check(repair, teller), forward);
        let last = match checked {
            Ok(checked) => {
                let event = api::check_progress::Event::Done(api::CheckDone {
                    images: checked.images,
                    layers: checked.layers,
                    bytes: checked.bytes,
                    problems: checked.problems,
                    repaired: checked.repaired,
                });
                Ok(api::CheckProgress { event: Some(event) })
            }
            Err(error) => Err(told(&error)),
        };
        sender.send(last).await.ok();
    });
    Box::pin(ReceiverStream::new(receiver))
}

fn finding(found: image::Finding) -> api::CheckFinding {
    let (outcome, message) = match found.outcome {
        image::Outcome::Found => (api::check_finding::Outcome::Found, String::new()),
        image::Outcome::Repaired(how) => (api::check_finding::Outcome::Repaired, how),
        image::Outcome::Unrepaired(why) => (api::check_finding::Outcome::Unrepaired, why),
    };
    api::CheckFinding { object: found.object, problem: found.problem, outcome: outcome.into(), message }
}

fn pull(door: &Door, request: api::PullRequest) -> Result<Flow<api::PullProgress>> {
    if request.reference.is_empty() {
        return Err(Error::invalid("pull image", "reference", "the field is missing"));
    }
    let given = !request.username.is_empty() || !request.password.is_empty();
    let auth = given.then(|| image::Auth {
        username: request.username,
        password: request.password,
        ..Default::default()
    });
    let (progress, told_by_store) = mpsc::channel(BACKLOG);
    let asked = image::PullRequest {
        reference: request.reference,
        auth,
        plain_http: request.plain_http,
        namespace: None,
        progress: Some(progress),
    };
    let (sender, receiver) = mpsc::channel(BACKLOG);
    let images = door.images.clone();
    tokio::spawn(async move {
        tokio::select! {
            () = pulled(&images, asked, told_by_store, &sender) => {}
            // Nobody wants it any more; what was fetched is there for the next pull.
            () = sender.closed() => {}
        }
    });
    Ok(Box::pin(ReceiverStream::new(receiver)))
}

async fn pulled(
    images: &image::Store,
    asked: image::PullRequest,
    mut progress: mpsc::Receiver<image::Progress>,
    sender: &Sender<api::PullProgress>,
) {
    let reference = asked.reference.clone();
    let forward = async {
        while let Some(step) = progress.recv().await {
            // A client that has gone ends the pull from outside.
            sender.send(Ok(api::PullProgress { event: Some(event(step)) })).await.ok();
        }
    };
    // The store lets its end of `progress` go with its answer, which ends the other.
    let (image, ()) = tokio::join!(images.pull(asked), forward);
    let last = match image {
        Ok(image) => {
            let done = api::pull_progress::Event::Done(message(image, &reference));
            Ok(api::PullProgress { event: Some(done) })
        }
        Err(error) => Err(told(&error)),
    };
    sender.send(last).await.ok();
}

async fn load(door: &Door, mut input: Streaming<api::LoadRequest>) -> Result<api::LoadResponse> {
    const OP: &str = "load image";
    let spool = Spool::new(&door.config.daemon.root).await?;
    let mut file = spool.create().await?;
    let mut name = None;
    let cut = |status: Status| {
        Error::new(Kind::Cancelled, OP, "archive").because(Cause(status.message().to_owned()))
    };
    while let Some(request) = input.message().await.map_err(cut)? {
        match request.message {
            Some(api::load_request::Message::Name(given)) => name = Some(given),
            Some(api::load_request::Message::Chunk(chunk)) => {
                file.write_all(&chunk).await.map_err(|error| spool.failed("write", error))?;
            }
            None => {}
        }
    }
    file.flush().await.map_err(|error| spool.failed("write", error))?;
    drop(file);
    let name = name.filter(|name| !name.is_empty());
    let images = door.images.import(&spool.path, name.as_deref()).await?;
    let images = images.into_iter().map(|image| {
        let reference = image.tags.first().cloned().unwrap_or_default();
        message(image, &reference)
    });
    Ok(api::LoadResponse { images: images.collect() })
}

async fn save(door: &Door, images: Vec<String>) -> Result<Flow<api::SaveChunk>> {
    if images.is_empty() {
        return Err(Error::invalid("save images", "images", "none is named"));
    }
    let spool = Spool::new(&door.config.daemon.root).await?;
    door.images.save(&images, &spool.path).await?;
    let file = spool.open().await?;
    let (sender, receiver) = mpsc::channel(BACKLOG);
    tokio::spawn(async move {
        if let Err(error) = send(&spool, file, &sender).await {
            // Nobody listens any more where this fails.
            sender.send(Err(told(&error))).await.ok();
        }
    });
    Ok(Box::pin(ReceiverStream::new(receiver)))
}

async fn send(spool: &Spool, mut file: tokio::fs::File, sender: &Sender<api::SaveChunk>) -> Result<()> {
    loop {
        let mut piece = vec![0; PIECE_BYTES];
        let taken = file.read(&mut piece).await.map_err(|error| spool.failed("read", error))?;
        if taken == 0 {
            return Ok(());
        }
        piece.truncate(taken);
        if sender.send(Ok(api::SaveChunk { chunk: Bytes::from(piece) })).await.is_err() {
            return Ok(());
        }
    }
}

fn event(step: image::Progress) -> api::pull_progress::Event {
    match step {
        image::Progress::Resolved { digest } => api::pull_progress::Event::Resolved(digest),
        image::Progress::Layer { digest, bytes, total, phase } => {
            let phase = match phase {
                image::Phase::Waiting => api::layer_progress::Phase::Waiting,
                image::Phase::Fetching => api::layer_progress::Phase::Fetching,
                image::Phase::Unpacking => api::layer_progress::Phase::Unpacking,
                image::Phase::Done => api::layer_progress::Phase::Done,
                image::Phase::Present => api::layer_progress::Phase::Present,
            };
            api::pull_progress::Event::Layer(api::LayerProgress { digest, bytes, total, phase: phase.into() })
        }
    }
}

fn message(image: image::Image, reference: &str) -> api::PulledImage {
    api::PulledImage { id: image.id, reference: reference.to_owned(), size_bytes: image.size_bytes }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_phase_of_a_layer_is_told() {
        let rows = [
            (image::Phase::Waiting, api::layer_progress::Phase::Waiting),
            (image::Phase::Fetching, api::layer_progress::Phase::Fetching),
            (image::Phase::Unpacking, api::layer_progress::Phase::Unpacking),
            (image::Phase::Done, api::layer_progress::Phase::Done),
            (image::Phase::Present, api::layer_progress::Phase::Present),
        ];
        for (phase, expected) in rows {
            let step = image::Progress::Layer { digest: "sha256:01".into(), bytes: 1, total: 2, phase };
            let api::pull_progress::Event::Layer(layer) = event(step) else { panic!("no layer") };
            assert_eq!((layer.phase(), layer.bytes, layer.total), (expected, 1, 2));
        }
    }
}
