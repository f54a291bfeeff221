//! What a kubelet does, over one CRI connection: for the programs `demo` and `bench`.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use berth_cri::v1::{
    ContainerConfig, ContainerMetadata, CreateContainerRequest, ExecSyncRequest, ImageSpec,
    LinuxContainerConfig, LinuxContainerSecurityContext, LinuxPodSandboxConfig, LinuxSandboxSecurityContext,
    ListPodSandboxRequest, NamespaceMode, NamespaceOption, PodSandboxConfig, PodSandboxMetadata,
    RemoveContainerRequest, RemovePodSandboxRequest, RunPodSandboxRequest, StartContainerRequest,
    StopContainerRequest, StopPodSandboxRequest, runtime_service_client::RuntimeServiceClient,
};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::{
    Response, Status,
    transport::{Channel, Endpoint, Uri},
};

/// An operation that failed, in words.
pub type Result<T> = std::result::Result<T, String>;

/// Longer than any one call may take.
const LONGEST: Duration = Duration::from_secs(60);

/// A connection to one runtime.
#[derive(Debug, Clone)]
pub struct Kubelet {
    pub runtime: RuntimeServiceClient<Channel>,
    /// What `runtime` sends by.
    #[allow(dead_code)] // The demo has no use for it.
    pub channel: Channel,
}

impl Kubelet {
    /// Connects to `unix:///path`.
    pub async fn connect(address: &str) -> Result<Self> {
        Self::connect_for(address, LONGEST).await
    }

    /// The same for calls that may take longer than most.
    pub async fn connect_for(address: &str, longest: Duration) -> Result<Self> {
        let path =
            address.strip_prefix("unix://").ok_or(format!("{address}: not of the form unix:///path"))?;
        let path = path.to_owned();
        let connector = tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        // The name is never looked up, only sent.
        let endpoint = Endpoint::from_static("http://localhost").timeout(longest);
        let channel = endpoint.connect_with_connector(connector).await;
        let channel = channel.map_err(|error| format!("connect to {address}: {}", chain(&error)))?;
        Ok(Self { runtime: RuntimeServiceClient::new(channel.clone()), channel })
    }

    /// Makes the log directory, as a kubelet does, and runs the pod.
    pub async fn run_pod(&mut self, config: &PodSandboxConfig) -> Result<String> {
        let logs = &config.log_directory;
        std::fs::create_dir_all(logs).map_err(|error| format!("make {logs}: {error}"))?;
        let request = RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: String::new() };
        Ok(done("RunPodSandbox", self.runtime.run_pod_sandbox(request).await)?.pod_sandbox_id)
    }

    pub async fn create(
        &mut self,
        pod: &str,
        config: ContainerConfig,
        of: &PodSandboxConfig,
    ) -> Result<String> {
        let request = CreateContainerRequest {
            pod_sandbox_id: pod.to_owned(),
            config: Some(config),
            sandbox_config: Some(of.clone()),
        };
        Ok(done("CreateContainer", self.runtime.create_container(request).await)?.container_id)
    }

    pub async fn start(&mut self, container: &str) -> Result<()> {
        let request = StartContainerRequest { container_id: container.to_owned() };
        done("StartContainer", self.runtime.start_container(request).await).map(drop)
    }

    /// Runs a command that is to end with 0, and returns what it said.
    pub async fn exec(&mut self, container: &str, command: &[&str]) -> Result<String> {
        let cmd = command.iter().map(|word| (*word).to_owned()).collect();
        let request = ExecSyncRequest { container_id: container.to_owned(), cmd, timeout: 30 };
        let response = done("ExecSync", self.runtime.exec_sync(request).await)?;
        match response.exit_code {
            0 => Ok(String::from_utf8_lossy(&response.stdout).into_owned()),
            code => Err(format!(
                "ExecSync {command:?} ended with {code}: {}",
                String::from_utf8_lossy(&response.stderr)
            )),
        }
    }

    pub async fn stop(&mut self, container: &str) -> Result<()> {
        let request = StopContainerRequest { container_id: container.to_owned(), timeout: 5 };
        done("StopContainer", self.runtime.stop_container(request).await).map(drop)
    }

    pub async fn remove(&mut self, container: &str) -> Result<()> {
        let request = RemoveContainerRequest { container_id: container.to_owned() };
        done("RemoveContainer", self.runtime.remove_container(request).await).map(drop)
    }

    /// Stops and removes a pod with all in it.
    pub async fn remove_pod(&mut self, pod: &str) -> Result<()> {
        let request = StopPodSandboxRequest { pod_sandbox_id: pod.to_owned() };
        done("StopPodSandbox", self.runtime.stop_pod_sandbox(request).await)?;
        let request = RemovePodSandboxRequest { pod_sandbox_id: pod.to_owned() };
        done("RemovePodSandbox", self.runtime.remove_pod_sandbox(request).await).map(drop)
    }

    pub async fn pods(&mut self) -> Result<Vec<String>> {
        let pods =
            done("ListPodSandbox", self.runtime.list_pod_sandbox(ListPodSandboxRequest::default()).await)?;
        Ok(pods.items.into_iter().map(|pod| pod.id).collect())
    }
}

