//! What a pod's task tells of its pod and containers, for their timelines and, where a person should hear of it, the log.

use berth_launch::v1::{Exit, HealthStatus, Status, health_status};
use tracing::{info, warn};

use super::{
    Client,
    actor::Pod,
    cause,
    container::Container,
    state::{State, reason},
};
use crate::id::ContainerId;

impl Pod {
    /// The pod's story begins, or goes on in this berthd.
    pub fn begin_story(&self) {
        let metadata = self.config.metadata.clone().unwrap_or_default();
        let name = match self.record.by() {
            Client::Cri => format!("{}/{}", metadata.namespace, metadata.name),
            // One that nobody sees, named by its container's id.
            Client::Standalone => String::new(),
        };
        self.rooms.timelines.open(self.id.as_str(), &name, "");
    }

    /// That of a container does.
    pub fn begin_story_of(&self, id: &ContainerId, name: &str) {
        self.rooms.timelines.open(id.as_str(), name, self.id.as_str());
    }

    /// After a start of berthd.
    pub fn tell_found(&self, found: &Container) {
        let name = found.config.metadata.as_ref().map(|metadata| metadata.name.clone()).unwrap_or_default();
        self.begin_story_of(&found.id, &name);
        let detail = match &found.state {
            State::Exited { exit } => format!("ended: {}", ending(exit)),
            State::Unknown { why } => why.clone(),
            State::Created { pid } => format!("created, pid {pid}"),
            State::Running { pid, restarts, .. } => format!("running, pid {pid}, restarts {restarts}"),
            State::Backoff { last, .. } => format!("between two runs: {}", ending(last)),
        };
        self.rooms.timelines.note(found.id.as_str(), "found by a new berthd", detail);
    }

    /// What its shim's word changes.
    pub fn tell(&self, id: &ContainerId, before: &State, now: &Status) {
        let note = |what, detail: String| self.rooms.timelines.note(id.as_str(), what, detail);
        match (before, State::of(now)) {
            (State::Backoff { .. }, State::Running { pid, restarts, .. }) => {
                note("started again", format!("restart {restarts}, pid {pid}"));
            }
            (State::Running { restarts: earlier, .. }, State::Running { pid, restarts, .. })
                if *earlier != restarts =>
            {
                note("started again", format!("restart {restarts}, pid {pid}"));
            }
            (State::Running { .. }, State::Backoff { last, .. }) => {
                note("ended, to be started again", ending(&last));
            }
            _ => {}
        }
        let was = self.board.container(id).and_then(|view| view.health);
        if let (Some(health), Some(what)) = (&now.health, turned(was.as_ref(), now.health.as_ref())) {
            let detail = shown(health);
            match health.state() {
                health_status::State::Unhealthy => warn!(container = %id, detail, "container is unhealthy"),
                health_status::State::Healthy | health_status::State::Starting => {
                    info!(container = %id, "container is healthy");
                }
            }
            note(what, detail);
        }
    }
}

/// How a run ended, in a line.
pub fn ending(exit: &Exit) -> String {
    let why = cause::told(exit);
    let colon = if why.is_empty() { "" } else { ": " };
    format!("exit code {}, {}{colon}{why}", exit.exit_code, reason(exit))
}

/// What it has become; none where it is what it was.
fn turned(was: Option<&HealthStatus>, is: Option<&HealthStatus>) -> Option<&'static str> {
    let is = is?.state();
    match (was.map(HealthStatus::state), is) {
        (Some(was), is) if was == is => None,
        (_, health_status::State::Starting) => None,
        (_, health_status::State::Healthy) => Some("became healthy"),
        (_, health_status::State::Unhealthy) => Some("became unhealthy"),
    }
}

fn shown(health: &HealthStatus) -> String {
    let last = health.last.last();
    let output = last.map(|result| String::from_utf8_lossy(&result.output).into_owned()).unwrap_or_default();
    let code = last.map_or(0, |result| result.exit_code);
    format!("{} failures in a row; the last check: {code}, {:?}", health.failing_streak, output.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_change_of_health_is_told() {
        use health_status::State::{Healthy, Starting, Unhealthy};
        let status = |state: health_status::State| HealthStatus { state: state.into(), ..Default::default() };
        let rows = [
            (None, Starting, None),
            (None, Healthy, Some("became healthy")),
            (Some(Starting), Healthy, Some("became healthy")),
            (Some(Healthy), Healthy, None),
            (Some(Healthy), Unhealthy, Some("became unhealthy")),
            (Some(Unhealthy), Starting, None),
        ];
        for (was, is, expected) in rows {
            assert_eq!(turned(was.map(status).as_ref(), Some(&status(is))), expected, "{was:?} {is:?}");
        }
        assert_eq!(turned(Some(&status(Healthy)), None), None);
    }
}
