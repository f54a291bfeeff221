//! Exec: a process in a running container, its streams on one call. A client that goes away kills it.
//!
//! Pipes: the process has the far ends itself, so all that it wrote is in them when its exit is known. A terminal:
//! the daemon has the master, and the kernel hands the last output over a moment later.

use std::{sync::Arc, time::Duration};

use berth_cri::berth::{self as api, exec_request::Message, output::Message as Said};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};
use tracing::debug;

use super::{BACKLOG, Flow};
use crate::{
    Error, Kind, Result,
    api::{Door, find, status},
    error::Cause,
    id::ContainerId,
    pod::{Ends, Exec, ExecHandle, Exit, exit_of},
    streaming::{
        abandoned::KillOnDrop,
        ends::{self, End, Left},
    },
};

const OP: &str = "exec in container";

/// How long a terminal's last output is waited for when somebody else keeps it open.
const TERMINAL_PATIENCE: Duration = Duration::from_millis(100);

pub(super) type Sender = mpsc::Sender<Result<api::Output, Status>>;

/// The streams of a process that runs.
struct Session {
    stdin: Option<Arc<End>>,
    stdout: Option<Arc<End>>,
    stderr: Option<Arc<End>>,
    patience: Duration,
    handle: ExecHandle,
}

pub(super) async fn exec(door: &Door, mut input: Streaming<api::ExecRequest>) -> Result<Flow<api::Output>> {
    let Some(Message::Open(open)) = first(&mut input).await?.and_then(|request| request.message) else {
        return Err(Error::invalid(OP, "stream", "the first message must be `open`"));
    };
    let container = find::any_container(&door.pods, &open.container)?.id;
    let session = begin(door, &container, open).await?;
    let (sender, receiver) = mpsc::channel(BACKLOG);
    let door = door.clone();
    tokio::spawn(async move {
        if let Err(error) = converse(&door, &container, session, input, &sender).await {
            // Nobody listens any more where this fails.
            sender.send(Err(status::told(&error))).await.ok();
        }
    });
    Ok(Box::pin(ReceiverStream::new(receiver)))
}

/// The first message of a stream; an error is the caller gone.
pub(super) async fn first<T>(input: &mut Streaming<T>) -> Result<Option<T>> {
    input.message().await.map_err(|status| {
        Error::new(Kind::Cancelled, "read", "first message").because(Cause(status.message().to_owned()))
    })
}

async fn begin(door: &Door, container: &ContainerId, open: api::ExecOpen) -> Result<Session> {
    if open.command.is_empty() {
        return Err(Error::invalid(OP, "command", "the command is empty"));
    }
    let (mut ends, mut stdin, mut stdout, mut stderr) = (Ends::default(), None, None, None);
    if !open.tty {
        if open.stdin {
            let (ours, theirs) = ends::incoming()?;
            (stdin, ends.stdin) = (Some(Arc::new(ours)), Some(theirs));
        }
        let (ours, theirs) = ends::outgoing()?;
        (stdout, ends.stdout) = (Some(Arc::new(ours)), Some(theirs));
        let (ours, theirs) = ends::outgoing()?;
        (stderr, ends.stderr) = (Some(Arc::new(ours)), Some(theirs));
    }
    let size = open.size.unwrap_or_default();
    let exec = Exec {
        own_env: Vec::new(),
        args: open.command,
        env: open.env.into_iter().map(Vec::from).collect(),
        user: open.user,
        cwd: open.workdir,
        tty: open.tty,
        rows: size.rows,
        columns: size.columns,
        privileged: false,
    };
    let mut handle = door.pods.exec(container, exec, ends, None).await?;
    let patience = if open.tty { TERMINAL_PATIENCE } else { Duration::ZERO };
    if let Some(master) = handle.tty.take() {
        let abandoned = KillOnDrop::new(&door.pods, container, handle.exec_id.clone());
        let master = Arc::new(End::new(master)?);
        abandoned.done();
        stdin = open.stdin.then(|| master.clone());
        stdout = Some(master);
    }
    Ok(Session { stdin, stdout, stderr, patience, handle })
}

async fn converse(
    door: &Door,
    container: &ContainerId,
    session: Session,
    input: Streaming<api::ExecRequest>,
    sender: &Sender,
) -> Result<()> {
    let Session { stdin, stdout, stderr, patience, handle } = session;
    let abandoned = KillOnDrop::new(&door.pods, container, handle.exec_id.clone());
    let heard = async {
        hear(door, container, &handle.exec_id, stdin, input).await;
        // What ends the call is the process, or the client's going.
        std::future::pending::<()>().await;
    };
    let ended = tokio::select! {
        ended = say(stdout, stderr, patience, handle.exit, sender) => ended?,
        () = heard => None,
        () = sender.closed() => None,
    };
    let Some(exit_code) = ended else { return Ok(()) };
    abandoned.done();
    // A client that went in the last moment has nothing to learn.
    sender.send(Ok(output(Said::ExitCode(exit_code)))).await.ok();
    Ok(())
}

