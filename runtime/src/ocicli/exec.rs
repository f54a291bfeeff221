//! `exec`: one more process in a container that runs.

use std::path::PathBuf;

use berth_launch::v1 as launch;
use oci_spec::runtime::{Process, Spec};
use serde_json::{Value, json};

use super::{
    Globals,
    birth::absolute,
    foreground::{self, Relay},
    groups,
    identity::{self, Identity},
    line::{Line, wrong},
    passed, rdt, shim, signals,
    state::{Container, Status, read, write_whole},
};
use crate::{Error, Kind, Result, error::Cause, oci};

pub fn exec(globals: &Globals, line: &Line) -> Result<u8> {
    let Some((id, command)) = line.words.split_first() else {
        return Err(wrong("container", "its id is missing".into()));
    };
    let container = globals.home.find(id)?;
    let may = |why: &str| {
        Err(Error::new(Kind::Precondition, "exec in container", id.as_str()).because(Cause(why.into())))
    };
    match container.status()? {
        Status::Running | Status::Created => {}
        Status::Paused if line.has("ignore-paused") => {}
        Status::Paused => return may("cannot exec in a paused container: resume it, or use --ignore-paused"),
        Status::Stopped => return may("cannot exec in a stopped container"),
        Status::Creating => return may("cannot exec in a container that is being created"),
    }
    let spec = container.spec()?;
    let asked = asked(&spec, line, command)?;
    let detached = line.has("detach");
    let console = line.last("console-socket").filter(|path| !path.is_empty()).map(absolute).transpose()?;
    let terminal = asked.terminal().unwrap_or(false);
    let relay = match terminal && !detached && console.is_none() {
        true => Some(Relay::new()?),
        false => None,
    };
    let console = relay.as_ref().map(Relay::path).or(console);
    match (terminal, &console) {
        (true, None) => {
            return Err(wrong("--console-socket", "a detached terminal needs somebody to hold it".into()));
        }
        (false, Some(_)) => return Err(wrong("--console-socket", "the process has no terminal".into())),
        _ => {}
    }
    let plan = plan(&container, &spec, &asked, line, console)?;
    let signals = (!detached).then(signals::take).transpose()?;
    // The shim and its process inherit it.
    container.state.resctrl.iter().try_for_each(|dir| rdt::enter(dir, 0))?;
    let ready = shim::launch("oneshot-exec", &plan, shim::enters(globals, &container.state.group()))?;
    ready.warnings.iter().for_each(|warning| globals.log.warn(warning));
    let process = Identity::new(ready.pid, ready.pid_start_time)?;
    if let Some(path) = line.last("pid-file").filter(|path| !path.is_empty()) {
        write_pid(path, &process)?;
    }
    match signals {
        None => Ok(0),
        Some(signals) => foreground::wait(&process, relay, None, signals),
    }
}

/// Tells the caller which process it is; one that nobody is told of does not stay.
fn write_pid(path: &str, process: &Identity) -> Result<()> {
    let written = absolute(path).and_then(|path| write_whole(&path, process.pid.to_string().as_bytes()));
    written.inspect_err(|_| {
        if let Ok(Some(handle)) = process.handle() {
            identity::end(&handle);
        }
        shim::reap();
    })
}

fn plan(
    container: &Container,
    spec: &Spec,
    asked: &Process,
    line: &Line,
    console: Option<PathBuf>,
) -> Result<launch::OutsideExec> {
    let mut process = oci::bundle_process(asked, spec)?;
    if let Some(affinity) = asked.exec_cpu_affinity() {
        let mask = |text: &Option<String>| text.as_deref().map_or(Ok(Vec::new()), oci::bundle_cpus);
        process.affinity = mask(affinity.initial())?;
        process.final_affinity = mask(affinity.cpu_affinity_final())?;
    }
    let state = &container.state;
    process.seccomp_listener =
        oci::listener(spec, &state.id, &state.bundle, &oci::Asker::Beside { init: state.init.pid })?;
    let needs = berth_launch::needs::process(&process);
    Ok(launch::OutsideExec {
        version: berth_launch::VERSION,
        needs,
        plan: Some(container.plan()?),
        pid: container.state.init.pid,
        pid_start_time: container.state.init.start_time,
        exec: Some(launch::Exec {
            exec_id: container.state.id.clone(),
            process: Some(process),
            ..launch::Exec::default()
        }),
        outside: Some(launch::Outside {
            start_socket: String::new(),
            console_socket: console.map(|path| path.to_string_lossy().into_owned()).unwrap_or_default(),
            preserve_fds: preserved(line)?,
        }),
        cgroup: Some(place(container, line)?),
    })
}

fn preserved(line: &Line) -> Result<u32> {
    let count = line.number("preserve-fds")?.unwrap_or(0);
    passed::are_open(count).map(|()| count)
}

