//! A shim dies between a container's output and its log, berthd with it perhaps: each line is there, once, in its place.

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
};

use berth_cri::v1 as cri;
use berth_tests::{Asked, Daemon, Pod, asked, eventually};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    faults::{each, each_by_itself},
    shim::skipped,
};

/// How often another shim has taken a container over.
fn takeovers(daemon: &Daemon, id: &str) -> usize {
    daemon.log().lines().filter(|line| line.contains("another took over") && line.contains(id)).count()
}

fn is_whole(daemon: &Daemon, pod: &Pod, asked: &Asked, lines: usize) {
    let log = daemon.log_of(pod, asked);
    let wrong: Vec<_> = (log.iter().enumerate())
        .filter(|(n, line)| !line.content.starts_with(&format!("line {:06} ", n + 1)) || line.partial)
        .take(3)
        .collect();
    assert!(wrong.is_empty() && log.len() == lines, "{} lines of {lines}; {wrong:?}", log.len());
}

fn lines(count: usize) -> String {
    (1..=count).map(|n| format!("line {n:06} {}\n", "x".repeat(30))).collect()
}

/// A container that writes what is in a file.
fn from(path: &Path) -> Asked {
    let file = cri::Mount {
        host_path: path.display().to_string(),
        container_path: "/numbered".into(),
        readonly: true,
        ..Default::default()
    };
    asked("from", &["cat", "/numbered"]).mount(file)
}

/// The state of containers in memory, as /run is. What is mounted is out of sight when this is dropped.
struct InMemory(PathBuf);

impl InMemory {
    /// Of no use while berthd runs or a container is there.
    fn mount(daemon: &Daemon, bytes: usize) -> Self {
        let target = daemon.state().join("containers");
        fs::create_dir_all(&target).unwrap();
        let options = std::ffi::CString::new(format!("size={bytes}")).unwrap();
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("tmpfs", &target, "tmpfs", flags, options.as_c_str()).unwrap();
        Self(target)
    }
}

impl Drop for InMemory {
    fn drop(&mut self) {
        rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH).unwrap();
    }
}

/// Kills both: berthd is stopped before, so that it does not see the shim's death.
fn die_together(daemon: &mut Daemon, shim_dies: impl FnOnce()) {
    kill(daemon.pid(), Signal::SIGSTOP).unwrap();
    shim_dies();
    daemon.kill9();
}

#[test]
fn a_torrent_outlives_its_shims() {
    if skipped("a_torrent_outlives_its_shims") {
        return;
    }
    const LINES: usize = 1_500_000;
    let mut daemon = Daemon::with_fixture();
    let pod = daemon.plain_pod("torrent");
    // From a file, so that it writes faster than a shim can take it away.
    let numbered = daemon.dir().join("numbered");
    fs::write(&numbered, lines(LINES)).unwrap();
    let torrent = from(&numbered);
    let id = daemon.launch(&pod, &torrent).unwrap();
    let path = daemon.log_path_of(&pod, &torrent);
    let killed = in_the_midst(&mut daemon, &id, &path, |daemon| kill_shim(daemon, &id));
    assert!(killed > 0, "it had ended before its shim was killed");
    assert_eq!(daemon.exited(&id).exit_code, 0);
    is_whole(&daemon, &pod, &torrent, LINES);
}

/// Lets them die up to five times while the container writes; how often they did.
fn in_the_midst(daemon: &mut Daemon, id: &str, log: &Path, mut die: impl FnMut(&mut Daemon)) -> u32 {
    let length = || fs::metadata(log).map_or(0, |log| log.len());
    for killed in 0..5 {
        // It has written since the last one died. A machine that kept us from it may have let it end.
        let before = length();
        let more = || (length() > before + 200_000).then_some(true);
        let over = || (daemon.status(id).unwrap().finished_at != 0).then_some(false);
        if !eventually("the log to grow", || more().or_else(over)) {
            return killed;
        }
        die(daemon);
    }
    5
}

/// Kills the shim that it has now, and waits for the next.
fn kill_shim(daemon: &Daemon, id: &str) {
    let before = takeovers(daemon, id);
    kill(shim_in(id).expect("it has a shim"), Signal::SIGKILL).unwrap();
    eventually("another shim to take over", || (takeovers(daemon, id) > before).then_some(()));
}

/// A shim works in its container's directory.
fn shim_in(id: &str) -> Option<Pid> {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok()).find_map(|pid| {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
        let cwd = fs::read_link(format!("/proc/{pid}/cwd")).ok()?;
        (name.starts_with("berth-shim") && cwd.to_string_lossy().contains(id)).then(|| Pid::from_raw(pid))
    })
}

