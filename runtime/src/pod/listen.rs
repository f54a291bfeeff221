//! What a container's shim says, passed on to its pod's task.

use std::sync::Arc;

use berth_launch::v1::{self as launch, event};
use tokio::sync::{broadcast::error::RecvError, mpsc};
use tracing::info;

use super::actor::{Command, Happening};
use crate::{id::ContainerId, launcher::Shim};

/// Waits for the first word of a shim that was silent.
pub fn hear(shim: Shim, id: ContainerId, run: u64, to: mpsc::Sender<Command>) {
    tokio::spawn(async move {
        if shim.speaks().await {
            info!(container = %id, "its shim answers again");
            let event = launch::Event { event: Some(event::Event::Changed(shim.status())) };
            // A pod whose task has ended needs it no more.
            to.send(Command::Happened(id, run, Happening::Event(Arc::new(event)))).await.ok();
        }
    });
}

/// Passes a shim's events on to its pod's task, and at last that it has gone.
pub fn listen(shim: &Shim, id: ContainerId, run: u64, to: mpsc::Sender<Command>) {
    let mut events = shim.events();
    tokio::spawn(async move {
        loop {
            let happening = match events.recv().await {
                Ok(event) => Happening::Event(event),
                // Some were missed; the shim's last word, or its end, is still to come.
                Err(RecvError::Lagged(_)) => continue,
                Err(RecvError::Closed) => Happening::Gone,
            };
            let last = matches!(happening, Happening::Gone);
            if to.send(Command::Happened(id.clone(), run, happening)).await.is_err() || last {
                return;
            }
        }
    });
}
