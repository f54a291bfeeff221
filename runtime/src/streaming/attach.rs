//! Attach: the container's own streams, until it has ended or the client goes. The shim stands between, so a client
//! that goes away disturbs nobody.

use std::{sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::{
    channels::{Channels, Wanted, copy_out},
    ends,
    exec::{input, sizes},
    outcome,
    upgrade::Protocol,
};
use crate::{
    Error, Result,
    id::ContainerId,
    pod::{Ends, Pods},
};

/// How long after the container's end its shim may take to hand over the last output.
const PATIENCE: Duration = Duration::from_secs(2);

pub async fn attach(
    pods: &Pods,
    container: &ContainerId,
    wanted: Wanted,
    protocol: Protocol,
    mut channels: Channels,
) {
    let error = channels.error.take();
    // How the container ended is nobody's failure here: success.
    let outcome = run(pods, container, wanted, channels).await.map(|()| 0);
    if let Err(error) = &outcome {
        debug!(error = error.chain(), "attach failed");
    }
    outcome::report(error, protocol, &outcome).await;
}

async fn run(pods: &Pods, container: &ContainerId, wanted: Wanted, channels: Channels) -> Result<()> {
    let view = pods.container(container);
    let view = view.ok_or_else(|| Error::not_found("attach to container", container.short()))?;
    let (mut ends, mut stdin, mut stdout, mut stderr) = (Ends::default(), None, None, None);
    if wanted.stdin && view.config.stdin {
        let (ours, theirs) = ends::incoming()?;
        (stdin, ends.stdin) = (Some(Arc::new(ours)), Some(theirs));
    }
    if wanted.stdout {
        let (ours, theirs) = ends::outgoing()?;
        (stdout, ends.stdout) = (Some(ours), Some(theirs));
    }
    // A terminal has one stream.
    if wanted.stderr && !view.config.tty {
        let (ours, theirs) = ends::outgoing()?;
        (stderr, ends.stderr) = (Some(ours), Some(theirs));
    }
    pods.attach(container, ends).await?;
    let ended = CancellationToken::new();
    let output = async {
        let end = async {
            let view = pods.wait(container).await;
            ended.cancel();
            view
        };
        let copy = |end, to| copy_out(end, to, &ended, PATIENCE);
        // A container that was removed has ended as well.
        let (_, (), ()) = tokio::join!(
            end,
            copy(stdout.as_ref(), channels.stdout.as_ref()),
            copy(stderr.as_ref(), channels.stderr.as_ref())
        );
    };
    tokio::select! {
        () = output => Ok(()),
        never = input(channels.stdin, stdin) => match never {},
        never = sizes(pods, container, "", channels.resize) => match never {},
    }
}
