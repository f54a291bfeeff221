//! A shim that was killed does not take its container with it: another takes over. Where none can, the container is
//! ended, and its exit says why.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use berth_launch::v1::{self as launch, status::Held};
use prost::Message;
use tracing::{error, warn};

use super::{
    Rooms,
    actor::Pod,
    blocking, container,
    listen::listen,
    place::Places,
    record::{self, ContainerRecord},
    state::State,
    told,
};
use crate::{
    Error, Result,
    id::ContainerId,
    launcher::{Reserve, Shim},
};

/// Shims that are killed one after the other: so many in a row, each within so long of the last, then it is over.
const IN_A_ROW: u32 = 5;
const ROW: Duration = Duration::from_secs(10);
/// A killed shim that has not gone after so long waits for a disk, and dies when that answers.
const DYING: Duration = Duration::from_secs(2);

/// Why a container was ended.
pub const NO_OTHER: &str = "its shim was killed and no other could take over; it was ended";
const HANGS: &str = "its shim hangs on a disk that does not answer, that of its log perhaps; it was ended";

/// One that took over found the container ended, wrote that down and was gone before it was asked.
pub const TOLD: &str = "its shim was killed, another took over and told the container's end";

/// Whether somebody asked for the end: else a pod that wants restarts has another attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    BySomebody,
    AsItsShimWrote,
}

/// What the dead shim had written of the run: when it began, whether it was to end.
fn as_last_known(exit: launch::Exit, dir: &Path, wanted: Wanted) -> launch::Exit {
    let live = fs::read(dir.join(berth_launch::LIVE)).ok();
    let live = live.and_then(|bytes| launch::Live::decode(bytes.as_slice()).ok()).unwrap_or_default();
    let status = live.status.unwrap_or_default();
    launch::Exit {
        pid: live.pid,
        started_at: status.started_at,
        restarts: status.restarts,
        asked: live.stopping || wanted == Wanted::BySomebody,
        ..exit
    }
}

/// The takeovers of one container in this daemon's life.
#[derive(Debug, Default, Clone, Copy)]
pub struct Takeovers {
    in_a_row: u32,
    last: Option<Instant>,
}

impl Takeovers {
    /// Counts one more. False: something kills every shim, and another would change nothing.
    fn allow(&mut self, now: Instant) -> bool {
        let follows = self.last.is_some_and(|last| now.duration_since(last) < ROW);
        self.in_a_row = if follows { self.in_a_row + 1 } else { 1 };
        self.last = Some(now);
        self.in_a_row <= IN_A_ROW
    }
}

/// Starts a shim for a container whose own is gone.
pub async fn take_over(
    rooms: &Rooms,
    places: &Places,
    id: &ContainerId,
    record: &ContainerRecord,
    reserve: Reserve,
) -> Result<Shim> {
    let dir = places.container_dir(id);
    let held = reserve.iter().any(|(held, _)| matches!(held, Held::StagedStdout | Held::StagedStderr));
    let output = match held || dir.join(berth_launch::STAGED_STDOUT).exists() {
        true => "no output is lost",
        false => "what it was reading of the output is lost",
    };
    let adopted = rooms.launcher.adopt(&dir, reserve);
    let shim = rooms.timelines.timed(id.as_str(), "another shim takes over", adopted).await.map_err(told)?;
    warn!(container = %id, log = record.log, output, "its shim was killed, another took over");
    Ok(shim)
}

impl Pod {
    /// Its shim has gone: what it wrote; or it lives and had let go of us; or another takes over; or this is the end.
    pub async fn lost(&mut self, id: &ContainerId) {
        let Some(there) = self.containers.get_mut(id) else { return };
        if matches!(there.state, State::Exited { .. }) {
            return;
        }
        let (record, directory) = (there.record.clone(), self.places.container_record(id));
        if let Some(exit) = record::read_exit(&directory) {
            return self.ended(id, exit).await;
        }
        let reserve = there.shim.as_ref().map(Shim::take_reserve).unwrap_or_default();
        let allowed = there.takeovers.allow(Instant::now());
        let found = match self.rooms.launcher.connect(&self.places.container_dir(id)).await {
            Ok(shim) => Ok(shim),
            Err(_) if allowed => take_over(&self.rooms, &self.places, id, &record, reserve).await,
            Err(error) => Err(error.hint(format!("{IN_A_ROW} shims were killed in a row"))),
        };
        match found {
            Ok(shim) => self.follow(id, shim),
            Err(error) => {
                if let Some(exit) = record::read_exit(&directory) {
                    warn!(container = %id, "{TOLD}");
                    return self.ended(id, exit).await;
                }
                warn!(container = %id, error = error.chain(), "its shim was killed and no other could take over");
                self.end_orphan(id, record, NO_OTHER, Wanted::AsItsShimWrote).await;
            }
        }
    }

