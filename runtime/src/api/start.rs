//! A start of berthd that waits, for a disk that does not answer as a rule: what it waits for is told, once for each step,
//! and a service manager is asked for more time. It is not given up: what runs is there, and nobody else looks after it.

use std::{
    fmt::Display,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{task::JoinHandle, time::Instant};
use tracing::{info, warn};

use super::notify::notify;

/// A step that takes longer waits for something.
const PATIENCE: Duration = Duration::from_secs(5);
/// What a service manager is asked for each time; the next time comes before it is over.
const MORE_TIME: Duration = Duration::from_secs(30);

/// The start, from its first step to the last.
#[derive(Debug)]
pub struct Start {
    step: Arc<Mutex<Step>>,
    watch: JoinHandle<()>,
}

#[derive(Debug, Clone)]
struct Step {
    op: &'static str,
    object: String,
    since: Instant,
    /// How often it has been told.
    told: u32,
}

#[derive(Debug, PartialEq, Eq)]
enum Next {
    /// It waits.
    Tell,
    LookAgain(Instant),
}

fn next(step: &Step, now: Instant) -> Next {
    let due = step.since + PATIENCE * (step.told + 1);
    if due <= now { Next::Tell } else { Next::LookAgain(due) }
}

fn status(step: &Step, now: Instant) -> String {
    let waited = now.duration_since(step.since).as_secs();
    let more = MORE_TIME.as_micros();
    format!("STATUS=waits since {waited} s to {} {}\nEXTEND_TIMEOUT_USEC={more}", step.op, step.object)
}

impl Start {
    /// Begins with a step.
    pub fn with(op: &'static str, object: impl Display) -> Self {
        let step = Arc::new(Mutex::new(Step::new(op, object)));
        let watch = tokio::spawn(watch(Arc::clone(&step)));
        Self { step, watch }
    }

    /// Goes on with the next.
    pub fn at(&self, op: &'static str, object: impl Display) {
        let before = std::mem::replace(&mut *locked(&self.step), Step::new(op, object));
        before.ended();
    }
}

impl Drop for Start {
    fn drop(&mut self) {
        self.watch.abort();
        locked(&self.step).ended();
    }
}

impl Step {
    fn new(op: &'static str, object: impl Display) -> Self {
        Self { op, object: object.to_string(), since: Instant::now(), told: 0 }
    }

    fn ended(&self) {
        if self.told > 0 {
            let waited_s = self.since.elapsed().as_secs();
            info!(operation = self.op, object = self.object, waited_s, "the start goes on");
            notify("STATUS=");
        }
    }
}

async fn watch(step: Arc<Mutex<Step>>) {
    loop {
        let now = Instant::now();
        let at = {
            let mut step = locked(&step);
            match next(&step, now) {
                Next::LookAgain(at) => at,
                Next::Tell => {
                    step.told += 1;
                    tell(&step, now);
                    now
                }
            }
        };
        tokio::time::sleep_until(at).await;
    }
}

fn tell(step: &Step, now: Instant) {
    if step.told == 1 {
        let remedy = "see which disk or server that is on (findmnt -T) and why it does not answer; the start goes on by itself";
        let waited_s = now.duration_since(step.since).as_secs();
        warn!(operation = step.op, object = step.object, waited_s, remedy, "the start waits");
    }
    notify(&status(step, now));
}

fn locked(step: &Mutex<Step>) -> MutexGuard<'_, Step> {
    // Each change is whole.
    step.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_that_waits_is_told_again_and_again_and_says_what_it_waits_for() {
        let mut step = Step::new("take the locks in", "/var/lib/berth");
        let since = step.since;
        assert_eq!(next(&step, since), Next::LookAgain(since + PATIENCE));
        assert_eq!(next(&step, since + PATIENCE), Next::Tell);
        step.told = 1;
        assert_eq!(next(&step, since + PATIENCE), Next::LookAgain(since + 2 * PATIENCE));
        // The next word comes while the time that was asked for still runs.
        assert!(2 * PATIENCE < MORE_TIME);
        let told = status(&step, since + PATIENCE);
        assert_eq!(
            told,
            "STATUS=waits since 5 s to take the locks in /var/lib/berth\nEXTEND_TIMEOUT_USEC=30000000"
        );
    }
}
