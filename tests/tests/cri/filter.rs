//! What a seccomp profile answers with the container's end is told: which system call, of which program, where the kernel
//! says so; and a signal is not taken for that.

use std::fs;

use berth_cri::v1 as cri;
use berth_tests::{Asked, Daemon, asked, skip};
use serde_json::{Value, json};

/// A profile with that answer to the removal of a file.
fn denying(daemon: &Daemon, action: &str) -> cri::SecurityProfile {
    let path = daemon.dir().join(format!("{action}.json"));
    let names = ["unlink", "unlinkat", "rmdir"];
    let profile = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{ "names": names, "action": action }],
    });
    fs::write(&path, profile.to_string()).unwrap();
    let kind = cri::security_profile::ProfileType::Localhost;
    cri::SecurityProfile { profile_type: kind.into(), localhost_ref: path.display().to_string() }
}

fn under(daemon: &Daemon, name: &str, action: &str, words: &[&str]) -> Asked {
    let profile = denying(daemon, action);
    asked(name, words).secured(|security| security.seccomp = Some(profile))
}

fn end_of(daemon: &Daemon, id: &str) -> String {
    let told: Value = serde_json::from_str(&daemon.berth_ok(&["explain", "-o", "json", id])).unwrap();
    let steps = told["stories"][0]["steps"].as_array().unwrap();
    let end = steps.iter().find(|step| step["what"] == "ended").unwrap();
    end["detail"].as_str().unwrap().to_owned()
}

fn audit_daemon_runs() -> bool {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    processes
        .map(|process| process.path().join("comm"))
        .any(|comm| fs::read_to_string(comm).is_ok_and(|name| name.trim() == "auditd"))
}

#[test]
fn a_call_that_a_profile_forbids_is_named_with_who_made_it() {
    const TEST: &str = "a_call_that_a_profile_forbids_is_named_with_who_made_it";
    if fs::File::open("/dev/kmsg").is_err() || audit_daemon_runs() {
        skip(TEST, "/dev/kmsg can't be read, or an audit daemon takes what would be written there");
        return;
    }
    let daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("filter");
    for action in ["SCMP_ACT_KILL_PROCESS", "SCMP_ACT_KILL"] {
        let name = action.to_ascii_lowercase().replace('_', "-");
        let id = daemon.launch(&pod, &under(&daemon, &name, action, &["rm", "/bin/true"])).unwrap();
        let status = daemon.exited(&id);
        assert_eq!((status.exit_code, status.reason.as_str()), (159, "Error"), "{status:?}");
        let said = "ended by SIGSYS: its seccomp profile forbids the system call unlink";
        assert!(status.message.starts_with(said), "{status:?}");
        assert!(status.message.contains(std::env::consts::ARCH), "{status:?}");
        assert!(
            status.message.contains("which process ") && status.message.contains(" (rm) made"),
            "{status:?}"
        );
        let told = end_of(&daemon, &id);
        assert!(told.ends_with(&status.message), "{told}");
    }
}

#[test]
fn where_the_kernel_does_not_tell_the_call_that_is_said() {
    let daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("trapped");
    let trapped = under(&daemon, "trapped", "SCMP_ACT_TRAP", &["rm", "/bin/true"]);
    let (status, _) = daemon.run_to_end(&pod, &trapped).unwrap();
    assert_eq!((status.exit_code, status.reason.as_str()), (159, "Error"), "{status:?}");
    let said = "ended by SIGSYS, by which its seccomp profile forbids a system call; which one, the kernel's log does not";
    assert!(status.message.starts_with(said), "{status:?}");
    // One that only refuses is no reason to end.
    let refused = under(&daemon, "refused", "SCMP_ACT_ERRNO", &["rm", "/bin/true"]);
    let (status, _) = daemon.run_to_end(&pod, &refused).unwrap();
    assert_eq!((status.exit_code, status.message.as_str()), (1, ""), "{status:?}");
}
