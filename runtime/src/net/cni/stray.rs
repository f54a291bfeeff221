//! Plugins that an earlier berthd started and did not see the end of: found by their environment, which their
//! delegates inherit, and killed, so that none goes on adding what is being undone. Blocks.

use std::{fs, path::Path};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tracing::info;

use crate::id::PodId;

/// Kills every process that works for the pod as a network plugin.
pub fn end(pod: &PodId) {
    let word = format!("CNI_CONTAINERID={pod}");
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw)
        else {
            continue;
        };
        if !says(&entry.path(), &word) {
            continue;
        }
        // Held before it is looked at again: the number can't become another's in between. Gone is as well.
        let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else { continue };
        if says(&entry.path(), &word) && pidfd_send_signal(&process, Signal::KILL).is_ok() {
            info!(pod = %pod, pid = pid.as_raw_nonzero(), "a network plugin that outlived berthd is killed");
        }
    }
}

fn says(process: &Path, word: &str) -> bool {
    let environment = fs::read(process.join("environ")).unwrap_or_default();
    environment.split(|byte| *byte == 0).any(|pair| pair == word.as_bytes())
}
