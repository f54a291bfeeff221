//! What a daemon may not leave behind: processes, mounts, cgroups, links, files. Found by names that only it has.

use std::{
    collections::HashSet,
    ffi::OsStr,
    fs,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use rustix::mount::{UnmountFlags, unmount};

use crate::{place::Place, poll::until};

/// The kernel takes links, mounts and cgroups down behind the last process that held them.
const PATIENCE: Duration = Duration::from_secs(15);

/// Names what is left of a place whose daemon has stopped. Waits a while for what is on its way out.
pub fn find(place: &Place) -> Vec<String> {
    patiently(|| look(place, None))
}

/// Names what a daemon that still runs and has nothing to run any more keeps, itself and its socket aside: what it
/// removes on its own, a container of `--rm`, may take a while.
pub fn find_beside(place: &Place, berthd: i32) -> Vec<String> {
    patiently(|| look(place, Some(berthd)))
}

fn patiently(look: impl Fn() -> Vec<String>) -> Vec<String> {
    let mut left = Vec::new();
    until(PATIENCE, || {
        left = look();
        left.is_empty().then_some(())
    });
    left
}

/// Removes by force whatever is there, so that a failed test does not disturb others.
pub fn sweep(place: &Place) {
    // What can't be removed now was told by `find` or by the failing test; the rest must go all the same.
    until(Duration::from_secs(5), || {
        let found = processes(&place.name);
        for process in &found {
            kill(Pid::from_raw(process.pid), Signal::SIGKILL).ok();
        }
        found.is_empty().then_some(())
    });
    for target in mount_points("/proc/self/mountinfo", place).into_iter().rev() {
        unmount(&target, UnmountFlags::DETACH).ok();
    }
    for directory in cgroups(place).into_iter().rev() {
        fs::remove_dir(directory).ok();
    }
    for link in links(place).iter().map(String::as_str).chain([place.bridge()]) {
        quietly(Command::new("ip").args(["link", "delete", link]));
    }
    for family in ["ip", "ip6"] {
        quietly(Command::new("nft").args(["delete", "table", family, &place.table()]));
    }
    fs::remove_dir_all(&place.dir).ok();
}

fn quietly(command: &mut Command) {
    // Absent already is as good; a missing program leaves what `find` will tell next time.
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().ok();
}

/// One look, a daemon that still runs and its socket aside.
pub fn look(place: &Place, berthd: Option<i32>) -> Vec<String> {
    let found = processes(&place.name);
    let others = found.iter().filter(|process| Some(process.pid) != berthd);
    let mut left: Vec<String> = others.map(|process| format!("process {}", process.told)).collect();
    left.extend(mounts(place).iter().map(|target| format!("mount {}", target.display())));
    // The parent itself is the harness's to remove: berthd may share it with others.
    let below = |directory: &PathBuf| !directory.ends_with(&place.name);
    left.extend(
        cgroups(place).iter().filter(|directory| below(directory)).map(|d| format!("cgroup {}", d.display())),
    );
    left.extend(links(place).iter().map(|link| format!("link {link}")));
    let socket = berthd.map(|_| place.socket());
    let files = files(place).into_iter().filter(|path| Some(path) != socket.as_ref());
    left.extend(files.map(|path| format!("file {}", path.display())));
    left
}

struct Process {
    pid: i32,
    told: String,
}

/// The pids of processes that have a word in their command line, environment, cgroups or open files.
pub fn processes_naming(word: &str) -> Vec<i32> {
    processes(word).iter().map(|process| process.pid).collect()
}

/// The pids of processes in cgroups that have a word in their path, ended ones too where a v2 hierarchy tells of them.
pub fn processes_in(word: &str) -> Vec<i32> {
    let entries = fs::read_dir("/proc").expect("list processes").flatten();
    entries
        .filter_map(|entry| {
            let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
            let cgroups = fs::read(entry.path().join("cgroup")).ok()?;
            contains(&cgroups, word.as_bytes()).then_some(pid)
        })
        .collect()
}

fn processes(name: &str) -> Vec<Process> {
    let own = std::process::id().to_string();
    let entries = fs::read_dir("/proc").expect("list processes").flatten();
    entries
        .filter_map(|entry| {
            let pid = entry.file_name().to_string_lossy().into_owned();
            let number: i32 = pid.parse().ok()?;
            let (dir, word) = (entry.path(), name.as_bytes());
            let has = |file: &str| fs::read(dir.join(file)).is_ok_and(|bytes| contains(&bytes, word));
            let links = |file: &str| {
                fs::read_link(dir.join(file)).is_ok_and(|path| contains(path.as_os_str().as_bytes(), word))
            };
            let opens = || {
                let files = fs::read_dir(dir.join("fd")).ok()?;
                let found = files.flatten().any(|file| {
                    fs::read_link(file.path()).is_ok_and(|path| contains(path.as_os_str().as_bytes(), word))
                });
                found.then_some(())
            };
            // The test itself may have a log open. Of a dead orphan nothing is left but what process 1 has to reap.
            let ours = pid != own
                && !is_dead_orphan(&dir)
                && (["cmdline", "environ", "cgroup"].into_iter().any(has)
                    || ["cwd", "root", "exe"].into_iter().any(links)
                    || opens().is_some());
            ours.then(|| Process { pid: number, told: describe(&dir, &pid) })
        })
        .collect()
}

/// Whether a process has ended and waits for process 1, which may be busy or know nothing of children.
fn is_dead_orphan(dir: &Path) -> bool {
    let stat = fs::read_to_string(dir.join("stat")).unwrap_or_default();
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    let mut fields = fields.split_whitespace();
    (fields.next(), fields.next()) == (Some("Z"), Some("1"))
}

fn describe(dir: &Path, pid: &str) -> String {
    let status = fs::read_to_string(dir.join("status")).unwrap_or_default();
    let field =
        |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("").trim().to_owned();
    let line = fs::read(dir.join("cmdline")).unwrap_or_default();
    let line = String::from_utf8_lossy(&line).replace('\0', " ");
    format!("{pid} {} ({}, parent {}): {line}", field("Name:"), field("State:"), field("PPid:"))
}

fn contains(bytes: &[u8], word: &[u8]) -> bool {
    // A number that goes on is another's: btt-12-1 and btt-12-10.
    let ends = |at: usize| !bytes.get(at + word.len()).is_some_and(u8::is_ascii_digit);
    bytes.windows(word.len()).enumerate().any(|(at, window)| window == word && ends(at))
}

/// Mount points below the directory, in our mount namespace and in those of processes of the place. Others that were made
/// meanwhile, by whoever works on this machine beside us, have copies of all mounts and are no concern of ours.
fn mounts(place: &Place) -> Vec<PathBuf> {
    let mut seen = HashSet::new();
    let mut found = mount_points("/proc/self/mountinfo", place);
    seen.extend(fs::read_link("/proc/self/ns/mnt").ok());
    for process in processes(&place.name) {
        let directory = Path::new("/proc").join(process.pid.to_string());
        let Ok(namespace) = fs::read_link(directory.join("ns/mnt")) else { continue };
        if seen.insert(namespace) {
            found.extend(mount_points(directory.join("mountinfo"), place));
        }
    }
    found
}

/// In the order of their mounting.
fn mount_points(table: impl AsRef<Path>, place: &Place) -> Vec<PathBuf> {
    // A process may end between two looks.
    let table = fs::read(table).unwrap_or_default();
    let target = |line: &[u8]| line.split(|byte| *byte == b' ').nth(4).map(<[u8]>::to_vec);
    let targets = table.split(|byte| *byte == b'\n').filter_map(target);
    targets
        .map(|target| PathBuf::from(OsStr::from_bytes(&target)))
        .filter(|target| target.starts_with(&place.dir))
        .collect()
}

/// The cgroups of a place below its parent.
pub fn cgroups_of(place: &Place) -> Vec<PathBuf> {
    cgroups(place).into_iter().filter(|directory| !directory.ends_with(&place.name)).collect()
}

/// Directories of the parent and below it, parents first, in every hierarchy.
fn cgroups(place: &Place) -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let root = |line: &str| {
        let kind = line.split_once(" - ")?.1;
        kind.starts_with("cgroup").then(|| line.split(' ').nth(4).map(PathBuf::from)).flatten()
    };
    let parents = table.lines().filter_map(root).map(|root| root.join(&place.name));
    parents.filter(|parent| parent.is_dir()).flat_map(|parent| directories(&parent)).collect()
}

