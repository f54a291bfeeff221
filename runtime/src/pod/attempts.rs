//! A kubelet's container that has ended is started again without its kubelet, where its pod asks for that: as the next
//! attempt, with an id, an exit code and a log of its own, so that the kubelet counts it as one of its own making.
//!
//! ```text
//! attempt N ends ── decide ──after a delay──> attempt N + 1 is made and started
//!                                   ^── unless it was stopped or removed, its pod is stopped, or the kubelet has made one
//! ```

use std::time::Duration;

use berth_cri::v1 as cri;
use berth_launch::{
    restart::{self, Decision, Fitness, History},
    v1::{Exit, sent::By},
};
use tokio::sync::{mpsc, oneshot};
use tracing::{info, warn};

use super::{
    Client, CreateContainer,
    actor::{Command, Pod},
    asks, blocking, clock,
    container::Container,
    record::{ContainerRecord, Phase},
    state::State,
};
use crate::{Result, id::ContainerId};

/// The kubelet's: how often a container was started before.
const RESTARTS: &str = "io.kubernetes.container.restartCount";
/// The kubelet's: where in the container its last words are written to, a file of the node's that is mounted there.
const LAST_WORDS: &str = "io.kubernetes.container.terminationMessagePath";
/// So many ended attempts are kept while no kubelet removes them.
const KEPT: usize = 8;
/// The first wait for another try to make one; it doubles.
const PAUSE: Duration = Duration::from_secs(1);

impl Pod {
    /// Looks whether a container that has ended is to have another attempt, and sees to it.
    pub fn consider_next(&self, id: &ContainerId) {
        let Some(there) = self.containers.get(id) else { return };
        let State::Exited { exit } = &there.state else { return };
        if !self.may_go_on(there) || exit.asked || exit.started_at == 0 {
            return;
        }
        // It was understood when the pod was made.
        let policy = asks::restart(&self.config, name_of(&there.config)).unwrap_or_default();
        let run = restart::Run { exit_code: exit.exit_code, ran_for: ran_for(exit), fitness: Fitness::Sound };
        let history = History { in_a_row: there.record.in_a_row };
        if let Decision::Restart { after, history } = restart::decide(&policy, history, run) {
            // It may have ended while nobody was there.
            let wait = after.saturating_sub(since(exit, clock::monotonic()));
            let what = "is to be started again";
            self.rooms.timelines.note(id.as_str(), what, format!("as the next attempt, in {wait:.1?}"));
            again(self.me.clone(), id.clone(), history.in_a_row, wait);
        }
    }

    /// After a start of berthd: those whose turn came meanwhile, and those that were made and not started.
    pub fn consider_all(&self) {
        for (id, there) in &self.containers {
            self.consider_next(id);
            if matches!(there.state, State::Created { .. }) && is_ours(&there.record) && self.may_go_on(there)
            {
                begin(self.me.clone(), id.clone());
            }
        }
    }

    /// Makes the attempt after one that has ended, and starts it.
    pub async fn attempt_again(&mut self, id: &ContainerId, in_a_row: u32) {
        let Some(there) = self.containers.get(id).filter(|there| self.may_go_on(there)) else { return };
        let config = next(&there.config);
        let (name, attempt) = (name_of(&config).to_owned(), attempt_of(&config));
        let request = CreateContainer {
            options: there.record.options.clone().unwrap_or_default().options(),
            sandbox: cri::PodSandboxConfig::default(),
            id: None,
            keep_layer: there.record.keep_layer,
            standalone: None,
            config,
        };
        let last_words = request.config.clone();
        let made = match blocking("make", move || fresh_last_words(last_words)).await {
            Ok(()) => {
                self.make_container(request, |record| {
                    (record.after, record.in_a_row) = (id.to_string(), in_a_row)
                })
                .await
            }
            Err(error) => Err(error),
        };
        let new = match made {
            Ok(new) => new,
            Err(error) => {
                let wait = PAUSE.saturating_mul(2u32.saturating_pow(in_a_row)).min(Duration::from_secs(300));
                warn!(container = %id, attempt, error = error.chain(), "it can't be started again; tried again later");
                return again(self.me.clone(), id.clone(), in_a_row.saturating_add(1), wait);
            }
        };
        self.rooms.timelines.note(
            id.as_str(),
            "started again",
            format!("as attempt {attempt}, {}", new.short()),
        );
        self.rooms.timelines.note(new.as_str(), "made by berthd", format!("after {} had ended", id.short()));
        info!(container = %new, after = %id, name, attempt, "a container that had ended is started again");
        if let Err(error) = self.start(&new).await {
            warn!(container = %new, error = error.chain(), "a container that had ended can't be started again");
        }
        self.forget_old(&name).await;
    }