    /// Ends the shim of a container that was killed: it is silent, or it could not be asked at all. One that does not even
    /// die is not waited for: it does nothing more.
    pub async fn give_up(&mut self, id: &ContainerId) -> Result<()> {
        let Some(there) = self.containers.get(id) else { return Ok(()) };
        let record = there.record.clone();
        let Some(shim) = &there.shim else {
            self.end_orphan(id, record, NO_OTHER, Wanted::BySomebody).await;
            return Ok(());
        };
        shim.put_down().map_err(|error| Error::io("kill shim", id.short(), error))?;
        if shim.gone_within(DYING).await {
            // That is heard like that of any other.
            return Ok(());
        }
        warn!(container = %id, log = record.log, "its shim waits for a disk and does not die of SIGKILL before that answers");
        self.end_orphan(id, record, HANGS, Wanted::BySomebody).await;
        Ok(())
    }

    /// Listens to another shim of a container from now on.
    fn follow(&mut self, id: &ContainerId, shim: Shim) {
        let Some(there) = self.containers.get_mut(id) else { return };
        there.run += 1;
        there.state = there.state.step(&shim.status());
        self.board.set_shim(id, Some(shim.clone()));
        listen(&shim, id.clone(), there.run, self.me.clone());
        there.shim = Some(shim);
        self.publish();
    }

    /// Nobody reads its output or restarts it any more: it is ended, and that is written down.
    pub async fn end_orphan(
        &mut self,
        id: &ContainerId,
        record: ContainerRecord,
        why: &'static str,
        wanted: Wanted,
    ) {
        let (rooms, directory) = (self.rooms.clone(), self.places.container_record(id));
        let dir = self.places.container_dir(id);
        let ended = blocking("end container", move || {
            let cleared = container::clear_cgroup(&rooms, &record.cgroup_path);
            // The shim that could not take over may have come as far as a record.
            if let Some(exit) = record::read_exit(&directory) {
                return Ok(exit);
            }
            let exit = as_last_known(container::unseen(&record, why), &dir, wanted);
            if let Err(error) = record::write_exit(&directory, &exit) {
                warn!(container = record.id, %error, "exit record not written");
            }
            cleared.map(|()| exit)
        });
        match ended.await {
            Ok(exit) => self.ended(id, exit).await,
            Err(error) => {
                error!(container = %id, error = error.chain(), "the container's shim is gone and it can't be ended");
                if let Some(there) = self.containers.get_mut(id) {
                    there.state = State::Unknown { why: error.chain() };
                }
                self.publish();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_that_nobody_saw_has_what_the_shim_had_written() {
        let dir = tempfile::tempdir().unwrap();
        let unseen = || launch::Exit { exit_code: 137, ..launch::Exit::default() };
        let nothing = as_last_known(unseen(), dir.path(), Wanted::AsItsShimWrote);
        assert_eq!((nothing.started_at, nothing.asked), (0, false));
        let status = launch::Status { started_at: 7, restarts: 2, ..launch::Status::default() };
        for stopping in [false, true] {
            let live = launch::Live { status: Some(status.clone()), stopping, ..launch::Live::default() };
            fs::write(dir.path().join(berth_launch::LIVE), live.encode_to_vec()).unwrap();
            let ended = as_last_known(unseen(), dir.path(), Wanted::AsItsShimWrote);
            assert_eq!((ended.started_at, ended.restarts, ended.exit_code), (7, 2, 137));
            assert_eq!(ended.asked, stopping);
            assert!(as_last_known(unseen(), dir.path(), Wanted::BySomebody).asked);
        }
    }

    #[test]
    fn shims_that_die_one_after_the_other_are_replaced_for_a_while_only() {
        let start = Instant::now();
        let mut takeovers = Takeovers::default();
        assert!((0..IN_A_ROW).all(|_| takeovers.allow(start)));
        assert!(!takeovers.allow(start + ROW / 2));
        assert!(takeovers.allow(start + 2 * ROW));
    }
}
