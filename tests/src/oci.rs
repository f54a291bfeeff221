//! `berth oci` as a supervisor outside drives it: bundles from the fixtures' image, a root of its own, and the test's process
//! as the subreaper that a container's init is left to.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Write,
    os::unix::{fs::FileTypeExt, net::UnixListener},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Mutex, Once,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use serde_json::{Value, json};

use crate::{
    images, leaks,
    place::Place,
    poll::{BOUND, eventually, until},
    programs::program,
    tool::Finished,
};

/// How long what was killed may take to be gone.
const PATIENCE: Duration = Duration::from_secs(5);

/// A root for containers, and a bundle that each config is written to.
#[derive(Debug)]
pub struct Oci {
    place: Place,
    runs: AtomicU32,
    /// The inits that were not waited for yet, by container.
    inits: Mutex<BTreeMap<String, i32>>,
}

/// A line that has ended; its streams are files, since a container's process may hold them still.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    out: PathBuf,
    err: PathBuf,
}

impl Ran {
    /// What was written to standard output up to now.
    pub fn stdout(&self) -> String {
        read(&self.out)
    }

    pub fn stderr(&self) -> String {
        read(&self.err)
    }
}

impl Oci {
    /// Makes the bundle, and the test's process a subreaper.
    pub fn new() -> Self {
        static SUBREAPER: Once = Once::new();
        SUBREAPER.call_once(|| {
            rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
                .expect("become a subreaper");
        });
        let place = Place::claim();
        let rootfs = place.dir.join("bundle/rootfs");
        fs::create_dir_all(&rootfs).expect("make a bundle");
        fs::create_dir_all(place.state()).expect("make a root");
        let built = images::base().build().expect("build the fixture's image");
        for layer in &built.archives {
            unpack(layer, &rootfs);
        }
        Self { place, runs: AtomicU32::new(0), inits: Mutex::default() }
    }

    pub fn dir(&self) -> &Path {
        &self.place.dir
    }

    pub fn bundle(&self) -> PathBuf {
        self.place.dir.join("bundle")
    }

    /// Where the containers' states are.
    pub fn root(&self) -> PathBuf {
        self.place.state().join("oci")
    }

    /// The cgroup that containers of `config` are in, absolute below each hierarchy.
    pub fn cgroup(&self, id: &str) -> String {
        format!("{}/{id}", self.place.cgroup_parent)
    }

