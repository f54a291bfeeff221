//! Connections of a listener: each a task, so many at once, all of them ended with the server.

use std::{future::Future, sync::Arc, time::Duration};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
};
use tracing::warn;

/// Accepts until `stop` resolves, up to `most` connections at once; what is under way then is dropped.
pub async fn serve<F>(
    listener: TcpListener,
    most: usize,
    connection: impl Fn(TcpStream) -> F,
    stop: impl Future<Output = ()>,
) where
    F: Future<Output = ()> + Send + 'static,
{
    let room = Arc::new(Semaphore::new(most));
    let mut connections = JoinSet::new();
    let accepting = async {
        loop {
            // Never closed.
            let Ok(place) = room.clone().acquire_owned().await else { return };
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((socket, _)) => {
                        let connection = connection(socket);
                        connections.spawn(async move {
                            connection.await;
                            drop(place);
                        });
                    }
                    Err(error) => {
                        warn!(%error, "connection not accepted");
                        // Out of descriptors, most likely: others have to end first.
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                },
                // Nothing to learn from one that ended, and its place is needed.
                Some(_) = connections.join_next() => {}
            }
        }
    };
    tokio::select! {
        () = accepting => {}
        () = stop => {}
    }
    connections.shutdown().await;
}