/// Sends what the process writes until it has ended; its exit code, or `None` when the client has gone.
async fn say(
    stdout: Option<Arc<End>>,
    stderr: Option<Arc<End>>,
    patience: Duration,
    mut exit: Exit,
    sender: &Sender,
) -> Result<Option<i32>> {
    let mut streams = Streams { stdout, stderr };
    let exited = loop {
        tokio::select! {
            exited = &mut exit => break exited,
            piece = streams.next() => if sender.send(Ok(piece?)).await.is_err() {
                return Ok(None);
            },
        }
    };
    if streams.last(patience, sender).await.is_none() {
        return Ok(None);
    }
    exit_of(exited).map(|exited| Some(exited.exit_code))
}

/// The reading ends of a process's output.
pub(super) struct Streams {
    pub(super) stdout: Option<Arc<End>>,
    pub(super) stderr: Option<Arc<End>>,
}

impl Streams {
    /// The next output of either; never resolves once both have ended.
    pub(super) async fn next(&mut self) -> Result<api::Output> {
        loop {
            let (said, piece) = tokio::select! {
                piece = piece(self.stdout.as_deref()) => (Said::Stdout as fn(_) -> _, piece?),
                piece = piece(self.stderr.as_deref()) => (Said::Stderr as fn(_) -> _, piece?),
            };
            if !piece.is_empty() {
                return Ok(output(said(piece.into())));
            }
            match said(Default::default()) {
                Said::Stdout(_) => self.stdout = None,
                _ => self.stderr = None,
            }
        }
    }

    pub(super) fn ended(&self) -> bool {
        self.stdout.is_none() && self.stderr.is_none()
    }

    /// Sends what is still there after the writer's end; `None` when the client has gone.
    pub(super) async fn last(&mut self, patience: Duration, sender: &Sender) -> Option<()> {
        for (end, said) in [
            (self.stdout.take(), Said::Stdout as fn(_) -> _),
            (self.stderr.take(), Said::Stderr as fn(_) -> _),
        ] {
            let Some(end) = end else { continue };
            let mut left = Left::patient(patience);
            while let Some(piece) = end.rest(&mut left).await {
                sender.send(Ok(output(said(piece.into())))).await.ok()?;
            }
        }
        Some(())
    }
}

async fn piece(end: Option<&End>) -> Result<Vec<u8>> {
    match end {
        Some(end) => end.read().await,
        None => std::future::pending().await,
    }
}

pub(super) fn output(message: Said) -> api::Output {
    api::Output { message: Some(message) }
}

/// Writes the client's input and sizes until it sends no more.
async fn hear(
    door: &Door,
    container: &ContainerId,
    exec_id: &str,
    mut stdin: Option<Arc<End>>,
    mut input: Streaming<api::ExecRequest>,
) {
    // An error is the client's going: whoever sends the output sees that, too.
    while let Ok(Some(request)) = input.message().await {
        match request.message {
            Some(Message::Stdin(bytes)) => write(&mut stdin, &bytes).await,
            Some(Message::StdinClosed(true)) => stdin = None,
            Some(Message::Resize(size)) => resize(door, container, exec_id, &size).await,
            Some(Message::StdinClosed(false) | Message::Open(_)) | None => {}
        }
    }
}

/// Writes to a process that may not read any more: then the rest of the input is dropped.
pub(super) async fn write(stdin: &mut Option<Arc<End>>, bytes: &[u8]) {
    if let Some(end) = stdin
        && let Err(error) = end.write(bytes).await
    {
        debug!(error = error.chain(), "nobody reads the input");
        *stdin = None;
    }
}

pub(super) async fn resize(door: &Door, container: &ContainerId, exec_id: &str, size: &api::Size) {
    if let Err(error) = door.pods.resize(container, exec_id, size.rows, size.columns).await {
        debug!(%container, error = error.chain(), "terminal not resized");
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn all_output_comes_before_the_exit_code() {
        let (stdout, out) = ends::outgoing().unwrap();
        let (stderr, err) = ends::outgoing().unwrap();
        let (exited, exit) = oneshot::channel();
        let (sender, mut receiver) = mpsc::channel(BACKLOG);
        rustix::io::write(&out, b"out").unwrap();
        rustix::io::write(&err, b"err").unwrap();
        exited.send(Ok(berth_launch::v1::ExecExited { exit_code: 3, ..Default::default() })).unwrap();
        let code =
            say(Some(Arc::new(stdout)), Some(Arc::new(stderr)), Duration::ZERO, exit, &sender).await.unwrap();
        drop(sender);
        assert_eq!(code, Some(3));
        let mut said = Vec::new();
        while let Some(output) = receiver.recv().await {
            said.push(output.unwrap().message.unwrap());
        }
        assert!(said.contains(&Said::Stdout(b"out".to_vec().into())), "{said:?}");
        assert!(said.contains(&Said::Stderr(b"err".to_vec().into())), "{said:?}");
    }

    #[tokio::test]
    async fn closed_streams_do_not_end_a_process_that_runs_on() {
        let (stdout, out) = ends::outgoing().unwrap();
        drop(out);
        let (exited, exit) = oneshot::channel();
        let (sender, _receiver) = mpsc::channel(BACKLOG);
        let saying = tokio::spawn(async move {
            say(Some(Arc::new(stdout)), None, Duration::ZERO, exit, &sender).await.unwrap()
        });
        tokio::task::yield_now().await;
        assert!(!saying.is_finished());
        exited.send(Ok(berth_launch::v1::ExecExited::default())).unwrap();
        assert_eq!(saying.await.unwrap(), Some(0));
    }
}