/// The container's cgroup, or one below it; on v2, where it has handed its controllers on, the one that init is in.
fn place(container: &Container, line: &Line) -> Result<launch::Cgroup> {
    let mut group = container.state.group();
    for asked in line.all("cgroup") {
        let (controllers, path) = asked.split_once(':').unwrap_or(("", asked));
        let path = path.trim_start_matches('/');
        if path.split('/').any(|part| part == "..") || path.contains('\0') {
            return Err(wrong("--cgroup", format!("{asked:?} leads out of the container's cgroup")));
        }
        let wanted: Vec<&str> = controllers.split(',').filter(|name| !name.is_empty()).collect();
        for dir in group.v1.iter_mut().chain(&mut group.v2) {
            let own = dir.components().any(|part| {
                let names = part.as_os_str().to_string_lossy();
                names.split(',').any(|name| wanted.contains(&name))
            });
            if wanted.is_empty() || own {
                dir.push(path);
            }
        }
    }
    if let Some(dir) = &group.v2 {
        let handed_on =
            groups::read(&dir.join("cgroup.subtree_control"))?.is_some_and(|text| !text.trim().is_empty());
        let listing =
            groups::read(format!("/proc/{}/cgroup", container.state.init.pid).as_ref())?.unwrap_or_default();
        let own = listing.lines().find_map(|line| line.strip_prefix("0::"));
        if let (true, Some(own), Some(below)) = (handed_on, own, dir.file_name()) {
            let rest =
                own.split_once(&format!("/{}/", below.to_string_lossy())).map(|(_, rest)| rest.to_owned());
            group.v2 = rest.map(|rest| dir.join(rest)).or(group.v2);
        }
    }
    // Its device program is the container's.
    Ok(groups::planned(&group, Vec::new()))
}

/// The document of `--process`, or init's with what the flags say over it.
fn asked(spec: &Spec, line: &Line, command: &[String]) -> Result<Process> {
    if let Some(path) = line.last("process") {
        return oci::parse_process(&read(&absolute(path)?)?);
    }
    if command.is_empty() {
        return Err(wrong("command", "there is none, and no --process".into()));
    }
    let own = spec.process().as_ref().ok_or_else(|| wrong("container", "its spec has no process".into()))?;
    let failed = |error: serde_json::Error| wrong("process", error.to_string());
    let mut process = serde_json::to_value(own).map_err(failed)?;
    process["args"] = json!(command);
    process["terminal"] = json!(line.has("tty"));
    if let Some(cwd) = line.last("cwd") {
        process["cwd"] = json!(cwd);
    }
    let mut env: Vec<String> = own.env().clone().unwrap_or_default();
    for variable in line.all("env") {
        let Some((name, _)) = variable.split_once('=').filter(|(name, _)| !name.is_empty()) else {
            return Err(wrong("--env", format!("{variable:?} is not of the form NAME=VALUE")));
        };
        env.retain(|old| !old.strip_prefix(name).is_some_and(|rest| rest.starts_with('=')));
        env.push(variable.to_owned());
    }
    process["env"] = json!(env);
    if let Some(user) = line.last("user") {
        let (uid, gid) = user_of(user)?;
        process["user"]["uid"] = json!(uid);
        if let Some(gid) = gid {
            process["user"]["gid"] = json!(gid);
        }
    }
    let mut groups: Vec<u32> = own.user().additional_gids().clone().unwrap_or_default();
    for group in line.all("additional-gids") {
        groups.push(number("--additional-gids", group)?);
    }
    process["user"]["additionalGids"] = json!(groups);
    add_capabilities(&mut process, line);
    for (flag, key) in [("process-label", "selinuxLabel"), ("apparmor", "apparmorProfile")] {
        if let Some(text) = line.last(flag) {
            process[key] = json!(text);
        }
    }
    if line.has("no-new-privs") {
        process["noNewPrivileges"] = json!(true);
    }
    serde_json::from_value(process).map_err(failed)
}

fn add_capabilities(process: &mut Value, line: &Line) {
    for name in line.all("cap") {
        let upper = name.to_ascii_uppercase();
        let name = if upper.starts_with("CAP_") { upper } else { format!("CAP_{upper}") };
        for set in ["bounding", "effective", "permitted"] {
            let list = &mut process["capabilities"][set];
            match list.as_array_mut() {
                Some(names) if names.iter().any(|known| *known == json!(name)) => {}
                Some(names) => names.push(json!(name)),
                None => *list = json!([name]),
            }
        }
    }
}

/// `UID[:GID]`, digits and nothing else: a word that is taken for 0 would be root (CVE-2026-30892).
fn user_of(text: &str) -> Result<(u32, Option<u32>)> {
    match text.split_once(':') {
        Some((uid, gid)) => Ok((number("--user", uid)?, Some(number("--user", gid)?))),
        None => Ok((number("--user", text)?, None)),
    }
}

/// An id: digits that are a u32, but not the one that means "no change" to the kernel.
fn number(flag: &str, text: &str) -> Result<u32> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let id = text.parse::<u32>().ok().filter(|id| digits && *id != u32::MAX);
    id.ok_or_else(|| {
        wrong(flag, format!("{text:?} is no id of a user or group: it takes UID[:GID] in digits"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_digits_or_refused_and_never_root_by_mistake() {
        assert_eq!(user_of("1000").unwrap(), (1000, None));
        assert_eq!(user_of("1000:2").unwrap(), (1000, Some(2)));
        for bad in [
            "",
            "app",
            ":",
            "1000:",
            ":5",
            "1000:app",
            "0x10",
            "-1",
            "+1",
            " 1",
            "1 ",
            "4294967295",
            "4294967296",
            "1:2:3",
        ] {
            assert!(user_of(bad).is_err(), "{bad:?}");
        }
    }
}
