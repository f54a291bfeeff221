//! A full disk: told in words, nothing half made stays, no exit code is lost, and the node works on once there is room.

use std::{fs, io::Write, path::PathBuf};

use berth_fixtures::{Compression, Layout};
use berth_tests::{Daemon, asked, eventually, images};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use tonic::Code;

/// A daemon whose root is on a file system of its own.
struct Small {
    daemon: Daemon,
    root: PathBuf,
}

impl Small {
    fn new(bytes: u64) -> Self {
        let mut daemon = Daemon::start();
        daemon.stop();
        let root = daemon.root();
        fs::remove_dir_all(&root).unwrap();
        fs::create_dir(&root).unwrap();
        let size = std::ffi::CString::new(format!("size={bytes},mode=700")).unwrap();
        mount("tmpfs", &root, "tmpfs", MountFlags::empty(), size.as_c_str()).unwrap();
        daemon.up();
        Self { daemon, root }
    }

    fn free_bytes(&self) -> u64 {
        let stat = rustix::fs::statvfs(&self.root).unwrap();
        stat.f_bavail * stat.f_frsize
    }

    /// Writes until nothing more goes in.
    fn fill(&self) -> PathBuf {
        let path = self.root.join("ballast");
        let mut file = fs::File::create(&path).unwrap();
        for size in [1 << 16, 1] {
            while file.write_all(&vec![0; size]).is_ok() {}
        }
        path
    }

    /// Puts the daemon back on an ordinary root, where it is looked after for leaks.
    fn end(mut self) {
        self.daemon.remove_all().unwrap();
        self.daemon.stop();
        unmount(&self.root, UnmountFlags::empty()).unwrap();
        self.daemon.up();
    }
}

#[test]
fn an_image_that_does_not_fit_is_told_and_leaves_its_room_to_another() {
    let small = Small::new(12 << 20);
    let before = small.free_bytes();
    let large = images::archive(images::FIXTURE, &images::base());
    let refused = small.daemon.load(&large, None).unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    let root = small.root.to_str().unwrap();
    assert!(refused.message().contains("No space left") && refused.message().contains(root), "{refused}");
    eventually("the room is given back", || (small.free_bytes() + (64 << 10) > before).then_some(()));
    let tiny = berth_fixtures::Image::new().layer(berth_fixtures::Layer::new().file("x", 0o644, "x"));
    let tiny =
        Layout::of("localhost/tiny:1", &tiny).and_then(|layout| layout.tar(Compression::None)).unwrap();
    small.daemon.load(&tiny, None).unwrap();
    small.end();
}

#[test]
fn an_exit_code_waits_for_room_on_the_disk() {
    let mut small = Small::new(64 << 20);
    small.daemon.load(&images::archive(images::FIXTURE, &images::base()), None).unwrap();
    let pod = small.daemon.plain_pod("full");
    let id = small.daemon.launch(&pod, &asked("c", &["sleep", "inf"])).unwrap();
    let ballast = small.fill();
    // Nobody is there to hear of the end, and it can't be written down.
    let pid = small.daemon.details(&id)["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()).unwrap();
    small.daemon.kill9();
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let record = small.root.join("containers").join(&id).join("exit");
    let log = small.daemon.state().join("containers").join(&id).join("shim.log");
    eventually("the shim has tried to write the record", || {
        fs::read_to_string(&log).unwrap().contains("write exit record").then_some(())
    });
    assert!(!record.exists());
    fs::remove_file(ballast).unwrap();
    eventually("the shim has written the record", || record.exists().then_some(()));
    small.daemon.up();
    assert_eq!(small.daemon.exited(&id).exit_code, 143);
    small.end();
}
