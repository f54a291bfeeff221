//! Lists, statuses and stats of whatever there is, by one client.
//!
//! What is measured is the whole call, as a client has it: asked, answered, read. Making structs of what was read is the
//! client's own affair, and with a thousand containers takes it longer than all else: that list is measured with and without.

use berth_cri::{
    Items,
    v1::{
        ContainerStatusRequest, ListContainerStatsRequest, ListContainersRequest, ListPodSandboxStatsRequest,
        PodSandboxStatusRequest,
    },
};
use tonic::{Request, client::Grpc, codegen::http::uri::PathAndQuery};
use tonic_prost::ProstCodec;

use crate::{
    Report, Runtime, fleet,
    kubelet::{Kubelet, Result, done, timed},
};

/// Not measured.
const WARM_UP: usize = 3;
/// Answers of a full node are longer than a client takes by itself.
const MESSAGE_BYTES: usize = 64 << 20;

pub async fn all(runtimes: &mut [Runtime], rounds: usize, report: &mut Report) {
    for runtime in runtimes {
        match measure(&mut runtime.kubelet, rounds).await {
            Ok(figures) => {
                figures.into_iter().for_each(|(name, took)| report.samples(name, &runtime.name, "ms", took))
            }
            Err(error) => report.failed("lists", &runtime.name, &error),
        }
    }
}

async fn measure(kubelet: &mut Kubelet, rounds: usize) -> Result<Vec<(&'static str, Vec<f64>)>> {
    kubelet.runtime = kubelet.runtime.clone().max_decoding_message_size(MESSAGE_BYTES);
    let (containers, pods) = (fleet::running(kubelet).await?, kubelet.pods().await?);
    if containers.is_empty() || pods.is_empty() {
        return Err("there is nothing to list".into());
    }
    let mut figures: Vec<(&str, Vec<f64>)> = Vec::new();
    for round in 0..rounds + WARM_UP {
        let one = |all: &[String]| all[round * 37 % all.len()].clone();
        let took = [
            ("ListContainers", timed(kubelet.containers_as_read()).await?.1),
            ("ListContainers and decoded", timed(kubelet.containers()).await?.1),
            ("ListPodSandbox", timed(kubelet.pods()).await?.1),
            ("ContainerStatus", timed(kubelet.container_status(&one(&containers))).await?.1),
            ("PodSandboxStatus", timed(kubelet.pod_status(&one(&pods))).await?.1),
            ("ListContainerStats", timed(kubelet.container_stats()).await?.1),
            ("ListPodSandboxStats", timed(kubelet.pod_stats()).await?.1),
        ];
        if round == WARM_UP {
            figures = took.iter().map(|(name, _)| (*name, Vec::new())).collect();
        }
        figures.iter_mut().zip(took).for_each(|(figure, (_, took))| figure.1.push(took));
    }
    Ok(figures)
}

impl Kubelet {
    /// How many containers there are.
    pub async fn containers(&mut self) -> Result<usize> {
        let request = ListContainersRequest::default();
        Ok(done("ListContainers", self.runtime.list_containers(request).await)?.containers.len())
    }

    /// The same, by their bytes.
    async fn containers_as_read(&mut self) -> Result<usize> {
        let path = PathAndQuery::from_static("/runtime.v1.RuntimeService/ListContainers");
        let mut client = Grpc::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES);
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

    async fn container_stats(&mut self) -> Result<()> {
        let request = ListContainerStatsRequest::default();
        done("ListContainerStats", self.runtime.list_container_stats(request).await).map(drop)
    }

    async fn pod_stats(&mut self) -> Result<()> {
        let request = ListPodSandboxStatsRequest::default();
        done("ListPodSandboxStats", self.runtime.list_pod_sandbox_stats(request).await).map(drop)
    }
}
