//! A person and a process: what is typed goes there, what it writes comes here, its size is the terminal's.
//!
//! ```text
//! stdin ─ thread ─┐                                    ┌─ stdout, stderr
//! SIGWINCH ───────┼─ Input ─> call (attach, exec) ─────┤
//! signals ────────┴─ (no tty) forwarded, else the end  └─ exit code
//! ```

use std::{
    io::{self, Read},
    pin::Pin,
    sync::Arc,
};

use berth_cri::berth::{Output, Size, output::Message as Said};
use futures_util::{
    Stream, StreamExt,
    future::select_all,
    stream::{self, BoxStream},
};
use prost::bytes::Bytes;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::{Notify, mpsc},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::{
    detach::{Keys, Typed},
    failure::{Failure, Result},
    output,
    terminal::{self, Raw},
};

/// What goes to the process.
#[derive(Debug)]
pub(super) enum Input {
    Bytes(Bytes),
    Closed,
    Resize(Size),
}

/// Whether the person types, and into what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Typing {
    /// Nothing is read.
    Nothing,
    /// Bytes as they come, to the end.
    Plain,
    /// Keys of a raw terminal.
    Terminal,
}

impl Typing {
    pub(super) fn of(interactive: bool, tty: bool) -> Self {
        match (interactive, tty && terminal::is_terminal(io::stdin())) {
            (false, _) => Self::Nothing,
            (true, false) => Self::Plain,
            (true, true) => Self::Terminal,
        }
    }
}

/// How a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// The process did, with this code.
    Exit(i32),
    /// The person let go of it.
    Detached,
    /// This berth was told to end by a signal.
    Told(i32),
    /// The stream did, without an exit code.
    Cut,
}

/// A call whose streams are not connected to the person yet.
pub(super) struct Session {
    pub(super) input: mpsc::Sender<Input>,
    pub(super) output: BoxStream<'static, Result<Output, Status>>,
    pub(super) typing: Typing,
    pub(super) tty: bool,
}

