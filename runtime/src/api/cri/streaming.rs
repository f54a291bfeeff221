//! Exec, Attach and PortForward: a URL of the streaming server each. What can be refused is refused here, where the
//! caller sees why.

use berth_cri::v1 as cri;

use crate::{
    Error, Kind, Result,
    api::{Door, find},
    error::Cause,
    id::ContainerId,
    pod::{ContainerState, PodState},
    streaming::{Purpose, Wanted},
};

impl Door {
    pub(super) fn exec_url(&self, request: cri::ExecRequest) -> Result<String> {
        const OP: &str = "exec in container";
        if request.cmd.is_empty() {
            return Err(Error::invalid(OP, "cmd", "the command is empty"));
        }
        let wanted =
            Wanted { stdin: request.stdin, stdout: request.stdout, stderr: request.stderr, tty: request.tty };
        check(OP, wanted)?;
        let container = self.running(OP, &request.container_id)?;
        self.tickets.give(Purpose::Exec { container, command: request.cmd, wanted })
    }

    pub(super) fn attach_url(&self, request: &cri::AttachRequest) -> Result<String> {
        const OP: &str = "attach to container";
        let wanted =
            Wanted { stdin: request.stdin, stdout: request.stdout, stderr: request.stderr, tty: request.tty };
        check(OP, wanted)?;
        let container = self.running(OP, &request.container_id)?;
        self.tickets.give(Purpose::Attach { container, wanted })
    }

    pub(super) fn port_forward_url(&self, text: &str) -> Result<String> {
        let pod = find::pod(&self.pods, text)?;
        if pod.state != PodState::Ready {
            return Err(Error::new(Kind::Precondition, "forward port of pod", pod.id.short())
                .because(Cause("it has been stopped".into())));
        }
        self.tickets.give(Purpose::PortForward { pod: pod.id.clone() })
    }

    fn running(&self, op: &'static str, text: &str) -> Result<ContainerId> {
        let container = find::container(&self.pods, text)?;
        match container.state {
            ContainerState::Running => Ok(container.id),
            ContainerState::Created
            | ContainerState::Backoff
            | ContainerState::Exited
            | ContainerState::Unknown => Err(Error::new(Kind::Precondition, op, container.id.short())
                .because(Cause("it does not run".into()))),
        }
    }
}

/// CRI's rules for the streams of a call.
fn check(op: &'static str, wanted: Wanted) -> Result<()> {
    if wanted.tty && wanted.stderr {
        return Err(Error::invalid(
            op,
            "stderr",
            "a terminal has one stream of output: with tty, stderr must be false",
        ));
    }
    if !(wanted.stdin || wanted.stdout || wanted.stderr) {
        return Err(Error::invalid(op, "stdin, stdout, stderr", "at least one must be true"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_least_one_stream_and_no_stderr_of_a_terminal() {
        let rows = [
            ((false, false, false, false), false),
            ((true, false, false, false), true),
            ((false, true, false, false), true),
            ((false, false, true, false), true),
            ((true, true, true, false), true),
            ((true, true, false, true), true),
            ((false, true, true, true), false),
            ((false, false, false, true), false),
        ];
        for ((stdin, stdout, stderr, tty), allowed) in rows {
            let wanted = Wanted { stdin, stdout, stderr, tty };
            let checked = check("exec", wanted);
            assert_eq!(checked.is_ok(), allowed, "{wanted:?}");
            assert!(checked.err().is_none_or(|error| error.kind == Kind::Invalid));
        }
    }
}
