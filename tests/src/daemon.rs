//! A private berthd: started in a place of its own, killed or restarted by tests, and cleared away with a leak check.

use std::{
    ffi::OsString,
    fs::{self, File},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
};

use berth_cri::{berth, v1 as cri};
use nix::{
    sys::{
        signal::{Signal, kill},
        socket::{getsockopt, sockopt::PeerCredentials},
    },
    unistd::Pid,
};
use tokio::runtime::Runtime;

use crate::{
    leaks,
    place::Place,
    poll::{BOUND, eventually, until},
    programs::program,
};

/// A berthd and all that belongs to it.
#[derive(Debug)]
pub struct Daemon {
    place: Place,
    tokio: Runtime,
    options: Options,
    /// What the next one is to die at, as `BERTH_FAULT` says it.
    fault: Option<String>,
    child: Option<Child>,
}

/// What differs from the usual configuration.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// PEM files that registries' certificates are checked with.
    pub ca_files: Vec<PathBuf>,
    /// 0: five seconds.
    pub stall_seconds: u32,
    /// Where its own metrics are; empty: nowhere.
    pub metrics_listen: String,
    /// What is laid over the usual configuration, as TOML.
    pub over: String,
    /// Variables of its environment.
    pub env: Vec<(String, String)>,
}

impl Daemon {
    /// Starts one and waits until it answers.
    ///
    /// # Panics
    /// With its log if it does not come up.
    pub fn start() -> Self {
        Self::start_with(Options::default())
    }

    pub fn start_with(options: Options) -> Self {
        let tokio = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let tokio = tokio.expect("start the event loop");
        let mut daemon = Self { place: Place::claim(), tokio, options, fault: None, child: None };
        daemon.write_config();
        daemon.up();
        daemon
    }

    /// Starts it again after `kill9` or `stop`.
    pub fn up(&mut self) {
        self.spawn();
        let socket = self.place.socket();
        let up = until(BOUND, || {
            let child = self.child.as_mut().expect("it was started above");
            if let Some(status) = child.try_wait().expect("look at berthd") {
                return Some(Err(status));
            }
            // A program that the last berthd was about to start holds its listener until it runs: what answers is
            // to be the one started above.
            let stream = UnixStream::connect(&socket).ok()?;
            let listener = getsockopt(&stream, PeerCredentials).expect("ask who listens");
            (listener.pid().unsigned_abs() == child.id()).then_some(Ok(()))
        });
        match up {
            Some(Ok(())) => {}
            Some(Err(status)) => {
                self.child = None;
                panic!("berthd did not come up: {status}\n{}", self.log_tail());
            }
            None => panic!("berthd does not answer at {}\n{}", socket.display(), self.log_tail()),
        }
    }

