//! The table of CRI's RuntimeService: each call, its span, and where it is answered.

use berth_cri::{
    Items,
    v1::{self as cri, runtime_service_server::RuntimeService},
};
use tonic::{Request, Response, Status};
use tracing::info_span;

use super::{
    events::Events,
    lists::{Pieces, parts, pieces},
    metrics,
};
use crate::api::{
    Door,
    status::{call, later},
};

type Answer<T> = Result<Response<T>, Status>;

const CHECKPOINT: &str = "the checkpoint capability";

#[tonic::async_trait]
impl RuntimeService for Door {
    // ---- the node ----

    async fn version(&self, _: Request<cri::VersionRequest>) -> Answer<cri::VersionResponse> {
        call(info_span!("rpc", op = "Version"), async { Ok(self.version()) }).await
    }

    async fn status(&self, request: Request<cri::StatusRequest>) -> Answer<cri::StatusResponse> {
        let request = request.into_inner();
        call(info_span!("rpc", op = "Status"), async { Ok(self.node_status(&request).await) }).await
    }

    async fn runtime_config(
        &self,
        _: Request<cri::RuntimeConfigRequest>,
    ) -> Answer<cri::RuntimeConfigResponse> {
        call(info_span!("rpc", op = "RuntimeConfig"), async { Ok(self.cgroup_driver()) }).await
    }

    // ---- pods ----

    async fn run_pod_sandbox(
        &self,
        request: Request<cri::RunPodSandboxRequest>,
    ) -> Answer<cri::RunPodSandboxResponse> {
        call(info_span!("rpc", op = "RunPodSandbox"), self.run_pod(request.into_inner())).await
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<cri::StopPodSandboxRequest>,
    ) -> Answer<cri::StopPodSandboxResponse> {
        let id = request.into_inner().pod_sandbox_id;
        let span = info_span!("rpc", op = "StopPodSandbox", pod = id);
        call(span, async { self.stop_pod(&id).await.map(|()| cri::StopPodSandboxResponse {}) }).await
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<cri::RemovePodSandboxRequest>,
    ) -> Answer<cri::RemovePodSandboxResponse> {
        let id = request.into_inner().pod_sandbox_id;
        let span = info_span!("rpc", op = "RemovePodSandbox", pod = id);
        call(span, async { self.remove_pod(&id).await.map(|()| cri::RemovePodSandboxResponse {}) }).await
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<cri::PodSandboxStatusRequest>,
    ) -> Answer<cri::PodSandboxStatusResponse> {
        let request = request.into_inner();
        let span = info_span!("rpc", op = "PodSandboxStatus", pod = request.pod_sandbox_id);
        call(span, async { self.pod_status(&request) }).await
    }

    async fn list_pod_sandbox(&self, request: Request<cri::ListPodSandboxRequest>) -> Answer<Items> {
        let filter = request.into_inner().filter.unwrap_or_default();
        call(info_span!("rpc", op = "ListPodSandbox"), async { self.list_pods(&filter) }).await
    }

    // ---- containers ----

    async fn create_container(
        &self,
        request: Request<cri::CreateContainerRequest>,
    ) -> Answer<cri::CreateContainerResponse> {
        let request = request.into_inner();
        let span = info_span!("rpc", op = "CreateContainer", pod = request.pod_sandbox_id);
        call(span, self.create_in_pod(request)).await
    }

    async fn start_container(
        &self,
        request: Request<cri::StartContainerRequest>,
    ) -> Answer<cri::StartContainerResponse> {
        let id = request.into_inner().container_id;
        let span = info_span!("rpc", op = "StartContainer", container = id);
        call(span, async { self.start(&id).await.map(|()| cri::StartContainerResponse {}) }).await
    }

    async fn stop_container(
        &self,
        request: Request<cri::StopContainerRequest>,
    ) -> Answer<cri::StopContainerResponse> {
        let request = request.into_inner();
        let span = info_span!("rpc", op = "StopContainer", container = request.container_id);
        call(span, async { self.stop(&request).await.map(|()| cri::StopContainerResponse {}) }).await
    }

    async fn remove_container(
        &self,
        request: Request<cri::RemoveContainerRequest>,
    ) -> Answer<cri::RemoveContainerResponse> {
        let id = request.into_inner().container_id;
        let span = info_span!("rpc", op = "RemoveContainer", container = id);
        call(span, async { self.remove(&id).await.map(|()| cri::RemoveContainerResponse {}) }).await
    }

    async fn list_containers(&self, request: Request<cri::ListContainersRequest>) -> Answer<Items> {
        let filter = request.into_inner().filter.unwrap_or_default();
        call(info_span!("rpc", op = "ListContainers"), async { self.list_of_cri(&filter) }).await
    }

