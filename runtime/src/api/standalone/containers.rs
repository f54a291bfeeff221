//! The table of the Containers service: each call, its span, and where it is answered.

use berth_cri::berth::{self as api, containers_server::Containers};
use tonic::{Request, Streaming};
use tracing::info_span;

use super::{Answer, Flow, attach, create, exec, lifecycle, list, logs, stats};
use crate::api::{Door, status::call};

#[tonic::async_trait]
impl Containers for Door {
    async fn create(&self, request: Request<api::CreateRequest>) -> Answer<api::CreateResponse> {
        call(info_span!("rpc", op = "Create"), create::create(self, request.into_inner())).await
    }

    async fn start(&self, request: Request<api::StartRequest>) -> Answer<api::StartResponse> {
        let container = request.into_inner().container;
        call(info_span!("rpc", op = "Start", container), lifecycle::start(self, &container)).await
    }

    async fn stop(&self, request: Request<api::StopRequest>) -> Answer<api::StopResponse> {
        let request = request.into_inner();
        let span = info_span!("rpc", op = "Stop", container = request.container);
        call(span, lifecycle::stop(self, request)).await
    }

    async fn kill(&self, request: Request<api::KillRequest>) -> Answer<api::KillResponse> {
        let request = request.into_inner();
        let span = info_span!("rpc", op = "Kill", container = request.container, signal = request.signal);
        call(span, lifecycle::kill(self, request)).await
    }

    async fn remove(&self, request: Request<api::RemoveRequest>) -> Answer<api::RemoveResponse> {
        let request = request.into_inner();
        let span = info_span!("rpc", op = "Remove", container = request.container);
        call(span, lifecycle::remove(self, request)).await
    }

    async fn list(&self, request: Request<api::ListRequest>) -> Answer<api::ListResponse> {
        let request = request.into_inner();
        call(info_span!("rpc", op = "List"), async { Ok(list::list(self, &request)) }).await
    }

    async fn inspect(&self, request: Request<api::InspectRequest>) -> Answer<api::InspectResponse> {
        let container = request.into_inner().container;
        call(info_span!("rpc", op = "Inspect", container), async { list::inspect(self, &container) }).await
    }

    async fn wait(&self, request: Request<api::WaitRequest>) -> Answer<api::WaitResponse> {
        let container = request.into_inner().container;
        call(info_span!("rpc", op = "Wait", container), lifecycle::wait(self, &container)).await
    }

    type LogsStream = Flow<api::LogEntry>;
    async fn logs(&self, request: Request<api::LogsRequest>) -> Answer<Self::LogsStream> {
        let request = request.into_inner();
        let span = info_span!("rpc", op = "Logs", container = request.container);
        call(span, logs::logs(self, request)).await
    }

    type AttachStream = Flow<api::Output>;
    async fn attach(&self, request: Request<Streaming<api::AttachRequest>>) -> Answer<Self::AttachStream> {
        call(info_span!("rpc", op = "Attach"), attach::attach(self, request.into_inner())).await
    }

    type ExecStream = Flow<api::Output>;
    async fn exec(&self, request: Request<Streaming<api::ExecRequest>>) -> Answer<Self::ExecStream> {
        call(info_span!("rpc", op = "Exec"), exec::exec(self, request.into_inner())).await
    }

    type StatsStream = Flow<api::StatsResponse>;
    async fn stats(&self, request: Request<api::StatsRequest>) -> Answer<Self::StatsStream> {
        call(info_span!("rpc", op = "Stats"), stats::stats(self, request.into_inner())).await
    }
}
