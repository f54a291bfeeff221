//! `cargo xtask`: what a newcomer, a developer and CI do with this repository.
//!
//! ```text
//!   demo ----+                       +-- cargo      builds, and says where the programs are
//!   bench ---+-- private (a berthd   +-- debian     packages that are missing
//!            |   of this run alone)  +-- process    runs programs
//!   soak         a load with kills: builds, and runs tests/examples/soak
//!   test ----+-- stages: lint, unit, host, vm, kubelet, cluster -> one tally
//!            +-- kubernetes  builds a kubelet and its kind
//!   bench -- peers (daemons beside Berth's), meter (what they cost), golang (builds some of them)
//!   install      programs, unit and configuration below a prefix
//!   deb          the same as a Debian package
//! ```
//! Outside target/ and the temporary directory nothing is changed but what each verb says.

mod bench;
mod cargo;
mod cni;
mod deb;
mod debian;
mod demo;
mod golang;
mod install;
mod interrupt;
mod kubernetes;
mod leftovers;
mod meter;
mod oci;
mod peers;
mod private;
mod process;
mod soak;
mod subnet;
mod test;
mod tmpfs;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    about = "Everything that is done with this repository"
)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Installs what is missing, builds, runs a container and a pod on a private berthd, cleans up
    Demo,
    /// Runs all tests; the last line is `N passed, N failed, N skipped`
    Test(test::Flags),
    /// Measures Berth, and the peers that are found
    Bench(bench::Flags),
    /// Loads a private berthd for a while, kills it and its shims meanwhile, and looks whether anything is lost or left
    Soak(soak::Flags),
    /// Builds for release and puts everything below a prefix
    Install(install::Flags),
    /// Builds for release and makes a Debian package of it below target/
    Deb,
}

fn main() -> ExitCode {
    let done = match Arguments::parse().verb {
        Verb::Demo => demo::run().map(|()| ExitCode::SUCCESS),
        Verb::Test(flags) => test::run(&flags),
        Verb::Bench(flags) => bench::run(&flags).map(|()| ExitCode::SUCCESS),
        Verb::Soak(flags) => soak::run(&flags),
        Verb::Install(flags) => install::run(&flags).map(|()| ExitCode::SUCCESS),
        Verb::Deb => deb::run().map(|()| ExitCode::SUCCESS),
    };
    done.unwrap_or_else(|error| {
        eprintln!("xtask: {error:#}");
        ExitCode::FAILURE
    })
}
