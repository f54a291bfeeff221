//! Attach: the container's own streams, from `ready` on, until it has ended for good. The shim stands between, so a
//! client that goes away disturbs nobody.

use std::{sync::Arc, time::Duration};

use berth_cri::berth::{self as api, attach_request::Message, output::Message as Said};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::{
    BACKLOG, Flow,
    exec::{Sender, Streams, first, output, resize, write},
    lifecycle,
};
use crate::{
    Error, Kind, Result,
    api::{Door, find, status},
    error::Cause,
    id::ContainerId,
    pod::{ContainerState, Ends},
    streaming::ends::{self, End},
};

const OP: &str = "attach to container";

/// How long after the container's end its shim may take to hand over the last output.
const PATIENCE: Duration = Duration::from_secs(2);

pub(super) async fn attach(
    door: &Door,
    mut input: Streaming<api::AttachRequest>,
) -> Result<Flow<api::Output>> {
    let Some(Message::Open(open)) = first(&mut input).await?.and_then(|request| request.message) else {
        return Err(Error::invalid(OP, "stream", "the first message must be `open`"));
    };
    let container = find::any_container(&door.pods, &open.container)?;
    match container.state {
        ContainerState::Created | ContainerState::Running | ContainerState::Backoff => {}
        ContainerState::Exited | ContainerState::Unknown => {
            return Err(Error::new(Kind::Precondition, OP, container.id.short())
                .because(Cause("it does not run".into()))
                .hint("`berth logs` shows what it wrote"));
        }
    }
    let (mut ends, mut stdin) = (Ends::default(), None);
    let mut streams = Streams { stdout: None, stderr: None };
    if open.stdin && container.config.stdin {
        let (ours, theirs) = ends::incoming()?;
        (stdin, ends.stdin) = (Some(Arc::new(ours)), Some(theirs));
    }
    if open.output {
        let (ours, theirs) = ends::outgoing()?;
        (streams.stdout, ends.stdout) = (Some(Arc::new(ours)), Some(theirs));
        // A terminal has one stream.
        if !container.config.tty {
            let (ours, theirs) = ends::outgoing()?;
            (streams.stderr, ends.stderr) = (Some(Arc::new(ours)), Some(theirs));
        }
    }
    door.pods.attach(&container.id, ends).await?;
    let (sender, receiver) = mpsc::channel(BACKLOG);
    let door = door.clone();
    tokio::spawn(async move {
        if let Err(error) = converse(&door, &container.id, stdin, streams, input, &sender).await {
            // Nobody listens any more where this fails.
            sender.send(Err(status::told(&error))).await.ok();
        }
    });
    Ok(Box::pin(ReceiverStream::new(receiver)))
}

async fn converse(
    door: &Door,
    id: &ContainerId,
    stdin: Option<Arc<End>>,
    streams: Streams,
    input: Streaming<api::AttachRequest>,
    sender: &Sender,
) -> Result<()> {
    let heard = async {
        hear(door, id, stdin, input).await;
        // What ends the call is the container, or the client's going.
        std::future::pending::<()>().await;
    };
    tokio::select! {
        said = say(door, id, streams, sender) => said,
        () = heard => Ok(()),
        () = sender.closed() => Ok(()),
    }
}

async fn say(door: &Door, id: &ContainerId, mut streams: Streams, sender: &Sender) -> Result<()> {
    // Each failed send is the client gone: nobody to tell, nothing to undo.
    if sender.send(Ok(output(Said::Ready(true)))).await.is_err() {
        return Ok(());
    }
    let ended = lifecycle::ended(door, id);
    tokio::pin!(ended);
    let ended = loop {
        tokio::select! {
            ended = &mut ended => break ended,
            piece = streams.next() => if sender.send(Ok(piece?)).await.is_err() {
                return Ok(());
            },
        }
    };
    if !streams.ended() && streams.last(PATIENCE, sender).await.is_none() {
        return Ok(());
    }
    sender.send(Ok(output(Said::ExitCode(ended?.exit_code)))).await.ok();
    Ok(())
}

/// Writes the client's input and sizes until it sends no more.
async fn hear(
    door: &Door,
    id: &ContainerId,
    mut stdin: Option<Arc<End>>,
    mut input: Streaming<api::AttachRequest>,
) {
    // An error is the client's going: whoever sends the output sees that, too.
    while let Ok(Some(request)) = input.message().await {
        match request.message {
            Some(Message::Stdin(bytes)) => write(&mut stdin, &bytes).await,
            Some(Message::StdinClosed(true)) => stdin = None,
            Some(Message::Resize(size)) => resize(door, id, "", &size).await,
            Some(Message::StdinClosed(false) | Message::Open(_)) | None => {}
        }
    }
}
