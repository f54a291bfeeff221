//! Containers that an OCI runtime of the host makes: its command line, runc's, between our streams and its processes.
//!
//! ```text
//! create: mount root and images ── config.json ── `RUNTIME create` ──> init waits in the runtime's hands, our child
//! gate:   `RUNTIME start`      exec: process.json ── `RUNTIME exec --detach` ──> our child      end: `RUNTIME delete`
//! ```
//!
//! What a runtime leaves behind becomes our child, as we are a subreaper: its end is learnt as any other's. The mounts
//! have names on the host, so that volumes propagate as they are asked to; they go with `clean`, and whoever removes the
//! container's directory looks for them.

use std::{
    fs,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use berth_launch::v1::{Cgroup, ContainerPlan, Exec, Piece, Runtime, Step, mount, piece};
use rustix::{
    fs::{CWD, Mode, OFlags, open},
    mount::{MoveMountFlags, UnmountFlags, move_mount, unmount},
    process::{Pid, PidfdFlags, Signal, pidfd_open},
};

use super::{
    Created, Execed, Gate, Stdio,
    command::{Command, Console},
    exec as beside,
    failure::{At, Result, fail},
    mounts, overlay, prepare,
    root::{self, Root},
    start_time, streams, user,
    user::Resolved,
};

const ROOTFS: &str = "rootfs";
const VOLUMES: &str = "volumes";
const DOCUMENT: &str = "config.json";
const PID: &str = "pid";

/// Brings a container's init to where the runtime's `start` lets it go. Nothing is left after a failure.
pub fn create(plan: &ContainerPlan, runtime: &Runtime) -> Result<Created> {
    // Before anything of the runtime's can be left by its parent.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).at(Step::Runtime, "subreaper")?;
    let made = try_create(plan, runtime);
    if made.is_err() {
        clean(plan);
    }
    made
}

fn try_create(plan: &ContainerPlan, runtime: &Runtime) -> Result<Created> {
    let root = mount_root(plan)?;
    mount_images(plan)?;
    let process = plan.process.clone().unwrap_or_default();
    let who = user::resolve(&root, &process.user.clone().unwrap_or_default())?;
    drop(root);
    fs::write(DOCUMENT, filled(&runtime.document, &who)).at(Step::Runtime, DOCUMENT)?;
    let (ours, theirs) = streams(plan)?;
    let console = Console::of(&process)?;
    let mut command = Command::new(runtime, "create");
    command.args(["--bundle", plan.dir.as_str(), "--pid-file", PID]);
    command.console(console.as_ref()).arg(&plan.id);
    command.streams(theirs).run()?;
    let pid = read_pid(PID)?;
    let pidfd = own(pid, &runtime.program)?;
    enter(&plan.cgroup.clone().unwrap_or_default(), pid)?;
    let tty = console.map(Console::receive).transpose()?;
    Ok(Created {
        pid,
        start_time: start_time(pid),
        pidfd,
        stdio: Stdio { tty, ..ours },
        uid: who.uid,
        gid: who.gid,
        groups: who.groups,
        warnings: Vec::new(),
        gate: Gate::Runtime(runtime.clone(), plan.id.clone()),
    })
}

/// Lets init execute its program.
pub fn start(runtime: &Runtime, id: &str) -> Result<()> {
    Command::new(runtime, "start").arg(id).run()
}

/// Sends a signal by the runtime: of one that has a kernel of its own, init's pid is not the program's.
pub fn kill(runtime: &Runtime, id: &str, signal: Signal) -> Result<()> {
    Command::new(runtime, "kill").arg(id).arg(signal.as_raw().to_string()).run()
}

/// Starts a process beside init. `fds` are its streams in order, as far as the request says it has them.
pub fn exec(plan: &ContainerPlan, runtime: &Runtime, exec: &Exec, fds: Vec<OwnedFd>) -> Result<Execed> {
    let process = beside::inherit(plan, exec)?;
    let root = Root::new(directory(Path::new(ROOTFS))?);
    let who = user::resolve(&root, &process.user.clone().unwrap_or_default())?;
    drop(root);
    let named = |kind: &str| PathBuf::from(format!("exec-{}.{kind}", exec.exec_id));
    let (document, pid_file) = (named("json"), named(PID));
    let cgroup = beside::own_cgroup(plan, exec)?;
    let started = (|| {
        fs::write(&document, filled(&exec.document, &who)).at(Step::Runtime, &document)?;
        let given = if process.tty { None } else { Some(beside::streams(exec, fds)?) };
        let console = Console::of(&process)?;
        let mut command = Command::new(runtime, "exec");
        command.arg("--detach").arg("--process").arg(&document).arg("--pid-file").arg(&pid_file);
        command.console(console.as_ref()).arg(&plan.id);
        command.streams(given).within(cgroup.as_deref())?.run()?;
        let pid = read_pid(&pid_file)?;
        let pidfd = own(pid, &runtime.program)?;
        if let Some(cgroup) = &cgroup {
            // A runtime that knows of v2 has moved it out; what it has forked by now stays there. Ended is as good.
            fs::write(cgroup.join("cgroup.procs"), pid.to_string()).ok();
        }
        let master = console.map(Console::receive).transpose()?;
        Ok(Execed { pid, pidfd, master, cgroup: cgroup.clone() })
    })();
    for file in [&document, &pid_file] {
        // They are of no use any more, and go with the directory where they can't be removed now.
        fs::remove_file(file).ok();
    }
    if let (Err(_), Some(cgroup)) = (&started, &cgroup) {
        // The failure is the story; an empty group that stays goes with the container's.
        fs::remove_dir(cgroup).ok();
    }
    started
}

/// Has the runtime forget the container, and lets go of what is mounted for it. What goes wrong is only said.
pub fn clean(plan: &ContainerPlan) {
    let Some(runtime) = &plan.runtime else { return };
    // Its root is for this container alone: whatever is there is of it, a directory as runc's or files as runsc's.
    let is_known = fs::read_dir(&runtime.root).is_ok_and(|mut entries| entries.next().is_some());
    if is_known && let Err(failure) = Command::new(runtime, "delete").arg("--force").arg(&plan.id).run() {
        crate::complain!("berth-shim: {}: {}", failure.object, super::cause(&failure));
    }
    let volumes = fs::read_dir(VOLUMES).into_iter().flatten().flatten().map(|entry| entry.path());
    for place in volumes.chain([PathBuf::from(ROOTFS)]) {
        // Not mounted is as good; what is busy goes with its last user.
        unmount(&place, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW).ok();
    }
}

/// Mounts the root at its place and opens it.
fn mount_root(plan: &ContainerPlan) -> Result<Root> {
    let missing = || fail(Step::Plan, ROOTFS, 0, "the plan has none");
    let tree = prepare::rootfs_mount(plan.rootfs.as_ref().ok_or_else(missing)?, None)?;
    fs::create_dir_all(ROOTFS).at(Step::Rootfs, ROOTFS)?;
    place(&tree, Path::new(ROOTFS))?;
    Ok(Root::new(tree))
}

/// Mounts what the document binds from `volumes`.
fn mount_images(plan: &ContainerPlan) -> Result<()> {
    for (n, mount) in plan.mounts.iter().enumerate() {
        let Some(mount::From::Image(image)) = &mount.from else { continue };
        let at = root::path(&mount.destination);
        let lowers =
            image.overlay.as_ref().ok_or_else(|| fail(Step::Plan, at, 0, "an image without layers"))?;
        let tree = overlay::mount(lowers, None, None, None).map_err(|failure| prepare::about(failure, at))?;
        let here = Path::new(VOLUMES).join(n.to_string());
        fs::create_dir_all(&here).at(Step::Mount, &here)?;
        let part = match image.sub_path.is_empty() {
            true => tree,
            false => mounts::part_of(&tree, root::path(&image.sub_path), &here, at)?,
        };
        let is_directory =
            rustix::fs::fstat(&part).at(Step::Mount, at)?.st_mode & libc::S_IFMT == libc::S_IFDIR;
        if !is_directory {
            fs::remove_dir(&here).and_then(|()| fs::write(&here, "")).at(Step::Mount, &here)?;
        }
        place(&part, &here)?;
    }
    Ok(())
}

fn place(tree: &OwnedFd, at: &Path) -> Result<()> {
    move_mount(tree, "", CWD, at, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).at(Step::Rootfs, at)
}

fn directory(path: &Path) -> Result<OwnedFd> {
    open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).at(Step::Rootfs, path)
}

