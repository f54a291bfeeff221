//! The way to one image: the hosts that may have it, asked in order, until one gives what is wanted.
//!
//! Content is checked against its digest, so it does not matter who gives it. A host that fails hands over to the next;
//! why it failed is kept, and told when all have failed.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::OnceCell;

use super::{
    PullRequest,
    auth::Credentials,
    cosign::Signature,
    digest::Digest,
    document::Descriptor,
    fetch::Errand,
    hosts::{self, Ability, Host, Role},
    install::blocking,
    keyring::{self, Known},
    reference::{Reference, Version},
    registry::{Resolved, Session},
};
use crate::{Error, Kind, Result, config, error::Cause};

/// All hosts of a reference, for one pull.
#[derive(Debug)]
pub(super) struct Route {
    reference: Reference,
    request: PullRequest,
    config: config::Registry,
    stations: Vec<Station>,
}

#[derive(Debug)]
struct Station {
    host: Host,
    session: OnceCell<Session>,
    /// It could not be reached in this pull: it comes last from then on.
    away: AtomicBool,
}

impl Route {
    /// Reads which hosts there are. Speaks to none yet.
    pub(super) async fn new(
        reference: &Reference,
        request: &PullRequest,
        config: &config::Registry,
    ) -> Result<Self> {
        let (registry, settings) = (reference.registry.clone(), config.clone());
        let mut found = blocking("read hosts.toml", move || hosts::of(&registry, &settings)).await?;
        if request.plain_http {
            let plain = hosts::upstream(&reference.registry, true)?;
            for host in found.iter_mut().filter(|host| host.role == Role::Upstream) {
                *host = Host { base: plain.base.clone(), speech: plain.speech, ..host.clone() };
            }
        }
        let station = |host| Station { host, session: OnceCell::new(), away: AtomicBool::new(false) };
        Ok(Self {
            reference: reference.clone(),
            request: PullRequest { progress: None, ..request.clone() },
            config: config.clone(),
            stations: found.into_iter().map(station).collect(),
        })
    }

    /// Gets the manifest for this machine from the first host that has it.
    pub(super) async fn resolve(&self) -> Result<Resolved> {
        // A digest says itself what it means: whoever has content will do.
        let able = |host: &Host| match self.reference.version {
            Version::Tag(_) => host.resolves,
            Version::Digest(_) => host.pulls,
        };
        let mut attempts = Attempts::default();
        for station in self.stations(able) {
            let resolved = match self.session(station).await {
                Ok(session) => session.resolve().await,
                Err(error) => Err(error),
            };
            match resolved {
                Ok(resolved) => return Ok(resolved),
                Err(error) => attempts.failed(station, error),
            }
        }
        Err(attempts.error(&self.reference))
    }

    /// Gets a config.
    pub(super) async fn config(&self, descriptor: &Descriptor) -> Result<Vec<u8>> {
        let mut attempts = Attempts::default();
        for station in self.stations(|host| host.pulls) {
            let config = match self.session(station).await {
                Ok(session) => session.config(descriptor).await,
                Err(error) => Err(error),
            };
            match config {
                Ok(config) => return Ok(config),
                Err(error) => attempts.failed(station, error),
            }
        }
        Err(attempts.error(&self.reference))
    }

    /// The signatures of a manifest, from the first host that has any.
    pub(super) async fn signatures(&self, digest: &Digest) -> Result<Vec<Signature>> {
        let (mut attempts, mut answered) = (Attempts::default(), false);
        for station in self.stations(|host| host.pulls) {
            let signatures = match self.session(station).await {
                Ok(session) => session.signatures(digest).await,
                Err(error) => Err(error),
            };
            match signatures {
                Ok(none) if none.is_empty() => answered = true,
                Ok(signatures) => return Ok(signatures),
                Err(error) => attempts.failed(station, error),
            }
        }
        if answered { Ok(Vec::new()) } else { Err(attempts.error(&self.reference)) }
    }

    /// Writes the layer's blob down, checked; goes on with what is there already. After a failure of the network what
    /// came so far stays for the next try.
    pub(super) async fn fetch_layer(&self, errand: Errand<'_>) -> Result<()> {
        let mut attempts = Attempts::default();
        for station in self.stations(|host| host.pulls) {
            let fetched = match self.session(station).await {
                Ok(session) => session.fetch_layer(errand.clone()).await,
                Err(error) => Err(error),
            };
            match fetched {
                Ok(()) => return Ok(()),
                // No other host gives this node more room, or more time.
                Err(error) if matches!(error.kind, Kind::Cancelled | Kind::Exhausted) => return Err(error),
                Err(error) => attempts.failed(station, error),
            }
        }
        Err(attempts.error(&self.reference))
    }

