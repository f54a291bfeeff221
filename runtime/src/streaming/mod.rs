//! The streaming server of CRI: Exec, Attach and PortForward answer with a URL of it, and kubelet or crictl connects.
//!
//! ```text
//! api ──give──> Tickets <──take── http ──upgrade──> remote ──> exec, attach ──> pod
//!                                   │    (SPDY/3.1 or WebSocket: spdy, websocket)
//!                                   └─────────────> portforward ──> launcher (dial in the pod's network)
//! ```
//! One task per connection, everything of a session in it: a client that hangs up drops it all. `ends` and `abandoned`
//! serve `api`'s own streams as well, `connections` its listener for metrics.

pub mod abandoned;
mod attach;
mod channels;
pub mod connections;
pub mod ends;
mod exec;
mod http;
mod line;
mod outcome;
mod portforward;
mod remote;
mod spdy;
mod tickets;
mod tls;
mod upgrade;
mod websocket;

use std::{future::Future, net::SocketAddr, sync::Arc};

use tokio::net::TcpListener;
use tracing::info;

use self::tls::Tls;
pub use self::{
    channels::Wanted,
    tickets::{Purpose, Tickets},
};
use crate::{Error, Kind, Result, config, launcher::Launcher, pod::Pods};

/// Connections at once, waiting for their request or in session.
const MOST_CONNECTIONS: usize = 512;

/// A server that listens.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    tickets: Tickets,
    tls: Option<Tls>,
}

/// What sessions are held with.
#[derive(Debug)]
struct Rooms {
    tickets: Tickets,
    pods: Pods,
    launcher: Launcher,
    tls: Option<Tls>,
}

impl Server {
    pub async fn bind(config: &config::Streaming) -> Result<Self> {
        const OP: &str = "listen for streaming";
        let failed = |error| {
            Error::io(OP, &config.address, error).hint("streaming.address has to be free and of this node")
        };
        let tls = Tls::of(config)?;
        let listener = TcpListener::bind(address(config)?).await.map_err(failed)?;
        let bound = listener.local_addr().map_err(failed)?;
        info!(address = %bound, tls = config.tls, "streaming server listens");
        let scheme = if tls.is_some() { "https" } else { "http" };
        Ok(Self { listener, tickets: Tickets::new(scheme, bound), tls })
    }

    pub fn tickets(&self) -> Tickets {
        self.tickets.clone()
    }

    /// Serves until `stop` resolves. Sessions end then: their execs are killed, containers run on.
    pub async fn serve(self, pods: Pods, launcher: Launcher, stop: impl Future<Output = ()>) {
        let rooms = Arc::new(Rooms { tickets: self.tickets, pods, launcher, tls: self.tls });
        let connection = |socket| http::connection(socket, rooms.clone());
        connections::serve(self.listener, MOST_CONNECTIONS, connection, stop).await;
    }
}

/// Checks the address and the certificates of a configuration.
///
/// # Errors
/// `Invalid` names the key.
pub fn check(config: &config::Streaming) -> Result<()> {
    address(config)?;
    Tls::of(config).map(drop)
}

/// The address of a configuration.
///
/// # Errors
/// `Invalid` where it is no IP address with a port.
fn address(config: &config::Streaming) -> Result<SocketAddr> {
    config.address.parse().map_err(|error| {
        Error::new(Kind::Invalid, "read configuration", "streaming.address")
            .because(error)
            .hint("write it as 127.0.0.1:0; port 0 takes a free one")
    })
}
