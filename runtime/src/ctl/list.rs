//! ps and pods.

use berth_cri::{
    berth::{Container, ListRequest, container::State},
    v1 as cri,
};
use clap::Args;

use super::{
    command::Shape,
    connect::Daemon,
    failure::Result,
    health, human,
    logs::now,
    output::{self, Format},
};

/// Of a command, in a table.
const COMMAND_CHARS: usize = 20;

#[derive(Debug, Args)]
pub(super) struct Ps {
    /// Those that don't run, too
    #[arg(short, long)]
    all: bool,
    /// Ids only
    #[arg(short, long)]
    quiet: bool,
    /// What a kubelet runs, too
    #[arg(long)]
    all_clients: bool,
    /// Whole ids and commands
    #[arg(long)]
    no_trunc: bool,
    #[command(flatten)]
    pub(super) shape: Shape,
}

#[derive(Debug, Args)]
pub(super) struct Pods {
    /// Ids only
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    shape: Shape,
}

pub(super) async fn ps(daemon: &Daemon, flags: Ps, format: Format) -> Result<u8> {
    let request = ListRequest { all: flags.all, all_clients: flags.all_clients };
    let listed = daemon.containers().list(request).await?.into_inner();
    let id = |id: &str| if flags.no_trunc { id.to_owned() } else { human::short_id(id).to_owned() };
    if flags.quiet {
        let ids: String = listed.containers.iter().map(|container| id(&container.id) + "\n").collect();
        output::print(ids)?;
        return Ok(0);
    }
    output::show(flags.shape.or(format), "berth.v1.ListResponse", &listed, || {
        let now = now();
        let row = |container: &Container| {
            let command =
                command(&container.command, if flags.no_trunc { usize::MAX } else { COMMAND_CHARS });
            let created = format!("{} ago", human::span(now - container.created_at));
            let names = match container.client.as_str() {
                "berth" => container.name.clone(),
                client => format!("{} ({client})", container.name),
            };
            [id(&container.id), container.image.clone(), command, created, status(container, now), names]
        };
        let header = ["CONTAINER ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "NAMES"];
        output::table(header, listed.containers.iter().map(row))
    })?;
    Ok(0)
}

pub(super) async fn pods(daemon: &Daemon, flags: Pods, format: Format) -> Result<u8> {
    let listed = daemon.cri().list_pod_sandbox(cri::ListPodSandboxRequest::default()).await?.into_inner();
    if flags.quiet {
        let ids: String = listed.items.iter().map(|pod| human::short_id(&pod.id).to_owned() + "\n").collect();
        output::print(ids)?;
        return Ok(0);
    }
    output::show(flags.shape.or(format), "runtime.v1.ListPodSandboxResponse", &listed, || {
        let now = now();
        let row = |pod: &cri::PodSandbox| {
            let metadata = pod.metadata.clone().unwrap_or_default();
            let state = match pod.state() {
                cri::PodSandboxState::SandboxReady => "Ready",
                cri::PodSandboxState::SandboxNotready => "NotReady",
            };
            let created = format!("{} ago", human::span(now - pod.created_at));
            let attempt = metadata.attempt.to_string();
            let id = human::short_id(&pod.id).to_owned();
            [id, created, state.into(), metadata.name, metadata.namespace, attempt]
        };
        let header = ["POD ID", "CREATED", "STATE", "NAME", "NAMESPACE", "ATTEMPT"];
        output::table(header, listed.items.iter().map(row))
    })?;
    Ok(0)
}

fn command(words: &[String], chars: usize) -> String {
    let line = words.join(" ");
    if line.chars().count() <= chars {
        return format!("\"{line}\"");
    }
    let cut: String = line.chars().take(chars.saturating_sub(1)).collect();
    format!("\"{cut}…\"")
}

fn status(container: &Container, now: i64) -> String {
    let since = |at: i64| human::span(now - at);
    let oom = if container.oom_killed { ", out of memory" } else { "" };
    match container.state() {
        State::Created => "Created".into(),
        State::Running => match container.health.as_ref().map(|health| health.state()) {
            None => format!("Up {}", since(container.started_at)),
            Some(state) => format!("Up {} ({})", since(container.started_at), health::in_a_list(state)),
        },
        State::Restarting => {
            format!("Restarting ({}) {} ago", container.exit_code, since(container.finished_at))
        }
        State::Exited => {
            format!("Exited ({}{oom}) {} ago", container.exit_code, since(container.finished_at))
        }
        State::Unknown => "Unknown".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_told_as_docker_does() {
        const MINUTE: i64 = 60_000_000_000;
        let container = |state: State| Container {
            state: state.into(),
            started_at: MINUTE,
            finished_at: 3 * MINUTE,
            exit_code: 137,
            ..Default::default()
        };
        let now = 8 * MINUTE;
        assert_eq!(status(&container(State::Created), now), "Created");
        assert_eq!(status(&container(State::Running), now), "Up 7 minutes");
        assert_eq!(status(&container(State::Restarting), now), "Restarting (137) 5 minutes ago");
        assert_eq!(status(&container(State::Exited), now), "Exited (137) 5 minutes ago");
        let ill = berth_cri::berth::Health {
            state: berth_cri::berth::health::State::Unhealthy.into(),
            ..Default::default()
        };
        let ill = Container { health: Some(ill), ..container(State::Running) };
        assert_eq!(status(&ill, now), "Up 7 minutes (unhealthy)");
        let killed = Container { oom_killed: true, ..container(State::Exited) };
        assert_eq!(status(&killed, now), "Exited (137, out of memory) 5 minutes ago");
    }

    #[test]
    fn a_long_command_is_cut_between_characters() {
        let words = ["sh".to_owned(), "-c".to_owned(), "ä".repeat(40)];
        assert_eq!(command(&words[..2], 20), "\"sh -c\"");
        assert_eq!(command(&words, 20).chars().count(), 22);
        assert_eq!(command(&words, usize::MAX).chars().count(), 48);
    }
}
