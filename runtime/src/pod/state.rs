//! A container's state, and what follows from what its shim says. Pure.

use berth_launch::v1::{Exit, Status, status};

use super::ContainerState;

#[derive(Debug, Clone, PartialEq)]
pub enum State {
    Created {
        pid: i32,
    },
    Running {
        pid: i32,
        started_at: i64,
        restarts: u32,
    },
    /// Its shim waits to start it again; `last` is how it ended before.
    Backoff {
        last: Exit,
        restarts: u32,
    },
    Exited {
        exit: Exit,
    },
    /// It can't be told; why, in words.
    Unknown {
        why: String,
    },
}

impl State {
    /// What a shim's status means; the exit's end is final only with the exit itself.
    pub fn of(status: &Status) -> Self {
        match status.state() {
            status::State::Created => Self::Created { pid: status.pid },
            status::State::Running => {
                Self::Running { pid: status.pid, started_at: status.started_at, restarts: status.restarts }
            }
            status::State::Backoff => Self::Backoff {
                last: status.last_exit.clone().unwrap_or_default(),
                restarts: status.restarts,
            },
            status::State::Exited => Self::Exited { exit: status.last_exit.clone().unwrap_or_default() },
        }
    }

    /// The next state by a shim's word; an ended container never comes back by a late message.
    #[must_use]
    pub fn step(&self, status: &Status) -> Self {
        match self {
            Self::Exited { .. } => self.clone(),
            Self::Created { .. } | Self::Running { .. } | Self::Backoff { .. } | Self::Unknown { .. } => {
                Self::of(status)
            }
        }
    }

    pub fn published(&self) -> ContainerState {
        match self {
            Self::Created { .. } => ContainerState::Created,
            Self::Running { .. } => ContainerState::Running,
            Self::Backoff { .. } => ContainerState::Backoff,
            Self::Exited { .. } => ContainerState::Exited,
            Self::Unknown { .. } => ContainerState::Unknown,
        }
    }

    pub fn exit(&self) -> Option<&Exit> {
        match self {
            Self::Backoff { last: exit, .. } | Self::Exited { exit } => Some(exit),
            Self::Created { .. } | Self::Running { .. } | Self::Unknown { .. } => None,
        }
    }
}

/// CRI's reason: `OOMKilled` exactly, else by convention.
pub fn reason(exit: &Exit) -> &'static str {
    match (exit.oom_killed, exit.exit_code, exit.started_at) {
        (true, _, _) => "OOMKilled",
        // One that was killed and nobody saw it has no start that anybody knows, but had one perhaps.
        (false, _, 0) if !exit.message.is_empty() && exit.signal == 0 => "StartError",
        (false, 0, _) => "Completed",
        (false, _, _) => "Error",
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reasons_are_what_the_kubelet_looks_for() {
        let exit = |oom_killed, exit_code, started_at, message: &str| Exit {
            oom_killed,
            exit_code,
            started_at,
            message: message.into(),
            ..Exit::default()
        };
        assert_eq!(reason(&exit(true, 137, 1, "")), "OOMKilled");
        assert_eq!(reason(&exit(false, 0, 1, "")), "Completed");
        assert_eq!(reason(&exit(false, 1, 1, "")), "Error");
        assert_eq!(reason(&exit(false, 127, 0, "x: no such file")), "StartError");
        assert_eq!(reason(&exit(false, 137, 0, "")), "Error");
        let rebooted = Exit { signal: 9, ..exit(false, 137, 0, "the machine was started anew") };
        assert_eq!(reason(&rebooted), "Error");
    }

    proptest! {
        #[test]
        fn an_ended_container_stays_ended_whatever_comes_late(states in prop::collection::vec(0i32..4, 0..10)) {
            let exit = Exit { exit_code: 3, ..Exit::default() };
            let mut state = State::Exited { exit: exit.clone() };
            for number in states {
                state = state.step(&Status { state: number, pid: 9, ..Status::default() });
                prop_assert_eq!(state.exit(), Some(&exit));
                prop_assert_eq!(state.published(), ContainerState::Exited);
            }
        }
    }
}