/// A child's pidfd, by the number that the runtime wrote.
fn own(pid: i32, program: &str) -> Result<OwnedFd> {
    let pid = Pid::from_raw(pid)
        .ok_or_else(|| fail(Step::Runtime, program, 0, "it wrote no process into its file"))?;
    pidfd_open(pid, PidfdFlags::empty()).at(Step::Runtime, program)
}

fn read_pid(file: impl AsRef<Path>) -> Result<i32> {
    let file = file.as_ref();
    let text = fs::read_to_string(file).at(Step::Runtime, file)?;
    text.trim().parse().map_err(|_| fail(Step::Runtime, file, 0, "the runtime wrote no number into it"))
}

/// On hybrid hosts runtimes know nothing of the v2 group that we count and kill by: init goes there while it is alone.
fn enter(group: &Cgroup, pid: i32) -> Result<()> {
    if group.v1.is_empty() || group.v2.is_empty() {
        return Ok(());
    }
    let processes = Path::new(&group.v2).join("cgroup.procs");
    fs::write(&processes, pid.to_string()).at(Step::CgroupJoin, &processes)
}

/// The document with who it is in its holes.
fn filled(document: &[Piece], who: &Resolved) -> Vec<u8> {
    let mut text = Vec::new();
    for piece in document {
        match &piece.piece {
            Some(piece::Piece::Text(bytes)) => text.extend_from_slice(bytes),
            Some(piece::Piece::Hole(hole)) => text.extend(answer(*hole, who).into_bytes()),
            None => {}
        }
    }
    text
}

