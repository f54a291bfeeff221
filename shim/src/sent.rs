//! Which signals we have sent to init, and why: by that its end can be told from one that somebody else has caused.

use std::{path::Path, time::Duration};

use berth_launch::v1::{Sent, sent::By};
use rustix::process::Signal;

use crate::supervise::Supervisor;

impl Supervisor {
    /// Before it is sent: the last of each signal counts.
    pub(crate) fn note_sent(&mut self, signal: Signal, by: By, grace: Duration) {
        let signal = signal.as_raw().unsigned_abs();
        let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        self.sent.retain(|before| before.signal != signal);
        self.sent.push(Sent { signal, by: by.into(), grace_ms });
    }

    /// The time that init was given to end.
    pub(crate) fn grace(&self) -> Duration {
        Duration::from_millis(self.sent.iter().map(|sent| sent.grace_ms).max().unwrap_or(0))
    }

    /// Who sent the signal that has ended init.
    #[inline(never)]
    pub(crate) fn sender(&self, signal: u32) -> Sent {
        let ours = self.sent.iter().find(|sent| sent.signal == signal).copied();
        ours.unwrap_or_else(|| {
            let killed =
                signal == Signal::KILL.as_raw().unsigned_abs() && Path::new(berth_launch::KILLED).exists();
            let by = if killed { By::NoAnswer } else { By::NobodyHere };
            Sent { signal, by: by.into(), grace_ms: 0 }
        })
    }
}
