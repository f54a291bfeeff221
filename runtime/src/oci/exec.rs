//! The process of an exec: the container's own world, with what the caller says over it.

use berth_launch::v1 as launch;

use super::{Document, Exec, spec, user};
use crate::{Error, Kind, Result, error::Cause};

/// Compiles the process of an exec in a container of that document.
///
/// # Errors
/// `Invalid` for no command, a bad variable, user or directory.
pub fn exec_process(document: &Document, exec: &Exec) -> Result<launch::Process> {
    const OP: &str = "read exec";
    if exec.args.is_empty() {
        return Err(Error::invalid(OP, "command", "it is empty"));
    }
    let container = document.spec.process().as_ref();
    let mut env = exec.own_env.clone();
    if env.is_empty() {
        let told = container.and_then(|process| process.env().clone()).unwrap_or_default();
        env.extend(told.into_iter().map(String::into_bytes));
    }
    for var in &exec.env {
        if !var.contains(&b'=') || var.starts_with(b"=") || var.contains(&0) {
            let shown = String::from_utf8_lossy(var).into_owned();
            return Err(Error::invalid(OP, format!("{shown:?}"), "a variable has the form NAME=VALUE"));
        }
        spec::set(&mut env, var.clone());
    }
    if exec.tty && !env.iter().any(|var| var.starts_with(b"TERM=")) {
        env.push(b"TERM=xterm".to_vec());
    }
    let cwd = match (exec.cwd.as_str(), container) {
        ("", Some(process)) => process.cwd().to_string_lossy().into_owned(),
        ("", None) => "/".into(),
        (cwd, _) if cwd.starts_with('/') => cwd.to_owned(),
        (cwd, _) => return Err(Error::invalid(OP, format!("{cwd:?}"), "a working directory is absolute")),
    };
    let capabilities = match exec.privileged {
        true => {
            let every = u64::MAX >> 23;
            Some(launch::Capabilities {
                bounding: every,
                effective: every,
                permitted: every,
                inheritable: 0,
                ambient: 0,
            })
        }
        // As init's.
        false => None,
    };
    let filter = || {
        document.filter.as_ref().ok_or_else(|| {
            Error::new(Kind::Precondition, OP, "seccomp profile")
                .because(Cause("this berthd can't read what the container was made with".into()))
                .hint("make the container again")
        })
    };
    Ok(launch::Process {
        args: exec.args.iter().map(|arg| arg.clone().into_bytes()).collect(),
        env,
        cwd: cwd.into_bytes(),
        user: match exec.user.as_str() {
            "" => None,
            user => Some(user::parse(user)?),
        },
        capabilities,
        no_new_privileges: container.and_then(|process| process.no_new_privileges()).unwrap_or(false),
        seccomp: if exec.privileged { Vec::new() } else { filter()?.to_vec() },
        apparmor_profile: container
            .and_then(|process| process.apparmor_profile().clone())
            .unwrap_or_default(),
        selinux_label: container.and_then(|process| process.selinux_label().clone()).unwrap_or_default(),
        tty: exec.tty,
        rows: exec.rows,
        columns: exec.columns,
        ..launch::Process::default()
    })
}
