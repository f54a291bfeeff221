//! The typed clients on a daemon's socket. Each is a connection of its own: none is stale after a restart.

use std::{future::Future, io, time::Duration};

use berth_cri::{
    berth::{
        containers_client::ContainersClient, daemon_client::DaemonClient, images_client::ImagesClient,
        networks_client::NetworksClient,
    },
    v1::{image_service_client::ImageServiceClient, runtime_service_client::RuntimeServiceClient},
};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::{
    Response, Status,
    transport::{Channel, Endpoint, Uri},
};
use tower::service_fn;

use crate::daemon::Daemon;

/// What a call came to.
pub type Answer<T> = Result<T, Status>;

const MESSAGE_BYTES: usize = 64 * 1024 * 1024;
/// No call of the tests may take longer.
const LONGEST: Duration = Duration::from_secs(120);

impl Daemon {
    pub fn runtime(&self) -> RuntimeServiceClient<Channel> {
        RuntimeServiceClient::new(self.channel()).max_decoding_message_size(MESSAGE_BYTES)
    }

    pub fn images(&self) -> ImageServiceClient<Channel> {
        ImageServiceClient::new(self.channel())
    }

    pub fn containers(&self) -> ContainersClient<Channel> {
        ContainersClient::new(self.channel()).max_decoding_message_size(MESSAGE_BYTES)
    }

    pub fn berth_images(&self) -> ImagesClient<Channel> {
        ImagesClient::new(self.channel())
    }

    pub fn networks(&self) -> NetworksClient<Channel> {
        NetworksClient::new(self.channel())
    }

    pub fn facts(&self) -> DaemonClient<Channel> {
        DaemonClient::new(self.channel())
    }

    /// Makes a call and waits for its answer.
    pub fn call<T>(&self, call: impl Future<Output = Result<Response<T>, Status>>) -> Answer<T> {
        self.wait(call).map(Response::into_inner)
    }

    /// Waits for anything of the async world.
    ///
    /// # Panics
    /// When it takes longer than two minutes.
    pub fn wait<T>(&self, work: impl Future<Output = T>) -> T {
        self.tokio()
            .block_on(async { tokio::time::timeout(LONGEST, work).await })
            .unwrap_or_else(|_| panic!("no answer within {LONGEST:?}"))
    }

    fn channel(&self) -> Channel {
        let path = self.place().socket();
        let connector = service_fn(move |_: Uri| {
            let path = path.clone();
            async move { Ok::<_, io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
        });
        // The connection's task needs somewhere to run.
        let _tokio = self.tokio().enter();
        Endpoint::from_static("http://berth").connect_with_connector_lazy(connector)
    }
}
