//! A bundle's filter of system calls: its program, its flags, and who is asked where it says `SCMP_ACT_NOTIFY`.
//! `seccomp(2)`, `seccomp_unotify(2)`.

use std::path::Path;

use berth_launch::v1 as launch;
use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompAction, LinuxSeccompFilterFlag, Spec};
use serde_json::{Value, json};

use super::{super::seccomp, refused};
use crate::Result;

/// The flags that a profile may have.
pub const FLAGS: &[&str] = &[
    "SECCOMP_FILTER_FLAG_LOG",
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
    "SECCOMP_FILTER_FLAG_TSYNC",
    "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV",
];

#[derive(Debug, Default)]
pub struct Filter {
    /// Empty: none.
    pub program: Vec<u8>,
    pub flags: u32,
}

/// Whose notifications go to the listener.
#[derive(Debug, Clone, Copy)]
pub enum Asker {
    Init,
    /// A process beside init, which has this pid.
    Beside {
        init: i32,
    },
}

/// Compiles the spec's profile, where it has one.
pub fn filter(spec: &Spec) -> Result<Filter> {
    let Some(profile) = profile(spec) else { return Ok(Filter::default()) };
    Ok(Filter { program: seccomp::compile(profile)?, flags: flags(profile)? })
}

/// Where a process's notifications go, and what is told of it there; none where the profile asks nobody.
pub fn listener(
    spec: &Spec,
    id: &str,
    bundle: &Path,
    asker: &Asker,
) -> Result<Option<launch::SeccompListener>> {
    let Some(profile) = profile(spec).filter(|profile| seccomp::notifies(profile)) else { return Ok(None) };
    may_ask(profile)?;
    let path = profile.listener_path().as_deref().filter(|path| path.is_absolute());
    let path = path.and_then(Path::to_str).ok_or_else(|| {
        refused("linux.seccomp.listenerPath", "SCMP_ACT_NOTIFY needs the absolute path of a socket")
    })?;
    let state = process_state(spec, profile.listener_metadata().as_deref(), id, bundle, asker);
    Ok(Some(launch::SeccompListener { path: path.to_owned(), state }))
}

fn profile(spec: &Spec) -> Option<&LinuxSeccomp> {
    spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref())
}

/// What the launcher itself does between the filter and the program can't be asked about: nobody holds the listener yet.
fn may_ask(profile: &LinuxSeccomp) -> Result<()> {
    let asks = |action: LinuxSeccompAction| action == LinuxSeccompAction::ScmpActNotify;
    let mut rules = profile.syscalls().iter().flatten();
    let sends = |names: &[String]| names.iter().any(|name| name == "sendmsg");
    match asks(profile.default_action()) || rules.any(|rule| asks(rule.action()) && sends(rule.names())) {
        true => Err(refused(
            "linux.seccomp",
            "SCMP_ACT_NOTIFY can be neither the default action nor sendmsg's: the listener is sent by that call",
        )),
        false => Ok(()),
    }
}

/// `SECCOMP_FILTER_FLAG_*`.
fn flags(profile: &LinuxSeccomp) -> Result<u32> {
    const TSYNC_ESRCH: u32 = 1 << 4;
    let notifies = seccomp::notifies(profile);
    profile.flags().iter().flatten().try_fold(0, |all, flag| {
        Ok(all
            | match flag {
                // A thread's id as the answer has no place where that is the listener's.
                LinuxSeccompFilterFlag::SeccompFilterFlagTsync if notifies => 1 | TSYNC_ESRCH,
                LinuxSeccompFilterFlag::SeccompFilterFlagTsync => 1,
                LinuxSeccompFilterFlag::SeccompFilterFlagLog => 1 << 1,
                LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => 1 << 2,
                LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv if notifies => 1 << 5,
                LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => {
                    return Err(refused(
                        "linux.seccomp.flags",
                        "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV is about notifications, and no rule asks for one",
                    ));
                }
            })
    })
}