    /// A config.json of the usual kind that runs these words.
    pub fn config(&self, id: &str, args: &[&str]) -> Value {
        let capabilities = json!(["CAP_KILL", "CAP_CHOWN"]);
        json!({
            "ociVersion": "1.2.0",
            "process": {
                "user": {"uid": 0, "gid": 0}, "args": args, "env": ["PATH=/bin"], "cwd": "/",
                "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
                "noNewPrivileges": true,
            },
            "root": {"path": "rootfs"},
            "hostname": "box",
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
                {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
                    "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]},
            ],
            "annotations": {"dev.berth.test": "yes"},
            "linux": {
                "cgroupsPath": self.cgroup(id),
                "namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"},
                    {"type": "network"}],
            },
        })
    }

    /// Writes the bundle's config.json.
    pub fn write(&self, config: &Value) {
        let text = serde_json::to_vec_pretty(config).expect("JSON is written");
        fs::write(self.bundle().join("config.json"), text).expect("write config.json");
    }

    /// `berth oci` with these words, in the bundle's directory and with files for streams.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(program("berth"));
        command.arg("oci").arg("--root").arg(self.root()).args(words);
        command.current_dir(self.bundle()).env("BERTH_TESTS_PLACE", &self.place.name);
        command.env_remove("NOTIFY_SOCKET").env_remove("LISTEN_FDS").stdin(Stdio::null());
        command
    }

    /// Runs a command and waits for its end.
    pub fn finish(&self, command: Command) -> Ran {
        self.finish_within(command, BOUND)
    }

    /// The same for one that may take longer than ours do.
    pub fn finish_within(&self, mut command: Command, bound: Duration) -> Ran {
        let number = self.runs.fetch_add(1, Ordering::Relaxed);
        let file = |kind: &str| self.place.dir.join(format!("{kind}-{number}"));
        let (out, err) = (file("out"), file("err"));
        let open = |path: &Path| File::create(path).expect("make a file for a stream");
        let mut child = command.stdout(open(&out)).stderr(open(&err)).spawn().expect("start berth oci");
        let status = until(bound, || child.try_wait().expect("wait for it"));
        let status = status.unwrap_or_else(|| panic!("waited {bound:?} in vain for {command:?} to end"));
        let code = status.code().unwrap_or_else(|| panic!("{command:?}: {status}"));
        Ran { code, out, err }
    }

    pub fn run(&self, words: &[&str]) -> Finished {
        let ran = self.finish(self.command(words));
        Finished { code: ran.code, stdout: ran.stdout(), stderr: ran.stderr() }
    }

    /// Runs a line that has to succeed, and returns what it printed.
    pub fn ok(&self, words: &[&str]) -> String {
        let finished = self.run(words);
        assert_eq!(finished.code, 0, "berth oci {}: {finished:?}", words.join(" "));
        finished.stdout
    }

    /// Runs a line that has to fail, and returns why.
    pub fn refused(&self, words: &[&str]) -> String {
        let finished = self.run(words);
        assert_ne!(finished.code, 0, "berth oci {}: {finished:?}", words.join(" "));
        finished.stderr
    }

    /// Creates a container; its init is then our child. The streams of the line are the container's.
    pub fn create(&self, id: &str, config: &Value) -> Ran {
        self.create_with(id, config, &[])
    }

    /// The same with more flags.
    pub fn create_with(&self, id: &str, config: &Value, flags: &[&str]) -> Ran {
        self.write(config);
        let pid_file = self.place.dir.join(format!("{id}.pid"));
        let words = [&["create", "--pid-file", text(&pid_file)], flags, &[id]].concat();
        let ran = self.finish(self.command(&words));
        assert_eq!(ran.code, 0, "create {id}: {}", ran.stderr());
        self.adopt(id, &pid_file);
        ran
    }

    /// Takes the process that a pid file names as a container's init.
    pub fn adopt(&self, id: &str, pid_file: &Path) {
        let pid = read(pid_file).parse().expect("a pid file holds a pid and nothing else");
        self.inits.lock().expect("no holder panics").insert(id.to_owned(), pid);
    }

    /// Creates and starts.
    pub fn start(&self, id: &str, config: &Value) -> Ran {
        let ran = self.create(id, config);
        self.ok(&["start", id]);
        ran
    }

    pub fn pid(&self, id: &str) -> i32 {
        *self.inits.lock().expect("no holder panics").get(id).expect("it was created")
    }

    /// Waits for a container's init as its parent does; its exit code, 128 + n for signal n.
    pub fn reap(&self, id: &str) -> i32 {
        let pid = self.inits.lock().expect("no holder panics").remove(id).expect("it was created");
        reap(pid)
    }

    pub fn state(&self, id: &str) -> Value {
        serde_json::from_str(&self.ok(&["state", id])).expect("state prints JSON")
    }

    pub fn status(&self, id: &str) -> String {
        self.state(id)["status"].as_str().expect("a state has a status").to_owned()
    }

    /// The ended processes of our containers that nobody has reaped.
    pub fn zombies(&self) -> Vec<i32> {
        let all = leaks::processes_in(&self.place.name);
        all.into_iter().filter(|pid| state_letter(*pid) == Some('Z')).collect()
    }

    /// Kills and reaps whatever a failed test has left: the next that has this place's name is not to find it.
    fn put_away(&self) {
        until(PATIENCE, || {
            let left = leaks::processes_in(&self.place.name);
            for pid in left.iter().filter_map(|pid| Pid::from_raw(*pid)) {
                // One that is somebody else's child is that one's to reap.
                kill_process(pid, Signal::KILL).ok();
                waitpid(Some(pid), WaitOptions::NOHANG).ok();
            }
            left.is_empty().then_some(())
        });
    }

    /// Removes the empty cgroups that podman makes beside ours and leaves: conmon's and a pod's.
    pub fn without_podmans_cgroups(&self) {
        until(PATIENCE, || {
            let left: Vec<PathBuf> =
                leaks::cgroups_of(&self.place).into_iter().filter(|path| is_podmans(path)).collect();
            left.iter().for_each(|path| {
                // One with something in it is told by the look for leaks.
                fs::remove_dir(path).ok();
            });
            left.is_empty().then_some(())
        });
    }

    fn clear_away(&self) {
        for entry in fs::read_dir(self.root()).into_iter().flatten().flatten() {
            self.ok(&["delete", "--force", &entry.file_name().to_string_lossy()]);
        }
        let inits = std::mem::take(&mut *self.inits.lock().expect("no holder panics"));
        inits.into_values().for_each(|pid| {
            reap(pid);
        });
    }
}

