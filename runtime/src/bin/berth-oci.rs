//! An OCI runtime's command line as a program of its own: `berth oci` with nothing else in it, since it is executed three times
//! and more in a container's life.

use std::process::ExitCode;

fn main() -> ExitCode {
    berth::ocicli::main(std::env::args_os().skip(1))
}
