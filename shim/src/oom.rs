//! Who was killed for want of memory in the container's cgroup, and by whose limit: read from the kernel's log once the
//! counter has moved. The kernel's documentation of it is ABI/testing/dev-kmsg.

use std::{
    fs::{self, OpenOptions},
    io::{ErrorKind, Read},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use berth_launch::{
    oom::{self, Kill},
    v1::{Cgroup, ContainerPlan},
};

use crate::group;

/// The longest record that the kernel gives.
const RECORD_BYTES: usize = 8 * 1024;

/// Who was killed last in a container.
#[derive(Debug)]
pub struct Victim {
    /// None: the log can't be read.
    pub pid: Option<i32>,
    pub told: String,
}

impl Victim {
    /// Whether it was init itself; or what that could not do without, unless it was asked to end.
    pub fn explains(&self, init: i32, was_asked: bool) -> bool {
        self.pid.is_none_or(|pid| pid == init) || !was_asked
    }
}

/// The message of an end, or where it has none who was killed before it.
pub fn or_told(message: String, victim: Option<Victim>) -> String {
    if message.is_empty() { victim.map(|victim| victim.told).unwrap_or_default() } else { message }
}

/// Who was killed last, if the counter has moved from where it was.
#[inline(never)]
pub fn victim(plan: &ContainerPlan, kills_before: u64) -> Option<Victim> {
    let cgroup = plan.cgroup.as_ref().filter(|cgroup| group::oom_kills(cgroup) > kills_before)?;
    Some(match last(&plan.id) {
        Some(kill) => {
            let container = kill.container(&plan.id).unwrap_or_default();
            Victim { pid: Some(kill.pid), told: kill.told(container, limit(&kill, container, cgroup)) }
        }
        None => Victim { pid: None, told: "a process of it was killed for want of memory".to_owned() },
    })
}

fn last(id: &str) -> Option<Kill> {
    let nonblock = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let mut log = OpenOptions::new().read(true).custom_flags(nonblock).open("/dev/kmsg").ok()?;
    let mut buffer = [0u8; RECORD_BYTES];
    let mut found = None;
    loop {
        match log.read(&mut buffer) {
            Ok(0) => return found,
            Ok(length) => {
                let kill = str::from_utf8(&buffer[..length]).ok().and_then(oom::parse);
                found = kill.filter(|kill| kill.container(id).is_some()).or(found);
            }
            // The oldest went while we read: the next read goes on with what is there.
            Err(error) if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::Interrupted) => {}
            Err(_) => return found,
        }
    }
}

/// The limit that was reached, in bytes.
fn limit(kill: &Kill, container: &str, cgroup: &Cgroup) -> Option<u64> {
    let limited = kill.limited.as_ref()?;
    let files = [("memory.limit_in_bytes", &cgroup.v1[..]), ("memory.max", std::slice::from_ref(&cgroup.v2))];
    files.into_iter().flat_map(|(file, directories)| directories.iter().map(move |dir| (file, dir))).find_map(
        |(file, directory)| {
            let root = directory.strip_suffix(container)?;
            fs::read_to_string(Path::new(&format!("{root}{limited}")).join(file)).ok()?.trim().parse().ok()
        },
    )
}
