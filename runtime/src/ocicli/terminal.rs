//! The person's own terminal while a container has it: raw, and back as it was.

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize};

/// Puts standard input back when dropped.
#[derive(Debug)]
pub struct Raw(Option<Termios>);

impl Raw {
    /// Does nothing where standard input is no terminal.
    pub fn new() -> Self {
        let stdin = rustix::stdio::stdin();
        let Ok(before) = tcgetattr(stdin) else { return Self(None) };
        let mut raw = before.clone();
        raw.make_raw();
        match tcsetattr(stdin, OptionalActions::Now, &raw) {
            Ok(()) => Self(Some(before)),
            Err(_) => Self(None),
        }
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            // A terminal that is gone needs nothing.
            tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, before).ok();
        }
    }
}

/// Gives a pty the size of our terminal.
pub fn same_size(master: &impl std::os::fd::AsFd) {
    if let Ok(size) = tcgetwinsize(rustix::stdio::stdin()) {
        // A wrong size is an ugly screen, no failure.
        tcsetwinsize(master, size).ok();
    }
}
