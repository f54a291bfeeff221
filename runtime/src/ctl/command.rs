//! The command line: verbs and flags as docker has them.

use clap::{Args, Parser, Subcommand};

use super::{
    connect, doctor, exec, explain, flags, images, inspect, lifecycle, list, logs, network, output::Format,
    pull, stats, storage,
};

/// Runs containers and shows what a berthd has.
///
/// -o takes table (the default), json and yaml.
#[derive(Debug, Parser)]
#[command(name = "berth", version, subcommand_required = true, arg_required_else_help = true)]
#[command(
    after_help = "Exit codes: the container's own for run, exec, attach and wait; 125 berth itself failed, \
                        126 the program is not executable, 127 it was not found."
)]
pub(super) struct Command {
    /// The daemon's socket [default: $CONTAINER_RUNTIME_ENDPOINT, else unix:///run/berth/berth.sock]
    #[arg(long, value_name = "unix:///PATH", env = "BERTH_ADDRESS", global = true, hide_env_values = true)]
    address: Option<String>,
    /// How to print: columns for people, protobuf JSON for programs, or the same as YAML
    #[arg(short, long, value_name = "FORMAT")]
    pub(super) output: Option<Format>,
    #[command(subcommand)]
    pub(super) verb: Verb,
}

impl Command {
    pub(super) fn address(&self) -> String {
        let kubelets = || std::env::var("CONTAINER_RUNTIME_ENDPOINT").ok();
        let given = self.address.clone().or_else(kubelets).filter(|address| !address.is_empty());
        given.unwrap_or_else(|| connect::DEFAULT.into())
    }
}

/// -o behind the verb as well as before it.
#[derive(Debug, Clone, Copy, Args)]
pub(super) struct Shape {
    /// How to print
    #[arg(short, long = "output", value_name = "FORMAT", id = "shape")]
    output: Option<Format>,
}

impl Shape {
    /// What was said behind the verb, else before it.
    pub(super) fn or(self, before: Format) -> Format {
        self.output.unwrap_or(before)
    }
}

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Creates and starts a container, in front or (-d) behind
    Run(flags::Run),
    /// Creates a container without starting it
    Create(flags::Create),
    /// Runs a command in a running container
    Exec(exec::Flags),
    /// Takes a running container's input and output
    Attach(super::attach::Flags),
    /// Starts containers
    Start(lifecycle::Start),
    /// Ends containers: the stop signal, then a kill
    Stop(lifecycle::Stop),
    /// Stops and starts containers
    Restart(lifecycle::Stop),
    /// Sends containers a signal
    Kill(lifecycle::Kill),
    /// Removes containers
    Rm(lifecycle::Rm),
    /// Waits until containers have ended and prints their exit codes
    Wait(lifecycle::Wait),
    /// Prints what a container wrote
    Logs(logs::Flags),
    /// Lists containers
    Ps(list::Ps),
    /// Lists the pods of a kubelet
    Pods(list::Pods),
    /// Prints all about containers, in docker's JSON
    Inspect(inspect::Flags),
    /// Shows what containers use, as it changes
    Stats(stats::Flags),
    /// Fetches an image from a registry
    Pull(pull::Flags),
    /// Takes images from an archive (OCI layout or docker-archive)
    Load(images::Load),
    /// Writes images to an archive
    Save(images::Save),
    /// Lists images
    Images(images::List),
    /// Removes images
    Rmi(images::Rmi),
    /// Images: check, prune, ls, rm, pull, load, save
    #[command(subcommand)]
    Image(storage::Image),
    /// Networks of containers: create, ls, rm, inspect
    #[command(subcommand)]
    Network(network::Verb),
    /// The disk and the daemon: df, info
    #[command(subcommand)]
    System(storage::System),
    /// Prints the versions of berth and of the daemon
    Version(Shape),
    /// Prints what the daemon is and what this host lacks
    Info(Shape),
    /// Tells what is orphaned or damaged, and whether this host is fit; exits 1 where something is wrong
    Doctor(doctor::Flags),
    /// Tells what has happened to a pod or a container, step by step, with times and errors; for an hour after it went, too
    Explain(explain::Flags),
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn read(line: &str) -> Result<Command, clap::Error> {
        Command::try_parse_from(line.split(' '))
    }

    #[test]
    fn the_line_is_consistent() {
        Command::command().debug_assert();
    }

    #[test]
    fn what_stands_behind_the_image_is_the_containers() {
        let line = "berth run -it --rm --name web -e A=1 -h db busybox ls -l --rm -d";
        let Verb::Run(run) = read(line).unwrap().verb else { panic!("no run") };
        assert_eq!(run.create.words, ["busybox", "ls", "-l", "--rm", "-d"]);
        assert!(run.create.rm && run.create.interactive && run.create.tty && !run.detach);
        assert_eq!((run.create.name.as_deref(), run.create.hostname.as_deref()), (Some("web"), Some("db")));
        let Verb::Exec(exec) = read("berth exec -i -u 5 web sh -c x -t").unwrap().verb else {
            panic!("no exec")
        };
        assert_eq!(exec.words, ["web", "sh", "-c", "x", "-t"]);
        assert!(exec.interactive && !exec.tty);
    }

    #[test]
    fn the_format_may_stand_on_either_side_of_the_verb() {
        for line in ["berth -o json ps", "berth ps -o json", "berth ps --output json"] {
            let command = read(line).unwrap();
            let Verb::Ps(ps) = command.verb else { panic!("no ps") };
            assert_eq!(ps.shape.or(command.output.unwrap_or_default()), Format::Json, "{line}");
        }
        let Verb::Save(save) = read("berth save -o file.tar busybox").unwrap().verb else {
            panic!("no save")
        };
        assert!(save.output.is_some());
        assert!(read("berth -o yaml ps").is_ok());
        assert!(read("berth -o xml ps").is_err());
    }

    #[test]
    fn a_network_is_made_listed_and_removed_as_with_docker() {
        let line = "berth network create --subnet 10.9.0.0/24 --subnet fd09::/64 --gateway 10.9.0.9 --internal \
                    --label a=b --mtu 1400 blue";
        for line in [line, "berth network ls -q", "berth network list -o json", "berth network rm a b"] {
            assert!(matches!(read(line).unwrap().verb, Verb::Network(_)), "{line}");
        }
    }

    #[test]
    fn what_is_wrong_is_refused() {
        for line in [
            "berth",
            "berth run",
            "berth run --bogus x",
            "berth network",
            "berth network create",
            "berth exec c",
            // docker and podman want a name as well.
            "berth rm -f",
        ] {
            assert!(read(line).is_err(), "{line}");
        }
    }
}