/// A way to hand a signal to the container.
pub(super) type Forward = Box<dyn Fn(&'static str) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

impl Session {
    /// Waits until what the container writes arrives.
    pub(super) async fn ready(&mut self) -> Result<()> {
        match self.output.next().await.transpose()? {
            Some(Output { message: Some(Said::Ready(true)) }) => Ok(()),
            _ => Err(Failure::new("the daemon did not attach")),
        }
    }

    /// Tells the process how large the terminal is.
    pub(super) async fn resize(&self) {
        if let (true, Some((rows, columns))) = (self.tty, terminal::size()) {
            // Nobody takes it where the process has ended.
            self.input.send(Input::Resize(Size { rows, columns })).await.ok();
        }
    }

    /// Connects both until one ends. `forward`: where signals go while no terminal turns keys into them.
    pub(super) async fn talk(self, forward: Option<Forward>) -> Result<Ended> {
        let (mut resized, mut telling) = (listen(SignalKind::window_change())?, telling()?);
        let _raw = if self.typing == Typing::Terminal { Some(Raw::set()?) } else { None };
        self.resize().await;
        let Self { input, output, typing, tty } = self;
        let detached = Arc::new(Notify::new());
        match typing {
            Typing::Nothing => {}
            Typing::Plain | Typing::Terminal => {
                let (input, detach) = (input.clone(), detached.clone());
                std::thread::spawn(move || type_in(&input, typing, &detach));
            }
        }
        let mut listening = tokio::spawn(hear(output));
        loop {
            tokio::select! {
                ended = &mut listening => {
                    return ended.map_err(|error| Failure::new(format!("read the output: {error}")))?;
                }
                () = detached.notified() => return Ok(Ended::Detached),
                _ = resized.recv() => {
                    if let (true, Some((rows, columns))) = (tty, terminal::size()) {
                        // Nobody takes it where the process has ended; its exit is on the way then.
                        input.try_send(Input::Resize(Size { rows, columns })).ok();
                    }
                }
                (name, number) = told(&mut telling) => match &forward {
                    Some(forward) if typing != Typing::Terminal => forward(name).await,
                    _ => return Ok(Ended::Told(number)),
                },
            }
        }
    }
}

/// Prints what comes; blocks at the pace of whoever reads it, which is why it has a task of its own.
async fn hear(mut output: BoxStream<'static, Result<Output, Status>>) -> Result<Ended> {
    loop {
        match output.next().await.transpose()?.map(|output| output.message) {
            Some(Some(Said::Stdout(bytes))) => output::print(bytes)?,
            Some(Some(Said::Stderr(bytes))) => output::print_error(bytes)?,
            Some(Some(Said::ExitCode(code))) => return Ok(Ended::Exit(code)),
            Some(Some(Said::Ready(_)) | None) => {}
            None => return Ok(Ended::Cut),
        }
    }
}

/// Reads what is typed until its end; ends with the process at the latest.
fn type_in(input: &mpsc::Sender<Input>, typing: Typing, detach: &Notify) {
    let mut keys = Keys::default();
    let mut piece = vec![0; 32 * 1024];
    loop {
        let taken = match io::stdin().read(&mut piece) {
            Ok(taken) => taken,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            // Unreadable is as good as ended: what there was is sent.
            Err(_) => 0,
        };
        if taken == 0 {
            // The receiver is gone with the process.
            input.blocking_send(Input::Closed).ok();
            return;
        }
        let typed = match typing {
            Typing::Terminal => keys.take(&piece[..taken]),
            Typing::Plain | Typing::Nothing => Typed::Input(piece[..taken].to_vec()),
        };
        match typed {
            Typed::Input(bytes) => {
                if input.blocking_send(Input::Bytes(bytes.into())).is_err() {
                    return;
                }
            }
            Typed::Detach(bytes) => {
                input.blocking_send(Input::Bytes(bytes.into())).ok();
                detach.notify_one();
                return;
            }
        }
    }
}

type Told = (Signal, &'static str, i32);

fn listen(kind: SignalKind) -> Result<Signal> {
    signal(kind).map_err(|error| Failure::io("listen for signals", &error))
}

/// The signals that end a program, and so end or reach the container.
fn telling() -> Result<Vec<Told>> {
    Ok(vec![
        (listen(SignalKind::interrupt())?, "INT", libc::SIGINT),
        (listen(SignalKind::terminate())?, "TERM", libc::SIGTERM),
        (listen(SignalKind::hangup())?, "HUP", libc::SIGHUP),
        (listen(SignalKind::quit())?, "QUIT", libc::SIGQUIT),
        (listen(SignalKind::user_defined1())?, "USR1", libc::SIGUSR1),
        (listen(SignalKind::user_defined2())?, "USR2", libc::SIGUSR2),
    ])
}

/// The next of them.
async fn told(signals: &mut [Told]) -> (&'static str, i32) {
    let each = signals.iter_mut().map(|(signal, name, number)| {
        Box::pin(async move {
            signal.recv().await;
            (*name, *number)
        })
    });
    select_all(each).await.0
}

/// A stream of requests: the first one, then the input.
pub(super) fn requests<M: Send + 'static>(
    first: M,
    input: mpsc::Receiver<Input>,
    message: fn(Input) -> M,
) -> impl Stream<Item = M> + Send + 'static {
    let rest = ReceiverStream::new(input).map(message);
    stream::once(async { first }).chain(rest)
}

/// What the process's end means for ours.
pub(super) fn exit_code(ended: Ended) -> Result<u8> {
    match ended {
        Ended::Exit(code) => Ok(u8::try_from(code).unwrap_or(u8::MAX)),
        Ended::Detached => Ok(0),
        Ended::Told(signal) => Ok(u8::try_from(128 + signal).unwrap_or(u8::MAX)),
        Ended::Cut => Err(Failure::from(Status::unavailable(
            "the daemon ended the stream before the process's exit was known",
        ))),
    }
}
