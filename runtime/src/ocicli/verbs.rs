//! The verbs and their flags: runc's, word by word.

use std::fmt::Write;

use super::{
    Globals, checkpoint, create, delete, events, exec, features, kill,
    line::{self, Flag, Line, Order, Takes, switch, value, wrong},
    list, pause, ps, spec, start, state, update,
};
use crate::Result;

/// A verb of the command line.
#[derive(Debug)]
pub struct Verb {
    pub name: &'static str,
    words: &'static str,
    about: &'static str,
    order: Order,
    flags: &'static [Flag],
    pub run: fn(&Globals, &Line) -> Result<u8>,
}

/// What a whole line asks for.
#[derive(Debug)]
pub enum Asked {
    Print(String),
    Run { globals: Line, verb: &'static Verb, line: Line },
}

impl Asked {
    pub fn name(&self) -> &str {
        match self {
            Self::Print(_) => "",
            Self::Run { verb, .. } => verb.name,
        }
    }
}

const GLOBALS: &[Flag] = &[
    value(
        "root",
        "",
        "where containers' states are (default /run/berth-oci, or berth-oci in XDG_RUNTIME_DIR)",
    ),
    value("log", "", "append messages to this file"),
    value("log-format", "", "text or json"),
    switch("debug", "", "tell more in the log"),
    switch("systemd-cgroup", "", "have systemd make the cgroups; cgroupsPath is then slice:prefix:name"),
    value("rootless", "", "true, false or auto: go on where cgroups are denied"),
    value("criu", "", "taken and not used: there is no checkpoint"),
    switch("version", "v", "print the version"),
    switch("help", "h", "print this"),
];

const BUNDLE: Flag = value("bundle", "b", "the bundle's directory (default: the working directory)");
const CONSOLE: Flag = value("console-socket", "", "send the terminal to this unix socket");
const PID_FILE: Flag = value("pid-file", "", "write the process's id to this file");
const NO_PIVOT: Flag = switch("no-pivot", "", "refused: a root that can't be pivoted to is no container's");
const NO_SUBREAPER: Flag = switch("no-subreaper", "", "always so: orphans are the caller's");
const NO_KEYRING: Flag = switch("no-new-keyring", "", "keep the caller's session keyring");
const PRESERVE: Flag = value("preserve-fds", "", "pass so many descriptors from 3 on");

const VERBS: &[Verb] = &[
    Verb {
        name: "create",
        words: "CONTAINER",
        about: "make a container from a bundle",
        order: Order::Anywhere,
        flags: &[BUNDLE, CONSOLE, PID_FILE, NO_PIVOT, NO_KEYRING, PRESERVE, NO_SUBREAPER],
        run: create::create,
    },
    Verb {
        name: "start",
        words: "CONTAINER",
        about: "start what was created",
        order: Order::Anywhere,
        flags: &[],
        run: start::start,
    },
    Verb {
        name: "run",
        words: "CONTAINER",
        about: "create and start, and wait for the end unless detached",
        order: Order::Anywhere,
        flags: &[
            BUNDLE,
            CONSOLE,
            PID_FILE,
            NO_PIVOT,
            NO_KEYRING,
            PRESERVE,
            NO_SUBREAPER,
            switch("detach", "d", "don't wait"),
            switch("keep", "", "don't delete the container when it has ended"),
        ],
        run: create::run,
    },
    Verb {
        name: "exec",
        words: "CONTAINER [COMMAND [ARG...]]",
        about: "run one more process in a container",
        order: Order::First,
        flags: &[
            value("process", "p", "the process, as JSON of the runtime spec"),
            value("cwd", "", "the working directory in the container"),
            value("env", "e", "NAME=VALUE, may be repeated"),
            switch("tty", "t", "give it a terminal"),
            value("user", "u", "UID[:GID]"),
            value("additional-gids", "g", "a group more, may be repeated"),
            switch("detach", "d", "don't wait"),
            PID_FILE,
            CONSOLE,
            value("process-label", "", "its SELinux label"),
            value("apparmor", "", "its AppArmor profile"),
            switch("no-new-privs", "", "forbid it to gain privileges"),
            value("cap", "c", "a capability more, may be repeated"),
            PRESERVE,
            value("cgroup", "", "[CONTROLLER:]PATH below the container's cgroup, may be repeated"),
            switch("ignore-paused", "", "don't refuse a paused container"),
            NO_SUBREAPER,
        ],
        run: exec::exec,
    },
    Verb {
        name: "kill",
        words: "CONTAINER [SIGNAL]",
        about: "send a signal to a container's init",
        order: Order::Anywhere,
        flags: &[switch("all", "a", "send it to all its processes")],
        run: kill::kill,
    },
    Verb {
        name: "delete",
        words: "CONTAINER",
        about: "remove what a container has left",
        order: Order::Anywhere,
        flags: &[switch("force", "f", "kill it first where it runs; one that isn't there is no failure")],
        run: delete::delete,
    },
    Verb {
        name: "state",
        words: "CONTAINER",
        about: "print a container's state as JSON",
        order: Order::Anywhere,
        flags: &[],
        run: state::print,
    },
    Verb {
        name: "list",
        words: "",
        about: "list containers",
        order: Order::Anywhere,
        flags: &[value("format", "f", "table or json"), switch("quiet", "q", "only ids")],
        run: list::list,
    },
    Verb {
        name: "ps",
        words: "CONTAINER [PS-FLAG...]",
        about: "list a container's processes",
        order: Order::First,
        flags: &[value("format", "f", "table or json")],
        run: ps::ps,
    },
    Verb {
        name: "pause",
        words: "CONTAINER",
        about: "freeze all processes",
        order: Order::Anywhere,
        flags: &[],
        run: pause::pause,
    },
    Verb {
        name: "resume",
        words: "CONTAINER",
        about: "thaw them",
        order: Order::Anywhere,
        flags: &[],
        run: pause::resume,
    },
    Verb {
        name: "update",
        words: "CONTAINER",
        about: "change limits",
        order: Order::Anywhere,
        flags: update::FLAGS,
        run: update::update,
    },
    Verb {
        name: "events",
        words: "CONTAINER",
        about: "print statistics and out-of-memory events as JSON lines",
        order: Order::Anywhere,
        flags: &[
            switch("stats", "", "print the statistics once"),
            value("interval", "", "how often statistics come (default 5s)"),
        ],
        run: events::events,
    },
    Verb {
        name: "features",
        words: "",
        about: "print what this runtime can do here, as JSON",
        order: Order::Anywhere,
        flags: &[],
        run: features::features,
    },
    Verb {
        name: "spec",
        words: "",
        about: "write a config.json to begin with",
        order: Order::Anywhere,
        flags: &[BUNDLE, switch("rootless", "", "for an ordinary user")],
        run: spec::spec,
    },
    Verb {
        name: "checkpoint",
        words: "CONTAINER",
        about: "refused: there is no checkpoint",
        order: Order::First,
        flags: &[],
        run: checkpoint::refuse,
    },
    Verb {
        name: "restore",
        words: "CONTAINER",
        about: "refused: there is no checkpoint",
        order: Order::First,
        flags: &[],
        run: checkpoint::refuse,
    },
];

/// Takes a whole line apart.
///
/// # Errors
/// `Invalid` for a verb or a flag that isn't known.
pub fn split(words: &[String]) -> Result<Asked> {
    let globals = line::parse(GLOBALS, Order::First, words)?;
    if globals.has("version") {
        return Ok(Asked::Print(version()));
    }
    let Some((name, rest)) = globals.words.split_first().filter(|(name, _)| *name != "help") else {
        return Ok(Asked::Print(help()));
    };
    if globals.has("help") {
        return Ok(Asked::Print(help()));
    }
    let verb = VERBS.iter().find(|verb| verb.name == name);
    let verb = verb.ok_or_else(|| wrong(name, "there is no such verb; --help lists them".into()))?;
    let ends = rest.iter().position(|word| verb.order == Order::First && !word.starts_with('-'));
    if rest[..ends.unwrap_or(rest.len())].iter().any(|word| matches!(word.as_str(), "-h" | "--help")) {
        return Ok(Asked::Print(help_of(verb)));
    }
    let line = if name == "checkpoint" || name == "restore" {
        Line::default()
    } else {
        line::parse(verb.flags, verb.order, rest)?
    };
    Ok(Asked::Run { globals, verb, line })
}

/// As peers print it: containerd and podman take the first line.
fn version() -> String {
    format!("berth-oci version {}\nspec: {}\n", env!("CARGO_PKG_VERSION"), super::state::SPEC)
}

fn help() -> String {
    let mut text = String::from("usage: berth oci [FLAG...] VERB ...\n\n");
    for verb in VERBS {
        // A String takes every write.
        writeln!(text, "  {:<11} {}", verb.name, verb.about).ok();
    }
    text.push('\n');
    text + &told(GLOBALS)
}

fn help_of(verb: &Verb) -> String {
    format!(
        "usage: berth oci {} [FLAG...] {}\n\n{}\n\n{}",
        verb.name,
        verb.words,
        verb.about,
        told(verb.flags)
    )
}

fn told(flags: &[Flag]) -> String {
    let mut text = String::new();
    for flag in flags {
        let short = if flag.short.is_empty() { String::new() } else { format!("-{}, ", flag.short) };
        let value = if flag.takes == Takes::Value { " VALUE" } else { "" };
        // A String takes every write.
        writeln!(text, "  {:<28} {}", format!("{short}--{}{value}", flag.name), flag.help).ok();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn lines_of_podman_containerd_and_people_are_understood() {
        let rows = [
            "--root /r --log /l --log-format json --systemd-cgroup create --bundle /b --pid-file /p --no-new-keyring id",
            "--root=/r --log-format=json --log=/l create --bundle /b --console-socket /c --preserve-fds 1 id",
            "exec --process /x --pid-file /p --detach id",
            "kill --all id 9",
            "delete --force id",
            "delete id --force",
            "ps --format json id",
            "update --resources - id",
            "events --stats id",
            "state id",
            "list --format=json",
        ];
        for text in rows {
            let asked = split(&words(text)).unwrap_or_else(|error| panic!("{text}: {}", error.chain()));
            let Asked::Run { line, .. } = asked else { panic!("{text} is not run") };
            assert!(text.starts_with("list") || line.words[0] == "id", "{text}");
        }
    }

    #[test]
    fn help_and_version_are_printed_and_the_unknown_is_refused() {
        for text in ["--version", "-v", "--help", "", "help", "create --help", "exec -h id"] {
            assert!(matches!(split(&words(text)), Ok(Asked::Print(_))), "{text}");
        }
        assert!(matches!(split(&words("exec id -h")), Ok(Asked::Run { .. })));
        for text in ["fly", "create --fly id", "--fly state id"] {
            assert!(split(&words(text)).is_err(), "{text}");
        }
    }
}
