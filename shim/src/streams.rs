//! A container's streams between its pipes (or terminal), its log and those attached.

use std::{os::fd::OwnedFd, time::Duration};

use berth_launch::v1::{status::Held, stdio::Stdin};
use rustix::{io::Errno, pipe::fcntl_setpipe_size};

use crate::{
    attach::{Input, Sink},
    clock,
    framer::Framer,
    kernel,
    launch::Stdio,
    log::{Flow, Log, Source},
    stage::Stage,
};

/// So much is read at once: what a pipe's page holds. It is stack, which stays resident.
const CHUNK_BYTES: usize = 4 * 1024;
/// So much once it did not do, and so much may wait in the pipe then. Given back when it has done for a while again.
const BULK_BYTES: usize = 64 * 1024;
const BULK_PIPE_BYTES: usize = 128 * 1024;
const PIPE_BYTES: usize = 64 * 1024;
/// Bulk is let come together for so long: a wake for each line of it costs more than the line.
const PAUSE: Duration = Duration::from_micros(200);
const CALM: Duration = Duration::from_secs(1);
/// So often an output is read that has more at once: others have their turn in between.
const READS: usize = 16;
const BULK_READS: usize = 4;
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
    /// What bulk is read into, and when it was last needed.
    bulk: Vec<u8>,
    bulk_at: Duration,
    paused_until: Option<Duration>,
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

/// Without a free descriptor there is no reserve, which is no reason not to go on.
fn copies<const N: usize>(ends: [(Held, Option<&OwnedFd>); N]) -> Vec<(Held, OwnedFd)> {
    ends.into_iter().filter_map(|(held, fd)| Some((held, fd?.try_clone().ok()?))).collect()
}

