//! A new shim for a container whose own was killed: it gets the plan as it was written at birth, and the ends that were
//! held for it.

use std::{
    io::{self, IoSlice},
    mem::MaybeUninit,
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use berth_launch::v1::{Adopt, ContainerPlan};
use prost::Message;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, socketpair,
};

use super::{Fault, Launcher, Reserve, Result, Shim, ready, sealed};
use crate::Error;

/// The plan, and one of each kind.
const FDS: usize = 8;

impl Launcher {
    /// Starts a shim that takes over what runs in `dir`. After an error the container is as it was.
    ///
    /// # Errors
    /// `NotFound` where no plan was written, as by an older berthd.
    pub async fn adopt(&self, dir: &Path, reserve: Reserve) -> Result<Shim> {
        let path = dir.join(berth_launch::PLAN);
        let plan = std::fs::read(&path)
            .map_err(|error| Fault::Error(Error::io("read plan", path.display().to_string(), error)))?;
        let stdin = letter(sealed(&plan)?, reserve)
            .map_err(|error| Fault::Error(Error::io("start shim", "socket", error)))?;
        // One that can't be read is the shim's to refuse.
        let cgroup = ContainerPlan::decode(plan.as_slice()).ok().and_then(|plan| plan.cgroup);
        let outcome = self.born("adopt", stdin, dir, &cgroup.unwrap_or_default().v2).await?;
        ready(outcome, &path.display().to_string())?;
        self.connect(dir).await.map_err(Fault::Error)
    }
}

/// A socket in which the message and its descriptors wait.
fn letter(plan: OwnedFd, reserve: Reserve) -> io::Result<OwnedFd> {
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    let adopt = Adopt {
        version: berth_launch::VERSION,
        held: reserve.iter().map(|(held, _)| i32::from(*held)).collect(),
    };
    let fds: Vec<_> =
        std::iter::once(&plan).chain(reserve.iter().map(|(_, fd)| fd)).map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    let message = adopt.encode_to_vec();
    rustix::net::sendmsg(&ours, &[IoSlice::new(&message)], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(theirs)
}
