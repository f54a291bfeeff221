//! From create to delete, and what is told of a container meanwhile.

use std::{fs, process::Command};

use berth_tests::{
    eventually,
    oci::{Console, Oci, read, text},
};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use serde_json::{Value, json};

fn parent_of(pid: i32) -> String {
    let status = read(format!("/proc/{pid}/status").as_ref());
    status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap_or("").trim().to_owned()
}

#[test]
fn a_container_is_created_started_killed_and_deleted() {
    let oci = Oci::new();
    oci.create("c1", &oci.config("c1", &["sleep", "1000"]));
    let pid = oci.pid("c1");
    let state = oci.state("c1");
    assert_eq!(
        (&state["status"], &state["pid"], &state["id"]),
        (&json!("created"), &json!(pid), &json!("c1"))
    );
    assert_eq!(state["bundle"], json!(oci.bundle()));
    assert_eq!(state["annotations"], json!({"dev.berth.test": "yes"}));
    assert_eq!(state["ociVersion"], "1.2.0");
    // The program does not run yet: what waits is the launcher's.
    assert!(!read(format!("/proc/{pid}/cmdline").as_ref()).contains("sleep"));

    oci.ok(&["start", "c1"]);
    assert_eq!(oci.status("c1"), "running");
    assert!(read(format!("/proc/{pid}/cmdline").as_ref()).contains("sleep"));
    assert!(oci.refused(&["start", "c1"]).contains("already running"));
    assert!(oci.refused(&["delete", "c1"]).contains("not stopped"));

    oci.ok(&["kill", "c1", "KILL"]);
    // Ended and not reaped is as good as gone.
    eventually("the end of init", || (oci.status("c1") == "stopped").then_some(()));
    assert_eq!(oci.state("c1")["pid"], 0);
    assert_eq!(oci.reap("c1"), 128 + 9);
    assert_eq!(oci.status("c1"), "stopped");
    assert!(oci.refused(&["kill", "c1", "KILL"]).contains("container not running"));
    assert!(oci.refused(&["start", "c1"]).contains("stopped"));
    oci.ok(&["delete", "c1"]);
    assert!(oci.refused(&["state", "c1"]).contains("does not exist"));
}

#[test]
fn init_is_its_callers_child_and_nothing_of_ours_stays_between() {
    let oci = Oci::new();
    let ran = oci.create("c1", &oci.config("c1", &["exit", "7"]));
    // The subreaper, where berth oci and the shim have left.
    assert_eq!(parent_of(oci.pid("c1")), std::process::id().to_string());
    oci.ok(&["start", "c1"]);
    assert_eq!(oci.reap("c1"), 7);
    assert_eq!(ran.stderr(), "");
    oci.ok(&["delete", "c1"]);
}

#[test]
fn a_container_writes_to_the_streams_of_its_create() {
    let oci = Oci::new();
    let ran = oci.start("c1", &oci.config("c1", &["echo", "to whom it concerns"]));
    assert_eq!(oci.reap("c1"), 0);
    assert_eq!(ran.stdout(), "to whom it concerns\n");
    oci.ok(&["delete", "c1"]);
}

#[test]
fn run_waits_hands_the_exit_code_on_and_removes_the_container() {
    let oci = Oci::new();
    oci.write(&oci.config("c1", &["exit", "42"]));
    assert_eq!(oci.run(&["run", "c1"]).code, 42);
    assert!(oci.refused(&["state", "c1"]).contains("does not exist"));

    oci.write(&oci.config("c1", &["crash"]));
    assert_eq!(oci.run(&["run", "c1"]).code, 128 + 11);

    oci.write(&oci.config("c1", &["true"]));
    oci.ok(&["run", "--keep", "c1"]);
    assert_eq!(oci.status("c1"), "stopped");
    oci.ok(&["delete", "c1"]);
}

#[test]
fn a_filter_need_not_allow_what_only_the_launch_does() {
    let oci = Oci::new();
    for no_new_privileges in [true, false] {
        let mut config = oci.config("c1", &["sleep", "1000"]);
        config["process"]["noNewPrivileges"] = json!(no_new_privileges);
        config["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": ["close_range", "setsid", "openat2", "pivot_root"], "action": "SCMP_ACT_KILL_PROCESS"}]});
        oci.start("c1", &config);
        assert_eq!(oci.status("c1"), "running");
        assert_eq!(oci.run(&["exec", "c1", "/bin/echo", "in"]).stdout, "in\n");
        oci.ok(&["kill", "c1", "KILL"]);
        assert_eq!(oci.reap("c1"), 128 + 9);
        oci.ok(&["delete", "c1"]);
    }
}

