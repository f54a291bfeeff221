//! The verbs of `berth`, one file per group. A client: of this crate it knows nothing but the proto.
//!
//! ```text
//! command (the line) ── verb ──┬─ flags, parse ── run ──┐
//!                              ├─ exec, attach ─────────┼─ session ── terminal, detach
//!                              ├─ lifecycle, logs, list, inspect, stats
//!                              ├─ images, pull, storage, network, node
//!                              └─ doctor, explain
//! all of them: connect (the socket), output (tables, JSON), failure (the one error and the exit code)
//! ```

mod attach;
mod command;
mod connect;
mod detach;
mod doctor;
mod exec;
mod explain;
mod failure;
#[cfg(test)]
mod fake;
mod flags;
mod health;
mod human;
mod images;
mod inspect;
mod lifecycle;
mod list;
mod logs;
mod network;
mod node;
mod output;
mod parse;
mod pull;
mod run;
mod session;
mod stats;
mod storage;
mod terminal;

use std::process::ExitCode;

use clap::Parser;

use self::{
    command::{Command, Verb},
    connect::Daemon,
    failure::{FAILED, Result},
};

/// Runs what the command line says; the process's exit code.
pub fn main() -> ExitCode {
    let command = match Command::try_parse() {
        Ok(command) => command,
        Err(error) => {
            // Nobody reads what can't be printed.
            error.print().ok();
            return ExitCode::from(if error.use_stderr() { FAILED } else { 0 });
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("berth: start event loop: {error}");
            return ExitCode::from(FAILED);
        }
    };
    let done = runtime.block_on(perform(command));
    // A thread may still wait for input that nobody types.
    runtime.shutdown_background();
    match done {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            if !failure.text.is_empty() {
                eprintln!("berth: {}", failure.text);
            }
            ExitCode::from(failure.code)
        }
    }
}

/// The exit code, where nothing failed.
async fn perform(command: Command) -> Result<u8> {
    let format = command.output.unwrap_or_default();
    let daemon = Daemon::connect(&command.address()).await;
    if let Verb::Doctor(flags) = &command.verb {
        return doctor::doctor(daemon, flags, format).await;
    }
    let daemon = daemon?;
    match command.verb {
        Verb::Run(flags) => run::run(&daemon, flags).await,
        Verb::Create(flags) => run::create(&daemon, flags).await,
        Verb::Exec(flags) => exec::exec(&daemon, flags).await,
        Verb::Attach(flags) => attach::attach(&daemon, &flags).await,
        Verb::Start(flags) => lifecycle::start(&daemon, flags, format).await,
        Verb::Stop(flags) => lifecycle::stop(&daemon, flags, format).await,
        Verb::Restart(flags) => lifecycle::restart(&daemon, flags, format).await,
        Verb::Kill(flags) => lifecycle::kill(&daemon, flags, format).await,
        Verb::Rm(flags) => lifecycle::rm(&daemon, flags, format).await,
        Verb::Wait(flags) => lifecycle::wait(&daemon, flags, format).await,
        Verb::Logs(flags) => logs::logs(&daemon, flags, format).await,
        Verb::Ps(flags) => list::ps(&daemon, flags, format).await,
        Verb::Pods(flags) => list::pods(&daemon, flags, format).await,
        Verb::Inspect(flags) => inspect::inspect(&daemon, flags, format).await,
        Verb::Stats(flags) => stats::stats(&daemon, flags, format).await,
        Verb::Pull(flags) => pull::pull(&daemon, flags, format).await,
        Verb::Load(flags) => images::load(&daemon, flags, format).await,
        Verb::Save(flags) => images::save(&daemon, flags).await,
        Verb::Images(flags) => images::images(&daemon, flags, format).await,
        Verb::Rmi(flags) => images::rmi(&daemon, flags, format).await,
        Verb::Image(verb) => storage::image(&daemon, verb, format).await,
        Verb::Network(verb) => network::network(&daemon, verb, format).await,
        Verb::System(verb) => storage::system(&daemon, verb, format).await,
        Verb::Version(shape) => node::version(&daemon, shape.or(format)).await,
        Verb::Explain(flags) => explain::explain(&daemon, flags, format).await,
        // Done above: it goes without the daemon.
        Verb::Doctor(_) => Ok(0),
        Verb::Info(shape) => node::info(&daemon, shape.or(format)).await,
    }
}
