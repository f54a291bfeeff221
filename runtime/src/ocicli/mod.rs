//! THE SIDE DOOR: `berth oci`, an OCI runtime's command line as runc has it, for podman, containerd, CRI-O and people
//! without a daemon. One verb is one short process: no thread, no daemon asked, no event loop but where systemd is.
//!
//! ```text
//! line (flags) ─ verb ─┬─ create, run ─┬─ birth ─ oci::bundle_plan ─ shim ──> berth-shim oneshot ──> init
//!                      ├─ exec ────────┘                            (leaves init to the caller and is gone)
//!                      ├─ start, kill, delete, pause, resume, update, ps, events, state, list
//!                      └─ features, spec
//! state: <root>/<id>/{state.json, plan, start}     log: what supervisors read      hooks: those of our own process
//! ```

/// Prints a line; one whose reader is gone is nobody's loss.
macro_rules! say {
    ($($words:tt)*) => {{
        use std::io::Write as _;
        writeln!(std::io::stdout(), $($words)*).ok();
    }};
}

mod birth;
mod checkpoint;
mod create;
mod delete;
mod events;
mod exec;
mod extras;
mod features;
mod foreground;
mod groups;
mod hooks;
mod identity;
mod kill;
mod limits;
mod line;
mod list;
mod log;
mod notify;
mod passed;
mod pause;
mod ps;
mod rdt;
mod rootless;
mod shim;
mod signals;
mod spec;
mod start;
mod state;
mod stats;
mod terminal;
mod update;
mod verbs;

use std::{ffi::OsString, path::PathBuf, process::ExitCode};

use self::{line::Line, log::Log, state::Home};
use crate::{Error, Result, cgroup::Driver};

/// What stands before the verb.
#[derive(Debug)]
pub struct Globals {
    pub home: Home,
    pub log: Log,
    pub groups: Driver,
    pub rootless: bool,
}

/// The exit code where a verb fails, as runc's; exec has its own.
const FAILED: u8 = 1;
const EXEC_FAILED: u8 = 255;

/// Runs what the words after the program's name (and `oci`) say; the process's exit code.
pub fn main(words: impl Iterator<Item = OsString>) -> ExitCode {
    let words: Result<Vec<String>> = words
        .map(|word| {
            word.into_string()
                .map_err(|word| Error::invalid("read arguments", format!("{word:?}"), "it is not UTF-8"))
        })
        .collect();
    let mut log = Log::default();
    let (outcome, failed) = match words.and_then(|words| verbs::split(&words)) {
        Ok(asked) => {
            let failed = if asked.name() == "exec" { EXEC_FAILED } else { FAILED };
            (perform(asked, &mut log), failed)
        }
        Err(error) => (Err(error), FAILED),
    };
    ExitCode::from(outcome.unwrap_or_else(|error| {
        log.fail(&error);
        failed
    }))
}

fn perform(asked: verbs::Asked, log: &mut Log) -> Result<u8> {
    let run = match asked {
        verbs::Asked::Print(text) => {
            print!("{text}");
            return Ok(0);
        }
        verbs::Asked::Run { globals, verb, line } => (globals, verb, line),
    };
    let (line, verb, words) = run;
    *log = Log::open(&line)?;
    let globals = globals(&line, log.share()?)?;
    (verb.run)(&globals, &words)
}

fn globals(line: &Line, log: Log) -> Result<Globals> {
    let ordinary = rootless::is_ordinary()?;
    let rootless = match line.last("rootless") {
        None | Some("auto") => ordinary,
        Some("true" | "1") => true,
        Some("false" | "0") => false,
        Some(other) => {
            return Err(Error::invalid(
                "read arguments",
                "--rootless",
                format!("{other:?} is not true, false or auto"),
            ));
        }
    };
    let home = match line.last("root") {
        Some(path) => std::path::absolute(path).map_err(|error| Error::io("find root", path, error))?,
        None => default_root(ordinary),
    };
    let groups = if line.has("systemd-cgroup") { Driver::Systemd } else { Driver::Cgroupfs };
    Ok(Globals { home: Home::new(home), log, groups, rootless })
}

/// A person's own runtime directory where we aren't root, or only in a namespace that they made, as peers do.
fn default_root(ordinary: bool) -> PathBuf {
    let is_roots = std::env::var_os("USER").is_some_and(|name| name == "root");
    let own = ordinary && !(is_roots && rustix::process::geteuid().is_root());
    match std::env::var_os("XDG_RUNTIME_DIR").filter(|directory| own && !directory.is_empty()) {
        Some(directory) => PathBuf::from(directory).join("berth-oci"),
        None => PathBuf::from("/run/berth-oci"),
    }
}
