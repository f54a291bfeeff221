//! The flags of `run` and `create` -> what the daemon is asked for.

use std::{
    ffi::OsString,
    fs,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use berth_cri::berth::{ContainerSpec, Restart, Volume};
use clap::{ArgAction, Args, ValueEnum};

use super::{
    failure::{Failure, Result},
    health, parse,
};

#[derive(Debug, Args)]
#[command(disable_help_flag = true)]
pub(super) struct Run {
    /// Leave it running behind and print its id
    #[arg(short, long)]
    pub(super) detach: bool,
    #[command(flatten)]
    pub(super) create: Create,
}

#[derive(Debug, Args)]
#[command(disable_help_flag = true)]
pub(super) struct Create {
    /// Remove it once it has ended
    #[arg(long)]
    pub(super) rm: bool,
    /// Keep its input open
    #[arg(short, long)]
    pub(super) interactive: bool,
    /// Give it a terminal
    #[arg(short, long)]
    pub(super) tty: bool,
    /// NAME=VALUE, or NAME for the value it has here
    #[arg(short, long, value_name = "NAME=VALUE")]
    env: Vec<OsString>,
    /// A file with such a variable a line
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// A host path in the container: SOURCE:DESTINATION[:ro]
    #[arg(short, long, value_name = "VOLUME")]
    volume: Vec<String>,
    /// The directory it starts in
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// As whom: user[:group], names or numbers
    #[arg(short, long, value_name = "USER")]
    user: Option<String>,
    /// What to call it; made up otherwise
    #[arg(long)]
    pub(super) name: Option<String>,
    /// no, on-failure[:N] or always
    #[arg(long, value_name = "POLICY", value_parser = text(parse::restart))]
    restart: Option<Restart>,
    /// The most memory: 512m, 1.5g
    #[arg(short, long, value_name = "BYTES", value_parser = text(parse::memory))]
    memory: Option<i64>,
    /// The most CPU time: 2, 0.5
    #[arg(long, value_name = "N", value_parser = text(parse::cpus))]
    cpus: Option<i64>,
    /// Its network: bridge, host, none, or one that `berth network create` made
    #[arg(long, visible_alias = "net", value_name = "NETWORK", default_value = "bridge")]
    network: String,
    /// What others of that network find it by, beside its name and short id
    #[arg(long, alias = "net-alias", value_name = "NAME")]
    network_alias: Vec<String>,
    /// The IPv4 address it is to have there
    #[arg(long, value_name = "IP")]
    ip: Option<String>,
    /// The IPv6 address it is to have there
    #[arg(long, value_name = "IP")]
    ip6: Option<String>,
    /// Ports of the host that lead into it: [IP:]HOST:CONTAINER[/udp], or as many of each: 8000-8009:80-89
    #[arg(short, long, value_name = "PORTS", value_parser = text(parse::ports))]
    publish: Vec<parse::Ports>,
    /// The most that comes to it over its network, bits per second: 10M, 1.5G
    #[arg(long, value_name = "BITS")]
    ingress_bandwidth: Option<String>,
    /// The most that it sends
    #[arg(long, value_name = "BITS")]
    egress_bandwidth: Option<String>,
    /// Nothing in its image can be changed
    #[arg(long)]
    read_only: bool,
    /// Run this instead of the image's entry point; "" for none
    #[arg(long, value_name = "PROGRAM")]
    entrypoint: Option<String>,
    /// Its own host name; its short id otherwise
    #[arg(short = 'h', long, value_name = "NAME")]
    pub(super) hostname: Option<String>,
    /// NAME=VALUE, kept with it
    #[arg(short, long, value_name = "LABEL", value_parser = text(parse::label))]
    label: Vec<(String, String)>,
    /// All rights and devices of the host
    #[arg(long)]
    privileged: bool,
    /// A capability more: NET_ADMIN, ALL
    #[arg(long, value_name = "CAPABILITY")]
    cap_add: Vec<String>,
    /// A capability less
    #[arg(long, value_name = "CAPABILITY")]
    cap_drop: Vec<String>,
    /// The most processes and threads; -1 or 0 for no bound
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pids_limit: Option<i64>,
    /// The most that what it writes into its own files may take: 10g; needs a file system with project quotas
    #[arg(long, value_name = "SIZE", value_parser = text(parse::memory))]
    storage: Option<i64>,
    /// What ends it: TERM, SIGQUIT, 3
    #[arg(long, value_name = "SIGNAL")]
    stop_signal: Option<String>,
    #[command(flatten)]
    health: health::Flags,
    /// When to fetch the image
    #[arg(long, value_name = "WHEN", default_value = "missing")]
    pub(super) pull: Pull,
    /// Print this help
    #[arg(long, action = ArgAction::Help)]
    help: Option<bool>,
    /// The image, and what to run in it instead of its own command
    #[arg(value_name = "IMAGE [COMMAND]", required = true, trailing_var_arg = true)]
    pub(super) words: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Pull {
    /// When it is not here
    Missing,
    /// Even when it is here
    Always,
    /// Not at all
    Never,
}

/// A parser of ours for clap, which wants words for its errors.
pub(super) fn text<T: 'static + Clone + Send + Sync>(
    parse: fn(&str) -> Result<T>,
) -> impl Fn(&str) -> Result<T, String> + Clone + Send + Sync + 'static {
    move |text| parse(text).map_err(|failure| failure.text)
}

impl Create {
    pub(super) fn image(&self) -> &str {
        // clap refuses a line without it.
        self.words.first().map_or("", String::as_str)
    }

