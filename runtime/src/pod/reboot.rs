//! After a reboot: what a person wants to run always is started again, with its layer, in namespaces made anew.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tracing::{info, warn};

use super::{
    actor::{Command, Pod},
    blocking, record,
};
use crate::{Kind, id::ContainerId};

/// A node that has just booted may lack something for a moment. Tried so often, then left to a person.
const TRIES: u32 = 5;
const PAUSE: Duration = Duration::from_secs(1);

impl Pod {
    /// Writes down, once and durably, that a container that is always to run has begun to.
    pub async fn note_started(&mut self, id: &ContainerId) {
        let Some(there) = self.containers.get_mut(id).filter(|there| there.record.runs_always()) else {
            return;
        };
        if std::mem::replace(&mut there.record.started, true) {
            return;
        }
        let (directory, written) = (self.places.container_record(id), there.record.clone());
        let noted = blocking("record container", move || record::write_durably(&directory, &written)).await;
        if let Err(error) = noted {
            warn!(container = %id, error = error.chain(), "it runs, but would not be started again after a reboot");
        }
    }
}

/// Starts a container of a pod whose task runs; tries again where that fails.
pub fn bring_back(pod: mpsc::Sender<Command>, id: ContainerId) {
    tokio::spawn(async move {
        for try_number in 1..=TRIES {
            let (answer, answered) = oneshot::channel();
            if pod.send(Command::Start(id.clone(), answer)).await.is_err() {
                return;
            }
            match answered.await {
                Ok(Ok(())) => return info!(container = %id, "started again after a reboot"),
                Ok(Err(error)) if error.kind == Kind::NotFound => return,
                Ok(Err(error)) => {
                    warn!(container = %id, try_number, error = error.chain(), "not started again after a reboot");
                }
                Err(_) => return,
            }
            tokio::time::sleep(PAUSE * 2u32.pow(try_number)).await;
        }
    });
}