/// "The Container Process State" of `config-linux.md`, in pieces: the process's pid goes between each two.
fn process_state(
    spec: &Spec,
    metadata: Option<&str>,
    id: &str,
    bundle: &Path,
    asker: &Asker,
) -> Vec<Vec<u8>> {
    let metadata = metadata.map(|text| json!({ "metadata": text })).unwrap_or_else(|| json!({}));
    let status = match asker {
        Asker::Init => "creating",
        Asker::Beside { .. } => "running",
    };
    let [head, tail] = super::hooks::state_pieces(spec, id, bundle, status);
    let opening = without_end(&json!({ "ociVersion": spec.version(), "fds": ["seccompFd"] }));
    let metadata = match without_end(&metadata).trim_start_matches('{') {
        "" => String::new(),
        text => format!(",{text}"),
    };
    let pid = format!("{opening},\"pid\":");
    let state = format!("{metadata},\"state\":{head}");
    match asker {
        Asker::Init => vec![pid.into_bytes(), state.into_bytes(), format!("{tail}}}").into_bytes()],
        Asker::Beside { init } => vec![pid.into_bytes(), format!("{state}{init}{tail}}}").into_bytes()],
    }
}

fn without_end(object: &Value) -> String {
    let text = object.to_string();
    text.strip_suffix('}').unwrap_or(&text).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(seccomp: Value) -> Spec {
        serde_json::from_value(json!({"ociVersion": "1.2.0", "annotations": {"a": "}{"},
            "linux": {"seccomp": seccomp}}))
        .unwrap()
    }

    fn asking(name: &str) -> Value {
        json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/run/agent", "listenerMetadata": "m\"}",
            "syscalls": [{"names": [name], "action": "SCMP_ACT_NOTIFY"}]})
    }

    #[test]
    fn a_listener_is_told_of_the_process_and_its_container() {
        let told = |asker: Asker, pid: &str| -> Value {
            let found = listener(&spec(asking("mkdir")), "c1", Path::new("/b"), &asker).unwrap().unwrap();
            assert_eq!(found.path, "/run/agent");
            serde_json::from_slice(&found.state.join(pid.as_bytes())).unwrap()
        };
        let expected = |pid: i32, init: i32, status: &str| {
            json!({"ociVersion": "1.2.0", "fds": ["seccompFd"], "pid": pid, "metadata": "m\"}",
                "state": {"ociVersion": "1.2.0", "id": "c1", "status": status, "pid": init, "bundle": "/b",
                    "annotations": {"a": "}{"}}})
        };
        assert_eq!(told(Asker::Init, "7"), expected(7, 7, "creating"));
        assert_eq!(told(Asker::Beside { init: 7 }, "9"), expected(9, 7, "running"));
    }

    #[test]
    fn what_would_wait_for_ever_or_has_nobody_to_ask_is_refused() {
        let of = |profile: Value| listener(&spec(profile), "c1", Path::new("/b"), &Asker::Init);
        assert!(of(json!({"defaultAction": "SCMP_ACT_ALLOW"})).unwrap().is_none());
        let mut default = asking("mkdir");
        default["defaultAction"] = json!("SCMP_ACT_NOTIFY");
        let mut nowhere = asking("mkdir");
        nowhere["listenerPath"] = json!("agent");
        for bad in [asking("sendmsg"), default, nowhere] {
            assert!(of(bad.clone()).is_err(), "{bad}");
        }
    }

    #[test]
    fn flags_are_the_kernels() {
        let of = |flags: &[&str], name: &str| {
            let mut profile = asking(name);
            profile["flags"] = json!(flags);
            if name == "none" {
                profile["syscalls"] = json!([]);
            }
            filter(&spec(profile)).map(|filter| filter.flags)
        };
        assert_eq!(
            of(&["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW"], "none").unwrap(),
            0b110
        );
        assert_eq!(of(&["SECCOMP_FILTER_FLAG_TSYNC"], "none").unwrap(), 1);
        assert_eq!(of(&["SECCOMP_FILTER_FLAG_TSYNC"], "mkdir").unwrap(), 0b1_0001);
        assert_eq!(of(&["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"], "mkdir").unwrap(), 1 << 5);
        assert!(of(&["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"], "none").is_err());
    }
}