    /// From now on an ended container has no further attempt of our making.
    pub fn settle(&mut self, id: &ContainerId) {
        if let Some(there) = self.containers.get_mut(id) {
            there.settled = true;
        }
    }

    /// Ends what we have made and the kubelet wants otherwise.
    pub async fn replace(&mut self, id: &ContainerId) -> Result<()> {
        info!(container = %id, "the kubelet makes this attempt itself: ours is ended");
        if let Some(shim) = self.containers.get(id).and_then(|there| there.shim.clone()) {
            // One that can't be asked is ended by its cgroup when it is forgotten.
            shim.shutdown(By::GivesWay).await.ok();
            self.wait_for_end(id).await;
        }
        self.forget(id).await
    }

    fn may_go_on(&self, there: &Container) -> bool {
        let newer = |other: &Container| {
            name_of(&other.config) == name_of(&there.config)
                && attempt_of(&other.config) > attempt_of(&there.config)
        };
        self.record.by() == Client::Cri
            && self.record.phase() == Phase::Made
            && !there.settled
            && !self.containers.values().map(AsRef::as_ref).any(newer)
    }

    async fn forget_old(&mut self, name: &str) {
        let ended = |there: &&Container| {
            name_of(&there.config) == name
                && is_ours(&there.record)
                && matches!(there.state, State::Exited { .. })
        };
        let mut old: Vec<_> = self
            .containers
            .values()
            .map(AsRef::as_ref)
            .filter(ended)
            .map(|there| (attempt_of(&there.config), there.id.clone()))
            .collect();
        old.sort();
        for (_, id) in old.iter().rev().skip(KEPT) {
            if let Err(error) = self.forget(id).await {
                warn!(container = %id, error = error.chain(), "an old attempt stays");
            }
        }
    }
}

/// How long its last run was. By the time of day only where a shim of an earlier version has told no more: that clock may
/// have been set meanwhile.
fn ran_for(exit: &Exit) -> Duration {
    match exit.ran_for {
        0 => by_day(exit.started_at, exit.finished_at),
        nanos => Duration::from_nanos(nanos),
    }
}

/// How long ago it ended, in this boot: a pod does not outlive one. Where its shim has not told, no time has passed: it
/// waits once more, as long as it would have then.
fn since(exit: &Exit, now: Duration) -> Duration {
    match exit.ended {
        0 => Duration::ZERO,
        nanos => now.saturating_sub(Duration::from_nanos(nanos)),
    }
}

fn by_day(from: i64, to: i64) -> Duration {
    u64::try_from(to.saturating_sub(from)).map_or(Duration::ZERO, Duration::from_nanos)
}

/// Whether it was made by `attempt_again`.
pub fn is_ours(record: &ContainerRecord) -> bool {
    !record.after.is_empty()
}

/// Whether a kubelet's request is for what we have made: the file for last words is another for each.
pub fn is_same(ours: &cri::ContainerConfig, asked: &cri::ContainerConfig) -> bool {
    let bare = |config: &cri::ContainerConfig| {
        let mut config = config.clone();
        if let Some(mount) = last_words(&mut config) {
            mount.host_path.clear();
        }
        config
    };
    bare(ours) == bare(asked)
}

/// What the attempt after this one is made of.
fn next(config: &cri::ContainerConfig) -> cri::ContainerConfig {
    let mut config = config.clone();
    let attempt = attempt_of(&config);
    let next = attempt.saturating_add(1);
    config.metadata.get_or_insert_default().attempt = next;
    if let Some(count) = config.annotations.get_mut(RESTARTS)
        && let Ok(number) = count.parse::<u32>()
    {
        *count = number.saturating_add(1).to_string();
    }
    if !config.log_path.is_empty() {
        config.log_path = renumbered(&config.log_path, attempt, next, ".log");
    }
    if let Some(mount) = last_words(&mut config) {
        mount.host_path = renumbered(&mount.host_path, attempt, next, "");
    }
    config
}

/// A file's path with the next attempt's number in the place of the last one's: `web/3.log` is followed by `web/4.log`,
/// what has no number gets one behind it.
fn renumbered(path: &str, attempt: u32, next: u32, extension: &str) -> String {
    let number = format!("{attempt}{extension}");
    if let Some(kept) = path.strip_suffix(&number).filter(|kept| kept.is_empty() || kept.ends_with('/')) {
        return format!("{kept}{next}{extension}");
    }
    let kept = path.strip_suffix(&format!(".{attempt}")).unwrap_or(path);
    format!("{kept}.{next}")
}

fn last_words(config: &mut cri::ContainerConfig) -> Option<&mut cri::Mount> {
    let path = config.annotations.get(LAST_WORDS).filter(|path| !path.is_empty())?;
    config.mounts.iter_mut().find(|mount| mount.container_path == *path)
}

