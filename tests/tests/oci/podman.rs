//! podman with `--runtime berth-oci`: through conmon, the way its users come.

use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    process::{Command, Stdio},
    time::Duration,
};

use berth_tests::{
    images,
    oci::{Oci, Ran, text},
    program, required,
    systemd::{self, Slice},
};
use serde_json::Value;

/// The fixture's image as podman names what comes from an archive.
const IMAGE: &str = "localhost/fixture:1";

/// It reads and writes much, and the CPU may be an emulated one.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// podman with storage and state of its own, below a root's directory.
struct Podman {
    /// Before the rest, which its containers are in.
    slice: Option<Slice>,
    oci: Oci,
}

/// Runs a test with podman's cgroups made by itself, and by systemd where that runs the machine; says why where there is no
/// podman.
fn with_podman(test: &str, body: impl Fn(&Podman)) {
    if !required(test, &["podman", "conmon"]) {
        return;
    }
    body(&Podman::new(|_| None));
    if systemd::runs_here() {
        body(&Podman::new(|oci| Some(Slice::of(&oci.cgroup("")))));
    }
}

impl Podman {
    /// One that has the fixture's image.
    fn new(slice: impl Fn(&Oci) -> Option<Slice>) -> Self {
        let oci = Oci::new();
        let podman = Self { slice: slice(&oci), oci };
        let dir = podman.oci.dir();
        // The usual ones are in memory that is shared with every podman of the machine, and stay.
        fs::write(dir.join("containers.conf"), "[engine]\nlock_type = \"file\"\n").unwrap();
        let archive = dir.join("fixture.tar");
        fs::write(&archive, images::archive(IMAGE, &images::base())).unwrap();
        let said = podman.ok(&["load", "--input", text(&archive)]);
        let name = said.trim().rsplit(": ").next().unwrap().to_owned();
        podman.ok(&["tag", &name, IMAGE]);
        podman
    }

    fn cgroup_parent(&self) -> String {
        match &self.slice {
            Some(slice) => slice.name().to_owned(),
            None => self.oci.cgroup("").trim_end_matches('/').to_owned(),
        }
    }

    fn run(&self, words: &[&str]) -> Ran {
        let dir = self.oci.dir();
        let mut command = Command::new("podman");
        for (flag, path) in [("--root", "storage"), ("--runroot", "podman"), ("--tmpdir", "libpod")] {
            command.arg(flag).arg(dir.join(path));
        }
        let manager = if self.slice.is_some() { "systemd" } else { "cgroupfs" };
        command.args(["--storage-driver", "vfs", "--cgroup-manager", manager, "--events-backend", "file"]);
        command.arg("--runtime").arg(program("berth-oci")).args(words).stdin(Stdio::null());
        command.env("CONTAINERS_CONF", dir.join("containers.conf"));
        self.oci.finish_within(command, PATIENCE)
    }

    fn ok(&self, words: &[&str]) -> String {
        let ran = self.run(words);
        assert_eq!(ran.code, 0, "podman {}: {}", words.join(" "), ran.stderr());
        ran.stdout()
    }

    /// Runs a container of the image in a cgroup and a network of no consequence.
    fn container(&self, flags: &[&str], words: &[&str]) -> Ran {
        let parent = self.cgroup_parent();
        let fixed = ["run", "--network", "none", "--cgroup-parent", &parent];
        self.run(&[&fixed, flags, &[IMAGE], words].concat())
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        // What is left then is told by the root's own look.
        for words in [&["rm", "--all", "--force", "--time", "0"][..], &["rmi", "--all", "--force"]] {
            catch_unwind(AssertUnwindSafe(|| self.run(words))).ok();
        }
        self.oci.without_podmans_cgroups();
    }
}

#[test]
fn podman_runs_a_container_and_takes_its_exit_code() {
    with_podman("podman_runs_a_container_and_takes_its_exit_code", |podman| {
        let ran = podman.container(&["--rm"], &["echo", "through", "conmon"]);
        assert_eq!((ran.code, ran.stdout().as_str()), (0, "through conmon\n"), "{}", ran.stderr());
        assert_eq!(podman.container(&["--rm"], &["exit", "9"]).code, 9);
        // What is not there, and what can't be executed, are told apart by what the runtime says.
        assert_eq!(podman.container(&["--rm"], &["no-such-program"]).code, 127);
        assert_eq!(podman.container(&["--rm"], &["/etc/passwd"]).code, 126);
        let ran = podman.container(&["--rm", "--tty"], &["info"]);
        let info: Value = serde_json::from_str(ran.stdout().trim()).unwrap();
        assert_eq!(info["tty"], serde_json::json!([true, true, true]));
    });
}