    /// Those that may be asked, who are away last.
    fn stations(&self, able: impl Fn(&Host) -> Ability) -> Vec<&Station> {
        let mut able: Vec<&Station> =
            self.stations.iter().filter(|station| able(&station.host) == Ability::Able).collect();
        able.sort_by_key(|station| station.away.load(Ordering::Relaxed));
        able
    }

    async fn session<'a>(&self, station: &'a Station) -> Result<&'a Session> {
        let open = async {
            let (credentials, remark) = self.credentials(&station.host).await?;
            Session::open(&station.host, credentials, remark, &self.reference, &self.config).await
        };
        station.session.get_or_try_init(|| open).await
    }

    /// The pull's own credentials are for the registry; a mirror gets what the node keeps for it.
    async fn credentials(&self, host: &Host) -> Result<(Credentials, Option<String>)> {
        let own = match host.role {
            Role::Upstream => Credentials::from_auth(self.request.auth.as_ref(), &self.reference.registry)?,
            Role::Mirror => Credentials::Anonymous,
        };
        if own != Credentials::Anonymous {
            return Ok((own, None));
        }
        let name = match host.role {
            Role::Upstream => self.reference.registry.clone(),
            Role::Mirror => host.name(),
        };
        let Known { auth, remark } =
            keyring::look_up(&self.config.auth_file, &name, &self.reference.repository).await;
        match Credentials::from_auth(auth.as_ref(), &name) {
            Ok(credentials) => Ok((credentials, remark)),
            Err(error) => Ok((Credentials::Anonymous, Some(error.chain()))),
        }
    }
}

impl Host {
    /// host[:port], as people and `config.json` write it.
    pub(super) fn name(&self) -> String {
        let port = self.base.port().map(|port| format!(":{port}")).unwrap_or_default();
        format!("{}{port}", self.base.host_str().unwrap_or_default())
    }
}

/// Why each host gave nothing, in the order they were asked.
#[derive(Debug, Default)]
struct Attempts(Vec<(String, Error)>);

impl Attempts {
    fn failed(&mut self, station: &Station, error: Error) {
        if error.kind == Kind::Unavailable {
            station.away.store(true, Ordering::Relaxed);
        }
        self.0.push((station.host.name(), error));
    }

    /// The one error, or one that tells all. The last host's kind counts: it is the registry itself, as a rule.
    fn error(mut self, reference: &Reference) -> Error {
        const OP: &str = "ask registry";
        let Some((host, last)) = self.0.pop() else {
            return Error::new(Kind::Precondition, OP, &reference.registry)
                .because(Cause("no host of its hosts.toml has the capability for this".into()))
                .hint("give one of them capabilities = [\"pull\", \"resolve\"]");
        };
        if self.0.is_empty() {
            return last;
        }
        let kind = last.kind;
        self.0.push((host, last));
        let told: Vec<String> = self
            .0
            .iter()
            .map(|(host, error)| {
                let told = error.chain().replace("RegistryUnavailable: ", "");
                format!("[{host}] {}", told.replacen(&format!(" of {host}"), "", 1))
            })
            .collect();
        let prefix = if kind == Kind::Unavailable { "RegistryUnavailable: " } else { "" };
        let cause = format!("{prefix}none of {} hosts has it: {}", told.len(), told.join(" | "));
        Error::new(kind, OP, &reference.registry).because(Cause(cause))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn station(registry: &str) -> Station {
        let host = hosts::upstream(registry, false).unwrap();
        Station { host, session: OnceCell::new(), away: AtomicBool::new(false) }
    }

    fn unavailable(what: &str) -> Error {
        Error::new(Kind::Unavailable, "ask registry", what.to_owned())
            .because(Cause("RegistryUnavailable: refused".into()))
    }

    #[test]
    fn every_attempt_is_told_and_the_last_ones_kind_counts() {
        let reference = Reference::parse("r.io/x", "docker.io/library/").unwrap();
        let (mirror, upstream) = (station("m.io:5000"), station("r.io"));
        let mut attempts = Attempts::default();
        attempts.failed(&mirror, Error::not_found("ask registry", "manifests/latest").hint("look again"));
        attempts.failed(&upstream, unavailable("r.io"));
        let error = attempts.error(&reference);
        assert_eq!(error.kind, Kind::Unavailable);
        let source = error.source.as_ref().unwrap().to_string();
        assert!(source.starts_with("RegistryUnavailable: none of 2 hosts"), "{source}");
        for part in [
            "[m.io:5000] ask registry manifests/latest: not found; look again",
            "[r.io] ask registry r.io: refused",
        ] {
            assert!(source.contains(part), "{source}");
        }
        assert!(upstream.away.into_inner() && !mirror.away.into_inner());
        let error = Attempts::default().error(&reference);
        assert_eq!(error.kind, Kind::Precondition);
    }
}
