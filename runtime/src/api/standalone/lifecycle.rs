//! Start, Stop, Kill, Remove, Wait.

use std::time::Duration;

use berth_cri::berth as api;

use super::{
    leave::{self, How},
    signal,
};
use crate::{
    Result,
    api::{Door, find},
    id::ContainerId,
};

const GRACE: Duration = Duration::from_secs(10);

pub(super) async fn start(door: &Door, text: &str) -> Result<api::StartResponse> {
    let container = find::any_container(&door.pods, text)?;
    door.pods.start(&container.id).await?;
    Ok(api::StartResponse { id: container.id.to_string() })
}

pub(super) async fn stop(door: &Door, request: api::StopRequest) -> Result<api::StopResponse> {
    let id = find::any_container(&door.pods, &request.container)?.id;
    let grace = request.grace_ms.map_or(GRACE, Duration::from_millis);
    door.pods.stop_container(&id, Some(grace)).await?;
    Ok(api::StopResponse { id: id.to_string() })
}

pub(super) async fn kill(door: &Door, request: api::KillRequest) -> Result<api::KillResponse> {
    let signal = match request.signal.as_str() {
        "" => libc::SIGKILL as u32,
        text => signal::parse(text)?,
    };
    let id = find::any_container(&door.pods, &request.container)?.id;
    door.pods.kill_container(&id, signal).await?;
    Ok(api::KillResponse { id: id.to_string() })
}

pub(super) async fn remove(door: &Door, request: api::RemoveRequest) -> Result<api::RemoveResponse> {
    let container = find::any_container(&door.pods, &request.container)?;
    let how = if request.force { How::Forced } else { How::OnlyEnded };
    leave::remove(door, &container, how).await?;
    Ok(api::RemoveResponse { id: container.id.to_string() })
}

pub(super) async fn wait(door: &Door, text: &str) -> Result<api::WaitResponse> {
    let id = find::any_container(&door.pods, text)?.id;
    ended(door, &id).await
}

/// How the container ended, once it has for good.
pub(super) async fn ended(door: &Door, id: &ContainerId) -> Result<api::WaitResponse> {
    let view = door.pods.wait(id).await?;
    Ok(api::WaitResponse { exit_code: view.exit_code, oom_killed: view.oom_killed, message: view.message })
}