    fn spawn(&mut self) {
        assert!(self.child.is_none(), "berthd runs already");
        let log = File::options().create(true).append(true).open(self.log_path()).expect("open berthd's log");
        let child = Command::new(program("berthd"))
            .arg("--config")
            .arg(self.config_path())
            // Whatever it starts inherits this: that is how leaked processes are found.
            .env("BERTH_TESTS_PLACE", &self.place.name)
            .env_remove("NOTIFY_SOCKET")
            .envs(self.fault.take().map(|fault| ("BERTH_FAULT", fault)))
            .env("PATH", self.path())
            .envs(self.options.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("start berthd");
        self.child = Some(child);
    }

    /// Starts it such that it, or a shim of its, dies the first time it comes to a named point; then `mark` is there.
    pub fn up_to(&mut self, point: &str, mark: &Path) {
        self.fault = Some(format!("{point}={}", mark.display()));
        self.up();
    }

    /// Starts it where it can't come up, and waits until it has ended.
    pub fn up_in_vain(&mut self) -> ExitStatus {
        self.spawn();
        let mut child = self.child.take().expect("it was started above");
        eventually("berthd to end at its start", || child.try_wait().expect("look at berthd"))
    }

    /// Starts it such that it dies at a named point of its start; then `mark` is there.
    pub fn dies_at(&mut self, point: &str, mark: &Path) {
        self.fault = Some(format!("{point}={}", mark.display()));
        self.up_in_vain();
    }

    /// Takes note of a berthd that may have died by itself; whether it has.
    pub fn has_died(&mut self) -> bool {
        let died =
            self.child.as_mut().is_some_and(|child| child.try_wait().expect("look at berthd").is_some());
        if died {
            self.child = None;
        }
        died
    }

    /// Ends it as a power cut of its own does.
    pub fn kill9(&mut self) {
        let mut child = self.child.take().expect("berthd runs");
        child.kill().expect("kill berthd");
        child.wait().expect("wait for berthd");
    }

    /// The pid of berthd, for a kill while a call of another thread is under way; then `reap` and `up`.
    pub fn pid(&self) -> Pid {
        let child = self.child.as_ref().expect("berthd runs");
        Pid::from_raw(i32::try_from(child.id()).expect("pids fit"))
    }

    /// Takes note of a berthd that was killed by its pid.
    pub fn reap(&mut self) {
        self.child.take().expect("berthd ran").wait().expect("wait for berthd");
    }

    /// Ends it as a service manager does. Containers run on.
    pub fn stop(&mut self) -> ExitStatus {
        let pid = self.pid();
        let mut child = self.child.take().expect("berthd runs");
        kill(pid, Signal::SIGTERM).expect("stop berthd");
        eventually("berthd to stop", || child.try_wait().expect("wait for berthd"))
    }

    pub fn restart(&mut self) {
        self.stop();
        self.up();
    }

    pub fn is_up(&self) -> bool {
        self.child.is_some()
    }

    /// A directory of the test's own, gone with the daemon.
    pub fn dir(&self) -> &Path {
        &self.place.dir
    }

    pub fn root(&self) -> PathBuf {
        self.place.root()
    }

    pub fn state(&self) -> PathBuf {
        self.place.state()
    }

    /// The parent of all its cgroups, as berthd was told.
    pub fn cgroup_parent(&self) -> &str {
        &self.place.cgroup_parent
    }

    /// The host's address on the bridge's network.
    pub fn gateway(&self) -> String {
        self.place.subnet.replace(".0/24", ".1")
    }

    /// The host's IPv6 address there.
    pub fn gateway6(&self) -> String {
        self.place.subnet6.replace("/64", "1")
    }

    /// Their network of IPv6.
    pub fn subnet6(&self) -> &str {
        &self.place.subnet6
    }

    /// The network of its pods.
    pub fn subnet(&self) -> &str {
        &self.place.subnet
    }

    /// What is left of all that ran here, berthd and its socket aside: one look, without patience.
    pub fn left_behind(&self) -> Vec<String> {
        leaks::look(&self.place, Some(self.pid().as_raw()))
    }

    /// Its nftables tables, of ip and ip6.
    pub fn table(&self) -> String {
        self.place.table()
    }

    /// A subnet of those that networks of the test's own are in: 0 to 3, and the same of IPv6.
    pub fn named_subnet(&self, number: u8) -> (String, String) {
        let [high, low] = [&self.place.pool, &self.place.pool6].map(|pool| {
            let at = pool.find('/').expect("a pool is CIDR");
            pool[..at].to_owned()
        });
        let mut octets: Vec<u8> =
            high.split('.').map(|octet| octet.parse().expect("of an address")).collect();
        octets[2] += number;
        let four = format!("{}.{}.{}.0/24", octets[0], octets[1], octets[2]);
        (four, format!("{}{:x}::/64", low.trim_end_matches(':').to_owned() + ":", number + 1))
    }

    /// The bridge of its pods.
    pub fn bridge(&self) -> &str {
        self.place.bridge()
    }

    /// Where its CNI configurations are looked for; a test makes it.
    pub fn cni_conf_dir(&self) -> PathBuf {
        self.place.dir.join("cni/net.d")
    }

    /// Plugins of the test's own; they come before the real ones.
    pub fn cni_bin_dir(&self) -> PathBuf {
        self.place.dir.join("cni/bin")
    }

    pub fn cni_cache_dir(&self) -> PathBuf {
        self.place.dir.join("cni/cache")
    }

    /// Whom its networks ask for names that are not theirs; a test writes it.
    pub fn resolv_conf(&self) -> PathBuf {
        self.place.dir.join("resolv.conf")
    }

    /// Where its hosts.toml are looked for; a test makes it.
    pub fn certs_dir(&self) -> PathBuf {
        self.place.dir.join("certs.d")
    }

    /// Its config.json; a test writes it.
    pub fn auth_file(&self) -> PathBuf {
        self.place.dir.join("config.json")
    }

    /// Where docker's credential helpers of the test's own are found first.
    pub fn helper_dir(&self) -> PathBuf {
        self.place.dir.join("helpers")
    }

    /// The last of what it logged.
    pub fn log_tail(&self) -> String {
        let text = fs::read(self.log_path()).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(60)..].join("\n")
    }

