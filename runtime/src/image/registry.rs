//! Speaks the distribution protocol to one repository of one registry, for one pull.

use std::{
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use reqwest::{Client, Response, Url};
use tokio::time::{sleep, timeout};

use super::{
    PullRequest,
    auth::{self, Challenge, Credentials},
    client::{self, Reach},
    digest::Digest,
    document::{
        DOCKER_INDEX, DOCKER_MANIFEST, DOCUMENT_MAX_BYTES, Descriptor, Document, Manifest, OCI_INDEX,
        OCI_MANIFEST,
    },
    install::blocking,
    reference::{Reference, Version},
};
use crate::{Error, Kind, Result, config, error::Cause};

const OP: &str = "ask registry";
/// A request and three more.
const ATTEMPTS: u32 = 4;
const BACKOFF: Duration = Duration::from_millis(200);
/// How long a loopback registry may take to refuse https.
const PROBE: Duration = Duration::from_secs(3);
const INDEX_DEPTH_MAX: u32 = 3;

/// A conversation with a repository.
#[derive(Debug)]
pub(super) struct Session {
    client: Client,
    /// `https://host/v2/name/`.
    base: Url,
    reference: Reference,
    credentials: Credentials,
    /// What the last challenge was answered with.
    authorization: Mutex<Option<HeaderValue>>,
    pub(super) stall: Duration,
}

/// Why a request did not give what it was to give.
#[derive(Debug)]
pub(super) enum Failure {
    /// Worth another try.
    Passing(Error),
    /// No byte for too long.
    Stalled(Error),
    Lasting(Error),
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Passing(error) | Failure::Stalled(error) | Failure::Lasting(error) => error,
        }
    }
}

/// A manifest for this host, and under which digest it was asked for.
#[derive(Debug)]
pub(super) struct Resolved {
    pub(super) digest: Digest,
    pub(super) bytes: Vec<u8>,
    pub(super) manifest: Manifest,
}

impl Session {
    /// Finds out how the registry is spoken to.
    pub(super) async fn open(
        reference: &Reference,
        request: &PullRequest,
        config: &config::Registry,
    ) -> Result<Self> {
        let credentials = Credentials::for_registry(request.auth.as_ref(), &reference.registry)?;
        let host = match reference.registry.as_str() {
            "docker.io" => "registry-1.docker.io",
            other => other,
        };
        let reach = if is_loopback(host) { Reach::Loopback } else { Reach::Network };
        let settings = config.clone();
        let client = blocking("prepare registry client", move || client::client(&settings, reach)).await?;
        let base = |scheme: &str| {
            Url::parse(&format!("{scheme}://{host}/v2/{}/", reference.repository))
                .map_err(|error| Error::new(Kind::Invalid, OP, host).because(error))
        };
        let plain = request.plain_http || config.plain_http.contains(&reference.registry);
        let base = match (plain, reach) {
            (true, _) => base("http")?,
            (false, Reach::Network) => base("https")?,
            (false, Reach::Loopback) => {
                let https = base("https")?;
                if speaks_https(&client, &https).await { https } else { base("http")? }
            }
        };
        Ok(Self {
            client,
            base,
            reference: reference.clone(),
            credentials,
            authorization: Mutex::new(None),
            stall: Duration::from_secs(u64::from(config.stall_seconds.max(1))),
        })
    }

    /// Gets the manifest for this host, through indexes.
    pub(super) async fn resolve(&self) -> Result<Resolved> {
        let wanted = match &self.reference.version {
            Version::Tag(tag) => tag.clone(),
            Version::Digest(digest) => digest.to_string(),
        };
        let mut bytes = self.document(&format!("manifests/{wanted}"), DOCUMENT_MAX_BYTES).await?;
        let digest = Digest::of(&bytes);
        if let Version::Digest(asked) = &self.reference.version
            && *asked != digest
        {
            return Err(mismatch(asked, &digest));
        }
        for _ in 0..=INDEX_DEPTH_MAX {
            match Document::parse(&bytes, &self.reference.to_string())? {
                Document::Manifest(manifest) => return Ok(Resolved { digest, bytes, manifest }),
                Document::Index(index) => {
                    let chosen = index.choose(&self.reference.to_string())?;
                    bytes = self.described(&format!("manifests/{}", chosen.digest), chosen).await?;
                }
            }
        }
        Err(Error::invalid("read manifest", self.reference.to_string(), "indexes within indexes, too deep"))
    }

    /// Gets a config.
    pub(super) async fn config(&self, descriptor: &Descriptor) -> Result<Vec<u8>> {
        self.described(&format!("blobs/{}", descriptor.digest), descriptor).await
    }

