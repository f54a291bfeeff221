//! Exec and attach over either protocol: the streams that were asked for, by their names, then the conversation.

use std::time::Duration;

use tokio::{sync::mpsc, time::timeout};
use tracing::debug;

use super::{
    Purpose, attach,
    channels::{Channels, Outgoing, Wanted},
    exec, spdy,
    upgrade::Protocol,
};
use crate::pod::Pods;

/// So long a client may take to open its streams.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, Copy)]
pub struct Remote<'a> {
    pub pods: &'a Pods,
    pub purpose: &'a Purpose,
    pub wanted: Wanted,
    pub protocol: Protocol,
}

impl Remote<'_> {
    /// Waits for the streams, then runs.
    pub async fn over_spdy(self, mut streams: mpsc::Receiver<spdy::Stream>) {
        match timeout(PATIENCE, opened(&mut streams, self.wanted, self.protocol)).await {
            Ok(Some(channels)) => {
                // More are refused from now on.
                drop(streams);
                self.run(channels).await;
            }
            Ok(None) => {}
            Err(_) => debug!("the client did not open all its streams"),
        }
    }

    pub async fn run(self, channels: Channels) {
        let Self { pods, purpose, wanted, protocol } = self;
        match purpose {
            Purpose::Exec { container, command, .. } => {
                exec::exec(pods, container, command.clone(), wanted, protocol, channels).await;
            }
            Purpose::Attach { container, .. } => {
                attach::attach(pods, container, wanted, protocol, channels).await;
            }
            // Has streams of another kind, and goes another way.
            Purpose::PortForward { .. } => {}
        }
    }
}

/// The streams of a client, each once; `None` where it leaves before all are there.
async fn opened(
    streams: &mut mpsc::Receiver<spdy::Stream>,
    wanted: Wanted,
    protocol: Protocol,
) -> Option<Channels> {
    let mut channels = Channels { stdin: None, stdout: None, stderr: None, resize: None, error: None };
    loop {
        let Channels { stdin, stdout, stderr, resize, error } = &channels;
        let whole = error.is_some()
            && stdin.is_some() == wanted.stdin
            && stdout.is_some() == wanted.stdout
            && stderr.is_some() == wanted.stderr
            && resize.is_some() == (wanted.tty && protocol.resizes());
        if whole {
            return Some(channels);
        }
        let stream = streams.recv().await?;
        let kind = stream.header("streamtype").unwrap_or_default();
        let (incoming, outgoing) = match kind {
            "stdin" if wanted.stdin => (Some(&mut channels.stdin), None),
            "resize" if wanted.tty && protocol.resizes() => (Some(&mut channels.resize), None),
            "stdout" if wanted.stdout => (None, Some(&mut channels.stdout)),
            "stderr" if wanted.stderr => (None, Some(&mut channels.stderr)),
            "error" => (None, Some(&mut channels.error)),
            _ => (None, None),
        };
        match (incoming, outgoing) {
            (Some(place @ None), _) => *place = Some(stream.incoming),
            (_, Some(place @ None)) => *place = Some(Outgoing::Spdy(stream.sender)),
            _ => {
                debug!(kind, "unwanted stream refused");
                stream.refuse().await;
            }
        }
    }
}
