//! ^C and SIGTERM: noted instead of deadly, so that what was made is taken down again.
//!
//! Programs in the foreground get ^C from the terminal as well: the step under way fails by itself.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use tokio::signal::unix::{SignalKind, signal};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// From here on ^C and SIGTERM only make `check` fail. To be called once.
pub fn catch() -> Result<()> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("watch for ^C")?;
    let _inside = runtime.enter();
    let mut interrupt = signal(SignalKind::interrupt()).context("watch for ^C")?;
    let mut terminate = signal(SignalKind::terminate()).context("watch for SIGTERM")?;
    drop(_inside);
    std::thread::spawn(move || {
        runtime.block_on(async move {
            loop {
                tokio::select! { _ = interrupt.recv() => {} _ = terminate.recv() => {} }
                INTERRUPTED.store(true, Ordering::Relaxed);
                eprintln!("xtask: interrupted, cleaning up");
            }
        });
    });
    Ok(())
}

/// Fails once somebody has interrupted us.
pub fn check() -> Result<()> {
    if INTERRUPTED.load(Ordering::Relaxed) {
        bail!("interrupted");
    }
    Ok(())
}

/// Lets time pass; fails as soon as somebody has interrupted us.
pub fn pause(time: Duration) -> Result<()> {
    const STEP: Duration = Duration::from_millis(100);
    let end = Instant::now() + time;
    loop {
        check()?;
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        std::thread::sleep(left.min(STEP));
    }
}
