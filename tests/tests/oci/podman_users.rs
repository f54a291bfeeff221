//! podman of an ordinary user, with and without a systemd of their own.

use std::{
    fs,
    path::{Path, PathBuf},
};

use berth_tests::{
    images,
    oci::{Oci, Ran, text},
    required,
};
use serde_json::{Value, json};

use crate::{
    person::{Account, Person, Session, run},
    podman,
};

const IMAGE: &str = "localhost/fixture:1";
const NEEDED: [&str; 7] = ["setpriv", "useradd", "userdel", "newuidmap", "newgidmap", "podman", "conmon"];

/// A user's podman, with all its files below the person's root.
struct Podman<'a> {
    oci: &'a Oci,
    person: Person<'a>,
    account: &'a Account,
    manager: &'static str,
    /// `XDG_RUNTIME_DIR` where no session has one.
    runtime: PathBuf,
}

impl<'a> Podman<'a> {
    /// One that has the fixture's image; with a session it has containers in scopes of that user's systemd.
    fn new(oci: &'a Oci, account: &'a Account, session: Option<&Session>) -> Self {
        let person = Person::new(oci, account.ids());
        let (root, manager) = (person.root(), if session.is_some() { "systemd" } else { "cgroupfs" });
        let runtime = session.map_or_else(|| root.join("run"), |session| session.directory().into());
        let person = match session {
            Some(session) => person.with_session(session),
            None => person,
        };
        fs::create_dir(root.join("run")).unwrap();
        fs::write(root.join("fixture.tar"), images::archive(IMAGE, &images::base())).unwrap();
        fs::write(root.join("containers.conf"), "[engine]\nlock_type = \"file\"\n").unwrap();
        let (uid, gid) = account.ids();
        run("chown", &["-R", &format!("{uid}:{gid}"), text(&root)]);
        let podman = Self { oci, person, account, manager, runtime };
        let said = podman.ok(&["load", "--input", text(&root.join("fixture.tar"))]);
        podman.ok(&["tag", said.trim().rsplit(": ").next().unwrap(), IMAGE]);
        podman
    }

    fn run(&self, words: &[&str]) -> Ran {
        let root = self.person.root();
        let mut command = self.person.command("podman");
        for (flag, path) in [("--root", "storage"), ("--runroot", "podman"), ("--tmpdir", "libpod")] {
            command.arg(flag).arg(root.join(path));
        }
        command.args([
            "--storage-driver",
            "vfs",
            "--cgroup-manager",
            self.manager,
            "--events-backend",
            "file",
        ]);
        command.arg("--runtime").arg(self.oci.dir().join("bin/berth-oci")).args(words);
        command.env("CONTAINERS_CONF", root.join("containers.conf")).env("XDG_RUNTIME_DIR", &self.runtime);
        command.env("HOME", &root).env("TMPDIR", &root).env("USER", self.account.name()).current_dir(&root);
        self.oci.finish_within(command, podman::PATIENCE)
    }

    fn ok(&self, words: &[&str]) -> String {
        let ran = self.run(words);
        assert_eq!(ran.code, 0, "podman {}: {}", words.join(" "), ran.stderr());
        ran.stdout()
    }

    /// The words of a run of the image, without a network.
    fn image<'w>(&self, flags: &[&'w str], words: &[&'w str]) -> Vec<&'w str> {
        [&["run"], flags, &["--network", "none", IMAGE], words].concat()
    }

    fn put_away(&self) {
        self.ok(&["rm", "--all", "--force", "--time", "0"]);
        self.ok(&["rmi", "--all", "--force"]);
        // Ends the process that keeps the user's namespace.
        self.ok(&["system", "migrate"]);
    }
}

/// What it does whoever makes its groups.
fn everyday(podman: &Podman<'_>) {
    let uid = podman.account.ids().0;
    let info: Value = serde_json::from_str(&podman.ok(&podman.image(&["--rm"], &["info"]))).unwrap();
    assert_eq!((&info["uid"], &info["pid"]), (&json!(0), &json!(1)), "{info}");
    assert!(info["uid_map"].as_str().unwrap().contains(&uid.to_string()), "{}", info["uid_map"]);
    let told = podman.ok(&podman.image(&["--rm", "--user", "5:6"], &["id"]));
    assert!(told.starts_with("uid=5 gid=6"), "{told}");
    podman.ok(&podman.image(&["--detach", "--name", "c1"], &["trap", "--exit", "5"]));
    assert!(podman.ok(&["exec", "c1", "id"]).starts_with("uid=0 gid=0"));
    assert_eq!(podman.run(&["exec", "c1", "exit", "7"]).code, 7);
    podman.ok(&["stop", "c1"]);
    assert_eq!(podman.ok(&["inspect", "--format", "{{.State.ExitCode}}", "c1"]), "5\n");
    assert!(podman.runtime.join("berth-oci").is_dir(), "its state is in the person's own directory");
}

#[test]
fn podman_of_an_ordinary_user_runs_containers() {
    if !required("podman_of_an_ordinary_user_runs_containers", &NEEDED) {
        return;
    }
    let oci = Oci::new();
    let account = Account::new();
    let podman = Podman::new(&oci, &account, None);
    everyday(&podman);
    podman.put_away();
}

#[test]
fn podman_of_a_user_with_a_systemd_limits_containers_in_its_scopes() {
    let test = "podman_of_a_user_with_a_systemd_limits_containers_in_its_scopes";
    if !required(test, &NEEDED) {
        return;
    }
    let oci = Oci::new();
    let account = Account::new();
    let Some(session) = Session::start(test, &account) else { return };
    let podman = Podman::new(&oci, &account, Some(&session));
    everyday(&podman);
    let flags = ["--detach", "--name", "c2", "--memory", "64m", "--pids-limit", "30"];
    podman.ok(&podman.image(&flags, &["sleep", "1000"]));
    let pid = podman.ok(&["inspect", "--format", "{{.State.Pid}}", "c2"]);
    let own = fs::read_to_string(format!("/proc/{}/cgroup", pid.trim())).unwrap();
    let group = format!("/sys/fs/cgroup{}", own.trim().strip_prefix("0::").unwrap());
    assert!(group.starts_with(&format!("{}/user.slice/libpod-", session.group())), "{group}");
    let read = |file: &str| fs::read_to_string(Path::new(&group).join(file)).unwrap().trim().to_owned();
    assert_eq!((read("memory.max").as_str(), read("pids.max").as_str()), ("67108864", "30"));
    podman.ok(&["pause", "c2"]);
    assert!(read("cgroup.events").contains("frozen 1"));
    podman.ok(&["unpause", "c2"]);
    assert!(podman.ok(&["top", "c2"]).contains("sleep"));
    let stats = podman.ok(&["stats", "--no-stream", "--format", "json", "c2"]);
    assert!(stats.contains("67.11MB"), "{stats}");
    // More than its memory: the kernel ends it.
    let eaten =
        podman.run(&podman.image(&["--rm", "--memory", "16m", "--memory-swap", "16m"], &["eat", "64M"]));
    assert_eq!(eaten.code, 137, "{}", eaten.stderr());
    podman.put_away();
    assert!(!Path::new(&group).exists());
}