    async fn described(&self, path: &str, descriptor: &Descriptor) -> Result<Vec<u8>> {
        if descriptor.size > DOCUMENT_MAX_BYTES {
            return Err(too_big(&descriptor.digest.to_string()));
        }
        let bytes = self.document(path, descriptor.size).await?;
        let found = Digest::of(&bytes);
        if found == descriptor.digest { Ok(bytes) } else { Err(mismatch(&descriptor.digest, &found)) }
    }

    /// Reads a small answer, whole, never more than `max` bytes.
    async fn document(&self, path: &str, max: u64) -> Result<Vec<u8>> {
        let mut tried = 0;
        loop {
            tried += 1;
            let read = async {
                let response = self.get(path, None).await?;
                self.read(response, max, path).await
            };
            match read.await {
                Ok(bytes) => return Ok(bytes),
                Err(Failure::Passing(_)) if tried < ATTEMPTS => sleep(backoff(tried)).await,
                Err(failure) => return Err(failure.into()),
            }
        }
    }

    async fn read(&self, mut response: Response, max: u64, object: &str) -> Result<Vec<u8>, Failure> {
        if response.content_length().is_some_and(|length| length > max) {
            return Err(Failure::Lasting(too_big(object)));
        }
        let mut bytes = Vec::new();
        while let Some(chunk) = self.patiently(response.chunk()).await? {
            if (bytes.len() + chunk.len()) as u64 > max {
                return Err(Failure::Lasting(too_big(object)));
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    }

    /// Sends a GET below the repository, answering a challenge if one comes; gives a success only.
    pub(super) async fn get(&self, path: &str, from: Option<u64>) -> Result<Response, Failure> {
        let url = self.base.join(path).map_err(|error| {
            Failure::Lasting(Error::new(Kind::Invalid, OP, path.to_owned()).because(error))
        })?;
        let response = self.send(&url, from).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return self.judge(response, path).await;
        }
        let Some(challenge) = auth::challenge(response.headers().get_all(header::WWW_AUTHENTICATE).iter())
        else {
            return self.judge(response, path).await;
        };
        match self.answer(challenge).await? {
            Some(value) => *self.authorization.lock().unwrap_or_else(PoisonError::into_inner) = Some(value),
            None => return self.judge(response, path).await,
        }
        let response = self.send(&url, from).await?;
        self.judge(response, path).await
    }

    async fn send(&self, url: &Url, from: Option<u64>) -> Result<Response, Failure> {
        let mut headers = HeaderMap::new();
        if url.path().contains("/manifests/") {
            let accept = [OCI_INDEX, OCI_MANIFEST, DOCKER_INDEX, DOCKER_MANIFEST].join(", ");
            headers.insert(header::ACCEPT, HeaderValue::from_str(&accept).expect("media types are ASCII"));
        }
        if let Some(from) = from {
            let range = HeaderValue::from_str(&format!("bytes={from}-")).expect("digits are ASCII");
            headers.insert(header::RANGE, range);
        }
        let authorization = self.authorization.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(value) = authorization {
            headers.insert(header::AUTHORIZATION, value);
        }
        self.patiently(self.client.request(Method::GET, url.clone()).headers(headers).send()).await
    }

    /// The value for Authorization; None when we have no credentials of the kind.
    async fn answer(&self, challenge: Challenge) -> Result<Option<HeaderValue>, Failure> {
        let (realm, service, scope) = match (challenge, &self.credentials) {
            (Challenge::Basic, credentials) => return Ok(credentials.basic()),
            (Challenge::Token { .. }, Credentials::Bearer { token }) => {
                return Ok(auth::secret(&format!("Bearer {token}")));
            }
            (Challenge::Token { realm, service, scope }, _) => (realm, service, scope),
        };
        let scope = scope.unwrap_or_else(|| format!("repository:{}:pull", self.reference.repository));
        let challenge = (realm.as_str(), service.as_deref(), scope.as_str());
        let asked =
            auth::token_request(&self.credentials, challenge, &self.base).map_err(Failure::Lasting)?;
        let mut request = match asked.form {
            None => self.client.get(asked.url),
            Some(form) => self
                .client
                .post(asked.url)
                .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
                .body(form),
        };
        if let Some(basic) = asked.basic {
            request = request.header(header::AUTHORIZATION, basic);
        }
        let response = self.patiently(request.send()).await?;
        let response = self.judge(response, &realm).await?;
        let bytes = self.read(response, DOCUMENT_MAX_BYTES, &realm).await?;
        auth::token_in(&bytes, &realm).map(Some).map_err(Failure::Lasting)
    }

    /// Waits for the next bytes, but not for ever.
    pub(super) async fn patiently<T>(
        &self,
        wait: impl Future<Output = reqwest::Result<T>>,
    ) -> Result<T, Failure> {
        match timeout(self.stall, wait).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(self.transport(error)),
            Err(_) => {
                let cause = format!("stalled: no byte for {} s", self.stall.as_secs());
                Err(Failure::Stalled(self.unavailable(cause)))
            }
        }
    }

