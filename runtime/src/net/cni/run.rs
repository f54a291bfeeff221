//! One plugin, run once: its configuration on stdin, CNI_* in its environment, its answer or its error from stdout.
//! CNI specification 1.1.0, section 2. A plugin that is too slow is killed with its process group.

use std::{
    io,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    process::Command,
    time::timeout,
};

use crate::{Error, Kind, Result, error::Cause};

/// No answer is as long.
const LONGEST_ANSWER: usize = 4 << 20;
/// What is kept of a plugin's stderr.
const LONGEST_COMPLAINT: usize = 2048;
/// After its end a plugin's own children may hold its streams open; they are not waited for longer.
const LAST_WORDS_WITHIN: Duration = Duration::from_secs(1);

/// The specification's codes that say more than "it failed".
const TRY_AGAIN_LATER: u64 = 11;
const NOT_AVAILABLE: u64 = 50;
const LIMITED: u64 = 51;

/// What a plugin is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    Add,
    Del,
    Check,
    Gc,
    Status,
    Version,
}

impl Verb {
    pub fn text(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Gc => "GC",
            Self::Status => "STATUS",
            Self::Version => "VERSION",
        }
    }
}

/// Where plugins are and how long each may take.
#[derive(Debug, Clone)]
pub struct Programs {
    pub dirs: Vec<PathBuf>,
    pub deadline: Duration,
}

impl Programs {
    /// The program of a plugin: in the first directory that has it.
    ///
    /// # Errors
    /// `Unavailable` names the directories.
    pub fn find(&self, kind: &str) -> Result<PathBuf> {
        let there = self.dirs.iter().map(|dir| dir.join(kind)).find(|path| path.is_file());
        there.ok_or_else(|| {
            let dirs: Vec<String> = self.dirs.iter().map(|dir| dir.display().to_string()).collect();
            Error::new(Kind::Unavailable, "find network plugin", kind)
                .because(Cause(format!("it is in none of {}", dirs.join(", "))))
                .hint("install it, or set network.bin_dirs")
        })
    }