    /// Everything it logged.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.log_path()).unwrap_or_default()).into_owned()
    }

    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    pub(crate) fn tokio(&self) -> &Runtime {
        &self.tokio
    }

    fn path(&self) -> OsString {
        let own = self.helper_dir();
        let rest = std::env::var_os("PATH").unwrap_or_default();
        std::env::join_paths(std::iter::once(own).chain(std::env::split_paths(&rest)))
            .expect("no colon in it")
    }

    /// Where more is laid over its configuration, by files that are read in the order of their names.
    pub fn drop_ins(&self) -> PathBuf {
        self.config_path().with_extension("toml.d")
    }

    fn config_path(&self) -> PathBuf {
        self.place.dir.join("berthd.toml")
    }

    fn log_path(&self) -> PathBuf {
        self.place.dir.join("berthd.log")
    }

    fn write_config(&self) {
        let place = &self.place;
        let ca_files: Vec<String> = self.options.ca_files.iter().map(|path| format!("{path:?}")).collect();
        let stall = if self.options.stall_seconds == 0 { 5 } else { self.options.stall_seconds };
        let text = format!(
            r#"[daemon]
root = {root:?}
state = {state:?}
listen = "unix://{socket}"
metrics_listen = {metrics:?}
log_level = "debug,h2=info,hyper=info,hyper_util=info,tower=info,rustls=info,reqwest=info,hickory_resolver=info,hickory_proto=info"
shim = {shim:?}
cgroup_parent = {parent:?}

[registry]
ca_files = [{ca_files}]
config_path = [{certs_dir:?}]
auth_file = {auth_file:?}
stall_seconds = {stall}

[network]
conf_dir = {conf_dir:?}
bin_dirs = {bin_dirs:?}
cache_dir = {cache_dir:?}
pool = {pool:?}
pool6 = {pool6:?}
resolv_conf = {resolv_conf:?}

[network.bridge]
name = {bridge:?}
subnet = {subnet:?}
subnet6 = {subnet6:?}
table = {table:?}
"#,
            root = place.root(),
            state = place.state(),
            socket = place.socket().display(),
            metrics = self.options.metrics_listen,
            shim = program("berth-shim"),
            parent = place.cgroup_parent,
            ca_files = ca_files.join(", "),
            certs_dir = self.certs_dir(),
            auth_file = self.auth_file(),
            conf_dir = self.cni_conf_dir(),
            bin_dirs = [self.cni_bin_dir(), crate::cni::plugins()],
            cache_dir = self.cni_cache_dir(),
            pool = place.pool,
            pool6 = place.pool6,
            resolv_conf = self.resolv_conf(),
            bridge = place.bridge(),
            subnet = place.subnet,
            subnet6 = place.subnet6,
            table = place.table(),
        );
        fs::write(self.config_path(), text).expect("write the configuration");
        let drop_ins = self.drop_ins();
        fs::create_dir_all(&drop_ins).expect("make the directory of drop-ins");
        fs::write(drop_ins.join("over.toml"), &self.options.over).expect("write the drop-in");
    }

    /// Removes every pod, container and image over the public calls.
    ///
    /// # Errors
    /// What could not be removed, one line each.
    pub fn remove_all(&self) -> Result<(), String> {
        let mut failed = Vec::new();
        let mut note = |what: String, status: tonic::Status| failed.push(format!("{what}: {status}"));
        match self.call(self.containers().list(berth::ListRequest { all: true, all_clients: false })) {
            Ok(listed) => {
                for container in listed.containers {
                    let request = berth::RemoveRequest { container: container.id.clone(), force: true };
                    match self.call(self.containers().remove(request)) {
                        Err(status) if status.code() != tonic::Code::NotFound => {
                            note(format!("remove container {}", container.id), status);
                        }
                        _ => {}
                    }
                }
            }
            // A daemon without berth.v1 has no standalone containers.
            Err(status) if status.code() == tonic::Code::Unimplemented => {}
            Err(status) => note("list containers".into(), status),
        }
        match self.call(self.runtime().list_pod_sandbox(cri::ListPodSandboxRequest::default())) {
            Ok(listed) => {
                for pod in listed.items {
                    let stop = cri::StopPodSandboxRequest { pod_sandbox_id: pod.id.clone() };
                    if let Err(status) = self.call(self.runtime().stop_pod_sandbox(stop)) {
                        note(format!("stop pod {}", pod.id), status);
                    }
                    let remove = cri::RemovePodSandboxRequest { pod_sandbox_id: pod.id.clone() };
                    if let Err(status) = self.call(self.runtime().remove_pod_sandbox(remove)) {
                        note(format!("remove pod {}", pod.id), status);
                    }
                }
            }
            Err(status) => note("list pods".into(), status),
        }
        match self.call(self.networks().list(berth::ListNetworksRequest {})) {
            Ok(listed) => {
                for network in listed.networks.into_iter().filter(|network| !network.id.is_empty()) {
                    let request = berth::RemoveNetworkRequest { network: network.name.clone() };
                    if let Err(status) = self.call(self.networks().remove(request)) {
                        note(format!("remove network {}", network.name), status);
                    }
                }
            }
            Err(status) => note("list networks".into(), status),
        }
        if failed.is_empty() { Ok(()) } else { Err(failed.join("\n")) }
    }

    /// Removes all, stops, and returns what is left all the same.
    fn clear_away(&mut self) -> Vec<String> {
        let mut wrong = Vec::new();
        if self.child.is_none() {
            self.up();
        }
        wrong.extend(self.remove_all().err());
        wrong.extend(leaks::find_beside(&self.place, self.pid().as_raw()));
        if !self.stop().success() {
            wrong.push("berthd ended with an error".to_owned());
        }
        // What was left beside it is there still: no need to wait for it twice.
        if wrong.is_empty() {
            wrong.extend(leaks::find(&self.place));
        }
        wrong
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let failing = thread::panicking();
        if failing {
            // Its cleaning up says nothing about the failure.
            eprintln!("---- berthd's log, the end ----\n{}\n----", self.log_tail());
        }
        // A daemon that can't be talked to must not keep the rest from being swept.
        let cleared = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.clear_away()));
        if let Some(mut child) = self.child.take() {
            // It may have ended; either way it is not there afterwards.
            child.kill().ok();
            child.wait().ok();
        }
        let log = self.log_tail();
        leaks::sweep(&self.place);
        if failing {
            return;
        }
        match cleared {
            Ok(wrong) if wrong.is_empty() => {}
            Ok(wrong) => panic!("left behind:\n  {}\nberthd's log, the end:\n{log}", wrong.join("\n  ")),
            Err(_) => panic!("berthd could not be cleared away; its log, the end:\n{log}"),
        }
    }
}
