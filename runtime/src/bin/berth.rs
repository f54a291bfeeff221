//! The tool: its verbs are in `ctl`; those of an OCI runtime, which need neither daemon nor event loop, in `ocicli`.

use std::{path::Path, process::ExitCode};

fn main() -> ExitCode {
    let mut words = std::env::args_os();
    let name = words.next().unwrap_or_default();
    if Path::new(&name).file_name().is_some_and(|name| name == "berth-oci") {
        return berth::ocicli::main(words);
    }
    match words.next() {
        Some(verb) if verb == "oci" => berth::ocicli::main(words),
        _ => berth::ctl::main(),
    }
}