impl Output {
    fn staged(&self) -> Option<&OwnedFd> {
        self.framer.stage.as_ref().map(Stage::file)
    }
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
            bulk: Vec::new(),
            bulk_at: Duration::ZERO,
            paused_until: None,
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
        for output in [&mut self.stdout, &mut self.stderr] {
            // A terminal is read at once, and what is in no log needs no place on the way to it.
            if output.fd.is_some() && self.log.is_kept() && output.framer.stage.is_none() {
                match Stage::new(output.framer.stage_name()) {
                    Ok(stage) => output.framer.stage = Some(stage),
                    // The container is worth more than what its shim's death might lose.
                    Err(errno) => {
                        crate::complain!("berth-shim: output has no memory file: {errno}");
                    }
                }
            }
        }
        Ok(())
    }

    /// Goes on with what a shim that was killed had read of its outputs.
    pub fn resume(&mut self, staged: Vec<(Source, OwnedFd)>) {
        // Of before either is written on.
        let place = self.log.place();
        for (source, file) in staged {
            let (output, log) = self.output(source);
            if let Err(error) = output.framer.resume(file, place, log) {
                crate::complain!("berth-shim: what the shim before had read of {source:?}: {error}");
            }
        }
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
        copies(ends)
    }

    /// Whether any of `staged` has changed since this was asked last.
    pub fn has_moved(&mut self) -> bool {
        let moved = |output: &mut Output| std::mem::take(&mut output.framer.moved);
        moved(&mut self.stdout) | moved(&mut self.stderr)
    }

    /// Copies of what holds output on its way into the log.
    pub fn staged(&self) -> Vec<(Held, OwnedFd)> {
        copies([(Held::StagedStdout, self.stdout.staged()), (Held::StagedStderr, self.stderr.staged())])
    }

    /// Reads an output, as long as it has much to give: to the log and to those attached.
    pub fn pump(&mut self, source: Source) -> Read {
        let mut reads = if self.bulk.is_empty() { READS } else { BULK_READS };
        let bulk_before = self.bulk_at;
        let mut read = self.read(source);
        while read == Read::Full && reads > 1 && self.may_read(source) {
            self.expect(Flow::Bulk);
            read = self.read(source);
            reads -= 1;
        }
        // Who is attached waits for each byte that does not come among many.
        let waited_for = self.bulk_at == bulk_before && !self.output(source).0.sinks.is_empty();
        if !waited_for && !self.bulk.is_empty() && read != Read::Full {
            self.paused_until = Some(clock::monotonic() + PAUSE);
        }
        let (output, log) = self.output(source);
        output.framer.flush(log);
        read
    }

    fn output(&mut self, source: Source) -> (&mut Output, &mut Log) {
        match source {
            Source::Stdout => (&mut self.stdout, &mut self.log),
            Source::Stderr => (&mut self.stderr, &mut self.log),
        }
    }

    fn read(&mut self, source: Source) -> Read {
        if self.bulk.is_empty() {
            return self.read_into(source, &mut [0u8; CHUNK_BYTES]);
        }
        let mut bulk = std::mem::take(&mut self.bulk);
        let read = self.read_into(source, &mut bulk);
        self.bulk = bulk;
        read
    }

    fn read_into(&mut self, source: Source, buffer: &mut [u8]) -> Read {
        let tty = self.tty.take();
        let (output, log) = self.output(source);
        let length = match (&output.fd, &tty) {
            (Some(pipe), _) => output.framer.take(pipe, buffer),
            (None, Some(tty)) if source == Source::Stdout => rustix::io::read(tty, &mut *buffer),
            (None, _) => {
                self.tty = tty;
                return Read::End;
            }
        };
        let length = match length {
            Ok(length) => length,
            Err(Errno::AGAIN | Errno::INTR) => {
                self.tty = tty;
                return Read::Nothing;
            }
            // A terminal whose last holder has gone says EIO.
            Err(_) => 0,
        };
        let now = clock::now();
        if length == 0 {
            output.framer.finish(now, log);
            output.framer.flush(log);
            output.fd = None;
            self.tty = tty.filter(|_| source == Source::Stderr);
            return Read::End;
        }
        output.framer.feed(&buffer[..length], now, log);
        if !output.sinks.is_empty() {
            // Who sees a line finds it in the log.
            output.framer.flush(log);
        }
        output.sinks.retain_mut(|sink| sink.take(&buffer[..length]));
        self.tty = tty;
        if length > CHUNK_BYTES {
            self.bulk_at = clock::monotonic();
        }
        if length == buffer.len() { Read::Full } else { Read::Some }
    }

    /// Much comes at once, or no longer.
    fn expect(&mut self, flow: Flow) {
        if self.bulk.is_empty() == (flow == Flow::Calm) {
            return;
        }
        let pipe_bytes = match flow {
            Flow::Calm => PIPE_BYTES,
            Flow::Bulk => BULK_PIPE_BYTES,
        };
        for source in [Source::Stdout, Source::Stderr] {
            let (output, log) = self.output(source);
            output.framer.flush(log);
            // A terminal has none to set, and what pipes of one user may hold in all has a bound: then as it is.
            output.fd.as_ref().map(|pipe| fcntl_setpipe_size(pipe, pipe_bytes).ok());
        }
        self.log.expect(flow);
        self.bulk_at = clock::monotonic();
        self.bulk = match flow {
            Flow::Calm => Vec::new(),
            Flow::Bulk => vec![0; BULK_BYTES],
        };
    }

    /// When `keep_time` has something to do.
    pub fn due(&self) -> Option<Duration> {
        let calm = (!self.bulk.is_empty()).then(|| self.bulk_at + CALM);
        self.log.due().into_iter().chain(calm).chain(self.paused_until).min()
    }

    pub fn keep_time(&mut self, now: Duration) {
        self.log.keep_time(now);
        self.paused_until = self.paused_until.filter(|at| *at > now);
        if !self.bulk.is_empty() && self.bulk_at + CALM <= now {
            self.expect(Flow::Calm);
            kernel::memory::give_back();
        }
    }

    /// Ends the outputs of a run whose processes are gone, with what is still in them.
    pub fn close(&mut self) {
        for source in [Source::Stdout, Source::Stderr] {
            while matches!(self.pump(source), Read::Full | Read::Some) {}
            let (output, log) = self.output(source);
            output.framer.finish(clock::now(), log);
            output.framer.flush(log);
            output.fd = None;
        }
        self.log.tell_dropped();
        self.log.flush(None);
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
        self.paused_until.is_none() && !output.sinks.iter().any(Sink::is_full)
    }

    /// Writes on to those attached, and lets go of who has left.
    pub fn flush_sinks(&mut self) {
        for output in [&mut self.stdout, &mut self.stderr] {
            output.sinks.retain_mut(|sink| sink.flush() && !sink.is_gone());
        }
    }

    pub fn sinks(&self) -> impl Iterator<Item = &Sink> {
        self.stdout.sinks.iter().chain(&self.stderr.sinks)
    }
}
