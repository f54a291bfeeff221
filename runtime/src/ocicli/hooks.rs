//! Hooks after the start and after the end: those that no shim is there for.

use std::{
    ffi::OsStr,
    io::Write,
    os::unix::{ffi::OsStrExt, process::CommandExt},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use berth_launch::v1::Hook;
use oci_spec::runtime::Spec;

use super::{
    Globals,
    state::{Container, State},
};
use crate::{Error, Kind, Result, error::Cause, oci};

/// Runs the hooks after a start; the first that fails is the last.
///
/// # Errors
/// The hook's: the spec then has the container stopped.
pub fn poststart(container: &Container) -> Result<()> {
    let spec = container.spec()?;
    let (hooks, _) = oci::late_hooks(&spec)?;
    let known = &container.state;
    let state = oci::state_text(&spec, &known.id, &known.bundle, "running", known.init.pid);
    hooks.iter().try_for_each(|hook| one(hook, &state))
}

/// Runs the hooks after an end. The spec: a failure is logged, and the rest goes on as if it had succeeded.
pub fn poststop(globals: &Globals, spec: &Spec, known: &State) -> Result<()> {
    let (_, hooks) = oci::late_hooks(spec)?;
    let state = oci::state_text(spec, &known.id, &known.bundle, "stopped", 0);
    for hook in &hooks {
        if let Err(error) = one(hook, &state) {
            globals.log.warn(&error.chain());
        }
    }
    Ok(())
}

fn one(hook: &Hook, state: &[u8]) -> Result<()> {
    const OP: &str = "run hook";
    let path = OsStr::from_bytes(&hook.path);
    let shown = path.to_string_lossy().into_owned();
    let failed = |error| Error::io(OP, shown.clone(), error);
    let mut command = Command::new(path);
    let mut args = hook.args.iter().map(|arg| OsStr::from_bytes(arg));
    if let Some(name) = args.next() {
        command.arg0(name);
    }
    command.args(args).env_clear().stdin(Stdio::piped()).stdout(Stdio::null());
    for variable in &hook.env {
        if let Some(at) = variable.iter().position(|byte| *byte == b'=') {
            command.env(OsStr::from_bytes(&variable[..at]), OsStr::from_bytes(&variable[at + 1..]));
        }
    }
    let mut child = command.spawn().map_err(failed)?;
    if let Some(mut input) = child.stdin.take() {
        // One that doesn't want to know has closed it.
        input.write_all(state).ok();
    }
    let until =
        (hook.timeout_seconds > 0).then(|| Instant::now() + Duration::from_secs(hook.timeout_seconds.into()));
    let status = loop {
        match until {
            None => break child.wait().map_err(failed)?,
            Some(until) => match child.try_wait().map_err(failed)? {
                Some(status) => break status,
                None if Instant::now() >= until => {
                    child.kill().and_then(|()| child.wait()).map_err(failed)?;
                    let why = format!("it took longer than its {} s", hook.timeout_seconds);
                    return Err(Error::new(Kind::Deadline, OP, shown).because(Cause(why)));
                }
                None => thread::sleep(Duration::from_millis(5)),
            },
        }
    };
    match status.success() {
        true => Ok(()),
        false => Err(Error::new(Kind::Internal, OP, shown).because(Cause(format!("it ended with {status}")))),
    }
}
