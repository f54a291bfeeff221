//! The listener that Prometheus scrapes: `GET /metrics`, and nothing else.

use std::{convert::Infallible, future::Future, net::SocketAddr, time::Duration};

use http::{Method, Request, Response, StatusCode, header::CONTENT_TYPE};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tracing::{debug, info};

use super::Exporter;
use crate::{Error, Result, streaming::connections};

/// OpenMetrics 1.0, "Text Format: media type".
const TEXT: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// A scraper needs one, a second one may look.
const MOST_CONNECTIONS: usize = 16;
/// A client that says nothing for so long has to connect anew.
const PATIENCE: Duration = Duration::from_secs(30);

/// An address that is taken.
#[derive(Debug)]
pub struct Listener(TcpListener);

impl Listener {
    pub async fn bind(address: SocketAddr) -> Result<Self> {
        let failed = |error| {
            Error::io("listen for metrics", address.to_string(), error)
                .hint("daemon.metrics_listen has to be free and of this node")
        };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        info!(address = %listener.local_addr().map_err(failed)?, "metrics are served");
        Ok(Self(listener))
    }

    /// Serves until `stop` resolves.
    pub async fn serve(self, exporter: Exporter, stop: impl Future<Output = ()>) {
        let connection = |socket| connection(socket, exporter.clone());
        connections::serve(self.0, MOST_CONNECTIONS, connection, stop).await;
    }
}

async fn connection(socket: TcpStream, exporter: Exporter) {
    let answering = service_fn(move |request| {
        let answer = answer(&request, &exporter);
        async move { Ok::<_, Infallible>(answer) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .serve_connection(TokioIo::new(socket), answering)
        .await;
    if let Err(error) = served {
        debug!(%error, "a connection for metrics broke off");
    }
}

fn answer(request: &Request<Incoming>, exporter: &Exporter) -> Response<String> {
    let told = |status: StatusCode, text: String| {
        let mut response = Response::new(text);
        *response.status_mut() = status;
        response
    };
    match (request.method(), request.uri().path()) {
        (&Method::GET, "/metrics") => match exporter.text() {
            Ok(text) => {
                let mut response = told(StatusCode::OK, text);
                response.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static(TEXT));
                response
            }
            Err(error) => told(StatusCode::INTERNAL_SERVER_ERROR, format!("write metrics: {error}\n")),
        },
        (_, "/metrics") => told(StatusCode::METHOD_NOT_ALLOWED, "metrics are there to GET\n".into()),
        _ => told(StatusCode::NOT_FOUND, "there is only /metrics\n".into()),
    }
}