#[test]
fn run_in_the_foreground_hands_signals_on() {
    let oci = Oci::new();
    oci.write(&oci.config("c1", &["trap", "--exit", "5"]));
    let out = fs::File::create(oci.dir().join("trap")).unwrap();
    let mut child = oci.command(&["run", "c1"]).stdout(out).spawn().unwrap();
    eventually("the program to be ready", || read(&oci.dir().join("trap")).contains("ready").then_some(()));
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(5));
    assert!(read(&oci.dir().join("trap")).contains("TERM"));
}

#[test]
fn run_detached_returns_once_the_program_runs() {
    let oci = Oci::new();
    oci.write(&oci.config("c1", &["sleep", "1000"]));
    let pid_file = oci.dir().join("pid");
    oci.ok(&["run", "--detach", "--pid-file", text(&pid_file), "c1"]);
    oci.adopt("c1", &pid_file);
    assert_eq!(oci.status("c1"), "running");
    oci.ok(&["delete", "--force", "c1"]);
    assert_eq!(oci.reap("c1"), 128 + 9);
}

#[test]
fn run_of_a_program_that_is_not_there_leaves_nothing() {
    let oci = Oci::new();
    oci.write(&oci.config("c1", &["no-such-program"]));
    let finished = oci.run(&["run", "c1"]);
    assert_eq!(finished.code, 1, "{finished:?}");
    assert!(finished.stderr.contains("no-such-program"), "{finished:?}");
    assert_eq!(oci.zombies(), Vec::<i32>::new());
    assert!(oci.refused(&["state", "c1"]).contains("does not exist"));
}

#[test]
fn a_program_that_cannot_be_run_is_told_at_create() {
    let oci = Oci::new();
    for (program, why) in [
        ("no-such-program", "executable file not found in $PATH"),
        ("/no/such/program", "No such file or directory"),
        ("/etc/passwd", "permission denied"),
    ] {
        oci.write(&oci.config("c1", &[program]));
        let said = oci.refused(&["create", "c1"]);
        assert!(said.contains(why), "{program}: {said}");
        assert_eq!(oci.zombies(), Vec::<i32>::new());
    }
}

#[test]
fn a_terminal_comes_to_the_console_socket() {
    use std::io::Read;
    let oci = Oci::new();
    let mut config = oci.config("c1", &["stty"]);
    config["process"]["terminal"] = json!(true);
    config["process"]["consoleSize"] = json!({"height": 33, "width": 99});
    oci.write(&config);
    assert!(oci.refused(&["create", "c1"]).contains("--console-socket"));
    let console = Console::new(&oci);
    oci.create_with("c1", &config, &["--console-socket", console.path()]);
    let mut master = console.master();
    oci.ok(&["start", "c1"]);
    let mut bytes = [0u8; 64];
    let length = master.read(&mut bytes).unwrap();
    assert_eq!(String::from_utf8_lossy(&bytes[..length]), "33 99\r\n");
    assert_eq!(oci.reap("c1"), 0);
    oci.ok(&["delete", "c1"]);
}

#[test]
fn an_init_that_is_killed_from_outside_is_stopped() {
    let oci = Oci::new();
    oci.start("c1", &oci.config("c1", &["tree", "3"]));
    kill_process(Pid::from_raw(oci.pid("c1")).unwrap(), Signal::KILL).unwrap();
    assert_eq!(oci.reap("c1"), 128 + 9);
    assert_eq!(oci.status("c1"), "stopped");
    oci.ok(&["delete", "c1"]);
}

#[test]
fn a_created_container_can_be_killed_and_deleted_without_force() {
    let oci = Oci::new();
    oci.create("c1", &oci.config("c1", &["true"]));
    oci.ok(&["delete", "c1"]);
    assert_eq!(oci.reap("c1"), 128 + 9);
    oci.create("c1", &oci.config("c1", &["true"]));
    oci.ok(&["kill", "c1", "9"]);
    assert_eq!(oci.reap("c1"), 128 + 9);
    oci.ok(&["delete", "c1"]);
}

#[test]
fn force_ends_what_runs_and_does_not_mind_what_is_not_there() {
    let oci = Oci::new();
    oci.start("c1", &oci.config("c1", &["trap"]));
    oci.ok(&["delete", "--force", "c1"]);
    assert_eq!(oci.reap("c1"), 128 + 9);
    oci.ok(&["delete", "--force", "c1"]);
    assert!(oci.refused(&["delete", "c1"]).contains("does not exist"));
}

