//! One container of a test: its directories, its group, a plan that runs busybox, and its shim.

use std::{
    path::{Path, PathBuf},
    process::Child,
};

use berth_launch::v1::{
    Cgroup, ContainerPlan, Exit, Filesystem, Log, Mount, Namespace, NamespaceKind, Process, Ready, Rootfs,
    Start, Symlink, birth::Outcome, mount, reply, request::Call, rootfs,
};
use prost::Message;

use super::Client;

pub struct Container {
    pub dir: tempfile::TempDir,
    pub cgroup: PathBuf,
    pub shim: Option<Child>,
}

impl Container {
    pub fn new() -> Self {
        let dir = super::directory();
        for part in ["run", "record", "root/bin", "root/etc", "root/tmp"] {
            std::fs::create_dir_all(dir.path().join(part)).unwrap();
        }
        let root = dir.path().join("root");
        // Not by this process: while another test starts a child, that child may hold our file open for writing, and then
        // it can't be executed.
        super::run("cp", &["/bin/busybox", root.join("bin/busybox").to_str().unwrap()]);
        for applet in ["sh", "cat", "sleep", "id", "true"] {
            std::os::unix::fs::symlink("busybox", root.join("bin").join(applet)).unwrap();
        }
        std::fs::write(root.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\napp:x:1000:1001::/tmp:/bin/sh\n")
            .unwrap();
        std::fs::write(root.join("etc/group"), "root:x:0:\napp:x:1001:\nextra:x:2000:app\n").unwrap();
        let base = if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
            "/sys/fs/cgroup"
        } else {
            "/sys/fs/cgroup/unified"
        };
        let cgroup = Path::new(base).join(super::unique("berth-shim-"));
        std::fs::create_dir(&cgroup).unwrap();
        Self { dir, cgroup, shim: None }
    }

    pub fn plan(&self, args: &[&str]) -> ContainerPlan {
        let path = |part: &str| self.dir.path().join(part).to_str().unwrap().to_owned();
        let filesystem = |kind: &str, at: &str, options: &[&str]| Mount {
            destination: at.into(),
            from: Some(mount::From::Filesystem(Filesystem {
                r#type: kind.into(),
                source: kind.into(),
                options: options.iter().map(|option| (*option).to_owned()).collect(),
            })),
            ..Mount::default()
        };
        let new = |kind: NamespaceKind| Namespace { kind: kind.into(), path: String::new() };
        ContainerPlan {
            version: 1,
            id: "c".repeat(64),
            dir: path("run"),
            record_dir: path("record"),
            namespaces: [NamespaceKind::Mount, NamespaceKind::Pid, NamespaceKind::Ipc, NamespaceKind::Uts]
                .map(new)
                .into(),
            rootfs: Some(Rootfs { from: Some(rootfs::From::Path(path("root"))), ..Rootfs::default() }),
            mounts: vec![
                filesystem("proc", "/proc", &[]),
                filesystem("tmpfs", "/dev", &["mode=755"]),
                filesystem("devpts", "/dev/pts", &["newinstance", "ptmxmode=0666", "mode=0620"]),
            ],
            symlinks: vec![Symlink { path: "/dev/fd".into(), target: "/proc/self/fd".into() }],
            hostname: "box".into(),
            cgroup: Some(Cgroup { v2: self.cgroup.to_str().unwrap().into(), ..Cgroup::default() }),
            process: Some(Process {
                args: args.iter().map(|arg| arg.as_bytes().to_vec()).collect(),
                env: vec!["PATH=/bin".into()],
                ..Process::default()
            }),
            log: Some(Log { path: path("log"), ..Log::default() }),
            ..ContainerPlan::default()
        }
    }

    pub fn create(&mut self, plan: &ContainerPlan) -> (Client, Ready) {
        let (shim, outcome) = super::birth("container", plan);
        self.shim = Some(shim);
        let Outcome::Ready(ready) = outcome else { panic!("{outcome:?}") };
        (Client::connect(&self.dir.path().join("run")), ready)
    }

    pub fn start(&mut self, plan: &ContainerPlan) -> Client {
        let (mut client, _) = self.create(plan);
        let reply::Result::Status(status) = client.call(Call::Start(Start {}), &[]) else { panic!() };
        assert!(status.started_at > 0);
        client
    }

    /// Lines of the log without their stamps.
    pub fn log(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.dir.path().join("log")).unwrap();
        text.lines().map(|line| line.split_once(' ').unwrap().1.to_owned()).collect()
    }

    pub fn record(&self) -> Exit {
        Exit::decode(std::fs::read(self.dir.path().join("record/exit")).unwrap().as_slice()).unwrap()
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        std::fs::write(self.cgroup.join("cgroup.kill"), "1").unwrap();
        if let Some(mut shim) = self.shim.take() {
            shim.wait().unwrap();
        }
        super::wait_for_text(&self.cgroup.join("cgroup.events"), |text| text.contains("populated 0"));
        std::fs::remove_dir(&self.cgroup).unwrap();
        assert_eq!(super::mounts_below(self.dir.path()), Vec::<PathBuf>::new());
    }
}
