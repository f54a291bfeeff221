//! One connection: a request is answered, and where its ticket and its upgrade are good, a session follows.

use std::{
    convert::Infallible,
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use http::{Response, StatusCode};
use hyper::{
    Request,
    body::Incoming,
    server::conn::http1,
    service::service_fn,
    upgrade::{OnUpgrade, Upgraded},
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tracing::{Instrument, Span, debug, info_span};

use super::{
    Purpose, Rooms,
    line::Line,
    portforward, remote, spdy,
    upgrade::{Agreed, Carrier, Door, negotiate, refusal},
    websocket,
};
use crate::{Error, Result, error::Cause, launcher::Launcher, pod::Pods};

/// So long a client may take to send its request.
const REQUEST: Duration = Duration::from_secs(10);
const MAX_HEAD_BYTES: usize = 64 * 1024;

/// A session that has been agreed on.
struct Chosen {
    upgrade: OnUpgrade,
    agreed: Agreed,
    purpose: Purpose,
}

pub async fn connection(socket: TcpStream, rooms: Arc<Rooms>) {
    let line = match prepared(&socket) {
        Ok(line) => line,
        Err(error) => return debug!(error = error.chain(), "connection dropped"),
    };
    let Some(tls) = &rooms.tls else { return serve(socket, line, &rooms).await };
    match tokio::time::timeout(REQUEST, tls.accept(socket)).await {
        Ok(Ok(socket)) => serve(socket, line, &rooms).await,
        Ok(Err(error)) => debug!(%error, "no TLS with this client"),
        Err(_) => debug!("a client did not begin TLS in time"),
    }
}

async fn serve<S>(socket: S, line: Line, rooms: &Rooms)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let chosen = Mutex::new(None);
    let service = service_fn(|request| {
        let (answer, session) = answer(request, rooms);
        if session.is_some() {
            *chosen.lock().unwrap_or_else(PoisonError::into_inner) = session;
        }
        std::future::ready(Ok::<_, Infallible>(answer))
    });
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(REQUEST).max_buf_size(MAX_HEAD_BYTES);
    let served = server.serve_connection(TokioIo::new(socket), service).with_upgrades().await;
    if let Err(error) = served {
        debug!(%error, "connection ended");
    }
    let chosen = chosen.into_inner().unwrap_or_else(PoisonError::into_inner);
    if let Some(Chosen { upgrade, agreed, purpose }) = chosen {
        let span = span(&purpose);
        let session = async {
            let ended = match upgrade.await {
                Ok(socket) => session(TokioIo::new(socket), line, agreed, purpose, rooms).await,
                Err(error) => Err(io::Error::other(error)),
            };
            match ended {
                Ok(()) => debug!("session ended"),
                Err(error) => debug!(%error, "session cut short"),
            }
        };
        session.instrument(span).await;
    }
}

/// A client's machine that dies without a word is noticed in the end.
fn prepared(socket: &TcpStream) -> Result<Line> {
    let failed = |error| Error::io("prepare", "a streaming connection", error);
    socket.set_nodelay(true).map_err(failed)?;
    rustix::net::sockopt::set_socket_keepalive(socket, true).map_err(|errno| failed(errno.into()))?;
    Line::of(socket)
}

fn answer(mut request: Request<Incoming>, rooms: &Rooms) -> (Response<String>, Option<Chosen>) {
    let path = request.uri().path();
    let door = match path.starts_with("/portforward/") {
        true => Door::PortForward,
        false => Door::Remote,
    };
    let (answer, agreed) = negotiate(request.method(), request.headers(), door);
    // A request that can't be served leaves its ticket for another.
    let Some(agreed) = agreed else { return (answer, None) };
    let Some(purpose) = rooms.tickets.take(path) else {
        return (refusal(StatusCode::NOT_FOUND, "this URL is used up, or never was good\n"), None);
    };
    (answer, Some(Chosen { upgrade: hyper::upgrade::on(&mut request), agreed, purpose }))
}

fn span(purpose: &Purpose) -> Span {
    match purpose {
        Purpose::Exec { container, .. } => info_span!("stream", op = "exec", container = %container),
        Purpose::Attach { container, .. } => info_span!("stream", op = "attach", container = %container),
        Purpose::PortForward { pod } => info_span!("stream", op = "portforward", pod = %pod),
    }
}

async fn session(
    socket: TokioIo<Upgraded>,
    line: Line,
    agreed: Agreed,
    purpose: Purpose,
    rooms: &Rooms,
) -> io::Result<()> {
    let Rooms { pods, launcher, .. } = rooms;
    match purpose {
        Purpose::Exec { wanted, .. } | Purpose::Attach { wanted, .. } => {
            let protocol = agreed.protocol;
            let remote = remote::Remote { pods, purpose: &purpose, wanted, protocol };
            match agreed.carrier {
                Carrier::Spdy => spdy::serve(socket, line, |streams| remote.over_spdy(streams)).await,
                Carrier::WebSocket => {
                    websocket::serve(socket, line, protocol, wanted, |channels| remote.run(channels)).await
                }
            }
        }
        Purpose::PortForward { pod } => {
            let dial = |port| dial(pods.clone(), launcher.clone(), pod.clone(), port);
            let forward = |streams| portforward::forward(streams, dial);
            match agreed.carrier {
                Carrier::Spdy => spdy::serve(socket, line, forward).await,
                Carrier::WebSocket => websocket::tunnel(socket, line, forward).await,
            }
        }
    }
}

/// Connects to a port of the pod: in its network namespace, or ours where it has none of its own.
async fn dial(pods: Pods, launcher: Launcher, pod: crate::id::PodId, port: u16) -> Result<TcpStream> {
    const OP: &str = "connect to port";
    let shown = || port.to_string();
    let view = pods.pod(&pod).ok_or_else(|| Error::not_found(OP, pod.short()))?;
    if view.state != crate::pod::PodState::Ready {
        return Err(Error::new(crate::Kind::Precondition, OP, shown())
            .because(Cause(format!("pod {} has been stopped", pod.short()))));
    }
    match &view.netns {
        Some(netns) => {
            let socket = launcher.dial(netns, port).await?;
            TcpStream::from_std(socket).map_err(|error| Error::io(OP, shown(), error))
        }
        None => {
            let local = [("127.0.0.1", port), ("::1", port)];
            match TcpStream::connect(local[0]).await {
                Ok(socket) => Ok(socket),
                Err(first) => TcpStream::connect(local[1]).await.map_err(|_| Error::io(OP, shown(), first)),
            }
        }
    }
}
