//! A container's streams between its pipes (or terminal), its log and those attached.

use std::os::fd::OwnedFd;

use berth_launch::v1::{status::Held, stdio::Stdin};
use rustix::io::Errno;

use crate::{
    attach::{Input, Sink},
    clock,
    launch::Stdio,
    log::{Framer, Log, Source},
};

/// So much is read at once: what a pipe's page holds. It is stack, which stays resident.
const CHUNK_BYTES: usize = 4 * 1024;
/// So often an output is read that has more at once: others have their turn in between.
const READS: usize = 16;
/// Input that waits for the container to read it.
const INPUT_BYTES: usize = 2 * 1024;

/// One output: its source, the rest of its last line, whom it is copied to.
#[derive(Debug)]
pub struct Output {
    pub fd: Option<OwnedFd>,
    framer: Framer,
    pub sinks: Vec<Sink>,
}

#[derive(Debug)]
pub struct Streams {
    pub stdin: Option<OwnedFd>,
    pub tty: Option<OwnedFd>,
    pub stdout: Output,
    pub stderr: Output,
    pub inputs: Vec<Input>,
    input: Vec<u8>,
    /// The last attached has ended its input: the container's ends once it has read what waits.
    close_asked: bool,
    stdin_mode: Stdin,
    pub log: Log,
}

/// What a read of an output gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Read {
    /// All that was asked for: there may be more.
    Full,
    Some,
    Nothing,
    End,
}

/// The number of a pipe; 0 where it can't be told.
pub fn inode(fd: &OwnedFd) -> u64 {
    rustix::fs::fstat(fd).map_or(0, |stat| stat.st_ino)
}

impl Streams {
    pub fn new(log: Log, stdin_mode: Stdin) -> Self {
        let output = |source| Output { fd: None, framer: Framer::new(source), sinks: Vec::new() };
        Self {
            stdin: None,
            tty: None,
            stdout: output(Source::Stdout),
            stderr: output(Source::Stderr),
            inputs: Vec::new(),
            input: Vec::new(),
            close_asked: false,
            stdin_mode,
            log,
        }
    }

    /// Takes the ends of a new run; those attached stay.
    pub fn connect(&mut self, stdio: Stdio) -> rustix::io::Result<()> {
        for fd in [&stdio.stdin, &stdio.stdout, &stdio.stderr, &stdio.tty].into_iter().flatten() {
            rustix::io::ioctl_fionbio(fd, true)?;
        }
        self.input.clear();
        self.stdin = stdio.stdin;
        self.stdout.fd = stdio.stdout;
        self.stderr.fd = stdio.stderr;
        self.tty = stdio.tty;
        Ok(())
    }

    /// Copies of the ends, for whoever holds them in reserve. An input that will be closed is not among them.
    pub fn held(&self) -> Vec<(Held, OwnedFd)> {
        let stdin = self.stdin.as_ref().filter(|_| self.stdin_mode == Stdin::Open);
        let ends = [
            (Held::Stdin, stdin),
            (Held::Stdout, self.stdout.fd.as_ref()),
            (Held::Stderr, self.stderr.fd.as_ref()),
            (Held::Terminal, self.tty.as_ref()),
        ];
        // Without a free descriptor there is no reserve, which is no reason not to go on.
        ends.into_iter().filter_map(|(held, fd)| Some((held, fd?.try_clone().ok()?))).collect()
    }

    /// Reads an output, as long as it has much to give: to the log and to those attached.
    pub fn pump(&mut self, source: Source) -> Read {
        let mut read = self.read(source);
        for _ in 1..READS {
            if read != Read::Full || !self.may_read(source) {
                break;
            }
            read = self.read(source);
        }
        self.log.flush();
        read
    }

