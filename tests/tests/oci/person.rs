//! Ordinary users of this machine, who run containers.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

use berth_tests::{
    Finished, eventually,
    oci::{Oci, text},
    program, skip, systemd,
};
use serde_json::{Value, json};

/// An id that no user of a machine has.
pub const NOBODYS: u32 = 64_123;

/// An ordinary user with programs, a bundle and a root of their own.
pub struct Person<'a> {
    oci: &'a Oci,
    uid: u32,
    gid: u32,
    /// What a session has set, if they have one.
    session: Vec<(&'static str, String)>,
}

impl<'a> Person<'a> {
    pub fn new(oci: &'a Oci, (uid, gid): (u32, u32)) -> Self {
        let person = Self { oci, uid, gid, session: Vec::new() };
        let bin = oci.dir().join("bin");
        fs::create_dir_all(&bin).unwrap();
        fs::create_dir_all(person.root()).unwrap();
        for name in ["berth", "berth-oci", "berth-shim"] {
            // Where ours lie may be closed to others. Not written by this process, whose children may hold it open.
            run("cp", &[text(&program(name)), text(&bin)]);
        }
        let owner = format!("{uid}:{gid}");
        run("chown", &["-R", &owner, text(&oci.bundle()), text(&person.root())]);
        person
    }

    /// The same with a systemd of their own.
    pub fn with_session(self, session: &Session) -> Self {
        let directory = session.directory();
        let bus = format!("unix:path={directory}/bus");
        Self { session: vec![("XDG_RUNTIME_DIR", directory), ("DBUS_SESSION_BUS_ADDRESS", bus)], ..self }
    }

    pub fn root(&self) -> PathBuf {
        self.oci.dir().join("person")
    }

    /// A program as this user runs it.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("setpriv");
        let ids = [format!("--reuid={}", self.uid), format!("--regid={}", self.gid)];
        command.args(ids).args(["--clear-groups", "--inh-caps=-all"]).arg(program);
        command.env_remove("DBUS_SESSION_BUS_ADDRESS").env_remove("XDG_RUNTIME_DIR");
        command.envs(self.session.iter().map(|(name, value)| (name, value)));
        command
    }

    pub fn run(&self, words: &[&str]) -> Finished {
        let mut command = self.command(text(&self.oci.dir().join("bin/berth")));
        command.arg("oci").arg("--root").arg(self.root()).args(words).current_dir(self.oci.bundle());
        let ran = self.oci.finish(command);
        Finished { code: ran.code, stdout: ran.stdout(), stderr: ran.stderr() }
    }

    pub fn ok(&self, words: &[&str]) -> String {
        let finished = self.run(words);
        assert_eq!(finished.code, 0, "{words:?}: {finished:?}");
        finished.stdout
    }

    /// What `spec --rootless` begins with, for these words.
    pub fn config(&self, words: &[&str]) -> Value {
        let path = self.oci.bundle().join("config.json");
        fs::remove_file(&path).ok();
        self.ok(&["spec", "--rootless"]);
        let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        config["process"]["args"] = json!(words);
        config["process"]["env"] = json!(["PATH=/bin"]);
        config["process"]["terminal"] = json!(false);
        config
    }
}

/// A user of this machine's, for as long as a test takes.
pub struct Account(String);

impl Account {
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("btt{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        run("useradd", &["--no-create-home", "--shell", "/usr/sbin/nologin", &name]);
        Self(name)
    }

    pub fn name(&self) -> &str {
        &self.0
    }

    /// The user's id and their group's.
    pub fn ids(&self) -> (u32, u32) {
        (self.number("/etc/passwd", 1), self.number("/etc/passwd", 2))
    }

    /// The first ids of users and of groups that they may map.
    pub fn ranges(&self) -> [u32; 2] {
        ["/etc/subuid", "/etc/subgid"].map(|path| self.number(path, 0))
    }

    fn number(&self, path: &str, field: usize) -> u32 {
        let text = fs::read_to_string(path).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("{}:", self.0)));
        line.unwrap_or_else(|| panic!("{} is not in {path}", self.0))
            .split(':')
            .nth(field)
            .unwrap()
            .parse()
            .unwrap()
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        // What is left of it is told by the next test that has this name.
        Command::new("userdel").arg(&self.0).output().ok();
    }
}

/// A user's own systemd, as a login of theirs would start it, for as long as a test takes.
pub struct Session {
    uid: u32,
}

impl Session {
    /// None: the test has said why there can be none.
    pub fn start(test: &str, account: &Account) -> Option<Self> {
        if !systemd::runs_here() {
            skip(test, "systemd does not run this machine, or not on cgroup v2");
            return None;
        }
        let session = Self { uid: account.ids().0 };
        let started = Command::new("systemctl").args(["start", &session.unit()]).output().unwrap();
        if !started.status.success() {
            let why = String::from_utf8_lossy(&started.stderr);
            skip(test, &format!("no user has a systemd here: {}", why.lines().next().unwrap_or_default()));
            return None;
        }
        let bus = format!("{}/bus", session.directory());
        eventually("the user's bus", || Path::new(&bus).exists().then_some(()));
        Some(session)
    }

    fn unit(&self) -> String {
        format!("user@{}.service", self.uid)
    }

    /// `XDG_RUNTIME_DIR`.
    pub fn directory(&self) -> String {
        format!("/run/user/{}", self.uid)
    }

    /// Where its units are.
    pub fn group(&self) -> String {
        format!("/sys/fs/cgroup/user.slice/user-{}.slice/{}", self.uid, self.unit())
    }

    /// The controllers that it may hand on.
    pub fn controllers(&self) -> Vec<String> {
        let text = fs::read_to_string(format!("{}/cgroup.controllers", self.group())).unwrap();
        text.split_whitespace().map(str::to_owned).collect()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // Whoever fails to stop it is told by the account, which can't be removed then.
        Command::new("systemctl").args(["stop", &self.unit()]).output().ok();
    }
}

pub fn run(program: &str, words: &[&str]) {
    let output = Command::new(program).args(words).output().unwrap();
    assert!(output.status.success(), "{program} {words:?}: {}", String::from_utf8_lossy(&output.stderr));
}
