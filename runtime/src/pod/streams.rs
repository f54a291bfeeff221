//! Processes and streams of a container that runs: asked of its shim, past the pod's task.

use std::time::Duration;

use berth_launch::v1::{self as launch, Step};
use tokio::sync::oneshot;

use super::{ContainerState, Ends, ExecHandle, Pods, container::held_capabilities, told};
use crate::{
    Error, Kind, Result,
    error::Cause,
    id::{ContainerId, PodId},
    launcher::{Fault, Shim},
    oci,
};

const EXEC: &str = "exec in container";
/// What becomes of a container whose shim has gone, or whose init has ended, is known by then: it takes a few milliseconds.
const SETTLED: Duration = Duration::from_secs(5);

impl Pods {
    /// Starts a process in a running container; with a timeout it is killed with all it started.
    pub async fn exec(
        &self,
        container: &ContainerId,
        exec: oci::Exec,
        ends: Ends,
        timeout: Option<Duration>,
    ) -> Result<ExecHandle> {
        let shim = self.shim(EXEC, container)?;
        let view = self.container(container).ok_or_else(|| Error::not_found(EXEC, container.short()))?;
        let exec = oci::Exec { own_env: view.env.to_vec(), ..exec };
        let process = oci::exec_process(&view.document, &exec)?;
        let exec_id = PodId::random().short().to_owned();
        let (process, document) = match view.runtime.as_str() {
            "" => (process, Vec::new()),
            _ => oci::exec_by_runtime(&view.document.spec, process, &exec_id, held_capabilities())?,
        };
        let end = shim.exec_end(&exec_id);
        let asked = launch::Exec {
            exec_id: exec_id.clone(),
            process: Some(process),
            document,
            timeout_ms: timeout
                .map_or(0, |timeout| u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX).max(1)),
            ..launch::Exec::default()
        };
        let (_, tty) = self.answered(EXEC, container, &shim, shim.exec(asked, ends).await).await?;
        let (exited, exit) = oneshot::channel();
        let (pods, container) = (self.clone(), container.clone());
        tokio::spawn(async move {
            // The connection is held as long as somebody waits for the exit, which comes by it.
            let told = match end.told().await {
                Some(told) => Ok(told),
                None => Err(pods.why_gone(EXEC, &container, &shim).await),
            };
            // Whoever started it may have left.
            exited.send(told).ok();
        });
        Ok(ExecHandle { exec_id, tty, exit })
    }

    pub async fn exec_kill(&self, container: &ContainerId, exec_id: &str, signal: u32) -> Result<()> {
        const OP: &str = "kill exec in container";
        let shim = self.shim(OP, container)?;
        self.answered(OP, container, &shim, shim.exec_kill(exec_id, signal).await).await
    }

    /// Copies output to the ends from now on, and what comes from theirs to its input.
    pub async fn attach(&self, container: &ContainerId, ends: Ends) -> Result<()> {
        const OP: &str = "attach to container";
        let shim = self.shim(OP, container)?;
        self.answered(OP, container, &shim, shim.attach(ends).await).await
    }

    /// Of the container's tty, or with an exec id of that one's.
    pub async fn resize(
        &self,
        container: &ContainerId,
        exec_id: &str,
        rows: u32,
        columns: u32,
    ) -> Result<()> {
        const OP: &str = "resize terminal of container";
        let shim = self.shim(OP, container)?;
        self.answered(OP, container, &shim, shim.resize(exec_id, rows, columns).await).await
    }

    pub async fn reopen_log(&self, container: &ContainerId) -> Result<()> {
        const OP: &str = "reopen log of container";
        let shim = self.shim(OP, container)?;
        self.answered(OP, container, &shim, shim.reopen_log().await).await
    }

    /// What a shim answered; where it went instead, what that means for the container.
    async fn answered<T>(
        &self,
        op: &'static str,
        container: &ContainerId,
        shim: &Shim,
        answer: std::result::Result<T, Fault>,
    ) -> Result<T> {
        match answer {
            Ok(answer) => Ok(answer),
            Err(Fault::Gone) => Err(self.why_gone(op, container, shim).await),
            Err(Fault::Failed(failure)) if as_if_ended(&failure) => {
                let ended = self.seen(SETTLED, || self.why_ended(op, container)).await;
                Err(ended.unwrap_or_else(|| match failure.errno {
                    // However long its end takes to be told: there is nobody to join.
                    libc::ESRCH => Error::new(Kind::Precondition, op, container.short())
                        .because(Cause("it is not running: its init has ended".into())),
                    _ => told(Fault::Failed(failure)),
                }))
            }
            Err(fault) => Err(told(fault)),
        }
    }

    /// A shim goes with its container, or dies and gets a successor: which of the two the pod's task publishes soon.
    async fn why_gone(&self, op: &'static str, container: &ContainerId, shim: &Shim) -> Error {
        let unavailable =
            |why: &str| Error::new(Kind::Unavailable, op, container.short()).because(Cause(why.into()));
        let replaced = || {
            self.shim(op, container).is_ok_and(|other| !other.is(shim)).then(|| {
                unavailable("its shim died, and what that had begun ended with it")
                    .hint("the container goes on under another shim: ask again")
            })
        };
        let known = || self.why_ended(op, container).or_else(replaced);
        let known = self.seen(SETTLED, known).await;
        known.unwrap_or_else(|| unavailable("its shim has gone").hint("ask again"))
    }

    /// None while it is there and may run.
    fn why_ended(&self, op: &'static str, container: &ContainerId) -> Option<Error> {
        let Some(view) = self.container(container) else {
            return Some(Error::not_found(op, container.short()));
        };
        (!matches!(view.state, ContainerState::Created | ContainerState::Running)).then(|| {
            let why = format!("it is not running: it is {:?}", view.state);
            Error::new(Kind::Precondition, op, container.short()).because(Cause(why))
        })
    }
}

/// Whether a process that is to join init fails so where init ends meanwhile: nobody to join, or killed with all that is in
/// init's PID namespace. A limit of processes is not that.
fn as_if_ended(failure: &launch::Failure) -> bool {
    let joins = matches!(failure.step(), Step::Clone | Step::NamespaceJoin | Step::CgroupJoin);
    (joins || failure.errno == libc::ESRCH) && failure.errno != libc::EAGAIN
}
