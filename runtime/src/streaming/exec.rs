//! Exec: a process in a running container, its streams the client's. A client that goes away kills it.

use std::{sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::{
    abandoned::KillOnDrop,
    channels::{Channels, Incoming, Sizes, Wanted, copy_in, copy_out},
    ends::{self, End},
    outcome,
    upgrade::Protocol,
};
use crate::{
    Result,
    id::ContainerId,
    pod::{Ends, Exec, ExecHandle, Pods, exit_of},
};

/// How long a terminal's last output is waited for when somebody else keeps it open: the kernel hands it over a moment
/// after its writer's end.
const TERMINAL_PATIENCE: Duration = Duration::from_millis(100);

/// Our ends of a process's streams.
struct Near {
    stdin: Option<Arc<End>>,
    stdout: Option<Arc<End>>,
    stderr: Option<Arc<End>>,
    patience: Duration,
}

/// Runs the command and tells its outcome.
pub async fn exec(
    pods: &Pods,
    container: &ContainerId,
    command: Vec<String>,
    wanted: Wanted,
    protocol: Protocol,
    mut channels: Channels,
) {
    let error = channels.error.take();
    let outcome = run(pods, container, command, wanted, channels).await;
    match &outcome {
        Ok(exit_code) => debug!(exit_code, "exec ended"),
        Err(error) => debug!(error = error.chain(), "exec failed"),
    }
    outcome::report(error, protocol, &outcome).await;
}

async fn run(
    pods: &Pods,
    container: &ContainerId,
    command: Vec<String>,
    wanted: Wanted,
    channels: Channels,
) -> Result<i32> {
    let (near, handle) = begin(pods, container, command, wanted).await?;
    let abandoned = KillOnDrop::new(pods, container, handle.exec_id.clone());
    let Near { stdin, stdout, stderr, patience } = near;
    let ended = CancellationToken::new();
    let output = async {
        let exit = async {
            let exited = handle.exit.await;
            ended.cancel();
            exited
        };
        let copy = |end, to| copy_out(end, to, &ended, patience);
        let (exited, (), ()) = tokio::join!(
            exit,
            copy(stdout.as_deref(), channels.stdout.as_ref()),
            copy(stderr.as_deref(), channels.stderr.as_ref())
        );
        exited
    };
    let exited = tokio::select! {
        exited = output => exited,
        never = input(channels.stdin, stdin) => match never {},
        never = sizes(pods, container, &handle.exec_id, channels.resize) => match never {},
    };
    let exited = exit_of(exited)?;
    abandoned.done();
    Ok(exited.exit_code)
}

async fn begin(
    pods: &Pods,
    container: &ContainerId,
    command: Vec<String>,
    wanted: Wanted,
) -> Result<(Near, ExecHandle)> {
    let mut ends = Ends::default();
    let mut near = Near { stdin: None, stdout: None, stderr: None, patience: Duration::ZERO };
    if !wanted.tty {
        if wanted.stdin {
            let (ours, theirs) = ends::incoming()?;
            (near.stdin, ends.stdin) = (Some(Arc::new(ours)), Some(theirs));
        }
        if wanted.stdout {
            let (ours, theirs) = ends::outgoing()?;
            (near.stdout, ends.stdout) = (Some(Arc::new(ours)), Some(theirs));
        }
        if wanted.stderr {
            let (ours, theirs) = ends::outgoing()?;
            (near.stderr, ends.stderr) = (Some(Arc::new(ours)), Some(theirs));
        }
    }
    let exec = Exec { args: command, tty: wanted.tty, ..Exec::default() };
    let mut handle = pods.exec(container, exec, ends, None).await?;
    if let Some(master) = handle.tty.take() {
        let abandoned = KillOnDrop::new(pods, container, handle.exec_id.clone());
        let master = Arc::new(End::new(master)?);
        abandoned.done();
        near.stdin = wanted.stdin.then(|| master.clone());
        // Read though nobody wants it: a full terminal would stop the process.
        near.stdout = Some(master);
        near.patience = TERMINAL_PATIENCE;
    }
    Ok((near, handle))
}

/// Never returns: what the client sends no more of does not end a process.
pub enum Never {}

/// Copies the client's input, and closes the end after it.
pub async fn input(from: Option<Incoming>, end: Option<Arc<End>>) -> Never {
    if let (Some(from), Some(end)) = (from, end) {
        copy_in(from, &end).await;
    }
    std::future::pending().await
}

/// Gives the terminal the sizes that the client tells; with an empty exec id the container's own.
pub async fn sizes(pods: &Pods, container: &ContainerId, exec_id: &str, from: Option<Incoming>) -> Never {
    let mut sizes = Sizes::default();
    if let Some(mut from) = from {
        while let Some(piece) = from.recv().await {
            let Some(size) = sizes.push(&piece) else { continue };
            let resized = pods.resize(container, exec_id, size.rows.into(), size.columns.into()).await;
            if let Err(error) = resized {
                debug!(error = error.chain(), "terminal not resized");
            }
        }
    }
    std::future::pending().await
}
