//! The time of day for what is shown, a clock that nobody sets for what is decided, and this boot's name.

use std::time::{Duration, SystemTime};

use rustix::time::{ClockId, clock_gettime};

/// Unix nanoseconds.
pub fn now() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// Now, but later than something that came before: the time of day may have been set back meanwhile, and a kubelet takes
/// the newest of several for the present one.
pub fn after(before: i64) -> i64 {
    now().max(before.saturating_add(1))
}

/// `CLOCK_MONOTONIC`, as shims write it in their records.
pub fn monotonic() -> Duration {
    let time = clock_gettime(ClockId::Monotonic);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// Changes with each boot; empty where the kernel doesn't say.
pub fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}
