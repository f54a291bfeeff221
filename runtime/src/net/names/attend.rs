//! What a desk does all day: reads questions from its sockets and answers them, at once where its network knows, else
//! beside all others.
//!
//! ```text
//! packet ──> of the network's subnets? ──> a question? ──> the zone knows ──> answered at once
//!               no: not heeded                └ no: told      └ no ──> a place in the quota ──> the node's resolvers
//! ```

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use futures_util::{
    StreamExt,
    future::{BoxFuture, FutureExt},
    stream::FuturesUnordered,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tracing::debug;

use super::{
    Names,
    desk::Sockets,
    host::{Way, framed},
    message::{Answer, LONGEST_QUERY, Query},
    quota::{Quota, Ticket},
};
use crate::net::segment::Segment;

/// Questions that others are asked for at once, for all and for one address.
const FORWARDED: (usize, usize) = (256, 64);
/// Connections, likewise.
const CONNECTIONS: (usize, usize) = (128, 16);
/// A connection is let go on which nothing comes, or nothing is read, for so long (RFC 7766, 6.2.3).
const IDLE: Duration = Duration::from_secs(10);
/// After an error that would come again at once, as of descriptors that are used up.
const PAUSE: Duration = Duration::from_millis(100);

struct Attending<'a> {
    names: &'a Names,
    segment: &'a Segment,
}

/// What a packet gets.
enum Reply {
    Now(Vec<u8>),
    /// Once somebody else was asked.
    Later(Query),
    Nothing,
}

/// Never ends; whoever drops it lets all go that is under way.
pub async fn attend(names: &Names, segment: &Segment, sockets: &Sockets) {
    let attending = Attending { names, segment };
    let forwarded = Quota::new(FORWARDED.0, FORWARDED.1);
    let connections = Quota::new(CONNECTIONS.0, CONNECTIONS.1);
    let mut under_way: FuturesUnordered<BoxFuture<'_, ()>> = FuturesUnordered::new();
    // One byte more than a question may have, to tell that it is longer.
    let mut packet = vec![0; LONGEST_QUERY + 1];
    loop {
        tokio::select! {
            received = sockets.datagrams.recv_from(&mut packet) => match received {
                Ok((length, from)) => {
                    if let Some(later) = attending.datagram(sockets, &forwarded, &packet[..length], from) {
                        under_way.push(later);
                    }
                }
                Err(error) => failed("read a question", &error).await,
            },
            accepted = sockets.streams.accept() => match accepted {
                Ok((stream, from)) => {
                    if let Some(ticket) = attending.is_heeded(from.ip()).then(|| connections.take(from.ip())).flatten() {
                        under_way.push(attending.converse(stream, ticket).boxed());
                    }
                }
                Err(error) => failed("accept a connection", &error).await,
            },
            Some(()) = under_way.next() => {}
        }
    }
}

async fn failed(op: &str, error: &io::Error) {
    debug!(op, %error, "a network's names may not be answered");
    tokio::time::sleep(PAUSE).await;
}

impl<'a> Attending<'a> {
    fn is_heeded(&self, from: IpAddr) -> bool {
        self.segment.subnets.iter().any(|subnet| subnet.has(from))
    }

    /// Answers at once, or gives what is left to do.
    fn datagram(
        &'a self,
        sockets: &'a Sockets,
        forwarded: &'a Quota,
        packet: &[u8],
        from: SocketAddr,
    ) -> Option<BoxFuture<'a, ()>> {
        if !self.is_heeded(from.ip()) {
            return None;
        }
        // One that can't be sent is lost, as datagrams may be: it is asked for again.
        let send = move |packet: Vec<u8>| sockets.datagrams.try_send_to(&packet, from).map(drop).ok();
        match self.at_once(packet, Way::Datagram) {
            Reply::Now(packet) => {
                send(packet);
                None
            }
            Reply::Nothing => None,
            Reply::Later(query) => match forwarded.take(from.ip()) {
                None => {
                    send(query.reply(&Answer::Failed, query.limit()));
                    None
                }
                Some(ticket) => Some(
                    async move {
                        send(self.later(&query, Way::Datagram).await);
                        drop(ticket);
                    }
                    .boxed(),
                ),
            },
        }
    }

    /// One question after the other, until nothing comes any more.
    async fn converse(&self, mut stream: TcpStream, _ticket: Ticket<'_>) {
        loop {
            let Ok(Ok(packet)) = timeout(IDLE, question(&mut stream)).await else { return };
            let told = match self.at_once(&packet, Way::Stream) {
                Reply::Now(packet) => packet,
                Reply::Later(query) => self.later(&query, Way::Stream).await,
                Reply::Nothing => return,
            };
            let Ok(Ok(())) = timeout(IDLE, stream.write_all(&framed(&told))).await else { return };
        }
    }

    fn at_once(&self, packet: &[u8], way: Way) -> Reply {
        let query = match Query::read(packet) {
            Ok(query) => query,
            Err(Some(told)) => return Reply::Now(told),
            Err(None) => return Reply::Nothing,
        };
        // Whom a new daemon does not know yet may be there.
        let known = self.names.is_settled().then(|| self.names.answer(self.segment, &query)).flatten();
        match known {
            Some(answer) => Reply::Now(query.reply(&answer, limit(&query, way))),
            None => Reply::Later(query),
        }
    }

    async fn later(&self, query: &Query, way: Way) -> Vec<u8> {
        self.names.settled().await;
        match self.names.answer(self.segment, query) {
            Some(answer) => query.reply(&answer, limit(query, way)),
            None => self.names.0.host.ask(query, way).await,
        }
    }
}

fn limit(query: &Query, way: Way) -> usize {
    match way {
        Way::Datagram => query.limit(),
        Way::Stream => usize::from(u16::MAX),
    }
}

async fn question(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length).await?;
    let length = usize::from(u16::from_be_bytes(length));
    if length > LONGEST_QUERY {
        return Err(io::Error::other("no question is as long"));
    }
    let mut packet = vec![0; length];
    stream.read_exact(&mut packet).await?;
    Ok(packet)
}
