//! attach, and the call that run and start -a attach with.

use berth_cri::berth::{
    AttachOpen, AttachRequest, InspectRequest, InspectResponse, LogsRequest, Output, WaitRequest,
    attach_request::Message, container::State, output::Message as Said,
};
use clap::Args;
use futures_util::{StreamExt, TryStreamExt};
use tokio::sync::mpsc;

use super::{
    connect::Daemon,
    failure::{Failure, Result},
    run,
    session::{self, Ended, Input, Session, Typing},
    terminal,
};

#[derive(Debug, Args)]
pub(super) struct Flags {
    /// Type nothing into it
    #[arg(long)]
    no_stdin: bool,
    container: String,
}

/// What must be known of a container before its streams are taken.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) id: String,
    pub(super) state: State,
    /// It reads input.
    pub(super) interactive: bool,
    pub(super) tty: bool,
}

pub(super) async fn attach(daemon: &Daemon, flags: &Flags) -> Result<u8> {
    let known = look(daemon, &flags.container).await?;
    let interactive = known.interactive && !flags.no_stdin;
    terminal::demand(interactive, known.tty)?;
    let session = open(daemon, &known.id, Typing::of(interactive, known.tty), known.tty).await?;
    finish(daemon, &known.id, session).await
}

pub(super) async fn look(daemon: &Daemon, container: &str) -> Result<Known> {
    let request = InspectRequest { container: container.to_owned() };
    let InspectResponse { container, spec, .. } = daemon.containers().inspect(request).await?.into_inner();
    let container = container.ok_or_else(|| Failure::new("the daemon told nothing of the container"))?;
    // Of a kubelet's container only the daemon knows; its output can be had in any case.
    let (interactive, tty) = spec.map_or((false, false), |spec| (spec.stdin, spec.tty));
    let state = container.state();
    Ok(Known { id: container.id, state, interactive, tty })
}

/// Reads a container's log as if attached; ends with it.
pub(super) async fn read_on(daemon: &Daemon, id: &str, since: i64) -> Result<Session> {
    let request = LogsRequest { container: id.to_owned(), follow: true, tail: None, since };
    let entries = daemon.containers().logs(request).await?.into_inner();
    let output = entries.map_ok(|entry| {
        let said = if entry.stderr { Said::Stderr } else { Said::Stdout };
        Output { message: Some(said(entry.content)) }
    });
    // Nobody reads the input: the receiver is gone.
    let (input, _) = mpsc::channel(1);
    Ok(Session { input, output: output.boxed(), typing: Typing::Nothing, tty: false })
}

/// Attaches; what the container writes from now on arrives.
pub(super) async fn open(daemon: &Daemon, id: &str, typing: Typing, tty: bool) -> Result<Session> {
    let (input, receiver) = mpsc::channel(16);
    let open = AttachOpen { container: id.to_owned(), stdin: typing != Typing::Nothing, output: true };
    let first = AttachRequest { message: Some(Message::Open(open)) };
    let requests = session::requests(first, receiver, |input| AttachRequest {
        message: Some(match input {
            Input::Bytes(bytes) => Message::Stdin(bytes),
            Input::Closed => Message::StdinClosed(true),
            Input::Resize(size) => Message::Resize(size),
        }),
    });
    let output = daemon.containers().attach(requests).await?.into_inner().boxed();
    let mut session = Session { input, output, typing, tty };
    session.ready().await?;
    Ok(session)
}

/// Attaches to a container that does not run yet, so that no byte is lost, and starts it.
pub(super) async fn open_and_start(daemon: &Daemon, id: &str, typing: Typing, tty: bool) -> Result<Session> {
    let session = open(daemon, id, typing, tty).await?;
    // The terminal has its size before the program asks.
    session.resize().await;
    run::start(daemon, id).await?;
    Ok(session)
}

/// Talks with an attached container to the end; its exit code.
pub(super) async fn finish(daemon: &Daemon, id: &str, session: Session) -> Result<u8> {
    let ended = session.talk(Some(run::forward(daemon, id))).await?;
    session::exit_code(match ended {
        Ended::Cut => how_it_ended(daemon, id).await?,
        other => other,
    })
}

/// Asks where the stream ended without saying.
async fn how_it_ended(daemon: &Daemon, id: &str) -> Result<Ended> {
    let waited = daemon.containers().wait(WaitRequest { container: id.to_owned() }).await?;
    Ok(Ended::Exit(waited.into_inner().exit_code))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ctl::fake::Fake;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_container_is_attached_before_it_starts_and_its_exit_code_is_ours() {
        let fake = Fake::default();
        let (daemon, _socket) = fake.serve().await;
        let session = open_and_start(&daemon, "c", Typing::Nothing, false).await.unwrap();
        assert_eq!(fake.calls(), ["attach c", "start c"]);
        session.input.send(Input::Bytes(b"typed".to_vec().into())).await.unwrap();
        session.input.send(Input::Closed).await.unwrap();
        assert_eq!(finish(&daemon, "c", session).await.unwrap(), 3);
        assert_eq!(fake.calls(), ["attach c", "start c", "stdin typed"]);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn where_the_stream_does_not_say_how_it_ended_the_daemon_is_asked() {
        let fake = Fake::default();
        let (daemon, _socket) = fake.serve().await;
        let session = read_on(&daemon, "c", 0).await.unwrap();
        assert_eq!(finish(&daemon, "c", session).await.unwrap(), 7);
        assert_eq!(fake.calls(), ["logs", "wait"]);
    }

    #[tokio::test]
    async fn a_program_that_is_not_there_has_dockers_code() {
        let fake = Fake::refusing("execute /nope: No such file or directory");
        let (daemon, _socket) = fake.serve().await;
        let failure = open_and_start(&daemon, "c", Typing::Nothing, false).await.err().unwrap();
        assert_eq!((failure.code, failure.text.as_str()), (127, "execute /nope: No such file or directory"));
    }
}
