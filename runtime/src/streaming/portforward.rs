//! Port-forward: each connection is a pair of streams that share a request id, one for its bytes and one for what goes
//! wrong; the other end is dialled inside the pod's network namespace.

use std::{collections::HashMap, future::Future, io, time::Duration};

use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::mpsc,
    time::{Instant, sleep_until},
};
use tracing::debug;

use super::{
    channels::Incoming,
    ends::PIECE_BYTES,
    spdy::{Sender, Stream},
};
use crate::Result;

/// So long the second stream of a pair may take to come.
const PATIENCE: Duration = Duration::from_secs(30);

/// A pair that is not whole yet.
#[derive(Debug)]
struct Half {
    port: u16,
    data: Option<Stream>,
    error: Option<Stream>,
    until: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Data,
    Error,
}

/// Forwards until the client hangs up, each connection with what `dial` gives for its port.
///
/// All of it is in the session's task: a byte on its way goes from the client's socket to the pod's without another
/// thread being woken for it.
pub async fn forward<D: Future<Output = Result<TcpStream>>>(
    mut streams: mpsc::Receiver<Stream>,
    dial: impl Fn(u16) -> D,
) {
    let mut halves: HashMap<String, Half> = HashMap::new();
    let mut connections = FuturesUnordered::new();
    loop {
        let first = halves.values().map(|half| half.until).min();
        tokio::select! {
            stream = streams.recv() => {
                let Some(stream) = stream else { return };
                if let Some((port, data, error)) = pair(&mut halves, stream).await {
                    let dialled = dial(port);
                    connections.push(connect(port, dialled, data, error));
                }
            }
            Some(()) = connections.next() => {}
            () = sleep_until(first.unwrap_or_else(Instant::now)), if first.is_some() => {
                let now = Instant::now();
                for (_, half) in halves.extract_if(|_, half| half.until <= now) {
                    debug!(port = half.port, "the other stream of a pair never came");
                    for stream in [half.data, half.error].into_iter().flatten() {
                        stream.refuse().await;
                    }
                }
            }
        }
    }
}

/// Puts a stream to its pair, and gives that when it is whole. What fits nowhere is refused.
async fn pair(halves: &mut HashMap<String, Half>, stream: Stream) -> Option<(u16, Stream, Stream)> {
    let part = match stream.header("streamtype") {
        Some("data") => Part::Data,
        Some("error") => Part::Error,
        _ => {
            stream.refuse().await;
            return None;
        }
    };
    let port = stream.header("port").and_then(|port| port.parse().ok()).filter(|port| *port > 0);
    let Some(port) = port else {
        stream.refuse().await;
        return None;
    };
    let id = request_id(&stream, part);
    let half = halves.entry(id.clone()).or_insert_with(|| Half {
        port,
        data: None,
        error: None,
        until: Instant::now() + PATIENCE,
    });
    let place = match part {
        Part::Data => &mut half.data,
        Part::Error => &mut half.error,
    };
    if place.is_some() || half.port != port {
        stream.refuse().await;
        return None;
    }
    *place = Some(stream);
    match halves.remove(&id)? {
        Half { port, data: Some(data), error: Some(error), .. } => Some((port, data, error)),
        half => {
            halves.insert(id, half);
            None
        }
    }
}

/// Old clients give none, and open the error stream right before the data stream.
fn request_id(stream: &Stream, part: Part) -> String {
    match (stream.header("requestid"), part) {
        (Some(id), _) => id.to_owned(),
        (None, Part::Error) => stream.id.to_string(),
        (None, Part::Data) => stream.id.saturating_sub(2).to_string(),
    }
}

async fn connect(port: u16, dialled: impl Future<Output = Result<TcpStream>>, data: Stream, error: Stream) {
    let dialled = tokio::select! {
        dialled = dialled => dialled,
        () = data.sender.gone() => return error.sender.finish().await,
    };
    match dialled {
        Ok(socket) => {
            // The client has decided what goes together: a short piece must not wait until the pod has taken the one
            // before. Without it all is only slower.
            socket.set_nodelay(true).ok();
            let (read, write) = socket.into_split();
            let copied = async { tokio::join!(inward(data.incoming, write), outward(read, &data.sender)).1 };
            tokio::select! {
                outcome = copied => if let Err(cause) = outcome {
                    tell(&error.sender, port, &cause.to_string()).await;
                    // Whatever else the client sends, nobody takes it.
                    data.sender.cancel().await;
                },
                // The client has reset the stream: it wants no more of it.
                () = data.sender.gone() => {}
            }
        }
        Err(cause) => {
            debug!(port, error = cause.chain(), "port not reached");
            tell(&error.sender, port, &cause.chain()).await;
            data.sender.finish().await;
        }
    }
    error.sender.finish().await;
}

async fn tell(error: &Sender, port: u16, cause: &str) {
    // A client that left has nothing to learn.
    error.send(format!("error forwarding port {port}: {cause}").into_bytes()).await.ok();
}