    fn transport(&self, error: reqwest::Error) -> Failure {
        let lasting = error.is_redirect() || error.is_builder();
        // A redirect's URL may carry a signature.
        let error = error.without_url();
        let text = words(&error);
        let certificate = text.contains("certificate");
        let error = self.unavailable(text);
        match (lasting, certificate) {
            (true, _) => Failure::Lasting(error),
            (false, true) => Failure::Lasting(error.hint("add the authority to registry.ca_files")),
            (false, false) => Failure::Passing(error),
        }
    }

    pub(super) fn unavailable(&self, cause: String) -> Error {
        let host = self.base.host_str().unwrap_or_default();
        let port = self.base.port().map(|port| format!(":{port}")).unwrap_or_default();
        Error::new(Kind::Unavailable, OP, format!("{host}{port}"))
            .because(Cause(format!("RegistryUnavailable: {cause}")))
    }

    /// Lets a success pass and makes an error of the rest.
    async fn judge(&self, response: Response, object: &str) -> Result<Response, Failure> {
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let said =
            self.read(response, 64 << 10, object).await.map(|body| message_in(&body)).unwrap_or_default();
        let cause = Cause(format!("{status}{said}"));
        let error = |kind| Error::new(kind, OP, format!("{object:.300}"));
        Err(match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                let hint = match self.credentials {
                    Credentials::Anonymous => "the repository is private or does not exist: log in",
                    Credentials::Password { .. }
                    | Credentials::Identity { .. }
                    | Credentials::Bearer { .. } => "the credentials are wrong or do not reach so far",
                };
                Failure::Lasting(error(Kind::Denied).because(cause).hint(hint))
            }
            StatusCode::NOT_FOUND => {
                let hint = format!("check the name and the tag of {}", self.reference);
                Failure::Lasting(error(Kind::NotFound).because(cause).hint(hint))
            }
            StatusCode::TOO_MANY_REQUESTS => {
                Failure::Passing(self.unavailable(cause.0).hint("log in or wait: the registry limits pulls"))
            }
            status if status.is_server_error() => Failure::Passing(self.unavailable(cause.0)),
            _ => Failure::Lasting(error(Kind::Internal).because(cause)),
        })
    }
}

/// Whether the other end answers a TLS handshake, be it with a certificate we don't trust.
async fn speaks_https(client: &Client, base: &Url) -> bool {
    match timeout(PROBE, client.get(base.clone()).send()).await {
        Ok(Ok(_)) => true,
        Ok(Err(error)) => words(&error).contains("certificate"),
        Err(_) => false,
    }
}

/// The error with all its causes in one line.
fn words(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    text
}

pub(super) fn backoff(tried: u32) -> Duration {
    BACKOFF * 2u32.pow(tried.saturating_sub(1).min(4))
}

/// `: CODE: message` of the registry's first error, in bounds and in one line.
fn message_in(body: &[u8]) -> String {
    let Ok(document) = serde_json::from_slice::<serde_json::Value>(body) else { return String::new() };
    let first = &document["errors"][0];
    let part = |name: &str| {
        let text = first[name].as_str().unwrap_or_default();
        text.chars().filter(|c| !c.is_control()).take(200).collect::<String>()
    };
    match (part("code"), part("message")) {
        (code, message) if code.is_empty() && message.is_empty() => String::new(),
        (code, message) => format!(": {code}: {message}"),
    }
}

fn too_big(object: &str) -> Error {
    let cause = format!("it is bigger than announced or than {} MiB", DOCUMENT_MAX_BYTES >> 20);
    Error::invalid("read manifest", object, cause)
}

fn mismatch(asked: &Digest, found: &Digest) -> Error {
    Error::invalid("verify blob", asked.to_string(), format!("its content has the digest {found}"))
        .hint("something between here and the registry changes content")
}

fn is_loopback(registry: &str) -> bool {
    let host = match registry.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => host,
        _ => registry,
    };
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost")
        || address.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_told_from_the_network() {
        for yes in ["localhost", "localhost:5000", "127.0.0.1:5000", "127.1.2.3", "[::1]:5000", "[::1]"] {
            assert!(is_loopback(yes), "{yes}");
        }
        for no in ["r.io", "localhost.evil.io", "10.0.0.1:5000", "[::2]:5000", "127.0.0.1.evil.io"] {
            assert!(!is_loopback(no), "{no}");
        }
    }

    #[test]
    fn what_a_registry_says_is_bounded_and_one_line() {
        let body = serde_json::json!({ "errors": [{ "code": "DENIED", "message": "no\nway ".repeat(100) }] });
        let said = message_in(body.to_string().as_bytes());
        assert!(said.starts_with(": DENIED: noway"));
        assert!(said.len() < 260 && !said.contains('\n'));
        assert_eq!(message_in(b"<html>"), "");
    }
}
