//! What the client of `bench` measures of lists: a thousand containers that exist, and what it takes to be told of them.
//!
//! They are created and not started: each has its shim, its process and its record, and costs no more of the machine.
//! What is measured is the whole call, as a client has it: asked, answered, read. Making a thousand structs of what was
//! read is the client's own affair and takes it longer than all else: the list of containers is measured with and without.

use std::path::Path;

use berth_cri::{
    Items,
    v1::{ContainerStatusRequest, ListContainersRequest, NamespaceMode, PodSandboxStatusRequest},
};
use tonic::{Request, client::Grpc, codegen::http::uri::PathAndQuery};
use tonic_prost::ProstCodec;

use crate::kubelet::{Kubelet, Result, container, done, pod, timed};

/// In so many pods so many containers each.
const PODS: usize = 10;
const EACH: usize = 100;

/// The calls, as they are named in the figures.
pub const CALLS: [&str; 5] =
    ["list containers", "and decoded", "list pods", "container status", "pod status"];

/// A thousand containers, gone with `remove`.
#[derive(Debug, Default)]
pub struct Thousand {
    pods: Vec<String>,
    containers: Vec<String>,
}

impl Thousand {
    /// Makes them; after an error `remove` takes away what there is.
    pub async fn make(&mut self, kubelet: &mut Kubelet, image: &str, logs: &Path) -> Result<()> {
        for number in 0..PODS {
            let name = format!("lists-{number}");
            let config = pod(&name, &logs.join(&name), NamespaceMode::Node);
            let id = kubelet.run_pod(&config).await?;
            self.pods.push(id.clone());
            for number in 0..EACH {
                let asked = container(&format!("c{number}"), image, &["/bin/sleep", "1000"]);
                self.containers.push(kubelet.create(&id, asked, &config).await?);
            }
        }
        Ok(())
    }

    /// How many milliseconds each of `CALLS` takes, once, in their order; statuses are of another container each round.
    pub async fn measure(&self, kubelet: &mut Kubelet, round: usize) -> Result<[f64; CALLS.len()]> {
        let one = |all: &[String]| all[round * 37 % all.len()].clone();
        let (read, as_read) = timed(kubelet.containers_as_read()).await?;
        let (decoded, as_decoded) = timed(kubelet.containers()).await?;
        for containers in [read, decoded] {
            if containers < self.containers.len() {
                return Err(format!("{containers} containers are listed, of {}", self.containers.len()));
            }
        }
        Ok([
            as_read,
            as_decoded,
            timed(kubelet.pods()).await?.1,
            timed(kubelet.container_status(&one(&self.containers))).await?.1,
            timed(kubelet.pod_status(&one(&self.pods))).await?.1,
        ])
    }

    pub async fn remove(&self, kubelet: &mut Kubelet) -> Result<()> {
        let mut first = Ok(());
        for pod in &self.pods {
            first = first.and(kubelet.remove_pod(pod).await);
        }
        first
    }
}

impl Kubelet {
    /// How many containers there are.
    pub async fn containers(&mut self) -> Result<usize> {
        let request = ListContainersRequest::default();
        Ok(done("ListContainers", self.runtime.list_containers(request).await)?.containers.len())
    }

    /// The same, by their bytes.
    pub async fn containers_as_read(&mut self) -> Result<usize> {
        let path = PathAndQuery::from_static("/runtime.v1.RuntimeService/ListContainers");
        let mut client = Grpc::new(self.channel.clone()).max_decoding_message_size(16 << 20);
        client.ready().await.map_err(|error| format!("ListContainers: {error}"))?;
        let codec = ProstCodec::<ListContainersRequest, Items>::default();
        let answer = client.unary(Request::new(ListContainersRequest::default()), path, codec).await;
        Ok(done("ListContainers", answer)?.items.len())
    }

    pub async fn container_status(&mut self, container: &str) -> Result<()> {
        let request = ContainerStatusRequest { container_id: container.to_owned(), verbose: false };
        done("ContainerStatus", self.runtime.container_status(request).await).map(drop)
    }

    pub async fn pod_status(&mut self, pod: &str) -> Result<()> {
        let request = PodSandboxStatusRequest { pod_sandbox_id: pod.to_owned(), verbose: false };
        done("PodSandboxStatus", self.runtime.pod_sandbox_status(request).await).map(drop)
    }
}