#[test]
fn a_shim_may_die_at_every_point_on_the_way_into_the_log() {
    const TEST: &str = "a_shim_may_die_at_every_point_on_the_way_into_the_log";
    if skipped(TEST) {
        return;
    }
    const LINES: usize = 20_000;
    each(
        TEST,
        |name| name.starts_with("output."),
        |daemon, point| {
            let pod = daemon.plain_pod("output");
            let spam = asked("spam", &["spam", &LINES.to_string(), "0", "73"]);
            let id = daemon.launch(&pod, &spam).unwrap();
            assert_eq!(daemon.exited(&id).exit_code, 0, "{point}");
            assert_eq!(takeovers(daemon, &id), 1, "{point}");
            is_whole(daemon, &pod, &spam, LINES);
        },
    );
}

#[test]
fn a_torrent_outlives_its_shims_and_their_berthd() {
    if skipped("a_torrent_outlives_its_shims_and_their_berthd") {
        return;
    }
    const LINES: usize = 1_500_000;
    let mut daemon = Daemon::with_fixture();
    daemon.stop();
    let memory = InMemory::mount(&daemon, 16 << 20);
    daemon.up();
    let pod = daemon.plain_pod("torrent");
    let numbered = daemon.dir().join("numbered");
    fs::write(&numbered, lines(LINES)).unwrap();
    let torrent = from(&numbered);
    let id = daemon.launch(&pod, &torrent).unwrap();
    let path = daemon.log_path_of(&pod, &torrent);
    let killed = in_the_midst(&mut daemon, &id, &path, |daemon| {
        die_together(daemon, || kill(shim_in(&id).expect("it has a shim"), Signal::SIGKILL).unwrap());
        daemon.up();
    });
    assert!(killed > 0, "it had ended before its shim was killed");
    assert_eq!(daemon.exited(&id).exit_code, 0);
    is_whole(&daemon, &pod, &torrent, LINES);
    daemon.remove_all().unwrap();
    drop(memory);
}

#[test]
fn a_shim_and_berthd_may_die_together_at_every_point_on_the_way_into_the_log() {
    const TEST: &str = "a_shim_and_berthd_may_die_together_at_every_point_on_the_way_into_the_log";
    if skipped(TEST) {
        return;
    }
    const LINES: usize = 20_000;
    each_by_itself(
        TEST,
        |name| name.starts_with("output."),
        |daemon, point, mark| {
            daemon.stop();
            let memory = InMemory::mount(daemon, 16 << 20);
            daemon.up_to(point, mark);
            let pod = daemon.plain_pod("output");
            let gate = daemon.dir().join("gate");
            nix::unistd::mkfifo(&gate, nix::sys::stat::Mode::S_IRWXU).unwrap();
            let asked = from(&gate);
            let id = daemon.launch(&pod, &asked).unwrap();
            let ended = thread::scope(|scope| {
                let gate = &gate;
                die_together(daemon, || {
                    // Nothing is written before berthd is stopped. It waits for a shim that reads on.
                    scope.spawn(move || fs::write(gate, lines(LINES)).unwrap());
                    eventually(&format!("the shim to die at {point}"), || mark.is_file().then_some(()));
                });
                daemon.up();
                daemon.exited(&id)
            });
            assert_eq!(ended.exit_code, 0, "{point}");
            assert_eq!(takeovers(daemon, &id), 1, "{point}");
            is_whole(daemon, &pod, &asked, LINES);
            fs::remove_file(gate).unwrap();
            daemon.remove_all().unwrap();
            drop(memory);
        },
    );
}

#[test]
fn output_has_another_way_into_the_log_where_the_state_directory_is_full() {
    const TEST: &str = "output_has_another_way_into_the_log_where_the_state_directory_is_full";
    if skipped(TEST) {
        return;
    }
    const LINES: usize = 20_000;
    let mut daemon = Daemon::with_fixture();
    daemon.stop();
    let memory = InMemory::mount(&daemon, 1 << 20);
    daemon.up();
    let pod = daemon.plain_pod("full");
    let gate = daemon.dir().join("gate");
    nix::unistd::mkfifo(&gate, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let asked = from(&gate);
    let id = daemon.launch(&pod, &asked).unwrap();
    let filler = memory.0.join(&id).join("filler");
    let full = fs::write(&filler, vec![0; 2 << 20]).unwrap_err();
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    let mut writer = fs::File::options().write(true).open(&gate).unwrap();
    let text = lines(LINES);
    let (first, last) = text.split_at(text.len() / 2);
    std::io::Write::write_all(&mut writer, first.as_bytes()).unwrap();
    // The shim goes on in memory of its own, which berthd holds too.
    kill_shim(&daemon, &id);
    std::io::Write::write_all(&mut writer, last.as_bytes()).unwrap();
    drop(writer);
    fs::remove_file(&filler).unwrap();
    assert_eq!(daemon.exited(&id).exit_code, 0);
    is_whole(&daemon, &pod, &asked, LINES);
    daemon.remove_all().unwrap();
    drop(memory);
}
