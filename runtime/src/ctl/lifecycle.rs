//! start, stop, restart, kill, rm, wait: one container after the other; what fails does not keep the rest from it.

use berth_cri::berth::{self as api, container::State};
use clap::Args;
use tonic::Code;

use super::{
    attach,
    connect::Daemon,
    failure::{Failure, Result},
    logs,
    output::{self, Format},
    run,
    session::Typing,
    terminal,
};

#[derive(Debug, Args)]
pub(super) struct Start {
    /// Take its input and output
    #[arg(short, long)]
    attach: bool,
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct Stop {
    /// Seconds before it is killed
    #[arg(short, long, value_name = "SECONDS", default_value_t = 10)]
    time: u64,
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct Kill {
    /// TERM, SIGUSR1, 9
    #[arg(short, long, default_value = "KILL")]
    signal: String,
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct Rm {
    /// Kill it first where it runs; one that is not there is no failure
    #[arg(short, long)]
    force: bool,
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct Wait {
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

pub(super) async fn start(daemon: &Daemon, flags: Start, format: Format) -> Result<u8> {
    if !flags.attach {
        return each(flags.containers, async |container| {
            run::start(daemon, container).await?;
            let started = api::StartResponse { id: container.to_owned() };
            output::show(format, "berth.v1.StartResponse", &started, || format!("{container}\n"))
        })
        .await;
    }
    let [container] = &flags.containers[..] else {
        return Err(Failure::new("-a takes one container"));
    };
    let known = attach::look(daemon, container).await?;
    terminal::demand(known.interactive, known.tty)?;
    let typing = Typing::of(known.interactive, known.tty);
    let session = match known.state {
        State::Created => attach::open_and_start(daemon, &known.id, typing, known.tty).await?,
        State::Running | State::Restarting => attach::open(daemon, &known.id, typing, known.tty).await?,
        // Nobody can attach to what has ended, so what it writes first is had from its log; only what talks back is
        // attached to once it runs.
        State::Exited | State::Unknown if known.interactive || known.tty => {
            run::start(daemon, &known.id).await?;
            attach::open(daemon, &known.id, typing, known.tty).await?
        }
        State::Exited | State::Unknown => {
            let since = logs::now();
            run::start(daemon, &known.id).await?;
            attach::read_on(daemon, &known.id, since).await?
        }
    };
    attach::finish(daemon, &known.id, session).await
}

pub(super) async fn stop(daemon: &Daemon, flags: Stop, format: Format) -> Result<u8> {
    each(flags.containers, async |container| {
        let stopped = stopped(daemon, container, flags.time).await?;
        output::show(format, "berth.v1.StopResponse", &stopped, || format!("{container}\n"))
    })
    .await
}

pub(super) async fn restart(daemon: &Daemon, flags: Stop, format: Format) -> Result<u8> {
    each(flags.containers, async |container| {
        let stopped = stopped(daemon, container, flags.time).await?;
        run::start(daemon, &stopped.id).await?;
        let started = api::StartResponse { id: stopped.id };
        output::show(format, "berth.v1.StartResponse", &started, || format!("{container}\n"))
    })
    .await
}

async fn stopped(daemon: &Daemon, container: &str, seconds: u64) -> Result<api::StopResponse> {
    let grace_ms = Some(seconds.saturating_mul(1000));
    let request = api::StopRequest { container: container.to_owned(), grace_ms };
    Ok(daemon.containers().stop(request).await?.into_inner())
}

pub(super) async fn kill(daemon: &Daemon, flags: Kill, format: Format) -> Result<u8> {
    each(flags.containers, async |container| {
        let request = api::KillRequest { container: container.to_owned(), signal: flags.signal.clone() };
        let killed = daemon.containers().kill(request).await?.into_inner();
        output::show(format, "berth.v1.KillResponse", &killed, || format!("{container}\n"))
    })
    .await
}

pub(super) async fn rm(daemon: &Daemon, flags: Rm, format: Format) -> Result<u8> {
    each(flags.containers, async |container| {
        let request = api::RemoveRequest { container: container.to_owned(), force: flags.force };
        match daemon.containers().remove(request).await {
            // As with docker and podman: whoever clears away by force has what was wanted.
            Err(status) if flags.force && status.code() == Code::NotFound => {
                eprintln!("berth: {}", Failure::from(status).text);
                Ok(())
            }
            answer => {
                let removed = answer?.into_inner();
                output::show(format, "berth.v1.RemoveResponse", &removed, || format!("{container}\n"))
            }
        }
    })
    .await
}

/// The exit code is the last container's.
pub(super) async fn wait(daemon: &Daemon, flags: Wait, format: Format) -> Result<u8> {
    let mut last = 0;
    for container in flags.containers {
        let waited = daemon.containers().wait(api::WaitRequest { container }).await?.into_inner();
        last = waited.exit_code;
        output::show(format, "berth.v1.WaitResponse", &waited, || format!("{last}\n"))?;
    }
    Ok(u8::try_from(last).unwrap_or(u8::MAX))
}

/// Does it to all; each failure is told, and the last one is the whole's.
pub(super) async fn each(names: Vec<String>, act: impl AsyncFn(&str) -> Result<()>) -> Result<u8> {
    let mut failed: Option<Failure> = None;
    for name in names {
        if let Err(failure) = act(&name).await
            && let Some(earlier) = failed.replace(failure)
        {
            eprintln!("berth: {}", earlier.text);
        }
    }
    failed.map_or(Ok(0), Err)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ctl::fake::Fake;

    #[tokio::test]
    async fn one_that_is_missing_does_not_keep_the_others_and_is_a_failure_unless_by_force() {
        for force in [false, true] {
            let fake = Fake::default();
            let (daemon, _socket) = fake.serve().await;
            let containers = ["a", "absent", "b"].map(ToOwned::to_owned).to_vec();
            let outcome = rm(&daemon, Rm { force, containers }, Format::Table).await;
            match outcome {
                Ok(code) => assert_eq!((force, code), (true, 0)),
                Err(failure) => {
                    assert_eq!((force, failure.code, failure.text.as_str()), (false, 125, "no such thing"));
                }
            }
            assert_eq!(fake.calls(), ["remove a", "remove absent", "remove b"]);
        }
    }
}
