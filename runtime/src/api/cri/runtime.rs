//! The table of CRI's RuntimeService: each call, its span, and where it is answered.

use berth_cri::v1::{self as cri, runtime_service_server::RuntimeService};
use futures_util::stream::Empty;
use tonic::{Request, Response, Status};
use tracing::info_span;

use crate::api::{
    Door,
    status::{call, later},
};

type Answer<T> = Result<Response<T>, Status>;
type Nothing<T> = Empty<Result<T, Status>>;

const STREAMING: &str = "the streaming capability";
const STATS: &str = "the metrics capability";
const LISTS: &str = "the streamed lists";
const RESIZE: &str = "in-place resize";
const CHECKPOINT: &str = "the checkpoint capability";

#[tonic::async_trait]
impl RuntimeService for Door {
    // ---- the node ----

    async fn version(&self, _: Request<cri::VersionRequest>) -> Answer<cri::VersionResponse> {
        call(info_span!("rpc", op = "Version"), async { Ok(self.version()) }).await
    }

    async fn status(&self, request: Request<cri::StatusRequest>) -> Answer<cri::StatusResponse> {
        let request = request.into_inner();
        call(info_span!("rpc", op = "Status"), async { Ok(self.node_status(&request)) }).await
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

    async fn list_pod_sandbox(
        &self,
        request: Request<cri::ListPodSandboxRequest>,
    ) -> Answer<cri::ListPodSandboxResponse> {
        let filter = request.into_inner().filter.unwrap_or_default();
        call(info_span!("rpc", op = "ListPodSandbox"), async { Ok(self.list_pods(&filter)) }).await
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

    async fn list_containers(
        &self,
        request: Request<cri::ListContainersRequest>,
    ) -> Answer<cri::ListContainersResponse> {
        let filter = request.into_inner().filter.unwrap_or_default();
        call(info_span!("rpc", op = "ListContainers"), async { Ok(self.list_of_cri(&filter)) }).await
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

    // ---- what later capabilities bring ----

    async fn exec(&self, _: Request<cri::ExecRequest>) -> Answer<cri::ExecResponse> {
        later("Exec over a streaming server", &format!("{STREAMING}; use ExecSync, or `berth exec`"))
    }

    async fn attach(&self, _: Request<cri::AttachRequest>) -> Answer<cri::AttachResponse> {
        later("Attach over a streaming server", &format!("{STREAMING}; use `berth attach`"))
    }

    async fn port_forward(&self, _: Request<cri::PortForwardRequest>) -> Answer<cri::PortForwardResponse> {
        later("PortForward", STREAMING)
    }

    type StreamPodSandboxesStream = Nothing<cri::StreamPodSandboxesResponse>;
    async fn stream_pod_sandboxes(
        &self,
        _: Request<cri::StreamPodSandboxesRequest>,
    ) -> Answer<Self::StreamPodSandboxesStream> {
        later("StreamPodSandboxes", &format!("{LISTS}; use ListPodSandbox"))
    }

    type StreamContainersStream = Nothing<cri::StreamContainersResponse>;
    async fn stream_containers(
        &self,
        _: Request<cri::StreamContainersRequest>,
    ) -> Answer<Self::StreamContainersStream> {
        later("StreamContainers", &format!("{LISTS}; use ListContainers"))
    }

    type StreamContainerStatsStream = Nothing<cri::StreamContainerStatsResponse>;
    async fn stream_container_stats(
        &self,
        _: Request<cri::StreamContainerStatsRequest>,
    ) -> Answer<Self::StreamContainerStatsStream> {
        later("StreamContainerStats", &format!("{LISTS}; use ListContainerStats"))
    }

    async fn pod_sandbox_stats(
        &self,
        _: Request<cri::PodSandboxStatsRequest>,
    ) -> Answer<cri::PodSandboxStatsResponse> {
        later("PodSandboxStats", &format!("{STATS}; use ContainerStats"))
    }

    async fn list_pod_sandbox_stats(
        &self,
        _: Request<cri::ListPodSandboxStatsRequest>,
    ) -> Answer<cri::ListPodSandboxStatsResponse> {
        later("ListPodSandboxStats", &format!("{STATS}; use ListContainerStats"))
    }

    type StreamPodSandboxStatsStream = Nothing<cri::StreamPodSandboxStatsResponse>;
    async fn stream_pod_sandbox_stats(
        &self,
        _: Request<cri::StreamPodSandboxStatsRequest>,
    ) -> Answer<Self::StreamPodSandboxStatsStream> {
        later("StreamPodSandboxStats", STATS)
    }

    async fn list_metric_descriptors(
        &self,
        _: Request<cri::ListMetricDescriptorsRequest>,
    ) -> Answer<cri::ListMetricDescriptorsResponse> {
        later("ListMetricDescriptors", STATS)
    }

    async fn list_pod_sandbox_metrics(
        &self,
        _: Request<cri::ListPodSandboxMetricsRequest>,
    ) -> Answer<cri::ListPodSandboxMetricsResponse> {
        later("ListPodSandboxMetrics", STATS)
    }

    type StreamPodSandboxMetricsStream = Nothing<cri::StreamPodSandboxMetricsResponse>;
    async fn stream_pod_sandbox_metrics(
        &self,
        _: Request<cri::StreamPodSandboxMetricsRequest>,
    ) -> Answer<Self::StreamPodSandboxMetricsStream> {
        later("StreamPodSandboxMetrics", STATS)
    }

    type GetContainerEventsStream = Nothing<cri::ContainerEventResponse>;
    async fn get_container_events(
        &self,
        _: Request<cri::GetEventsRequest>,
    ) -> Answer<Self::GetContainerEventsStream> {
        later("GetContainerEvents", "the events capability; use the lists")
    }

    async fn update_container_resources(
        &self,
        _: Request<cri::UpdateContainerResourcesRequest>,
    ) -> Answer<cri::UpdateContainerResourcesResponse> {
        later("UpdateContainerResources", RESIZE)
    }

    async fn update_pod_sandbox_resources(
        &self,
        _: Request<cri::UpdatePodSandboxResourcesRequest>,
    ) -> Answer<cri::UpdatePodSandboxResourcesResponse> {
        later("UpdatePodSandboxResources", RESIZE)
    }

    async fn update_runtime_config(
        &self,
        _: Request<cri::UpdateRuntimeConfigRequest>,
    ) -> Answer<cri::UpdateRuntimeConfigResponse> {
        later("UpdateRuntimeConfig", "CNI; the built-in bridge takes its subnet from network.bridge.subnet")
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