fn answer(hole: i32, who: &Resolved) -> String {
    match piece::Hole::try_from(hole).unwrap_or_default() {
        piece::Hole::Unspecified => "null".into(),
        piece::Hole::Uid => who.uid.to_string(),
        piece::Hole::Gid => who.gid.to_string(),
        piece::Hole::Groups => who.groups.iter().map(u32::to_string).collect::<Vec<_>>().join(","),
        piece::Hole::Home => quoted(&format!("HOME={}", who.home)),
    }
}

/// A string of JSON. RFC 8259, section 7.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for one in text.chars() {
        match one {
            '"' | '\\' => quoted.extend(['\\', one]),
            control if u32::from(control) < 0x20 => {
                quoted.push_str(&format!("\\u{:04x}", u32::from(control)))
            }
            other => quoted.push(other),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_are_filled_and_a_hostile_home_stays_one_string() {
        let text = |text: &str| Piece { piece: Some(piece::Piece::Text(text.into())) };
        let hole = |hole: piece::Hole| Piece { piece: Some(piece::Piece::Hole(hole.into())) };
        let who = Resolved { uid: 7, gid: 8, groups: vec![8, 9], home: "/a\",\"LD_PRELOAD=x\\\u{1}".into() };
        let document = [
            text("{\"uid\":"),
            hole(piece::Hole::Uid),
            text(",\"gid\":"),
            hole(piece::Hole::Gid),
            text(",\"groups\":["),
            hole(piece::Hole::Groups),
            text("],\"env\":["),
            hole(piece::Hole::Home),
            text("]}"),
        ];
        let expected = r#"{"uid":7,"gid":8,"groups":[8,9],"env":["HOME=/a\",\"LD_PRELOAD=x\\\u0001"]}"#;
        assert_eq!(String::from_utf8(filled(&document, &who)).unwrap(), expected);
    }
}
