//! The daemon's own metrics for Prometheus, at `GET /metrics` of `--metrics-listen`: text as OpenMetrics 1.0 has it.
//!
//! ```text
//! gRPC ── calls (a layer around every call) ──> berth_rpc_seconds{service,method,code}
//! scrape ── listen ── live (read when asked) ──> berth_pods, berth_containers, berth_process_…
//! ```
//! Labels come from closed sets, so no caller can make the daemon remember more.

mod calls;
mod listen;
mod live;

use std::{net::SocketAddr, sync::Arc};

use prometheus_client::{
    metrics::{family::Family, info::Info},
    registry::Registry,
};

pub use self::{calls::Calls, listen::Listener};
use crate::{Error, Kind, Result, pod::Pods};

/// What is counted, and how it is told.
#[derive(Debug, Clone)]
pub struct Exporter {
    registry: Arc<Registry>,
    calls: Calls,
}

impl Exporter {
    pub fn new(pods: Pods) -> Self {
        let mut registry = Registry::with_prefix("berth");
        let version = Info::new([("version", super::VERSION)]);
        registry.register("build", "The daemon that answers", version);
        let durations = Family::new_with_constructor(calls::histogram as fn() -> _);
        registry.register(
            "rpc_seconds",
            "Time until a call was answered; of calls that stream, until their first word",
            durations.clone(),
        );
        registry.register_collector(Box::new(live::Live(pods)));
        Self { registry: Arc::new(registry), calls: Calls::new(durations) }
    }

    /// The layer that counts calls.
    pub fn calls(&self) -> Calls {
        self.calls.clone()
    }

    /// All of it as text.
    fn text(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

/// The address of `daemon.metrics_listen`; none where it is empty.
///
/// # Errors
/// `Invalid` where it is no IP address with a port.
pub fn address(listen: &str) -> Result<Option<SocketAddr>> {
    if listen.is_empty() {
        return Ok(None);
    }
    let read = listen.parse().map_err(|error| {
        Error::new(Kind::Invalid, "read configuration", "daemon.metrics_listen")
            .because(error)
            .hint("write it as 127.0.0.1:9977")
    });
    read.map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_an_ip_with_a_port_or_nothing() {
        assert_eq!(address("").unwrap(), None);
        assert_eq!(address("[::1]:80").unwrap(), Some("[::1]:80".parse().unwrap()));
        for wrong in ["localhost:80", "127.0.0.1", ":80"] {
            assert_eq!(address(wrong).unwrap_err().kind, Kind::Invalid, "{wrong}");
        }
    }
}