fn directories(top: &Path) -> Vec<PathBuf> {
    let mut all = vec![top.to_owned()];
    let entries = fs::read_dir(top).into_iter().flatten().flatten();
    let below = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    all.extend(below.flat_map(|entry| directories(&entry.path())));
    all
}

/// The bridges of networks, whose aliases name the place, and the links on them and on the place's own bridge: every
/// pod's host end is one.
fn links(place: &Place) -> Vec<String> {
    let named = format!("{}: network ", place.bridge());
    let names = |directory: &Path| -> Vec<String> {
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    };
    let all = Path::new("/sys/class/net");
    let alias = |link: &String| fs::read_to_string(all.join(link).join("ifalias")).unwrap_or_default();
    let mut bridges: Vec<String> =
        names(all).into_iter().filter(|link| alias(link).starts_with(&named)).collect();
    let ports = |bridge: &str| names(&all.join(bridge).join("brif"));
    let mut found: Vec<String> = bridges.iter().flat_map(|bridge| ports(bridge)).collect();
    found.extend(ports(place.bridge()));
    found.append(&mut bridges);
    found
}

/// Files of pods and containers that outlived them. Images, locks and the daemon's own state stay.
fn files(place: &Place) -> Vec<PathBuf> {
    let own = ["lock", "leases", "leases.json", "pod_cidr", "last_reserved_ip.0", "last_reserved_ip.1"];
    let tops = [
        place.state(),
        place.root().join("pods"),
        place.root().join("containers"),
        place.root().join("logs"),
        place.root().join("network"),
        place.dir.join("cni/cache"),
        place.dir.join("cni/ipam"),
        place.root().join("tmp"),
    ];
    tops.iter()
        .flat_map(|top| everything(top))
        // What `berth explain` tells is kept for an hour after what it is about.
        .filter(|path| {
            !own.iter().any(|name| path.ends_with(name)) && !path.starts_with(place.state().join("stories"))
        })
        .collect()
}

/// What is no directory, and the directories that are named by an id.
fn everything(top: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in fs::read_dir(top).into_iter().flatten().flatten() {
        let path = entry.path();
        let name = entry.file_name();
        let id = name.len() == 64 && name.as_bytes().iter().all(u8::is_ascii_hexdigit);
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => {
                if id {
                    all.push(path.clone());
                }
                all.extend(everything(&path));
            }
            _ => all.push(path),
        }
    }
    all
}