    async fn container_status(
        &self,
        request: Request<cri::ContainerStatusRequest>,
    ) -> Answer<cri::ContainerStatusResponse> {
        let request = request.into_inner();
        let span = info_span!("rpc", op = "ContainerStatus", container = request.container_id);
        call(span, async { self.status_of(&request) }).await
    }

    async fn reopen_container_log(
        &self,
        request: Request<cri::ReopenContainerLogRequest>,
    ) -> Answer<cri::ReopenContainerLogResponse> {
        let id = request.into_inner().container_id;
        let span = info_span!("rpc", op = "ReopenContainerLog", container = id);
        call(span, async { self.reopen_log(&id).await.map(|()| cri::ReopenContainerLogResponse {}) }).await
    }

    async fn exec_sync(&self, request: Request<cri::ExecSyncRequest>) -> Answer<cri::ExecSyncResponse> {
        let request = request.into_inner();
        let span = info_span!("rpc", op = "ExecSync", container = request.container_id);
        call(span, self.exec_and_wait(request)).await
    }

    // ---- stats ----

    async fn container_stats(
        &self,
        request: Request<cri::ContainerStatsRequest>,
    ) -> Answer<cri::ContainerStatsResponse> {
        let id = request.into_inner().container_id;
        let span = info_span!("rpc", op = "ContainerStats", container = id);
        call(span, self.stats_of(&id)).await
    }

    async fn list_container_stats(
        &self,
        request: Request<cri::ListContainerStatsRequest>,
    ) -> Answer<cri::ListContainerStatsResponse> {
        let filter = request.into_inner().filter.unwrap_or_default();
        call(info_span!("rpc", op = "ListContainerStats"), self.list_stats(filter)).await
    }

    // ---- streaming ----

    async fn exec(&self, request: Request<cri::ExecRequest>) -> Answer<cri::ExecResponse> {
        let request = request.into_inner();
        let span = info_span!("rpc", op = "Exec", container = request.container_id);
        call(span, async { self.exec_url(request).map(|url| cri::ExecResponse { url }) }).await
    }

    async fn attach(&self, request: Request<cri::AttachRequest>) -> Answer<cri::AttachResponse> {
        let request = request.into_inner();
        let span = info_span!("rpc", op = "Attach", container = request.container_id);
        call(span, async { self.attach_url(&request).map(|url| cri::AttachResponse { url }) }).await
    }

    async fn port_forward(
        &self,
        request: Request<cri::PortForwardRequest>,
    ) -> Answer<cri::PortForwardResponse> {
        let id = request.into_inner().pod_sandbox_id;
        let span = info_span!("rpc", op = "PortForward", pod = id);
        call(span, async { self.port_forward_url(&id).map(|url| cri::PortForwardResponse { url }) }).await
    }

    async fn pod_sandbox_stats(
        &self,
        request: Request<cri::PodSandboxStatsRequest>,
    ) -> Answer<cri::PodSandboxStatsResponse> {
        let id = request.into_inner().pod_sandbox_id;
        let span = info_span!("rpc", op = "PodSandboxStats", pod = id);
        call(span, self.pod_stats_of(&id)).await
    }

    async fn list_pod_sandbox_stats(
        &self,
        request: Request<cri::ListPodSandboxStatsRequest>,
    ) -> Answer<cri::ListPodSandboxStatsResponse> {
        let filter = request.into_inner().filter.unwrap_or_default();
        call(info_span!("rpc", op = "ListPodSandboxStats"), async {
            Ok(cri::ListPodSandboxStatsResponse { stats: self.list_pod_stats(&filter).await? })
        })
        .await
    }

    async fn list_metric_descriptors(
        &self,
        _: Request<cri::ListMetricDescriptorsRequest>,
    ) -> Answer<cri::ListMetricDescriptorsResponse> {
        call(info_span!("rpc", op = "ListMetricDescriptors"), async {
            Ok(cri::ListMetricDescriptorsResponse { descriptors: metrics::descriptors() })
        })
        .await
    }

    async fn list_pod_sandbox_metrics(
        &self,
        _: Request<cri::ListPodSandboxMetricsRequest>,
    ) -> Answer<cri::ListPodSandboxMetricsResponse> {
        call(info_span!("rpc", op = "ListPodSandboxMetrics"), async {
            Ok(cri::ListPodSandboxMetricsResponse { pod_metrics: self.list_metrics().await? })
        })
        .await
    }

    // ---- streamed lists and events ----

    type StreamPodSandboxesStream = Pieces<Items>;
    async fn stream_pod_sandboxes(
        &self,
        request: Request<cri::StreamPodSandboxesRequest>,
    ) -> Answer<Self::StreamPodSandboxesStream> {
        let filter = request.into_inner().filter.unwrap_or_default();
        call(info_span!("rpc", op = "StreamPodSandboxes"), async { self.list_pods(&filter).map(parts) }).await
    }