/// A pod as a kubelet asks for it, with its logs in a directory. No cgroup parent: the runtime's own.
pub fn pod(name: &str, logs: &Path, network: NamespaceMode) -> PodSandboxConfig {
    // IPC in a namespace of the pod, PID in one of the container, as a kubelet has it.
    let namespaces = NamespaceOption {
        network: network.into(),
        pid: NamespaceMode::Container.into(),
        ..Default::default()
    };
    let security = LinuxSandboxSecurityContext { namespace_options: Some(namespaces), ..Default::default() };
    let metadata = PodSandboxMetadata {
        name: name.to_owned(),
        uid: format!("{name}-uid"),
        namespace: "default".into(),
        attempt: 0,
    };
    PodSandboxConfig {
        metadata: Some(metadata),
        hostname: name.to_owned(),
        log_directory: logs.display().to_string(),
        linux: Some(LinuxPodSandboxConfig { security_context: Some(security), ..Default::default() }),
        ..Default::default()
    }
}

/// A container of an image, logging to `NAME.log` of its pod's directory.
pub fn container(name: &str, image: &str, command: &[&str]) -> ContainerConfig {
    ContainerConfig {
        metadata: Some(ContainerMetadata { name: name.to_owned(), attempt: 0 }),
        // Both, as a kubelet has it: CRI-O asks for the second.
        image: Some(ImageSpec {
            image: image.to_owned(),
            user_specified_image: image.to_owned(),
            ..Default::default()
        }),
        command: command.iter().map(|word| (*word).to_owned()).collect(),
        log_path: format!("{name}.log"),
        // As its pod has them: a kubelet says it of both, and CRI-O takes the container's word.
        linux: Some(LinuxContainerConfig {
            security_context: Some(LinuxContainerSecurityContext {
                namespace_options: Some(NamespaceOption {
                    pid: NamespaceMode::Container.into(),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// Waits for work and tells how many milliseconds it took.
pub async fn timed<T>(work: impl Future<Output = Result<T>>) -> Result<(T, f64)> {
    let begun = Instant::now();
    let done = work.await?;
    Ok((done, begun.elapsed().as_secs_f64() * 1000.0))
}

/// The answer of a call, or its failure in words.
pub fn done<T>(call: &str, answer: std::result::Result<Response<T>, Status>) -> Result<T> {
    answer
        .map(Response::into_inner)
        .map_err(|status| format!("{call}: {:?}: {}", status.code(), status.message()))
}

fn chain(error: &dyn std::error::Error) -> String {
    let source = error.source().map(|source| format!(": {}", chain(source)));
    format!("{error}{}", source.unwrap_or_default())
}