    fn read(&mut self, source: Source) -> Read {
        let mut buffer = [0u8; CHUNK_BYTES];
        let output = match source {
            Source::Stdout => &mut self.stdout,
            Source::Stderr => &mut self.stderr,
        };
        let from = match (&output.fd, &self.tty) {
            (Some(fd), _) => fd,
            (None, Some(tty)) if source == Source::Stdout => tty,
            (None, _) => return Read::End,
        };
        let length = match rustix::io::read(from, &mut buffer) {
            Ok(0) => 0,
            Ok(length) => length,
            Err(Errno::AGAIN | Errno::INTR) => return Read::Nothing,
            // A terminal whose last holder has gone says EIO.
            Err(_) => 0,
        };
        let now = clock::now();
        if length == 0 {
            output.framer.finish(now, &mut self.log);
            output.fd = None;
            if source == Source::Stdout {
                self.tty = None;
            }
            return Read::End;
        }
        output.framer.feed(&buffer[..length], now, &mut self.log);
        output.sinks.retain_mut(|sink| sink.take(&buffer[..length]));
        if length == CHUNK_BYTES { Read::Full } else { Read::Some }
    }

    /// Ends the outputs of a run whose processes are gone, with what is still in them.
    pub fn close(&mut self) {
        for source in [Source::Stdout, Source::Stderr] {
            while matches!(self.pump(source), Read::Full | Read::Some) {}
            let output = match source {
                Source::Stdout => &mut self.stdout,
                Source::Stderr => &mut self.stderr,
            };
            output.framer.finish(clock::now(), &mut self.log);
            output.fd = None;
        }
        self.log.tell_dropped();
        self.log.flush();
        self.tty = None;
        self.stdin = None;
        self.input.clear();
    }

    /// Whether every output has come to its end.
    pub fn ended(&self) -> bool {
        self.stdout.fd.is_none() && self.stderr.fd.is_none() && self.tty.is_none()
    }

    /// Reads what the attached send, if the container has taken what came before.
    pub fn take_input(&mut self) {
        self.push_input();
        let mut buffer = [0u8; INPUT_BYTES];
        let mut ended = false;
        let room = self.input.is_empty();
        let input = &mut self.input;
        self.inputs.retain(|from| {
            if !room || !input.is_empty() {
                return true;
            }
            match rustix::io::read(&from.fd, &mut buffer) {
                Ok(0) => {
                    ended = true;
                    false
                }
                Ok(length) => {
                    input.extend_from_slice(&buffer[..length]);
                    true
                }
                Err(Errno::AGAIN | Errno::INTR) => true,
                Err(_) => {
                    ended = true;
                    false
                }
            }
        });
        self.push_input();
        if ended && self.stdin_mode == Stdin::Once && self.inputs.is_empty() {
            self.close_input();
        }
    }

    /// Writes input on, as far as the container takes it.
    fn push_input(&mut self) {
        let to = match (&self.stdin, &self.tty) {
            (Some(fd), _) | (None, Some(fd)) => fd,
            // Nobody reads it, now or ever.
            (None, None) => {
                self.input.clear();
                return;
            }
        };
        while !self.input.is_empty() {
            match rustix::io::write(to, &self.input) {
                Ok(written) => {
                    self.input.drain(..written);
                }
                Err(Errno::AGAIN) => return,
                Err(Errno::INTR) => {}
                Err(_) => {
                    self.input.clear();
                    self.stdin = None;
                    return;
                }
            }
        }
        if self.stdin_mode == Stdin::Once && self.closing() {
            self.stdin = None;
        }
    }

    fn closing(&self) -> bool {
        self.inputs.is_empty() && self.close_asked
    }

    fn close_input(&mut self) {
        self.close_asked = true;
        self.push_input();
    }

    /// Whether input waits for the container.
    pub fn input_waits(&self) -> bool {
        !self.input.is_empty()
    }

    /// Whether those attached to an output let it be read.
    pub fn may_read(&self, source: Source) -> bool {
        let output = match source {
            Source::Stdout => &self.stdout,
            Source::Stderr => &self.stderr,
        };
        !output.sinks.iter().any(Sink::is_full)
    }

    /// Writes on to those attached.
    pub fn flush_sinks(&mut self) {
        self.stdout.sinks.retain_mut(Sink::flush);
        self.stderr.sinks.retain_mut(Sink::flush);
    }

    pub fn sinks(&self) -> impl Iterator<Item = &Sink> {
        self.stdout.sinks.iter().chain(&self.stderr.sinks)
    }
}
