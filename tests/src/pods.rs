//! Requests with the usual in them, and the calls that most tests make.

use std::{
    fs,
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
};

use berth_cri::v1 as cri;
use serde_json::Value;

use crate::{
    clients::Answer,
    daemon::Daemon,
    images,
    logs::{Line, read_log},
    poll::eventually,
};

/// A pod that runs.
#[derive(Debug, Clone)]
pub struct Pod {
    pub id: String,
    pub config: cri::PodSandboxConfig,
}

/// A request for a container, built up by its setters.
#[derive(Debug, Clone)]
pub struct Asked(pub cri::ContainerConfig);

static SERIAL: AtomicU32 = AtomicU32::new(0);

/// A pod's configuration: metadata, and what CRI's defaults would make of a kubelet's nothing.
pub fn pod(name: &str) -> cri::PodSandboxConfig {
    let uid = format!("{}-{}", std::process::id(), SERIAL.fetch_add(1, Ordering::Relaxed));
    let options = cri::NamespaceOption { pid: cri::NamespaceMode::Container.into(), ..Default::default() };
    cri::PodSandboxConfig {
        metadata: Some(cri::PodSandboxMetadata {
            name: name.into(),
            uid,
            namespace: "tests".into(),
            attempt: 0,
        }),
        hostname: name.into(),
        linux: Some(cri::LinuxPodSandboxConfig {
            security_context: Some(cri::LinuxSandboxSecurityContext {
                namespace_options: Some(options),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// The same on the host's network.
pub fn host_network(name: &str) -> cri::PodSandboxConfig {
    let mut config = pod(name);
    let linux = config.linux.get_or_insert_default();
    let security = linux.security_context.get_or_insert_default();
    security.namespace_options.get_or_insert_default().network = cri::NamespaceMode::Node.into();
    // On the host's network the host name is the host's.
    config.hostname = String::new();
    config
}

/// A container of the fixture's image that runs these words.
pub fn asked(name: &str, words: &[&str]) -> Asked {
    let options = cri::NamespaceOption { pid: cri::NamespaceMode::Container.into(), ..Default::default() };
    let security =
        cri::LinuxContainerSecurityContext { namespace_options: Some(options), ..Default::default() };
    Asked(cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata { name: name.into(), attempt: 0 }),
        image: Some(cri::ImageSpec { image: images::FIXTURE.into(), ..Default::default() }),
        args: words.iter().map(ToString::to_string).collect(),
        log_path: format!("{name}.log"),
        linux: Some(cri::LinuxContainerConfig { security_context: Some(security), ..Default::default() }),
        ..Default::default()
    })
}

/// A command with all its streams.
pub fn exec_of(id: &str, words: &[&str]) -> cri::ExecRequest {
    cri::ExecRequest {
        container_id: id.into(),
        cmd: words.iter().map(ToString::to_string).collect(),
        stdin: true,
        stdout: true,
        stderr: true,
        tty: false,
    }
}

/// The security context of a request.
pub fn security(config: &mut cri::ContainerConfig) -> &mut cri::LinuxContainerSecurityContext {
    config.linux.get_or_insert_default().security_context.get_or_insert_default()
}

impl Asked {
    /// Changes the security context.
    pub fn secured(mut self, change: impl FnOnce(&mut cri::LinuxContainerSecurityContext)) -> Self {
        change(security(&mut self.0));
        self
    }

    /// Changes the limits.
    pub fn limited(mut self, change: impl FnOnce(&mut cri::LinuxContainerResources)) -> Self {
        change(self.0.linux.get_or_insert_default().resources.get_or_insert_default());
        self
    }

    /// Changes anything.
    pub fn with(mut self, change: impl FnOnce(&mut cri::ContainerConfig)) -> Self {
        change(&mut self.0);
        self
    }

    pub fn image(self, name: &str) -> Self {
        self.with(|config| config.image.get_or_insert_default().image = name.into())
    }

    pub fn env(self, key: &str, value: &[u8]) -> Self {
        self.with(|config| {
            config.envs.push(cri::KeyValue { key: key.into(), value: value.to_vec().into() });
        })
    }

    pub fn mount(self, mount: cri::Mount) -> Self {
        self.with(|config| config.mounts.push(mount))
    }
}

impl Daemon {
    /// Runs a pod; its logs go below the daemon's directory.
    pub fn run_pod(&self, mut config: cri::PodSandboxConfig) -> Answer<Pod> {
        let uid = config.metadata.as_ref().map(|metadata| metadata.uid.clone()).unwrap_or_default();
        if config.log_directory.is_empty() {
            let directory = self.dir().join("pod-logs").join(uid);
            fs::create_dir_all(&directory).expect("make the log directory");
            config.log_directory = directory.display().to_string();
        }
        let request =
            cri::RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: String::new() };
        let id = self.call(self.runtime().run_pod_sandbox(request))?.pod_sandbox_id;
        Ok(Pod { id, config })
    }

    /// Runs a pod with nothing special.
    pub fn plain_pod(&self, name: &str) -> Pod {
        self.run_pod(pod(name)).expect("run a pod")
    }

    pub fn stop_pod(&self, id: &str) -> Answer<()> {
        let request = cri::StopPodSandboxRequest { pod_sandbox_id: id.into() };
        self.call(self.runtime().stop_pod_sandbox(request)).map(drop)
    }

    pub fn remove_pod(&self, id: &str) -> Answer<()> {
        let request = cri::RemovePodSandboxRequest { pod_sandbox_id: id.into() };
        self.call(self.runtime().remove_pod_sandbox(request)).map(drop)
    }

    pub fn pod_status(&self, id: &str) -> Answer<cri::PodSandboxStatus> {
        let request = cri::PodSandboxStatusRequest { pod_sandbox_id: id.into(), verbose: false };
        let answer = self.call(self.runtime().pod_sandbox_status(request))?;
        Ok(answer.status.expect("a status answer has a status"))
    }

    pub fn pod_ip(&self, pod: &Pod) -> String {
        let status = self.pod_status(&pod.id).expect("ask for the pod");
        status.network.expect("a pod's status has its network").ip
    }

    pub fn list_pods(&self, filter: cri::PodSandboxFilter) -> Vec<cri::PodSandbox> {
        let request = cri::ListPodSandboxRequest { filter: Some(filter) };
        self.call(self.runtime().list_pod_sandbox(request)).expect("list pods").items
    }

    pub fn list_containers(&self, filter: cri::ContainerFilter) -> Vec<cri::Container> {
        let request = cri::ListContainersRequest { filter: Some(filter) };
        self.call(self.runtime().list_containers(request)).expect("list containers").containers
    }

    pub fn create(&self, pod: &Pod, asked: &Asked) -> Answer<String> {
        let request = cri::CreateContainerRequest {
            pod_sandbox_id: pod.id.clone(),
            config: Some(asked.0.clone()),
            sandbox_config: Some(pod.config.clone()),
        };
        Ok(self.call(self.runtime().create_container(request))?.container_id)
    }

    pub fn start_container(&self, id: &str) -> Answer<()> {
        let request = cri::StartContainerRequest { container_id: id.into() };
        self.call(self.runtime().start_container(request)).map(drop)
    }

    /// Creates and starts.
    pub fn launch(&self, pod: &Pod, asked: &Asked) -> Answer<String> {
        let id = self.create(pod, asked)?;
        self.start_container(&id).map(|()| id)
    }

    pub fn stop_container(&self, id: &str, grace_seconds: i64) -> Answer<()> {
        let request = cri::StopContainerRequest { container_id: id.into(), timeout: grace_seconds };
        self.call(self.runtime().stop_container(request)).map(drop)
    }

    pub fn remove_container(&self, id: &str) -> Answer<()> {
        let request = cri::RemoveContainerRequest { container_id: id.into() };
        self.call(self.runtime().remove_container(request)).map(drop)
    }

    pub fn status(&self, id: &str) -> Answer<cri::ContainerStatus> {
        let request = cri::ContainerStatusRequest { container_id: id.into(), verbose: false };
        let answer = self.call(self.runtime().container_status(request))?;
        Ok(answer.status.expect("a status answer has a status"))
    }

    /// The facts for people: pid, cgroup, runtimeSpec.
    pub fn details(&self, id: &str) -> Value {
        let request = cri::ContainerStatusRequest { container_id: id.into(), verbose: true };
        let answer = self.call(self.runtime().container_status(request)).expect("ask for the container");
        serde_json::from_str(&answer.info["info"]).expect("the details are JSON")
    }

    /// Waits until a container has ended.
    pub fn exited(&self, id: &str) -> cri::ContainerStatus {
        eventually(&format!("container {id} to end"), || {
            let status = self.status(id).expect("ask for the container");
            (status.state() == cri::ContainerState::ContainerExited).then_some(status)
        })
    }

    pub fn exec(&self, id: &str, words: &[&str], timeout_seconds: i64) -> Answer<cri::ExecSyncResponse> {
        let request = cri::ExecSyncRequest {
            container_id: id.into(),
            cmd: words.iter().map(ToString::to_string).collect(),
            timeout: timeout_seconds,
        };
        self.call(self.runtime().exec_sync(request))
    }

    /// Where a command's streams are to be had.
    pub fn exec_url(&self, request: cri::ExecRequest) -> Answer<String> {
        self.call(self.runtime().exec(request)).map(|answer| answer.url)
    }

    /// Where a container's own streams are to be had: with a terminal, output and errors are one.
    pub fn attach_url(&self, id: &str, tty: bool) -> Answer<String> {
        let request =
            cri::AttachRequest { container_id: id.into(), stdin: true, stdout: true, stderr: !tty, tty };
        self.call(self.runtime().attach(request)).map(|answer| answer.url)
    }

    /// Runs a command in a container; it must succeed, and its output is returned.
    pub fn exec_ok(&self, id: &str, words: &[&str]) -> String {
        let answer = self.exec(id, words, 30).unwrap_or_else(|status| panic!("exec {words:?}: {status}"));
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert_eq!(answer.exit_code, 0, "{words:?}: {}{}", text(&answer.stdout), text(&answer.stderr));
        text(&answer.stdout)
    }

    /// Runs a container to its end: its status and its log.
    pub fn run_to_end(&self, pod: &Pod, asked: &Asked) -> Answer<(cri::ContainerStatus, Vec<Line>)> {
        let id = self.launch(pod, asked)?;
        let status = self.exited(&id);
        Ok((status, self.log_of(pod, asked)))
    }

    /// What `info` tells from inside such a container: one JSON object.
    pub fn info(&self, pod: &Pod, asked: &Asked) -> Value {
        let (status, log) = self.run_to_end(pod, asked).unwrap_or_else(|status| panic!("run info: {status}"));
        let text: String = log.iter().map(|line| line.content.as_str()).collect();
        assert_eq!(status.exit_code, 0, "{text}");
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("info is JSON: {error}: {text}"))
    }

    pub fn log_path_of(&self, pod: &Pod, asked: &Asked) -> PathBuf {
        PathBuf::from(&pod.config.log_directory).join(&asked.0.log_path)
    }

    pub fn log_of(&self, pod: &Pod, asked: &Asked) -> Vec<Line> {
        read_log(&self.log_path_of(pod, asked))
    }

    /// Waits until a container's log has so many lines.
    pub fn logged_lines(&self, pod: &Pod, asked: &Asked, lines: usize) {
        let path = self.log_path_of(pod, asked);
        eventually(&format!("{lines} lines in {}", path.display()), || {
            (path.is_file() && read_log(&path).len() >= lines).then_some(())
        });
    }

    /// Waits until a container's log has a line.
    pub fn logged(&self, pod: &Pod, asked: &Asked, line: &str) {
        let path = self.log_path_of(pod, asked);
        eventually(&format!("{line:?} in {}", path.display()), || {
            read_log(&path).iter().any(|found| found.content == line).then_some(())
        });
    }
}
