//! Which program runs, where and with what environment; all of it looked up inside the container.

use std::{
    ffi::{CStr, CString, OsStr},
    io,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use berth_launch::v1::{Failure, Process, Step};
use rustix::fs::{Access, AtFlags, FileType};

use super::{
    diagnose::diagnose,
    failure::{Result, fail},
    root::{self, Root},
    user::Resolved,
};

const DEFAULT_PATH: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

pub fn arguments(process: &Process) -> Result<Vec<CString>> {
    if process.args.is_empty() {
        return Err(fail(Step::Plan, "args", libc::EINVAL, "there is no command"));
    }
    strings(&process.args, "args")
}

/// The plan's environment, with HOME from passwd where it has none.
pub fn environment(process: &Process, who: &Resolved) -> Result<Vec<CString>> {
    let mut env = strings(&process.env, "env")?;
    if !process.env.iter().any(|var| var.starts_with(b"HOME=")) {
        env.extend(CString::new(format!("HOME={}", who.home)).ok());
    }
    Ok(env)
}

fn strings(bytes: &[Vec<u8>], what: &str) -> Result<Vec<CString>> {
    bytes
        .iter()
        .map(|bytes| {
            CString::new(bytes.as_slice())
                .map_err(|_| fail(Step::Plan, what, libc::EINVAL, "a NUL byte inside"))
        })
        .collect()
}

/// Makes a missing working directory with mode 0755, as image builders count on.
pub fn make_workdir(root: &Root, cwd: &[u8]) -> Result<()> {
    let path = root::path(cwd);
    if cwd.is_empty() {
        return Ok(());
    }
    match root.make_directories(path) {
        Ok(_) => Ok(()),
        Err(errno) => Err(workdir_failure(path, errno.raw_os_error())),
    }
}

pub fn enter_workdir(cwd: &[u8]) -> Result<()> {
    let path = if cwd.is_empty() { Path::new("/") } else { root::path(cwd) };
    rustix::process::chdir(path).map_err(|errno| workdir_failure(path, errno.raw_os_error()))?;
    // A directory that a descriptor of ours holds open, reached through /proc/self/fd, may lie outside (CVE-2024-21626).
    match rustix::process::getcwd(Vec::new()) {
        Ok(name) if name.to_bytes().starts_with(b"/") => Ok(()),
        _ => Err(fail(Step::Workdir, path, 0, "the working directory is outside of the container")),
    }
}

fn workdir_failure(path: &Path, errno: i32) -> Failure {
    let detail = match errno {
        libc::ENOTDIR => "the working directory, or one above it, is not a directory",
        libc::EACCES => "the container's user may not enter the working directory",
        libc::EROFS => "the working directory is missing and cannot be made on a read-only file system",
        libc::ENOENT => "the working directory is missing",
        _ => "",
    };
    fail(Step::Workdir, path, errno, detail)
}

/// Finds the program as a shell would: a name with a slash is a path, another is searched in PATH. The first executable
/// regular file wins; without one, EACCES where there was a file at all.
pub fn find(args: &[CString], env: &[CString]) -> Result<CString> {
    let name = args.first().map(|arg| arg.to_bytes()).unwrap_or_default();
    if name.is_empty() {
        return Err(fail(Step::Exec, "", libc::ENOENT, "the command is empty"));
    }
    if name.contains(&b'/') {
        return CString::new(name).map_err(|_| fail(Step::Plan, "args", libc::EINVAL, "a NUL byte inside"));
    }
    let search = env.iter().find_map(|var| var.to_bytes().strip_prefix(b"PATH=")).unwrap_or(DEFAULT_PATH);
    let mut denied = None;
    for directory in search.split(|&byte| byte == b':') {
        let directory = if directory.is_empty() { b"." } else { directory };
        let candidate: PathBuf = Path::new(OsStr::from_bytes(directory)).join(OsStr::from_bytes(name));
        let Ok(stat) = rustix::fs::stat(&candidate) else { continue };
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            continue;
        }
        let flags = AtFlags::EACCESS;
        if rustix::fs::accessat(rustix::fs::CWD, &candidate, Access::EXEC_OK, flags).is_ok() {
            return CString::new(candidate.as_os_str().as_bytes())
                .map_err(|_| fail(Step::Plan, "PATH", libc::EINVAL, "a NUL byte inside"));
        }
        denied.get_or_insert(candidate);
    }
    match denied {
        Some(file) => Err(fail(Step::Exec, &file, libc::EACCES, &diagnose(&file, libc::EACCES))),
        None => Err(fail(
            Step::Exec,
            OsStr::from_bytes(name),
            libc::ENOENT,
            &format!("there is no such program in PATH ({})", String::from_utf8_lossy(search)),
        )),
    }
}

/// Looks whether the program is there and may be executed, for those who ask for that before the start: an outside keeper's
/// callers tell from its create that a program is missing.
pub fn check(process: &Process, who: &Resolved) -> Result<()> {
    let (env, args) = (environment(process, who)?, arguments(process)?);
    enter_workdir(&process.cwd)?;
    let path = find(&args, &env)?;
    rustix::fs::accessat(rustix::fs::CWD, &path, Access::EXEC_OK, AtFlags::EACCESS)
        .map_err(|errno| failed(&path, &errno.into()))
}

/// What a failed execve means.
pub fn failed(path: &CStr, error: &io::Error) -> Failure {
    let path = Path::new(OsStr::from_bytes(path.to_bytes()));
    let errno = error.raw_os_error().unwrap_or(0);
    fail(Step::Exec, path, errno, &diagnose(path, errno))
}
