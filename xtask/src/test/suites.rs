//! The stages that run tests: on this host, with and without root, and in the VM.

use std::{
    fs,
    io::{self, BufRead, BufReader, PipeReader, Write},
    path::Path,
    process::{Command, ExitStatus, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use super::{
    libtest::{Reader, Show},
    tally::Tally,
};
use crate::{cargo, debian, install, process};

/// The file that tests append a line `skipped: NAME: reason` to.
const SKIPS: &str = "BERTH_SKIPS";
/// Every suite but `kubelet`, which is a stage of its own and asks for a feature: cargo takes a glob, but no exceptions.
const SUITES: &str = "[!k]*";
const PAUSE: Duration = Duration::from_millis(100);
/// How long output may go on after the tests have ended.
const GRACE: Duration = Duration::from_secs(3);

/// The tests inside the crates. Always the whole workspace: cargo builds a dependency anew for each set of packages
/// that asks other features of it.
pub fn unit() -> Result<Tally> {
    suite(&["--workspace", "--lib", "--bins"], &[])
}

/// Through the public doors, on this host: the daemon's, the shim's, the fixture program's.
pub fn host() -> Result<Tally> {
    if !rustix::process::geteuid().is_root() {
        let mut tally = Tally::default();
        tally.skip("host", "it starts containers, which takes root");
        return Ok(tally);
    }
    if let Err(error) = debian::install(debian::REGISTRY) {
        // The tests that need them say so one by one.
        eprintln!("xtask: going on without: {error:#}");
    }
    let programs = cargo::programs()?;
    let shim = programs.path("berth-shim")?;
    let berthd = programs.path("berthd")?;
    let here = berthd.parent().context("find the programs' directory")?;
    // berthd looks for its shim beside itself: there the shim as it is shipped belongs, not the one for debugging.
    install::place(shim, &here.join("berth-shim"))?;
    let environment = [("BERTH_PROGRAMS", here), ("BERTH_FIXTURE", programs.path("fixture")?)];
    suite(&["--workspace", "--test", SUITES], &environment)
}

/// On cgroup v2 with systemd and AppArmor, in a VM that is booted once.
pub fn vm() -> Result<Tally> {
    in_vm(&[], &[])
}

/// Some of what runs there.
pub fn in_vm(names: &[&str], environment: &[(&str, &Path)]) -> Result<Tally> {
    let mut tally = Tally::default();
    if !rustix::process::geteuid().is_root() {
        tally.skip("vm", "its images are made as root");
        return Ok(tally);
    }
    if !process::succeeds(Command::new("apt-get").arg("--version")) {
        tally.skip("vm", "its images are made from Debian packages, and there is no apt-get here");
        return Ok(tally);
    }
    let script = cargo::root().join("tests/vm/run");
    let mut command = Command::new(script);
    command.args(names).envs(environment.iter().copied()).current_dir(cargo::root());
    read(&mut command, "vm", &mut io::stdout())
}

/// Runs `cargo test` with these arguments and counts.
fn suite(arguments: &[&str], environment: &[(&str, &Path)]) -> Result<Tally> {
    let mut command = cargo::cargo();
    command.args(["test", "--no-fail-fast"]).args(arguments).args(["--", "--show-output"]);
    command.envs(environment.iter().copied());
    let name = format!("cargo test {}", arguments.join(" "));
    read(&mut command, &name, &mut io::stdout())
}

/// Streams what a command prints, and counts its tests. One that fails without a failed test is a failure itself.
pub fn read(command: &mut Command, name: &str, shown: &mut dyn Write) -> Result<Tally> {
    writeln!(shown, "{}", process::line(command)).context("print")?;
    let skips = tempfile::NamedTempFile::new().context("make a file for skips")?;
    let (reading, writing) = std::io::pipe().context("make a pipe")?;
    command.env(SKIPS, skips.path()).stdin(Stdio::null());
    command.stdout(writing.try_clone().context("share a pipe")?).stderr(writing);
    let mut child = command.spawn().with_context(|| format!("run {}", process::line(command)))?;
    // The command keeps our ends of the pipe open: the reader would wait for ever.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let lines = lines(reading);
    let mut reader = Reader::default();
    let mut ended: Option<(ExitStatus, Instant)> = None;
    let held = loop {
        match lines.recv_timeout(PAUSE) {
            Ok(line) => {
                if reader.line(line.trim_end_matches('\n')) == Show::Yes {
                    write!(shown, "{line}").context("print")?;
                }
            }
            Err(RecvTimeoutError::Disconnected) => break false,
            Err(RecvTimeoutError::Timeout) => {
                if ended.is_some_and(|(_, at)| at.elapsed() > GRACE) {
                    break true;
                }
            }
        }
        if ended.is_none() {
            ended = child.try_wait().context("look after the tests")?.map(|status| (status, Instant::now()));
        }
    };
    let status = child.wait().context("wait for the tests")?;
    let told = fs::read_to_string(skips.path()).context("read the skips")?;
    told.lines().for_each(|line| reader.file_line(line));
    let mut tally = reader.tally();
    if !status.success() && tally.failed.is_empty() {
        tally.fail(name, &format!("{status}; see above"));
    }
    if held {
        tally.fail(name, "a process that its tests started outlived them and still holds their output");
    }
    Ok(tally)
}

/// Reads lines as they come, however long a leaked process may keep the other end open.
fn lines(reading: PipeReader) -> Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut reading = BufReader::new(reading);
        let mut line = Vec::new();
        while reading.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
            if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                break;
            }
            line.clear();
        }
    });
    receiver
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_script(script: &str) -> Tally {
        // Not shown: whoever counts our own tests would count these.
        read(Command::new("sh").args(["-c", script]), "the script", &mut io::sink()).unwrap()
    }

    #[test]
    fn only_the_kubelets_suite_is_left_out() {
        let left_out = ["tests/tests", "rootfs-fixtures/tests"].into_iter().flat_map(|under| {
            let entries = fs::read_dir(cargo::root().join(under)).unwrap();
            entries
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .filter(|name| name.starts_with('k'))
        });
        assert_eq!(left_out.collect::<Vec<_>>(), ["kubelet"]);
    }

    #[test]
    fn a_command_that_fails_without_a_failed_test_is_a_failure() {
        assert_eq!(
            read_script("echo 'test result: ok. 2 passed; 0 failed;'").to_string(),
            "2 passed, 0 failed, 0 skipped"
        );
        let tally = read_script("echo 'error: could not compile' >&2; exit 101");
        assert_eq!(tally.failed[0].name, "the script");
        assert_eq!(read_script("echo 'test a ... FAILED'; exit 101").failed.len(), 1);
    }

    #[test]
    fn a_process_that_outlives_its_tests_is_a_failure_and_nobody_waits_for_it() {
        let begun = Instant::now();
        // Ends by itself soon after, so that this test leaves nothing either.
        let tally = read_script("sleep 8 & echo 'test result: ok. 1 passed; 0 failed;'");
        assert_eq!(tally.to_string(), "1 passed, 1 failed, 0 skipped");
        assert!(begun.elapsed() < Duration::from_secs(7));
    }

    #[test]
    fn skips_come_from_the_file_as_well() {
        let tally =
            read_script("echo 'skipped: a: why' >>$BERTH_SKIPS; echo 'test result: ok. 2 passed; 0 failed;'");
        assert_eq!(tally.to_string(), "1 passed, 0 failed, 1 skipped");
    }
}
