//! exec: a command in a running container.

use std::{ffi::OsString, os::unix::ffi::OsStrExt};

use berth_cri::berth::{ExecOpen, ExecRequest, Size, exec_request::Message};
use clap::Args;
use futures_util::StreamExt;
use tokio::sync::mpsc;

use super::{
    connect::Daemon,
    failure::{Failure, Result},
    parse,
    session::{self, Ended, Input, Session, Typing},
    terminal,
};

#[derive(Debug, Args)]
pub(super) struct Flags {
    /// Keep its input open
    #[arg(short, long)]
    pub(super) interactive: bool,
    /// Give it a terminal
    #[arg(short, long)]
    pub(super) tty: bool,
    /// NAME=VALUE, or NAME for the value it has here
    #[arg(short, long, value_name = "NAME=VALUE")]
    env: Vec<OsString>,
    /// As whom: user[:group]; the container's own otherwise
    #[arg(short, long, value_name = "USER")]
    user: Option<String>,
    /// The directory it starts in
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// The container, and what to run in it
    #[arg(value_name = "CONTAINER COMMAND", required = true, num_args = 2.., trailing_var_arg = true)]
    pub(super) words: Vec<String>,
}

pub(super) async fn exec(daemon: &Daemon, flags: Flags) -> Result<u8> {
    terminal::demand(flags.interactive, flags.tty)?;
    let typing = Typing::of(flags.interactive, flags.tty);
    let tty = flags.tty;
    let (input, receiver) = mpsc::channel(16);
    let first = ExecRequest { message: Some(Message::Open(open(flags, typing)?)) };
    let requests = session::requests(first, receiver, |input| ExecRequest {
        message: Some(match input {
            Input::Bytes(bytes) => Message::Stdin(bytes),
            Input::Closed => Message::StdinClosed(true),
            Input::Resize(size) => Message::Resize(size),
        }),
    });
    let answered = daemon.containers().exec(requests).await;
    let output = answered.map_err(|status| Failure::of_program(&status))?.into_inner().boxed();
    let session = Session { input, output, typing, tty };
    // A signal ends this berth, and the daemon the command with it: nothing to forward.
    match session.talk(None).await? {
        Ended::Cut => Err(Failure::new("the command's end is not known: the container ended first")),
        ended => session::exit_code(ended),
    }
}

fn open(flags: Flags, typing: Typing) -> Result<ExecOpen> {
    let mut words = flags.words.into_iter();
    let container = words.next().unwrap_or_default();
    let mut env = Vec::new();
    for pair in &flags.env {
        env.extend(parse::variable(pair.as_bytes())?.map(Into::into));
    }
    let size = terminal::size().filter(|_| flags.tty);
    Ok(ExecOpen {
        container,
        command: words.collect(),
        env,
        user: flags.user.unwrap_or_default(),
        workdir: flags.workdir.unwrap_or_default(),
        tty: flags.tty,
        stdin: typing != Typing::Nothing,
        size: size.map(|(rows, columns)| Size { rows, columns }),
    })
}
