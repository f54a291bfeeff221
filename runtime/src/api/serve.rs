//! The socket: made safely, served until told to stop, taken away at the end.

use std::{
    fs::{self, DirBuilder, Permissions},
    future::Future,
    io,
    os::unix::{
        fs::{DirBuilderExt, FileTypeExt, PermissionsExt},
        net::UnixStream,
    },
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use berth_cri::{
    berth::{
        containers_server::ContainersServer, daemon_server::DaemonServer, images_server::ImagesServer,
        networks_server::NetworksServer,
    },
    v1::{image_service_server::ImageServiceServer, runtime_service_server::RuntimeServiceServer},
};
use rustix::net::sockopt::socket_peercred;
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;
use tracing::{info, warn};

use super::{Door, deadline::Deadline, exporter::Calls, lock, standalone};
use crate::{Error, Kind, Result};

pub use super::lock::{Lock, take};

/// What cri-client takes; a server must not allow less.
pub const MAX_MESSAGE_BYTES: usize = 16 * 1024 * 1024;

/// A call that is still running so long after the end was asked for is let go; its pod's task ends with the daemon
/// and the next one finds what was begun.
const DRAIN: Duration = Duration::from_secs(5);

/// The path of a `unix://` address; a bare absolute path will do.
///
/// # Errors
/// `Invalid` for anything else, and for what does not fit into a socket address (unix(7): 107 bytes).
pub fn path(listen: &str) -> Result<PathBuf> {
    let path = listen.strip_prefix("unix://").unwrap_or(listen);
    if !path.starts_with('/') {
        return Err(Error::invalid("read address", listen, "it is no absolute path")
            .hint("write it as unix:///run/berth/berth.sock"));
    }
    if path.len() > 107 {
        return Err(Error::invalid("read address", listen, "a socket's path has at most 107 bytes")
            .hint("give a shorter one with --listen"));
    }
    Ok(path.into())
}

/// Binds the socket, mode 0660, over a stale one; a socket that somebody answers at is left alone.
pub fn bind(path: &Path) -> Result<UnixListener> {
    let shown = || path.display().to_string();
    if let Some(directory) = path.parent() {
        DirBuilder::new()
            .recursive(true)
            .mode(0o711)
            .create(directory)
            .map_err(|error| Error::io("make directory", directory.display().to_string(), error))?;
    }
    clear(path)?;
    let listener = UnixListener::bind(path).map_err(|error| Error::io("bind socket", shown(), error))?;
    // Until here the umask kept others out: connect(2) needs write permission.
    fs::set_permissions(path, Permissions::from_mode(0o660))
        .map_err(|error| Error::io("set mode of socket", shown(), error))?;
    Ok(listener)
}

/// Serves until `stop` resolves, then lets running calls end for a bounded time.
pub async fn serve(
    door: Door,
    calls: Calls,
    listener: UnixListener,
    stop: impl Future<Output = ()>,
) -> Result<()> {
    let ending = door.ending.clone();
    let mut drained = ending.subscribe();
    standalone::resume(&door).await;
    let writable = door.writable_layers();
    tokio::spawn(door.layers.clone().watch(door.pods.clone(), writable, ending.subscribe()));
    let server = Server::builder()
        // Around the deadline, so that a call it ended is counted as it was answered.
        .layer(calls)
        .layer(Deadline)
        .add_service(
            RuntimeServiceServer::new(door.clone())
                .max_decoding_message_size(MAX_MESSAGE_BYTES)
                .max_encoding_message_size(MAX_MESSAGE_BYTES),
        )
        .add_service(
            ImageServiceServer::new(door.clone())
                .max_decoding_message_size(MAX_MESSAGE_BYTES)
                .max_encoding_message_size(MAX_MESSAGE_BYTES),
        )
        .add_service(
            ContainersServer::new(door.clone())
                .max_decoding_message_size(MAX_MESSAGE_BYTES)
                .max_encoding_message_size(MAX_MESSAGE_BYTES),
        )
        .add_service(ImagesServer::new(door.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES))
        .add_service(NetworksServer::new(door.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES))
        .add_service(DaemonServer::new(door))
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), async move {
            // An error is the sender gone: the end as well.
            drained.wait_for(|ending| *ending).await.ok();
        });
    tokio::pin!(server);
    let served = tokio::select! {
        served = &mut server => served,
        () = stop => {
            ending.send_replace(true);
            match tokio::time::timeout(DRAIN, &mut server).await {
                Ok(served) => served,
                Err(_) => {
                    warn!("some calls did not end in time; their callers will ask again");
                    Ok(())
                }
            }
        }
    };
    info!("socket closed");
    served.map_err(|error| Error::new(Kind::Internal, "serve", "gRPC").because(error))
}

/// Takes away a socket that nobody answers at.
fn clear(path: &Path) -> Result<()> {
    let shown = || path.display().to_string();
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::io("look at socket", shown(), error)),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(Error::new(Kind::Precondition, "bind socket", shown())
                .because(crate::error::Cause("something that is no socket is there".into()))
                .hint("move it away, or give another --listen"));
        }
        Ok(_) => {}
    }
    let patience = Instant::now() + lock::ORPHAN;
    loop {
        match UnixStream::connect(path) {
            Ok(stream) => {
                // Whoever called listen(2): unix(7), SO_PEERCRED. Without an answer somebody lives there.
                let lives =
                    socket_peercred(&stream).map_or(true, |peer| lock::runs(Some(peer.pid.as_raw_pid())));
                if lives || Instant::now() > patience {
                    return Err(Error::new(Kind::Precondition, "bind socket", shown())
                        .because(crate::error::Cause("a daemon answers there already".into()))
                        .hint("stop it, or give another --listen"));
                }
                thread::sleep(Duration::from_millis(2));
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                return fs::remove_file(path)
                    .map_err(|error| Error::io("remove stale socket", shown(), error));
            }
            Err(error) => return Err(Error::io("look at socket", shown(), error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_an_absolute_path_that_fits() {
        assert_eq!(path("unix:///run/b.sock").unwrap(), PathBuf::from("/run/b.sock"));
        assert_eq!(path("/run/b.sock").unwrap(), PathBuf::from("/run/b.sock"));
        assert!(path(&format!("unix:///{}", "a".repeat(106))).is_ok());
        for bad in ["", "unix://", "tcp://1.2.3.4:5", "run/b.sock", &format!("/{}", "a".repeat(107))] {
            assert_eq!(path(bad).unwrap_err().kind, Kind::Invalid, "{bad}");
        }
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_live_one_or_a_file_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("run/b.sock");
        let first = bind(&socket).unwrap();
        assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o660);
        assert!(bind(&socket).unwrap_err().chain().contains("a daemon answers there already"));
        drop(first);
        drop(bind(&socket).unwrap());
        let file = dir.path().join("file");
        fs::write(&file, "mine").unwrap();
        assert!(bind(&file).unwrap_err().chain().contains("no socket"));
        assert_eq!(fs::read(&file).unwrap(), b"mine");
    }
}
