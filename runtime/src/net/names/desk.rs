//! The resolver at one gateway: its sockets, and the task that has them.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    net::{TcpListener, TcpSocket, UdpSocket},
    task::JoinHandle,
};
use tracing::{info, warn};

use super::{Names, attend, lock};
use crate::{Error, Kind, net::segment::Segment};

const PORT: u16 = 53;
/// Those who wait to be accepted.
const BACKLOG: u32 = 128;
/// Between two tries of what failed.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub struct Desk {
    pub at: IpAddr,
    /// The bridge's number: another one of the same name needs other sockets.
    pub link: u32,
    trouble: Arc<Mutex<Option<String>>>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
pub struct Sockets {
    pub datagrams: UdpSocket,
    pub streams: TcpListener,
}

impl Desk {
    /// Opens one. Where its port can't be had `trouble` says why, and it is tried again.
    pub fn open(names: &Names, segment: &Segment, at: IpAddr, link: u32) -> Self {
        let opened = bind(&segment.link, at);
        if let Err(error) = &opened {
            warn!(network = segment.name, error = error.chain(), "names of a network are not answered");
        }
        let trouble = Arc::new(Mutex::new(opened.as_ref().err().map(Error::chain)));
        let (names, segment, told) = (names.clone(), segment.clone(), Arc::clone(&trouble));
        let task = tokio::spawn(async move {
            let sockets = match opened {
                Ok(sockets) => sockets,
                Err(_) => again(&segment, at, &told).await,
            };
            attend::attend(&names, &segment, &sockets).await;
        });
        Self { at, link, trouble, task }
    }

    /// Why it does not answer.
    pub fn trouble(&self) -> Option<String> {
        lock(&self.trouble).clone()
    }

    /// Ends it; its port is free when this returns.
    pub async fn close(mut self) {
        self.task.abort();
        // That it was aborted is what was wanted.
        (&mut self.task).await.ok();
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn again(segment: &Segment, at: IpAddr, trouble: &Mutex<Option<String>>) -> Sockets {
    let mut pause = FIRST_RETRY;
    loop {
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LAST_RETRY);
        match bind(&segment.link, at) {
            Ok(sockets) => {
                info!(network = segment.name, %at, "names of the network are answered at last");
                *lock(trouble) = None;
                return sockets;
            }
            Err(error) => *lock(trouble) = Some(error.chain()),
        }
    }
}

/// Both sockets, heard by those only who are on the link.
fn bind(link: &str, at: IpAddr) -> Result<Sockets, Error> {
    let address = SocketAddr::new(at, PORT);
    let told = |protocol: &str, error: io::Error| {
        let taken = error.kind() == io::ErrorKind::AddrInUse;
        let error = Error::new(Kind::Unavailable, "answer names at", format!("{at} port {PORT}/{protocol}"))
            .because(error);
        match taken {
            true => error.hint(
                "another server has the port at every address of the node: let it listen at its own ones only \
                 (dnsmasq: bind-dynamic and except-interface=btn*; named and unbound: their listening addresses)",
            ),
            false => error.hint("it is tried again; `berth network inspect` tells whether it is"),
        }
    };
    let streams = || {
        let socket = if at.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        // The last daemon's conversations may not have ended wholly.
        socket.set_reuseaddr(true)?;
        socket.bind_device(Some(link.as_bytes()))?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    let datagrams = || {
        let socket = std::net::UdpSocket::bind(address)?;
        socket.set_nonblocking(true)?;
        let socket = UdpSocket::from_std(socket)?;
        socket.bind_device(Some(link.as_bytes()))?;
        Ok(socket)
    };
    Ok(Sockets {
        datagrams: datagrams().map_err(|error| told("udp", error))?,
        streams: streams().map_err(|error| told("tcp", error))?,
    })
}
