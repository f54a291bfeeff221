//! `create` and `run`.

use oci_spec::runtime::Spec;

use super::{
    Globals,
    birth::{Asked, absolute, birth, document},
    delete,
    foreground::{self, Relay},
    line::{Line, wrong},
    shim, signals, start,
};
use crate::{Result, oci::Keyring};

/// `create`: up to the gate.
pub fn create(globals: &Globals, line: &Line) -> Result<u8> {
    let asked = asked(line)?;
    let (spec, raw) = document(&asked.bundle)?;
    console_fits(&spec, &asked)?;
    birth(globals, &spec, &raw, &asked)?;
    Ok(0)
}

/// `run`: created, started, and waited for unless detached.
pub fn run(globals: &Globals, line: &Line) -> Result<u8> {
    let mut asked = asked(line)?;
    let (spec, raw) = document(&asked.bundle)?;
    let detached = line.has("detach");
    let relay = match wants_terminal(&spec) && !detached && asked.console.is_none() {
        true => Some(Relay::new()?),
        false => None,
    };
    asked.console = relay.as_ref().map(Relay::path).or(asked.console);
    console_fits(&spec, &asked)?;
    // From here on a signal is the container's, and takes nothing half made down.
    let signals = (!detached).then(signals::take).transpose()?;
    let container = match detached {
        true => birth(globals, &spec, &raw, &asked)?,
        false => foreground::adopting(|| birth(globals, &spec, &raw, &asked))?,
    };
    let started = start::start_it(&container);
    if let (Ok(Some(proxy)), true) = (&started, detached) {
        proxy.until_ready(&container.state.init)?;
    }
    if started.is_err() || !detached {
        let outcome = started.and_then(|proxy| match signals {
            Some(signals) => foreground::wait(&container.state.init, relay, proxy.as_ref(), signals),
            None => Ok(0),
        });
        let removed = match line.has("keep") && outcome.is_ok() {
            true => Ok(()),
            false => delete::remove(globals, &container),
        };
        shim::reap();
        return outcome.and_then(|code| removed.map(|()| code));
    }
    Ok(0)
}

fn asked(line: &Line) -> Result<Asked> {
    if line.has("no-pivot") {
        return Err(wrong(
            "--no-pivot",
            "a root that is only moved can be left again: put the rootfs on a disk or a tmpfs".into(),
        ));
    }
    Ok(Asked {
        id: line.id()?.to_owned(),
        bundle: absolute(line.last("bundle").filter(|path| !path.is_empty()).unwrap_or("."))?,
        console: line.last("console-socket").filter(|path| !path.is_empty()).map(absolute).transpose()?,
        pid_file: line.last("pid-file").filter(|path| !path.is_empty()).map(absolute).transpose()?,
        preserve_fds: line.number("preserve-fds")?.unwrap_or(0),
        keyring: if line.has("no-new-keyring") { Keyring::Callers } else { Keyring::New },
    })
}

fn wants_terminal(spec: &Spec) -> bool {
    spec.process().as_ref().and_then(|process| process.terminal()).unwrap_or(false)
}

/// A terminal needs somebody to hold it, and a socket for one needs a terminal.
fn console_fits(spec: &Spec, asked: &Asked) -> Result<()> {
    match (wants_terminal(spec), &asked.console) {
        (true, None) => Err(wrong(
            "--console-socket",
            "process.terminal is set, and nobody would hold the terminal".into(),
        )),
        (false, Some(_)) => Err(wrong("--console-socket", "process.terminal is not set".into())),
        _ => Ok(()),
    }
}