async fn inward(mut from: Incoming, mut to: OwnedWriteHalf) {
    while let Some(piece) = from.recv().await {
        if to.write_all(&piece).await.is_err() {
            // The other direction says why, if it is worth saying.
            return;
        }
    }
    // Closed already is as good.
    to.shutdown().await.ok();
}

async fn outward(mut from: OwnedReadHalf, to: &Sender) -> io::Result<()> {
    let outcome = loop {
        let mut piece = Vec::with_capacity(PIECE_BYTES);
        match from.read_buf(&mut piece).await {
            Ok(0) => break Ok(()),
            Ok(_) => {
                if to.send(piece).await.is_err() {
                    break Ok(());
                }
            }
            Err(error) => break Err(error),
        }
    };
    to.finish().await;
    outcome
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;
    use crate::{
        Error, Kind,
        streaming::spdy::{
            self,
            tests::{Client, Seen, data, fin, wire},
        },
    };

    /// Says what it hears in capitals once it has heard all.
    async fn shouter() -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut heard = String::new();
                    socket.read_to_string(&mut heard).await.unwrap();
                    socket.write_all(heard.to_uppercase().as_bytes()).await.unwrap();
                });
            }
        });
        port
    }

    #[tokio::test]
    async fn what_a_client_sends_waits_for_no_more_of_it() {
        let (theirs, ours, line) = wire();
        let (keep, mut kept) = mpsc::unbounded_channel();
        let dial = move |port| {
            let keep = keep.clone();
            async move {
                let socket = dial(port).await?.into_std().unwrap();
                keep.send(socket.try_clone().unwrap()).unwrap();
                Ok(TcpStream::from_std(socket).unwrap())
            }
        };
        let session = tokio::spawn(spdy::serve(ours, line, |streams| forward(streams, dial)));
        let port = shouter().await.to_string();
        let mut client = Client::new(theirs);
        let headers = |kind| [("streamtype", kind), ("port", port.as_str()), ("requestid", "0")];
        let error = client.open(&headers("error")).await;
        let stream = client.open(&headers("data")).await;
        client.data(stream, b"a").await;
        client.fin(stream).await;
        let seen = [client.see().await, client.see().await, client.see().await];
        assert_eq!(seen, [data(stream, b"A"), fin(stream), fin(error)]);
        assert!(kept.recv().await.unwrap().nodelay().unwrap());
        drop(client);
        session.await.unwrap().unwrap();
    }

    async fn dial(port: u16) -> Result<TcpStream> {
        TcpStream::connect(("127.0.0.1", port)).await.map_err(|error| {
            Error::new(Kind::Unavailable, "connect to port", port.to_string()).because(error)
        })
    }

    #[tokio::test]
    async fn connections_are_pairs_by_request_id_or_by_order() {
        let (theirs, ours, line) = wire();
        let session = tokio::spawn(spdy::serve(ours, line, |streams| forward(streams, dial)));
        let port = shouter().await.to_string();
        let mut client = Client::new(theirs);
        // Two at once, one of them by an old client.
        let with_id = |kind| [("streamtype", kind), ("port", port.as_str()), ("requestid", "0")];
        let without = |kind| [("streamtype", kind), ("port", port.as_str())];
        let first_error = client.open(&with_id("error")).await;
        let second_error = client.open(&without("error")).await;
        let second = client.open(&without("data")).await;
        let first = client.open(&with_id("data")).await;
        for (stream, error, text) in [(first, first_error, "first"), (second, second_error, "second")] {
            client.data(stream, text.as_bytes()).await;
            client.fin(stream).await;
            let mut seen = vec![client.see().await, client.see().await, client.see().await];
            assert_eq!(seen.remove(0), data(stream, text.to_uppercase().as_bytes()));
            assert!(seen.contains(&fin(stream)) && seen.contains(&fin(error)), "{seen:?}");
        }
        drop(client);
        session.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_port_that_nobody_listens_on_is_told_on_the_error_stream() {
        let (theirs, ours, line) = wire();
        let session = tokio::spawn(spdy::serve(ours, line, |streams| forward(streams, dial)));
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port().to_string();
        let mut client = Client::new(theirs);
        let error = client.open(&[("streamtype", "error"), ("port", &free), ("requestid", "9")]).await;
        let stream = client.open(&[("streamtype", "data"), ("port", &free), ("requestid", "9")]).await;
        let Seen::Data { stream: told, bytes, .. } = client.see().await else { panic!("no data") };
        let text = String::from_utf8(bytes).unwrap();
        assert_eq!(told, error);
        assert!(
            text.starts_with(&format!("error forwarding port {free}: ")) && text.contains("refused"),
            "{text}"
        );
        assert_eq!((client.see().await, client.see().await), (fin(stream), fin(error)));
        // What is no half of a pair is refused.
        for headers in [
            vec![("streamtype", "data"), ("port", "0")],
            vec![("streamtype", "data"), ("port", "70000")],
            vec![("streamtype", "data")],
            vec![("streamtype", "stdin"), ("port", "80")],
        ] {
            let stream = client.open(&headers).await;
            assert_eq!(client.see().await, Seen::Control(spdy::tests::reset(stream)), "{headers:?}");
        }
        drop(client);
        session.await.unwrap().unwrap();
    }
}