/// An empty file for them, which everybody in the container may write, as the kubelet makes it.
fn fresh_last_words(mut config: cri::ContainerConfig) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let Some(mount) = last_words(&mut config) else { return Ok(()) };
    let made = std::fs::write(&mount.host_path, "")
        .and_then(|()| std::fs::set_permissions(&mount.host_path, std::fs::Permissions::from_mode(0o666)));
    made.map_err(|error| crate::Error::io("make", mount.host_path.as_str(), error))
}

fn name_of(config: &cri::ContainerConfig) -> &str {
    config.metadata.as_ref().map_or("", |metadata| &metadata.name)
}

fn attempt_of(config: &cri::ContainerConfig) -> u32 {
    config.metadata.as_ref().map_or(0, |metadata| metadata.attempt)
}

fn again(pod: mpsc::Sender<Command>, id: ContainerId, in_a_row: u32, wait: Duration) {
    tokio::spawn(async move {
        tokio::time::sleep(wait).await;
        // A pod that has gone needs it no more.
        pod.send(Command::Again(id, in_a_row)).await.ok();
    });
}

/// Starts one that berthd had made when it ended.
fn begin(pod: mpsc::Sender<Command>, id: ContainerId) {
    tokio::spawn(async move {
        let (answer, answered) = oneshot::channel();
        if pod.send(Command::Start(id.clone(), answer)).await.is_ok()
            && let Ok(Err(error)) = answered.await
        {
            warn!(container = %id, error = error.chain(), "a container that had ended can't be started again");
        }
    });
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn kubelets(attempt: u32) -> cri::ContainerConfig {
        let mount = |container: &str, host: &str| cri::Mount {
            container_path: container.into(),
            host_path: host.into(),
            ..Default::default()
        };
        cri::ContainerConfig {
            metadata: Some(cri::ContainerMetadata { name: "web".into(), attempt }),
            log_path: format!("web/{attempt}.log"),
            annotations: [(RESTARTS, attempt.to_string()), (LAST_WORDS, "/dev/termination-log".into())]
                .map(|(key, text)| (key.to_owned(), text))
                .into(),
            mounts: vec![mount("/data", "/data"), mount("/dev/termination-log", "/pods/web/0a1b")],
            ..Default::default()
        }
    }

    #[test]
    fn the_next_attempt_is_what_a_kubelet_would_ask_for() {
        let (one, two) = (next(&kubelets(0)), next(&next(&kubelets(0))));
        assert_eq!(one.mounts[1].host_path, "/pods/web/0a1b.1");
        assert_eq!(two.mounts[1].host_path, "/pods/web/0a1b.2");
        assert!(is_same(&one, &kubelets(1)) && is_same(&two, &kubelets(2)));
        assert!(!is_same(&one, &kubelets(2)));
        let other = cri::ContainerConfig { tty: true, ..kubelets(1) };
        assert!(!is_same(&one, &other));
    }

    #[test]
    fn files_are_told_apart_by_the_attempts_number() {
        let rows = [
            ("web/9.log", 9, "web/10.log"),
            ("9.log", 9, "10.log"),
            ("web.log", 0, "web.log.1"),
            ("web.log.1", 1, "web.log.2"),
            ("web/19.log", 9, "web/19.log.10"),
        ];
        for (path, attempt, expected) in rows {
            assert_eq!(renumbered(path, attempt, attempt + 1, ".log"), expected);
        }
    }

    proptest! {
        /// Whatever the clock of the day says at either end.
        #[test]
        fn the_time_of_day_decides_nothing(
            started_at in any::<i64>(),
            finished_at in any::<i64>(),
            ran in 1u64..1 << 50,
            ended in 1u64..1 << 50,
            gone in 0u64..1 << 50,
        ) {
            let exit = Exit { started_at, finished_at, ran_for: ran, ended, ..Exit::default() };
            prop_assert_eq!(ran_for(&exit), Duration::from_nanos(ran));
            prop_assert_eq!(since(&exit, Duration::from_nanos(ended + gone)), Duration::from_nanos(gone));
            // A record of another boot, if ever one came so far.
            prop_assert_eq!(since(&exit, Duration::ZERO), Duration::ZERO);
            // Of a shim of an earlier version: never less than nothing.
            let old = Exit { ran_for: 0, ended: 0, ..exit };
            prop_assert!(ran_for(&old) <= Duration::from_nanos(u64::MAX));
            prop_assert_eq!(since(&old, Duration::from_nanos(gone)), Duration::ZERO);
        }

        #[test]
        fn no_two_attempts_have_one_log(path in "[a-z0-9./]{1,12}", first in 0u32..20) {
            let mut config = cri::ContainerConfig { log_path: path, ..kubelets(first) };
            let mut seen = std::collections::HashSet::new();
            for _ in 0..12 {
                prop_assert!(seen.insert(config.log_path.clone()), "{}", config.log_path);
                config = next(&config);
            }
        }
    }
}
