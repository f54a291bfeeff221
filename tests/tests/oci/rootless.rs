//! An ordinary user's containers: `berth oci` without root's rights.

use std::{
    fs,
    path::PathBuf,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

use berth_tests::{
    Finished, images,
    oci::{Oci, text},
    program, required,
};
use serde_json::{Value, json};

use crate::podman;

/// An ordinary user with programs, a bundle and a root of their own.
struct Person<'a> {
    oci: &'a Oci,
    uid: u32,
    gid: u32,
}

impl<'a> Person<'a> {
    fn new(oci: &'a Oci, (uid, gid): (u32, u32)) -> Self {
        let person = Self { oci, uid, gid };
        let bin = oci.dir().join("bin");
        fs::create_dir_all(&bin).unwrap();
        fs::create_dir_all(person.root()).unwrap();
        for name in ["berth", "berth-shim"] {
            // Where ours lie may be closed to others. Not written by this process, whose children may hold it open.
            run("cp", &[text(&program(name)), text(&bin)]);
        }
        let owner = format!("{uid}:{gid}");
        run("chown", &["-R", &owner, text(&oci.bundle()), text(&person.root())]);
        person
    }

    fn root(&self) -> PathBuf {
        self.oci.dir().join("person")
    }

    fn run(&self, words: &[&str]) -> Finished {
        let mut command = Command::new("setpriv");
        let ids = [format!("--reuid={}", self.uid), format!("--regid={}", self.gid)];
        command.args(ids).args(["--clear-groups", "--inh-caps=-all"]).arg(self.oci.dir().join("bin/berth"));
        command.arg("oci").arg("--root").arg(self.root()).args(words).current_dir(self.oci.bundle());
        let ran = self.oci.finish(command);
        Finished { code: ran.code, stdout: ran.stdout(), stderr: ran.stderr() }
    }

    fn ok(&self, words: &[&str]) -> String {
        let finished = self.run(words);
        assert_eq!(finished.code, 0, "{words:?}: {finished:?}");
        finished.stdout
    }