    type StreamContainersStream = Pieces<Items>;
    async fn stream_containers(
        &self,
        request: Request<cri::StreamContainersRequest>,
    ) -> Answer<Self::StreamContainersStream> {
        let filter = request.into_inner().filter.unwrap_or_default();
        call(info_span!("rpc", op = "StreamContainers"), async { self.list_of_cri(&filter).map(parts) }).await
    }

    type StreamContainerStatsStream = Pieces<cri::StreamContainerStatsResponse>;
    async fn stream_container_stats(
        &self,
        request: Request<cri::StreamContainerStatsRequest>,
    ) -> Answer<Self::StreamContainerStatsStream> {
        let filter = request.into_inner().filter.unwrap_or_default();
        call(info_span!("rpc", op = "StreamContainerStats"), async {
            let listed = self.list_stats(filter).await?.stats;
            Ok(pieces(listed, |container_stats| cri::StreamContainerStatsResponse { container_stats }))
        })
        .await
    }

    type StreamPodSandboxStatsStream = Pieces<cri::StreamPodSandboxStatsResponse>;
    async fn stream_pod_sandbox_stats(
        &self,
        request: Request<cri::StreamPodSandboxStatsRequest>,
    ) -> Answer<Self::StreamPodSandboxStatsStream> {
        let filter = request.into_inner().filter.unwrap_or_default();
        call(info_span!("rpc", op = "StreamPodSandboxStats"), async {
            let listed = self.list_pod_stats(&filter).await?;
            Ok(pieces(listed, |pod_sandbox_stats| cri::StreamPodSandboxStatsResponse { pod_sandbox_stats }))
        })
        .await
    }

    type StreamPodSandboxMetricsStream = Pieces<cri::StreamPodSandboxMetricsResponse>;
    async fn stream_pod_sandbox_metrics(
        &self,
        _: Request<cri::StreamPodSandboxMetricsRequest>,
    ) -> Answer<Self::StreamPodSandboxMetricsStream> {
        call(info_span!("rpc", op = "StreamPodSandboxMetrics"), async {
            let listed = self.list_metrics().await?;
            Ok(pieces(listed, |pod_sandbox_metrics| cri::StreamPodSandboxMetricsResponse {
                pod_sandbox_metrics,
            }))
        })
        .await
    }

    type GetContainerEventsStream = Events;
    async fn get_container_events(
        &self,
        _: Request<cri::GetEventsRequest>,
    ) -> Answer<Self::GetContainerEventsStream> {
        call(info_span!("rpc", op = "GetContainerEvents"), async { Ok(self.events()) }).await
    }

    async fn update_container_resources(
        &self,
        request: Request<cri::UpdateContainerResourcesRequest>,
    ) -> Answer<cri::UpdateContainerResourcesResponse> {
        let request = request.into_inner();
        let span = info_span!("rpc", op = "UpdateContainerResources", container = request.container_id);
        let updated = async {
            self.update(request).await?;
            Ok(cri::UpdateContainerResourcesResponse {})
        };
        call(span, updated).await
    }

    async fn update_pod_sandbox_resources(
        &self,
        request: Request<cri::UpdatePodSandboxResourcesRequest>,
    ) -> Answer<cri::UpdatePodSandboxResourcesResponse> {
        let request = request.into_inner();
        let span = info_span!("rpc", op = "UpdatePodSandboxResources", pod = request.pod_sandbox_id);
        let noted = async {
            self.resize_pod(request).await?;
            Ok(cri::UpdatePodSandboxResourcesResponse {})
        };
        call(span, noted).await
    }

    // ---- what later capabilities bring ----

    async fn update_runtime_config(
        &self,
        request: Request<cri::UpdateRuntimeConfigRequest>,
    ) -> Answer<cri::UpdateRuntimeConfigResponse> {
        let config = request.into_inner().runtime_config.unwrap_or_default();
        let noted = async {
            self.note_pod_ranges(&config.network_config.unwrap_or_default().pod_cidr).await?;
            Ok(cri::UpdateRuntimeConfigResponse {})
        };
        call(info_span!("rpc", op = "UpdateRuntimeConfig"), noted).await
    }

    async fn checkpoint_container(
        &self,
        _: Request<cri::CheckpointContainerRequest>,
    ) -> Answer<cri::CheckpointContainerResponse> {
        later("CheckpointContainer", CHECKPOINT)
    }

    async fn checkpoint_pod(
        &self,
        _: Request<cri::CheckpointPodRequest>,
    ) -> Answer<cri::CheckpointPodResponse> {
        later("CheckpointPod", CHECKPOINT)
    }

    async fn restore_pod(&self, _: Request<cri::RestorePodRequest>) -> Answer<cri::RestorePodResponse> {
        later("RestorePod", CHECKPOINT)
    }
}