    /// Runs a plugin to its end.
    ///
    /// # Errors
    /// `Deadline` for one that was killed; else what it said itself, with the end of its stderr.
    pub async fn run(
        &self,
        kind: &str,
        verb: Verb,
        environment: &[(&'static str, String)],
        input: &Value,
    ) -> Result<Option<Value>> {
        let program = self.find(kind)?;
        let object = format!("{kind} {}", verb.text());
        let failed = |kind: Kind, cause: String| {
            Error::new(kind, "run network plugin", object.clone()).because(Cause(cause))
        };
        let end = self.finish(&program, verb, environment, input).await;
        let end =
            end.map_err(|error| Error::io("run network plugin", program.display().to_string(), error))?;
        let Some(status) = end.status else {
            let cause = format!("it did not end within {} s and was killed", self.deadline.as_secs_f32());
            return Err(failed(Kind::Deadline, cause + &complaint(&end.stderr))
                .hint("see why it hangs; network.plugin_seconds is how long it may take"));
        };
        if end.stdout.len() > LONGEST_ANSWER {
            return Err(failed(Kind::Unavailable, format!("it answered more than {LONGEST_ANSWER} bytes")));
        }
        if !status.success() {
            let (kind, cause) = refusal(status, &end.stdout);
            return Err(failed(kind, cause + &complaint(&end.stderr)));
        }
        if end.stdout.iter().all(u8::is_ascii_whitespace) {
            return Ok(None);
        }
        serde_json::from_slice(&end.stdout).map(Some).map_err(|error| {
            let shown = String::from_utf8_lossy(&end.stdout);
            let cause = format!("its answer {shown:.80?} is no JSON: {error}{}", complaint(&end.stderr));
            failed(Kind::Unavailable, cause)
        })
    }

    async fn finish(
        &self,
        program: &Path,
        verb: Verb,
        environment: &[(&'static str, String)],
        input: &Value,
    ) -> io::Result<End> {
        let path: Vec<String> = self.dirs.iter().map(|dir| dir.display().to_string()).collect();
        let mut command = Command::new(program);
        command
            .env_remove("NOTIFY_SOCKET")
            .env("CNI_COMMAND", verb.text())
            .env("CNI_PATH", path.join(":"))
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        let mut child = command.spawn()?;
        let group = child.id().and_then(|pid| i32::try_from(pid).ok()).map(Pid::from_raw);
        let mut group = Group(group);
        let (mut stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let mut end = End::default();
        let input = input.to_string();
        let talk = async {
            let feed = async {
                if let Some(stdin) = &mut stdin {
                    // One that ended without reading says why otherwise.
                    stdin.write_all(input.as_bytes()).await.ok();
                }
                drop(stdin.take());
            };
            tokio::join!(
                feed,
                fill(stdout, LONGEST_ANSWER + 1, &mut end.stdout),
                fill(stderr, LONGEST_COMPLAINT, &mut end.stderr)
            );
        };
        let mut talk = Box::pin(talk);
        let whole = async {
            tokio::select! {
                () = &mut talk => child.wait().await,
                status = child.wait() => {
                    timeout(LAST_WORDS_WITHIN, &mut talk).await.ok();
                    status
                }
            }
        };
        let status = timeout(self.deadline, whole).await;
        drop(talk);
        end.status = match status {
            Ok(status) => {
                // The number may be another's from now on.
                group.0 = None;
                Some(status?)
            }
            Err(_) => None,
        };
        Ok(end)
    }
}

/// How a plugin ended.
#[derive(Debug, Default)]
struct End {
    /// None: it was not waited for any longer.
    status: Option<ExitStatus>,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

/// A process group that is killed where nobody waits for its leader's end any more: a plugin with its delegates.
#[derive(Debug)]
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // Its leader was not reaped, so the number is still its own; gone already is as well.
            killpg(group, Signal::SIGKILL).ok();
        }
    }
}

/// Reads to the end, keeps at most `most` bytes.
async fn fill(from: Option<impl AsyncRead + Unpin>, most: usize, into: &mut Vec<u8>) {
    let Some(mut from) = from else { return };
    let mut piece = vec![0; 16 * 1024];
    // A stream that can't be read is at its end.
    while let Ok(length @ 1..) = from.read(&mut piece).await {
        let room = most.saturating_sub(into.len()).min(length);
        into.extend_from_slice(&piece[..room]);
    }
}

/// What a plugin that failed says on stdout, section 5 of the specification: `{"code", "msg", "details"}`.
fn refusal(status: ExitStatus, stdout: &[u8]) -> (Kind, String) {
    let Ok(Value::Object(said)) = serde_json::from_slice::<Value>(stdout) else {
        let shown = String::from_utf8_lossy(stdout);
        let shown = if shown.trim().is_empty() { "nothing".to_owned() } else { format!("{shown:.200?}") };
        return (Kind::Unavailable, format!("{status}, and it answered {shown}"));
    };
    let text = |key: &str| said.get(key).and_then(Value::as_str).unwrap_or_default();
    let code = said.get("code").and_then(Value::as_u64).unwrap_or_default();
    let mut cause = if text("msg").is_empty() { status.to_string() } else { text("msg").to_owned() };
    if !text("details").is_empty() {
        cause += &format!(" ({})", text("details"));
    }
    cause += match code {
        TRY_AGAIN_LATER => ", try again later",
        NOT_AVAILABLE => ": the plugin is not available",
        LIMITED => ": the plugin can't take new pods",
        _ => "",
    };
    (Kind::Unavailable, cause)
}

fn complaint(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    match lines.is_empty() {
        true => String::new(),
        false => format!("; its stderr: {}", lines.join(" | ")),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use serde_json::json;

    use super::*;

    fn plugin(script: &str, deadline: Duration) -> (tempfile::TempDir, Programs) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p");
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        let programs = Programs { dirs: vec!["/berth-none".into(), dir.path().into()], deadline };
        (dir, programs)
    }

    async fn run(script: &str) -> Result<Option<Value>, String> {
        let (_dir, programs) = plugin(script, Duration::from_secs(20));
        let environment = [("CNI_IFNAME", "eth0".to_owned())];
        let input = json!({"name": "n"});
        programs.run("p", Verb::Add, &environment, &input).await.map_err(|error| error.chain())
    }

    #[tokio::test]
    async fn a_plugin_gets_its_words_and_its_answer_is_read() {
        let echo = r#"echo "{\"env\":\"$CNI_COMMAND $CNI_IFNAME\",\"in\":$(cat)}""#;
        let answer = run(echo).await.unwrap().unwrap();
        assert_eq!(answer, json!({"env": "ADD eth0", "in": {"name": "n"}}));
        assert_eq!(run("exit 0").await.unwrap(), None);
        // A child that stays with its streams keeps nobody waiting.
        assert_eq!(run("sleep 3 & echo '{}'").await.unwrap(), Some(json!({})));
    }

    #[tokio::test]
    async fn failures_say_what_the_plugin_said() {
        for (script, parts) in [
            (
                r#"echo why >&2; echo '{"code":7,"msg":"no such bridge","details":"br9"}'; exit 1"#,
                &["run network plugin p ADD", "no such bridge (br9)", "stderr: why"][..],
            ),
            (r#"echo '{"code":11,"msg":"busy"}'; exit 1"#, &["busy, try again later"]),
            ("echo oops; exit 3", &["exit status: 3", "oops"]),
            ("kill -SEGV $$", &["signal: 11", "answered nothing"]),
            ("echo '{torn'", &["is no JSON"]),
            ("head -c 5000000 /dev/zero", &["more than 4194304 bytes"]),
        ] {
            let error = run(script).await.unwrap_err();
            for part in parts {
                assert!(error.contains(part), "{script}: {error}");
            }
        }
    }

    #[tokio::test]
    async fn one_that_hangs_is_killed_with_its_children() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        // The child holds the FIFO open for writing as long as it lives.
        let script = format!("(exec 9>{0}; sleep 600) & sleep 600", fifo.display());
        let (_plugin, programs) = plugin(&script, Duration::from_millis(300));
        let held = tokio::task::spawn_blocking(move || fs::read(fifo));
        let error = programs.run("p", Verb::Del, &[], &Value::Null).await.unwrap_err();
        assert_eq!(error.kind, Kind::Deadline);
        assert!(error.chain().contains("was killed"), "{}", error.chain());
        assert!(held.await.unwrap().unwrap().is_empty());
        let missing = programs.run("q", Verb::Add, &[], &Value::Null).await.unwrap_err();
        assert!(missing.chain().contains("in none of /berth-none, "), "{}", missing.chain());
    }
}