    /// What `spec --rootless` begins with, for these words.
    fn config(&self, words: &[&str]) -> Value {
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

fn run(program: &str, words: &[&str]) {
    let output = Command::new(program).args(words).output().unwrap();
    assert!(output.status.success(), "{program} {words:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// An id that no user of a machine has.
const NOBODYS: u32 = 64_123;

#[test]
fn an_ordinary_user_runs_a_container_as_its_root_with_one_id() {
    if !required("an_ordinary_user_runs_a_container_as_its_root_with_one_id", &["setpriv"]) {
        return;
    }
    let oci = Oci::new();
    let person = Person::new(&oci, (NOBODYS, NOBODYS));
    oci.write(&person.config(&["info"]));
    let info: Value = serde_json::from_str(&person.ok(&["run", "c1"])).unwrap();
    assert_eq!((&info["uid"], &info["gid"], &info["pid"]), (&json!(0), &json!(0), &json!(1)), "{info}");
    let map: Vec<&str> = info["uid_map"].as_str().unwrap().split_whitespace().collect();
    assert_eq!(map, ["0", "64123", "1"]);
    assert_eq!(info["hostname"], "berth");
    oci.write(&person.config(&["exit", "9"]));
    assert_eq!(person.run(&["run", "c1"]).code, 9);
    assert_eq!(person.ok(&["list", "--quiet"]), "");
}

#[test]
fn an_ordinary_user_has_all_verbs_but_those_of_cgroups() {
    if !required("an_ordinary_user_has_all_verbs_but_those_of_cgroups", &["setpriv"]) {
        return;
    }
    let oci = Oci::new();
    let person = Person::new(&oci, (NOBODYS, NOBODYS));
    oci.write(&person.config(&["sleep", "1000"]));
    let pid_file = person.root().join("pid");
    person.ok(&["run", "--detach", "--pid-file", text(&pid_file), "c1"]);
    oci.adopt("c1", &pid_file);
    assert!(person.ok(&["state", "c1"]).contains("running"));
    assert!(person.ok(&["exec", "c1", "id"]).starts_with("uid=0 gid=0"));
    assert_eq!(person.run(&["exec", "c1", "exit", "3"]).code, 3);
    assert!(person.run(&["pause", "c1"]).stderr.contains("no freezer"));
    person.ok(&["kill", "c1", "KILL"]);
    assert_eq!(oci.reap("c1"), 128 + 9);
    person.ok(&["delete", "c1"]);
}

#[test]
fn what_an_ordinary_user_may_not_is_refused_with_its_reason() {
    if !required("what_an_ordinary_user_may_not_is_refused_with_its_reason", &["setpriv"]) {
        return;
    }
    let oci = Oci::new();
    let person = Person::new(&oci, (NOBODYS, NOBODYS));
    let refused = |config: &Value, why: &str| {
        oci.write(config);
        let finished = person.run(&["run", "c1"]);
        assert!(finished.code != 0 && finished.stderr.contains(why), "{why}: {finished:?}");
    };
    let begun = person.config(&["true"]);
    let mut config = begun.clone();
    config["linux"]["resources"] = json!({"pids": {"limit": 5}});
    refused(&config, "Permission denied");
    let mut config = begun.clone();
    config["process"]["user"]["additionalGids"] = json!([5]);
    refused(&config, "no other groups");
    let mut config = begun.clone();
    config["linux"]["namespaces"].as_array_mut().unwrap().retain(|namespace| namespace["type"] != "user");
    config["linux"].as_object_mut().unwrap().retain(|key, _| !key.ends_with("Mappings"));
    refused(&config, "needs a user namespace");
    // Ids that nobody gave to this user.
    let mut config = begun;
    config["linux"]["uidMappings"] = json!([{"containerID": 0, "hostID": NOBODYS, "size": 2}]);
    refused(&config, "newuidmap");
}

/// A user of this machine's, for as long as a test takes.
struct Account(String);

impl Account {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("btt{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        run("useradd", &["--no-create-home", "--shell", "/usr/sbin/nologin", &name]);
        Self(name)
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

#[test]
fn a_user_with_ranges_of_ids_maps_them_by_newuidmap() {
    let test = "a_user_with_ranges_of_ids_maps_them_by_newuidmap";
    if !required(test, &["setpriv", "newuidmap", "newgidmap"]) {
        return;
    }
    let oci = Oci::new();
    let account = Account::new();
    let (uid, gid) = (account.number("/etc/passwd", 1), account.number("/etc/passwd", 2));
    let first = account.number("/etc/subuid", 0);
    let first_group = account.number("/etc/subgid", 0);
    let person = Person::new(&oci, (uid, gid));
    let mut config = person.config(&["info"]);
    let maps = |own: u32, first: u32| json!([{"containerID": 0, "hostID": own, "size": 1}, {"containerID": 1, "hostID": first, "size": 1000}]);
    config["linux"]["uidMappings"] = maps(uid, first);
    config["linux"]["gidMappings"] = maps(gid, first_group);
    config["process"]["user"] = json!({"uid": 5, "gid": 6, "additionalGids": [7]});
    oci.write(&config);
    let info: Value = serde_json::from_str(&person.ok(&["run", "c1"])).unwrap();
    assert_eq!((&info["uid"], &info["gid"], &info["groups"]), (&json!(5), &json!(6), &json!([6, 7])));
    assert!(info["uid_map"].as_str().unwrap().contains(&first.to_string()), "{}", info["uid_map"]);
}

#[test]
fn podman_of_an_ordinary_user_runs_containers() {
    let needed = ["setpriv", "useradd", "userdel", "newuidmap", "newgidmap", "podman", "conmon"];
    if !required("podman_of_an_ordinary_user_runs_containers", &needed) {
        return;
    }
    let oci = Oci::new();
    let account = Account::new();
    let ids = (account.number("/etc/passwd", 1), account.number("/etc/passwd", 2));
    let person = Person::new(&oci, ids);
    let (runtime, archive) = (person.root().join("run"), person.root().join("fixture.tar"));
    fs::create_dir(&runtime).unwrap();
    fs::write(&archive, images::archive("localhost/fixture:1", &images::base())).unwrap();
    fs::write(person.root().join("containers.conf"), "[engine]\nlock_type = \"file\"\n").unwrap();
    std::os::unix::fs::symlink(oci.dir().join("bin/berth"), person.root().join("berth-oci")).unwrap();
    run("chown", &["-R", &format!("{}:{}", ids.0, ids.1), text(&person.root())]);
    let run_podman = |words: &[&str]| {
        let mut command = Command::new("setpriv");
        command.args([format!("--reuid={}", ids.0), format!("--regid={}", ids.1)]);
        command.args(["--clear-groups", "--inh-caps=-all", "podman"]);
        for (flag, path) in [("--root", "storage"), ("--runroot", "podman"), ("--tmpdir", "libpod")] {
            command.arg(flag).arg(person.root().join(path));
        }
        command.args(["--storage-driver", "vfs", "--cgroup-manager", "cgroupfs", "--events-backend", "file"]);
        command.arg("--runtime").arg(person.root().join("berth-oci")).args(words);
        command.env("CONTAINERS_CONF", person.root().join("containers.conf"));
        command.env("XDG_RUNTIME_DIR", &runtime).env("HOME", person.root()).env("USER", &account.0);
        command.env_remove("DBUS_SESSION_BUS_ADDRESS").current_dir(person.root());
        oci.finish_within(command, podman::PATIENCE)
    };
    let ok = |words: &[&str]| {
        let ran = run_podman(words);
        assert_eq!(ran.code, 0, "podman {}: {}", words.join(" "), ran.stderr());
        ran.stdout()
    };
    let said = ok(&["load", "--input", text(&archive)]);
    ok(&["tag", said.trim().rsplit(": ").next().unwrap(), "localhost/fixture:1"]);
    let image = ["--network", "none", "localhost/fixture:1"];
    let info: Value = serde_json::from_str(&ok(&[&["run", "--rm"], &image[..], &["info"]].concat())).unwrap();
    assert_eq!((&info["uid"], &info["pid"]), (&json!(0), &json!(1)), "{info}");
    assert!(info["uid_map"].as_str().unwrap().contains(&ids.0.to_string()), "{}", info["uid_map"]);
    assert!(
        ok(&[&["run", "--rm", "--user", "5:6"], &image[..], &["id"]].concat()).starts_with("uid=5 gid=6")
    );
    ok(&[&["run", "--detach", "--name", "c1"], &image[..], &["trap", "--exit", "5"]].concat());
    assert!(ok(&["exec", "c1", "id"]).starts_with("uid=0 gid=0"));
    assert_eq!(run_podman(&["exec", "c1", "exit", "7"]).code, 7);
    ok(&["stop", "c1"]);
    assert_eq!(ok(&["inspect", "--format", "{{.State.ExitCode}}", "c1"]), "5\n");
    assert!(runtime.join("berth-oci").is_dir(), "its state is in the person's own directory");
    ok(&["rm", "--all", "--force", "--time", "0"]);
    ok(&["rmi", "--all", "--force"]);
    // Ends the process that keeps the user's namespace.
    ok(&["system", "migrate"]);
}
