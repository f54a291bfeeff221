//! The daemon's socket and the clients on it.

use std::{
    io::{self, ErrorKind},
    path::PathBuf,
    sync::{Mutex, PoisonError},
};

use berth_cri::{
    berth::{
        containers_client::ContainersClient, daemon_client::DaemonClient, images_client::ImagesClient,
        networks_client::NetworksClient,
    },
    v1::{image_service_client::ImageServiceClient, runtime_service_client::RuntimeServiceClient},
};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

use super::failure::{Failure, Result};

pub(super) const DEFAULT: &str = "unix:///run/berth/berth.sock";

/// What a server of ours may answer at most.
const MESSAGE_BYTES: usize = 16 * 1024 * 1024;

#[derive(Debug, Clone)]
pub(super) struct Daemon {
    channel: Channel,
}

impl Daemon {
    /// Connects, or says in a line why nobody is there.
    pub(super) async fn connect(address: &str) -> Result<Self> {
        let path = path(address)?;
        // Connected here, so that the cause is the kernel's and not a transport's.
        let stream = UnixStream::connect(&path).await.map_err(|error| unreachable(address, &error))?;
        let first = Mutex::new(Some(stream));
        let connector = service_fn(move |_: Uri| {
            let ready = first.lock().unwrap_or_else(PoisonError::into_inner).take();
            let path = path.clone();
            async move {
                let stream = match ready {
                    Some(stream) => stream,
                    None => UnixStream::connect(path).await?,
                };
                Ok::<_, io::Error>(TokioIo::new(stream))
            }
        });
        // The name is for HTTP's sake; the socket is what counts.
        let endpoint = Endpoint::from_static("http://berth");
        let channel = endpoint.connect_with_connector(connector).await.map_err(|error| {
            Failure::new(format!("whoever answers at {address} does not speak gRPC: {error}"))
        })?;
        Ok(Self { channel })
    }

    pub(super) fn containers(&self) -> ContainersClient<Channel> {
        ContainersClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES)
    }

    pub(super) fn images(&self) -> ImagesClient<Channel> {
        ImagesClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES)
    }

    pub(super) fn networks(&self) -> NetworksClient<Channel> {
        NetworksClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES)
    }

    pub(super) fn daemon(&self) -> DaemonClient<Channel> {
        DaemonClient::new(self.channel.clone())
    }

    pub(super) fn cri(&self) -> RuntimeServiceClient<Channel> {
        RuntimeServiceClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES)
    }

    pub(super) fn cri_images(&self) -> ImageServiceClient<Channel> {
        ImageServiceClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES)
    }
}

fn path(address: &str) -> Result<PathBuf> {
    let path = address.strip_prefix("unix://").unwrap_or(address);
    if !path.starts_with('/') {
        return Err(Failure::new(format!(
            "the address {address:?} is no socket's; write it as unix:///run/berth/berth.sock"
        )));
    }
    Ok(path.into())
}

fn unreachable(address: &str, error: &io::Error) -> Failure {
    let path = address.strip_prefix("unix://").unwrap_or(address);
    Failure::new(match error.kind() {
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => {
            format!("no daemon answers at unix://{path}; start one with `berthd`")
        }
        ErrorKind::PermissionDenied => {
            format!("no permission to reach the daemon at unix://{path}; be root or in the socket's group")
        }
        _ => format!("connect to unix://{path}: {error}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_socket_with_or_without_its_scheme() {
        assert_eq!(path("unix:///run/b.sock").unwrap(), PathBuf::from("/run/b.sock"));
        assert_eq!(path("/run/b.sock").unwrap(), PathBuf::from("/run/b.sock"));
        for bad in ["", "tcp://127.0.0.1:1", "run/b.sock", "unix://b.sock"] {
            assert!(path(bad).is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn nobody_there_is_one_clear_line() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("b.sock");
        let address = format!("unix://{}", socket.display());
        let expected = format!("no daemon answers at {address}; start one with `berthd`");
        assert_eq!(Daemon::connect(&address).await.unwrap_err().text, expected);
        drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
        assert_eq!(Daemon::connect(&address).await.unwrap_err().text, expected);
    }

    #[test]
    fn a_closed_door_has_a_line_of_its_own() {
        let denied = unreachable("unix:///b", &ErrorKind::PermissionDenied.into()).text;
        assert!(denied.starts_with("no permission to reach the daemon at unix:///b"), "{denied}");
    }
}
