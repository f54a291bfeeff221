//! The person's terminal: raw while a container has it, as it was afterwards, however that comes about.

use std::{
    io,
    os::fd::AsFd,
    panic,
    sync::{Mutex, Once, PoisonError},
};

use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};

use super::failure::{Failure, Result};

/// How the terminal was; `None` while nobody has changed it.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);
static HOOK: Once = Once::new();

/// The terminal is raw as long as this lives.
#[derive(Debug)]
pub(super) struct Raw(());

impl Raw {
    pub(super) fn set() -> Result<Self> {
        let failed = |errno: rustix::io::Errno| Failure::io("make the terminal raw", &errno.into());
        let stdin = io::stdin();
        let before = tcgetattr(&stdin).map_err(failed)?;
        let mut raw = before.clone();
        raw.make_raw();
        *BEFORE.lock().unwrap_or_else(PoisonError::into_inner) = Some(before);
        // A release aborts at a panic and drops nothing.
        HOOK.call_once(|| {
            let then = panic::take_hook();
            panic::set_hook(Box::new(move |info| {
                restore();
                then(info);
            }));
        });
        let raw_now = Self(());
        tcsetattr(&stdin, OptionalActions::Flush, &raw).map_err(failed)?;
        Ok(raw_now)
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        restore();
    }
}

fn restore() {
    if let Some(before) = BEFORE.lock().unwrap_or_else(PoisonError::into_inner).take() {
        // The terminal is gone where this fails.
        tcsetattr(io::stdin(), OptionalActions::Now, &before).ok();
    }
}

pub(super) fn is_terminal(fd: impl AsFd) -> bool {
    isatty(fd)
}

/// Rows and columns of the terminal that shows the output, else of the one that is typed at.
pub(super) fn size() -> Option<(u32, u32)> {
    let size = tcgetwinsize(io::stdout()).or_else(|_| tcgetwinsize(io::stdin())).ok()?;
    // A serial line knows no size.
    (size.ws_row > 0 && size.ws_col > 0).then(|| (size.ws_row.into(), size.ws_col.into()))
}

/// -i and -t together need a terminal to type at.
pub(super) fn demand(interactive: bool, tty: bool) -> Result<()> {
    if interactive && tty && !is_terminal(io::stdin()) {
        return Err(Failure::new("standard input is no terminal; leave -t away"));
    }
    Ok(())
}