impl Default for Oci {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Oci {
    fn drop(&mut self) {
        let failing = std::thread::panicking();
        // What can't be cleared away in order must not keep the rest from being swept.
        let cleared = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            self.clear_away();
            leaks::find(&self.place)
        }));
        self.put_away();
        leaks::sweep(&self.place);
        if failing {
            return;
        }
        match cleared {
            Ok(left) if left.is_empty() => {}
            Ok(left) => panic!("left behind:\n  {}", left.join("\n  ")),
            Err(_) => panic!("the containers could not be cleared away"),
        }
    }
}

/// Waits for a child that is not of std's; its exit code, 128 + n for signal n.
pub fn reap(pid: i32) -> i32 {
    let child = Pid::from_raw(pid).expect("a pid is above 0");
    let (_, status) = eventually(&format!("process {pid} to end"), || {
        waitpid(Some(child), WaitOptions::NOHANG)
            .unwrap_or_else(|errno| panic!("process {pid} is no child: {errno}"))
    });
    status.exit_status().or(status.terminating_signal().map(|signal| 128 + signal)).expect("it has ended")
}

/// R, S, Z and the like, `proc_pid_stat(5)`.
pub fn state_letter(pid: i32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.trim_start().chars().next()
}

/// A path as a word of a line.
pub fn text(path: &Path) -> &str {
    path.to_str().expect("our paths are UTF-8")
}

/// What a file holds; empty where it isn't there.
pub fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// A console socket, and the terminal that comes to it.
#[derive(Debug)]
pub struct Console {
    path: PathBuf,
    listener: UnixListener,
}

impl Console {
    pub fn new(oci: &Oci) -> Self {
        let path = oci.dir().join("console");
        let listener = UnixListener::bind(&path).expect("bind a console socket");
        Self { path, listener }
    }

    pub fn path(&self) -> &str {
        text(&self.path)
    }

    /// The pty's master.
    pub fn master(&self) -> File {
        use std::{io::IoSliceMut, mem::MaybeUninit};

        use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
        let (connection, _) = self.listener.accept().expect("accept at the console socket");
        let mut bytes = [0u8; 64];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC;
        recvmsg(&connection, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, flags)
            .expect("take a terminal");
        let master = ancillary.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        let master = File::from(master.expect("the message carries a terminal"));
        assert!(master.metadata().expect("look at the terminal").file_type().is_char_device());
        master
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        // The directory goes anyway.
        fs::remove_file(&self.path).ok();
    }
}

/// A pod's is named by its 64 digits.
fn is_podmans(cgroup: &Path) -> bool {
    let name = cgroup.file_name().unwrap_or_default().to_string_lossy();
    name == "conmon" || name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn unpack(layer: &[u8], rootfs: &Path) {
    let mut tar = Command::new("tar");
    tar.args(["-x", "-f", "-", "-C"]).arg(rootfs).stdin(Stdio::piped());
    let mut child = tar.spawn().expect("start tar");
    let mut input = child.stdin.take().expect("it was piped");
    input.write_all(layer).expect("write to tar");
    drop(input);
    assert!(child.wait().expect("wait for tar").success(), "unpack the fixture's image");
}