#[test]
fn podman_keeps_a_container_and_looks_into_it() {
    with_podman("podman_keeps_a_container_and_looks_into_it", |podman| {
        let ran =
            podman.container(&["--detach", "--name", "c1", "--memory", "64m"], &["trap", "--exit", "5"]);
        assert_eq!(ran.code, 0, "{}", ran.stderr());
        assert!(podman.ok(&["exec", "c1", "id"]).starts_with("uid=0 gid=0"));
        assert_eq!(podman.run(&["exec", "c1", "exit", "7"]).code, 7);
        assert_eq!(podman.run(&["exec", "c1", "no-such-program"]).code, 127);
        podman.ok(&["exec", "--tty", "c1", "stty"]);
        assert!(podman.ok(&["top", "c1"]).contains("trap"));
        let stats: Value =
            serde_json::from_str(&podman.ok(&["stats", "--no-stream", "--format", "json", "c1"])).unwrap();
        assert!(stats[0]["mem_usage"].as_str().unwrap().contains("67.11MB"), "{stats}");
        podman.ok(&["pause", "c1"]);
        assert_eq!(podman.ok(&["inspect", "--format", "{{.State.Status}}", "c1"]), "paused\n");
        podman.ok(&["unpause", "c1"]);
        podman.ok(&["stop", "c1"]);
        assert_eq!(podman.ok(&["inspect", "--format", "{{.State.ExitCode}}", "c1"]), "5\n");
        assert!(podman.ok(&["logs", "c1"]).contains("TERM"));
        podman.ok(&["start", "c1"]);
        podman.ok(&["kill", "c1"]);
        podman.ok(&["rm", "--force", "c1"]);
    });
}

#[test]
fn podman_makes_a_pod_whose_containers_share_namespaces() {
    with_podman("podman_makes_a_pod_whose_containers_share_namespaces", |podman| {
        let parent = podman.cgroup_parent();
        let words = [
            "pod",
            "create",
            "--name",
            "p1",
            "--infra-image",
            IMAGE,
            "--infra-command",
            "/bin/sleep 1000",
            "--network",
            "none",
            "--cgroup-parent",
            &parent,
        ];
        podman.ok(&words);
        let ran = podman.run(&["run", "--rm", "--pod", "p1", IMAGE, "info"]);
        assert_eq!(ran.code, 0, "{}", ran.stderr());
        let info: Value = serde_json::from_str(&ran.stdout()).unwrap();
        assert_eq!(info["hostname"], "p1");
        let stats = podman.ok(&["pod", "stats", "--no-stream", "p1"]);
        assert!(stats.lines().any(|line| line.contains("-infra") && line.contains("kB")), "{stats}");
        podman.ok(&["pod", "pause", "p1"]);
        assert!(podman.ok(&["pod", "ps"]).contains("Paused"));
        podman.ok(&["pod", "unpause", "p1"]);
        podman.ok(&["pod", "rm", "--force", "--time", "0", "p1"]);
    });
}

#[test]
fn podman_gives_a_container_ids_and_limits_of_its_own() {
    with_podman("podman_gives_a_container_ids_and_limits_of_its_own", |podman| {
        let maps = ["--rm", "--uidmap", "0:100000:1000", "--gidmap", "0:100000:1000", "--user", "5:6"];
        let ran = podman.container(&maps, &["info"]);
        assert_eq!(ran.code, 0, "{}", ran.stderr());
        let info: Value = serde_json::from_str(&ran.stdout()).unwrap();
        assert_eq!((&info["uid"], &info["gid"]), (&serde_json::json!(5), &serde_json::json!(6)));
        assert!(info["uid_map"].as_str().unwrap().contains("100000"), "{}", info["uid_map"]);
        let flags = ["--rm", "--read-only", "--read-only-tmpfs=false", "--tmpfs", "/kept:size=1m"];
        assert_eq!(podman.container(&flags, &["write", "/kept/x", "y"]).code, 0);
        assert_ne!(podman.container(&flags, &["write", "/x", "y"]).code, 0);
    });
}
