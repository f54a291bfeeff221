//! A daemon for the tests of the tool: it says what a test tells it to and remembers what it was asked.

use std::sync::{Arc, Mutex};

use berth_cri::berth::{
    self as api,
    containers_server::{Containers, ContainersServer},
    output::Message as Said,
};
use futures_util::{
    StreamExt,
    stream::{self, BoxStream},
};
use tokio::{net::UnixListener, sync::mpsc};
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::{Request, Response, Status, Streaming, transport::Server};

use super::connect::Daemon;

type Answer<T> = Result<Response<T>, Status>;
type Flow<T> = BoxStream<'static, Result<T, Status>>;

#[derive(Debug, Clone, Default)]
pub(super) struct Fake {
    calls: Arc<Mutex<Vec<String>>>,
    /// What Start is refused with.
    refuses: Option<&'static str>,
}

impl Fake {
    pub(super) fn refusing(cause: &'static str) -> Self {
        Self { refuses: Some(cause), ..Self::default() }
    }

    /// Serves on a socket of its own until the test ends.
    pub(super) async fn serve(&self) -> (Daemon, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("b.sock");
        let listener = UnixListenerStream::new(UnixListener::bind(&socket).unwrap());
        let server = Server::builder().add_service(ContainersServer::new(self.clone()));
        tokio::spawn(server.serve_with_incoming(listener));
        (Daemon::connect(socket.to_str().unwrap()).await.unwrap(), dir)
    }

    pub(super) fn calls(&self) -> Vec<String> {
        self.calls.lock().unwrap().clone()
    }

    fn called(&self, call: impl Into<String>) {
        self.calls.lock().unwrap().push(call.into());
    }
}

fn said(message: Said) -> Result<api::Output, Status> {
    Ok(api::Output { message: Some(message) })
}

fn none<T>() -> Answer<T> {
    Err(Status::unimplemented("not in this test"))
}

#[tonic::async_trait]
impl Containers for Fake {
    async fn create(&self, _: Request<api::CreateRequest>) -> Answer<api::CreateResponse> {
        none()
    }
    async fn start(&self, request: Request<api::StartRequest>) -> Answer<api::StartResponse> {
        let id = request.into_inner().container;
        self.called(format!("start {id}"));
        match self.refuses {
            Some(cause) => Err(Status::internal(cause)),
            None => Ok(Response::new(api::StartResponse { id })),
        }
    }
    async fn stop(&self, _: Request<api::StopRequest>) -> Answer<api::StopResponse> {
        none()
    }
    async fn kill(&self, _: Request<api::KillRequest>) -> Answer<api::KillResponse> {
        none()
    }
    async fn remove(&self, request: Request<api::RemoveRequest>) -> Answer<api::RemoveResponse> {
        let id = request.into_inner().container;
        self.called(format!("remove {id}"));
        if id == "absent" {
            Err(Status::not_found("no such thing"))
        } else {
            Ok(Response::new(api::RemoveResponse { id }))
        }
    }
    async fn list(&self, _: Request<api::ListRequest>) -> Answer<api::ListResponse> {
        none()
    }
    async fn inspect(&self, _: Request<api::InspectRequest>) -> Answer<api::InspectResponse> {
        none()
    }
    async fn wait(&self, _: Request<api::WaitRequest>) -> Answer<api::WaitResponse> {
        self.called("wait");
        Ok(Response::new(api::WaitResponse { exit_code: 7, ..Default::default() }))
    }

    type LogsStream = Flow<api::LogEntry>;
    async fn logs(&self, _: Request<api::LogsRequest>) -> Answer<Self::LogsStream> {
        self.called("logs");
        Ok(Response::new(stream::empty().boxed()))
    }

    /// Attaches, and ends with 3 once all input has come.
    type AttachStream = Flow<api::Output>;
    async fn attach(&self, request: Request<Streaming<api::AttachRequest>>) -> Answer<Self::AttachStream> {
        let mut input = request.into_inner();
        let (sender, receiver) = mpsc::channel(4);
        let fake = self.clone();
        tokio::spawn(async move {
            while let Ok(Some(request)) = input.message().await {
                match request.message.unwrap() {
                    api::attach_request::Message::Open(open) => {
                        fake.called(format!("attach {}", open.container));
                        sender.send(said(Said::Ready(true))).await.unwrap();
                    }
                    api::attach_request::Message::Stdin(bytes) => {
                        fake.called(format!("stdin {}", String::from_utf8_lossy(&bytes)));
                    }
                    api::attach_request::Message::Resize(_) => fake.called("resize"),
                    api::attach_request::Message::StdinClosed(_) => {
                        sender.send(said(Said::ExitCode(3))).await.unwrap();
                    }
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver).boxed()))
    }

    type ExecStream = Flow<api::Output>;
    async fn exec(&self, _: Request<Streaming<api::ExecRequest>>) -> Answer<Self::ExecStream> {
        none()
    }

    type StatsStream = Flow<api::StatsResponse>;
    async fn stats(&self, _: Request<api::StatsRequest>) -> Answer<Self::StatsStream> {
        none()
    }
}
