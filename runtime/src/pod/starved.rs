//! Processes of containers that the kernel kills for want of memory, told in their stories as it happens: that of a container
//! whose init lives on would be told nowhere else. From the kernel's log.

use std::{
    fs::{File, OpenOptions},
    io::{self, ErrorKind, Read, Seek, SeekFrom},
    os::unix::fs::OpenOptionsExt,
};

use berth_launch::oom;
use tokio::io::unix::AsyncFd;
use tracing::{info, warn};

use super::Timelines;
use crate::id::ContainerId;

const LOG: &str = "/dev/kmsg";
/// The longest record that the kernel gives.
const RECORD_BYTES: usize = 8 * 1024;

/// Follows the kernel's log from now on, for as long as this berthd lives. Where it can't be read, stories lack these steps.
pub fn follow(timelines: Timelines) {
    let log = match open() {
        Ok(log) => log,
        Err(error) => {
            warn!(%error, "{LOG} can't be read: kills for want of memory are told at their container's end only");
            return;
        }
    };
    tokio::spawn(async move {
        let mut buffer = vec![0; RECORD_BYTES];
        loop {
            let length =
                match log.async_io(tokio::io::Interest::READABLE, |mut log| log.read(&mut buffer)).await {
                    Ok(length) => length,
                    // Some records went before they were read.
                    Err(error) if error.kind() == ErrorKind::BrokenPipe => continue,
                    Err(error) => {
                        warn!(%error, "{LOG} can't be read any more");
                        return;
                    }
                };
            let record = String::from_utf8_lossy(&buffer[..length]);
            if let Some(kill) = oom::parse(&record) {
                tell(&timelines, &kill);
            }
        }
    });
}

fn open() -> io::Result<AsyncFd<File>> {
    let nonblock = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let mut log = OpenOptions::new().read(true).custom_flags(nonblock).open(LOG)?;
    log.seek(SeekFrom::End(0))?;
    #[expect(deprecated, reason = "its successor is unsafe; a File upholds what that asks for")]
    AsyncFd::new(log)
}

fn tell(timelines: &Timelines, kill: &oom::Kill) {
    // Another runtime's container around us may have an id of the same form.
    let ids = kill.group.split('/').filter_map(|part| {
        ContainerId::parse(part.strip_prefix("berth-").unwrap_or(part).trim_end_matches(".scope")).ok()
    });
    for id in ids.filter(|id| timelines.knows(id.as_str())) {
        info!(container = %id, pid = kill.pid, name = kill.name, "a process was killed for want of memory");
        let container = kill.container(id.as_str()).unwrap_or_default();
        timelines.note(id.as_str(), "out of memory", kill.told(container, None));
    }
}