    /// Reads the --env-files and makes the request.
    pub(super) fn spec(self) -> Result<ContainerSpec> {
        let mut env = Vec::new();
        for path in &self.env_file {
            let content =
                fs::read(path).map_err(|error| Failure::io(&format!("read {}", path.display()), &error))?;
            env.extend(parse::env_file(&content)?);
        }
        for pair in &self.env {
            env.extend(parse::variable(pair.as_bytes())?);
        }
        let here = std::env::current_dir().map_err(|error| Failure::io("find this directory", &error))?;
        let volumes = volumes(&self.volume, &here)?;
        let mut words = self.words.into_iter();
        Ok(ContainerSpec {
            name: self.name.unwrap_or_default(),
            image: words.next().unwrap_or_default(),
            command: words.collect(),
            entrypoint: self.entrypoint,
            env: last_of_each(env).into_iter().map(Into::into).collect(),
            volumes,
            workdir: self.workdir.unwrap_or_default(),
            user: self.user.unwrap_or_default(),
            tty: self.tty,
            stdin: self.interactive,
            restart: self.restart,
            memory_bytes: self.memory.unwrap_or(0),
            millicpu: self.cpus.unwrap_or(0),
            network: self.network,
            network_aliases: self.network_alias,
            ip: self.ip.unwrap_or_default(),
            ip6: self.ip6.unwrap_or_default(),
            ingress_bandwidth: self.ingress_bandwidth.unwrap_or_default(),
            egress_bandwidth: self.egress_bandwidth.unwrap_or_default(),
            read_only: self.read_only,
            labels: self.label.into_iter().collect(),
            stop_signal: self.stop_signal.unwrap_or_default(),
            auto_remove: self.rm,
            hostname: self.hostname.unwrap_or_default(),
            privileged: self.privileged,
            cap_add: self.cap_add,
            cap_drop: self.cap_drop,
            pids_limit: self.pids_limit.unwrap_or(0).max(0),
            storage_bytes: self.storage.unwrap_or(0),
            ports: self.publish.into_iter().flat_map(|ports| ports.0).collect(),
            health: self.health.check(),
            command_line: std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect(),
        })
    }
}

fn volumes(texts: &[String], here: &Path) -> Result<Vec<Volume>> {
    texts.iter().map(|text| parse::volume(text, here)).collect()
}

/// Of variables with one name the last, in its place: an application may read the first.
fn last_of_each(env: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    fn name(pair: &[u8]) -> &[u8] {
        pair.split(|byte| *byte == b'=').next().unwrap_or_default()
    }
    let mut kept: Vec<Vec<u8>> = Vec::new();
    for pair in env {
        kept.retain(|earlier| name(earlier) != name(&pair));
        kept.push(pair);
    }
    kept
}

#[cfg(test)]
mod tests {
    use berth_cri::berth::restart::Policy;
    use clap::Parser;

    use super::*;
    use crate::ctl::command::{Command, Verb};

    fn spec(line: &str) -> ContainerSpec {
        let Verb::Run(run) = Command::parse_from(line.split(' ')).verb else { panic!("no run") };
        run.create.spec().unwrap()
    }

    #[test]
    fn what_is_said_is_asked_for() {
        let spec = spec(
            "berth run -d --rm -i -t -e A=1 -e B=2 -e A=3 -v /a:/b:ro -w /w -u 5:6 --name web --restart no \
             --memory 64m --cpus 1.5 --network blue --network-alias db --network-alias d.b --ip 10.9.0.7 --ip6 fd09::7 --read-only --entrypoint /bin/x --hostname db --label k=v \
             --cap-add NET_ADMIN --cap-drop ALL --pids-limit 9 --storage 1g --stop-signal QUIT busybox echo hi",
        );
        assert_eq!((spec.image.as_str(), spec.name.as_str()), ("busybox", "web"));
        assert_eq!(spec.command, ["echo", "hi"]);
        assert_eq!(spec.env, [&b"B=2"[..], b"A=3"]);
        assert_eq!((spec.memory_bytes, spec.millicpu, spec.pids_limit), (64 << 20, 1500, 9));
        assert_eq!(spec.storage_bytes, 1 << 30);
        assert_eq!((spec.workdir.as_str(), spec.user.as_str(), spec.hostname.as_str()), ("/w", "5:6", "db"));
        assert_eq!((spec.network.as_str(), spec.stop_signal.as_str()), ("blue", "QUIT"));
        assert_eq!(spec.network_aliases, ["db", "d.b"]);
        assert_eq!((spec.ip.as_str(), spec.ip6.as_str()), ("10.9.0.7", "fd09::7"));
        assert_eq!(spec.entrypoint.as_deref(), Some("/bin/x"));
        assert_eq!(spec.restart.unwrap().policy(), Policy::Never);
        assert_eq!((spec.cap_add.len(), spec.cap_drop.len(), spec.labels.len()), (1, 1, 1));
        assert!(spec.tty && spec.stdin && spec.auto_remove && spec.read_only && spec.volumes[0].read_only);
    }

    #[test]
    fn what_is_not_said_is_not_chosen() {
        let spec = spec("berth run --pids-limit -1 busybox");
        assert_eq!((spec.memory_bytes, spec.millicpu, spec.pids_limit), (0, 0, 0));
        assert_eq!((spec.network.as_str(), spec.entrypoint, spec.restart), ("bridge", None, None));
        assert!(spec.command.is_empty() && spec.env.is_empty() && !spec.tty && !spec.stdin);
    }
}
