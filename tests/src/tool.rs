//! The tool `berth`, run as a person does.

use std::{
    io::Write,
    os::unix::process::ExitStatusExt,
    process::{Child, Command, Output, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{daemon::Daemon, poll::eventually, programs::program};

const LONGEST: Duration = Duration::from_secs(120);

/// What a run of `berth` came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finished {
    /// The exit code; 128 + n for signal n.
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

/// A `berth` that is still running. Killed when dropped.
#[derive(Debug)]
pub struct Tool {
    child: Option<Child>,
}

impl Daemon {
    /// Runs the tool against this daemon.
    pub fn berth(&self, args: &[&str]) -> Finished {
        self.berth_with(args, b"")
    }

    /// The same with something on its standard input, which ends there.
    pub fn berth_with(&self, args: &[&str], input: &[u8]) -> Finished {
        let mut tool = self.berth_start(args);
        tool.type_in(input);
        tool.finish()
    }

    /// Starts the tool.
    pub fn berth_start(&self, args: &[&str]) -> Tool {
        let child = Command::new(program("berth"))
            .args(args)
            .env("BERTH_ADDRESS", format!("unix://{}", self.place().socket().display()))
            .env_remove("CONTAINER_RUNTIME_ENDPOINT")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("start berth");
        Tool { child: Some(child) }
    }

    /// Runs the tool, which must succeed, and returns its output without the last end of line.
    ///
    /// # Panics
    /// With all it said if it did not exit 0.
    pub fn berth_ok(&self, args: &[&str]) -> String {
        let finished = self.berth(args);
        assert_eq!(finished.code, 0, "berth {}: {finished:?}", args.join(" "));
        finished.stdout.trim_end_matches('\n').to_owned()
    }
}

impl Tool {
    pub fn pid(&self) -> i32 {
        let child = self.child.as_ref().expect("it was not waited for yet");
        i32::try_from(child.id()).expect("pids fit")
    }

    /// Writes to its standard input.
    pub fn type_in(&mut self, input: &[u8]) {
        let stdin =
            self.child.as_mut().and_then(|child| child.stdin.as_mut()).expect("it is open until the end");
        // A tool that has ended reads nothing, and its exit tells more.
        stdin.write_all(input).ok();
    }

    /// The standard output, to be read while it runs.
    pub fn take_stdout(&mut self) -> std::process::ChildStdout {
        self.child.as_mut().and_then(|child| child.stdout.take()).expect("it is taken once")
    }

    /// Ends its standard input and waits until it has exited.
    pub fn finish(mut self) -> Finished {
        let pid = self.pid();
        let child = self.child.take().expect("it is finished once");
        // One that hangs is killed, so that the test tells it instead of hanging too.
        let (done, ended) = mpsc::channel::<()>();
        let watch = thread::spawn(move || {
            if let Err(mpsc::RecvTimeoutError::Timeout) = ended.recv_timeout(LONGEST) {
                kill(Pid::from_raw(pid), Signal::SIGKILL).ok();
            }
        });
        let output = child.wait_with_output().expect("wait for berth");
        drop(done);
        watch.join().expect("the watch does not panic");
        finished(output)
    }

    /// Waits for its end without ending its standard input.
    pub fn ended(&mut self) -> i32 {
        let child = self.child.as_mut().expect("it was not finished yet");
        let status = eventually("berth to end", || child.try_wait().expect("wait for berth"));
        status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
    }
}

impl Drop for Tool {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // It may have ended; either way it is not there afterwards.
            child.kill().ok();
            child.wait().ok();
        }
    }
}

fn finished(output: Output) -> Finished {
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Finished {
        code: output.status.code().unwrap_or_else(|| 128 + output.status.signal().unwrap_or(0)),
        stdout: text(output.stdout),
        stderr: text(output.stderr),
    }
}