#[test]
fn kill_all_reaches_every_process() {
    let oci = Oci::new();
    let mut config = oci.config("c1", &["tree", "3"]);
    // The host's PID namespace: nobody ends with init.
    config["linux"]["namespaces"].as_array_mut().unwrap().retain(|namespace| namespace["type"] != "pid");
    let ran = oci.start("c1", &config);
    let children = eventually("the children's pids", || {
        let pids: Vec<i32> = ran.stdout().lines().filter_map(|line| line.parse().ok()).collect();
        (pids.len() == 3).then_some(pids)
    });
    let listed: Vec<i32> = serde_json::from_str(&oci.ok(&["ps", "--format", "json", "c1"])).unwrap();
    assert!(children.iter().all(|pid| listed.contains(pid)) && listed.contains(&oci.pid("c1")));
    oci.ok(&["kill", "--all", "c1", "KILL"]);
    assert_eq!(oci.reap("c1"), 128 + 9);
    // Orphans are ours, but those that init could still reap.
    let gone = |pid: i32| match waitpid(Pid::from_raw(pid), WaitOptions::NOHANG) {
        Ok(ended) => ended.map(drop),
        Err(_) => Some(()),
    };
    children.into_iter().for_each(|pid| eventually("a child to be gone", || gone(pid)));
    oci.ok(&["delete", "c1"]);
}

#[test]
fn real_time_signals_are_sent_by_name_and_number() {
    let oci = Oci::new();
    for (word, number) in [("SIGRTMIN+3", 37), ("64", 64)] {
        let mut config = oci.config("c1", &["sleep", "1000"]);
        // In a PID namespace of its own init ends by no signal that it has no handler for.
        config["linux"]["namespaces"].as_array_mut().unwrap().retain(|namespace| namespace["type"] != "pid");
        oci.start("c1", &config);
        oci.ok(&["kill", "c1", word]);
        assert_eq!(oci.reap("c1"), 128 + number);
        oci.ok(&["delete", "c1"]);
    }
    assert!(oci.refused(&["kill", "c1", "65"]).contains("exist"));
}

#[test]
fn list_and_ps_name_what_is_there() {
    let oci = Oci::new();
    oci.start("b", &oci.config("b", &["sleep", "1000"]));
    oci.create("a", &oci.config("a", &["true"]));
    assert_eq!(oci.ok(&["list", "--quiet"]), "a\nb\n");
    let listed: Value = serde_json::from_str(&oci.ok(&["list", "--format", "json"])).unwrap();
    let rows: Vec<(&Value, &Value)> =
        listed.as_array().unwrap().iter().map(|one| (&one["id"], &one["status"])).collect();
    assert_eq!(rows, [(&json!("a"), &json!("created")), (&json!("b"), &json!("running"))]);
    let table = oci.ok(&["list"]);
    assert!(table.starts_with("ID") && table.contains("running"), "{table}");
    let pids: Value = serde_json::from_str(&oci.ok(&["ps", "--format", "json", "b"])).unwrap();
    assert_eq!(pids, json!([oci.pid("b")]));
    let table = oci.ok(&["ps", "b"]);
    assert_eq!(table.lines().count(), 2, "{table}");
    assert!(table.contains("sleep 1000"), "{table}");
    // What ps refuses is no empty table.
    let told = oci.refused(&["ps", "b", "--no-such-flag"]);
    assert!(told.contains("run ps --no-such-flag"), "{told}");
}

#[test]
fn an_id_is_taken_once_and_no_path() {
    let oci = Oci::new();
    oci.create("c1", &oci.config("c1", &["true"]));
    assert!(oci.refused(&["create", "c1"]).contains("exists already"));
    assert_eq!(oci.status("c1"), "created");
    for bad in ["../c2", "a/b", ".."] {
        assert!(oci.refused(&["create", bad]).contains("invalid id"), "{bad}");
    }
}

#[test]
fn a_beginning_of_spec_runs() {
    let oci = Oci::new();
    let directory = oci.dir().join("begun");
    fs::create_dir(&directory).unwrap();
    oci.ok(&["spec", "--bundle", text(&directory)]);
    let path = directory.join("config.json");
    let mut config: Value = serde_json::from_str(&read(&path)).unwrap();
    assert!(oci.refused(&["spec", "--bundle", text(&directory)]).contains("exists"));
    config["process"]["terminal"] = json!(false);
    config["process"]["args"] = json!(["exit", "3"]);
    config["root"]["path"] = json!(oci.bundle().join("rootfs"));
    config["linux"]["cgroupsPath"] = json!(oci.cgroup("c1"));
    fs::write(&path, config.to_string()).unwrap();
    let finished = oci.run(&["run", "--bundle", text(&directory), "c1"]);
    assert_eq!(finished.code, 3, "{finished:?}");
}

#[test]
fn called_as_berth_oci_it_is_the_same() {
    let oci = Oci::new();
    // A link beside the program would stay in the target directory: the name is argv[0]'s.
    use std::os::unix::process::CommandExt;
    let mut named = Command::new(berth_tests::program("berth"));
    named.arg0("berth-oci");
    for mut command in [named, Command::new(berth_tests::program("berth-oci"))] {
        let output = command.arg("--version").output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.starts_with("berth-oci version ") && text.contains("\nspec: 1."), "{text}");
        assert_eq!(text, oci.ok(&["--version"]));
    }
}
