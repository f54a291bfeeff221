//! Connects inside a pod's network: a short-lived shim enters it, and hands the connected socket back. The daemon
//! itself, threaded as it is, never changes its namespaces.

use std::{io, net::TcpStream, path::Path};

use super::{
    Launcher,
    errand::{Brought, errand},
};
use crate::{Error, Kind, Result};

impl Launcher {
    /// Connects to a port of the network namespace pinned at `netns`: at 127.0.0.1, else at ::1. Non-blocking.
    ///
    /// # Errors
    /// `Unavailable` when nobody listens there.
    pub async fn dial(&self, netns: &Path, port: u16) -> Result<TcpStream> {
        const OP: &str = "connect to port";
        let port = port.to_string();
        let failed = |error: io::Error| Error::io(OP, port.clone(), error);
        let netns = netns.to_str().ok_or_else(|| failed(io::ErrorKind::InvalidFilename.into()))?;
        match errand(self.program.path(), &["dial", netns, &port], OP, &port).await? {
            Brought::Descriptor(socket) => {
                let socket = TcpStream::from(socket);
                socket.set_nonblocking(true).map_err(failed)?;
                Ok(socket)
            }
            Brought::Refused(error) => {
                Err(Error::new(Kind::Unavailable, OP, format!("{port} of the pod")).because(error))
            }
        }
    }
}
