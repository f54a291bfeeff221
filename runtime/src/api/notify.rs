//! What a service manager is told, where one listens. sd_notify(3).

use std::os::{
    linux::net::SocketAddrExt,
    unix::{ffi::OsStrExt, net},
};

use tracing::warn;

/// Tells it one or several `NAME=value`, a line each.
pub fn notify(state: &str) {
    let Some(address) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let sent = net::UnixDatagram::unbound().and_then(|socket| {
        let to = match address.as_bytes() {
            [b'@', name @ ..] => net::SocketAddr::from_abstract_name(name)?,
            _ => net::SocketAddr::from_pathname(&address)?,
        };
        socket.send_to_addr(state.as_bytes(), &to)
    });
    if let Err(error) = sent {
        warn!(%error, "the service manager can't be told");
    }
}
